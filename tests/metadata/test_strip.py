"""Places removed and written: nothing else changes, as bytes, as pixels and as ExifTool reads it."""

import io
import os
import random
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.errors import ImageError, MetadataError, MissingProgramError
from open_geoclip.images import load_image
from open_geoclip.metadata import xmp
from open_geoclip.metadata.exiftool import ExifTool
from open_geoclip.metadata.inspection import inspect
from open_geoclip.metadata.read import read_metadata
from open_geoclip.metadata.strip import check_pixels, strip
from open_geoclip.metadata.tag import Estimate, sidecar_packet, write_place
from tests.metadata import carriers
from tests.metadata.carriers import CARRIERS

Photo = Callable[..., bytes]
KINDS = ("jpg", "png", "webp", "tif", "heic", "avif")
WRITABLE = ("jpg", "png", "webp", "tif")
ESTIMATE = Estimate(-33.8568, 151.2153, "earth 1", "places, 3", "0.1", 41.5, 0.9, True)
MAKER_NOTE = b"a maker's note " + bytes(range(200))
FAULTS = Path(__file__).parents[3] / "shared" / "faults"


def fault(name: str) -> bytes:
    """A file of the collected faults."""
    path = FAULTS / name
    if not path.exists():
        pytest.skip(f"{FAULTS} is not here")
    return path.read_bytes()


def carrier(name: str) -> bytes:
    """A file that holds a place; skipped where its decoder is missing."""
    if name.endswith(".heic"):
        pytest.importorskip("pillow_heif")
    return CARRIERS[name]()


# --- removing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CARRIERS)
def test_no_carrier_keeps_its_place(name: str, tool: ExifTool, tmp_path: Path, exiftool: Any, pixels: Any) -> None:
    data = carrier(name)
    done = strip(data, name, tool)
    assert done.removed
    assert done.unreadable == ()
    assert inspect(done.data, name, tool).places == ()
    (tmp_path / name).write_bytes(done.data)
    found = exiftool(tmp_path / name, "-a", "-ee", "-u")
    assert not [key for key in found if "GPS" in key or key.endswith((":City", "Location", "ModelTiePoint"))]
    assert carriers.CITY.encode() not in done.data
    assert carriers.ISO6709 not in done.data
    assert np.array_equal(pixels(done.data), pixels(data))
    if b'xmp:Rating="4"' in data:
        assert b'xmp:Rating="4"' in done.data
    if b"A caption" in data:
        assert b"A caption" in done.data
    again = strip(done.data, name, tool)
    assert (again.data, again.removed) == (done.data, ())


@pytest.mark.parametrize("name", ["strip_leaves_place.heic", "strip_split_iptc.jpg", "two_exif_segments.jpg"])
def test_collected_faults(name: str, tool: ExifTool, tmp_path: Path, exiftool: Any) -> None:
    done = strip(fault(name), name, tool)
    assert done.removed
    (tmp_path / name).write_bytes(done.data)
    found = exiftool(tmp_path / name, "-a", "-ee")
    assert not [key for key in found if "GPS" in key or "City" in key or "Country" in key]


def test_bytes_behind_a_webp_stay_behind_it(tool: ExifTool) -> None:
    data = fault("webp_trailing_bytes.webp")
    assert strip(data, "a.webp", tool).data == data
    tagged = write_place(data, ESTIMATE, "a.webp", tool)
    assert np.array_equal(np.asarray(load_image(tagged)), np.asarray(load_image(data)))
    assert tagged.endswith(data[-1:])
    assert struct.unpack_from("<I", tagged, 4)[0] + 8 == len(tagged) - 1
    done = strip(tagged, "a.webp", tool)
    assert done.removed == ("EXIF GPS",)
    assert np.array_equal(np.asarray(load_image(done.data)), np.asarray(load_image(data)))


