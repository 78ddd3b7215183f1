"""``make bench``: this package side by side with the released one, on the same images, in one run.

Both sides read the same CLIP ViT-L/14 folder. Its weights are random, since time, memory and agreement do not depend
on what they are; the heads and the gallery on top are the released ones. Each side runs in a process of its own, so
that memory is measured for each, and they take turns, so that a machine that slows down slows both.

The report is Markdown on stdout, progress goes to stderr. Exit status 1 when the two sides do not agree.
"""

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32
from PIL import Image

import open_geoclip as og  # its parts are imported when they are used, so the released side goes without them
from report import Memory, Report, describe_machine, parse_status

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
TOP_K, BATCH, QUERIES = 5, 8, 32
PROBABILITY_TOLERANCE, EMBEDDING_TOLERANCE = 1e-5, 1e-6
SAMPLE_SECONDS = 0.02  # between two looks at the memory of a process at work
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
PHOTO = "A photo, `predict(path, 5)`, warm, {}"
PHOTOS = f"A photo in batches of {BATCH}, `Locator.locate`, {{}}"
ENCODER = "Of a photo: the image encoder alone"


# --- the two sides: their methods are called by name from the main process, and timed -----------------------------


class _Released:
    def load(self, clip: str) -> None:
        from geoclip import GeoCLIP

        self.model = GeoCLIP(clip_path=clip).eval()

    def predict(self, image: str) -> list[Any]:
        return [tensor.tolist() for tensor in self.model.predict(image, TOP_K)]

    @torch.no_grad()
    def image_tower(self) -> None:
        self.model.image_encoder(torch.zeros(1, 3, 224, 224))

    @torch.no_grad()
    def encode_gallery(self) -> None:
        self.model.location_encoder(self.model.gps_gallery)

    @torch.no_grad()
    def encode(self, points: Float32[np.ndarray, "n 2"]) -> Float32[np.ndarray, "n k"]:
        return np.asarray(self.model.location_encoder(torch.from_numpy(points)))


class _Ours:
    def load(self, clip: str, dtype: Literal["float32", "bfloat16"]) -> None:
        from open_geoclip.compat import GeoCLIP
        from open_geoclip.model.backbones.runtime import prepare_backbone

        self.model = GeoCLIP(clip_path=clip)
        self.model.image_encoder.backbone = prepare_backbone(self.model.image_encoder.backbone, "auto", dtype)
        self.gallery = og.Gallery.from_coordinates(self.model.gps_gallery.numpy(), name="gps_gallery")
        self.encoder: og.LocationEncoder = self.model.location_encoder

    def load_location_encoder(self) -> None:
        self.encoder = og.LocationEncoder.from_pretrained("geoclip")

    def load_earth(self) -> None:
        self.locator = og.Locator.from_pretrained("earth", batch_size=BATCH)

    def prepare(self, images: list[str]) -> int:
        """What locating and searching need. Returns how many different places are searched."""
        self.locator = og.Locator(self.model, self.gallery, batch_size=BATCH)
        self.index = self.locator.search_space.index
        self._ask(self.locator.encode(images).repeat(QUERIES, 1)[:QUERIES], noise=0.01)
        return len(self.index)

    def _ask(self, embeddings: torch.Tensor, noise: float) -> None:
        """Keep embeddings to search for, each made a little different."""
        drawn = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
        self.queries = F.normalize(embeddings + noise * drawn, dim=1)

    def predict(self, image: str) -> list[Any]:
        return [tensor.tolist() for tensor in self.model.predict(image, TOP_K)]

    def locate(self, images: list[str]) -> None:
        assert all(answer.error is None for answer in self.locator.locate(images, TOP_K))

    @torch.inference_mode()
    def image_tower(self) -> None:
        self.model.image_encoder(torch.zeros(1, 3, 224, 224))

    def prepare_products(self, batch: int, dtype: str) -> None:
        from gpu import VIT_L_14, products

        parts = products(VIT_L_14, batch)
        self.products = [(part.prepare(torch.device("cpu"), getattr(torch, dtype)), part.count) for part in parts]
        self.multiply()

    @torch.inference_mode()
    def multiply(self) -> None:
        for product, count in self.products:
            for _ in range(count):
                product()

    def _open(self, gallery: og.Gallery, folder: Path) -> None:
        from open_geoclip.search.index import GalleryIndex

        self.index = GalleryIndex.build(self.encoder, gallery, folder=folder)

    def encode_gallery(self, folder: Path) -> None:
        self._open(self.gallery, folder)

    def open_gallery(self, file: str, folder: Path) -> None:
        self._open(og.Gallery.from_file(file), folder)

    def build_places(self, n: int, folder: Path) -> None:
        from open_geoclip.geo.sphere import even_points

        self._open(og.Gallery.from_coordinates(even_points(n)), folder)
        self._ask(torch.zeros(QUERIES, self.encoder.settings.output), noise=1)

    def render(self, n: int) -> None:
        from open_geoclip.data.earth_views import views

        assert sum(len(batch.images) for batch in views("validation", n)) == n

    def search(self, n: int) -> None:
        self.index.search(self.queries[:n], 39.7, TOP_K)  # the released temperature

    def encode(self, points: Float32[np.ndarray, "n 2"]) -> Float32[np.ndarray, "n k"]:
        return np.asarray(self.encoder.encode(torch.from_numpy(points), normalize=False))


