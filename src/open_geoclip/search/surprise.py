"""How surprising a place is under a picture's posterior: a p-value that is held against validation pictures.

A posterior's own numbers are not enough to accuse a photo of saying the wrong place: its region of 90 % held 86 % of
the truths of the embedded model. So a place is asked how far out it lies (the mass of all denser ground, which is
:meth:`open_geoclip.search.posterior.Posterior.region_level`), and how many validation pictures had their true place
so far out. That is a conformal p-value (Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005):
for pictures like those of the validation it is at most x for at most a share x of the true places, however wrong the
model is. Sure and unsure answers are held against their own kind, since an unsure answer is more often wrong.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["EXCEEDED", "FAMILIAR_SHARE", "levels_of", "p_value"]

EXCEEDED = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.007, 0.005, 0.003, 0.002, 0.001)
"""Shares of true places that levels are given for; as many of them as there are pictures to tell."""

FAMILIAR_SHARE = 0.95
"""A picture is like those of the validation when its best place scores at least as the best of this share of them."""

_INSIDE = 1e-9  # levels are told apart by the mass that is not denser, down to this


def levels_of(
    levels: Float[np.ndarray, " n"], sure: Bool[np.ndarray, " n"]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What p-values are told by: of unsure and of sure answers, the level that each of :data:`EXCEEDED` lies beyond.

    Args:
        levels: of the true places of validation pictures, as ``region_level`` gives them.
        sure: whether each picture's answer was sure.
    """
    return _quantiles(levels[~sure]), _quantiles(levels[sure])


def _quantiles(levels: Float[np.ndarray, " n"]) -> tuple[float, ...]:
    ordered, n = np.sort(levels)[::-1], len(levels)
    found = []
    for share in EXCEEDED:
        at = math.floor(share * (n + 1) + 1e-9)  # so many of n + 1 lie as far out as this one, itself counted
        if at >= 1:
            found.append(round(float(min(max(ordered[min(at, n) - 1], 0.0), 1.0)), 9))
    return tuple(found)


def p_value(level: float, quantiles: Sequence[float]) -> float | None:
    """Share of true places at least as far out as a level; None when there were too few pictures to tell.

    Between the known shares it is interpolated, and beyond the last it is the last: too few pictures would tell.

    Args:
        level: of the place that is asked about.
        quantiles: one part of what :func:`levels_of` gives.
    """
    if not quantiles:
        return None
    rest = [math.log(max(1 - known, _INSIDE)) for known in (0.0, *quantiles)]
    shares = [0.0, *(math.log(share) for share in EXCEEDED[: len(quantiles)])]
    return round(math.exp(float(np.interp(-math.log(max(1 - level, _INSIDE)), [-x for x in rest], shares))), 9)
