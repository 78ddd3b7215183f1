"""``make bench``: the figures of merit of one set of predictions, by the released evaluation and by this package.

The released evaluation calls geopy for each photo and each of five thresholds; its own function is loaded from the
installed wheel and called as it calls it. Both sides measure on one thread, in processor time, which other programs on
the machine do not lengthen as they do wall time, and take turns. Their figures are compared. The report is Markdown on
stdout; exit status 1 when the figures differ.
"""

import argparse
import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from open_geoclip.evaluation.metrics import THRESHOLDS_KM, distances_km, summary
from open_geoclip.evaluation.predictions import read_predictions
from open_geoclip.geo.sphere import destination
from report import seconds

PHOTOS = 2997  # as many as Im2GPS3k has
ROUNDS, REPEATS = 3, 50


def _released() -> Any:
    """The released evaluation's module, without the rest of its package, which needs torchvision."""
    path = Path(str(importlib.metadata.distribution("geoclip").locate_file("geoclip"))) / "train" / "eval.py"
    spec = importlib.util.spec_from_file_location("released_eval", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _made_up() -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, "n 2"]]:
    """As many errors at each order of magnitude, from 10 m to 10,000 km."""
    rng = np.random.default_rng(0)
    truth = np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, PHOTOS))), rng.uniform(-180, 180, PHOTOS)], axis=1)
    return truth, destination(truth, rng.uniform(0, 360, PHOTOS), 10 ** rng.uniform(-2, 4, PHOTOS))


def _timed(work: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return times


def main() -> None:
    """Time both sides, compare what they found, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, help="CSV as for geoclip score; made-up ones when not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.predictions is None:
        truth, predicted = _made_up()
    else:
        run = read_predictions(options.predictions)
        truth, predicted = run.truth, run.predicted
    module, rows = _released(), range(len(truth))

    def released() -> dict[str, float]:
        found: dict[str, float] = {}
        for threshold in reversed(THRESHOLDS_KM):
            share, found["mean_km"] = module.distance_accuracy(truth, rows, threshold, predicted)
            found[str(threshold)] = 100 * share
        return found

    sides: dict[str, Callable[[], Any]] = {
        "this package, geodesic": lambda: summary(distances_km(truth, predicted, "geodesic")),
        "this package, haversine": lambda: summary(distances_km(truth, predicted, "haversine")),
    }
    times: dict[str, list[float]] = {name: [] for name in ("released", *sides)}
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        times["released"] += _timed(released, 1)
        for name, work in sides.items():
            times[name] += _timed(work, REPEATS)
    theirs, ours = released(), summary(distances_km(truth, predicted, "geodesic"))
    same = all(abs(theirs[key] - value) < 1e-9 for key, value in ours["within_km"].items())
    same = same and abs(theirs["mean_km"] - ours["mean_km"]) < 1e-6
    times_each = f"median of {ROUNDS} (released) or {ROUNDS * REPEATS}"
    print(f"{len(truth):,} predictions, processor time on one thread, {times_each}\n")
    print("| | time | times faster |\n| --- | ---: | ---: |")
    for name, taken in times.items():
        print(f"| {name} | {seconds(median(taken))} | {median(times['released']) / median(taken):,.0f} |")
    print(f"\nThe five percentages and the mean are {'the same' if same else 'NOT THE SAME'} (geodesic).")
    sys.exit(not same)


if __name__ == "__main__":
    main()
