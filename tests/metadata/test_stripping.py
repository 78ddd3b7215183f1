"""Places taken out and put in: nothing else changes, as bytes, as pixels and as another program reads it."""

import io
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.errors import ImageError
from open_geoclip.metadata import xmp
from open_geoclip.metadata.blocks import exif_of, split
from open_geoclip.metadata.iptc import without_places
from open_geoclip.metadata.place import read_facts
from open_geoclip.metadata.stripping import strip
from open_geoclip.metadata.tagging import Estimate, with_exif_place, with_xmp_place
from open_geoclip.metadata.tiff import Tiff

Photo = Callable[..., bytes]
KINDS = ("jpg", "png", "webp", "tif", "heic", "avif")
WRITTEN = ("jpg", "png", "webp", "tif")
ESTIMATE = Estimate(-33.8568, 151.2153, "earth 1", "places, 3", "0.1", 41.5, 0.9, True)
MAKER_NOTE = b"a maker's note " + bytes(range(200))


@pytest.mark.parametrize("kind", KINDS)
def test_strip_removes_places_and_nothing_else(kind: str, photo: Photo, packet: bytes, pixels: Any) -> None:
    data = photo(kind, xmp=packet, icc=kind not in ("heic", "avif"))
    done = strip(data, "a")
    assert "EXIF GPS" in done.removed
    assert {"XMP GPSLatitude", "XMP GPSLongitude", "XMP GPSAltitude", "XMP City"} <= set(done.removed)
    facts, before = read_facts(done.data), read_facts(data)
    assert facts.places == ()
    assert facts.faults == ()
    assert (facts.taken, facts.camera, facts.software) == (before.taken, before.camera, before.software)
    assert np.array_equal(pixels(done.data), pixels(data))
    assert MAKER_NOTE in done.data
    assert any("maker's notes are kept" in reason for reason in done.unsure)
    assert b"Rating" in done.data or kind == "png"
    again = strip(done.data, "a")
    assert again.data == done.data
    assert again.removed == ()


@pytest.mark.parametrize("kind", ["jpg", "webp", "tif", "heic", "avif"])
def test_stripping_moves_no_byte(kind: str, photo: Photo, packet: bytes) -> None:
    data = photo(kind, xmp=packet)
    changed = strip(data, "a").data
    assert len(changed) == len(data)
    different = [at for at, (one, other) in enumerate(zip(data, changed, strict=True)) if one != other]
    inside = split(data, "a").blocks
    assert all(any(block.start <= at < block.end for block in inside) for at in different)


def test_maker_notes_go_when_asked(photo: Photo) -> None:
    done = strip(photo(), "a", maker_notes=True)
    assert MAKER_NOTE not in done.data
    assert bytes(range(32, 200)) not in done.data
    assert "the camera maker's notes" in done.removed
    assert read_facts(done.data).taken is not None


@pytest.mark.parametrize("kind", WRITTEN)
def test_another_program_finds_no_place_and_all_else(
    kind: str, photo: Photo, packet: bytes, tmp_path: Path, exiftool: Callable[..., dict[str, Any]]
) -> None:
    for name, data in (("before", photo(kind, xmp=packet)), ("after", strip(photo(kind, xmp=packet), "a").data)):
        (tmp_path / f"{name}.{kind}").write_bytes(data)
    before, after = (exiftool(tmp_path / f"{name}.{kind}", "-a", "-u") for name in ("before", "after"))
    gone = {key for key in before if "GPS" in key or key.endswith(":City")}
    assert len(gone) > 8
    left = {key for key in after if "GPS" in key or key.endswith(":City")}
    assert left == set()
    ours = {key for key in before if not key.startswith(("System:", "SourceFile", "Composite:")) and key not in gone}
    assert {key: after.get(key) for key in ours} == {key: before[key] for key in ours}


