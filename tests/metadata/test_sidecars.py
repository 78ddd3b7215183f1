"""Whose a sidecar is: names as photo programs and Google Takeout give them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from open_geoclip.errors import MetadataError
from open_geoclip.images import find_images
from open_geoclip.metadata.read import read_metadata, read_place
from open_geoclip.metadata.sidecars import find_sidecars, remove_takeout_location, sidecars_beside, writable_sidecar
from tests.metadata import carriers

TAKEOUT = {
    "title": "IMG_1.jpg",
    "photoTakenTime": {"timestamp": "1559390400"},
    "geoData": {"latitude": -22.9519, "longitude": -43.2105, "altitude": 12.0, "latitudeSpan": 0.0},
    "geoDataExif": {"latitude": 1.0, "longitude": 2.0, "altitude": 0.0},
}


def photo(path: Path) -> Path:
    path.write_bytes(carriers.picture())
    return path


def names(path: Path) -> list[str]:
    return [found.name for found in find_sidecars(path)]


def test_a_shared_sidecar_belongs_to_no_photo(tmp_path: Path) -> None:
    jpg, png = photo(tmp_path / "IMG_1.jpg"), tmp_path / "IMG_1.png"
    (tmp_path / "IMG_1.xmp").write_bytes(carriers.packet())
    assert (names(jpg), writable_sidecar(jpg).name) == (["IMG_1.xmp"], "IMG_1.xmp")
    png.write_bytes(carriers.picture("PNG"))
    for path in (jpg, png):
        assert read_place(path) is None
        assert writable_sidecar(path).name == f"{path.name}.xmp"
        assert [one.path.name for one in sidecars_beside(path)] == ["IMG_1.xmp"], "it still holds a place"
    (tmp_path / "IMG_1.png.xmp").write_bytes(carriers.packet())
    assert (names(png), names(jpg)) == (["IMG_1.png.xmp"], [])


@pytest.mark.parametrize("attribute", [True, False])
def test_a_sidecar_may_say_whose_it_is(attribute: bool, tmp_path: Path) -> None:
    jpg = photo(tmp_path / "IMG_1.jpg")
    text = 'photoshop:SidecarForExtension="{}"'
    element = "<photoshop:SidecarForExtension>{}</photoshop:SidecarForExtension>"
    for owner, expected in (("CR2", []), ("JPG", ["IMG_1.xmp"])):
        packet = carriers.packet(attributes=text.format(owner) if attribute else "")
        if not attribute:
            packet = packet.replace(b"</rdf:Description>", element.format(owner).encode() + b"</rdf:Description>")
        (tmp_path / "IMG_1.xmp").write_bytes(packet)
        assert names(jpg) == expected
        assert writable_sidecar(jpg).name == (expected or ["IMG_1.jpg.xmp"])[0]


def test_a_raw_file_of_the_same_shot(tmp_path: Path) -> None:
    """Its sidecar is about the same shot, but it is the raw file's to be written to."""
    jpg = photo(tmp_path / "IMG_1.JPG")
    (tmp_path / "IMG_1.CR2").write_bytes(b"raw")
    (tmp_path / "IMG_1.xmp").write_bytes(carriers.packet())
    assert names(jpg) == ["IMG_1.xmp"]
    assert writable_sidecar(jpg).name == "IMG_1.JPG.xmp"


@pytest.mark.parametrize("name", ["img_1.JPG.XMP", "IMG_1.jpg.Xmp", "Img_1.XMP", "IMG_1.xmp"])
def test_names_match_whatever_their_case(name: str, tmp_path: Path) -> None:
    jpg = photo(tmp_path / "IMG_1.jpg")
    (tmp_path / name).write_bytes(carriers.packet())
    assert names(jpg) == [name]
    place = read_place(jpg)
    assert place is not None
    assert place.lat == pytest.approx(-22.9519)


def test_photos_whose_names_differ_by_case_alone(tmp_path: Path) -> None:
    """A file system that tells them apart is needed."""
    upper, lower = photo(tmp_path / "IMG_1.jpg"), photo(tmp_path / "img_1.JPG")
    if upper.samefile(lower):
        pytest.skip("this file system does not tell names apart by case")
    (tmp_path / "IMG_1.jpg.xmp").write_bytes(carriers.packet())
    assert (names(upper), names(lower)) == (["IMG_1.jpg.xmp"], [])
    assert writable_sidecar(lower).name == "img_1.JPG.xmp"
    (tmp_path / "img_1.xmp").write_bytes(carriers.packet())
    assert (names(upper), names(lower)) == (["IMG_1.jpg.xmp"], ["img_1.xmp"])
    photo(tmp_path / "IMG_1.JPG")
    (tmp_path / "IMG_1.xmp").write_bytes(carriers.packet())
    assert names(upper) == ["IMG_1.jpg.xmp"], "it is shared"


