"""Test whether one run is better than another on the same photos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int

from open_geoclip.errors import PredictionsError, SettingsError
from open_geoclip.evaluation.metrics import (
    FIGURES,
    LEVEL,
    THRESHOLDS_KM,
    Distance,
    bootstrap,
    by_figure,
    distances_km,
    figure_values,
    interval,
    summary,
)
from open_geoclip.evaluation.predictions import ID_COLUMNS, Predictions
from open_geoclip.geo.sphere import haversine_km

__all__ = ["Comparison", "Difference", "compare", "holm", "mcnemar", "paired_rows"]

SAME_TRUTH_KM = 0.1
"""Truths within this distance are the same: one of the files may be rounded to three decimals."""

_MIN_RESAMPLES = 1000  # below that no p-value can be small enough


@dataclass(frozen=True)
class Difference:
    """One figure of two runs.

    Attributes:
        a: of the first run.
        b: of the second.
        interval: [low, high], the 95 % interval of b - a.
        test: of the p-value.
        p_value: two-sided.
        p_holm: adjusted for the number of figures (Holm, 1979).
        better: "A" or "B" if the difference is significant: p_holm is at most 0.05.
        only_a: photos that A alone has within the distance; None for averages.
        only_b: photos that B alone has within the distance.
    """

    a: float
    b: float
    interval: list[float]
    test: Literal["mcnemar", "bootstrap"]
    p_value: float
    p_holm: float
    better: Literal["A", "B"] | None
    only_a: int | None = None
    only_b: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes and ``difference``, b - a."""
        return {"difference": self.b - self.a} | vars(self)


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same photos.

    Attributes:
        a: name of the first run.
        b: name of the second.
        n: number of photos.
        paired_by: the column that names photos in both, or "row".
        distance: of the errors.
        resamples: of the bootstrap.
        groups: number of groups that were resampled; None for photos.
        summary_a: figures of the first run, see :func:`~.metrics.summary`.
        summary_b: those of the second.
        differences: by the names in :data:`~.metrics.FIGURES`.
    """

    a: str
    b: str
    n: int
    paired_by: str
    distance: Distance
    resamples: int
    groups: int | None
    summary_a: dict[str, Any]
    summary_b: dict[str, Any]
    differences: dict[str, Difference]

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON; ``differences`` are arranged like the figures."""
        return {
            "n": self.n,
            "a": {"name": self.a} | self.summary_a,
            "b": {"name": self.b} | self.summary_b,
            "differences": by_figure([self.differences[name].to_dict() for name in FIGURES]),
            "paired_by": self.paired_by,
            "distance": self.distance,
            "level": LEVEL,
            "resamples": self.resamples,
            "groups": self.groups,
        }


