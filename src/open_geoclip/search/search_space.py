"""The places that answers are chosen from, what they stand for, and what of them lies within limits."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.areas import Area, land_points
from open_geoclip.search.adaptive import Adapted, adapt
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.labels import country_labels
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import Ground, Prior, log_prior
from open_geoclip.search.refine import Allowed, Surroundings, nearest_gap_km

__all__ = ["Territory"]


@dataclass(frozen=True, eq=False)
class Territory:
    """A gallery with all that is computed of it once.

    Attributes:
        index: location vectors of the places.
        prior: what is known before a picture is seen.
        area: the limits that the places were chosen by.
        whole: the territory without these limits; None where there are none, or none of its places lies inside.
    """

    index: GalleryIndex
    prior: Prior
    area: Area = field(default_factory=Area)
    whole: "Territory | None" = None
    _rows: np.ndarray | None = None

    @property
    def gallery(self) -> Gallery:
        """The places."""
        return self.index.gallery

    @property
    def allowed(self) -> Allowed | None:
        """Which places lie inside the limits; None where there are none."""
        return self.area.contains if self.area.limited else None

    @property
    def name(self) -> str:
        """What answers call it: the gallery's name, size, fingerprint and limits."""
        whole = "" if self.whole is None else f" of {len(self.whole.gallery):,}"
        about = f"{self.gallery.name}, {len(self.gallery):,}{whole} places, sha256 {self.gallery.fingerprint[:12]}"
        return about + (f", within {self.area.name}" if self.area.limited else "")

    def within(self, area: Area, *, keep: bool = True) -> "Territory":
        """What lies inside an area; see :meth:`open_geoclip.search.locator.Locator.within`.

        Raises:
            AreaError: the area lies wholly in the sea, or nothing is left of it.
            SettingsError: this territory has limits already.
        """
        if self.area.limited:
            raise SettingsError("within: there are limits already; give them all at once")
        rows = np.flatnonzero(area.contains(self.gallery.coordinates))
        if len(rows):
            return Territory(self.index.only(rows), self.prior, area, self, rows)
        even = Gallery.from_coordinates(land_points(area), name="even places in the area")
        folder = self.index.path.parent if self.index.path else None
        index = GalleryIndex.build(self.index.encoder, even, folder=folder, keep=keep)
        # Of cities or a file, what lies outside would be given to the places at the border.
        return Territory(index, self.prior if callable(self.prior) else "even", area)

    @cached_property
    def ground(self) -> Ground:
        """What the places stand for."""
        if self.whole is None or self._rows is None:
            return Ground.of(self.gallery)
        ground = self.whole.ground
        return Ground(ground.coordinates[self._rows], ground.points[self._rows], ground.cell_km2[self._rows])

    @cached_property
    def log_prior(self) -> Float[Tensor, " m"]:
        """Logarithm of each place's probability before a picture is seen; up to a constant within limits."""
        if self.whole is None or self._rows is None:
            return log_prior(self.gallery, self.ground, self.prior)
        return self.whole.log_prior[torch.from_numpy(self._rows)]

    @cached_property
    def merge_km(self) -> float:
        """How far candidates are apart when nothing else is asked for."""
        if self.whole is not None:
            return self.whole.merge_km
        return max(25.0, 3 * float(np.median(self.ground.cell_km2)) ** 0.5)

    @cached_property
    def gaps_km(self) -> Float64[np.ndarray, " m"]:
        """How far the places are apart around each."""
        return nearest_gap_km(self.gallery.coordinates, self.gallery.coordinates)

    @cached_property
    def surroundings(self) -> Surroundings:
        """What lies around each place, for refinement."""
        return Surroundings(self.index.encoder, self.gallery.coordinates.astype(np.float64), self.gaps_km)

    @cached_property
    def countries(self) -> np.ndarray | None:
        """The country of each place; None where the extra ``places`` is not installed."""
        if self.whole is not None and self._rows is not None:
            labels = self.whole.countries
            return None if labels is None else labels[self._rows]
        return country_labels(self.gallery, None if self.index.path is None else self.index.path.parent)

    def posterior(self, vectors: Float[Tensor, "n k"], scale: float, calibration: Calibration) -> Posterior:
        """Probabilities over the places; logits are scale times the products of vectors."""
        logits = self.index.logits(vectors, scale, exact=5)
        return Posterior.from_logits(logits, self.log_prior, self.ground, calibration, scale)

    def between(
        self,
        vectors: Float[Tensor, "n k"],
        scale: float,
        calibration: Calibration,
        log_mass: Float[Tensor, "n m"] | None = None,
    ) -> list[Adapted]:
        """As :meth:`posterior`, on grounds that are refined where each vector points at.

        Args:
            vectors: of pictures or texts.
            scale: logits are scale times the products of vectors.
            calibration: how they become probabilities; what it says of refined grounds is what counts.
            log_mass: of each place, such as that of a trip; that of the vectors alone when not given.
        """
        calibration, logits = calibration.between(), self.index.logits(vectors, scale, exact=5)
        if log_mass is None:
            log_mass = torch.add(self.log_prior, logits, alpha=1 / calibration.temperature)
        return adapt(
            self.index.encoder,
            vectors,
            scale,
            logits,
            log_mass,
            self.log_prior,
            self.ground,
            self.gaps_km,
            calibration,
            allowed=self.allowed,
            surroundings=self.surroundings,
        )
