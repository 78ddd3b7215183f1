"""Measuring on test data whether the probabilities of a calibration hold."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from open_geoclip.evaluation.calibration import ANSWER_KM
from open_geoclip.evaluation.metrics import THRESHOLDS_KM, distances_km
from open_geoclip.search.calibration import SURE_KM
from open_geoclip.search.posterior import Posterior

__all__ = ["measure_calibration", "reliability"]

_SHARES = (0.5, 0.9)  # of the circles and regions that are measured
_RESAMPLES = 1000
_LEAST_KM = 25  # whose reliability is measured; at 1 km nearly nothing is right


@torch.inference_mode()
def measure_calibration(
    posteriors: Iterable[Posterior],
    truth: Float[np.ndarray, "n 2"],
    clusters: Int64[np.ndarray, " n"] | None = None,
) -> dict[str, Any]:
    """Measure whether probabilities hold on data that they were not fitted on.

    Args:
        posteriors: of all truths, in order, any number of rows at a time.
        truth: (lat, lon) in degrees.
        clusters: a number from 0 for each truth; those of one cluster are resampled together for the intervals.

    Returns:
        ``circle_holds`` and ``region_holds``: percentages of truths within the circles and the regions of highest
        density of 50 and 90 %; ``circle_median_km``; ``reliability`` by distance, see :func:`reliability`;
        ``nats_per_km2``, the mean negative log density at the truths; ``sure``: its share, and the percentages right
        within 200 km of sure answers and of the others (None where there is none), or None without a calibration. With
        clusters, ``circle_interval`` and ``sure_interval``: 95 % bootstrap intervals of ``circle_holds`` and of the
        share of sure answers that are right.
    """
    n = len(truth)
    off_km, density, level, sure = np.empty(n), np.empty(n), np.empty(n), np.zeros(n, bool)
    is_calibrated = True
    within, radii = np.empty((n, len(THRESHOLDS_KM))), np.empty((n, len(_SHARES)))
    start = 0
    for posterior in posteriors:
        part = slice(start, start + len(posterior))
        start, places = part.stop, np.asarray(truth[part], np.float64)
        answers = posterior.decode("mass", ANSWER_KM)
        profile = posterior.profile(answers)
        off_km[part] = distances_km(places, answers)
        within[part], radii[part] = profile.within(THRESHOLDS_KM), profile.radius_km(_SHARES)
        is_calibrated &= posterior.calibration.fitted_on is not None
        sure[part] = list(map(bool, posterior.is_sure(profile)))
        density[part], level[part] = posterior.log_density(places), posterior.hpd_level(places)
    hits, right = off_km[:, None] <= radii, off_km <= SURE_KM
    names = [f"{100 * share:.0f}" for share in _SHARES]
    intervals: dict[str, Any] = {}
    if clusters is not None:
        sizes = np.bincount(clusters)
        draws = np.random.default_rng(0).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=_RESAMPLES)

        def interval(counted: Bool[np.ndarray, " n"], among: Bool[np.ndarray, " n"]) -> list[float]:
            held, of = (draws @ np.bincount(clusters, rows) for rows in (counted & among, among))
            ends: list[float] = np.quantile(100 * held[of > 0] / of[of > 0], (0.025, 0.975)).tolist()
            return ends

        everything = np.ones(n, bool)
        intervals["circle_interval"] = {
            name: interval(hit, everything) for name, hit in zip(names, hits.T, strict=True)
        }
        if sure.any():
            intervals["sure_interval"] = interval(right, sure)
    return intervals | {
        "n": n,
        "circle_holds": dict(zip(names, (100 * hits.mean(axis=0)).tolist(), strict=True)),
        "circle_median_km": dict(zip(names, np.median(radii, axis=0).tolist(), strict=True)),
        "region_holds": {name: 100 * float(np.mean(level <= s)) for name, s in zip(names, _SHARES, strict=True)},
        "reliability": {
            str(km): reliability(within[:, column], off_km <= km)
            for column, km in enumerate(THRESHOLDS_KM)
            if km >= _LEAST_KM
        },
        "nats_per_km2": float(-density.mean()),
        "sure": {
            "share": 100 * float(sure.mean()),
            "right_when_sure": 100 * float(right[sure].mean()) if sure.any() else None,
            "right_when_not_sure": 100 * float(right[~sure].mean()) if not sure.all() else None,
        }
        if is_calibrated
        else None,
    }


def reliability(claimed: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = 10) -> dict[str, Any]:
    """Compare claimed probabilities with how often they were right.

    Guo et al., "On calibration of modern neural networks", 2017, section 2; with bins of equally many answers
    instead of equal width, so that none is nearly empty.

    Returns:
        ``ece``, the expected calibration error, 0 to 1; ``bins``: for each ``n``, mean ``claimed`` and share ``right``.
    """
    order = np.argsort(claimed, kind="stable")
    rows = [
        {"n": len(part), "claimed": float(claimed[part].mean()), "right": float(right[part].mean())}
        for part in np.array_split(order, min(bins, len(order)))
    ]
    gaps = [row["n"] * abs(row["claimed"] - row["right"]) for row in rows]
    return {"ece": sum(gaps) / len(claimed), "bins": rows}
