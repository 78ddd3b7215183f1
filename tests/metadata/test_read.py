"""Where a photo says itself that it was taken, from every kind of file, as another program reads it too."""

import io
import random
import re
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
from open_geoclip.images import load_image
from open_geoclip.metadata import gps
from open_geoclip.metadata.checks import find_remarks
from open_geoclip.metadata.read import PhotoPlace, read_metadata, read_place
from open_geoclip.metadata.xmp import XmpError, add_properties, decode, properties
from tests.metadata import carriers

Photo = Callable[..., bytes]
KINDS = ("jpg", "png", "webp", "tif", "heic", "avif")
LAT, LON = 48.8584, -2.2945
TAKEN = datetime(2026, 5, 1, 14, 3, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize("kind", KINDS)
def test_exif_of_every_kind_of_file(kind: str, photo: Photo) -> None:
    facts = read_metadata(photo(kind))
    place = facts.place
    assert place is not None
    assert (place.lat, place.lon) == pytest.approx((LAT, LON), abs=2e-6)
    assert (place.source, place.accuracy_m, place.altitude_m, place.direction_deg) == ("exif", 6.5, 35.1, 225)
    assert (place.datum, place.method, place.estimated, place.no_fix) == ("WGS-84", "GPS", False, False)
    assert (place.time, place.fix_time) == (TAKEN, datetime(2026, 5, 1, 12, 3, tzinfo=UTC))
    assert (facts.camera, facts.software, facts.faults) == ("Maker 7", ("A program 1.0",), ())
    values = place.to_dict()
    assert (values["time"], values["source"], values["accuracy_m"]) == ("2026-05-01T14:03:00+02:00", "exif", 6.5)
    assert read_place(photo(kind, place=None)) is None
    assert read_place(photo(kind, bare=True)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_xmp_of_every_kind_of_file(kind: str, photo: Photo, packet: bytes) -> None:
    facts = read_metadata(photo(kind, place=None, xmp=packet))
    assert facts.place is not None
    assert (facts.place.lat, facts.place.lon, facts.place.altitude_m) == pytest.approx((LAT, LON, 35.1))
    assert facts.place.source == "xmp"
    assert "A toolkit 1" in facts.software
    both = read_metadata(photo(kind, place=(1.0, 2.0), xmp=packet))
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
    assert read_metadata(path, with_sidecars=False).places == ()
    (tmp_path / "a.jpg.xmp").write_text("no XML")
    facts = read_metadata(path)
    assert facts.place == place
    assert "sidecar cannot be understood" in facts.faults[0]


def test_an_estimate_is_not_the_photos_own_place(picture: Any, gps_record: Any) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update(gps_record() | {27: b"ASCII\0\0\0ESTIMATED by something"})
    out = io.BytesIO()
    picture().save(out, "JPEG", exif=exif)
    facts = read_metadata(out.getvalue())
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
    for wrong, message in ((b"text", "not an image"), (b"", "empty"), (tmp_path / "none.jpg", "no such file")):
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
    found, facts = exiftool(path), read_metadata(path)
    exif, xmp = facts.places
    assert exif.lat == pytest.approx(found["GPS:GPSLatitude"], abs=1e-9)
    assert -exif.lon == pytest.approx(found["GPS:GPSLongitude"], abs=1e-9)
    assert exif.altitude_m == pytest.approx(found["GPS:GPSAltitude"])
    assert exif.accuracy_m == found["GPS:GPSHPositioningError"]
    assert xmp.lat == pytest.approx(found["XMP-exif:GPSLatitude"], abs=1e-9)
    assert xmp.lon == pytest.approx(found["XMP-exif:GPSLongitude"], abs=1e-9)


@given(lat=st.floats(-90, 90), lon=st.floats(-180, 180))
def test_xmp_angles_survive(lat: float, lon: float) -> None:
    assert gps.parse_angle(gps.format_angle(lat, "N", "S"), None, "N", "S") == pytest.approx(lat, abs=1e-8)
    assert gps.parse_angle(gps.format_angle(lon, "E", "W"), None, "E", "W") == pytest.approx(lon, abs=1e-8)


@pytest.mark.parametrize(
    ("text", "ref", "degrees"),
    [
        ("48,51.5N", None, 48.8583333),
        ("48,51,30S", None, -48.8583333),
        ("48.5", None, 48.5),
        ("-48.5", None, -48.5),
        ("48.5s", None, -48.5),
        ("48.5 N", None, 48.5),
        ("N 48.5", None, 48.5),
        ("22.9519", "S", -22.9519),
        ("-22.9519", "S", -22.9519),
        ("22.9519", "South", -22.9519),
        ("48,51.5", "N", 48.8583333),
        ("48/1,51/1,30/1", "S", -48.8583333),
        ("4885/100", "N", 48.85),
        ("43 deg 4' 35\" N", None, 43.0763889),
        ("43 deg 4' 35.00\" South", None, -43.0763889),
        ("43°4'35\"N", None, 43.0763889),
        ("43° 4′ 35″ S", None, -43.0763889),
        ("43 deg 4.5' N", None, 43.075),
        ("43.0765° N", None, 43.0765),
    ],
)
def test_forms_of_xmp_angles(text: str, ref: str | None, degrees: float) -> None:
    assert gps.parse_angle(text, ref, "N", "S") == pytest.approx(degrees)


@pytest.mark.parametrize(
    ("parts", "ref", "degrees"),
    [
        ((33.86,), "S", -33.86),
        ((-33.86,), "S", -33.86),
        ((-33, 51, 36), "S", -33.86),
        ((-33, -51, -36), "South", -33.86),
        ((0, -30), "S", -0.5),
        ((33.86,), "N", 33.86),
        ((0, 0, 0), None, 0.0),
    ],
)
def test_a_sign_counts_once(parts: tuple[float, ...], ref: str | None, degrees: float) -> None:
    assert gps.signed_degrees(parts, ref, "N", "S") == pytest.approx(degrees)


@pytest.mark.parametrize(("parts", "ref"), [((-33.86,), "N"), ((33.86,), None), ((33.86,), "E"), ((np.nan,), "S")])
def test_contradictions_are_refused(parts: tuple[float, ...], ref: str | None) -> None:
    with pytest.raises(gps.GpsError):
        gps.signed_degrees(parts, ref, "N", "S")


@pytest.mark.parametrize(
    "text", ["", "N", "48,51.5", "48,51,30,1N", "48 51 30 N", "1e5N", "48,5x1N", "48,8584N", "48.5E"]
)
def test_what_is_no_xmp_angle(text: str) -> None:
    with pytest.raises(gps.GpsError):
        gps.parse_angle(text, None, "N", "S")


def test_xmp_that_would_do_harm() -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><a>&d;</a>'
    deep = "<a>" * 5000 + "</a>" * 5000
    for text in (bomb, deep, "<a", "no XML", ""):
        with pytest.raises(XmpError):
            properties(text)
    with pytest.raises(XmpError):
        decode(b"\xff\xfe\x00")
    assert properties(decode(add_properties(None, []).decode().encode("utf-16"))[0]) == []


def test_xmp_of_apple_photos_keeps_its_hemisphere() -> None:
    """Decimal degrees, and the hemisphere in a property of its own."""
    properties = "".join(
        f"<exif:{name}>{value}</exif:{name}>"
        for name, value in (
            ("GPSLatitude", "22.9519"),
            ("GPSLatitudeRef", "S"),
            ("GPSLongitude", "43.2105"),
            ("GPSLongitudeRef", "W"),
        )
    )
    for packet in (carriers.packet(properties), carriers.packet("", attributes=_as_attributes(properties))):
        place = read_place(carriers.jpeg(carriers.app(0xE1, carriers.XMP + packet)))
        assert place is not None
        assert (place.lat, place.lon) == (-22.9519, -43.2105)


def _as_attributes(properties: str) -> str:
    return re.sub(r"<exif:(\w+)>([^<]*)</exif:\w+>", r' exif:\1="\2"', properties)


@pytest.mark.parametrize("declaration", ["", '<?xml version="1.0" encoding="ISO-8859-1"?>'])
def test_xmp_in_latin_1(declaration: str) -> None:
    packet = carriers.packet().decode().replace("\ufeff", "").replace("xmp:Rating", "photoshop:City='São' xmp:Rating")
    data = carriers.jpeg(carriers.app(0xE1, carriers.XMP + (declaration + packet).encode("latin-1")))
    facts = read_metadata(data)
    assert facts.faults == ()
    assert facts.place is not None
    assert facts.place.lat == pytest.approx(-22.9519)


@pytest.mark.parametrize(("ref", "lat"), [("S", -33.8568), ("N", None)])
def test_signed_exif(ref: str, lat: float | None, tmp_path: Path) -> None:
    """A value below zero and a reference that agrees; one that disagrees names no place."""
    out, exif = io.BytesIO(), Image.Exif()
    exif.get_ifd(0x8825).update({1: ref, 2: (33.8568, 0, 0), 3: "E", 4: (151.2153, 0, 0)})
    Image.new("RGB", (8, 8)).save(out, "JPEG", exif=exif)
    data = out.getvalue()
    at = data.index(b"\0\2\0\5\0\0\0\3")  # GPSLatitude, three rationals: made three signed ones
    offset = data.index(b"MM\0*") + int.from_bytes(data[at + 8 : at + 12], "big")
    value = struct.pack(">i", -int.from_bytes(data[offset : offset + 4], "big"))
    data = data[: at + 3] + b"\x0a" + data[at + 4 : offset] + value + data[offset + 4 :]
    facts = read_metadata(data)
    assert [place.lat for place in facts.places] == ([] if lat is None else [pytest.approx(lat)])
    assert ("contradicts itself" in "".join(facts.faults)) is (lat is None)


def test_collected_faults() -> None:
    faults = Path(__file__).parents[3] / "shared" / "faults"
    if not faults.exists():
        pytest.skip(f"{faults} is not here")
    apple, signed = (
        read_place(faults / "apple_xmp" / "i_side_apple.jpg"),
        read_place(faults / "signed/g_le_signed_S.jpg"),
    )
    assert apple is not None
    assert signed is not None
    assert (apple.lat, apple.lon, apple.source) == (-22.9519, -43.2105, "sidecar")
    assert (signed.lat, signed.lon) == pytest.approx((-33.8568, 151.2153))


def test_a_jpeg_without_its_end_is_read_with_a_remark(tmp_path: Path, photo: Photo, caplog: Any) -> None:
    (tmp_path / "a.jpg").write_bytes(photo()[:-2])
    facts = read_metadata(tmp_path / "a.jpg")
    assert facts.place is not None
    assert facts.faults == ("the JPEG lacks its end marker",)
    assert next(find_remarks(facts)).check == "damaged"
    decoded = load_image(tmp_path / "a.jpg")
    assert "lacks its end marker" in caplog.text
    assert np.array_equal(np.asarray(decoded), np.asarray(load_image(photo())))
    assert read_metadata(photo() + b"trailer" * 1000).faults == ()
    with pytest.raises(ImageError, match="cut off"):
        load_image(photo()[:-40])


# --- damage ---------------------------------------------------------------------------------------


def test_loops_and_wild_offsets_do_no_harm() -> None:
    def tiff(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
        rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        return b"II" + struct.pack("<HIH", 42, 8, len(entries)) + rows + struct.pack("<I", following)

    loop = tiff((0x8825, 4, 1, 8), following=8)
    wild = tiff((0x8825, 4, 1, 2**32 - 2), (0x010F, 2, 2**31, 40), (0x0110, 99, 1, 0))
    many = tiff(*[(0x8825, 4, 1, 8 + 2 * i) for i in range(2000)])
    for payload in (loop, wild, many, b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"XX*\0\0\0\0\x08\0\0"):
        assert read_metadata(carriers.jpeg(carriers.app(0xE1, carriers.EXIF + payload))).places == ()


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_reported_and_do_no_harm(kind: str, photo: Photo, packet: bytes) -> None:
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
            facts = read_metadata(bytes(changed))
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
def test_any_bytes_are_some_exif(data: bytes, head: bytes) -> None:
    facts = read_metadata(carriers.jpeg(carriers.app(0xE1, carriers.EXIF + head + data)))
    assert all(np.isfinite([place.lat, place.lon]).all() for place in facts.places)
