"""What a gallery allows: the best that any answer out of it can be, the worst, and whether it knows the test."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from open_geoclip.evaluation.metrics import FIGURES, THRESHOLDS_KM, by_figure, geoscores, summary
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, haversine_km, unit_vectors
from open_geoclip.search.gallery import Gallery

__all__ = ["LEAK_M", "LEAK_SHARE", "MAX_LEAK_SHARE", "ceiling", "nearest_km", "random_place"]

LEAK_M = 1.0
"""A gallery place this near to a true place is taken for that very coordinate, in metres."""

LEAK_SHARE = 0.01
"""More photos than this share with their very coordinate in the gallery are no chance. Of Im2GPS3k, 0.27 % are in the
released gallery, which was drawn from other photos: landmarks are at the same rounded coordinate for everybody."""

MAX_LEAK_SHARE = 0.5
"""More are refused: the gallery was made of the test photos. Of YFCC26k, 7.64 % are in the released gallery."""

_BLOCK = 1 << 24  # pairs in memory at once
_PAIRS = 20_000_000


def nearest_km(truth: Float[np.ndarray, "n 2"], gallery: Gallery) -> Float64[np.ndarray, " n"]:
    """How far each place is from the nearest place of the gallery, on the sphere."""
    places = gallery.coordinates.astype(np.float64)
    truth = np.asarray(truth, np.float64)
    vectors, asked = unit_vectors(places), unit_vectors(truth)
    step = max(1, _BLOCK // len(places))
    rows = [(asked[i : i + step] @ vectors.T).argmax(axis=1) for i in range(0, len(asked), step)]
    # The cosine tells places apart that are 0.1 m apart; the distance itself is exact.
    return haversine_km(truth, places[np.concatenate(rows)]) if rows else np.empty(0)


def ceiling(nearest: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """The figures of the best answers that the gallery holds, as :func:`~.metrics.summary` without ``n``."""
    figures = summary(nearest)
    del figures["n"]
    return figures


def random_place(truth: Float[np.ndarray, "n 2"], gallery: Gallery) -> dict[str, Any]:
    """The figures of somebody who draws a place of the gallery, by its weight, without a look at the photo.

    The mean over up to 20 million pairs of a photo and a drawn place, the same at every call; the median is that of
    all these errors.
    """
    rng = np.random.default_rng(0)
    asked = unit_vectors(np.asarray(truth, np.float64))
    draws = max(100, _PAIRS // len(asked))
    mass = gallery.weights.astype(np.float64)
    rows = rng.choice(len(gallery), size=draws, p=mass / mass.sum())
    vectors = unit_vectors(gallery.coordinates[rows].astype(np.float64))
    step = max(1, _BLOCK // 8 // len(asked))
    edges = np.concatenate([np.arange(0.0, 20_038.0, 1.0), [20_040.0]])  # the median to half a kilometre
    within, total, points = np.zeros(len(THRESHOLDS_KM)), 0.0, 0.0
    counts = np.zeros(len(edges) - 1)
    for start in range(0, draws, step):
        km = EARTH_RADIUS_KM * np.arccos(np.clip(vectors[start : start + step] @ asked.T, -1, 1))
        within += [np.count_nonzero(km <= t) for t in THRESHOLDS_KM]
        total, points = total + km.sum(), points + geoscores(km).sum()
        counts += np.histogram(km, edges)[0]
    pairs = draws * len(asked)
    median = float(edges[np.searchsorted(np.cumsum(counts), pairs / 2)] + 0.5)
    figures = [*(100 * within / pairs).tolist(), median, float(total / pairs), float(points / pairs)]
    assert len(figures) == len(FIGURES)
    return by_figure(figures)
