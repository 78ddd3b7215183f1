"""What a GPU does with this package, beside what it could do: ``python benchmarks/gpu.py``.

The networks have the published shapes (CLIP ViT-L/14, the head, the location encoder) and random weights, so nothing is
downloaded: time does not depend on what the weights are. The bound of the image encoder is the time that its matrix
products and its attention take when each runs alone on the same shapes in the same precision.

The tables go to stdout as Markdown, and with ``--write`` to docs/benchmarks-gpu.md. Without a GPU the same code runs on
the processor; ``--small`` takes seconds there.
"""

import argparse
import io
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64
from PIL import Image
from torch import Tensor, nn

from open_geoclip import __version__
from open_geoclip.data.augmentation import Augmentation
from open_geoclip.data.photos import IndexedPhotos, Photo
from open_geoclip.geo.sphere import even_points
from open_geoclip.images import load_image
from open_geoclip.model.backbones.clip import ClipVision, ClipVisionSettings
from open_geoclip.model.backbones.runtime import resolve_dtype
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.preprocessing import CLIP_PREPROCESSING
from open_geoclip.search.describe import AnswerSettings
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.locator import Locator
from open_geoclip.search.posterior import Posterior
from open_geoclip.training.batches import FeatureSet, TrainingData
from open_geoclip.training.features import FeatureExtractor, PixelData
from open_geoclip.training.loop import Callbacks, train
from open_geoclip.training.loss import batch_loss
from open_geoclip.training.settings import PAPER, TrainSettings
from report import put_between, seconds

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks-gpu.md"
LOCATION = LocationSettings()
VIT_L_14 = ClipVisionSettings(1024, 4096, 24, 16, 768, patch_size=14)
REPEATS, WARM_UP, TOP_K = 5, 3, 5


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        tower: shape of the image encoder's backbone.
        location: shape of the location encoder.
        batch: photos that it encodes at once.
        galleries: numbers of places; photos are located in the first.
        queries: photos that are searched for at once.
        training: photos per step of training.
        queue: places of earlier steps that a step has as negatives.
        steps: that are timed.
        least_s: time that a measurement takes at least.
        square: side of the square matrices whose product shows the highest rate.
    """

    tower: ClipVisionSettings = VIT_L_14
    location: LocationSettings = LOCATION
    batch: int = 256
    galleries: tuple[int, ...] = (100_000, 1_000_000)
    queries: int = 32
    training: int = PAPER.batch_size
    queue: int = PAPER.queue_size
    steps: int = 8
    least_s: float = 1.0
    square: int = 8192


SMALL = Sizes(
    ClipVisionSettings(64, 128, 2, 2, 768, patch_size=56), LocationSettings(width=32), 2, (600,), 2, 4, 8, 2, 0.0, 64
)


@dataclass(frozen=True)
class Table:
    """A table of the report; all columns but the first are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_markdown(self) -> str:
        """Return Markdown."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "\n".join([f"## {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(work: Callable[[], object], device: torch.device, least_s: float) -> float:
    """Return the seconds of a call: the median of runs of as many calls as take ``least_s`` together."""
    for _ in range(WARM_UP):  # the first calls compile and choose kernels, and allocate memory
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        once = time.perf_counter() - start
    calls, runs = max(1, round(least_s / REPEATS / once)), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):  # launched ahead, so that the device does not wait for Python
            work()
        synchronize(device)
        runs.append((time.perf_counter() - start) / calls)
    return median(runs)


def free(device: torch.device) -> None:
    """Give cached memory of the device back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def say(text: str) -> None:
    """Report progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def tera(flops: float) -> str:
    """Format a rate in TFLOP/s."""
    return f"{flops / 1e12:,.3g}"


def percent(share: float) -> str:
    """Format a share."""
    return f"{100 * share:.1f} %"


# --- the image encoder ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """A product of matrices, (m, k) by (k, n), or the attention of m queries to n keys of length k.

    Attributes:
        name: of the layer.
        count: how often it occurs.
        heads: photos, and heads of attention of each; empty for a product of matrices.
    """

    name: str
    count: int
    m: int
    n: int
    k: int
    heads: tuple[int, ...] = ()

    @property
    def flops(self) -> int:
        """Operations of all occurrences; attention consists of two products."""
        return 2 * self.count * math.prod((*self.heads, self.m, self.n, self.k)) * (2 if self.heads else 1)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
        """Return a function that computes it once, of random numbers."""
        draw = partial(torch.randn, device=device, dtype=dtype)
        if self.heads:
            q, k, v = (draw(*self.heads, tokens, self.k) for tokens in (self.m, self.n, self.n))
            return partial(F.scaled_dot_product_attention, q, k, v)
        return partial(F.linear, draw(self.m, self.k), draw(self.n, self.k))


def products(tower: ClipVisionSettings, batch: int) -> list[Product]:
    """Return all matrix products of :class:`ClipVision`; its last block computes the class token alone."""
    d, hidden, blocks = tower.hidden_size, tower.intermediate_size, tower.num_hidden_layers
    heads, of_head = (batch, tower.num_attention_heads), d // tower.num_attention_heads
    patches = (tower.image_size // tower.patch_size) ** 2
    tokens = patches + 1
    return [
        Product("patches", 1, batch * patches, d, 3 * tower.patch_size**2),
        Product("queries, keys and values", blocks, batch * tokens, 3 * d, d),
        Product("attention", blocks - 1, tokens, tokens, of_head, heads),
        Product("output of attention", blocks - 1, batch * tokens, d, d),
        Product("first linear layer", blocks - 1, batch * tokens, hidden, d),
        Product("second linear layer", blocks - 1, batch * tokens, d, hidden),
        Product("last block: attention", 1, 1, tokens, of_head, heads),
        Product("last block: output of attention", 1, batch, d, d),
        Product("last block: first linear layer", 1, batch, hidden, d),
        Product("last block: second linear layer", 1, batch, d, hidden),
        Product("projection", 1, batch, tower.projection_dim, d),
    ]


def random_tower(settings: ClipVisionSettings) -> ClipVision:
    """Return a backbone with small random weights."""
    torch.manual_seed(0)
    tower = ClipVision(settings)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.02)
    return tower.requires_grad_(False).eval()


@torch.inference_mode()
def measure_tower(sizes: Sizes, device: torch.device, *, compiled: bool) -> list[Table]:
    """Measure the backbone in each precision beside its products."""
    parts, rates = products(sizes.tower, sizes.batch), []
    flops = sum(part.flops for part in parts)
    layers = [
        [part.name, f"{part.count}", " x ".join(map(str, (*part.heads, part.m, part.n, part.k)))] for part in parts
    ] + [["all else", "", ""]]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            continue
        say(f"image encoder, {name}")
        alone = [part.count * measure(part.prepare(device, dtype), device, sizes.least_s / 4) for part in parts]
        square = Product("", 1, sizes.square, sizes.square, sizes.square)
        highest = square.flops / measure(square.prepare(device, dtype), device, sizes.least_s)
        tower = random_tower(sizes.tower).to(device, dtype)
        pixels = torch.randn(sizes.batch, 3, *[sizes.tower.image_size] * 2, device=device)
        for is_compiled in (False, True) if compiled and dtype != torch.float32 else (False,):
            network = cast(nn.Module, torch.compile(tower)) if is_compiled else tower
            try:
                taken = measure(partial(network, pixels), device, sizes.least_s)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if not is_compiled:
                    raise
                say(f"not compiled: {error}")
                continue
            rates.append((
                f"{name}, compiled" if is_compiled else name, f"{sizes.batch / taken:,.1f}", tera(flops / taken),
                tera(flops / sum(alone)), percent(sum(alone) / taken), tera(highest), percent(flops / taken / highest),
            ))  # fmt: skip
            if not is_compiled:
                shares = [f"{tera(p.flops / s)} ({percent(s / taken)})" for p, s in zip(parts, alone, strict=True)]
                for row, share in zip(layers, [*shares, f"({percent(1 - sum(alone) / taken)})"], strict=True):
                    row.append(share)
        del tower, network
        free(device)
    columns = ["photos per second", "TFLOP/s", "products alone, TFLOP/s", "share of that"]
    columns += [f"product of side {sizes.square:,}, TFLOP/s", "share of that"]
    return [
        Table(f"Image encoder, {sizes.batch} photos at once", ["precision", *columns], rates),
        Table(
            "Its products alone: TFLOP/s, and the time as a share of the whole encoder's, not compiled",
            ["product", "times", "size", *(row[0] for row in rates if "compiled" not in row[0])],
            layers,
        ),
    ]


# --- search, and photos from file to answer -------------------------------------------------------


def random_model(sizes: Sizes, device: torch.device) -> GeoCLIP:
    """Return a model of the published shape with random weights, its backbone in the precision that ``auto`` is."""
    backbone = random_tower(sizes.tower).to(dtype=resolve_dtype("auto", device))
    model = GeoCLIP(ImageEncoder(backbone, CLIP_PREPROCESSING), LocationEncoder(sizes.location))
    return model.to(device).eval()


def draw_photos(count: int) -> list[bytes]:
    """Return JPEGs of noise, of the size that photos of training data have."""
    drawn, files = np.random.default_rng(0), []
    for _ in range(count):
        noise = Image.fromarray(drawn.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        file = io.BytesIO()
        noise.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


@torch.inference_mode()
def measure_search(sizes: Sizes, device: torch.device, folder: Path) -> list[Table]:
    """Measure galleries, and each step from a file to an answer."""
    model, here, rows = random_model(sizes, device), torch.device("cpu"), []
    queries = F.normalize(torch.randn(sizes.queries, model.location_encoder.settings.output), dim=1)
    for count in sizes.galleries:
        say(f"gallery of {count:,} places")
        start = time.perf_counter()
        gallery = Gallery.from_coordinates(even_points(count))
        index = GalleryIndex.build(model.location_encoder, gallery, folder=folder)
        synchronize(device)
        built = time.perf_counter() - start
        found = [
            measure(partial(index.search, queries[:n], model.scale, TOP_K), here, sizes.least_s)
            for n in (1, sizes.queries)
        ]
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        places, asked = index.embeddings.to(device, dtype), queries.to(device, dtype)
        bound = measure(partial(_best, asked, places), device, sizes.least_s)
        rows.append((f"{count:,} places", *map(seconds, (built, *found, bound))))
        del places, asked
        free(device)
    columns = ["gallery", "encoding, once", "search for 1 photo, on the processor"]
    columns += [f"for {sizes.queries}", f"for {sizes.queries}, product and top {TOP_K} alone, on the device"]
    return [Table("Search", columns, rows), _measure_answers(sizes, device, model, folder)]


def _best(queries: Tensor, places: Tensor) -> Tensor:
    return (queries @ places.T).topk(TOP_K).indices


def _measure_answers(sizes: Sizes, device: torch.device, model: GeoCLIP, folder: Path) -> Table:
    say("from files to answers")
    here, cores, n = torch.device("cpu"), len(os.sched_getaffinity(0)), sizes.batch
    gallery = Gallery.from_coordinates(even_points(sizes.galleries[0]))
    locator = Locator(model, gallery, batch_size=n, cache=folder, answers=AnswerSettings(decode="mass"))
    space, files = locator.search_space, draw_photos(min(n, 64))
    files = [files[i % len(files)] for i in range(n)]
    pixels = torch.stack([CLIP_PREPROCESSING(load_image(files[0]))] * n)
    prepare = measure(lambda: CLIP_PREPROCESSING(load_image(files[0])), here, sizes.least_s)
    encoded = model.encode_image(pixels.to(device)).cpu()
    logits = space.index.logits(encoded, model.scale, TOP_K)

    def posterior() -> object:
        return Posterior.from_logits(logits, space.cells, scale=model.scale).candidates(TOP_K)

    parts = {
        f"decoding and preprocessing, {cores} cores": n * prepare / cores,
        "copy to the device": measure(lambda: pixels.to(device, copy=True), device, sizes.least_s),
        "image encoder": measure(partial(model.encode_image, pixels.to(device)), device, sizes.least_s),
        "logits of all places": measure(lambda: space.index.logits(encoded, model.scale, TOP_K), here, sizes.least_s),
        f"posterior and {TOP_K} candidates, processor": measure(posterior, here, sizes.least_s),
    }
    many = files * 3  # batches are decoded ahead
    whole = measure(lambda: list(locator.stream(many, TOP_K)), device, 0) / 3
    title = f"{n} photos of 500 x 375 pixels, from file to answer, {len(gallery):,} places"
    return _shares(title, parts, whole, "`Locator.stream`")


def _shares(title: str, parts: dict[str, float], whole: float, name: str) -> Table:
    """Return a table of parts, measured alone, and of the whole."""
    rows = [(part, seconds(taken), percent(taken / whole)) for part, taken in parts.items()]
    rows.append((f"**all, by {name}**", seconds(whole), ""))
    return Table(f"{title}; parts measured alone", ["", "time", "share of all"], rows)


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RepeatedPhotos(IndexedPhotos):
    """A source that shows a few photos again and again."""

    files: list[bytes]
    coordinates: Float64[np.ndarray, "n 2"]

    def entry(self, row: int) -> Photo:
        """Return a photo at a place of its own."""
        return Photo(f"{row}", self.files[row % len(self.files)], *self.coordinates[row].tolist())


def measure_training(sizes: Sizes, device: torch.device, folder: Path) -> list[Table]:
    """Measure a step of the paper's recipe, from features and from photos."""
    count, cores = sizes.training * (sizes.steps + WARM_UP), len(os.sched_getaffinity(0))
    where = torch.from_numpy(even_points(count))
    data = FeatureSet(torch.randn(count, VIT_L_14.projection_dim).half(), where)
    title = f"A step of the paper's recipe, {sizes.training} photos and a queue of {sizes.queue:,}"
    tables, step_s = [], 0.0
    for dtype in dict.fromkeys(("float32", str(resolve_dtype("auto", device)).removeprefix("torch."))):
        say(f"training, {dtype}")
        settings = replace(
            PAPER, epochs=1, batch_size=sizes.training, queue_size=sizes.queue, dtype=cast("Literal['float32']", dtype)
        )
        model = GeoCLIP(ImageEncoder(None, None), LocationEncoder(sizes.location)).to(device)
        step_s = _step_seconds(model, data, settings, folder / dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        features, places = data.features[: sizes.training].to(device), where[: sizes.training + sizes.queue].to(device)
        loss = partial(batch_loss, model, features, places, places, settings)
        forward = measure(loss, device, sizes.least_s)
        both = measure(partial(_backward, loss), device, sizes.least_s)
        parts = {
            "embeddings of photos and places, loss": forward,
            "gradients": both - forward,
            "optimizer": measure(optimizer.step, device, sizes.least_s),
        }
        tables.append(_shares(f"{title}, from features, {dtype}", parts, step_s, "`train`"))
    say("training from photos")
    files, n = draw_photos(min(count, 64)), min(128, sizes.training)
    backbone = random_tower(sizes.tower).to(device, resolve_dtype("auto", device))
    augmentation = Augmentation()
    extractor = FeatureExtractor("random", "", CLIP_PREPROCESSING, backbone, backbone.dim, device, augmentation, n)
    source = RepeatedPhotos("photos", "photos", np.arange(count), files, where.numpy())
    pixels = torch.randn(n, 3, *[sizes.tower.image_size] * 2)

    def decode() -> object:
        return CLIP_PREPROCESSING(augmentation(load_image(files[0]), "photo"))

    with torch.inference_mode():
        encode = measure(lambda: backbone(pixels.to(device)).half().cpu(), device, sizes.least_s)
    parts = {
        f"decoding and augmentation, {cores} cores": sizes.training / cores * measure(decode, device, sizes.least_s),
        "image encoder": sizes.training / n * encode,
        "the step from features": step_s,
    }
    whole = _step_seconds(model, PixelData(source, extractor, workers=cores), settings, folder / "photos")
    return [*tables, _shares(f"{title}, from photos", parts, whole, "`train`")]


def _backward(loss: Callable[[], Tensor]) -> None:
    loss().backward()


def _step_seconds(model: GeoCLIP, data: TrainingData, settings: TrainSettings, folder: Path) -> float:
    """Return the median seconds of a step of an epoch; each ends when its loss has come from the device."""
    ends: list[float] = []
    train(model, data, settings, folder, callbacks=Callbacks(step=lambda _: ends.append(time.perf_counter())))
    return median(after - before for before, after in pairwise(ends[WARM_UP - 1 :]))


# --- the report -----------------------------------------------------------------------------------


def describe_device(device: torch.device) -> list[str]:
    """Return what the figures depend on, a line each."""
    name = "no GPU: the processor"
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        name = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        name += f", cuDNN {torch.backends.cudnn.version()}"
    tf32 = "with" if torch.backends.cuda.matmul.allow_tf32 else "without"
    return [
        f"device: {name}",
        f"processor: {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        f"open-geoclip {__version__}, torch {torch.__version__}; products in float32 {tf32} TF32",
    ]


def report(sizes: Sizes, device: torch.device, *, compiled: bool) -> str:
    """Measure everything and return Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        tables = measure_tower(sizes, device, compiled=compiled)
        tables += measure_search(sizes, device, Path(folder, "galleries"))
        tables += measure_training(sizes, device, Path(folder))
    about = "\n".join(f"- {line}" for line in describe_device(device))
    return "\n\n".join([about, *(table.to_markdown() for table in tables)]) + "\n"


def main() -> None:
    """Measure on the GPU, print the tables and perhaps write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256, help="photos that are encoded at once; default: 256")
    parser.add_argument("--no-compile", action="store_true", help="do not measure torch.compile")
    parser.add_argument("--small", action="store_true", help="run everything at a small size: the figures mean nothing")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks-gpu.md too")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.small:
        parser.error("there is no GPU here; --small runs the same code on the processor")
    if options.write and (device.type == "cpu" or options.small):
        parser.error("--write is for a whole run on a GPU")
    sizes = SMALL if options.small else Sizes(batch=options.batch)
    try:
        text = report(sizes, device, compiled=not (options.no_compile or options.small))
    except torch.OutOfMemoryError as error:
        sys.exit(f"the memory of the GPU is too small ({error}): give a smaller --batch")
    print(text, end="")
    if options.write:
        put_between(PAGE, "python benchmarks/gpu.py", text)


if __name__ == "__main__":
    main()
