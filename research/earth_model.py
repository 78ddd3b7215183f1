"""``make earth-model``: make the embedded model again, from the package indexes alone.

Views of the Earth are rendered in all seasons and weathers; EfficientNet-Lite0 turns them into features. Captions are
made for them from facts; MiniLM turns these into sentence embeddings. Features and sentences are aligned in one space
and frozen, and image head and location encoder are trained on top, in three stages: on views in all weathers, then
twice on as many new ones, half of them as the camera saw them, with smooth targets and places nearby as candidates, in
cycles of a learning rate that falls to nothing. The model is the mean of the weights at the end of the last cycles
(Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018). It is measured on test
views and written into the package with its card. Everything can be interrupted and is taken up again. Settings were
chosen on validation views; test views are looked at once, here, after the weights are final.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from open_geoclip._version import __version__
from open_geoclip.data.earth_views import Split, even_land
from open_geoclip.evaluation.baselines import nearest_images, neighbour_places, tuned_k
from open_geoclip.evaluation.metrics import summary
from open_geoclip.files import atomic_file
from open_geoclip.geo.sphere import geodesic_km
from open_geoclip.model.backbones.earth import PREPROCESSING, EfficientNetLite
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.subspace import PrincipalSubspace
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.evaluation import best_places
from open_geoclip.training.loop import Callbacks, train
from open_geoclip.training.settings import TrainSettings
from open_geoclip.weights.folders import EMBEDDED
from open_geoclip.weights.load import load_model, load_release
from open_geoclip.weights.save import save_release, save_self_check, save_subspace
from research.alignment import AlignedEncoder, AlignSettings, Projections, align
from research.out_of_distribution import fit_subspace
from research.view_calibration import FIT_VIEWS, encoded, fit_view_calibration
from research.view_features import ALTERED, CaptionSet, Imagery, earth_view_captions, earth_view_features

VIEWS = 131_072  # of each stage: 32 shards of features
CAPTIONS = 2  # a view of the first stage; one in the others
SPACING_KM = 50.0  # of the gallery, even over land: 54,000 places
BY_RETRIEVAL = "by image retrieval"
RECIPE = "made by `make earth-model`"
LOCATION = LocationSettings(sigmas=(4.0, 32.0), features=256, width=512, depth=3, output=512, projection="sphere")
ALIGNMENT = AlignSettings()
WIDTHS = (ALIGNMENT.width + EfficientNetLite().dim, 512, 512)
SETTINGS = TrainSettings(epochs=10)
FURTHER = TrainSettings(  # each cycle after the first stage
    epochs=6, learning_rate=5e-4, mask_km=0.0, smooth_km=(50.0,), nearby_places=4, nearby_km=(15.0, 500.0)
)


@dataclass(frozen=True)
class Cycle:
    """A pass of the learning rate from its start to nothing.

    Attributes:
        stages: whose views are trained on, 0 being the first stage.
        settings: of the training.
        weight: of what it ends with, in the mean that is released.
    """

    stages: tuple[int, ...]
    settings: TrainSettings
    weight: float


CYCLES = (
    Cycle((1,), replace(FURTHER, learning_rate=7e-4), weight=0.0),
    Cycle((1,), replace(FURTHER, seed=1), weight=1.0),
    Cycle((2,), replace(FURTHER, seed=2), weight=1.0),
    Cycle((1, 2), replace(FURTHER, epochs=5, seed=3), weight=2.0),
)

console = Console(stderr=True)


def new_model(features: Tensor, hidden: tuple[int, ...], location: LocationSettings) -> GeoCLIP:
    """Return a model with random weights, for features like these."""
    encoder = ImageEncoder(None, None, ImageSettings(widths=(features.shape[1], *hidden, location.output)))
    encoder.standardize_features(features)
    return GeoCLIP(encoder, LocationEncoder(location))


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


@dataclass(frozen=True)
class Views:
    """Features and captions of Earth views, told of while they are made.

    Attributes:
        folder: where they are kept.
    """

    folder: Path

    def features(self, split: Split, n: int, look: Imagery = "bluemarble", first: int = 0) -> FeatureSet:
        """Features of views ``first`` to ``n``."""

        def progress(done: int, total: int) -> None:
            console.print(f"features of {look}, {split}: {done:,} of {total:,} views")

        return earth_view_features(self.folder, split, n, imagery=look, first=first, progress=progress)

    def stage(self, number: int, n: int) -> FeatureSet:
        """Features of the n views of a stage: all weathers in the first, half as the camera saw them in the others."""
        first, middle, last = number * n, number * n + n // 2, (number + 1) * n
        if not number:
            return self.features("train", n, "varied")
        return joined(self.features("train", middle, "varied", first=first), self.features("train", last, first=middle))

    def captioned(self, number: int, n: int) -> tuple[FeatureSet, CaptionSet]:
        """Rows of features of a stage followed by the view's first caption, and all captions."""

        def progress(done: int, total: int) -> None:
            console.print(f"sentence embeddings: {done:,} of {total:,} captions")

        data, first, last = self.stage(number, n), number * n, (number + 1) * n
        each = 1 if number else CAPTIONS
        captions = earth_view_captions(self.folder, "train", last, each, first=first, progress=progress)
        rows = torch.cat([data.features, captions.sentences[captions.rows[:, 0]]], dim=1)
        return FeatureSet(rows, data.coordinates), captions


