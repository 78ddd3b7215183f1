"""Photos a second of training: this package from cached features, the released loop from its photos.

The released side is ``geoclip.train.train`` with the released model, data set and collation, as its wheel carries
them, on photos on the disk; its augmentations need torchvision, which is replaced by one resize and crop to 224 pixels
(less work, in the released side's favour). Both sides have the released head and location encoder, a queue of 4096,
Adam, and the same CLIP ViT-L/14 folder with random weights: time does not depend on what they are. Our features are
random numbers in a cache in memory, since what they are does not matter either. What our side pays once for features,
views a photo, is reported beside the rates: the released loop pays it again in each epoch.

Both sides take the same batch, and are warmed up on a small one. Ours is timed before and after the released one, so
that a load that comes or goes is seen in the spread of its steps. The batch matters: a step of ours is nearly all
queue, whatever the batch (the paper's is 512), a released one nearly all photos.

The report goes to stdout as JSON, and with ``--write`` to benchmarks/results/training.json.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from open_geoclip.geo.sphere import even_points
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.features import FeatureExtractor
from open_geoclip.training.loop import Callbacks, train
from open_geoclip.training.settings import PAPER
from released_package import BUILD, ROOT, make_clip, say
from report import describe_machine

QUEUE, PHOTOS, WARM_UP = 4096, 64, 4  # distinct photos on the disk; larger batches show them again


def _pixels(image: Image.Image) -> Tensor:
    """The middle of a photo, 224 pixels wide, as the released transforms would leave it."""
    small = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR), np.float32) / 255
    return torch.from_numpy(small).permute(2, 0, 1)


def released_rate(clip: Path, folder: Path, batch: int, steps: int) -> list[float]:
    """Seconds of each step of the released loop."""
    from geoclip import GeoCLIP

    stand_in = ModuleType("torchvision")
    stand_in.transforms = ModuleType("torchvision.transforms")  # type: ignore[attr-defined]
    sys.modules["torchvision"] = stand_in
    try:
        from geoclip.train.dataloader import GeoDataLoader
        from geoclip.train.train import train as released_train
    finally:
        del sys.modules["torchvision"]  # transformers asks for it too

    with contextlib.redirect_stdout(sys.stderr):
        model = GeoCLIP(clip_path=str(clip), queue_size=QUEUE).train()
        photos = GeoDataLoader(str(folder / "photos.csv"), str(folder), transform=_pixels)

        def loader(size: int, count: int) -> "torch.utils.data.DataLoader[Any]":
            once = torch.utils.data.Subset(photos, [i % PHOTOS for i in range(size * count)])
            return torch.utils.data.DataLoader(once, batch_size=size)

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=PAPER.learning_rate, weight_decay=PAPER.weight_decay)
        released_train(loader(WARM_UP, 1), model, optimizer, 0, WARM_UP, "cpu")
        ends = [time.perf_counter()]
        optimizer.register_step_post_hook(lambda *_: ends.append(time.perf_counter()))
        released_train(loader(batch, steps), model, optimizer, 0, batch, "cpu")
    return [after - before for before, after in pairwise(ends)]


def our_rate(folder: Path, batch: int, steps: int) -> list[float]:
    """Seconds of each step of this package's loop with the paper's recipe, from features in memory."""
    n = batch * steps
    generator = torch.Generator().manual_seed(0)
    data = FeatureSet(torch.randn(n, 768, generator=generator).half(), torch.from_numpy(even_points(n)))
    settings = replace(PAPER, epochs=1, batch_size=batch, queue_size=QUEUE)
    ends = [time.perf_counter()]
    model = GeoCLIP(ImageEncoder(None, None), LocationEncoder.from_pretrained("geoclip"))
    train(model, data, settings, folder, callbacks=Callbacks(step=lambda _: ends.append(time.perf_counter())))
    return [after - before for before, after in pairwise(ends)]


def make_photos(folder: Path) -> None:
    """Noise as photos of the size that data sets for this task have, with a table as the released loader wants it."""
    drawn = np.random.default_rng(0)
    lines = ["IMG_FILE,LAT,LON"]
    for i, (lat, lon) in enumerate(even_points(PHOTOS).tolist()):
        noise = drawn.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((400, 300)).save(folder / f"{i}.jpg")
        lines.append(f"{i}.jpg,{lat:.5f},{lon:.5f}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")


def feature_rate(clip: Path, folder: Path) -> float:
    """Features a second that our side makes of the same photos: what is paid once a view."""
    from open_geoclip.data.sources import open_source

    extractor = FeatureExtractor.load(f"dir:{clip}")
    source = open_source(folder / "photos.csv")
    encoded = extractor.encode(source, 16, workers=1)
    next(encoded)  # the first are slower
    began = time.perf_counter()
    return len(next(encoded).photos) / (time.perf_counter() - began)


def main() -> None:
    """Time both sides, batch by batch, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", type=Path, help="CLIP ViT-L/14 folder; one with random weights when not given")
    parser.add_argument("--batches", type=int, nargs="+", default=[128], help="batch sizes; 128 when not given")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of the released loop; 2 when not given")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/training.json too")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    clip = options.clip or BUILD / "clip"
    if options.clip is None and not clip.exists():
        make_clip(clip)
    result: dict[str, Any] = {"machine": describe_machine("torch", "open-geoclip"), "queue": QUEUE, "batches": {}}
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(dir=BUILD) as home:
        folder = Path(home)
        make_photos(folder)
        for batch in options.batches:
            say(f"batch {batch}: this package")
            ours = our_rate(folder / f"before-{batch}", batch, 8)[2:]  # the first steps warm up
            say(f"batch {batch}: the released loop")
            theirs = released_rate(clip, folder, batch, options.steps)
            say(f"batch {batch}: this package again")
            ours += our_rate(folder / f"after-{batch}", batch, 8)[2:]
            rates = {"ours": batch / median(ours), "released": batch / median(theirs)}
            result["batches"][str(batch)] = {
                "photos a second": rates,
                "ratio": rates["ours"] / rates["released"],
                "seconds of each step": {"ours": ours, "released": theirs},
            }
            say(
                f"batch {batch}: {rates['ours']:.1f} photos a second, released {rates['released']:.2f}: "
                f"{rates['ours'] / rates['released']:.1f} times as many"
            )
        say("features, made once")
        result["features a second, once a view"] = feature_rate(clip, folder)
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if options.write:
        (ROOT / "benchmarks" / "results" / "training.json").write_text(text)


if __name__ == "__main__":
    main()
