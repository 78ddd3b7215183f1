"""The search space: a gallery with what is computed of it once, and its restriction to an area."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.files import cached_array
from open_geoclip.geo.areas import Allowed, Area, land_points
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells, Prior
from open_geoclip.search.refine import RingCache, refine

__all__ = ["SearchSpace"]


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """A gallery, ready for any number of queries. Make one with :meth:`from_index`.

    Attributes:
        index: embeddings of the places.
        cells: of the places, with their prior.
        prior: what the prior of the cells was computed from.
        area: limits that the places lie within.
        parent: the space without these limits; None where there are none, or none of its places lies inside.
        parent_rows: rows of the places in the parent.
    """

    index: GalleryIndex
    cells: GalleryCells
    prior: Prior = "gallery"
    area: Area = field(default_factory=Area)
    parent: "SearchSpace | None" = None
    parent_rows: Int64[np.ndarray, " m"] | None = None

    @classmethod
    def from_index(cls, index: GalleryIndex, prior: Prior = "gallery", area: Area | None = None) -> "SearchSpace":
        """Compute the search space of a gallery; errors are those of :meth:`GalleryCells.from_gallery`."""
        folder = None if index.path is None else index.path.parent
        return cls(index, GalleryCells.from_gallery(index.gallery, prior, folder), prior, area or Area())

    @property
    def gallery(self) -> Gallery:
        """The places."""
        return self.index.gallery

    @property
    def allowed(self) -> Allowed | None:
        """Which places lie inside the limits; None where there are none."""
        return self.area.contains if self.area.is_limited else None

    @property
    def name(self) -> str:
        """The name in answers: that of the gallery, its size, fingerprint and limits."""
        total = "" if self.parent is None else f" of {len(self.parent.gallery):,}"
        name = f"{self.gallery.name}, {len(self.gallery):,}{total} places, sha256 {self.gallery.fingerprint[:12]}"
        return name + (f", within {self.area.name}" if self.area.is_limited else "")

    def within(self, area: Area, *, keep: bool = True) -> "SearchSpace":
        """Return the part inside an area; see :meth:`open_geoclip.search.locator.Locator.within`.

        Args:
            area: the limits.
            keep: whether embeddings of new places may be written to the cache.

        Raises:
            AreaError: the area lies wholly in the sea, or nothing is left of it.
            SettingsError: this space has limits already.
        """
        if self.area.is_limited:
            raise SettingsError("within: there are limits already; give them all at once")
        rows = np.flatnonzero(area.contains(self.gallery.coordinates))
        if len(rows):
            return SearchSpace(self.index.subset(rows), self.cells.subset(rows), self.prior, area, self, rows)
        even = Gallery.from_coordinates(land_points(area), name="even places in the area")
        index = GalleryIndex.build(self.index.encoder, even, folder=self._cache, keep=keep)
        # A prior by cities or a file would assign what lies outside to the places at the border.
        return SearchSpace.from_index(index, self.prior if callable(self.prior) else "even", area)

    @cached_property
    def merge_km(self) -> float:
        """Default distance between candidates: 25 km, or three times the spacing of a coarser even gallery."""
        cells = self.cells if self.parent is None else self.parent.cells
        return max(25.0, 3 * float(np.median(cells.area_km2)) ** 0.5)

    @cached_property
    def rings(self) -> RingCache:
        """Embeddings around each place, for refinement."""
        return RingCache(self.index.encoder, self.gallery.coordinates.astype(np.float64), self.cells.spacing_km)

    @cached_property
    def countries(self) -> np.ndarray | None:
        """ISO code of the country of each place; None where the extra ``places`` is not installed."""
        if self.parent is not None:
            codes = self.parent.countries
            return None if codes is None else codes[self.parent_rows]
        from open_geoclip.geo.countries import country_codes

        places = self.gallery.coordinates.astype(np.float64)
        cache = self._cache and self._cache / f"{self.gallery.fingerprint[:32]}.countries-2.npy"
        try:
            return cached_array(cache, lambda: country_codes(places).astype("<U3"), len(places))
        except MissingExtraError:
            return None

    @property
    def _cache(self) -> Path | None:
        return None if self.index.path is None else self.index.path.parent

    def posterior(
        self,
        embeddings: Float[Tensor, "n k"],
        scale: float,
        calibration: Calibration,
        distances: Float[Tensor, " n"] | None = None,
    ) -> Posterior:
        """Return probabilities over the places.

        Args:
            embeddings: of images or texts.
            scale: logits are scale times cosine.
            calibration: by which they become probabilities.
            distances: of the features of the images, where they are known.
        """
        logits = self.index.logits(embeddings, scale, exact=5)
        return Posterior.from_logits(logits, self.cells, calibration, scale=scale, distances=distances)

    def refined_posteriors(
        self,
        embeddings: Float[Tensor, "n k"],
        scale: float,
        calibration: Calibration,
        log_mass: Float[Tensor, "n m"] | None = None,
        distances: Float[Tensor, " n"] | None = None,
    ) -> list[Posterior]:
        """Return one posterior an embedding, on cells that are refined where it points to.

        Args:
            embeddings: of images or texts.
            scale: logits are scale times cosine.
            calibration: of the model; its levels for refined posteriors are used.
            log_mass: of each place, such as that of a trip; default: that of the embedding alone.
            distances: of the features of the images, where they are known.
        """
        calibration, logits = calibration.refined, self.index.logits(embeddings, scale, exact=5)
        if log_mass is None:
            log_mass = torch.add(self.cells.log_prior, logits, alpha=1 / calibration.temperature)
        return refine(
            self.rings,
            self.cells,
            embeddings,
            logits,
            log_mass,
            scale=scale,
            calibration=calibration,
            allowed=self.allowed,
            distances=distances,
        )
