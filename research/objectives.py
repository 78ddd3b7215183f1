"""``python -m research.objectives``: training objectives compared on Earth views, three seeds, equal budgets.

All rows share features, views, image head, steps and gallery; what differs is the objective, or the location encoder in
the rows that say so. Settings were named in advance. Training views are of all seasons and weathers; whether a row
helps is decided on validation views, and the test views, an unseen rendering and unseen months are measured beside
them. Finished runs are lines of ``objectives.jsonl``: an interrupted command continues, also within a run. The table is
made from that file alone.
"""

import argparse
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn

from open_geoclip.data.earth_views import Split, even_land
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import geodesic_km
from open_geoclip.model.encodings import ENCODINGS, Encoding, FourierFeatures
from open_geoclip.model.location_encoder import LocationSettings
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.evaluation import best_places
from open_geoclip.training.loop import train
from open_geoclip.training.settings import TrainSettings
from research.earth_model import new_model
from research.view_features import Imagery, earth_view_features

RESULTS = Path("docs/experiments")
FIRST = 131_072  # training views before this are those of the embedded model's first stage
VIEWS, TEST, SEEDS = 32_768, 4096, (0, 1, 2)
THRESHOLDS_KM = (25, 200, 750)
TWO_SCALES = LocationSettings(sigmas=(4.0, 32.0), features=128, width=256, depth=2, output=256, projection="sphere")
SIX_SCALES = replace(TWO_SCALES, sigmas=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0))