def main() -> None:
    """Render, encode, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/earth-model"), help="features and checkpoints")
    parser.add_argument("--output", type=Path, default=EMBEDDED, help="folder of the finished model")
    parser.add_argument("--views", type=int, default=VIEWS, help="training views of each stage")
    parser.add_argument("--start", metavar="MODEL", help="weights to begin the cycles with, instead of a first stage")
    parser.add_argument(
        "--other",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "FILE"),
        type=str,
        help="an image of the whole Earth that is not trained on, to measure on",
    )
    parser.add_argument(
        "--self-check", action="store_true", help="write the embeddings of the self-check of the finished model alone"
    )
    options = parser.parse_args()
    if options.self_check:
        save_self_check(options.output)
        return

    views = Views(options.work / "features")
    validation = views.features("validation", 4096)
    gallery = torch.from_numpy(np.round(even_land(SPACING_KM), 3))
    tensors, seen = trained(options, views, validation, gallery)
    release(options, tensors, views, validation, seen, gallery)


def release(
    options: argparse.Namespace,
    tensors: dict[str, Tensor],
    views: Views,
    validation: FeatureSet,
    seen: FeatureSet,
    gallery: Float64[Tensor, "m 2"],
) -> None:
    """Save the model, measure and calibrate what was saved, and save it again with these figures in its card."""
    # The second stage's first views, in all weathers.
    subspace = fit_subspace(views.features("train", options.views + 8192, "varied", first=options.views).features)
    save(options, tensors, gallery, subspace, card={})  # without its figures, to measure what is really saved
    accuracy, calibration = measurements(options, views, validation, seen, gallery)
    stages = len({0, *(stage for cycle in CYCLES for stage in cycle.stages)})
    card = {
        "title": "GeoCLIP for views of the Earth from orbit",
        "source": f"{RECIPE} (open-geoclip {__version__})",
        "licence": "MIT; made from NASA's Blue Marble (public domain) and EfficientNet-Lite0 (Apache-2.0)",
        "trained_on": f"{stages * options.views:,} rendered views of the Earth, in all weathers, with captions",
        "training": {"first": asdict(SETTINGS), "further": [asdict(cycle) for cycle in CYCLES]},
        "alignment": asdict(ALIGNMENT),
        "accuracy": {
            f"Earth views, {name}": {f"{km} km": share for km, share in figures["within_km"].items()}
            for name, figures in accuracy.items()
            if name.startswith("test") and BY_RETRIEVAL not in name
        },
        "measured": accuracy,
        "calibration": calibration.to_dict(),
    }
    save(options, tensors, gallery, subspace, card)
    console.print_json(json.dumps(accuracy))


def trained(
    options: argparse.Namespace, views: Views, validation: FeatureSet, gallery: Float64[Tensor, "m 2"]
) -> tuple[dict[str, Tensor], FeatureSet]:
    """Weights, by their names in a release, and the views that they were trained on here."""

    def evaluate(model: GeoCLIP) -> dict[str, float]:
        found = measured(best_places(model, validation.features, gallery), validation)
        return {**{f"within_{k}_km": v for k, v in found["within_km"].items()}, "median_km": found["median_km"]}

    def stage(data: FeatureSet, settings: TrainSettings, run: str) -> None:
        callbacks = Callbacks(epoch=report)
        train(model, data, settings, options.work / run, evaluate=evaluate, callbacks=callbacks, resume=True)

    n = options.views
    if options.start:
        release = load_release(options.start)
        encoder = AlignedEncoder.unfolded(release.tensors, views.stage(1, n).features[:8192])
        scale = release.tensors["logit_scale"].exp().item()
        model = GeoCLIP(encoder, load_model(release, towers=()).location_encoder, scale=scale)
        seen = []
    else:
        first = views.stage(0, n)
        data, captions = views.captioned(0, n)
        torch.manual_seed(SETTINGS.seed)
        projections = aligned(first, captions, options.work / "alignment.safetensors")
        model = GeoCLIP(AlignedEncoder(WIDTHS, projections), LocationEncoder(LOCATION), scale=SETTINGS.start_scale)
        stage(data, SETTINGS, "run")
        seen = [first]
    ends = []
    for number, cycle in enumerate(CYCLES, 1):
        torch.manual_seed(cycle.settings.seed)
        stage(joined(*(views.captioned(one, n)[0] for one in cycle.stages)), cycle.settings, f"further-{number}")
        ends.append(released(model))
    seen += [views.stage(one, n) for one in sorted({one for cycle in CYCLES for one in cycle.stages})]
    return mean_weights(ends), joined(*seen)


def mean_weights(ends: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of the weights at the end of each cycle, as they count."""
    counts = torch.tensor([cycle.weight for cycle in CYCLES])
    return {n: torch.einsum("c,c...->...", counts / counts.sum(), torch.stack([e[n] for e in ends])) for n in ends[0]}


