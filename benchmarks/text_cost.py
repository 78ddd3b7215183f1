"""What the text side costs images: the same small training with it and without it, on the same views.

With it, the head reads what an image shares with sentences beside its own features, and a quarter of the rows are
trained without the latter, half of these from a caption. Without it, the head reads the features alone. Both start new,
with the embedded model's settings, and are measured on validation views: the gallery's best place. The table goes to
docs/text.md with ``--write``.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from open_geoclip.data.earth_views import even_land
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.evaluation import best_places
from open_geoclip.training.loop import Callbacks, train
from open_geoclip.weights.load import load_release
from report import put_between
from research.alignment import AlignedEncoder
from research.earth_model import (
    LOCATION,
    SETTINGS,
    SPACING_KM,
    VIEWS,
    WIDTHS,
    Views,
    measured,
    new_model,
)

THRESHOLDS = ("25", "200", "750", "2500")


def figures(
    seed: int, epochs: int, data: FeatureSet, captioned: FeatureSet, validation: FeatureSet
) -> list[list[float]]:
    """Percent within each distance, with the text side and without."""
    gallery = torch.from_numpy(np.round(even_land(SPACING_KM), 3))
    found = []
    for with_text in (True, False):
        torch.manual_seed(seed)
        if with_text:
            projections = AlignedEncoder.unfolded(load_release("earth").tensors, data.features[:8192]).projections
            model = GeoCLIP(AlignedEncoder(WIDTHS, projections), LocationEncoder(LOCATION))
        else:
            model = new_model(data.features[:8192], WIDTHS[1:-1], LOCATION)
        settings = replace(SETTINGS, epochs=epochs, seed=seed)
        with TemporaryDirectory() as folder:
            train(model, captioned if with_text else data, settings, Path(folder), callbacks=Callbacks(epoch=print))
        shares = measured(best_places(model, validation.features, gallery), validation)["within_km"]
        found.append([shares[threshold] for threshold in THRESHOLDS])
        print(seed, "with" if with_text else "without", found[-1], flush=True)
    return found


def main() -> None:
    """Train both for each seed, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, default=Path("build/earth-model/features"))
    parser.add_argument("--views", type=int, default=16_384)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", type=Path, help="docs/text.md, to put the table into")
    options = parser.parse_args()
    views, last = Views(options.features), VIEWS + options.views
    data = views.features("train", last, "varied", first=VIEWS)
    captioned, _ = views.captioned(data, last, 1, first=VIEWS)
    validation = views.features("validation", 4096)
    runs = np.array(
        [figures(seed, options.epochs, data, captioned, validation) for seed in range(options.seeds)]
    )  # seed, with or without, threshold
    training = f"{options.views:,} varied views, {options.epochs} epochs, {options.seeds} seeds"
    lines = [f"| {training} | 25 km | 200 km | 750 km | 2500 km |", "| --- | --- | --- | --- | --- |"]
    for name, each in zip(("with text", "without text"), runs.mean(axis=0), strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{share:.1f}" for share in each) + " |")
    gaps = runs[:, 0] - runs[:, 1]
    shown = (f"{gap.mean():+.1f} ({gap.min():+.1f} to {gap.max():+.1f})" for gap in gaps.T)
    lines.append("| difference | " + " | ".join(shown) + " |")
    table = "\n".join(lines)
    print(table)
    if options.write is not None:
        put_between(options.write, "make text-cost", table)


if __name__ == "__main__":
    main()
