"""What precisions of the image backbone gain and change: ``python benchmarks/precision.py``.

The embedded backbone has real weights: views of the test split are located in each precision, and answers are compared
with those of torch in float32. CLIP ViT-L/14 has random weights, as no trained ones are at hand here, so that only its
times mean anything. int8 is quantised anew, in a cache folder of its own, on views of the training split or on the
images of the self-check, and is measured even where loading refuses it. The precisions take turns.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gpu import VIT_L_14, random_tower
from open_geoclip.data.earth_views import Split, views
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import haversine_km
from open_geoclip.model.backbones.earth import PREPROCESSING
from open_geoclip.model.backbones.runtime import CompiledBackbone, Precision
from open_geoclip.model.backbones.self_check import AUTO_COSINE, LEAST_COSINE, centred_cosine, check_images
from report import describe_machine, put_between, seconds

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "precision.md", ROOT / "benchmarks" / "results" / "precision.json"
THRESHOLDS_KM = (25, 200, 750)
BATCH = 8
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")


def say(text: str) -> None:
    """Report progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def earth_pixels(split: Split, n: int) -> tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 2"]]:
    """Return preprocessed views of a split, and their centres."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (PREPROCESSING.mean, PREPROCESSING.std))
    parts = list(views(split, n))
    pixels = [(torch.from_numpy(part.images).permute(0, 3, 1, 2) - mean) / std for part in parts]
    return torch.cat(pixels), torch.cat([torch.from_numpy(part.coordinates) for part in parts])


@torch.inference_mode()
def encode(network: nn.Module, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
    """Return features."""
    return torch.cat([network(part) for part in pixels.split(BATCH)])


@torch.inference_mode()
def measure(
    networks: dict[str, nn.Module], pixels: Float[Tensor, "n 3 h w"], times: int
) -> dict[str, dict[str, float]]:
    """Return seconds of an image of each network, alone and in a batch, while they take turns."""
    runs: dict[str, dict[int, list[float]]] = {name: {1: [], BATCH: []} for name in networks}
    for turn in range(times + 1):
        for name, network in networks.items():
            for batch, taken in runs[name].items():
                start = time.perf_counter()
                network(pixels[:batch])
                if turn:  # the first one warms up
                    taken.append((time.perf_counter() - start) / batch)
    return {name: {"one_s": median(of[1]), "batch_s": median(of[BATCH])} for name, of in runs.items()}


def compare_answers(
    embeddings: Float[Tensor, "n k"],
    reference: Float[Tensor, "n k"],
    places: Float[Tensor, "m k"],
    coordinates: Float[Tensor, "m 2"],
    truth: Float[Tensor, "n 2"],
) -> dict[str, float]:
    """Return how the best places of embeddings of length 1 differ from those of their reference, and their accuracy."""
    best, expected = ((queries @ places.T).argmax(dim=1) for queries in (embeddings, reference))
    moved, error = haversine_km(coordinates[best], coordinates[expected]), haversine_km(coordinates[best], truth)
    accuracy = {f"within_{km}_km": 100 * float((error <= km).float().mean()) for km in THRESHOLDS_KM}
    return {
        "embedding_cosine": float(F.cosine_similarity(embeddings, reference).mean()),
        "equal_top_1": 100 * float((best == expected).float().mean()),
        "moved_km": float(moved.mean()),
        "moved_25_km": 100 * float((moved > 25).float().mean()),
        **accuracy,
    }


def measure_earth(n: int, calibration: int, times: int) -> dict[str, dict[str, float]]:
    """Return agreement, accuracy and times of the embedded model in each precision."""
    from open_geoclip.search.locator import Locator

    say(f"earth: {n:,} test views")
    locator = Locator.from_pretrained("earth", engine="torch", dtype="float32")
    encoder, backbone = locator.model.image_encoder, locator.model.image_encoder.backbone
    pixels, truth = earth_pixels("test", n)
    networks: dict[str, nn.Module] = {}
    for precision in PRECISIONS:
        say(f"earth: {precision}")
        networks[precision] = CompiledBackbone(
            backbone, precision, calibration=lambda: [*earth_pixels("train", calibration)[0]]
        )
    places = F.normalize(locator.search_space.index.embeddings.float(), dim=1)
    coordinates = torch.as_tensor(locator.gallery.coordinates, dtype=torch.float64)
    images = check_images(224)
    expected, expected_images = encode(backbone, pixels), encode(backbone, images)
    taken, found = measure(networks, pixels, times), {}
    with torch.inference_mode():
        reference = F.normalize(encoder.forward_head(expected), dim=1)
        for name, network in networks.items():
            features = encode(network, pixels)
            embeddings = F.normalize(encoder.forward_head(features), dim=1)
            found[name] = {
                **taken[name],
                "check_cosine": centred_cosine(encode(network, images), expected_images),
                "views_cosine": centred_cosine(features, expected),
                **compare_answers(embeddings, reference, places, coordinates, truth),
            }
    return found


def measure_clip(times: int) -> dict[str, dict[str, float]]:
    """Return times of CLIP ViT-L/14 with random weights in each precision, and its cosines, which mean little."""
    tower, images = random_tower(VIT_L_14), check_images(224)
    networks: dict[str, nn.Module] = {}
    for precision in PRECISIONS:
        say(f"ViT-L/14: {precision}")
        networks[precision] = CompiledBackbone(tower, precision, calibration=lambda: [*images])
    expected = encode(tower, images)
    taken = measure(networks, images, times)
    return {
        name: {**taken[name], "check_cosine": centred_cosine(encode(network, images), expected)}
        for name, network in networks.items()
    }


def to_markdown(found: dict[str, Any]) -> str:
    """Return the tables."""
    lines = [f"- {name}: {value}" for name, value in found["machine"].items()]
    for title, rows in (("`earth`", found["earth"]), ("CLIP ViT-L/14, random weights", found.get("clip"))):
        if not rows:
            continue
        one, batch = (rows["float32"][name] for name in ("one_s", "batch_s"))
        lines += ["", f"{title}, time of an image in OpenVINO:", ""]
        lines += [
            "| | alone | times faster | in batches of 8 | times faster | centred cosine, built-in images | at load |"
        ]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | --- |"]
        for name, row in rows.items():
            lines.append(
                f"| {name} | {seconds(row['one_s'])} | {one / row['one_s']:.2f} | {seconds(row['batch_s'])} "
                f"| {batch / row['batch_s']:.2f} | {row['check_cosine']:.5f} | {_verdict(name, rows)} |"
            )
    lines += ["", f"`earth`, {found['views']:,} test views, best place of the gallery, beside torch in float32:", ""]
    within = " | ".join(f"within {km} km" for km in THRESHOLDS_KM)
    lines += [f"| | centred cosine | equal top 1 | moved, mean | moved by more than 25 km | {within} |"]
    lines += ["| --- |" + " ---: |" * (4 + len(THRESHOLDS_KM))]
    for name, row in found["earth"].items():
        accuracy = " | ".join(f"{row[f'within_{km}_km']:.1f} %" for km in THRESHOLDS_KM)
        lines.append(
            f"| {name} | {row['views_cosine']:.5f} | {row['equal_top_1']:.1f} % | {row['moved_km']:.1f} km "
            f"| {row['moved_25_km']:.1f} % | {accuracy} |"
        )
    return "\n".join(lines)


def _verdict(precision: str, rows: dict[str, dict[str, float]]) -> str:
    """Return what the self-check makes of a precision."""
    if rows[precision]["check_cosine"] < LEAST_COSINE:
        return "refused"
    chosen = "bfloat16" if rows["bfloat16"]["check_cosine"] >= AUTO_COSINE else "float32"
    return "chosen by `auto`" if precision == chosen else "if asked for"


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=1024, help="test views; at most 4096")
    parser.add_argument("--calibration", type=int, default=128, help="training views that int8 is quantised on")
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--skip-clip", action="store_true", help="leave out ViT-L/14, whose quantisation takes minutes")
    parser.add_argument("--write", action="store_true", help="write docs/precision.md and benchmarks/results/ too")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": describe_machine("torch", "openvino", "nncf"), "views": options.views}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OPEN_GEOCLIP_CACHE"] = folder
        found["earth"] = measure_earth(options.views, options.calibration, options.times)
        if not options.skip_clip:
            found["clip"] = measure_clip(options.times)
    print(to_markdown(found))
    if options.write:
        put_between(PAGE, "precision", to_markdown(found))
        atomic_write(RESULTS, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
