"""Shapes: what lies inside, across the 180th meridian and at the poles, and what GeoJSON is refused."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_geoclip.errors import AreaError, MissingExtraError
from open_geoclip.geo import countries
from open_geoclip.geo.areas import Area, Box, Circle, Polygon, parse_shape
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, destination, even_points, haversine_km

EARTH_KM2 = 4 * np.pi * EARTH_RADIUS_KM**2
GLOBE = even_points(20_000)


def at(*places: tuple[float, float]) -> np.ndarray:
    return np.array(places, np.float64)


def square(west: float, south: float, east: float, north: float) -> dict[str, Any]:
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def test_boxes_cross_the_180th_meridian_and_reach_the_poles() -> None:
    box = Box(-48, 166, -34, -176)
    asked = at((-40, 170), (-40, 180), (-40, -180), (-40, -177), (-40, -170), (-40, 0), (-50, 170))
    assert box.contains(asked).tolist() == [True] * 4 + [False] * 3
    assert box.contains(box.points(500)).all()
    cap = Box(80, 0, 90, 10)
    assert cap.contains(at((90, 123), (85, 5), (85, 11))).tolist() == [True, True, False]
    everywhere = Box(-90, -180, 90, 180)
    assert everywhere.contains(GLOBE).all()
    assert everywhere.area_km2 == pytest.approx(EARTH_KM2)


def test_polygons_and_countries_need_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "area.geojson").write_text(json.dumps(square(0, 0, 5, 5)))
    countries._outlines.cache_clear()
    monkeypatch.setitem(sys.modules, "shapely", None)
    for text in (str(tmp_path / "area.geojson"), "France"):
        with pytest.raises(MissingExtraError, match=r"pip install 'open-geoclip\[places\]'"):
            parse_shape(text)


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(0.01, 9000), st.floats(0, 360))
def test_circles_are_great_circle_discs(lat: float, lon: float, radius_km: float, bearing: float) -> None:
    circle = Circle(lat, lon, radius_km)
    centre = at((lat, lon))
    rim = [destination(centre, bearing, radius_km * share)[0] for share in (0.999, 1.001)]
    assert circle.contains(np.array(rim)).tolist() == [True, False]
    inside = circle.points(300)
    assert circle.contains(inside).all()
    # Half of the points lie in the inner half of the area.
    inner = Circle(lat, lon, 2 * EARTH_RADIUS_KM * np.arcsin(np.sin(radius_km / EARTH_RADIUS_KM / 2) / 2**0.5))
    assert inner.contains(inside).mean() == pytest.approx(0.5, abs=0.01)
    assert inner.area_km2 == pytest.approx(circle.area_km2 / 2)


def test_polygons_of_geojson(tmp_path: Path) -> None:
    shape = square(-10, 35, 30, 60)
    holed = {"type": "Polygon", "coordinates": [*shape["coordinates"], square(0, 40, 10, 50)["coordinates"][0]]}
    collection = {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": {}, "geometry": holed},
            {"type": "Feature", "properties": None, "geometry": {**square(100, -10, 110, 10)}},
        ],
    }
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(collection))
    area = Area.parse(str(path))
    asked = at((36, 0), (45, 5), (0, 105), (0, 0), (35, -10))
    assert area.contains(asked).tolist() == [True, False, True, False, True]
    # On a sphere, against the box of the same edges.
    plain = Polygon.from_geojson(shape)
    assert plain.area_km2 == pytest.approx(Box(35, -10, 60, 30).area_km2)
    np.testing.assert_array_equal(plain.contains(GLOBE), Box(35, -10, 60, 30).contains(GLOBE))


@pytest.mark.parametrize(
    "shape",
    [
        square(170, -20, -170, 20),  # the short way, as RFC 7946 would cut it
        square(170, -20, 190, 20),  # counted on beyond 180
        {
            "type": "MultiPolygon",
            "coordinates": [square(170, -20, 180, 20)["coordinates"], square(-180, -20, -170, 20)["coordinates"]],
        },
    ],
)
def test_polygons_cross_the_180th_meridian(shape: dict[str, Any]) -> None:
    polygon = Polygon.from_geojson(shape)
    asked = at((0, 175), (0, -175), (0, 180), (0, -180), (0, 165), (0, 0), (30, 175))
    assert polygon.contains(asked).tolist() == [True] * 4 + [False] * 3
    assert polygon.area_km2 == pytest.approx(Box(-20, 170, 20, -170).area_km2)
    inside = polygon.points(400)
    assert polygon.contains(inside).all()
    assert len(inside) == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize("lat", [80, -80])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_ring_around_a_pole_means_the_smaller_side(lat: float, backwards: bool) -> None:
    ring = [[lon, lat] for lon in (-150, -90, -30, 30, 90, 150, -150)]
    polygon = Polygon.from_geojson({"type": "Polygon", "coordinates": [ring[::-1] if backwards else ring]})
    asked = at((lat * 90 / 80, 12), (lat * 85 / 80, -179), (lat * 75 / 80, 0), (-lat, 0))
    assert polygon.contains(asked).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "not GeoJSON"),
        ("[1, 2]", "not GeoJSON with polygons"),
        ('{"type": "Point", "coordinates": [1, 2]}', "a Point has no area"),
        ('{"type": "Polygon", "coordinates": []}', "not GeoJSON with polygons"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [0, 0]]]}', "four positions"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}', "ends where it begins"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [2, 0], [0, 0]]]}', "no area"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, "x"], [0, 0]]]}', "not a position"),
        ('{"type": "Polygon", "coordinates": [[[48, 120], [49, 120], [49, 121], [48, 120]]]}', "longitude first"),
        (json.dumps({"type": "Polygon", "coordinates": [[[10**400, 1], [1, 0], [1, 1], [0, 1]]]}), "cannot be made"),
        ('{"type": "Polygon", "coordinates": [[[NaN, 1], [49, 12], [49, 13], [NaN, 1]]]}', "not a position on Earth"),
        ('{"type": "FeatureCollection", "features": []}', "no area"),
        ("[" * 100_000, "not GeoJSON"),
    ],
)
def test_wrong_geojson(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.geojson"
    path.write_text(content)
    with pytest.raises(AreaError, match=message) as caught:
        parse_shape(str(path))
    assert "wrong.geojson" in str(caught.value)


def test_a_hole_around_a_pole() -> None:
    outer, hole = ([[lon, lat] for lon in (-150, -90, -30, 30, 90, 150, -150)] for lat in (70, 80))
    polygon = Polygon.from_geojson({"type": "Polygon", "coordinates": [outer, hole]})
    assert polygon.contains(at((75, 12), (75, -179), (85, 0), (90, 0), (60, 0))).tolist() == [True, True] + [False] * 3


def test_rings_that_reach_from_180_to_180_are_taken_as_they_are() -> None:
    assert Polygon.from_geojson(square(-180, -90, 180, 90)).area_km2 == pytest.approx(EARTH_KM2)
    polar = [
        [-180, -70],
        [-60, -60],
        [60, -60],
        [180, -70],
        [180, -90],
        [-180, -90],
        [-180, -70],
    ]  # a common Antarctica
    antarctica = Polygon.from_geojson({"type": "Polygon", "coordinates": [polar]})
    assert antarctica.contains(at((-90, 0), (-80, 180), (-62, 0), (-50, 0))).tolist() == [True, True, True, False]


def test_work_on_a_polygon_is_bounded(rng: np.random.Generator) -> None:
    """A polygon of 1,000 random corners took a minute; one of as many corners in order takes milliseconds."""
    corners = np.stack([rng.uniform(-170, 170, 1000), rng.uniform(-80, 80, 1000)], axis=1)
    ring = np.concatenate([corners, corners[:1]])
    start = time.process_time()
    with pytest.raises(AreaError, match="cross each other in too many places"):
        Polygon.from_geojson({"type": "Polygon", "coordinates": [ring.tolist()]})
    assert time.process_time() - start < 5
    # Parallel diagonals: their bounding boxes overlap, they do not cross.
    zigzag = np.stack([np.repeat(np.linspace(0, 10, 2000), 2), np.tile([0, 60], 2000)], axis=1)
    zigzag[1::2, 0] += 60
    bow = np.concatenate([zigzag, [[100, 70], [101, 75], [100, 75], [101, 70], [-10, 70]], zigzag[:1]])
    with pytest.raises(AreaError, match="too many places"):
        Polygon.from_geojson({"type": "Polygon", "coordinates": [bow.tolist()]})
    coast = np.stack([np.linspace(-85, 85, 5000), 20 + 5 * rng.random(5000)], axis=1)
    ring = np.concatenate([coast, [[85, -10], [-85, -10]], coast[:1]])
    shape = {"type": "Polygon", "coordinates": [ring.tolist()]}
    assert Polygon.from_geojson(shape).contains(at((0, 0), (30, 0))).tolist() == [True, False]
    with pytest.raises(AreaError, match="more than 5,000 corners"):
        Polygon.from_geojson(shape, max_corners=5000)


def test_a_bow_tie_is_mended() -> None:
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
    assert Polygon.from_geojson(bow).contains(at((5, 1), (5, 9), (1, 5), (9, 5))).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "area",
    [
        Area((Circle(89.9, 0, 100),)),
        Area((Box(-10, 175, 10, -175),)),
        Area((Box(0, 0, 10, 10), Box(5, 5, 15, 15))),
        Area((Box(0, 0, 10, 10),), (Box(0, 0, 10, 9.7),)),
        Area((), (Box(-90, -180, 80, 180),)),
    ],
)
def test_even_points_are_even(area: Area) -> None:
    points = area.even_points(400)
    assert area.contains(points).all()
    assert 200 <= len(points) < 900
    apart = haversine_km(points[:, None], points[None])
    np.fill_diagonal(apart, np.inf)
    nearest = apart.min(axis=1)
    assert nearest.min() > 0.3 * np.median(nearest)
    assert nearest.max() < 4 * np.median(nearest)
