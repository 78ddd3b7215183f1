"""``python -m research.objectives``: training objectives compared on Earth views, three seeds, equal budgets.

All rows share features, views, model, steps and gallery; only the objective differs. Its settings are those named in
advance, none was chosen on the views that are measured. Finished runs are lines of ``objectives.jsonl``: an interrupted
command continues, also within a run. The table is made from that file alone.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console

from open_geoclip.data.earth_views import Split, even_land
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import geodesic_km
from open_geoclip.model.location_encoder import LocationSettings
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.evaluation import best_places
from open_geoclip.training.loop import train
from open_geoclip.training.settings import TrainSettings
from research.earth_model import new_model
from research.view_features import earth_view_features

RESULTS = Path("docs/experiments")
VIEWS, TEST, SEEDS = 4096, 4096, (0, 1, 2)
LOCATION = LocationSettings(sigmas=(4.0, 32.0), features=128, width=256, depth=2, output=256, projection="sphere")
PLAIN = TrainSettings(epochs=6, batch_size=256, queue_size=256, mask_km=0.0)
OBJECTIVES: dict[str, TrainSettings] = {
    "contrastive loss, as in the paper": PLAIN,
    "negatives within 25 km ignored": replace(PLAIN, mask_km=25.0),
    "positives within 50 km, 50 to 100 km ignored": replace(PLAIN, positive_km=50.0, mask_km=100.0),
    "smooth targets, 75 km": replace(PLAIN, smooth_km=(75.0,)),
    "smooth targets, 25, 75 and 225 km": replace(PLAIN, smooth_km=(25.0, 75.0, 225.0)),
    "smooth targets, 300 shrinking to 30 km": replace(PLAIN, smooth_km=(300.0,), smooth_end=0.1),
    "near negatives weighted up to twice, 500 km": replace(PLAIN, near_weight=1.0, near_weight_km=500.0),
    "SigLIP loss": replace(PLAIN, loss="siglip"),
    "half of each batch neighbours": PLAIN,
    "neighbours and smooth targets, 75 km": replace(PLAIN, smooth_km=(75.0,)),
}
NEIGHBORHOOD = 64
THRESHOLDS_KM = (25, 200, 750)

console = Console(stderr=True)


def measure(name: str, seed: int, data: FeatureSet, test: FeatureSet, folder: Path) -> dict[str, Any]:
    """Train with an objective, and return the accuracy on test views."""
    near = NEIGHBORHOOD if "neighbours" in name else 0
    torch.manual_seed(seed)
    model = new_model(data.features[:4096], (512,), LOCATION)
    training = FeatureSet(data.features, data.coordinates, near)
    train(model, training, replace(OBJECTIVES[name], seed=seed), folder, resume=True)
    places = best_places(model, test.features, torch.from_numpy(even_land(50.0)))
    km = geodesic_km(test.coordinates.numpy(), places.numpy())
    within = {str(limit): 100 * float((km <= limit).mean()) for limit in THRESHOLDS_KM}
    return {
        "name": name,
        "seed": seed,
        "views": len(data),
        "within_km": within,
        "median_km": float(sorted(km)[len(km) // 2]),
    }


def markdown(runs: list[dict[str, Any]]) -> str:
    """Return the table: means over the seeds, standard deviations, and the paired difference to the first row."""
    lines = [
        "# Training objectives on Earth views",
        "",
        "`python -m research.objectives` writes this page. See the [summary](../experiments.md#training-objectives).",
        "",
        f"{runs[0]['views']:,} training views, {PLAIN.epochs} epochs, batch {PLAIN.batch_size}, queue "
        f"{PLAIN.queue_size}, {len(SEEDS)} seeds; {TEST:,} test views, gallery 50 km apart. Mean ± standard deviation "
        "over the seeds; the last column is the difference to the first row with the same seed.",
        "",
        "| objective | within 25 km, % | within 200 km, % | within 750 km, % | median km | difference within 200 km |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = {run["seed"]: run for run in runs if run["name"] == next(iter(OBJECTIVES))}
    for name in OBJECTIVES:
        mine = [run for run in runs if run["name"] == name and run["seed"] in first]
        if not mine:
            continue
        columns = [[run["within_km"][str(limit)] for run in mine] for limit in THRESHOLDS_KM]
        columns.append([run["median_km"] for run in mine])
        columns.append([run["within_km"]["200"] - first[run["seed"]]["within_km"]["200"] for run in mine])
        cells = [
            f"{mean(c):{'+' if c is columns[-1] else ''}.1f} ± {stdev(c) if len(c) > 1 else 0:.1f}" for c in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is not done yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/earth-model"), help="features and checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of objectives.jsonl and objectives.md")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds to train, of those in the table")
    parser.add_argument("--views", type=int, default=VIEWS, help="training views")
    options = parser.parse_args()

    def features(split: Split, n: int) -> FeatureSet:
        def progress(done: int, total: int) -> None:
            console.print(f"features of {split} views: {done:,} of {total:,}")

        return earth_view_features(options.work / "features", split, n, progress=progress)

    data, test = features("train", options.views), features("test", TEST)
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "objectives.jsonl"
    for seed in options.seeds:
        for name in OBJECTIVES:
            runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            if any((run["name"], run["seed"], run["views"]) == (name, seed, options.views) for run in runs):
                continue
            folder = options.work / "objectives" / f"{list(OBJECTIVES).index(name)}-{seed}"
            found = measure(name, seed, data, test, folder)
            console.print(json.dumps(found))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            shutil.rmtree(folder)
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    table = markdown([run for run in runs if run["views"] == options.views])
    atomic_write(options.results / "objectives.md", table)
    print(table)


if __name__ == "__main__":
    main()