@pytest.mark.parametrize("kind", KINDS)
def test_strip_removes_places_and_nothing_else(
    kind: str, photo: Photo, packet: bytes, pixels: Any, tool: ExifTool
) -> None:
    data = photo(kind, xmp=packet, icc=kind not in ("heic", "avif"))
    done = strip(data, "a", tool)
    assert "EXIF GPS" in done.removed
    assert {"XMP GPSLatitude", "XMP GPSLongitude", "XMP GPSAltitude", "XMP City"} <= set(done.removed)
    facts, before = read_metadata(done.data), read_metadata(data)
    assert facts.places == ()
    assert facts.faults == ()
    assert (facts.taken, facts.camera, facts.software) == (before.taken, before.camera, before.software)
    assert np.array_equal(pixels(done.data), pixels(data))
    assert MAKER_NOTE in done.data
    assert any("maker's notes are kept" in reason for reason in done.unsure)
    assert b"Rating" in done.data or kind == "png"
    again = strip(done.data, "a", tool)
    assert again.data == done.data
    assert again.removed == ()


def test_maker_notes_go_when_asked(photo: Photo, tool: ExifTool) -> None:
    for place in ((48.0, 2.0), None):
        done = strip(photo(place=place), "a", tool, maker_notes=True)
        assert MAKER_NOTE not in done.data
        assert bytes(range(32, 200)) not in done.data
        assert "the camera maker's notes" in done.removed
        assert read_metadata(done.data).taken is not None


@pytest.mark.parametrize("kind", WRITABLE)
def test_another_program_finds_no_place_and_all_else(
    kind: str, photo: Photo, packet: bytes, tmp_path: Path, exiftool: Callable[..., dict[str, Any]], tool: ExifTool
) -> None:
    for name, data in (("before", photo(kind, xmp=packet)), ("after", strip(photo(kind, xmp=packet), "a", tool).data)):
        (tmp_path / f"{name}.{kind}").write_bytes(data)
    before, after = (exiftool(tmp_path / f"{name}.{kind}", "-a", "-u") for name in ("before", "after"))
    gone = {key for key in before if "GPS" in key or key.endswith(":City")}
    assert len(gone) > 8
    left = {key for key in after if "GPS" in key or key.endswith(":City")}
    assert left == set()
    moved = ("System:", "SourceFile", "Composite:", "File:FileSize", "IFD0:StripOffsets")
    ours = {key for key in before if not key.startswith(moved) and key not in gone}
    assert {key: after.get(key) for key in ours} == {key: before[key] for key in ours}


def test_extended_xmp_keeps_what_is_no_place(tool: ExifTool, tmp_path: Path, exiftool: Any) -> None:
    (tmp_path / "a.jpg").write_bytes(strip(carriers.extended_xmp(), "a", tool).data)
    found = exiftool(tmp_path / "a.jpg", "-a", "-b")
    assert found["XMP-x1:Note"] == "n" * 70_000
    assert found["XMP-dc:Format"] == "image/jpeg"


