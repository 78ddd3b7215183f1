"""Metrics of geo-localization from distances: shares within thresholds, averages, GeoScore, bootstrap intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, geodesic_km, haversine_km, unit_vectors

__all__ = [
    "FIGURES",
    "LEVEL",
    "THRESHOLDS_KM",
    "Distance",
    "best_constant",
    "bootstrap",
    "by_figure",
    "distances_km",
    "figure_values",
    "geoscores",
    "interval",
    "score",
    "summary",
]

THRESHOLDS_KM = (1, 25, 200, 750, 2500)
"""Street, city, region, country and continent, as the field calls them."""

FIGURES = (*(f"within_{t}_km" for t in THRESHOLDS_KM), "median_km", "mean_km", "geoscore")
"""Names of the figures, in the order of :func:`bootstrap`."""

LEVEL = 95
"""Confidence level of intervals, in percent."""

Distance = Literal["haversine", "geodesic"]

_PAIRS = 30_000_000  # of a photo and a constant answer, at most
_MIN_RESAMPLES = 100
_BLOCK = 1 << 18  # photos times resamples that are in memory at once


def distances_km(
    truth: Float[np.ndarray, "n 2"], predicted: Float[np.ndarray, "n 2"], distance: Distance = "haversine"
) -> Float64[np.ndarray, " n"]:
    """Return the distance of each answer from the truth, both (lat, lon) in degrees.

    Args:
        truth: true places.
        predicted: answers, row by row.
        distance: ``haversine``, on the sphere of mean radius, as in papers; or ``geodesic``, on the WGS84 ellipsoid, as
            in the released evaluation. They differ by at most 0.56 %.
    """
    places = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    return haversine_km(*places) if distance == "haversine" else geodesic_km(*places)


def geoscores(distance_km: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Return the points of answers in the game GeoGuessr, 5000 exp(-d / 1492.7)."""
    return 5000 * np.exp(-distance_km / 1492.7)


