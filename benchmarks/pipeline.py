"""Photos per second from JPEG files to embeddings, against Pillow's decode rate: ``python benchmarks/pipeline.py``.

The photos have 12 megapixels: views of the Earth, enlarged, with the noise of a sensor, as four cameras write them
(3 to 6 MB; aspect, quality, subsampling and orientation differ). All are in the page cache.

The bound is Pillow alone: ``Image.open(file).convert("RGB")`` on all processor cores, in threads or in processes,
whichever is faster; for ``fast_decode`` also with ``draft`` to the same reduced scale. What comes on top of it is
measured with a model that computes nothing, ``null``: the file's hash, the resize to 224 pixels, normalisation, and the
way to the model. ``resize`` is the bound with Pillow's resize of the whole image, which no exact preprocessing avoids.
``jobs`` decodes in the processes of a job. ``clip`` is ViT-L/14 with random weights.

Rounds are interleaved, and the median of each is reported.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from torch import Tensor, nn

from open_geoclip.data.decoding import map_photos
from open_geoclip.data.earth import Earth
from open_geoclip.data.earth_views import sample_cameras, view_centres
from open_geoclip.data.photos import Photo
from open_geoclip.data.sources import open_source
from open_geoclip.model.backbones.clip import ClipVision, ClipVisionSettings
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.preprocessing import CLIP_PREPROCESSING
from open_geoclip.scale.decoding import DecodedImage, Decoder, DecodeSettings
from open_geoclip.search.encode import EncodeSettings, encode_batches
from released_package import ROOT
from report import describe_machine, put_between

PAGE = ROOT / "docs" / "guides" / "jobs.md"
CORES = len(os.sched_getaffinity(0))
DISTINCT = 16  # photos; more are the same files again


@dataclass(frozen=True)
class Camera:
    """How a camera writes photos."""

    aspect: float  # width over height
    quality: int
    subsampling: int  # 0: 4:4:4, 2: 4:2:0
    noise: float  # standard deviation, of 255
    orientation: int = 1


CAMERAS = (Camera(4 / 3, 92, 2, 6), Camera(3 / 2, 95, 0, 4), Camera(4 / 3, 92, 2, 8, 6), Camera(16 / 9, 90, 1, 6))


@lru_cache
def _earth() -> Earth:
    return Earth()


def write_photos(folder: Path, count: int, megapixels: float, start: int = 0) -> list[Path]:
    """Write views of the test split, from ``start`` on, as photos; the middle square of each is the view."""
    earth, rng = _earth(), np.random.default_rng(start)
    centres, files = view_centres("test", start + count)[start:], []
    width_km, turn, light = sample_cameras("test", start, start + count)
    for number in range(count):
        camera = CAMERAS[number % len(CAMERAS)]
        one = slice(number, number + 1)
        short = round((megapixels * 1e6 / camera.aspect) ** 0.5)
        size = (round(short * camera.aspect), short)
        side = min(1024, size[0])
        [view] = earth.render(centres[one], camera.aspect * width_km[one], turn[one], light[one], size=side)
        cut = (side - side / camera.aspect) / 2
        pixels = Image.fromarray(view).resize(size, Image.Resampling.BICUBIC, box=(0, cut, side, side - cut))
        noise = camera.noise * rng.standard_normal((short, size[0], 1), np.float32)
        photo = Image.fromarray((np.asarray(pixels) + noise).clip(0, 255).astype(np.uint8))
        exif = Image.Exif()
        if camera.orientation == 6:  # the sensor's rows are the photo's columns
            photo = photo.transpose(Image.Transpose.ROTATE_90)
            exif[0x0112] = 6
        files.append(folder / f"{number:06d}.jpg")
        photo.save(files[-1], quality=camera.quality, subsampling=camera.subsampling, exif=exif)
    return files


def decode(file: Path, shortest_edge: int | None = None, resize: bool = False) -> None:
    """Do what the bound is."""
    with Image.open(file) as image:
        if shortest_edge is not None:
            image.draft(None, (shortest_edge, shortest_edge))
        decoded = image.convert("RGB")
    if resize:
        short = min(decoded.size)
        decoded.resize((224 * decoded.width // short, 224 * decoded.height // short), Image.Resampling.BICUBIC)


class Null(nn.Module):
    """A backbone that computes next to nothing."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return one pixel of each image."""
        return pixels[:, :, 0, 0]


