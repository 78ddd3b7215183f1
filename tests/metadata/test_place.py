"""Where a photo says itself that it was taken, from every kind of file, as another program reads it too."""

import io
import random
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from open_geoclip.errors import ImageError
from open_geoclip.metadata import gps
from open_geoclip.metadata.place import PhotoPlace, read_facts, read_place
from open_geoclip.metadata.tiff import Tiff, TiffError, with_directory
from open_geoclip.metadata.xmp import XmpError, decoded, new_packet, properties

Photo = Callable[..., bytes]
KINDS = ("jpg", "png", "webp", "tif", "heic", "avif")
LAT, LON = 48.8584, -2.2945
TAKEN = datetime(2026, 5, 1, 14, 3, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize("kind", KINDS)
def test_exif_of_every_kind_of_file(kind: str, photo: Photo) -> None:
    facts = read_facts(photo(kind))
    place = facts.place
    assert place is not None
    assert (place.lat, place.lon) == pytest.approx((LAT, LON), abs=2e-6)
    assert (place.source, place.accuracy_m, place.altitude_m, place.direction_deg) == ("exif", 6.5, 35.1, 225)
    assert (place.datum, place.method, place.estimated, place.no_fix) == ("WGS-84", "GPS", False, False)
    assert (place.time, place.fix_time) == (TAKEN, datetime(2026, 5, 1, 12, 3, tzinfo=UTC))
    assert (facts.camera, facts.software, facts.faults) == ("Maker 7", ("A program 1.0",), ())
    told = place.to_dict()
    assert (told["time"], told["source"], told["accuracy_m"]) == ("2026-05-01T14:03:00+02:00", "exif", 6.5)
    assert read_place(photo(kind, place=None)) is None
    assert read_place(photo(kind, bare=True)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_xmp_of_every_kind_of_file(kind: str, photo: Photo, packet: bytes) -> None:
    facts = read_facts(photo(kind, place=None, xmp=packet))
    assert facts.place is not None
    assert (facts.place.lat, facts.place.lon, facts.place.altitude_m) == pytest.approx((LAT, LON, 35.1))
    assert facts.place.source == "xmp"
    assert "A toolkit 1" in facts.software
    both = read_facts(photo(kind, place=(1.0, 2.0), xmp=packet))
    assert [place.source for place in both.places] == ["exif", "xmp"]
    assert both.place is both.places[0]


def test_sidecars_belong_to_their_photo(tmp_path: Path, photo: Photo, packet: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(photo(place=None))
    assert read_place(path) is None
    (tmp_path / "a.xmp").write_bytes(packet)
    place = read_place(path)
    assert place is not None
    assert place.source == "sidecar"
    assert place.lat == pytest.approx(LAT)
    assert place.time == TAKEN, "the photo's own time, beside the sidecar's place"
    assert read_facts(path, sidecars=False).places == ()
    (tmp_path / "a.jpg.xmp").write_text("no XML")
    facts = read_facts(path)
    assert facts.place == place
    assert "sidecar cannot be understood" in facts.faults[0]


def test_an_estimate_is_not_the_photos_own_place(picture: Any, gps_record: Any) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update(gps_record() | {27: b"ASCII\0\0\0ESTIMATED by something"})
    out = io.BytesIO()
    picture().save(out, "JPEG", exif=exif)
    facts = read_facts(out.getvalue())
    assert [place.estimated for place in facts.places] == [True]
    assert facts.place is None


def test_sources_other_than_files(tmp_path: Path, photo: Photo) -> None:
    data = photo()
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    expected = read_place(data)
    assert read_place(io.BytesIO(data)) == expected
    assert read_place(path) == read_place(str(path)) == expected
    with Image.open(path) as opened:
        from_image = read_place(opened)
    assert from_image is not None
    assert (from_image.lat, from_image.time) == (expected and expected.lat, TAKEN)
    assert read_place(np.zeros((4, 4, 3), np.uint8)) is None
    for wrong, message in ((b"text", "not a picture"), (b"", "empty"), (tmp_path / "none.jpg", "no such file")):
        with pytest.raises(ImageError, match=message):
            read_place(wrong)


def test_a_large_jpeg_is_not_read_to_its_end(tmp_path: Path, picture: Any, gps_record: Any) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update(gps_record())
    out = io.BytesIO()
    picture(1, (900, 700)).save(out, "JPEG", exif=exif)
    whole = out.getvalue()
    assert len(whole) > 2**18
    (tmp_path / "a.jpg").write_bytes(whole[: 2**18 + 5])  # what lies behind the head is not needed
    assert read_place(tmp_path / "a.jpg") is not None


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_another_program_reads_the_same(
    kind: str, tmp_path: Path, exiftool: Callable[..., dict[str, Any]], photo: Photo, packet: bytes
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(photo(kind, xmp=packet))
    told, facts = exiftool(path), read_facts(path)
    exif, xmp = facts.places
    assert exif.lat == pytest.approx(told["GPS:GPSLatitude"], abs=1e-9)
    assert -exif.lon == pytest.approx(told["GPS:GPSLongitude"], abs=1e-9)
    assert exif.altitude_m == pytest.approx(told["GPS:GPSAltitude"])
    assert exif.accuracy_m == told["GPS:GPSHPositioningError"]
    assert xmp.lat == pytest.approx(told["XMP-exif:GPSLatitude"], abs=1e-9)
    assert xmp.lon == pytest.approx(told["XMP-exif:GPSLongitude"], abs=1e-9)


@settings(max_examples=30)
@given(lat=st.floats(-90, 90), lon=st.floats(-180, 180), order=st.sampled_from("<>"))
def test_a_record_that_is_written_is_read_again(lat: float, lon: float, order: str) -> None:
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIHI", 42, 8, 0, 0)
    data = with_directory(head, 0x8825, gps.fields(order, lat, lon, method="ESTIMATED", accuracy_m=41_000))
    told = gps.read(Tiff.read(data))
    assert told is not None
    assert (told["lat"], told["lon"]) == pytest.approx((lat, lon), abs=0.6 / 3600 / 10_000)
    assert (told["method"], told["accuracy_m"], told["datum"]) == ("ESTIMATED", 41_000, "WGS-84")
    again = with_directory(data, 0x8825, gps.fields(order, 1.0, 2.0, method="X"))
    assert gps.read(Tiff.read(again)) is not None
    assert b"ESTIMATED" not in again, "what was there before is overwritten"


@given(lat=st.floats(-90, 90), lon=st.floats(-180, 180))
def test_xmp_angles_survive(lat: float, lon: float) -> None:
    assert gps.xmp_degrees(gps.xmp_text(lat, "N", "S"), "N", "S") == pytest.approx(lat, abs=1e-8)
    assert gps.xmp_degrees(gps.xmp_text(lon, "E", "W"), "E", "W") == pytest.approx(lon, abs=1e-8)


@pytest.mark.parametrize(
    ("told", "degrees"),
    [("48,51.5N", 48.8583333), ("48,51,30S", -48.8583333), ("48.5", 48.5), ("-48.5", -48.5), ("48.5s", -48.5)],
)
def test_forms_of_xmp_angles(told: str, degrees: float) -> None:
    assert gps.xmp_degrees(told, "N", "S") == pytest.approx(degrees)


@pytest.mark.parametrize("told", ["", "N", "48,51.5", "48,51,30,1N", "48 51 30 N", "1e5N", "48,5x1N"])
def test_what_is_no_xmp_angle(told: str) -> None:
    with pytest.raises(gps.GpsError):
        gps.xmp_degrees(told, "N", "S")


def test_xmp_that_would_do_harm() -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><a>&d;</a>'
    deep = "<a>" * 5000 + "</a>" * 5000
    for text in (bomb, deep, "<a", "no XML", ""):
        with pytest.raises(XmpError):
            properties(text)
    with pytest.raises(XmpError):
        decoded(b"\xff\xfe\x00")
    assert properties(decoded(new_packet([]).decode().encode("utf-16"))) == []


# --- damage ---------------------------------------------------------------------------------------


def test_loops_and_wild_offsets_are_noted() -> None:
    def tiff(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
        rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        return b"II" + struct.pack("<HIH", 42, 8, len(entries)) + rows + struct.pack("<I", following)

    loop = Tiff.read(tiff((0x8825, 4, 1, 8), following=8))
    assert len(loop.directories) == 1
    assert len(loop.faults) == 2
    wild = Tiff.read(tiff((0x8825, 4, 1, 2**32 - 2), (0x010F, 2, 2**31, 40), (0x0110, 99, 1, 0)))
    assert len(wild.faults) == 3
    many = Tiff.read(tiff(*[(0x8825, 4, 1, 8 + 2 * i) for i in range(2000)]))
    assert "cut off" in many.faults[0]
    for wrong in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"XX*\0\0\0\0\x08\0\0"):
        with pytest.raises(TiffError):
            Tiff.read(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_told_and_do_no_harm(kind: str, photo: Photo, packet: bytes) -> None:
    """Fifty mutations each: bytes changed, cut off, written twice; every answer is of the known kinds."""
    data = photo(kind, xmp=packet)
    chance = random.Random(kind)
    for _ in range(50):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 3, 20))):
            changed[chance.randrange(min(len(changed), 2500))] = chance.choice((0, 0xFF, chance.randrange(256)))
        if chance.random() < 0.3:
            del changed[chance.randrange(len(changed)) :]
        if chance.random() < 0.2:
            at = chance.randrange(len(changed) + 1)
            changed[at:at] = changed[at : at + chance.randrange(400)]
        try:
            facts = read_facts(bytes(changed))
        except ImageError:
            continue
        for place in facts.places:
            assert isinstance(place, PhotoPlace)
            assert np.isfinite([place.lat, place.lon]).all()


@settings(max_examples=200)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0"]),
)
def test_any_bytes_are_some_directories(data: bytes, head: bytes) -> None:
    try:
        tiff = Tiff.read(bytearray(head + data))
    except TiffError:
        return
    for directory in tiff.directories:
        tiff.remove(directory, {entry.tag for entry in directory.entries[::2]})
    assert len(tiff.data) == len(head + data)
