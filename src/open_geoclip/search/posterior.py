"""The posterior: probabilities over the cells of a gallery, and what follows from them.

Logits become a posterior in three steps, whose parameters are fitted on validation data
(:class:`~open_geoclip.search.calibration.Calibration`):

1. ``softmax(log_prior + logits / temperature)``, with a temperature that is higher the less an image resembles any
   place;
2. a background share, larger the less an image resembles any place, follows the prior alone;
3. each cell is smoothed by a Gaussian on the sphere, whose variance is that of the cell (a square has 1/12 of its area
   along each axis) plus that of the model (``Calibration.sigma_km``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, coordinates_of, unit_vectors
from open_geoclip.search.calibration import REGION_LEVEL, SURE_KM, Calibration
from open_geoclip.search.decode import DecodeMethod, Modes, check_decode, chord_km, decode
from open_geoclip.search.mixture import Approach, Mixture
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.smoothing import (
    RadialProfile,
    log_kernel,
    radial_cdf,
    smoothed_chords,
    weighted_quantile,
)

__all__ = ["HPDPosition", "Labels", "Posterior"]

Labels = tuple[np.ndarray, Int64[np.ndarray, " m"]]
"""Different labels, and the number of that of each cell."""

_TOP = 512  # cells that answers are decoded from
_SMOOTHED = 64  # cells whose smoothing enters radii; all others are points
_UNIFORM = 1e-6  # share of the density that is spread over the whole Earth
_MAX_SIGMAS = 8.0  # a kernel ends so many standard deviations away, but for one part in a million
_ROUNDING = 1e-4  # of the background, by which mass in float32 may exceed it
_BLOCK = 8  # rows whose distances to all cells are computed together: they stay in the processor's cache


class HPDPosition(NamedTuple):
    """Where n places lie in the regions of highest density of their posteriors.

    Attributes:
        level: probability that the truth has a higher density.
        outside_km: distance to the region of 90 %, 0 inside.
    """

    level: Float64[np.ndarray, " n"]
    outside_km: Float64[np.ndarray, " n"]

    @classmethod
    def from_approaches(
        cls, approaches: Sequence[Approach], calibration: Calibration, background: Float64[np.ndarray, " n"]
    ) -> "HPDPosition":
        """Compute it from how near the regions of n posteriors come, their calibration and shares of the background."""
        nominal = np.array([approach.levels[-1] for approach in approaches], np.float64).reshape(-1, 1)
        regions = calibration.nominal_level(np.full_like(nominal, REGION_LEVEL), background, hpd=True)[:, 0]
        outside = [approach.outside_km(region) for approach, region in zip(approaches, regions.tolist(), strict=True)]
        level = calibration.calibrated_level(nominal, background, hpd=True)[:, 0]
        return cls(level, np.array(outside, np.float64))


@dataclass(frozen=True, eq=False)
class Posterior:
    """Probabilities of n images (or texts) over m cells. Make one with :meth:`from_logits`.

    Attributes:
        cells: of the gallery.
        mass: probability of each cell; each row sums to one.
        calibration: by which it was made.
        background: share of each row's mass that follows the prior alone; None: no share.
        is_in_distribution: whether each image resembles those of the validation data; None: not known.
        may_be_sure: whether its best score is high enough for a sure answer; None: not known.
    """

    cells: GalleryCells
    mass: Float32[Tensor, "n m"]
    calibration: Calibration
    background: Float32[Tensor, " n"] | None = None
    is_in_distribution: Bool[Tensor, " n"] | None = None
    may_be_sure: Bool[Tensor, " n"] | None = None

    @classmethod
    def from_logits(
        cls,
        logits: Float[Tensor, "n m"],
        cells: GalleryCells,
        calibration: Calibration | None = None,
        *,
        scale: float | None = None,
        distances: Float[Tensor, " n"] | None = None,
    ) -> "Posterior":
        """Compute the posterior of logits.

        Args:
            logits: scale times cosine, as trained.
            cells: of the gallery, with their prior.
            calibration: default: none, which is a softmax.
            scale: the model's, without which images out of distribution are not recognised by their best score.
            distances: of the features of the images, by which they are recognised.

        Raises:
            SettingsError: the prior excludes every cell.
        """
        calibration = calibration or Calibration()
        excluded = cells.log_prior == -torch.inf
        if bool(excluded.all()):
            raise SettingsError("prior: it rules out every place of the gallery")
        best = logits.masked_fill(excluded, -torch.inf).amax(dim=1) if bool(excluded.any()) else logits.amax(dim=1)
        log_mass = torch.addcdiv(cells.log_prior, logits, calibration.temperature_of(best)[:, None])
        return cls.from_log_mass(log_mass, cells, calibration, best_logits=best, scale=scale, distances=distances)

    @classmethod
    def from_log_mass(
        cls,
        log_mass: Float[Tensor, "n m"],
        cells: GalleryCells,
        calibration: Calibration | None = None,
        *,
        best_logits: Float[Tensor, " n"] | None = None,
        scale: float | None = None,
        distances: Float[Tensor, " n"] | None = None,
    ) -> "Posterior":
        """Compute the posterior of log masses, such as those of a trip; rows need not be normalised.

        Args:
            log_mass: without the background.
            cells: of the gallery.
            calibration: default: none.
            best_logits: of each row; None: there is no background.
            scale: as of :meth:`from_logits`.
            distances: as of :meth:`from_logits`.
        """
        calibration = calibration or Calibration()
        mass = torch.softmax(log_mass, dim=1)
        background = None
        if best_logits is not None and (calibration.background or (calibration.distances and distances is not None)):
            background = calibration.background_of(best_logits, distances)
            share = background.to(mass.dtype)[:, None]
            mass.mul_(1 - share).addcmul_(share, torch.softmax(cells.log_prior.to(mass.dtype), dim=0))
        scores = None if best_logits is None or scale is None else best_logits / scale
        in_distribution = calibration.is_in_distribution(scores, distances)
        return cls(
            *(cells, mass.float(), calibration, None if background is None else background.float(), in_distribution),
            None if scores is None else scores >= calibration.sure_score,
        )

    def __len__(self) -> int:
        return len(self.mass)

    def __getitem__(self, row: int) -> "Posterior":
        """Return the posterior of one row."""
        optional = (
            None if part is None else part[[row]]
            for part in (self.background, self.is_in_distribution, self.may_be_sure)
        )
        return Posterior(self.cells, self.mass[[row]], self.calibration, *optional)

    @property
    def log_mass(self) -> Float32[Tensor, "n m"]:
        """Logarithm of the mass."""
        return self.mass.log()

    @cached_property
    def sigma_km(self) -> Float64[np.ndarray, " m"]:
        """Standard deviation of the smoothing of each cell, along each axis."""
        sigma: np.ndarray = np.sqrt(self.calibration.sigma_km**2 + self.cells.area_km2 / 12)
        return sigma

    # --- point estimates --------------------------------------------------------------------------

    def decode(self, method: DecodeMethod = "mass", radius_km: float = 25.0) -> Float64[np.ndarray, "n 2"]:
        """Return one answer a row, (lat, lon) in degrees: the best for a given aim.

        All but ``max`` may lie between the places of the gallery. They are computed from the 512 cells with the most
        mass; see :func:`open_geoclip.search.decode.decode`.

        Args:
            method: ``mass`` maximises the probability within ``radius_km``, ``distance`` minimises the expected
                distance, ``geoscore`` maximises the expected GeoScore; ``max`` is the cell with the most mass, as
                the released package answers.
            radius_km: of ``mass``.

        Raises:
            SettingsError: an argument is out of range.
        """
        check_decode(method, radius_km)
        mass, _, points, sigma = self._top
        with torch.inference_mode():
            return coordinates_of(decode(mass, points, sigma, method, radius_km)).numpy()

    @torch.inference_mode()
    def candidates(
        self, top_k: int = 5, *, merge_km: float = 25.0, method: DecodeMethod = "mass", radius_km: float | None = None
    ) -> Modes:
        """Return the best answers that are more than ``merge_km`` apart, each with the mass nearby.

        The first is that of :meth:`decode`. The mass within ``merge_km`` of it is removed, the next is decoded from
        what remains without the background, for which no image speaks, and so on.

        Args:
            top_k: number of answers.
            merge_km: radius of the mass that belongs to an answer; 0 merges nothing.
            method: see :meth:`decode`.
            radius_km: of ``mass``; default: ``merge_km``, or 25 if that is 0.

        Raises:
            SettingsError: an argument is out of range.
        """
        radius_km = radius_km or merge_km or 25.0
        check_decode(method, radius_km)
        if not (1 <= top_k <= len(self.cells)):
            raise SettingsError(f"top_k: from 1 to the gallery's {len(self.cells):,} places, not {top_k}")
        if not 0 <= merge_km < math.inf:
            raise SettingsError(f"merge_km: kilometres from 0, not {merge_km}")
        if method == "max" and merge_km == 0:
            return self._top_cells(top_k)
        # In float32 a cosine resolves 3 km, which matters to no radius that is merged within.
        min_cosine = 1 - 2 * math.sin(min(merge_km / EARTH_RADIUS_KM, math.pi) / 2) ** 2 if merge_km else 2.0
        left, rows, rounded, sigma = self._top
        points = rounded.double()
        half_square = points.square().sum(dim=-1) / 2  # rounded: their lengths differ from 1
        columns = points.permute(2, 0, 1).contiguous()
        answers, nearest_rows, shares, kept = [], [], [], []
        for number in range(top_k):
            answer = decode(left, rounded, sigma, method, radius_km)
            cosine = (columns * answer.T[..., None]).sum(dim=0)
            nearest = (cosine - half_square).masked_fill_(left <= 0, -torch.inf).argmax(dim=1, keepdim=True)
            own = torch.where((cosine >= min_cosine).scatter_(1, nearest, True), left, 0.0)
            share, at = own.topk(min(_SMOOTHED, own.shape[1]), dim=1)
            answers.append(answer.masked_fill((own.sum(dim=1) <= 0)[:, None], torch.nan))
            nearest_rows.append(rows.gather(1, nearest))
            shares.append(share)
            kept.append(at)
            left = left - own
            if number == 0 and self.background is not None:
                background = self.background[:, None] * self.cells.normalised_log_prior.exp()[rows]
                left = (left - background).masked_fill_(left <= (1 + _ROUNDING) * background, 0.0)
        places = torch.stack(answers, dim=1)
        missing, places = places[..., 0].isnan().numpy(), places.nan_to_num(1.0)
        share, at = torch.stack(shares, dim=1), torch.stack(kept, dim=1)
        used = max(1, int(share.count_nonzero(dim=2).max()))  # they are sorted: the others have no mass
        share, at = share[..., :used], at[..., :used].flatten(1)
        where = points.gather(1, at[..., None].expand(-1, -1, 3)).view(-1, used, 3)
        spread = sigma.gather(1, at).view(-1, used)
        chords = smoothed_chords(places.flatten(0, 1), share.flatten(0, 1), where, spread)
        radii = chord_km(weighted_quantile(*chords, 0.9).sqrt()).view(-1, top_k)
        mass = self._mass_near(places, torch.cat(nearest_rows, dim=1), min_cosine)
        coordinates = coordinates_of(places).numpy()
        coordinates[missing], mass[missing] = np.nan, 0.0
        return Modes(coordinates, mass, radii.numpy())

    @cached_property
    def _top(self) -> tuple[Float64[Tensor, "n t"], Int64[Tensor, "n t"], Float32[Tensor, "n t 3"], Tensor]:
        """Mass, rows, points and smoothing of the cells that answers are decoded from."""
        with torch.inference_mode():
            rows = self.cells.mass_per_place(self.mass).topk(min(_TOP, len(self.cells)), dim=1).indices
            points, sigma = self.cells.points[rows].float(), torch.from_numpy(self.sigma_km)[rows]
            return self.mass.gather(1, rows).double(), rows, points, sigma

    def _mass_near(
        self, places: Float64[Tensor, "n k 3"], nearest: Int64[Tensor, "n k"], min_cosine: float
    ) -> Float64[np.ndarray, "n k"]:
        """Return the mass of all cells near each answer, and of its nearest, that belongs to none before it."""
        (n, k), m = places.shape[:2], len(self.cells)
        points, order = self.cells.by_height
        chord = math.sqrt(max(2 - 2 * min_cosine, 0.0)) + 1e-6
        answers, number = places.flatten(0, 1).to(self.cells.points.dtype).numpy(), np.arange(n * k)
        # Nothing farther north or south than the chord is near.
        spans = (np.searchsorted(points[:, 2], answers[:, 2] + side) for side in (-chord, chord))
        near = [
            order[low:high][points[low:high] @ answer >= min_cosine]
            for low, high, answer in zip(*spans, answers, strict=True)
        ]
        answer = np.concatenate((np.repeat(number, [len(cells) for cells in near]), number))
        cell = np.concatenate((*near, nearest.flatten().numpy()))
        # A cell belongs to the first of the answers of its row that it is near to.
        key, which = np.divmod(np.unique((answer // k * m + cell) * k + answer % k), k)
        is_first = np.diff(key, prepend=-1) > 0
        key, which = key[is_first], which[is_first]
        mass = self.mass.numpy().reshape(-1)[key]
        return np.bincount(key // m * k + which, mass, n * k).reshape(n, k)

    def _top_cells(self, top_k: int) -> Modes:
        """Return the cells with the most mass, without merging."""
        rows = self.cells.mass_per_place(self.mass).topk(top_k, dim=1).indices
        mass = self.mass.gather(1, rows)
        coordinates = self.cells.coordinates[rows.numpy()].astype(np.float64)
        radius = math.sqrt(-2 * math.log(0.1)) * self.sigma_km[rows.numpy()]  # of 90 % of a Gaussian
        return Modes(coordinates, mass.double().numpy(), radius)

    # --- uncertainty ------------------------------------------------------------------------------

    @torch.inference_mode()
    def profile(self, places: Float[np.ndarray, "n 2"]) -> RadialProfile:
        """Return the calibrated distribution of the distance between the truth and a place, one place a row.

        ``profile(places).within(radii_km)`` are probabilities, ``profile(places).radius_km(levels)`` credible radii.
        """
        answers = torch.from_numpy(unit_vectors(np.asarray(places, np.float64)))
        top, rows, points, sigma = (part[:, :_SMOOTHED] for part in self._top)
        near, near_mass = smoothed_chords(answers, top, points.double(), sigma)
        near = chord_km(near.sqrt_())
        far_mass = self.mass.scatter(1, rows, 0.0)
        parts, cells = [], self.cells.points
        for start in range(0, len(self), _BLOCK):
            block = slice(start, start + _BLOCK)
            far = (answers[block].to(cells.dtype) @ cells.T).clamp_(-1, 1).acos_().mul_(EARTH_RADIUS_KM)  # to 3 km
            parts.append(radial_cdf((near[block], far), (near_mass[block], far_mass[block])))
        return RadialProfile(self.calibration.calibrated_level(np.concatenate(parts), self.background_share))

    def is_sure(self, profile: RadialProfile) -> list[bool | None]:
        """Return whether answers are right within 200 km with the probability that the calibration asks for.

        False for every image out of distribution, whose probabilities mean nothing; None without a calibration.

        Args:
            profile: of the answers; see :meth:`profile`.
        """
        if self.calibration.fitted_on is None:
            return [None] * len(self)
        sure = profile.within((SURE_KM,))[:, 0] >= self.calibration.sure_probability
        if self.is_in_distribution is not None:
            sure &= self.is_in_distribution.numpy()
        if self.may_be_sure is not None:
            sure &= self.may_be_sure.numpy()
        return [bool(one) for one in sure]

    def label_probabilities(
        self, labels: Sequence[str] | np.ndarray | Labels, min_probability: float = 0.005
    ) -> list[dict[str, float]]:
        """Return the probability of each label, most probable first, such as the countries of the cells.

        Args:
            labels: one a cell, or what :func:`numpy.unique` makes of them with ``return_inverse``; cells with an empty
                label are left out.
            min_probability: labels with less are left out.
        """
        names, number = labels if isinstance(labels, tuple) else np.unique(labels, return_inverse=True)
        sums = torch.zeros(len(self), len(names), dtype=torch.float64)
        sums.index_add_(1, torch.from_numpy(number), self.mass.double())
        found = []
        for row in sums.clamp_(max=1.0).numpy():  # float32 masses may sum to a little more
            kept = np.flatnonzero((row >= min_probability) & (names != ""))
            kept = kept[np.argsort(-row[kept], kind="stable")]
            found.append(dict(zip(names[kept].tolist(), row[kept].tolist(), strict=True)))
        return found

    @torch.inference_mode()
    def log_density(self, places: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
        """Return the log probability density by square kilometre at a place, one place a row, in nats.

        One part in a million is spread over the whole Earth, so that it is finite everywhere.
        """
        points = torch.from_numpy(unit_vectors(np.asarray(places, np.float64)))
        sigma = torch.from_numpy(self.sigma_km / EARTH_RADIUS_KM)
        uniform = math.log(_UNIFORM / (4 * math.pi * EARTH_RADIUS_KM**2))
        min_cosine = math.cos(min(float(sigma.max()) * _MAX_SIGMAS + 1e-3, math.pi))
        near = points.to(self.cells.points.dtype) @ self.cells.points.T >= min_cosine
        found = []
        for mass, point, members in zip(self.mass, points, near, strict=True):
            at = members.nonzero()[:, 0]
            square = (self.cells.points[at].double() - point).square().sum(dim=1)
            terms = mass[at].double().log() + log_kernel(square, sigma[at])
            found.append(np.logaddexp(float(torch.logsumexp(terms, dim=0)) if len(at) else -np.inf, uniform))
        return np.array(found, np.float64)

    def nominal_hpd_levels(self, levels: Sequence[float] = (0.5, 0.9)) -> Float64[np.ndarray, "n l"]:
        """Return the share of the mass that a row's HPD region must hold to contain the truth with some probabilities.

        HPD: highest posterior density, the smallest region there is. Shares of the mass itself are overconfident:
        the region of 90 % held fewer of the true places of validation images.
        """
        asked = np.tile(np.asarray(levels, np.float64), (len(self), 1))
        return self.calibration.nominal_level(asked, self.background_share, hpd=True)

    def hpd_level(self, places: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
        """Return the probability that the truth has a higher density than a place, one place a row.

        A place lies in the HPD region of 90 % when its level is at most 0.9.
        """
        return self.hpd_position(places).level

    def hpd_position(self, places: Float[np.ndarray, "n 2"]) -> HPDPosition:
        """Return where a place lies, one place a row: its level, and its distance to the region of 90 %.

        Levels of places without mass are much the same near a region and far from it: the distance tells them apart.
        """
        return HPDPosition.from_approaches(self.approaches(places), self.calibration, self.background_share)

    def approaches(self, places: Float[np.ndarray, "n 2"]) -> list[Approach]:
        """Return how near the HPD regions of each row come to a place, one place a row; levels are not calibrated."""
        points = unit_vectors(np.asarray(places, np.float64))
        return [Mixture.from_posterior(self, row).approach(point) for row, point in enumerate(points)]

    @property
    def background_share(self) -> Float64[np.ndarray, " n"]:
        """Share of each row's mass that follows the prior alone; 0 where there is none."""
        return np.zeros(len(self)) if self.background is None else self.background.double().numpy()
