"""Where a photo says it was taken."""

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from open_geoclip.data.exif import NoPositionError, read_position
from open_geoclip.data.photos import SkippedRecord
from open_geoclip.data.sources import open_source
from open_geoclip.errors import DataError, ImageError

TEN = (IFDRational(10, 1), IFDRational(0, 1), IFDRational(0, 1))
NOUGHT = (IFDRational(0, 1),) * 3


@settings(max_examples=25)
@given(lat=st.floats(-90, 90), lon=st.floats(-180, 180))
def test_positions_survive_to_a_hundredth_of_a_second(lat: float, lon: float, jpeg: Any, gps: Any) -> None:
    found = read_position(jpeg(0, gps(lat, lon), (8, 8)))
    assert found == pytest.approx((lat, lon), abs=0.006 / 3600)


def test_other_forms_that_cameras_write(picture: Any, jpeg: Any, gps: Any) -> None:
    decimal = {1: "N", 2: (IFDRational(485_123, 10_000),), 3: "E", 4: (IFDRational(23_456, 10_000),)}
    assert read_position(jpeg(0, decimal)) == pytest.approx((48.5123, 2.3456))
    minutes = {1: "S", 2: (IFDRational(33, 1), IFDRational(51_408, 1000)), 3: "W", 4: (IFDRational(151, 1), 0.0, 0.0)}
    assert read_position(jpeg(0, minutes)) == pytest.approx((-33.8568, -151.0), abs=1e-9)
    for kind in ("PNG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif.get_ifd(0x8825).update(gps(-8.05, -34.9))
        out = io.BytesIO()
        picture(1).save(out, kind, exif=exif.tobytes())
        assert read_position(out.getvalue()) == pytest.approx((-8.05, -34.9), abs=1e-5), kind


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        (None, "no coordinates", "no GPS record"),
        ({0: b"\2\3\0\0"}, "no coordinates", "has no place"),
        ({1: "N", 2: TEN}, "no coordinates", "has no place"),
        ({2: TEN, 4: TEN}, "no coordinates", "does not say whether it is N or S"),
        ({1: "N", 2: TEN, 3: "?", 4: TEN}, "no coordinates", "says '\\?' whether it is E or W"),
        ({1: "N", 2: (IFDRational(0, 0),) * 3, 3: "E", 4: TEN}, "no coordinates", "0/0"),
        ({1: "N", 2: NOUGHT, 3: "E", 4: NOUGHT, 9: "V"}, "zero", "no fix"),
    ],
)
def test_photos_that_do_not_say_it(record: dict[int, Any] | None, kind: str, message: str, jpeg: Any) -> None:
    with pytest.raises(NoPositionError, match=message) as caught:
        read_position(jpeg(0, record), name="a.jpg")
    assert caught.value.kind == kind
    assert str(caught.value).startswith("a.jpg: ")


def test_what_is_no_image(picture: Any) -> None:
    with pytest.raises(ImageError, match="not an image"):
        read_position(b"text")
    with pytest.raises(NoPositionError):
        read_position(picture(0))


def test_a_folder_of_photos(tmp_path: Path, jpeg: Any, dms: Any, gps: Any) -> None:
    album = tmp_path / "album"
    (album / "rome").mkdir(parents=True)
    (album / "b.jpg").write_bytes(jpeg(1, gps(41.9, 12.5)))
    (album / "rome" / "large.jpg").write_bytes(jpeg(2, gps(-41.9, -12.5), (900, 700)))
    (album / "none.jpg").write_bytes(jpeg(3))
    (album / "zero.jpg").write_bytes(jpeg(4, gps(0, 0)))
    (album / "text.jpg").write_text("no picture")
    (album / "gone.jpg").symlink_to(album / "nothing")
    (album / "far.jpg").write_bytes(jpeg(5, {**gps(10, 20), 2: dms(120)}))
    assert (album / "rome" / "large.jpg").stat().st_size > 2**18, "the header alone is read of this one"
    source = open_source(album)
    photos = list(source)
    assert [(photo.key, photo.group) for photo in photos] == [("b.jpg", None), ("rome/large.jpg", "rome")]
    assert (photos[1].lat, photos[1].lon) == pytest.approx((-41.9, -12.5), abs=1e-5)
    faults = {entry.key: entry.kind for entry in source.entries() if isinstance(entry, SkippedRecord)}
    assert faults == {
        "far.jpg": "out of range",
        "gone.jpg": "missing",
        "none.jpg": "no coordinates",
        "text.jpg": "broken",
        "zero.jpg": "zero",
    }
    before = source.fingerprint
    (album / "c.jpg").write_bytes(jpeg(1, gps(41.9, 12.5)))
    assert open_source(album).fingerprint != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        open_source(tmp_path / "empty")
