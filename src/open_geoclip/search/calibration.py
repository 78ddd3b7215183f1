"""Calibration: the parameters, fitted on validation data, by which the scores of one model become probabilities.

Fitting is in :mod:`open_geoclip.evaluation.calibration`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, zip_longest
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.files import sha256

__all__ = [
    "CALIBRATED_LEVELS",
    "IN_DISTRIBUTION_SHARE",
    "MAX_LOG_TEMPERATURE",
    "OUT_OF_DISTRIBUTION_P",
    "P_VALUES",
    "REGION_LEVEL",
    "SURE_KM",
    "SURE_PROBABILITY",
    "Calibration",
    "conformal_scores",
    "nonconformity",
]

CALIBRATED_LEVELS = (*(round(0.05 * step, 2) for step in range(20)), 0.97, 0.98, 0.99, 1.0)
"""Probabilities at which a calibration stores nominal levels."""

SURE_KM, SURE_PROBABILITY = 200.0, 0.8
"""An answer is sure when it is right within this distance with at least this probability, unless a calibration asks
for more."""

P_VALUES = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.007, 0.005, 0.003, 0.002, 0.001)
"""P-values at which a calibration stores scores, as far as there are enough validation images."""

REGION_LEVEL = 0.9
"""Level of the HPD region that distances of stated places are measured from."""

OUT_OF_DISTRIBUTION_P = 0.01
"""An image is out of distribution when the p-value of its features' distance, or of its best score, is less."""

IN_DISTRIBUTION_SHARE = 0.95
"""Where distances are not known, its best cell must score as high as those of this share of validation images."""

MAX_LOG_TEMPERATURE = 2.0
"""The logarithm of the temperature of an image differs from that of :attr:`Calibration.temperature` by no more."""

_MAX_BACKGROUND = 0.999
_MIN_TAIL = 1e-9  # HPD levels closer to 1 are not distinguished
_NEAR_KM = 25.0  # outside the region, at which a place is half as conforming as at its edge
_MIN_DISTANCES, _TAIL = 6, 4  # stored at least; those that p-values beyond the last one follow
_LEVELS = ("levels", "hpd_levels", "refined_levels", "refined_hpd_levels")
# Keys in releases that were saved before these names.
_FORMER_KEYS = {
    "width_km": "sigma_km",
    "pictures": "n_images",
    "region_levels": "hpd_levels",
    "between_levels": "refined_levels",
    "between_region_levels": "refined_hpd_levels",
    "doubt": "background_slope",
    "usual": "reference_logit",
    "least_score": "min_score",
}

_DROPPED_KEYS = {"surprise", "conformal_levels"}  # of p-values by HPD levels alone