def compare(
    a: Predictions,
    b: Predictions,
    *,
    distance: Distance = "haversine",
    resamples: int = 2000,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare two runs on the same photos.

    Shares within a distance are compared by McNemar's test, averages by a paired bootstrap. If A has groups, all are
    compared by resampling groups, as McNemar's test assumes independent photos.

    Args:
        a: the first run; both are measured from its truths.
        b: the second run; in any order if both name their photos.
        distance: see :func:`~.metrics.distances_km`.
        resamples: of the bootstrap, 1000 or more.
        progress: called with (done, total).

    Raises:
        PredictionsError: the runs are not on the same photos; says how many and which.
        SettingsError: too few resamples, or fewer than two photos or groups.
    """
    if resamples < _MIN_RESAMPLES:
        raise SettingsError(f"a comparison takes at least {_MIN_RESAMPLES:,} resamples, not {resamples}")
    paired_by, rows = paired_rows(a, b)
    km = np.stack([distances_km(a.truth, a.predicted, distance), distances_km(a.truth, b.predicted[rows], distance)])
    figures_a, figures_b = bootstrap(km, resamples, groups=a.groups, progress=progress)
    draws = figures_b - figures_a
    low_high = interval(draws)
    lone = [(int(np.sum((x <= t) & (y > t))), int(np.sum((x > t) & (y <= t)))) for t in THRESHOLDS_KM for x, y in [km]]
    exact = len(lone) if a.groups is None else 0  # figures that McNemar's test is for, the first ones
    p_values = [mcnemar(*one) for one in lone[:exact]] + [_chance(draws[:, i]) for i in range(exact, len(FIGURES))]
    p_holm = holm(p_values)
    summaries = summary(km[0]), summary(km[1])
    values = [figure_values(one) for one in summaries]
    differences = {
        name: Difference(
            a=values[0][i],
            b=values[1][i],
            interval=low_high[i],
            test="mcnemar" if i < exact else "bootstrap",
            p_value=p_values[i],
            p_holm=p_holm[i],
            better=_better(name, values[1][i] - values[0][i]) if p_holm[i] <= 1 - LEVEL / 100 else None,
            only_a=lone[i][0] if i < len(lone) else None,
            only_b=lone[i][1] if i < len(lone) else None,
        )
        for i, name in enumerate(FIGURES)
    }
    groups = None if a.groups is None else len(set(a.groups))
    return Comparison(a.name, b.name, len(a), paired_by, distance, resamples, groups, *summaries, differences)


def paired_rows(a: Predictions, b: Predictions) -> tuple[str, Int[np.ndarray, " n"]]:
    """Return the column that pairs photos (or "row"), and the row in B of each photo of A.

    It is the first of :data:`~.predictions.ID_COLUMNS` that both have; without any, runs are paired row by row.

    Raises:
        PredictionsError: a photo is on one side only, or its true place differs.
    """
    column = next((name for name in ID_COLUMNS if name in a.ids and name in b.ids), None)
    if column is None:
        if len(a) != len(b):
            raise PredictionsError(
                f"{a.name} holds {len(a):,} photos and {b.name} {len(b):,}, and no column names them in both: "
                f"give both the same photos in the same order, or a column {', '.join(ID_COLUMNS)}"
            )
        rows = np.arange(len(a))
    else:
        row_of = {name: row for row, name in enumerate(b.ids[column])}
        _refuse_missing(a, b, column)
        rows = np.array([row_of[name] for name in a.ids[column]], np.int64)
    apart = haversine_km(a.truth, b.truth[rows])
    wrong = np.flatnonzero(apart > SAME_TRUTH_KM)
    if len(wrong):
        row = int(wrong[0])
        name = f"row {row}" if column is None else f"{column} {a.ids[column][row]}"
        hint = "; if the order differs, name the photos in a column" if column is None else ""
        raise PredictionsError(
            f"the true places of {len(wrong):,} of {len(a):,} photos differ between {a.name} and {b.name}; the first "
            f"is {name}: {_place(a.truth[row])} and {_place(b.truth[rows[row]])}, {apart[row]:,.1f} km apart{hint}"
        )
    return column or "row", rows


def _refuse_missing(a: Predictions, b: Predictions, column: str) -> None:
    faults = []
    for here, there in ((a, b), (b, a)):
        known = set(there.ids[column])
        lone = [name for name in here.ids[column] if name not in known]
        if lone:
            some = ", ".join(lone[:3]) + (", ..." if len(lone) > 3 else "")
            faults.append(f"{len(lone):,} of the {len(here):,} in {here.name} are not in {there.name} ({some})")
    if faults:
        raise PredictionsError(
            f"the runs are not on the same photos, by {column}: {'; '.join(faults)}: give both an answer for each "
            "photo, or leave the photos out of both and say so"
        )


def _place(place: Float64[np.ndarray, " 2"]) -> str:
    return f"({place[0]:.5f}, {place[1]:.5f})"


def _better(name: str, difference: float) -> Literal["A", "B"]:
    less_is_better = name in ("median_km", "mean_km")
    return "B" if (difference < 0) == less_is_better else "A"


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's test in its exact form, the sign test.

    McNemar, Psychometrika 12 (1947).

    Args:
        only_a: number of photos that A alone gets right.
        only_b: number of photos that B alone gets right.
    """
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _chance(draws: Float64[np.ndarray, " resamples"]) -> float:
    """Return a two-sided p-value: the level at which the bootstrap interval just reaches zero."""
    beyond = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return min(1.0, 2 * (int(beyond) + 1) / (len(draws) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
