"""How the scores of one model become probabilities: the numbers that are fitted on validation data."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.search.surprise import EXCEEDED

__all__ = ["NOMINAL", "SURE_KM", "SURE_SHARE", "Calibration"]

NOMINAL = (*(round(0.05 * step, 2) for step in range(20)), 0.97, 0.98, 0.99, 1.0)
"""Shares that a calibration's levels are given for."""

SURE_KM, SURE_SHARE = 200.0, 0.8
"""An answer is sure when it is right within so many kilometres with at least this probability."""


_MOST = 0.999  # of the mass is background
_LEVELS = ("levels", "region_levels", "between_levels", "between_region_levels")


@dataclass(frozen=True)
class Calibration:
    """How the scores of one model become probabilities.

    Attributes:
        temperature: logits are divided by it.
        background: share of the mass that follows the prior alone, of a picture whose best logit is ``usual``.
        width_km: blur of each place beyond its own cell, one standard deviation along each axis.
        fitted_on: on which data, or None: not calibrated, and the numbers are not chances of being right.
        pictures: how many of them.
        levels: for each of :data:`NOMINAL`, which share of the mass around an answer holds the truth that often, the
            background left aside. Answers that lie between places are better than the mass around them tells, because
            ripples of the logits average out; this maps what is told to what was seen (Kuleshov, Fenner and Ermon,
            2018). Empty: as told.
        region_levels: the same for the smallest regions, those of the densest ground.
        between_levels: ``levels`` of grounds that are refined between the places of the gallery; see :meth:`between`.
        between_region_levels: ``region_levels`` of such grounds.
        doubt: by how much the log odds of the background grow for each unit that the best logit lies below ``usual``.
            A picture that looks like no place at all is more likely one that the model does not understand, which
            differences between logits do not show.
        usual: the best logit of an ordinary picture.
        surprise: of unsure and of sure answers, how far out true places lay; see :mod:`open_geoclip.search.surprise`.
            Empty: nothing can be said of places that others name.
        least_score: cosine of its best place that a picture like those of the fit has at least.
    """

    temperature: float = 1.0
    background: float = 0.0
    width_km: float = 0.0
    fitted_on: str | None = None
    pictures: int = 0
    levels: tuple[float, ...] = ()
    region_levels: tuple[float, ...] = ()
    between_levels: tuple[float, ...] = ()
    between_region_levels: tuple[float, ...] = ()
    doubt: float = 0.0
    usual: float = 0.0
    surprise: tuple[tuple[float, ...], ...] = ()
    least_score: float = -1.0

    def __post_init__(self) -> None:
        numbers = (self.temperature, self.background, self.width_km, self.doubt, self.usual, self.least_score)
        if not all(map(math.isfinite, numbers)):  # a TypeError for what is no number
            raise SettingsError(f"calibration: finite numbers, not {numbers}")
        if not (self.temperature > 0 and 0 <= self.background < 1 and self.width_km >= 0 and self.doubt >= 0):
            raise SettingsError(
                "calibration: a temperature above 0, a background from 0 to below 1, width and doubt from 0"
            )
        for name in _LEVELS:
            levels = getattr(self, name)
            if levels and (len(levels) != len(NOMINAL) or sorted({0.0, 1.0, *levels}) != list(levels)):
                raise SettingsError(f"calibration: {name} are {len(NOMINAL)} numbers that grow from 0 to 1, or none")
        told = [len(part) <= len(EXCEEDED) and sorted([0.0, *part, 1.0]) == [0.0, *part, 1.0] for part in self.surprise]
        if self.surprise and told != [True, True]:
            raise SettingsError(
                f"calibration: surprise is twice at most {len(EXCEEDED)} numbers that grow from 0 to 1, or empty"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "Calibration":
        """What a release says; not calibrated when it says nothing.

        Raises:
            WeightsError: a key is unknown or a value out of range.
        """
        if values is None:
            return cls()
        try:
            levels = {name: tuple(values.get(name, ())) for name in _LEVELS}
            surprise = tuple(map(tuple, values.get("surprise", ())))
            return cls(**{**values, **levels, "surprise": surprise})
        except (TypeError, SettingsError) as error:
            raise WeightsError(f"calibration of the weights: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """As a release keeps it."""
        return asdict(self)

    def between(self) -> "Calibration":
        """The calibration of grounds that are refined; one that was fitted without these says nothing of them."""
        fitted_on = self.fitted_on if self.between_levels else None
        return replace(self, levels=self.between_levels, region_levels=self.between_region_levels, fitted_on=fitted_on)

    def background_of(self, best_logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The background's share of pictures whose best places have these logits."""
        if self.background == 0:
            return torch.zeros_like(best_logits)
        usual = math.log(self.background / (1 - self.background))
        return torch.sigmoid(usual + self.doubt * (self.usual - best_logits)).clamp(max=_MOST)

    def seen(
        self, told: Float64[np.ndarray, "n k"], background: Float[np.ndarray, " n"], levels: tuple[float, ...]
    ) -> Float64[np.ndarray, "n k"]:
        """How often the truth lies within what holds some shares of the mass.

        Args:
            told: the shares of the mass.
            background: of each picture; how often the truth lies in it is not mapped.
            levels: ``levels`` or ``region_levels``.
        """
        if not levels:
            return told
        known = self._known(background)
        return np.where(told <= known, known * np.interp(told / known, levels, NOMINAL), told)

    def told(
        self, seen: Float64[np.ndarray, "n k"], background: Float[np.ndarray, " n"], levels: tuple[float, ...]
    ) -> Float64[np.ndarray, "n k"]:
        """The inverse of :meth:`seen`: which share of the mass holds the truth so often."""
        if not levels:
            return seen
        known = self._known(background)
        return np.where(seen <= known, known * np.interp(seen / known, NOMINAL, levels), seen)

    def _known(self, background: Float[np.ndarray, " n"]) -> Float64[np.ndarray, "n 1"] | float:
        """The share of the mass that is not background; all of it where the background is no more than a floor."""
        return 1 - np.asarray(background, np.float64)[:, None] if self.doubt else 1.0