@dataclass(frozen=True)
class Calibration:
    """Parameters by which the scores of one model become probabilities. The defaults are those of no calibration.

    Attributes:
        temperature: logits of an image whose best logit is ``reference_logit`` are divided by it (Guo et al., "On
            calibration of modern neural networks", 2017).
        background: share of the mass that follows the prior alone, for an image whose best logit is
            ``reference_logit``.
        sigma_km: standard deviation, along each axis, of the smoothing of each cell beyond its own extent.
        fitted_on: name of the validation data; None: not calibrated.
        n_images: number of validation images.
        levels: for each of :data:`CALIBRATED_LEVELS`, the share of the mass around an answer that holds the truth
            with this probability, background excluded (Kuleshov, Fenner and Ermon, "Accurate uncertainties for deep
            learning using calibrated regression", 2018). Empty: the mass itself.
        hpd_levels: the same for regions of highest posterior density.
        refined_levels: ``levels`` of refined posteriors; see :attr:`refined`.
        refined_hpd_levels: ``hpd_levels`` of refined posteriors.
        background_slope: decrease of the log odds of the background per unit of the best logit: an image that
            resembles no place is more likely one that the model does not understand.
        reference_logit: median of the best logit of validation images.
        conformal_scores: for unsure and for sure answers, the :func:`nonconformity` of true places at each of
            :data:`P_VALUES`; see :meth:`p_value`. Empty: p-values are not known.
        min_score: cosine of the best cell below which an image is out of distribution.
        distances: of the features of validation images from those of training images, which the shares
            :data:`P_VALUES` of them exceed. Empty: not known. See :meth:`distance_p_value`.
        sure_score: cosine of the best cell below which no answer is sure.
        sure_probability: with which a sure answer is right within 200 km, or more.
        temperature_slope: increase of the logarithm of the temperature per unit that the best logit is lower: an image
            that resembles its best place less, as in another season or rendering, says less about where that is.
    """

    temperature: float = 1.0
    background: float = 0.0
    sigma_km: float = 0.0
    fitted_on: str | None = None
    n_images: int = 0
    levels: tuple[float, ...] = ()
    hpd_levels: tuple[float, ...] = ()
    refined_levels: tuple[float, ...] = ()
    refined_hpd_levels: tuple[float, ...] = ()
    background_slope: float = 0.0
    reference_logit: float = 0.0
    conformal_scores: tuple[tuple[float, ...], ...] = ()
    min_score: float = -1.0
    distances: tuple[float, ...] = ()
    sure_score: float = -1.0
    temperature_slope: float = 0.0
    sure_probability: float = SURE_PROBABILITY

    def __post_init__(self) -> None:
        slope = min(self.background_slope, self.temperature_slope)
        numbers = (
            *(self.temperature, self.background, self.sigma_km, self.background_slope, self.reference_logit),
            *(self.temperature_slope, self.min_score, self.sure_score, self.sure_probability),
        )
        if not all(map(math.isfinite, numbers)):  # a TypeError for what is no number
            raise SettingsError(f"calibration: finite numbers, not {numbers}")
        if not (self.temperature > 0 and 0 <= self.background < 1 and self.sigma_km >= 0 and slope >= 0):
            raise SettingsError(
                "calibration: temperature must be above 0, background at least 0 and below 1, sigma_km, "
                "background_slope and temperature_slope at least 0"
            )
        if not 0 < self.sure_probability <= 1:
            raise SettingsError(f"calibration: sure_probability is above 0 and at most 1, not {self.sure_probability}")
        for name in _LEVELS:
            levels = getattr(self, name)
            if levels and (len(levels) != len(CALIBRATED_LEVELS) or sorted({0.0, 1.0, *levels}) != list(levels)):
                raise SettingsError(
                    f"calibration: {name} must be {len(CALIBRATED_LEVELS)} numbers that increase from 0 to 1, or empty"
                )
        valid = [
            len(part) <= len(P_VALUES) and all(map(math.isfinite, part)) and sorted((0.0, *part)) == [0.0, *part]
            for part in self.conformal_scores
        ]
        if self.conformal_scores and valid != [True, True]:
            raise SettingsError(
                f"calibration: conformal_scores must be two lists of at most {len(P_VALUES)} numbers from 0 that "
                "increase, or empty"
            )
        if self.distances and not (
            _MIN_DISTANCES <= len(self.distances) <= len(P_VALUES)
            and all(map(math.isfinite, self.distances))
            and sorted(self.distances) == list(self.distances)
        ):
            raise SettingsError(
                f"calibration: distances must be {_MIN_DISTANCES} to {len(P_VALUES)} numbers that increase, or empty"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "Calibration":
        """Read the calibration of a release; None gives the defaults.

        Raises:
            WeightsError: a key is unknown or a value out of range.
        """
        values = {
            _FORMER_KEYS.get(key, key): value for key, value in (values or {}).items() if key not in _DROPPED_KEYS
        }
        try:
            levels = {name: tuple(values.get(name, ())) for name in (*_LEVELS, "distances")}
            conformal = tuple(map(tuple, values.get("conformal_scores", ())))
            return cls(**{**values, **levels, "conformal_scores": conformal})
        except (TypeError, SettingsError) as error:
            raise WeightsError(f"calibration of the weights: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, as a release stores them."""
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the parameters, in hexadecimal."""
        return sha256(json.dumps(self.to_dict(), sort_keys=True).encode())

    @property
    def refined(self) -> "Calibration":
        """The calibration of refined posteriors; its ``fitted_on`` is None when there was none fitted."""
        fitted_on = self.fitted_on if self.refined_levels else None
        return replace(self, levels=self.refined_levels, hpd_levels=self.refined_hpd_levels, fitted_on=fitted_on)

    def within(self, area_km2: Float[np.ndarray, " m"]) -> "Calibration":
        """Return the calibration of a gallery that was limited to m cells of these areas, for which none was fitted.

        The smoothing of a cell is no wider than a square of the area of all.
        """
        return replace(self, fitted_on=None, sigma_km=min(self.sigma_km, math.sqrt(float(area_km2.sum()) / 12)))

    def temperature_of(self, best_logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the temperature of images whose best cells have these logits, scale times cosine."""
        power = self.temperature_slope * (self.reference_logit - best_logits)
        return self.temperature * power.clamp(-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE).exp()

    def background_of(
        self, best_logits: Float[Tensor, " n"], distances: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"]:
        """Return the share of the background of images whose best cells have these logits.

        Args:
            best_logits: scale times cosine.
            distances: of their features, where they are known: what is out of distribution has little else.
        """
        share = torch.zeros_like(best_logits)
        if self.background:
            odds = math.log(self.background / (1 - self.background))
            share = torch.sigmoid(odds + self.background_slope * (self.reference_logit - best_logits))
        if distances is not None and self.distances:
            share = 1 - (1 - share) * (self.distance_p_value(distances) / OUT_OF_DISTRIBUTION_P).clamp(max=1).to(share)
        return share.clamp(max=_MAX_BACKGROUND)

    def distance_p_value(self, distances: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Return the share of validation images whose features are at least as far from those of training images.

        Interpolated between the stored p-values; beyond the last one its logarithm falls as it does before.
        """
        known, log_p = np.array(self.distances), np.log(P_VALUES[: len(self.distances)])
        given = distances.double().numpy()
        slope = (log_p[-1] - log_p[-_TAIL]) / max(known[-1] - known[-_TAIL], 1e-9)
        beyond = slope * np.clip(given - known[-1], 0, None)
        return torch.from_numpy(np.exp(np.interp(given, known, log_p, left=0.0) + beyond))

    def is_in_distribution(
        self, best_scores: Float[Tensor, " n"] | None, distances: Float[Tensor, " n"] | None
    ) -> Bool[Tensor, " n"] | None:
        """Return whether images are like the validation images; None where nothing about them is known.

        Args:
            best_scores: cosines of the best cells of the gallery that this was fitted on.
            distances: of their features.
        """
        known = None
        if distances is not None and self.distances:
            known = self.distance_p_value(distances) >= OUT_OF_DISTRIBUTION_P
        if best_scores is not None and self.fitted_on is not None:
            is_like = best_scores >= self.min_score
            known = is_like if known is None else known & is_like
        return known

    def calibrated_level(
        self, nominal: Float64[np.ndarray, "n k"], background: Float[np.ndarray, " n"], *, hpd: bool = False
    ) -> Float64[np.ndarray, "n k"]:
        """Return the probability that the truth lies within regions that hold some shares of the mass.

        Args:
            nominal: shares of the mass, k a row.
            background: of each row; how often the truth lies in it is not corrected.
            hpd: regions of highest density instead of circles around an answer.
        """
        levels = self.hpd_levels if hpd else self.levels
        if not levels:
            return nominal
        signal = 1 - np.asarray(background, np.float64)[:, None] * bool(self.background_slope)
        return np.where(nominal <= signal, signal * np.interp(nominal / signal, levels, CALIBRATED_LEVELS), nominal)

    def nominal_level(
        self, calibrated: Float64[np.ndarray, "n k"], background: Float[np.ndarray, " n"], *, hpd: bool = False
    ) -> Float64[np.ndarray, "n k"]:
        """Return the share of the mass that holds the truth with some probabilities: the inverse."""
        levels = self.hpd_levels if hpd else self.levels
        if not levels:
            return calibrated
        signal = 1 - np.asarray(background, np.float64)[:, None] * bool(self.background_slope)
        inverse = signal * np.interp(calibrated / signal, CALIBRATED_LEVELS, levels)
        return np.where(calibrated <= signal, inverse, calibrated)

    def p_value(self, hpd_level: float, outside_km: float, *, sure: bool) -> float | None:
        """Return the conformal p-value of a stated place: the share of true places that lie at least as far out.

        For images exchangeable with the validation data it is at most x for at most a share x of true places,
        whatever the errors of the model (Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005).
        Interpolated between the stored p-values; never below the last one.

        Args:
            hpd_level: of the place; see :meth:`open_geoclip.search.posterior.Posterior.hpd_position`.
            outside_km: the place's distance to the region of 90 %.
            sure: whether the answer is sure: each kind is compared with its own.

        Returns:
            The p-value, or None when there were too few validation images.
        """
        known = self.conformal_scores[int(sure)] if self.conformal_scores else ()
        if not known:
            return None
        [score] = nonconformity(np.array([float(hpd_level)]), np.array([float(outside_km)])).tolist()
        log_p = [0.0, *(math.log(p) for p in P_VALUES[: len(known)])]
        return round(math.exp(float(np.interp(score, (0.0, *known), log_p))), 9)


def nonconformity(
    hpd_levels: Float[np.ndarray, " n"], outside_km: Float[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Return how little places conform to posteriors: -log((1 - level) / (1 + distance / 25 km)), at least 0.

    Levels alone rank places that have mass. Of those that have none but the background's, at nearly the same level,
    errors of a model are likelier near the region than on another continent.

    Args:
        hpd_levels: of the places.
        outside_km: their distances to the regions of :data:`REGION_LEVEL`.
    """
    tail = np.maximum(1 - hpd_levels.astype(np.float64), _MIN_TAIL)
    return np.log1p(outside_km.astype(np.float64) / _NEAR_KM) - np.log(tail)


def conformal_scores(
    scores: Float[np.ndarray, " n"], sure: Bool[np.ndarray, " n"], sources: Int64[np.ndarray, " n"] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return ``Calibration.conformal_scores``: quantiles of the scores of true places, of unsure and sure answers.

    Args:
        scores: :func:`nonconformity` of the true places of validation images.
        sure: whether each answer was sure.
        sources: a number for the source of each image: a p-value is that of the source where it is highest, of those
            with images enough to show it. Default: one source.
    """
    sources = np.zeros(len(sure), np.int64) if sources is None else sources

    def quantiles(rows: Bool[np.ndarray, " n"]) -> tuple[float, ...]:
        parts = [_upper_quantiles(scores[rows & (sources == source)]) for source in np.unique(sources)]
        highest = (max(values) for values in zip_longest(*parts, fillvalue=0.0))
        return tuple(accumulate(highest, max))  # fewer sources show the smallest p-values

    return quantiles(~sure), quantiles(sure)


def _upper_quantiles(scores: Float[np.ndarray, " n"]) -> tuple[float, ...]:
    descending, n = np.sort(scores)[::-1], len(scores)
    # The new image counts as one of n + 1, as conformal prediction has it.
    ranks = (math.floor(p * (n + 1) + 1e-9) for p in P_VALUES)
    return tuple(round(max(float(descending[min(rank, n) - 1]), 0.0), 6) for rank in ranks if rank >= 1)
