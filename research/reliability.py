"""``python -m research.reliability PREDICTIONS``: how often answers of the released weights were right, by their place.

Fits :class:`open_geoclip.Reliability` on published per-photo answers of Im2GPS3k, measures it on places that it was
not fitted on, and writes the coefficients beside the weights and docs/reliability.md. Needs ``pip install
'open-geoclip[features]'`` and the released gallery.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import brentq
from scipy.special import expit, ndtri
from scipy.stats import rankdata

from open_geoclip.evaluation.metrics import THRESHOLDS_KM, distances_km
from open_geoclip.evaluation.predictions import Predictions, read_predictions
from open_geoclip.files import atomic_write
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.reliability import Reliability
from open_geoclip.weights.folders import find_wheel_files, folder
from open_geoclip.weights.load import load_release
from open_geoclip.weights.registry import GALLERY_FILE

__all__ = ["assign_folds", "cross_validate", "fit", "main", "page"]

RADII_KM = (1.0, 5.0, 25.0, 250.0, 1000.0)
YFCC4K = (0.0957, 0.1925, 0.3265, 0.5496, 0.7390)
"""Published shares of the released weights on YFCC4k within 1, 25, 200, 750 and 2500 km."""

_ROOT = Path(__file__).resolve().parents[1]
_COEFFICIENTS = _ROOT / "src/open_geoclip/weights/geoclip/reliability.json"
_PAGE = _ROOT / "docs/reliability.md"
_PENALTY = 0.3  # inverse strength of the ridge, for standardised features; from 0.1 to 3 the results are the same
_FOLDS, _RESAMPLES, _FIFTHS, _TENTHS = 10, 1000, 5, 10
_BLOCKS_DEG = (10, 20, 30)  # the page has the fifths of the middle one
_SEEDS = 3
_CONFIDENCE = 0.9  # of the one-sided bound of the highest tenth
_GALLERY_STEP = 20  # one in so many places stands for the answers to photos of any kind

_MEASURED_ON = (
    "2,997 published answers to Im2GPS3k, one crop; for photos of any kind shifted to the published shares of YFCC4k"
)


class Fitted:
    """A continuation-ratio model: coefficients and the highest shares.

    Args:
        log_counts: of each answer.
        is_right: whether it was right within each distance.
    """

    def __init__(self, log_counts: Float64[np.ndarray, "n r"], is_right: Bool[np.ndarray, "n 5"]) -> None:
        from sklearn.linear_model import LogisticRegression

        mean, std = log_counts.mean(axis=0), log_counts.std(axis=0)
        self.coefficients = np.empty((len(THRESHOLDS_KM), log_counts.shape[1] + 1))
        is_within_next = np.ones(len(log_counts), bool)
        for k in reversed(range(len(THRESHOLDS_KM))):
            features = (log_counts[is_within_next] - mean) / std
            model = LogisticRegression(C=_PENALTY, max_iter=500).fit(features, is_right[is_within_next, k])
            slopes = model.coef_[0] / std
            self.coefficients[k] = model.intercept_[0] - slopes @ mean, *slopes
            is_within_next = is_right[:, k]
        self.coefficients = self.coefficients.round(6)
        size = len(log_counts) / _TENTHS
        best = _group_means(Reliability.chain(self.logits(log_counts)), is_right, _TENTHS).max(axis=0)
        self.highest = _lower_bound(best, size)

    def logits(self, log_counts: Float64[np.ndarray, "n r"]) -> Float64[np.ndarray, "n 5"]:
        """Return the logits of each distance among answers within the next larger one."""
        return self.coefficients[:, 0] + log_counts @ self.coefficients[:, 1:].T

    def within(self, log_counts: Float64[np.ndarray, "n r"]) -> Float64[np.ndarray, "n 5"]:
        """Return the shares of answers that were right within each distance."""
        return np.minimum(Reliability.chain(self.logits(log_counts)), self.highest)


def fit(gallery: Gallery, answers: Predictions) -> dict[str, Any]:
    """Return the arguments of :class:`Reliability` beside the gallery, fitted on all answers, JSON-ready."""
    log_counts, is_right = _data(gallery, answers)
    fitted = Fitted(log_counts, is_right)
    places = np.repeat(gallery.coordinates, gallery.weights.astype(int), axis=0)[::_GALLERY_STEP].astype(np.float64)
    logits = fitted.logits(_bare(gallery).log_counts(places))
    shifts, highest = _shift(logits, YFCC4K)
    return {
        "radii_km": RADII_KM,
        "coefficients": fitted.coefficients.tolist(),
        "shifts": {"recognisable": [0.0] * len(THRESHOLDS_KM), "any": shifts.round(4).tolist()},
        "highest": {"recognisable": fitted.highest.round(4).tolist(), "any": highest.round(4).tolist()},
        "measured_on": _MEASURED_ON,
    }


def _bare(gallery: Gallery) -> Reliability:
    """Return what counts places, without coefficients."""
    return Reliability(gallery, RADII_KM, (), {}, {}, "")


def _data(gallery: Gallery, answers: Predictions) -> tuple[Float64[np.ndarray, "n r"], Bool[np.ndarray, "n 5"]]:
    km = distances_km(answers.truth, answers.predicted)
    return _bare(gallery).log_counts(answers.predicted), km[:, None] <= np.array(THRESHOLDS_KM)


def _shift(
    logits: Float64[np.ndarray, "n 5"], shares: Sequence[float]
) -> tuple[Float64[np.ndarray, "5"], Float64[np.ndarray, "5"]]:
    """Return shifts of the logits by which mean shares become those given, and the means of the highest fifths."""
    shifts, highest = np.zeros(len(shares)), np.ones(len(shares))
    larger = np.ones(len(logits))
    for k in reversed(range(len(shares))):

        def within(shift: float, k: int = k, larger: Any = larger) -> tuple[Any, float]:
            raw = larger * expit(logits[:, k] + shift)
            return raw, float(np.sort(raw)[-len(raw) // _FIFTHS :].mean())

        def excess(shift: float, k: int = k) -> float:
            return float(np.minimum(*within(shift)).mean() - shares[k])

        shifts[k] = brentq(excess, -8, 8)
        larger, highest[k] = within(shifts[k])
    return shifts, highest


def _lower_bound(share: Float64[np.ndarray, "5"], n: float) -> Float64[np.ndarray, "5"]:
    """Return Wilson's one-sided lower bounds of shares of n."""
    z = float(ndtri(_CONFIDENCE))
    middle = share + z * z / (2 * n)
    return (middle - z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def _group_means(order: Float64[np.ndarray, "n 5"], values: np.ndarray, groups: int) -> Float64[np.ndarray, "g 5"]:
    """Return means of values in groups of equal size by predicted share, lowest first, for each distance."""
    parts = [np.array_split(np.argsort(column, kind="stable"), groups) for column in order.T]
    return np.array([[values[rows, k].mean() for rows in parts[k]] for k in range(len(parts))]).T


# --- places that it was not fitted on -------------------------------------------------------------


def _blocks(coordinates: Float64[np.ndarray, "n 2"], size_deg: int) -> Int64[np.ndarray, " n"]:
    """Return the block of each place: so wide, and as high as keeps areas equal."""
    bands = 180 // size_deg
    band = ((np.sin(np.radians(coordinates[:, 0])) + 1) / 2 * bands).astype(np.int64).clip(max=bands - 1)
    return band * 1000 + np.floor((coordinates[:, 1] + 180) % 360 / size_deg).astype(np.int64)


def assign_folds(blocks: Int64[np.ndarray, " n"], seed: int) -> Int64[np.ndarray, " n"]:
    """Assign whole blocks to folds of about as many answers: the largest first, each to the smallest fold."""
    _, block, counts = np.unique(blocks, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(counts))
    sizes, folds = np.zeros(_FOLDS), np.empty(len(counts), np.int64)
    for at in order[np.argsort(-counts[order], kind="stable")]:
        folds[at] = smallest = int(sizes.argmin())
        sizes[smallest] += counts[at]
    return folds[block]


def cross_validate(
    log_counts: Float64[np.ndarray, "n r"],
    is_right: Bool[np.ndarray, "n 5"],
    blocks: Int64[np.ndarray, " n"],
    seed: int = 0,
) -> Float64[np.ndarray, "n 5"]:
    """Return shares predicted for each answer by a model that was fitted on answers in other blocks.

    Answers elsewhere to photos of a held-out block stay: all of them are wrong, and without them the rest would be
    right too often.
    """
    folds = assign_folds(blocks, seed)
    within = np.empty(is_right.shape)
    for fold in range(_FOLDS):
        rows = folds == fold
        within[rows] = Fitted(log_counts[~rows], is_right[~rows]).within(log_counts[rows])
    return within


def _roc_area(score: Float64[np.ndarray, " n"], is_right: Bool[np.ndarray, " n"]) -> float:
    right = int(is_right.sum())
    above = rankdata(score)[is_right].sum() - right * (right + 1) / 2
    return float(above / (right * (len(score) - right)))


def _intervals(statistic: Any, blocks: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "2 ..."]:
    """Return 95 % intervals of a statistic of rows, over resamples of whole blocks."""
    rng, rows = np.random.default_rng(0), [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    drawn = (np.concatenate([rows[at] for at in rng.integers(0, len(rows), len(rows))]) for _ in range(_RESAMPLES))
    return np.percentile([statistic(sample) for sample in drawn], [2.5, 97.5], axis=0)


# --- the page -------------------------------------------------------------------------------------


def page(gallery: Gallery, answers: Predictions, model: Reliability) -> Iterator[str]:
    """Yield the lines of docs/reliability.md."""
    log_counts, is_right = _data(gallery, answers)
    size_deg = _BLOCKS_DEG[len(_BLOCKS_DEG) // 2]
    blocks = _blocks(answers.predicted, size_deg)
    within = cross_validate(log_counts, is_right, blocks)
    shares = is_right.mean(axis=0)
    yield from _METHOD.splitlines()
    yield "## Ranking"
    yield ""
    count = len(np.unique(blocks))
    yield f"Each of {len(answers):,} answers is predicted by a model fitted on answers at other places: {_FOLDS} folds"
    yield f"of {count} blocks, {size_deg}° wide. In brackets: 95 % intervals from {_RESAMPLES:,} resamples of blocks."
    yield ""
    yield "| within | right | ROC area | Brier score | of the overall share alone | highest share stated |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for k, km in enumerate(THRESHOLDS_KM):

        def statistics(rows: Int64[np.ndarray, " m"], k: int = k) -> list[float]:
            right, stated = is_right[rows, k], within[rows, k]
            constant = float(np.mean((right - shares[k]) ** 2))
            return [100 * right.mean(), _roc_area(stated, right), float(np.mean((right - stated) ** 2)), constant]

        low, high = _intervals(statistics, blocks)
        right, area, brier, constant = statistics(np.arange(len(answers)))
        yield (
            f"| {km:,} km | {right:.1f} % [{low[0]:.1f}, {high[0]:.1f}] | {area:.3f} [{low[1]:.3f}, {high[1]:.3f}] "
            f"| {brier:.3f} [{low[2]:.3f}, {high[2]:.3f}] | {constant:.3f} "
            f"| {100 * model.highest['recognisable'][k]:.0f} % |"
        )
    yield ""
    yield "The Brier score is the mean squared difference between share and outcome; lower is better."
    yield ""
    yield "## Calibration"
    yield ""
    yield "Answers in fifths of the stated share, lowest first: percent stated / percent right [95 % interval]."
    yield ""
    yield "| within | 1st fifth | 2nd | 3rd | 4th | 5th |"
    yield "| --- | --- | --- | --- | --- | --- |"
    stated, measured = (100 * _group_means(within, values, _FIFTHS) for values in (within, is_right))
    groups = [np.array_split(np.argsort(column, kind="stable"), _FIFTHS) for column in within.T]
    for k, km in enumerate(THRESHOLDS_KM):
        cells = []
        for fifth, rows in enumerate(groups[k]):

            def share(sample: Int64[np.ndarray, " m"], rows: Any = rows, k: int = k) -> float:
                return 100 * float(is_right[rows[sample], k].mean())

            low, high = _intervals(share, blocks[rows])
            cells.append(f"{stated[fifth, k]:.1f} / {measured[fifth, k]:.1f} [{low:.1f}, {high:.1f}]")
        yield f"| {km:,} km | {' | '.join(cells)} |"
    yield ""
    yield f"Largest difference of any fifth in points, mean of {_SEEDS} assignments of blocks to folds:"
    yield ""
    yield "| blocks | 1 km | 25 km | 200 km | 750 km | 2500 km |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for size in _BLOCKS_DEG:
        worst = []
        for seed in range(_SEEDS):
            predicted = cross_validate(log_counts, is_right, _blocks(answers.predicted, size), seed)
            off = [_group_means(predicted, values, _FIFTHS) for values in (predicted, is_right)]
            worst.append(100 * np.abs(off[0] - off[1]).max(axis=0))
        yield f"| {size}° | {' | '.join(f'{points:.1f}' for points in np.mean(worst, axis=0))} |"
    yield ""
    yield "## Radii"
    yield ""
    yield "Answers in fifths of the radius, predicted from other places: its median, and percent whose truth it held."
    yield ""
    yield "| probability | all | 1st fifth | 2nd | 3rd | 4th | 5th |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    distance_km = distances_km(answers.truth, answers.predicted)
    for level in (0.5, 0.9):
        radius = Reliability.invert(within, [level])[:, 0]
        fifths = np.array_split(np.argsort(radius, kind="stable"), _FIFTHS)
        held = [f"{100 * np.mean(distance_km <= radius):.1f}"]
        held += [
            f"{np.median(radius[rows]):,.0f} km: {100 * np.mean((distance_km <= radius)[rows]):.1f}" for rows in fifths
        ]
        yield f"| {level:.0%} | {' | '.join(held)} |"
    yield ""
    yield "## Photos of any kind"
    yield ""
    yield "Means of what is stated, in percent, for fifths of the places of the gallery. How the published shares are"
    yield "spread over places is not measured: the fifths follow from the shift alone."
    yield ""
    yield "| within | YFCC4k, published | 1st fifth | 2nd | 3rd | 4th | 5th |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    places = np.repeat(gallery.coordinates, gallery.weights.astype(int), axis=0)[::_GALLERY_STEP].astype(np.float64)
    general = model.within_km(places, photos="any")
    fifths_of_any = 100 * _group_means(general, general, _FIFTHS)
    for k, km in enumerate(THRESHOLDS_KM):
        parts = " | ".join(f"{value:.1f}" for value in fifths_of_any[:, k])
        yield f"| {km:,} km | {100 * YFCC4K[k]:.2f} | {parts} |"


_METHOD = """\
# Reliability of the released weights

The released weights `geoclip` have no calibration, but the place of an answer tells how far it can be trusted: where
the gallery, a sample of the training photos, has many places, answers were right far more often. This page and the
coefficients are written by `python -m research.reliability PREDICTIONS`, from published answers to the 2,997 photos of
Im2GPS3k (`true_lat`, `true_lon`, `pred_lat`, `pred_lon`; one crop).

**What is stated.** `reliability` of an answer, and `open_geoclip.Reliability`: the share of answers at such places that
were right within 1, 25, 200, 750 and 2500 km, and the radii that held the truth for 50 and 90 %. Each is a range, from
photos of any kind to photos chosen for recognisable places, as in Im2GPS3k. It depends on the place of the answer, not
on the photo: it is the rate of past answers, and no evidence that one answer is right.

**Model.** A continuation-ratio model: five logistic regressions on log(1 + number of gallery places within 1, 5, 25,
250 and 1000 km of the answer), one for answers within 2500 km of the truth, one for those of them within 750 km, and so
on. Shares are products, so they increase with the distance at every place. It has 30 numbers and a ridge penalty. No
share is above the lower bound (one-sided, 90 %) of what was measured in the highest tenth.

**Photos of any kind.** Of YFCC4k only the shares of all photos are published. The intercepts are shifted until the
means over the places of the gallery, which are a sample of Flickr as YFCC4k is, equal them.

**Where it is absent.** Other weights or galleries, areas, texts, several photos of one place, trips, another decoding
or prior, refinement, and wherever a calibration of the model is in use. With ten crops the same shares are stated; the
paper's are 1 to 3 points higher than those of one crop.

"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, measure and write."""
    parser = argparse.ArgumentParser(prog="python -m research.reliability", description="Fit and measure reliability.")
    parser.add_argument("predictions", type=Path, help="true_lat, true_lon, pred_lat, pred_lon of Im2GPS3k")
    parser.add_argument("--coefficients", type=Path, default=_COEFFICIENTS)
    parser.add_argument("--page", type=Path, default=_PAGE)
    options = parser.parse_args(arguments)
    answers, release = read_predictions(options.predictions), load_release("geoclip")
    gallery = Gallery.from_file((find_wheel_files(folder("geoclip")) or {})[GALLERY_FILE])
    model = fit(gallery, answers)
    content = {
        "card": {
            "measured_on": "Im2GPS3k, 2,997 photos, published answers of the released weights, one crop",
            "source": "OliverGrainge/privloc-locability, results/analyse, Apache-2.0",
            "any_kind": "intercepts shifted to the published shares of YFCC4k",
            "command": "python -m research.reliability PREDICTIONS",
        },
        "weights_sha256": release.fingerprint,
        "gallery_sha256": gallery.fingerprint,
        "model": model,
    }
    atomic_write(options.coefficients, json.dumps(content, indent=1) + "\n")
    text = "\n".join(page(gallery, answers, Reliability(gallery, **model))) + "\n"
    atomic_write(options.page, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