LONG = "Screenshot_20210101-123456_Some Application Name.jpg"


@pytest.mark.parametrize(
    ("photo_name", "sidecar"),
    [
        ("IMG_1.jpg", "IMG_1.jpg.json"),
        ("IMG_1.jpg", "IMG_1.jpg.supplemental-metadata.json"),
        ("IMG_1.JPG", "img_1.jpg.Supplemental-Metadata.JSON"),
        ("IMG_1.jpg", "IMG_1.jpg.suppl.json"),
        ("IMG_1.jpg", "IMG_1.jpg..json"),
        ("IMG_1(2).jpg", "IMG_1.jpg(2).json"),
        ("IMG_1(2).jpg", "IMG_1.jpg.supplemental-metadata(2).json"),
        ("IMG_1(2).jpg", "IMG_1(2).jpg.json"),
        ("IMG_1-edited.jpg", "IMG_1.jpg.json"),
        ("IMG_1-bearbeitet(1).jpg", "IMG_1.jpg(1).json"),
        (LONG, f"{LONG[:46]}.json"),
        ("PXL_20230615_101112131.PORTRAIT-01.jpg", "PXL_20230615_101112131.PORTRAIT-01.jpg.supplem.json"),
    ],
)
def test_google_takeout(photo_name: str, sidecar: str, tmp_path: Path) -> None:
    path = photo(tmp_path / photo_name)
    (tmp_path / sidecar).write_text(json.dumps(TAKEOUT))
    place = read_place(path)
    assert place is not None
    assert (place.lat, place.lon, place.altitude_m, place.source) == (-22.9519, -43.2105, 12.0, "sidecar")
    assert place.time == datetime(2019, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("photo_name", "sidecar"),
    [
        ("IMG_1.jpg", "IMG_1.jpg(1).json"),
        ("IMG_1(1).jpg", "IMG_1.jpg.json"),
        ("IMG_1.jpg", "IMG_10.jpg.json"),
        ("IMG_1.jpg", "IMG_1.png.json"),
        ("IMG_1.jpg", "IMG_1.jpg.other.json"),
        ("IMG_1.jpg", "IMG.json"),
    ],
)
def test_what_is_another_photos_takeout(photo_name: str, sidecar: str, tmp_path: Path) -> None:
    path = photo(tmp_path / photo_name)
    (tmp_path / sidecar).write_text(json.dumps(TAKEOUT))
    assert read_place(path) is None


def test_takeout_without_a_place_or_damaged(tmp_path: Path) -> None:
    path, sidecar = photo(tmp_path / "IMG_1.jpg"), tmp_path / "IMG_1.jpg.json"
    contents: list[Any] = [{}, [], {"geoData": None}, {"geoData": {"latitude": "x", "longitude": 1}}]
    zero = {"geoData": {"latitude": 0.0, "longitude": 0.0}}
    for content in [zero, *contents]:
        sidecar.write_text(json.dumps(content))
        assert read_metadata(path).places == ()
        assert read_metadata(path).faults == ()
    sidecar.write_text(json.dumps(zero | {"geoDataExif": TAKEOUT["geoDataExif"]}))
    assert [(place.lat, place.lon) for place in read_metadata(path).places] == [(1.0, 2.0)]
    for broken in (b"{", b"\xff\xfe", b"[" * 100_000):
        sidecar.write_bytes(broken)
        assert "it is no JSON" in read_metadata(path).faults[0]
        with pytest.raises(MetadataError, match="no JSON"):
            remove_takeout_location(broken)


def test_a_place_is_removed_from_takeout() -> None:
    changed, removed = remove_takeout_location(json.dumps(TAKEOUT).encode())
    assert removed == ["geoData", "geoDataExif"]
    assert json.loads(changed) == {key: TAKEOUT[key] for key in ("title", "photoTakenTime")}
    assert remove_takeout_location(changed) == (changed, [])


def test_folders_of_thumbnails_hold_no_photos(tmp_path: Path) -> None:
    photo(tmp_path / "IMG_1.jpg")
    for folder in ("@eaDir/IMG_1.jpg", ".thumbnails", ".@__thumb", "__MACOSX", "#recycle", "Thumbnails"):
        (tmp_path / folder).mkdir(parents=True)
        photo(tmp_path / folder / "SYNOPHOTO_THUMB_XL.jpg")
    photo(tmp_path / "._IMG_1.jpg")
    assert [path.name for path in find_images(tmp_path)] == ["IMG_1.jpg"]
    assert [path.name for path in find_images(tmp_path / "@eaDir")] == ["SYNOPHOTO_THUMB_XL.jpg"], "asked for by name"
