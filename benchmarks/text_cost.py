"""What the text side costs images: the same training with it and without it, on the same views.

With it, the head reads what an image shares with sentences beside its own features, and a quarter of the rows are
trained without the latter, half of these from a caption. Without it, the head reads the features alone. Both start new,
are trained as a cycle of the embedded model on all views of its second stage, at a rate of 1e-3, and are measured on
validation views: the gallery's best place. Intervals are of the difference over views, each measured with both. The
table goes to docs/text.md with ``--write``.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from open_geoclip.data.earth_views import even_land
from open_geoclip.evaluation.metrics import THRESHOLDS_KM, bootstrap, interval
from open_geoclip.geo.sphere import geodesic_km
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.evaluation import best_places
from open_geoclip.training.loop import Callbacks, train
from open_geoclip.weights.load import load_release
from report import put_between
from research.alignment import AlignedEncoder
from research.earth_model import (
    FURTHER,
    LOCATION,
    SPACING_KM,
    VIEWS,
    WIDTHS,
    Views,
    new_model,
)

RESAMPLES = 2000


def distances(
    seed: int, epochs: int, data: FeatureSet, captioned: FeatureSet, asked: Sequence[FeatureSet], folder: Path
) -> Float64[np.ndarray, "2 sets n"]:
    """Kilometres between the best place of each view and its own, with the text side and without."""
    gallery = torch.from_numpy(np.round(even_land(SPACING_KM), 3))
    found = []
    for with_text in (True, False):
        torch.manual_seed(seed)
        if with_text:
            projections = AlignedEncoder.unfolded(load_release("earth").tensors, data.features[:8192]).projections
            model = GeoCLIP(AlignedEncoder(WIDTHS, projections), LocationEncoder(LOCATION))
        else:
            model = new_model(data.features[:8192], WIDTHS[1:-1], LOCATION)
        settings = replace(FURTHER, epochs=epochs, learning_rate=1e-3, seed=seed)
        run = folder / f"text-cost-{'with' if with_text else 'without'}-{seed}"
        train(model, captioned if with_text else data, settings, run, callbacks=Callbacks(epoch=print), resume=True)
        places = [best_places(model, views.features, gallery).numpy() for views in asked]
        found.append(
            [geodesic_km(views.coordinates.numpy(), where) for views, where in zip(asked, places, strict=True)]
        )
    return np.array(found)


def rows(name: str, km: Float64[np.ndarray, "seeds 2 n"]) -> list[str]:
    """Lines of the table: both trainings, and their difference with its interval over the views."""
    right = (km[..., None] <= np.array(THRESHOLDS_KM)).mean(axis=(0, 2)) * 100  # with or without, threshold
    lines = [
        f"| {name}, {kind} | " + " | ".join(f"{share:.1f}" for share in shares) + " |"
        for kind, shares in zip(("with text", "without text"), right, strict=True)
    ]
    drawn = np.array([bootstrap(pair, RESAMPLES) for pair in km]).mean(axis=0)[..., : len(THRESHOLDS_KM)]
    gaps = zip(right[0] - right[1], interval(drawn[0] - drawn[1]), strict=True)
    return [
        *lines,
        "| difference | " + " | ".join(f"{gap:+.1f} ({low:+.1f} to {high:+.1f})" for gap, (low, high) in gaps) + " |",
    ]


def main() -> None:
    """Train both for each seed, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/earth-model"), help="features and checkpoints")
    parser.add_argument("--views", type=int, default=VIEWS)
    parser.add_argument("--epochs", type=int, default=FURTHER.epochs)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--write", type=Path, help="docs/text.md, to put the table into")
    options = parser.parse_args()
    views = Views(options.work / "features")
    captioned, _ = views.captioned(1, options.views)
    data = views.stage(1, options.views)
    asked = {
        "as they are": views.features("validation", 4096),
        "in all weathers": views.features("validation", 4096, "varied"),
    }
    sets = list(asked.values())
    km = np.array(
        [distances(seed, options.epochs, data, captioned, sets, options.work) for seed in range(options.seeds)]
    )  # seed, with or without, set, view
    seeds = "1 seed" if options.seeds == 1 else f"{options.seeds} seeds"
    training = f"{options.views:,} views, {options.epochs} epochs, {seeds}"
    lines = [
        f"| {training} | " + " | ".join(f"{limit} km" for limit in THRESHOLDS_KM) + " |",
        "| --- |" + " --- |" * len(THRESHOLDS_KM),
    ]
    for number, name in enumerate(asked):
        lines += rows(name, km[:, :, number])
    table = "\n".join(lines)
    print(table)
    if options.write is not None:
        put_between(options.write, "make text-cost", table)


if __name__ == "__main__":
    main()
