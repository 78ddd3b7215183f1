"""Galleries: what is read, what is merged, what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from open_geoclip.errors import CoordinateError, GalleryError
from open_geoclip.search.gallery import Gallery

PARIS, LIMA, SUVA = (48.8566, 2.3522), (-12.0464, -77.0428), (-18.1248, 178.4501)


def test_duplicates_become_weight_and_order_is_kept() -> None:
    gallery = Gallery.from_coordinates(np.array([SUVA, PARIS, SUVA, LIMA, SUVA, PARIS]))
    np.testing.assert_array_equal(gallery.coordinates, np.array([SUVA, PARIS, LIMA], np.float32))
    np.testing.assert_array_equal(gallery.weights, [3, 2, 1])


def test_zero_has_no_sign() -> None:
    assert len(Gallery.from_coordinates(np.array([[0.0, -0.0], [-0.0, 0.0]]))) == 1


def test_what_was_read_is_kept_by_the_hash_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "gallery.csv"
    for weight in (2, 3):
        file.write_text(f"LAT,LON,weight\n48.8566,2.3522,{weight}\n-12.0464,-77.0428,1\n")
        plain = Gallery.from_file(file)
        for _ in range(2):
            kept = Gallery.from_file(file, keep=True)
            assert (kept.name, kept.fingerprint) == ("gallery.csv", plain.fingerprint)
    assert len(list(tmp_path.glob("cache/galleries/*.places.npy"))) == 2
    with pytest.raises(GalleryError):
        Gallery.from_file(tmp_path / "none.csv", keep=True)


def test_the_released_gallery(released: Path) -> None:
    gallery = Gallery.from_file(released / "model" / "gps_gallery" / "coordinates_100K.csv")
    assert gallery.weights.sum() == 100_000
    assert len(gallery) == pytest.approx(94_100, abs=100)
    np.testing.assert_allclose(gallery.coordinates[0], [-50.943392, -72.935664], rtol=1e-6)


@pytest.mark.parametrize("heading", ["LAT,LON", "lat,lon", "Latitude,Longitude", "lat,lng", "﻿lat,lon"])
def test_csv_headings(tmp_path: Path, heading: str) -> None:
    path = tmp_path / "places.csv"
    path.write_text(f"{heading}\n{PARIS[0]},{PARIS[1]}\n", encoding="utf-8")
    gallery = Gallery.from_file(path)
    assert gallery.name == "places.csv"
    np.testing.assert_allclose(gallery.coordinates, [PARIS], rtol=1e-6)


def test_columns_in_any_order_with_weights(tmp_path: Path) -> None:
    path = tmp_path / "places.csv"
    path.write_text(f"id,lon,count,lat\na,{PARIS[1]},2,{PARIS[0]}\nb,{PARIS[1]},3,{PARIS[0]}\n")
    gallery = Gallery.from_file(path)
    assert gallery.weights.tolist() == [5]


def test_geojson_is_read_lon_lat(tmp_path: Path) -> None:
    features = [
        {
            "type": "Feature",
            "properties": {"weight": 4},
            "geometry": {"type": "Point", "coordinates": [PARIS[1], PARIS[0]]},
        },
        {
            "type": "Feature",
            "properties": None,
            "geometry": {"type": "MultiPoint", "coordinates": [[LIMA[1], LIMA[0], 154.0], [SUVA[1], SUVA[0]]]},
        },
    ]
    path = tmp_path / "places.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    gallery = Gallery.from_file(path)
    np.testing.assert_allclose(gallery.coordinates, [PARIS, LIMA, SUVA], rtol=1e-6)
    assert gallery.weights.tolist() == [4, 1, 1]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    path = tmp_path / "places.parquet"
    table = pyarrow.table({"name": ["a", "b"], "latitude": [PARIS[0], LIMA[0]], "longitude": [PARIS[1], LIMA[1]]})
    parquet.write_table(table, path)
    np.testing.assert_allclose(Gallery.from_file(path).coordinates, [PARIS, LIMA], rtol=1e-6)
    path.write_bytes(b"not parquet")
    with pytest.raises(GalleryError, match="cannot be read as Parquet"):
        Gallery.from_file(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "lat,lon\n1,2\n3,north\n", r"line 3: lon is 'north', not a number"),
        ("a.csv", "lat,lon\n1,2\n3\n", "line 3"),
        ("a.csv", "a,b\n1,2\n", "no column lat or lon; its columns are a, b; its first line must name the columns"),
        ("a.csv", "", "it is empty"),
        ("a.csv", "lat,lon\n", "at least one coordinate"),
        ("a.csv", "lat,lon\n1,2\n120,20\n", "row 1"),
        ("a.csv", "lat,lon,weight\n1,2,-1\n", "above 0"),
        ("a.csv", "lat,lon\nnan,2\n", "line 2: it has no coordinates"),
        ("a.geojson", "{", "not JSON"),
        ("a.geojson", "[1, 2]", "not GeoJSON"),
        ("a.geojson", '{"type": "Polygon", "coordinates": []}', "points, or of features that are points, is needed"),
        ("a.geojson", '{"type": "Point", "coordinates": ["a", "b"]}', "not a position"),
        ("a.xlsx", "1,2", r"ends in \.csv"),
        ("a.csv", "lat,lon,weight\n1,2,\n", "above 0"),
        ("a.csv", 'lat,lon,weight\n1,2,"1,000"\n', "weight is '1,000', not a number"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(GalleryError, match=message) as caught:
        Gallery.from_file(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="there is no such file"):
        Gallery.from_file(tmp_path / "none.csv")


def test_wrong_arrays() -> None:
    with pytest.raises(CoordinateError):
        Gallery.from_coordinates(np.array([[91.0, 0.0]]))
    for weight in (0.0, 1e39, 1e-50, math.nan):  # float32 has neither of the two
        with pytest.raises(GalleryError, match="weights"):
            Gallery.from_coordinates(np.array([PARIS]), np.array([weight]))


def test_fingerprints_tell_galleries_apart() -> None:
    one = Gallery.from_coordinates(np.array([PARIS, LIMA]))
    assert one.fingerprint == Gallery.from_coordinates(np.array([PARIS, LIMA]), name="other").fingerprint
    assert one.fingerprint != Gallery.from_coordinates(np.array([LIMA, PARIS])).fingerprint
    assert one.fingerprint != Gallery.from_coordinates(np.array([PARIS, PARIS, LIMA])).fingerprint
