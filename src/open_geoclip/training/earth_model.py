"""``make earth-model``: make the embedded model again, from the package indexes alone.

Views of the Earth are rendered in all seasons and weathers; EfficientNet-Lite0 turns them into features. Captions are
made for them from facts; MiniLM turns these into sentence vectors. Features and sentences are aligned in one space and
frozen, and image head and location encoder are trained on top. The result is measured on test views and written into
the package with its card. Everything can be interrupted and is taken up again. Settings were chosen on validation
views; test views are looked at once, here, after the weights are final.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from open_geoclip import pretrained
from open_geoclip._version import __version__
from open_geoclip.data.earth_views import Split, even_land
from open_geoclip.evaluation.metrics import summary
from open_geoclip.evaluation.neighbours import nearest_pictures, neighbour_places, tuned_k
from open_geoclip.model.backbones.earth import PREPROCESSING, EfficientNetLite0
from open_geoclip.model.image_encoder import image_head
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.two_towers import TwoTowers
from open_geoclip.pretrained.places import EMBEDDED
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex
from open_geoclip.sphere import geodesic_km
from open_geoclip.training.accuracy import encoded, fitted
from open_geoclip.training.alignment import AlignedHead, AlignSettings, Projections, align
from open_geoclip.training.contrastive import TrainSettings, train
from open_geoclip.training.features import CaptionSet, FeatureSet, SeenAs, earth_view_captions, earth_view_features

VIEWS = 131_072  # 32 shards of features
CAPTIONS = 2  # a view
SPACING_KM = 50.0  # of the gallery, even over land: 54,000 places
RECIPE = "made by `make earth-model`"
LOCATION = LocationSettings(sigmas=(4.0, 32.0), features=256, width=512, depth=3, output=512, projection="sphere")
ALIGNMENT = AlignSettings()
WIDTHS = (ALIGNMENT.width + EfficientNetLite0.dim, 512, 512)
SETTINGS = TrainSettings(epochs=10)

console = Console(stderr=True)


@torch.inference_mode()
def best_places(
    head: Callable[[Tensor], Tensor], locations: LocationEncoder, data: FeatureSet, gallery: Float64[Tensor, "m 2"]
) -> Float64[Tensor, "n 2"]:
    """The best place in a gallery for each picture."""
    places = locations.encode(gallery)
    rows = [(F.normalize(head(part.float()), dim=1) @ places.T).argmax(dim=1) for part in data.features.split(1024)]
    return gallery[torch.cat(rows)]


def measured(answers: Float64[Tensor, "n 2"], data: FeatureSet) -> dict[str, Any]:
    """Figures of merit, rounded for print."""
    found = summary(geodesic_km(data.coordinates.numpy(), answers.numpy()))
    return {
        "n": found["n"],
        "within_km": {threshold: round(share, 1) for threshold, share in found["within_km"].items()},
        "median_km": round(found["median_km"], 1),
        "mean_km": round(found["mean_km"], 1),
        "geoscore": round(found["geoscore"]),
    }


def main() -> None:
    """Render, encode, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/earth-model"), help="features and checkpoints")
    parser.add_argument("--output", type=Path, default=EMBEDDED, help="folder of the finished model")
    parser.add_argument("--views", type=int, default=VIEWS, help="training views")
    parser.add_argument(
        "--other",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "FILE"),
        type=str,
        help="a picture of the whole Earth that is not trained on, to measure on",
    )
    options = parser.parse_args()

    def features(split: Split, n: int, look: SeenAs = "bluemarble") -> FeatureSet:
        def progress(done: int, total: int) -> None:
            console.print(f"features of {look}, {split}: {done:,} of {total:,} views")

        return earth_view_features(options.work / "features", split, n, look=look, progress=progress)

    def told(done: int, total: int) -> None:
        console.print(f"sentence vectors: {done:,} of {total:,} captions")

    data, validation = features("train", options.views, "varied"), features("validation", 4096)
    captions = earth_view_captions(options.work / "features", "train", options.views, CAPTIONS, progress=told)
    torch.manual_seed(SETTINGS.seed)
    projections = aligned(data, captions, options.work / "alignment.safetensors")
    head, locations = AlignedHead(image_head(WIDTHS), projections), LocationEncoder(LOCATION)
    gallery = torch.from_numpy(np.round(even_land(SPACING_KM), 3))

    def evaluate(_: float) -> dict[str, float]:
        found = measured(best_places(head.of_images, locations, validation, gallery), validation)
        return {**{f"within_{k}_km": v for k, v in found["within_km"].items()}, "median_km": found["median_km"]}

    with_captions = FeatureSet(
        torch.cat([data.features, captions.sentences[captions.rows[:, 0]]], dim=1), data.coordinates
    )
    scale = train(head, locations, with_captions, SETTINGS, options.work / "run", evaluate=evaluate, report=report)
    tensors = head.folded()
    tensors |= {f"location_encoder.{name}": tensor for name, tensor in locations.state_dict().items()}
    tensors["logit_scale"] = torch.tensor(scale).log()
    save(options, tensors, gallery, card={})  # without its figures, to measure what is really saved

    model = TwoTowers.from_release(pretrained.load(f"dir:{options.output}"))
    towers = (model.image_encoder.of_features, model.location_encoder)
    table = Gallery.from_coordinates(gallery.numpy())
    with TemporaryDirectory() as cache:
        index = GalleryIndex.build(model.location_encoder, table, folder=Path(cache))
        calibration = fitted(index, encoded(model, validation), model.scale, "validation views")
    accuracy = {"validation": measured(best_places(*towers, validation, gallery), validation)}
    looks: list[tuple[str, SeenAs]] = [("test", "bluemarble"), ("test on shaded relief", "shadedrelief")]
    looks += [(f"test on {name}", Path(file)) for name, file in options.other]
    k = tuned_k(*nearest_pictures(data.features, validation.features, 40), data.coordinates, validation.coordinates)
    for name, look in looks:
        views = features("test", 4096, look)
        accuracy[name] = measured(best_places(*towers, views, gallery), views)
        retrieved = neighbour_places(*nearest_pictures(data.features, views.features, k), data.coordinates)
        accuracy[f"{name}, by picture retrieval (kNN)"] = measured(retrieved, views)
    card = {
        "title": "GeoCLIP for views of the Earth from orbit",
        "source": f"{RECIPE} (open-geoclip {__version__})",
        "licence": "MIT; made from NASA's Blue Marble (public domain) and EfficientNet-Lite0 (Apache-2.0)",
        "trained_on": f"{len(data):,} rendered views of the Earth, in all weathers, with captions",
        "training": asdict(SETTINGS),
        "alignment": asdict(ALIGNMENT),
        "accuracy": {
            f"Earth views, {name}": {f"{km} km": share for km, share in figures["within_km"].items()}
            for name, figures in accuracy.items()
            if name.startswith("test")
        },
        "measured": accuracy,
        "calibration": calibration.to_dict(),
    }
    save(options, tensors, gallery, card)
    console.print_json(json.dumps(accuracy))


