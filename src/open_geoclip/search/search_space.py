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
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex, Progress
from open_geoclip.search.posterior import Labels, Posterior
from open_geoclip.search.prior import GalleryCells, Prior
from open_geoclip.search.refine import RingCache, refine
from open_geoclip.search.two_level import PlaceGroups, needs_two_levels

__all__ = ["SearchSpace"]


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """A gallery, ready for any number of queries. Make one with :meth:`build`.

    Attributes:
        index: embeddings of the places, or of one place per group.
        cells: of the places or groups, with their prior.
        prior: what the prior of the cells was computed from.
        area: limits that the places lie within.
        parent: the space without these limits; None where there are none, or none of its places lies inside.
        parent_rows: rows of the places in the parent.
        groups: of the places of a gallery that is searched in two levels; None for other galleries.
    """

    index: GalleryIndex
    cells: GalleryCells
    prior: Prior = "gallery"
    area: Area = field(default_factory=Area)
    parent: "SearchSpace | None" = None
    parent_rows: Int64[np.ndarray, " m"] | None = None
    groups: PlaceGroups | None = None

    @classmethod
    def build(
        cls,
        encoder: LocationEncoder,
        gallery: Gallery,
        prior: Prior = "gallery",
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> "SearchSpace":
        """Compute the search space of a gallery, in two levels if its embeddings would take more than 1 GiB.

        Args:
            encoder: the location encoder, in evaluation mode.
            gallery: the places.
            prior: see :meth:`open_geoclip.search.prior.GalleryCells.from_gallery`, also for errors.
            folder: the cache; see :meth:`open_geoclip.search.index.GalleryIndex.build`.
            progress: called while embeddings are computed.
        """
        if not needs_two_levels(encoder, gallery):
            return cls.from_index(GalleryIndex.build(encoder, gallery, folder=folder, progress=progress), prior)
        groups = PlaceGroups.build(gallery, prior, folder)
        index = GalleryIndex.build(encoder, groups.coarse_gallery, folder=folder, progress=progress)
        return cls(index, groups.coarse_cells, prior, groups=groups)

    @classmethod
    def from_index(cls, index: GalleryIndex, prior: Prior = "gallery", area: Area | None = None) -> "SearchSpace":
        """Compute the search space of a gallery; errors are those of :meth:`GalleryCells.from_gallery`."""
        folder = None if index.path is None else index.path.parent
        return cls(index, GalleryCells.from_gallery(index.gallery, prior, folder), prior, area or Area())

    @property
    def gallery(self) -> Gallery:
        """The places."""
        return self.index.gallery if self.groups is None else self.groups.gallery

    @property
    def allowed(self) -> Allowed | None:
        """Which places lie inside the limits; None where there are none."""
        return self.area.contains if self.area.is_limited else None

    @property
    def name(self) -> str:
        """The name in answers: that of the gallery, its size, fingerprint and limits."""
        total = "" if self.parent is None else f" of {len(self.parent.gallery):,}"
        levels = "" if self.groups is None else f" in {len(self.groups):,} groups"
        sha256 = self.gallery.fingerprint[:12]
        name = f"{self.gallery.name}, {len(self.gallery):,}{total} places{levels}, sha256 {sha256}"
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
        inside = area.contains(self.gallery.coordinates)
        rows = np.flatnonzero(inside)
        if len(rows) and self.groups is not None:
            groups, kept = self.groups.subset(inside)
            index = self.index.subset(kept)
            return SearchSpace(index, groups.coarse_cells, self.prior, area, self, groups=groups)
        if len(rows):
            return SearchSpace(self.index.subset(rows), self.cells.subset(rows), self.prior, area, self, rows)
        even = Gallery.from_coordinates(land_points(area), name="even places in the area")
        index = GalleryIndex.build(self.index.encoder, even, folder=self._cache, keep=keep)
        # A prior by cities or a file would assign what lies outside to the places at the border.
        return SearchSpace.from_index(index, self.prior if callable(self.prior) else "even", area)

    @cached_property
    def merge_km(self) -> float:
        """Default distance between candidates: 25 km, or three times the spacing of a coarser even gallery."""
        whole = self.parent or self
        return max(25.0, 3 * float(np.median((whole.groups or whole.cells).area_km2)) ** 0.5)

    @cached_property
    def rings(self) -> RingCache:
        """Embeddings around each place, for refinement."""
        return self._ring_cache(self.cells)

    def _ring_cache(self, cells: GalleryCells) -> RingCache:
        return RingCache(self.index.encoder, cells.coordinates.astype(np.float64), cells.spacing_km)

    def countries_of(self, cells: GalleryCells) -> Labels | None:
        """Return the ISO codes of the countries of the cells of a posterior; None without the extra ``places``."""
        from open_geoclip.geo.countries import country_codes

        codes = self.countries
        if codes is None or cells.origins is None:
            return self._country_labels
        codes = codes[cells.origins]
        places = np.flatnonzero((cells.coordinates != self.cells.coordinates[cells.origins]).any(axis=1))
        codes[places] = country_codes(cells.coordinates[places].astype(np.float64))
        return np.unique(codes, return_inverse=True)

    @cached_property
    def _country_labels(self) -> Labels | None:
        return None if self.countries is None else np.unique(self.countries, return_inverse=True)

    @cached_property
    def countries(self) -> np.ndarray | None:
        """ISO code of the country of each of ``cells``; None where the extra ``places`` is not installed."""
        if self.parent is not None and self.parent_rows is not None:
            codes = self.parent.countries
            return None if codes is None else codes[self.parent_rows]
        from open_geoclip.geo.countries import country_codes

        places = self.cells.coordinates.astype(np.float64)
        cache = self._cache and self._cache / f"{self.index.gallery.fingerprint[:32]}.countries-2.npy"
        try:
            return cached_array(cache, lambda: country_codes(places).astype("<U3"), len(places))
        except MissingExtraError:
            return None

    @property
    def _cache(self) -> Path | None:
        return None if self.index.path is None else self.index.path.parent

    def posteriors(
        self,
        embeddings: Float[Tensor, "n k"],
        scale: float,
        calibration: Calibration,
        distances: Float[Tensor, " n"] | None = None,
    ) -> list[Posterior]:
        """Return posteriors of all embeddings: a single one, or one each where cells depend on the embedding."""
        rows = [slice(None)] if self.groups is None else [slice(n, n + 1) for n in range(len(embeddings))]
        return [
            self.posterior(embeddings[row], scale, calibration, None if distances is None else distances[row])
            for row in rows
        ]

    def posterior(
        self,
        embeddings: Float[Tensor, "n k"],
        scale: float,
        calibration: Calibration,
        distances: Float[Tensor, " n"] | None = None,
    ) -> Posterior:
        """Return probabilities over the places; in two levels, over groups and the places of those that matter.

        Args:
            embeddings: of images or texts.
            scale: logits are scale times cosine.
            calibration: by which they become probabilities.
            distances: of the features of the images, where they are known.
        """
        cells, logits = self._logits(embeddings, scale, calibration)
        return Posterior.from_logits(logits, cells, calibration, scale=scale, distances=distances)

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
            log_mass: of each cell of :meth:`posterior`, such as that of a trip; default: that of the embedding alone.
            distances: of the features of the images, where they are known.
        """
        if self.groups is not None and log_mass is None and len(embeddings) > 1:
            found = []
            for n in range(len(embeddings)):
                known = None if distances is None else distances[[n]]
                found += self.refined_posteriors(embeddings[[n]], scale, calibration, distances=known)
            return found
        cells, logits = self._logits(embeddings, scale, calibration)
        rings = self.rings if cells is self.cells else self._ring_cache(cells)
        if log_mass is None:
            temperature = calibration.temperature_of(cells.best_logits(logits))
            log_mass = torch.addcdiv(cells.log_prior, logits, temperature[:, None])
        return refine(
            rings,
            cells,
            embeddings,
            logits,
            log_mass,
            scale=scale,
            calibration=calibration.refined,
            allowed=self.allowed,
            distances=distances,
        )

    def _logits(
        self, embeddings: Float[Tensor, "n k"], scale: float, calibration: Calibration
    ) -> tuple[GalleryCells, Float[Tensor, "n m"]]:
        """Return the cells that posteriors of some embeddings are over, and their logits."""
        logits = self.index.logits(embeddings, scale, exact=5)
        if self.groups is None:
            return self.cells, logits
        return self.groups.open(self.index.encoder, embeddings, logits, scale=scale, calibration=calibration)
