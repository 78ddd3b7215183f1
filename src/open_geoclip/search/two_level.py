"""Search in two levels, for galleries whose embeddings would take gigabytes.

Neighbouring places form groups of about 76: the leaves of a k-d tree, small where the gallery is dense, and divided
where it is so sparse that one place would not stand for the others. The first level is a
:class:`~open_geoclip.search.index.GalleryIndex` of one place per group. For each query, the groups with the most mass
are opened: their places are encoded on the spot, and take the place of the group in the posterior. A group that stays
closed counts with the prior and the area of all its places, so no probability is lost. A place takes 24 bytes
(coordinates, weight, prior, area, order) instead of 1 kB for its embedding.

The scheme is the inverted file of Sivic and Zisserman, "Video Google" (ICCV 2003), as in FAISS, with cells on the Earth
instead of clusters of embeddings, and without stored embeddings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64
from torch import Tensor

from open_geoclip.files import cache_dir, cached_array
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, unit_vectors
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.prior import OCTREE_LEVELS, GalleryCells, Prior, cell_areas, log_prior_of, morton_codes

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

__all__ = ["MAX_INDEX_BYTES", "PlaceGroups", "needs_two_levels"]

MAX_INDEX_BYTES = 2**30
"""Galleries whose embeddings take more, as those of 1,048,577 places at 512 dimensions, are searched in two levels."""

_LEAF = 100  # places at most; the tree is balanced, so leaves of 10 million places have 75 to 78
_MAX_GROUPS = 2**17  # more places make larger groups
_MAX_SPREAD_KM = 25.0  # root mean square distance from the middle; wider leaves are divided by cubes of the octree
_CUBE_LEVEL = 8  # these are 50 km wide
_OPENED = 5000  # places that a query opens
_MAX_OPENED = 100_000  # places that the queries of a trip open together, at least 500 each
_CHUNK = 1024  # groups
_VERSION = 1


@dataclass(frozen=True, eq=False)
class PlaceGroups:
    """The places of a large gallery in groups of neighbours. Make it with :meth:`build`.

    Attributes:
        gallery: the places.
        order: rows of the gallery, group by group.
        starts: where each group starts in ``order``, and the end of the last one.
        centres: row of the place nearest to the middle of each group.
        area_km2: of each place, as :class:`~open_geoclip.search.prior.GalleryCells` has it.
        log_prior: of each place.
    """

    gallery: Gallery
    order: Int32[np.ndarray, " m"]
    starts: Int64[np.ndarray, " g1"]
    centres: Int32[np.ndarray, " g"]
    area_km2: Float32[np.ndarray, " m"]
    log_prior: Float32[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.centres)

    @classmethod
    def build(cls, gallery: Gallery, prior: Prior = "gallery", folder: Path | None = None) -> "PlaceGroups":
        """Compute the groups of a gallery, a minute for 10 million places, or map those in the cache into memory.

        Args:
            gallery: the places.
            prior: see :meth:`open_geoclip.search.prior.GalleryCells.from_gallery`, also for errors.
            folder: the cache; default: ``galleries`` in :func:`open_geoclip.files.cache_dir`.
        """
        folder = cache_dir() / "galleries" if folder is None else folder
        compute = cache(lambda: _group(gallery))

        def array(name: str, length: int | None = None) -> np.ndarray:
            path = folder / f"{gallery.fingerprint[:32]}.groups-{_VERSION}.{name}.npy"
            return cached_array(path, lambda: compute()[name], length, mapped=True)

        order, area = array("order", len(gallery)), array("area_km2", len(gallery))
        log_prior = log_prior_of(gallery, area.astype(np.float64), prior).astype(np.float32)
        return cls(gallery, order, array("starts"), array("centres"), area, log_prior)

    @cached_property
    def coarse_gallery(self) -> Gallery:
        """The centres, with the weights of all places of their groups."""
        weights = np.add.reduceat(self.gallery.weights[self.order], self.starts[:-1])
        return Gallery(f"{self.gallery.name}, groups", self.gallery.coordinates[self.centres], weights)

    @cached_property
    def coarse_cells(self) -> GalleryCells:
        """The groups as cells, each with the area and the prior of all its places."""
        coordinates = self.gallery.coordinates[self.centres]
        points = torch.from_numpy(unit_vectors(coordinates.astype(np.float64))).float()
        area = np.add.reduceat(self.area_km2[self.order], self.starts[:-1], dtype=np.float64)
        mass = np.add.reduceat(np.exp(self.log_prior[self.order], dtype=np.float64), self.starts[:-1])
        return GalleryCells(coordinates, points, area, torch.from_numpy(mass).log().float())

    def subset(self, inside: Bool[np.ndarray, " m"]) -> "tuple[PlaceGroups, Int64[np.ndarray, ' k']]":
        """Return the groups of some of the places, and which groups have any; the prior stays what it is among all."""
        row = np.cumsum(inside, dtype=np.int32) - 1
        kept = inside[self.order]
        counts = np.add.reduceat(kept, self.starts[:-1], dtype=np.int64)
        groups = np.flatnonzero(counts)
        starts, order = np.append(0, np.cumsum(counts[groups])), row[self.order[kept]]
        centres = np.where(inside[self.centres[groups]], row[self.centres[groups]], order[starts[:-1]])
        gallery = Gallery(self.gallery.name, self.gallery.coordinates[inside], self.gallery.weights[inside])
        return PlaceGroups(gallery, order, starts, centres, self.area_km2[inside], self.log_prior[inside]), groups

    def members(self, groups: Int64[np.ndarray, " k"]) -> tuple[Int32[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
        """Return the rows of the places of some groups, and the group of each."""
        rows = [self.order[self.starts[group] : self.starts[group + 1]] for group in groups]
        return np.concatenate(rows), np.repeat(groups, [len(some) for some in rows])

    @torch.inference_mode()
    def open(
        self,
        encoder: LocationEncoder,
        embeddings: Float[Tensor, "n d"],
        logits: Float[Tensor, "n g"],
        *,
        scale: float,
        calibration: Calibration,
    ) -> tuple[GalleryCells, Float32[Tensor, "n m"]]:
        """Replace the groups with the most mass by their places.

        Args:
            encoder: of the places.
            embeddings: of images or texts; what is opened for one is opened for all.
            logits: over the groups.
            scale: logits are scale times cosine.
            calibration: by which logits become probabilities.

        Returns:
            Closed groups, then places, with ``origins``; and the logits of both.
        """
        cells = self.coarse_cells
        temperature = calibration.temperature_of(cells.best_logits(logits))
        log_mass = torch.addcdiv(cells.log_prior, logits, temperature[:, None])
        n_places = min(_OPENED, max(500, _MAX_OPENED // len(embeddings)))
        best = log_mass.topk(min(n_places, len(self)), dim=1).indices
        is_opened = torch.from_numpy(np.diff(self.starts))[best].cumsum(dim=1) <= n_places
        is_opened[:, 0] = True
        groups = best[is_opened].unique().numpy()
        rows, origins = self.members(groups)
        coordinates = self.gallery.coordinates[rows]
        located = encoder.encode(torch.from_numpy(coordinates))
        closed = np.delete(np.arange(len(self)), groups)
        fine = GalleryCells(
            np.concatenate([cells.coordinates[closed], coordinates]),
            torch.cat([cells.points[closed], torch.from_numpy(unit_vectors(coordinates.astype(np.float64))).float()]),
            np.concatenate([cells.area_km2[closed], self.area_km2[rows]]),
            torch.cat([cells.log_prior[closed], torch.from_numpy(self.log_prior[rows])]),
            np.concatenate([closed, origins]),
            torch.from_numpy(np.concatenate([np.diff(self.starts)[closed], np.ones(len(rows))])).float(),
        )
        return fine, torch.cat([logits[:, closed], scale * (embeddings.float() @ located.T)], dim=1)


def needs_two_levels(encoder: LocationEncoder, gallery: Gallery) -> bool:
    """Return whether the embeddings of a gallery would take more than :data:`MAX_INDEX_BYTES`."""
    return 2 * len(gallery) * encoder.settings.output > MAX_INDEX_BYTES


def _group(gallery: Gallery) -> dict[str, np.ndarray]:
    """Compute the arrays that do not depend on the prior."""
    from scipy.spatial import cKDTree

    tree = cKDTree(
        unit_vectors(gallery.coordinates.astype(np.float64)), leafsize=max(_LEAF, -(-len(gallery) // _MAX_GROUPS))
    )
    starts, order = np.array([*_leaves(tree), tree.n]), tree.indices.astype(np.int32)
    parts: list[np.ndarray] = []
    centres: list[np.ndarray] = []
    for first in range(0, len(starts) - 1, _CHUNK):  # in little memory
        bounds = starts[first : first + _CHUNK + 1]
        rows = order[bounds[0] : bounds[-1]]
        leaf = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        points = tree.data[rows]
        wide = _square_spread(points, bounds[:-1] - bounds[0])[0] > (_MAX_SPREAD_KM / EARTH_RADIUS_KM) ** 2
        cube = np.where(wide[leaf], morton_codes(points) >> 3 * (OCTREE_LEVELS - _CUBE_LEVEL), 0)
        by_group = np.lexsort((cube, leaf))
        rows, points, leaf, cube = rows[by_group], points[by_group], leaf[by_group], cube[by_group]
        begin = np.flatnonzero((np.diff(leaf, prepend=-1) != 0) | (np.diff(cube, prepend=-1) != 0))
        order[bounds[0] : bounds[-1]] = rows
        parts.append(begin + bounds[0])
        _, square = _square_spread(points, begin)
        nearest = np.lexsort((square, np.repeat(begin, np.diff(begin, append=len(rows)))))[begin]
        centres.append(rows[nearest])
    return {
        "order": order,
        "starts": np.append(np.concatenate(parts), tree.n),
        "centres": np.concatenate(centres),
        "area_km2": cell_areas(tree).astype(np.float32),
    }


def _square_spread(
    points: Float64[np.ndarray, "m 3"], starts: Int64[np.ndarray, " g"]
) -> tuple[Float64[np.ndarray, " g"], Float64[np.ndarray, " m"]]:
    """Return the mean squared distance from the mean of each group, and that of each point from the mean of its own."""
    count = np.diff(starts, append=len(points))
    mean = np.add.reduceat(points, starts) / count[:, None]
    square = np.square(points - np.repeat(mean, count, axis=0)).sum(axis=1)
    return np.add.reduceat(square, starts) / count, square


def _leaves(tree: "cKDTree") -> Iterator[int]:
    """Yield where each leaf starts in the indices of a tree."""
    nodes = [tree.tree]
    while nodes:
        node = nodes.pop()
        if node.split_dim == -1:
            yield node.start_idx
        else:
            nodes += [node.greater, node.lesser]