class ScaleAttention(Encoding):
    """Fourier features of each sigma as a token, one transformer layer over the tokens, and their mean.

    The published encoder sums networks that know nothing of each other; here a fine resolution can be read
    depending on what the coarse ones say. All resolutions are one level. The layer normalises before attention and
    before its network (Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020).
    """

    settings_used = ("sigmas", "features", "projection")

    def __init__(self, settings: LocationSettings, level: int) -> None:
        super().__init__(settings, level)
        self.size = width = settings.width
        self.scales = nn.ModuleList(FourierFeatures(settings, i) for i in range(len(settings.sigmas)))
        self.tokens = nn.ModuleList(nn.Linear(2 * settings.features, width) for _ in settings.sigmas)
        self.layer = nn.TransformerEncoderLayer(
            width, math.gcd(width, 8), 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        """Return the mean of the tokens."""
        parts = zip(self.scales, self.tokens, strict=True)
        tokens = torch.stack([token(scale(coordinates).float()) for scale, token in parts], dim=1)
        return self.layer(tokens).mean(dim=1)


ENCODINGS["attention"] = ScaleAttention


@dataclass(frozen=True)
class Trial:
    """What a row trains.

    Attributes:
        settings: the objective.
        location: the location encoder.
        neighborhood: see :class:`FeatureSet`.
    """

    settings: TrainSettings
    location: LocationSettings = TWO_SCALES
    neighborhood: int = 0


PLAIN = TrainSettings(epochs=8, mask_km=0.0)
SHRINKING = replace(PLAIN, smooth_km=(300.0,), smooth_end=0.1)
TRIALS = {
    "contrastive loss, as in the paper": Trial(PLAIN),
    "negatives within 25 km ignored": Trial(replace(PLAIN, mask_km=25.0)),
    "positives within 50 km, 50 to 100 km ignored": Trial(replace(PLAIN, positive_km=50.0, mask_km=100.0)),
    "smooth targets, 75 km": Trial(replace(PLAIN, smooth_km=(75.0,))),
    "smooth targets, 25, 75 and 225 km": Trial(replace(PLAIN, smooth_km=(25.0, 75.0, 225.0))),
    "smooth targets, 300 shrinking to 30 km": Trial(SHRINKING),
    "4 nearby places": Trial(replace(PLAIN, nearby_places=4)),
    "4 nearby places and smooth targets, 75 km": Trial(replace(PLAIN, nearby_places=4, smooth_km=(75.0,))),
    "near negatives weighted up to twice, 500 km": Trial(replace(PLAIN, near_weight=1.0, near_weight_km=500.0)),
    "SigLIP loss": Trial(replace(PLAIN, loss="siglip")),
    "half of each batch neighbours": Trial(PLAIN, neighborhood=64),
    "neighbours and smooth targets, 300 to 30 km": Trial(SHRINKING, neighborhood=64),
    "six scales, summed": Trial(PLAIN, SIX_SCALES),
    "six scales, attention": Trial(PLAIN, replace(SIX_SCALES, encoding="attention")),
    "six scales, attention, smooth targets, 300 to 30 km": Trial(SHRINKING, replace(SIX_SCALES, encoding="attention")),
}

console = Console(stderr=True)


def measure(
    name: str, seed: int, data: FeatureSet, measured: dict[str, FeatureSet], gallery: torch.Tensor, folder: Path
) -> dict[str, Any]:
    """Train a row with a seed, and return its accuracy on each set of views."""
    trial = TRIALS[name]
    torch.manual_seed(seed)
    model = new_model(data.features[:4096], (512,), trial.location)
    training = FeatureSet(data.features, data.coordinates, trial.neighborhood)
    train(model, training, replace(trial.settings, seed=seed), folder, resume=True)
    found: dict[str, Any] = {"name": name, "seed": seed, "views": len(data)}
    for views, asked in measured.items():
        places = best_places(model, asked.features, gallery)
        km = geodesic_km(asked.coordinates.numpy(), places.numpy())
        within = {str(limit): round(100 * float((km <= limit).mean()), 3) for limit in THRESHOLDS_KM}
        found[views] = {"within_km": within, "median_km": round(float(np.median(km)), 2)}
    return found


def markdown(runs: list[dict[str, Any]]) -> str:
    """Return a table for each set of views: means over the seeds, and paired differences to the first row."""
    lines = [
        "# Training objectives on Earth views",
        "",
        "`python -m research.objectives` writes this page. See the [summary](../experiments.md#training-objectives).",
        "",
        f"{runs[0]['views']:,} training views in all weathers, {PLAIN.epochs} epochs, batch {PLAIN.batch_size}, queue "
        f"{PLAIN.queue_size}; {TEST:,} views measured in each set, gallery 50 km apart. Mean ± standard deviation over "
        "the seeds, if there are several; the last columns are the difference to the first row with the same seed, in "
        "points within 25 and 200 km.",
    ]
    first = {run["seed"]: run for run in runs if run["name"] == next(iter(TRIALS))}
    for views in [key for key in runs[0] if key not in ("name", "seed", "views")]:
        lines += [
            "",
            f"## {views}",
            "",
            "| objective | seeds | 25 km, % | 200 km, % | 750 km, % | median km | gain, 25 km | gain, 200 km |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name in TRIALS:
            mine = [run for run in runs if run["name"] == name and run["seed"] in first]
            if not mine:
                continue
            columns = [[run[views]["within_km"][str(limit)] for run in mine] for limit in THRESHOLDS_KM]
            columns.append([run[views]["median_km"] for run in mine])
            cells = [_mean(column) for column in columns]
            for limit in ("25", "200"):
                gains = [run[views]["within_km"][limit] - first[run["seed"]][views]["within_km"][limit] for run in mine]
                cells.append(_mean(gains, "+"))
            lines.append(f"| {name} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(values: list[float], sign: str = "") -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.1f}{spread}"


def main() -> None:
    """Train what is not done yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/earth-model"), help="features and checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of objectives.jsonl and objectives.md")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds to train, of those in the table")
    parser.add_argument("--views", type=int, default=VIEWS, help="training views")
    parser.add_argument(
        "--other", nargs=2, action="append", default=[], metavar=("NAME", "FILE"), help="an image of the whole Earth"
    )
    options = parser.parse_args()

    def features(split: Split, n: int, imagery: Imagery = "bluemarble", first: int = 0) -> FeatureSet:
        def progress(done: int, total: int) -> None:
            console.print(f"features of {split} views, {imagery}: {done:,} of {total:,}")

        folder = options.work / "features"
        return earth_view_features(folder, split, n, imagery=imagery, first=first, progress=progress)

    data = features("train", FIRST + options.views, "varied", first=FIRST)
    measured = {
        "Validation views": features("validation", TEST),
        "Validation views in all weathers": features("validation", TEST, "varied"),
        "Test views": features("test", TEST),
        "Test views, shaded relief": features("test", TEST, "shadedrelief"),
    } | {f"Test views, {name}": features("test", TEST, Path(file)) for name, file in options.other}
    gallery = torch.from_numpy(even_land(50.0))
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "objectives.jsonl"
    for seed in options.seeds:
        for name in TRIALS:
            runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            if any((run["name"], run["seed"], run["views"]) == (name, seed, options.views) for run in runs):
                continue
            folder = options.work / "objectives" / f"{list(TRIALS).index(name)}-{seed}"
            found = measure(name, seed, data, measured, gallery, folder)
            console.print(json.dumps(found))
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            shutil.rmtree(folder)
            runs = [json.loads(line) for line in path.read_text().splitlines()]
            table = markdown([run for run in runs if run["views"] == options.views])
            atomic_write(options.results / "objectives.md", table)


if __name__ == "__main__":
    main()
