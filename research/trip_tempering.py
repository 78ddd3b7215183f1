"""``python -m research.trip_tempering docs/trips.md``: how dependent several views of one place are.

Fits the exponent of :func:`open_geoclip.search.trips.evidence_weights` on groups of validation views of two renderings,
by the log density at the true place, and measures circles and answers on groups of test views. The table is written
between the markers of the page.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from open_geoclip.data.earth import Earth
from open_geoclip.data.earth_views import Split, view_centres
from open_geoclip.evaluation.metrics import distances_km
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import destination
from open_geoclip.search.encode import EncodedBatch
from open_geoclip.search.locator import Locator
from open_geoclip.search.query import Query
from open_geoclip.search.trips import TEMPERING
from research.trip_evaluation import APART_KM, BASEMAPS, TOGETHER, rendered

__all__ = ["main", "measure"]

GROUPS, SEED = 64, 6
TEMPERINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
BEGIN, END = "<!-- research.trip_tempering -->\n", "<!-- end of tempering -->\n"


def measure(locator: Locator, split: Split, groups: int = GROUPS) -> Float64[np.ndarray, "look count tempering g 4"]:
    """Return log density at the truth, whether 50 and 90 % circles hold it, and whether the answer is within 200 km."""
    middles, most = view_centres(split, 1000)[-groups:], max(TOGETHER)
    rng = np.random.default_rng(SEED)
    km = APART_KM / 2 * np.sqrt(rng.uniform(size=(groups, most)))
    centres = destination(np.repeat(middles[:, None], most, axis=1), rng.uniform(0, 360, (groups, most)), km)
    found = np.empty((len(BASEMAPS), len(TOGETHER), len(TEMPERINGS), groups, 4))
    for look, basemap in enumerate(BASEMAPS):
        embeddings = rendered(locator, Earth(basemap), centres.reshape(-1, 2), 1000, split).view(groups, most, -1)
        for column, count in enumerate(TOGETHER):
            for row, tempering in enumerate(TEMPERINGS):
                for group, (part, truth) in enumerate(zip(embeddings, middles, strict=True)):
                    batch = EncodedBatch.from_embeddings(part[:count])
                    query = Query.from_place(batch, locator.calibration, tempering)
                    posterior = locator.posterior(query.encoded.embeddings, query.calibration)
                    answer = posterior.decode("mass", 75.0)
                    error_km = float(distances_km(truth[None], answer)[0])
                    held = error_km <= posterior.profile(answer).radius_km((0.5, 0.9))[0]
                    density = float(posterior.log_density(truth[None])[0])
                    found[look, column, row, group] = (density, *held, error_km <= 200)
    return found


def report(validation: Float64[np.ndarray, "l c t g 4"], test: Float64[np.ndarray, "l c t g 4"]) -> str:
    """Return the table of both."""
    names = [f"{look}, {split}" for split in ("validation", "test") for look in BASEMAPS]
    lines = [f"| tempering | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for row, tempering in enumerate(TEMPERINGS):
        cells = []
        for part in (*validation, *test):
            density, half, most, right = part[:, row].mean(axis=(0, 1))
            cells.append(f"{density:.2f}; {100 * half:.0f}, {100 * most:.0f}; {100 * right:.1f}")
        lines.append(f"| {tempering:g}{' (default)' if tempering == TEMPERING else ''} | {' | '.join(cells)} |")
    best = TEMPERINGS[int(validation[..., 0].mean(axis=(0, 1, 3)).argmax())]
    lines += [
        "",
        f"Log density at the true place in nats; percent of true places in 50 and 90 % circles; answers within 200 km. "
        f"{validation.shape[3]} groups of each kind (seed {SEED}), the mean of {', '.join(map(str, TOGETHER))} views "
        f"up to {APART_KM:.0f} km apart. Highest on validation views of both renderings: {best:g}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table into a page."""
    [page] = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    locator = Locator.from_pretrained("earth")
    table = report(measure(locator, "validation"), measure(locator, "test"))
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    atomic_write(page, (before + BEGIN + table + END + rest.partition(END)[2]).encode())


if __name__ == "__main__":
    main()