def test_iptc_fields_and_everything_beside_them(photo: Photo, pixels: Any) -> None:
    def record(number: int, text: bytes) -> bytes:
        return b"\x1c\x02" + bytes((number,)) + struct.pack(">H", len(text)) + text

    records = record(90, b"Paris") + record(120, b"A caption") + record(101, b"France") + record(92, b"Montmartre")
    other = b"8BIM\x04\x25\0\0\0\0\0\x10" + bytes(range(16))
    block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(records)) + records + bytes(len(records) % 2) + other
    kept, gone, fault = without_places(block)
    assert (gone, fault) == (["IPTC city", "IPTC country", "IPTC sublocation"], None)
    assert b"A caption" in kept
    assert kept.endswith(other)
    assert without_places(kept)[1] == []
    body = b"Photoshop 3.0\0" + block
    data = photo()
    data = data[:2] + b"\xff\xed" + struct.pack(">H", len(body) + 2) + body + data[2:]
    done = strip(data, "a")
    assert b"Paris" not in done.data
    assert b"A caption" in done.data
    assert np.array_equal(pixels(done.data), pixels(data))
    for cut in (block[:20], block[:30], b"8BIM", b"\x1c\x02\x5a\xff\xff"):
        assert isinstance(without_places(cut)[0], bytes)


def test_xmp_that_cannot_be_understood_goes_as_a_whole(photo: Photo, pixels: Any) -> None:
    data = photo(xmp=b"<x:xmpmeta>48,51.5N, 2,17.6E and no end")
    done = strip(data, "a")
    assert "all XMP, which could not be understood" in done.removed
    assert b"48,51.5N" not in done.data
    assert np.array_equal(pixels(done.data), pixels(data))


def test_every_picture_of_a_file_is_done(photo: Photo, packet: bytes) -> None:
    """A phone's file: a second JPEG behind the first, with a place of its own, and a list that says where it is."""
    one, two = photo(seed=1), photo(seed=2, xmp=packet)
    entries = struct.pack("<IIIHH", 0x030000, 0, 0, 0, 0) * 2
    head = b"MPF\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0xB002, 7, 32, 26, 0) + entries
    segment = b"\xff\xe2" + struct.pack(">H", len(head) + 2) + head
    base = 2 + 4 + 4  # of the list, when it stands first
    data = bytearray(one[:2] + segment + one[2:] + two)
    struct.pack_into("<I", data, base + 26 + 4, len(data) - len(two))
    struct.pack_into("<II", data, base + 26 + 16 + 4, len(two), len(data) - len(two) - base)
    done = strip(bytes(data), "a")
    assert read_facts(done.data).places == ()
    assert read_facts(done.data[-len(two) :]).places == ()
    assert len(done.data) == len(data)
    tagged = with_exif_place(bytes(data), ESTIMATE, "a")
    grown = len(tagged) - len(data)
    place = tagged.find(b"MPF\0") + 4
    length, offset = (struct.unpack_from("<I", tagged, place + 26 + at)[0] for at in (4, 16 + 8))
    assert length == len(data) - len(two) + grown
    assert tagged[place + offset :] == two


def test_what_stands_behind_a_picture_is_told(photo: Photo) -> None:
    done = strip(photo() + b"\0\0\0\x18ftypmp42 a video with \xa9xyz+48.85+002.29/", "a")
    assert any("bytes behind the picture" in reason for reason in done.unsure)
    assert any("a comment of 9 bytes is kept" in reason for reason in done.unsure)


def test_texts_of_a_png(picture: Any, pixels: Any) -> None:
    from PIL.PngImagePlugin import PngInfo

    info, out = PngInfo(), io.BytesIO()
    info.add_text("exif:GPSLatitude", "48/1, 51/1, 30/1")
    info.add_text("Title", "A day in Paris")
    raw = Image.Exif()
    raw.get_ifd(0x8825).update({1: "N", 2: (48, 51, 30), 3: "E", 4: (2, 17, 40)})
    payload = raw.tobytes()
    info.add_text("Raw profile type exif", f"\nexif\n{len(payload):8d}\n{payload.hex()}\n", zip=True)
    picture().save(out, "PNG", pnginfo=info)
    assert read_facts(out.getvalue()).places != ()
    done = strip(out.getvalue(), "a")
    assert set(done.removed) == {"text 'exif:GPSLatitude'", "EXIF GPS"}
    assert done.unsure == ("text 'Title' is kept",)
    assert read_facts(done.data).places == ()
    assert np.array_equal(pixels(done.data), pixels(out.getvalue()))
    with Image.open(io.BytesIO(done.data)) as opened:
        opened.verify()  # checksums