def summary(distance_km: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """Summarise the distances of answers from the truth.

    Returns:
        ``n``, ``within_km`` (threshold to percentage, 0 to 100), ``median_km``, ``mean_km`` and ``geoscore``, the
        mean of :func:`geoscores`.

    Raises:
        SettingsError: there are no distances, or one is not a number.
    """
    if len(distance_km) == 0:
        raise SettingsError("there are no distances to summarise")
    if not np.all(np.isfinite(distance_km)):
        raise SettingsError(f"{np.count_nonzero(~np.isfinite(distance_km))} distances are not finite numbers")
    return {
        "n": len(distance_km),
        "within_km": {str(t): 100 * float(np.mean(distance_km <= t)) for t in THRESHOLDS_KM},
        "median_km": float(np.median(distance_km)),
        "mean_km": float(np.mean(distance_km)),
        "geoscore": float(np.mean(geoscores(distance_km))),
    }


def by_figure(values: Sequence[Any]) -> dict[str, Any]:
    """Arrange one value per figure, in the order of :data:`FIGURES`, as :func:`summary` does."""
    within = {str(t): value for t, value in zip(THRESHOLDS_KM, values, strict=False)}
    return {"within_km": within} | dict(zip(FIGURES[len(within) :], values[len(within) :], strict=True))


def figure_values(figures: Mapping[str, Any]) -> list[Any]:
    """Return the values of a :func:`summary`, in the order of :data:`FIGURES`."""
    return [*figures["within_km"].values(), *(figures[name] for name in FIGURES[len(THRESHOLDS_KM) :])]


def bootstrap(
    distance_km: Float[np.ndarray, "runs n"],
    resamples: int,
    *,
    groups: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float64[np.ndarray, "runs {resamples} 8"]:
    """Return the figures of bootstrap resamples; draws are the same at every call.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 13. Photos by one author, of one trip
    or of one place are not independent: groups of them are resampled as wholes.

    Args:
        distance_km: of one or more runs on the same photos, for which the draws are the same.
        resamples: number of draws, 100 or more.
        groups: of each photo; default: photos are resampled.
        progress: called with (done, total).

    Raises:
        SettingsError: too few resamples, or fewer than two photos or groups, which cannot vary.
    """
    if resamples < _MIN_RESAMPLES:
        raise SettingsError(f"an interval takes at least {_MIN_RESAMPLES} resamples, not {resamples}")
    runs, n = distance_km.shape
    unit = np.arange(n) if groups is None else np.unique(np.array(list(groups)), return_inverse=True)[1]
    units = int(unit.max(initial=-1)) + 1
    if len(unit) != n or units < 2:
        what = "photos" if groups is None else "groups"
        raise SettingsError(f"resampling takes at least 2 {what}, not {units}, and a group for each of {n} photos")
    order = np.argsort(distance_km, axis=1, kind="stable")
    ranked = np.take_along_axis(np.asarray(distance_km, np.float64), order, axis=1)
    rng = np.random.default_rng(0)
    figures = np.empty((runs, resamples, len(FIGURES)))
    block = max(1, _BLOCK // n)
    for start in range(0, resamples, block):
        draws = min(block, resamples - start)
        drawn = rng.integers(units, size=(draws, units)) + units * np.arange(draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=draws * units).reshape(draws, units)[:, unit]
        for run in range(runs):
            figures[run, start : start + draws] = _weighted(ranked[run], times[:, order[run]])
        if progress is not None:
            progress(start + draws, resamples)
    return figures


def _weighted(
    ranked_km: Float64[np.ndarray, " n"], times: Int[np.ndarray, "draws n"]
) -> Float64[np.ndarray, "draws 8"]:
    """Return the figures when each distance, in ascending order, counts so many times."""
    upto = np.cumsum(times, axis=1)
    total = upto[:, -1]
    reached = np.searchsorted(ranked_km, THRESHOLDS_KM, side="right")  # so many distances are within
    within = np.where(reached > 0, 100 * upto[:, reached - 1] / total[:, None], 0.0)
    # The median is the mean of the two in the middle, which are one if the total is odd.
    middle = [ranked_km[np.argmax(upto > rank[:, None], axis=1)] for rank in ((total - 1) // 2, total // 2)]
    means = times @ np.stack([ranked_km, geoscores(ranked_km)], axis=1) / total[:, None]
    return np.column_stack([within, np.mean(middle, axis=0), means])


def interval(draws: Float64[np.ndarray, "resamples figures"]) -> list[list[float]]:
    """Return the middle 95 % of each column, as [low, high]."""
    outside = (100 - LEVEL) / 2
    return np.percentile(draws, [outside, 100 - outside], axis=0).T.tolist()


def best_constant(truth: Float[np.ndarray, "n 2"]) -> dict[str, Any]:
    """Return the figures of the best constant answer, the same for all photos, as :func:`summary` without ``n``.

    For each figure the best of 1,000 of the true places (fewer, but at least 100, for more than 30,000 photos), on the
    sphere. It is chosen by the truths; any other is worse.

    Raises:
        SettingsError: there are no places.
    """
    if len(truth) == 0:
        raise SettingsError("there are no places to choose an answer from")
    vectors = unit_vectors(np.asarray(truth, np.float64))
    # Every so many of the sorted places: where many photos are, many are tried.
    ranked = np.lexsort((truth[:, 1], truth[:, 0]))
    count = min(1000, max(100, _PAIRS // len(ranked)))
    tried = ranked[np.unique(np.linspace(0, len(ranked) - 1, count).astype(int))]
    best = np.full(len(FIGURES), np.inf)
    sign = np.array([1 if name in ("median_km", "mean_km") else -1 for name in FIGURES])
    for row in tried:
        # The angle from a cosine is good to 0.2 m, which no figure here can see.
        km = EARTH_RADIUS_KM * np.arccos(np.clip(vectors @ vectors[row], -1, 1))
        within = [100 * np.count_nonzero(km <= t) / len(km) for t in THRESHOLDS_KM]
        best = np.minimum(best, sign * np.array([*within, np.median(km), km.mean(), geoscores(km).mean()]))
    return by_figure((sign * best).tolist())


def score(
    truth: Float[np.ndarray, "n 2"],
    predicted: Float[np.ndarray, "n 2"],
    *,
    distance: Distance = "haversine",
    resamples: int = 0,
    groups: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return the figures of a run, their intervals, and those of the best constant answer.

    Arguments are those of :func:`distances_km` and :func:`bootstrap`; 0 resamples give no intervals.

    Returns:
        The :func:`summary`; ``distance``; ``best_constant``; ``intervals``, None or ``level`` (percent), ``resamples``,
        ``groups`` (their number; None if photos were resampled) and [low, high] by figure.

    Raises:
        SettingsError: see :func:`summary` and :func:`bootstrap`.
    """
    km = distances_km(truth, predicted, distance)
    figures = summary(km) | {"distance": distance, "intervals": None, "best_constant": best_constant(truth)}
    if resamples:
        [draws] = bootstrap(km[None], resamples, groups=groups, progress=progress)
        about = {"level": LEVEL, "resamples": resamples, "groups": None if groups is None else len(set(groups))}
        figures["intervals"] = about | by_figure(interval(draws))
    return figures
