"""Compare answers with published ones photo by photo, to verify that weights reproduce."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from open_geoclip.errors import PredictionsError
from open_geoclip.evaluation.compare import Comparison, compare
from open_geoclip.evaluation.metrics import THRESHOLDS_KM
from open_geoclip.evaluation.predictions import ID_COLUMNS, Predictions
from open_geoclip.geo.sphere import haversine_km

__all__ = ["Agreement", "agreement", "figures_agree"]

SAME_ANSWER_KM = 0.2
"""Answers that are nearer are the same: published ones are rounded to three decimals."""

_LEVEL = 3.0  # standard errors that two figures may differ by


@dataclass(frozen=True, eq=False)
class Agreement:
    """Two runs of the same model on the same photos.

    Attributes:
        n: photos with an answer in both.
        only_here: photos that the published file lacks.
        only_published: photos that were not answered here.
        same: percent of answers within 0.2 km of each other.
        within_km: percent of answers within 1, 25, 200, 750 and 2500 km of each other.
        median_km: between the two answers.
        comparison: of the two runs' figures.
    """

    n: int
    only_here: int
    only_published: int
    same: float
    within_km: Mapping[str, float]
    median_km: float
    comparison: Comparison

    @property
    def differing(self) -> list[str]:
        """The figures that differ by more than chance."""
        return [name for name, one in self.comparison.differences.items() if one.better is not None]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "n": self.n,
            "only_here": self.only_here,
            "only_published": self.only_published,
            "same_answer": self.same,
            "answers_within_km": dict(self.within_km),
            "answers_median_km": self.median_km,
            "within_sampling_error": not self.differing,
            "differing": self.differing,
            "comparison": self.comparison.to_dict(),
        }


def agreement(
    ours: Predictions,
    published: Predictions,
    *,
    resamples: int = 2000,
    progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Compare answers with published ones, photo by photo.

    Photos are paired by a column that both have, such as ``idx``, the number of the row in the benchmark's table.
    ``resamples`` and ``progress`` are those of :func:`~.compare.compare`.

    Raises:
        PredictionsError: no column names photos in both, none is in both, or true places differ.
    """
    column = next((name for name in ID_COLUMNS if name in ours.ids and name in published.ids), None)
    if column is None:
        raise PredictionsError(
            f"{published.name} does not name its photos in a column {', '.join(ours.ids)}: add idx, the number of each "
            "photo's row in the benchmark's table, from 0"
        )
    known = set(published.ids[column])
    rows = [row for row, name in enumerate(ours.ids[column]) if name in known]
    if not rows:
        raise PredictionsError(f"{published.name} has no photo of {ours.name}, by {column}")
    here = {name: row for row, name in enumerate(published.ids[column])}
    theirs = [here[ours.ids[column][row]] for row in rows]
    a, b = _part(published, theirs, column), _part(ours, rows, column)
    apart = haversine_km(a.predicted, b.predicted)
    return Agreement(
        n=len(rows),
        only_here=len(ours) - len(rows),
        only_published=len(published) - len(rows),
        same=100 * float(np.mean(apart <= SAME_ANSWER_KM)),
        within_km={str(t): 100 * float(np.mean(apart <= t)) for t in THRESHOLDS_KM},
        median_km=float(np.median(apart)),
        comparison=compare(a, b, resamples=resamples, progress=progress),
    )


def _part(run: Predictions, rows: Sequence[int], column: str) -> Predictions:
    return replace(
        run,
        truth=run.truth[rows],
        predicted=run.predicted[rows],
        ids={column: [run.ids[column][row] for row in rows]},
        groups=None if run.groups is None else [run.groups[row] for row in rows],
    )


def figures_agree(within_km: Mapping[str, float], n: int, published: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Compare percentages of n photos within each threshold with published ones.

    Returns:
        For each threshold ``here``, ``published``, the ``standard_error`` of a percentage of n photos and ``agrees``:
        they differ by at most three of those. Two runs on the *same* photos should differ by far less.
    """
    found = {}
    for (key, here), there in zip(within_km.items(), published, strict=True):
        share = min(max(there / 100, 1 / n), 1 - 1 / n)
        error = 100 * math.sqrt(share * (1 - share) / n)
        agrees = abs(here - there) <= _LEVEL * error
        found[key] = {"here": here, "published": there, "standard_error": error, "agrees": agrees}
    return found
