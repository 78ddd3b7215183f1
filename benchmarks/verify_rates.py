"""How often ``geoclip verify`` doubts true places, and moved ones: ``python benchmarks/verify_rates.py --write``.

Each of the Earth's test views, in August and in three renderings that the model was not trained on, is held against its
true place, and against one that it was not taken at: 50, 200, 1000 or 5000 km off, in turn, on land where there is any
in that distance. Nothing was fitted on these views. What the
verdicts are made of is the command's own code; only reading files is left out, and the backbone's features of the views
are kept on disk, so that new weights or a new calibration are measured in minutes.

With ``--write`` the table goes into docs/verify.md and all figures into results/verify_rates.json.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from open_geoclip.data.earth import is_land
from open_geoclip.geo.sphere import destination
from open_geoclip.metadata.read import PhotoPlace
from open_geoclip.search.locator import Locator
from open_geoclip.training.batches import FeatureSet
from open_geoclip.verification import VERDICTS, compare
from report import put_between
from research.view_features import Imagery, earth_view_features

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "verify.md"
RESULTS = Path(__file__).parent / "results" / "verify_rates.json"

MOVED_KM = (50, 200, 1000, 5000)
SEED = 20261125
BATCH = 32
TRIES = 64  # bearings that are tried for land


def moved(lat: float, lon: float, km: float, number: int) -> tuple[float, float]:
    """Where somebody might say that a view was taken: so far off, on land if there is any."""
    bearings = np.random.default_rng([SEED, number]).uniform(0, 360, TRIES)
    places = destination(np.tile(np.array([[lat, lon]], np.float64), (TRIES, 1)), bearings, float(km))
    land = np.flatnonzero(is_land(places))
    found = places[land[0] if len(land) else 0]
    return float(found[0]), float(found[1])


def judged(locator: Locator, data: FeatureSet, first: int) -> list[tuple[str, str]]:
    """What was said, and its verdict, of a batch of views: ``true`` or how far it was moved."""
    rows = slice(first, min(first + BATCH, len(data)))
    with torch.inference_mode():
        embeddings = locator.model.image_encoder.forward_head(data.features[rows].float())
        embeddings = torch.nn.functional.normalize(embeddings, dim=1)
    posterior, answers = locator.posterior(embeddings), locator.locate_embeddings(embeddings, 1)
    found: list[tuple[str, str]] = []
    for row, answer in enumerate(answers):
        number, one = first + row, posterior[row]
        lat, lon = data.coordinates[number].tolist()
        km = MOVED_KM[number % len(MOVED_KM)]
        for said, place in (("true", (lat, lon)), (f"{km}", moved(lat, lon, km, number))):
            findings = compare(one, PhotoPlace(place[0], place[1], "exif"), replace(answer, image=f"{number}"))
            found.append((said, str(findings.verdict)))
    return found


def rates(verdicts: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Shares of the verdicts in percent, for each thing that was said of a view."""
    counts: dict[str, Counter[str]] = {said: Counter() for said in ("true", *map(str, MOVED_KM))}
    for said, verdict in verdicts:
        counts[said][verdict] += 1
    found: dict[str, dict[str, Any]] = {}
    for said, count in counts.items():
        told = count.total() - count["cannot tell"]
        doubted = count["unlikely"] + count["contradicts"]
        found[said] = {
            "views": count.total(),
            **{verdict: count[verdict] for verdict in VERDICTS},
            "doubted_percent": percent(doubted, told),
            "doubted_interval": interval(doubted, told),
            "contradicted_percent": percent(count["contradicts"], told),
            "cannot_tell_percent": percent(count["cannot tell"], count.total()),
        }
    return found


def percent(part: int, whole: int) -> float | None:
    """None of nothing."""
    return round(100 * part / whole, 2) if whole else None


def interval(part: int, whole: int) -> tuple[float, float] | None:
    """Percent between which the true share lies with 95 % (E. B. Wilson, 1927)."""
    if not whole:
        return None
    z, p = 1.959964, part / whole
    middle, reach = p + z * z / (2 * whole), z * math.sqrt(p * (1 - p) / whole + z * z / (4 * whole * whole))
    low, high = ((middle + sign * reach) / (1 + z * z / whole) for sign in (-1, 1))
    return round(100 * max(low, 0.0), 2), round(100 * min(high, 1.0), 2)


def table(found: dict[str, Any]) -> str:
    """The part of the page that is written by this command."""
    lines = [
        f"Model `{found['model']}`, {found['views']:,} test views of the Earth, by `make verify-rates`. The last",
        "column is the share of all views, the others are shares of the views that got a verdict. `doubted` is",
        "`unlikely` or `contradicts`, with a 95 % interval.",
        "",
        "| stated place | views | doubted | `contradicts` only | `cannot tell` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for said, one in found["rates"].items():
        if not one["views"]:
            continue
        name = "the true place (false alarms)" if said == "true" else f"moved by {int(said):,} km"
        contradicted = "-" if one["contradicted_percent"] is None else f"{one['contradicted_percent']:.1f} %"
        lines.append(
            f"| {name} | {one['views']:,} | {doubted(one)} | {contradicted} | {one['cannot_tell_percent']:.1f} % |"
        )
    lines += [
        "",
        "Views of other renderings, which neither the model nor its calibration has seen; share that is doubted:",
        "",
        "| views | the true place | moved by " + " | ".join(f"{km:,} km" for km in MOVED_KM) + " |",
        "| --- |" + " ---: |" * (1 + len(MOVED_KM)),
    ]
    for name, rates_of in found["renderings"].items():
        cells = [doubted(one) for one in rates_of.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def doubted(one: dict[str, Any]) -> str:
    """Share of the verdicts that doubt, with its interval, as it stands in a table."""
    if one["doubted_percent"] is None:
        return "-"
    low, high = one["doubted_interval"]
    return f"**{one['doubted_percent']:.1f} %** ({low:.1f} to {high:.1f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="earth")
    parser.add_argument("--views", type=int, default=4096, help="the first of the 4,096 test views")
    parser.add_argument("--features", type=Path, default=ROOT / "build" / "earth-model" / "features")
    parser.add_argument("--january", type=Path, default=ROOT / "build" / "others" / "january.jpg")
    parser.add_argument("--may", type=Path, default=ROOT / "build" / "others" / "may.jpg")
    parser.add_argument("--write", action="store_true", help="into docs/verify.md and benchmarks/results")
    options = parser.parse_args(arguments)
    locator = Locator.from_pretrained(options.model)
    if not locator.calibration.conformal_scores:
        parser.error(f"--model {options.model}: it is not calibrated, so that verify cannot tell anything")
    renderings: dict[str, Imagery] = {
        "August": "bluemarble",
        "January": options.january,
        "May": options.may,
        "shaded relief": "shadedrelief",
    }
    measured = {}
    with Progress(console=Console(stderr=True)) as bar:
        for name, imagery in renderings.items():
            seen = bar.add_task(f"looking at views, {name}, once", total=1)
            data = earth_view_features(options.features, "test", options.views, imagery=imagery)
            bar.update(seen, completed=1)
            verdicts: list[tuple[str, str]] = []
            task = bar.add_task(f"verifying, {name}", total=len(data))
            for first in range(0, len(data), BATCH):
                verdicts += judged(locator, data, first)
                bar.update(task, completed=len(verdicts) // 2)
            measured[name] = rates(verdicts)
    found = {"model": locator.model_name, "views": options.views, "seed": SEED, "rates": measured.pop("August")}
    found["renderings"] = measured
    print(table(found))
    if options.write:
        put_between(PAGE, "make verify-rates", table(found))
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
