"""Areas: what people type, what lies inside, and what is refused."""

from typing import Any

import numpy as np
import pytest

from open_geoclip.errors import AreaError, SettingsError
from open_geoclip.geo.areas import Area, Box, Circle, land_points, parse_shape
from open_geoclip.geo.sphere import haversine_km


def at(*places: tuple[float, float]) -> np.ndarray:
    return np.array(places, np.float64)


def square(west: float, south: float, east: float, north: float) -> dict[str, Any]:
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def test_what_people_type() -> None:
    assert parse_shape("48.86,2.29,50km") == Circle(48.86, 2.29, 50)
    assert parse_shape(" 48.86, 2.29, 800 m ") == Circle(48.86, 2.29, 0.8)
    assert parse_shape("35,-10,60,30") == Box(35, -10, 60, 30)
    assert parse_shape("-48,166,-34,-176") == Box(-48, 166, -34, -176)
    for text in ("48.86,2.29,50km", "35,-10,60,30"):
        assert parse_shape(parse_shape(text).name) == parse_shape(text)


def test_countries() -> None:
    france = parse_shape("France")
    assert france.contains(at((48.85, 2.35), (52.5, 13.4), (42.1, 9.1))).tolist() == [True, False, True]
    assert parse_shape("FR").area_km2 == pytest.approx(france.area_km2)
    fiji = Area.parse("Fiji")  # on both sides of the 180th meridian
    assert fiji.contains(at((-17.8, 178.0), (-16.85, -179.98), (-17.8, 0.0))).tolist() == [True, True, False]
    with pytest.raises(AreaError, match=r"unknown country 'Frence'.*France"):
        parse_shape("Frence")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty area"),
        ("48.86,2.29,50", "radius needs its unit"),
        ("48.86,2.29", "is not an area"),
        ("48.86,2.29,50miles", "is not an area"),
        ("1,2,3,4,5", "is not an area"),
        ("nan,2,3,4", "finite"),
        ("1,nan,3,4", "finite"),
        ("2.29,148.86,-50km", "from 1 mm to 20,015 km"),
        ("48.85,2.35,1e-300km", "from 1 mm to 20,015 km"),
        ("48.85,2.35,48.85,2.350000000000001", "no area"),
        ("0,0,30000km", "half the way around"),
        ("148.86,2.29,50km", "looks like longitude first"),
        ("-120,30,60,35", "looks like longitude first"),
        ("60,-10,35,30", "is not south of"),
        ("35,-10,35,30", "no area"),
        ("35,30,60,30", "no area"),
        ("none.geojson", "there is no such file"),
    ],
)
def test_what_cannot_be_understood(text: str, message: str) -> None:
    with pytest.raises(AreaError, match=message):
        parse_shape(text)
    assert issubclass(AreaError, SettingsError)


def test_areas_unite_and_leave_out() -> None:
    area = Area.parse(["0,0,10,10", "5,5,20,20"], "8,8,9,9")
    assert area.contains(at((1, 1), (15, 15), (8.5, 8.5), (30, 30))).tolist() == [True, True, False, False]
    assert Area.parse((), "8,8,9,9").contains(at((1, 1), (8.5, 8.5))).tolist() == [True, False]
    assert area.name == "0,0,10,10 or 5,5,20,20, not 8,8,9,9"
    assert not Area().is_limited


def test_land_in_an_area_and_none_in_the_sea() -> None:
    isle = land_points(Area.parse("-15.96,-5.7,60km"))  # Saint Helena, in the middle of the Atlantic
    assert len(isle) > 20
    assert haversine_km(isle, at((-15.96, -5.7))).max() < 20
    with pytest.raises(AreaError, match="wholly in the sea"):
        land_points(Area.parse("-30,-20,200km"))
    with pytest.raises(AreaError, match=r"lat.* and lon.* swapped.*on land"):
        land_points(Area.parse("2.35,48.86,100km"))  # Paris the wrong way round lies off Somalia
    with pytest.raises(AreaError, match="nothing is left"):
        land_points(Area.parse("48.86,2.29,50km", "48.86,2.29,60km"))


def test_a_country_that_reaches_a_pole_has_even_points() -> None:
    """The grid of the outlines ends a little beyond the south pole."""
    area = Area.parse("Antarctica")
    points = area.even_points(300)
    assert 250 < len(points) < 350
    assert area.contains(points).all()
    assert area.contains(np.array([[-90.0, 0.0]])).all()