def load(name: str) -> GeoCLIP:
    """Return a model: ``null``, ``earth``, or ``clip`` with random weights."""
    if name == "earth":
        return GeoCLIP.from_pretrained("earth", towers=("image",))
    backbone, dim = (Null(), 3) if name == "null" else (_clip(), 768)
    encoder = ImageEncoder(backbone, CLIP_PREPROCESSING, ImageSettings(widths=(dim, 512)))
    return GeoCLIP(encoder, LocationEncoder(LocationSettings(features=8, width=16, depth=1))).eval()


def _clip() -> nn.Module:
    vision = ClipVision(
        ClipVisionSettings(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            projection_dim=768,
            patch_size=14,
        )
    )
    for parameter in vision.parameters():
        nn.init.normal_(parameter, std=0.02)
    return vision


def encode(model: GeoCLIP, files: list[Path], fast_decode: bool = False) -> None:
    """Encode files as ``geoclip locate`` does."""
    for batch in encode_batches(model, files, EncodeSettings(batch_size=16, fast_decode=fast_decode)):
        assert not any(batch.errors)


def decode_job(folder: Path, files: list[Path]) -> None:
    """Decode files as a job does, in processes."""
    with Decoder(DecodeSettings(224, "bicubic")) as decoder:

        def work(photo: Photo) -> DecodedImage:
            return decoder(photo.image, photo.key)

        source = open_source(str(folder), places=False)
        for _ in range(-(-len(files) // (source.count or 1))):
            for _ in map_photos(source, work, workers=CORES):
                pass


def in_pool(work: Callable[[Path], None], pool: Executor, files: Iterable[Path]) -> None:
    """Work on files on all cores."""
    for _ in pool.map(work, files):
        pass


def measure(runs: dict[str, Callable[[list[Path]], None]], files: list[Path], rounds: int) -> dict[str, float]:
    """Return photos per second of each run: the median of some rounds, in which they take turns."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(files[: 2 * CORES])
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(files)
            rates[name].append(len(files) / (time.perf_counter() - start))
    return {name: median(found) for name, found in rates.items()}


def main(arguments: list[str] | None = None) -> None:
    """Measure all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=48, help="per round")
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["null", "earth", "clip"])
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.name}")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as name,
        ThreadPoolExecutor(CORES) as threads,
        ProcessPoolExecutor(CORES) as processes,
    ):
        pools = {"threads": threads, "processes": processes}
        for pool in pools.values():
            list(pool.map(abs, range(4 * CORES)))  # before torch has threads, which forks do not survive
        distinct = write_photos(Path(name), min(options.photos, DISTINCT), options.megapixels)
        files = [distinct[number % len(distinct)] for number in range(options.photos)]
        megabytes = sum(file.stat().st_size for file in distinct) / len(distinct) / 1e6
        runs: dict[str, Callable[[list[Path]], None]] = {}
        for kind, pool in pools.items():
            runs[f"Pillow: decode, {kind}"] = partial(in_pool, decode, pool)
            runs[f"Pillow: decode and resize, {kind}"] = partial(in_pool, partial(decode, resize=True), pool)
            runs[f"Pillow: decode at the reduced scale, {kind}"] = partial(
                in_pool, partial(decode, shortest_edge=448), pool
            )
        for model in options.models:
            loaded = load(model)
            runs[f"`{model}`"] = partial(encode, loaded)
            runs[f"`{model}`, fast decode"] = partial(encode, loaded, fast_decode=True)
        runs["`null`, decoded by the processes of a job"] = partial(decode_job, Path(name))
        rates = measure(runs, files, options.rounds)
    bound = max(rates[f"Pillow: decode, {kind}"] for kind in pools)
    reduced = max(rates[f"Pillow: decode at the reduced scale, {kind}"] for kind in pools)
    about = f"{options.photos} photos of {options.megapixels:g} megapixels and {megabytes:.1f} MB"
    lines = [
        f"| {about}, {CORES} cores | photos/s | of Pillow's decode rate | at the reduced scale |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, rate in rates.items():
        share = f"{100 * rate / reduced:.0f} %" if "fast" in name or "reduced" in name else ""
        lines.append(f"| {name} | {rate:.1f} | {100 * rate / bound:.0f} % | {share} |")
    machine = describe_machine("torch")
    lines += ["", f"{machine['machine']}; {machine['versions']}; median of {options.rounds} rounds."]
    print("\n".join(lines))
    if options.write:
        put_between(PAGE, "benchmarks/pipeline.py", "\n".join(lines))


if __name__ == "__main__":
    main()