def report(figures: dict[str, float]) -> None:
    """Print an epoch's figures."""
    console.print(json.dumps(figures))


def aligned(data: FeatureSet, captions: CaptionSet, path: Path) -> Projections:
    """Projections of pictures and sentences into one space, trained or as they were kept."""
    projections = Projections(data.features[:8192], captions.sentences.shape[1], ALIGNMENT.width)
    if path.exists():
        projections.load_state_dict(load_file(path))
        return projections.requires_grad_(False)
    align(projections, data.features, captions.sentences, captions.rows, ALIGNMENT, report)
    temporary = path.with_suffix(".part")
    save_file(projections.state_dict(), temporary)
    temporary.replace(path)
    return projections


def save(
    options: argparse.Namespace, tensors: dict[str, Tensor], gallery: Float64[Tensor, "m 2"], card: dict[str, Any]
) -> None:
    """Write the model in the package's own layout."""
    table = options.work / "gallery.csv"
    table.write_text("lat,lon\n" + "".join(f"{lat:.3f},{lon:.3f}\n" for lat, lon in gallery.tolist()))
    config = {
        "location_encoder": asdict(LOCATION) | {"sigmas": list(LOCATION.sigmas)},
        "image_encoder": {"backbone": "earth", "aligned": ALIGNMENT.width, "widths": list(WIDTHS)},
        "text_encoder": {"backbone": "minilm"},
        "preprocessing": asdict(PREPROCESSING),
        "card": card,
    }
    pretrained.save_release(options.output, tensors, config, gallery=table, dtype="float16")


if __name__ == "__main__":
    main()