def test_xmp_that_cannot_be_understood_goes_as_a_whole(photo: Photo, pixels: Any, tool: ExifTool) -> None:
    data = photo(xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF>48,51.5N, 2,17.6E</x:xmpmeta>")
    done = strip(data, "a", tool)
    assert any("all XMP, which could not be understood" in one for one in done.removed)
    assert b"48,51.5N" not in done.data
    assert np.array_equal(pixels(done.data), pixels(data))


def test_every_image_of_a_file_is_done(tool: ExifTool) -> None:
    """A phone's file: a second JPEG behind the first, with a place of its own, and a list that says where it is."""
    data = carriers.mpf()
    done = strip(data, "a", tool).data
    tagged = write_place(data, ESTIMATE, "a", tool)
    for changed in (done, tagged):
        place = changed.find(b"MPF\0") + 4
        length, offset = (struct.unpack_from("<I", changed, place + 50 + at)[0] for at in (4, 16 + 8))
        second = changed[place + offset :]
        assert length == place + offset
        assert second.startswith(b"\xff\xd8")
        assert load_image(second).size == (64, 48)
        assert read_metadata(second).places == ()
    assert read_metadata(done).places == ()


def test_what_cannot_be_read_behind_an_image_is_reported(photo: Photo, tool: ExifTool) -> None:
    done = strip(photo() + b"no picture and no video, \xa9xyz+48.85+002.29/", "a", tool)
    assert done.unreadable == ("43 bytes behind the image that are no image or video",)
    assert any("a comment of 9 bytes is kept" in reason for reason in done.unsure)
    assert strip(photo() + bytes(5000), "a", tool).unreadable == ()
    assert strip(photo() + b"\r\n", "a", tool).unreadable == ()


def test_coordinates_in_words_are_reported(tool: ExifTool) -> None:
    data = carriers.jpeg(carriers.app(0xFE, b"taken at geo:-22.9519,-43.2105"))
    done = strip(data, "a", tool)
    assert done.data == data
    assert done.unreadable == ("File Comment that holds coordinates: 'taken at geo:-22.9519,-43.2105'",)


def test_texts_of_a_png(picture: Any, pixels: Any, tool: ExifTool) -> None:
    from PIL.PngImagePlugin import PngInfo

    info, out = PngInfo(), io.BytesIO()
    info.add_text("exif:GPSLatitude", "48/1, 51/1, 30/1")
    info.add_text("Title", "A day in Paris")
    payload = b"Exif\0\0" + carriers.tiff()
    info.add_text("Raw profile type exif", f"\nexif\n{len(payload):8d}\n{payload.hex()}\n", zip=True)
    picture().save(out, "PNG", pnginfo=info)
    assert read_metadata(out.getvalue()).places != ()
    done = strip(out.getvalue(), "a", tool)
    assert set(done.removed) == {"text 'exif:GPSLatitude'", "EXIF GPS"}
    assert done.unsure == ("text 'Title' is kept",)
    assert read_metadata(done.data).places == ()
    assert np.array_equal(pixels(done.data), pixels(out.getvalue()))
    with Image.open(io.BytesIO(done.data)) as opened:
        opened.verify()  # checksums


def test_a_change_of_pixels_is_refused(photo: Photo) -> None:
    check_pixels(photo(), photo(place=None), "a")
    with pytest.raises(ImageError, match="pixels would change"):
        check_pixels(photo(), photo(seed=1), "a")
    with pytest.raises(ImageError, match=r"cut off|cannot be decoded"):
        check_pixels(photo(), photo()[:-500], "a")
    pages: list[bytes] = []
    for seed in (1, 2):
        out = io.BytesIO()
        page = Image.fromarray(np.full((8, 8), 40 * seed, np.uint8))
        Image.new("L", (8, 8)).save(out, "TIFF", save_all=True, append_images=[page])
        pages.append(out.getvalue())
    with pytest.raises(ImageError, match="pixels would change"):
        check_pixels(pages[0], pages[1], "a")


def test_an_image_that_cannot_be_decoded_is_left_as_it_is(photo: Photo, tool: ExifTool) -> None:
    with pytest.raises(ImageError, match=r"cut off|cannot be decoded"):
        strip(photo()[:-900], "a", tool)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("kind", WRITABLE)
def test_a_place_goes_in_and_all_else_stays(
    kind: str, bare: bool, photo: Photo, packet: bytes, pixels: Any, exiftool: Any, tmp_path: Path, tool: ExifTool
) -> None:
    plain = xmp.remove_properties(packet, xmp.is_coordinate)[0]
    data = photo(kind, place=None, bare=bare, xmp=plain if kind != "tif" and not bare else None, icc=True)
    changed = write_place(data, ESTIMATE, "a", tool)
    [place] = read_metadata(changed).places
    assert (place.lat, place.lon) == pytest.approx((ESTIMATE.lat, ESTIMATE.lon), abs=1e-7)
    assert (place.estimated, place.accuracy_m, place.datum) == (True, 41_500, "WGS-84")
    assert np.array_equal(pixels(changed), pixels(data))
    for name, content in (("before", data), ("after", changed)):
        (tmp_path / f"{name}.{kind}").write_bytes(content)
    before, after = (exiftool(tmp_path / f"{name}.{kind}", "-a", "-u") for name in ("before", "after"))
    assert after["GPS:GPSLatitude"] == pytest.approx(abs(ESTIMATE.lat), abs=1e-7)
    assert after["GPS:GPSLatitudeRef"] == "S"
    assert after["GPS:GPSProcessingMethod"] == ESTIMATE.method
    assert "ExifTool:Warning" not in after or after["ExifTool:Warning"] == before.get("ExifTool:Warning")
    moved = ("System:", "SourceFile", "Composite:", "File:", "RIFF:", "IFD0:StripOffsets")
    ours = {key for key in before if not key.startswith(moved)}
    assert {key: after.get(key) for key in ours} == {key: before[key] for key in ours}
    back = strip(changed, "a", tool)
    assert "EXIF GPS" in back.removed
    assert read_metadata(back.data).places == ()


@pytest.mark.parametrize("name", [name for name in CARRIERS if name.endswith((".jpg", ".png", ".webp", ".tif"))])
def test_afterwards_every_reader_finds_the_new_place_and_no_other(
    name: str, tool: ExifTool, tmp_path: Path, exiftool: Any, pixels: Any
) -> None:
    data = carrier(name)
    changed = write_place(data, ESTIMATE, name, tool)
    (tmp_path / name).write_bytes(changed)
    found = exiftool(tmp_path / name, "-a", "-ee", "-n", "-G1:4")
    values = {key: value for key, value in found.items() if "Latitude" in key and "Ref" not in key}
    assert values
    assert {round(abs(value), 4) for key, value in values.items()} == {33.8568}
    [place] = read_metadata(changed).places
    assert (place.lat, place.lon) == pytest.approx((ESTIMATE.lat, ESTIMATE.lon), abs=1e-7)
    with Image.open(io.BytesIO(changed)) as opened:
        record = opened.getexif().get_ifd(0x8825)
    assert float(record[2][0]) == 33
    assert (record[1], record[3]) == ("S", "E")
    assert np.array_equal(pixels(changed), pixels(data))


def test_one_of_several_places_is_not_left(tool: ExifTool) -> None:
    changed = write_place(fault("two_exif_segments.jpg"), ESTIMATE, "a", tool)
    [place] = read_metadata(changed).places
    assert place.lat == pytest.approx(ESTIMATE.lat)
    assert {tag.value for tag in inspect(changed, "a", tool).tags if tag.name == "GPSLatitude"} == {33.8568}


@pytest.mark.parametrize(("kind", "article"), [("heic", "a HEIC"), ("avif", "a AVIF")])
def test_no_places_go_into_heic(kind: str, article: str, photo: Photo, tool: ExifTool) -> None:
    with pytest.raises(ImageError, match=f"not written into {article}; use a sidecar"):
        write_place(photo(kind), ESTIMATE, "a", tool)


def test_damaged_exif_is_not_written_to(photo: Photo, tool: ExifTool) -> None:
    data = photo()
    at = data.index(b"Exif\0\0") + 6
    with pytest.raises(ImageError, match="use a sidecar"):
        write_place(data[: at + 4] + b"\xff\xff\xff\xff" + data[at + 8 :], ESTIMATE, "a", tool)


def test_sidecars_keep_what_others_wrote(packet: bytes, tmp_path: Path, exiftool: Any) -> None:
    changed = sidecar_packet(packet, ESTIMATE)
    (tmp_path / "a.xmp").write_bytes(changed)
    found = exiftool(tmp_path / "a.xmp")
    assert found["XMP-exif:GPSLatitude"] == pytest.approx(ESTIMATE.lat, abs=1e-7)
    assert found["XMP-exif:GPSLongitude"] == pytest.approx(ESTIMATE.lon, abs=1e-7)
    assert found["XMP-exif:GPSHPositioningError"] == 41_500
    assert (found["XMP-xmp:Rating"], found["XMP-dc:Title"]) == (4, "A <day> out")
    assert found["XMP-photoshop:City"] == "Sète"
    assert any(key.endswith(":Model") and value == "earth 1" for key, value in found.items())
    assert b"351/10" not in changed, "the altitude belonged to the place that was replaced"
    names = [one.name for one in xmp.properties(xmp.decode(sidecar_packet(changed, ESTIMATE))[0])]
    assert names.count("GPSLatitude") == names.count("Model") == 1


def test_an_estimate_that_was_not_calibrated_claims_no_accuracy() -> None:
    plain = Estimate(1, 2, "m", "g", "0", None, 0.5, None)
    text = sidecar_packet(None, plain).decode()
    assert "GPSHPositioningError" not in text
    assert "not calibrated" in text


# --- ExifTool -------------------------------------------------------------------------------------


def test_a_missing_exiftool_is_named_with_its_installation() -> None:
    with pytest.raises(MissingProgramError, match=r"apt-get install libimage-exiftool-perl.*brew install exiftool"):
        ExifTool("no-such-exiftool")


def test_an_exiftool_that_dies_is_replaced(tool: ExifTool, photo: Photo) -> None:
    process = tool._process
    assert process is not None
    process.kill()
    process.wait()
    assert tool.read(photo(), ".jpg")
    assert tool._process is not process


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux alone can wait for a process that is not its child")
@pytest.mark.usefixtures("tool")
def test_neither_exiftool_nor_its_copy_of_a_photo_outlives_a_killed_process(photo: Photo) -> None:
    program = (
        "import os, sys; from open_geoclip.metadata.exiftool import ExifTool; tool = ExifTool(); "
        "tool.read(sys.stdin.buffer.read(), '.jpg'); print(tool._process.pid, tool._feed.pid, tool._folder.name); "
        "sys.stdout.flush(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program], input=photo(), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    *processes, folder = killed.stdout.decode().split()
    for process in processes:
        try:
            ended = os.pidfd_open(int(process))
        except ProcessLookupError:
            continue
        assert select.select([ended], [], [], 20)[0], "it is still there"
        os.close(ended)
    assert not Path(folder).exists()


def test_an_exiftool_that_hangs_is_ended(tmp_path: Path) -> None:
    program = tmp_path / "exiftool"
    program.write_text("#!/bin/sh\necho 13.0\necho '{ready}'\nexec sleep 60\n")
    program.chmod(0o755)
    with ExifTool(str(program), timeout_s=0.1) as running, pytest.raises(MetadataError, match="took longer than"):
        running.read(b"", ".jpg")


def test_an_old_exiftool_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "exiftool"
    program.write_text("#!/bin/sh\necho 12.16\necho '{ready}'\nexec sleep 60\n")
    program.chmod(0o755)
    with pytest.raises(MissingProgramError, match=r"12.16 is too old: 12.24 or newer is needed; install it: apt-get"):
        ExifTool(str(program))


def test_arguments_are_lines(tool: ExifTool, photo: Photo) -> None:
    with pytest.raises(ValueError, match="one line"):
        tool.write(photo(), ".jpg", "-Artist=a\n-execute")


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_never_made_worse(
    kind: str, photo: Photo, packet: bytes, tool: ExifTool, pixels: Any
) -> None:
    """Mutations of the metadata: either an error, or a file with the same pixels and no place."""
    data = photo(kind, xmp=packet)
    chance = random.Random(kind)
    starts = [at for at in (data.find(b"II*\0"), data.find(b"MM\0*"), data.find(b"<x:xmpmeta")) if at > 0] or [8]
    for _ in range(25):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 2, 8))):
            changed[min(chance.choice(starts) + chance.randrange(600), len(data) - 1)] = chance.choice(
                (0, 0xFF, chance.randrange(256))
            )
        try:
            expected = pixels(bytes(changed))
            done = strip(bytes(changed), "a", tool)
            tagged = write_place(bytes(changed), ESTIMATE, "a", tool) if kind in WRITABLE else bytes(changed)
        except (ImageError, OSError, SyntaxError, ValueError, RuntimeError):
            continue
        assert [place for place in read_metadata(done.data).places if place.lat or place.lon] == []
        assert np.array_equal(pixels(done.data), expected)
        assert np.array_equal(pixels(tagged), expected)