def released(model: GeoCLIP) -> dict[str, Tensor]:
    """Return the weights as they are now, by their names in a release."""
    encoder = model.image_encoder
    assert isinstance(encoder, AlignedEncoder)
    own = {n: tensor for n, tensor in model.state_dict().items() if not n.startswith("image_encoder.")}
    return {name: tensor.detach().clone() for name, tensor in (encoder.folded() | own).items()}


def measurements(
    options: argparse.Namespace,
    views: Views,
    validation: FeatureSet,
    seen: FeatureSet,
    gallery: Float64[Tensor, "m 2"],
) -> tuple[dict[str, Any], Calibration]:
    """Figures of what was saved, image retrieval among the views seen beside them, and its calibration."""
    model = load_model(f"dir:{options.output}")  # with its subspace, which save() has written
    table = Gallery.from_coordinates(gallery.numpy())
    with TemporaryDirectory() as cache:
        index = GalleryIndex.build(model.location_encoder, table, folder=Path(cache))
        calibration = fit_view_calibration(
            index,
            lambda look: encoded(model, views.features("validation", FIT_VIEWS if look in ALTERED else 4096, look)),
            model.scale,
        )
    accuracy = {"validation": measured(best_places(model, validation.features, gallery), validation)}
    looks: list[tuple[str, Imagery]] = [("test", "bluemarble"), ("test on shaded relief", "shadedrelief")]
    looks += [(f"test on {name}", Path(file)) for name, file in options.other]
    k = tuned_k(*nearest_images(seen.features, validation.features, 40), seen.coordinates, validation.coordinates)
    for name, look in looks:
        asked = views.features("test", 4096, look)
        accuracy[name] = measured(best_places(model, asked.features, gallery), asked)
        retrieved = neighbour_places(*nearest_images(seen.features, asked.features, k), seen.coordinates)
        accuracy[f"{name}, {BY_RETRIEVAL} (kNN) among {len(seen):,} views"] = measured(retrieved, asked)
    return accuracy, calibration


def report(figures: dict[str, float]) -> None:
    """Print an epoch's figures."""
    console.print(json.dumps(figures))


def joined(*parts: FeatureSet) -> FeatureSet:
    """Several sets as one."""
    return FeatureSet(torch.cat([p.features for p in parts]), torch.cat([p.coordinates for p in parts]))


def aligned(data: FeatureSet, captions: CaptionSet, path: Path) -> Projections:
    """Projections of images and sentences into one space, trained or as they were kept."""
    projections = Projections(data.features[:8192], captions.sentences.shape[1], ALIGNMENT.width)
    if path.exists():
        projections.load_state_dict(load_file(path))
        return projections.requires_grad_(False)
    align(projections, data.features, captions.sentences, captions.rows, ALIGNMENT, report)
    with atomic_file(path) as temporary:
        save_file(projections.state_dict(), temporary)
    return projections


def save(
    options: argparse.Namespace,
    tensors: dict[str, Tensor],
    gallery: Float64[Tensor, "m 2"],
    subspace: PrincipalSubspace,
    card: dict[str, Any],
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
    save_release(options.output, tensors, config, gallery=table, dtype="float16")
    save_subspace(options.output, subspace)
    save_self_check(options.output)


if __name__ == "__main__":
    main()
