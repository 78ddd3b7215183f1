"""What a gallery allows: the best figures that its places can reach, those of a random place, and leaks."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from scipy.spatial import cKDTree

from open_geoclip.evaluation.metrics import FIGURES, THRESHOLDS_KM, by_figure, geoscores, summary
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, haversine_km, unit_vectors
from open_geoclip.search.gallery import Gallery

__all__ = ["LEAK_M", "LEAK_SHARE", "MAX_LEAK_SHARE", "ceiling", "nearest_km", "random_place"]

LEAK_M = 1.0
"""A gallery place within this distance of a true place counts as that coordinate, in metres."""

LEAK_SHARE = 0.01
"""A larger share of photos with their coordinate in the gallery is a leak. Of Im2GPS3k, 0.27 % are in the released
gallery, which was drawn from other photos: landmarks have the same rounded coordinate in all of them."""

MAX_LEAK_SHARE = 0.5
"""More are refused: the gallery was made of the test photos. Of YFCC26k, 7.64 % are in the released gallery."""

_BLOCK = 1 << 24  # pairs in memory at once
_PAIRS = 20_000_000
_DRAWS = 100_000  # of places at most: a share of them is known to 0.16 points


def nearest_km(truth: Float[np.ndarray, "n 2"], gallery: Gallery) -> Float64[np.ndarray, " n"]:
    """Return the distance of each place from the nearest place of the gallery, on the sphere."""
    places, truth = gallery.coordinates.astype(np.float64), np.asarray(truth, np.float64)
    _, rows = cKDTree(unit_vectors(places)).query(unit_vectors(truth))
    return haversine_km(truth, places[rows])


def ceiling(nearest: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """Return the figures of the gallery's best answers, as :func:`~.metrics.summary` without ``n``."""
    figures = summary(nearest)
    del figures["n"]
    return figures


def random_place(truth: Float[np.ndarray, "n 2"], gallery: Gallery) -> dict[str, Any]:
    """Return the figures of random answers, drawn from the gallery by its weights.

    They are means over up to 20 million pairs of a photo and one of up to 100,000 drawn places, the same at every call;
    the median is that of all these errors.
    """
    rng = np.random.default_rng(0)
    asked = unit_vectors(np.asarray(truth, np.float64))
    draws = min(max(100, _PAIRS // len(asked)), _DRAWS)
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