_sides: list[_Released | _Ours] = []  # in a side's own process: the one


def _start(name: str) -> None:
    _sides.append(_Released() if name == "released" else _Ours())


def _timed(method: str, arguments: dict[str, Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    value = getattr(_sides[0], method)(**arguments)
    return value, time.perf_counter() - started


class Side:
    """A process with one side in it, watched while it works."""

    def __init__(self, name: str, report: Report) -> None:
        self.name, self.report, self.fullest = name, report, Memory()
        self.process = ProcessPoolExecutor(1, get_context("spawn"), _start, (name,))
        self.pid = self.process.submit(os.getpid).result()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.shutdown()

    def memory(self) -> Memory:
        """What the process holds now."""
        now = parse_status(Path(f"/proc/{self.pid}/status").read_text())
        self.fullest = max(self.fullest, now, key=lambda memory: memory.total)
        return now

    def most(self, before: Memory | None = None) -> Memory:
        """The peak so far and the parts of the fullest moment, less what was there before."""
        less = before or Memory()
        peak = self.memory().peak
        return Memory(self.fullest.own - less.own, self.fullest.files - less.files, peak - less.total)

    def call(self, method: str, **arguments: Any) -> tuple[Any, float]:
        """What the method returned, and the seconds it took."""
        future = self.process.submit(_timed, method, arguments)
        while wait([future], SAMPLE_SECONDS).not_done:
            self.memory()
        return future.result()

    def time(self, what: str, method: str, *, times: int = 1, each: int = 1, **arguments: Any) -> Any:
        """Note in the report how long a method takes for each of so many images. Returns what it returned."""
        value = None
        for _ in range(times):
            value, taken = self.call(method, **arguments)
            self.report.add(what, self.name, taken / each)
        return value


# --- what they work on ----------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def make_clip(folder: Path) -> None:
    """Write a CLIP ViT-L/14 with random weights, the same ones each time, in the layout that CLIP is published in."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    say(f"writing a CLIP ViT-L/14 with random weights to {folder} (1.7 GB, once)")
    both = {"projection_dim": 768}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(**both, text_config=text | both, vision_config=vision | both | {"patch_size": 14}))
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        model.save_pretrained(Path(part, "clip"))
        CLIPImageProcessor().save_pretrained(Path(part, "clip"))
        Path(part, "clip").rename(folder)


def released_file(name: str) -> str:
    """The path of a file in the released package."""
    return str(importlib.metadata.distribution("geoclip").locate_file(f"geoclip/{name}"))


def make_images(folder: Path) -> list[str]:
    """The photo that the released wheel carries, and images made of it and of the Earth."""
    from open_geoclip.data.earth_views import views

    photo = Image.open(released_file("images/Kauai.png")).convert("RGB")
    width, height = photo.size
    one, other = (Image.fromarray(view) for view in next(views("test", 2)).images)
    made = {
        "large.jpg": photo.resize((10 * width, 10 * height)),
        "view.png": one,
        "left.png": photo.crop((0, 0, width // 2, height)),
        "view.webp": other,
        "wide.png": photo.crop((0, height // 3, width, 2 * height // 3)),
    }
    for name, image in made.items():
        image.save(folder / name)
    return [released_file("images/Kauai.png"), *(str(folder / name) for name in made)]


# --- the run --------------------------------------------------------------------------------------


def compare_images(report: Report, released: Side, ours: Side, images: list[str]) -> None:
    """Answers, and times of a photo, the two sides taking turns."""
    one, several = PHOTO.format("float32"), PHOTOS.format("float32")
    same, difference, answers = 0, 0.0, set()
    for number, image in enumerate(images, 1):
        say(f"image {number} of {len(images)}: {Path(image).name}")
        expected, probabilities = released.time(one, "predict", image=image)
        found, shares = ours.time(one, "predict", times=3, image=image)
        ours.time(several, "locate", each=BATCH, images=(images * BATCH)[:BATCH])
        for side in (released, ours):
            side.time(ENCODER, "image_tower", times=2)
        same += found == expected
        answers.add(str(found))
        difference = max(difference, *(abs(a - b) for a, b in zip(probabilities, shares, strict=True)))
    report.rows[several].released = report.rows[one].released
    for what, batch in ((one, 1), (ENCODER, 1), (several, BATCH)):
        measure_limit(report, ours, what, batch, "float32")
    said = f"{same} of {len(images)} images (different answers: {len(answers)})"
    report.check(f"the same top {TOP_K} coordinates in the same order", same == len(images), said)
    report.check_at_most("their probabilities", difference, PROBABILITY_TOLERANCE)


def measure_limit(report: Report, ours: Side, what: str, batch: int, dtype: str) -> None:
    """Times of a photo's share in the products of matrices of ViT-L/14, and of nothing else."""
    ours.call("prepare_products", batch=batch, dtype=dtype)
    for _ in range(5):
        report.add(what, "limit", ours.call("multiply")[1] / batch)


def compare_galleries(report: Report, released: Side, ours: Side, scratch: Path) -> None:
    """The released gallery encoded, opened and searched; embeddings of random coordinates."""
    say("encoding the gallery, three times each")
    encoded = "Encoding the gallery of 100,000 (released: for each photo; this package: once, then cached)"
    for turn in range(3):
        released.time(encoded, "encode_gallery")
        ours.time(encoded, "encode_gallery", folder=scratch / f"gallery{turn}")
    file = released_file("model/gps_gallery/coordinates_100K.csv")
    ours.time(
        "Opening the cached gallery and reading its CSV",
        "open_gallery",
        times=5,
        file=file,
        folder=scratch / "gallery0",
    )
    for n in (1, QUERIES):
        ours.time(f"Searching the gallery, images at once: {n}", "search", times=9, n=n)
    points = np.random.default_rng(0).uniform((-90, -180), (90, 180), (10_000, 2)).astype(np.float32)
    embeddings = [side.call("encode", points=points)[0] for side in (released, ours)]
    difference = float(np.abs(embeddings[0] - embeddings[1]).max())
    report.check_at_most("location embeddings of 10,000 random coordinates", difference, EMBEDDING_TOLERANCE)


def compare(report: Report, clip: Path, images: list[str], scratch: Path) -> None:
    """Both sides, each in its process, through everything that both can do."""
    with Side("released", report) as released, Side("ours", report) as ours:
        say("loading both, warming up; our side encodes its gallery")
        loaded = "Loading the model, imports included"
        released.time(loaded, "load", clip=str(clip))
        ours.time(loaded, "load", clip=str(clip), dtype="float32")
        for side in (released, ours):
            side.call("predict", image=images[0])
        places, _ = ours.call("prepare", images=images)
        report.notes.append(
            f"Of the gallery's 100,000 rows this package encodes and searches the {places:,} distinct ones."
        )
        compare_images(report, released, ours, images)
        report.memory["released: locating photos one by one"] = released.most()
        report.memory["this package: the same and batches, encoding the gallery"] = ours.most()
        compare_galleries(report, released, ours, scratch)


def measure_bfloat16(report: Report, clip: Path, images: list[str]) -> None:
    """Our side once more in bfloat16, where the processor computes in it."""
    from open_geoclip.model.backbones.runtime import resolve_dtype

    if resolve_dtype("auto") != torch.bfloat16:
        report.notes.append("bfloat16 is not timed: this processor has no instructions for it.")
        return
    say("bfloat16")
    with Side("ours", report) as ours:
        ours.call("load", clip=str(clip), dtype="bfloat16")
        ours.call("prepare", images=images)
        ours.call("predict", image=images[0])
        for image in images:
            ours.time(PHOTO.format("bfloat16"), "predict", times=3, image=image)
            ours.time(PHOTOS.format("bfloat16"), "locate", each=BATCH, images=(images * BATCH)[:BATCH])
        for what, batch in ((PHOTO, 1), (PHOTOS, BATCH)):
            measure_limit(report, ours, what.format("bfloat16"), batch, "bfloat16")
    for what in (PHOTO, PHOTOS):
        report.rows[what.format("bfloat16")].released = report.rows[PHOTO.format("float32")].released


def measure_earth(report: Report, view: str) -> None:
    """The embedded model: warm, and its command from a cold start."""
    from open_geoclip.weights.load import load_release

    try:
        load_release("earth")
    except og.OpenGeoCLIPError as error:
        report.notes.append(f"The embedded model is not timed: {error}.")
        return
    say("the embedded model")
    with Side("ours", report) as ours:
        ours.call("load_earth")
        ours.call("locate", images=[view])
        ours.time("Model `earth`: one view, `Locator.locate`, warm", "locate", times=15, images=[view])
        ours.call("render", n=1)
        ours.time("Rendering an Earth view", "render", each=1024, n=1024)
    command = [sys.executable, "-m", "open_geoclip.cli", "locate", view, "--format", "json"]
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken = time.perf_counter() - started
        report.add("Model `earth`: `geoclip locate` of one view, whole process", "ours", taken)


def measure_places(report: Report, n: int, scratch: Path) -> None:
    """A large gallery: built and searched in memory that does not grow with it."""
    say(f"a gallery of {n:,} places")
    with Side("ours", report) as ours:
        ours.call("load_location_encoder")
        before = ours.memory()
        ours.time(f"Encoding a gallery of {n:,}", "build_places", n=n, folder=scratch / "places")
        for images in (1, QUERIES):
            ours.time(f"Searching a gallery of {n:,}, images at once: {images}", "search", times=5, n=images)
        report.memory[f"this package, besides the model: encoding and searching {n:,} places"] = ours.most(before)


def write(name: str, text: str) -> None:
    """Write a file of this repository."""
    from open_geoclip.files import atomic_write

    (ROOT / name).parent.mkdir(exist_ok=True)
    atomic_write(ROOT / name, text)


def main() -> int:
    """Run everything. Returns the exit status: 1 when the two sides do not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="a CLIP ViT-L/14 folder; without it one with random weights is made")
    parser.add_argument("--images", type=int, default=6, choices=range(1, 7), help="how many, of 6")
    parser.add_argument("--places", type=int, default=200_000, help="in the large gallery; 200000 when not given")
    parser.add_argument("--full", action="store_true", help="1,000,000 places in the large gallery")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and benchmarks/results/ too")
    options = parser.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("memory is read from /proc: this benchmark needs Linux")
    BUILD.mkdir(parents=True, exist_ok=True)
    clip = options.clip or BUILD / "clip"
    if options.clip is None and not clip.exists():
        make_clip(clip)
    given = ["FOLDER" if argument == str(options.clip) else argument for argument in sys.argv[1:]]
    report = Report(
        " ".join(["python benchmarks/released_package.py", *given]),
        describe_machine("torch", "geoclip", "transformers", "open-geoclip"),
    )
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        scratch = Path(folder)
        # The processes that are started inherit these: no embeddings of an earlier run, no downloads.
        os.environ |= {"OPEN_GEOCLIP_CACHE": str(scratch / "cache"), "HF_HUB_OFFLINE": "1"} | QUIET
        images = make_images(scratch)
        compare(report, clip, images[: options.images], scratch)
        measure_bfloat16(report, clip, images[: options.images])
        measure_earth(report, images[2])
        measure_places(report, 1_000_000 if options.full else options.places, scratch)
    print(report.to_markdown(), end="")
    if options.write:
        write("docs/benchmarks.md", report.to_markdown())
        write("benchmarks/results/released_package.json", report.to_json())
    return 0 if all(report.checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