# --- putting places in ----------------------------------------------------------------------------


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_place_goes_in_and_all_else_stays(
    kind: str, bare: bool, photo: Photo, packet: bytes, pixels: Any, exiftool: Any, tmp_path: Path
) -> None:
    data = photo(kind, place=None, bare=bare, xmp=packet if kind != "tif" and not bare else None, icc=True)
    changed = with_exif_place(data, ESTIMATE, "a")
    place = read_facts(changed).places[0]
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
    ours = {key for key in before if not key.startswith(("System:", "SourceFile", "Composite:", "File:", "RIFF:"))}
    assert {key: after.get(key) for key in ours} == {key: before[key] for key in ours}
    back = strip(changed, "a")
    assert "EXIF GPS" in back.removed
    assert read_facts(back.data).places == read_facts(data).places[:0]


def test_segments_of_a_jpeg_stay_byte_for_byte(photo: Photo, packet: bytes, segments: Any) -> None:
    data = photo(xmp=packet, icc=True)
    before, after = segments(data), segments(with_exif_place(data, ESTIMATE, "a"))
    assert len(before) == len(after)
    changed = [number for number, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    assert [before[number][4:10] for number in changed] == [b"Exif\0\0"]
    old, new = (exif_of(parts[changed[0]][4:]) for parts in (before, after))
    for offset in (Tiff.read(old).find("Exif", 0x927C), Tiff.read(old).find("Exif", 0x9003)):
        assert offset is not None
        start, end = offset.value_at, offset.value_at + offset.size
        assert new[start:end] == old[start:end], "a maker note stands where it stood, as its own offsets count on"


@pytest.mark.parametrize(("kind", "told"), [("heic", "HEIC"), ("avif", "AVIF")])
def test_no_places_go_into_heic(kind: str, told: str, photo: Photo) -> None:
    with pytest.raises(ImageError, match=f"{told}.*use a sidecar"):
        with_exif_place(photo(kind), ESTIMATE, "a")


def test_damaged_exif_is_not_written_to(photo: Photo) -> None:
    data = photo()
    at = data.index(b"Exif\0\0") + 6
    with pytest.raises(ImageError, match="use a sidecar"):
        with_exif_place(data[: at + 4] + b"\xff\xff\xff\xff" + data[at + 8 :], ESTIMATE, "a")


def test_sidecars_keep_what_others_wrote(packet: bytes, tmp_path: Path, exiftool: Any) -> None:
    changed = with_xmp_place(packet, ESTIMATE)
    (tmp_path / "a.xmp").write_bytes(changed)
    told = exiftool(tmp_path / "a.xmp")
    assert told["XMP-exif:GPSLatitude"] == pytest.approx(ESTIMATE.lat, abs=1e-7)
    assert told["XMP-exif:GPSLongitude"] == pytest.approx(ESTIMATE.lon, abs=1e-7)
    assert told["XMP-exif:GPSHPositioningError"] == 41_500
    assert (told["XMP-xmp:Rating"], told["XMP-dc:Title"]) == (4, "A <day> out")
    assert told["XMP-photoshop:City"] == "Sète"
    assert any(key.endswith(":Model") and value == "earth 1" for key, value in told.items())
    assert b"351/10" not in changed, "the altitude belonged to the place that was replaced"
    names = [one.name for one in xmp.properties(xmp.decoded(with_xmp_place(changed, ESTIMATE)))]
    assert names.count("GPSLatitude") == names.count("Model") == 1


def test_an_estimate_that_was_not_calibrated_claims_no_accuracy() -> None:
    plain = Estimate(1, 2, "m", "g", "0", None, 0.5, None)
    told = with_xmp_place(None, plain).decode()
    assert "GPSHPositioningError" not in told
    assert "not calibrated" in told


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_never_made_worse(kind: str, photo: Photo, packet: bytes) -> None:
    """Mutations of the metadata: either an error, or a file that differs within its metadata alone and has no place."""
    data = photo(kind, xmp=packet)
    chance = random.Random(kind)
    spans = [block for block in split(data, "a").blocks if block.kind != "other"]
    for _ in range(40):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 2, 8))):
            block = chance.choice(spans)
            end = min(block.end, block.start + 600)
            changed[chance.randrange(block.start, end)] = chance.choice((0, 0xFF, chance.randrange(256)))
        try:
            done = strip(bytes(changed), "a")
            tagged = with_exif_place(bytes(changed), ESTIMATE, "a") if kind in WRITTEN else b""
        except ImageError:
            continue
        assert [place for place in read_facts(done.data).places if place.lat or place.lon] == []
        if kind == "jpg":
            pixels_at = data.rindex(b"\xff\xda")
            assert done.data.endswith(data[pixels_at:])
            assert tagged.endswith(data[pixels_at:])
