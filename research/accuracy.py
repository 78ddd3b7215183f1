"""``make accuracy``: calibration of the probabilities and accuracy of each decoding, on test views.

Writes docs/accuracy.md, its plot, and all figures as JSON. With ``--fit`` the calibration is fitted on validation
views first and written into the card of the model; nothing else here looks at them, and nothing is tuned on test views.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from rich.console import Console
from torch import Tensor

from open_geoclip.data.earth_views import Split
from open_geoclip.evaluation.calibration import ANSWER_KM, fit_calibration, fit_distribution, measure_calibration
from open_geoclip.evaluation.metrics import THRESHOLDS_KM, distances_km, summary
from open_geoclip.export.figures import draw_reliability
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.search.calibration import IN_DISTRIBUTION_SHARE, SURE_KM, SURE_PROBABILITY, Calibration
from open_geoclip.search.decode import DecodeMethod
from open_geoclip.search.encode import encode_images
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.locator import Locator
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.training.batches import FeatureSet
from open_geoclip.weights.folders import folder
from open_geoclip.weights.load import load_model, load_release
from open_geoclip.weights.save import save_calibration, save_subspace
from research.out_of_distribution import fit_subspace, out_of_distribution_images
from research.trip_evaluation import crops, neighbourhoods, refined, several_lines, trips
from research.view_features import Imagery, earth_view_features

__all__ = ["OTHER_RENDERINGS", "SUBSPACE_VIEWS", "encoded", "fitted", "main", "measure", "page"]

DECODINGS: tuple[tuple[str, DecodeMethod, float], ...] = (
    ("maximum", "max", 25.0),
    ("most probability within 25 km", "mass", 25.0),
    ("most probability within 200 km", "mass", 200.0),
    ("most probability within 750 km", "mass", 750.0),
    ("most probability within 2500 km", "mass", 2500.0),
    ("least expected distance", "distance", 25.0),
    ("best expected GeoScore", "geoscore", 25.0),
)
BINNED_KM = (25, 200, 750)  # distances whose reliability is drawn; at 2500 km nearly all is right
OTHER_RENDERINGS: tuple[Imagery, ...] = ("varied", "shadedrelief")  # validation views that are in distribution too
SUBSPACE_VIEWS = (131_072, 139_264)  # of the second stage of training
_CHUNK = 32  # images
_BETWEEN, _REFINED = 1024, 512  # views that refinement is calibrated and measured on: it takes longer

console = Console(stderr=True)


@dataclass(frozen=True)
class Views:
    """Embeddings of the images of one split, their true places, and the distances of their features."""

    embeddings: Float[Tensor, "n d"]
    truth: Float64[np.ndarray, "n 2"]
    distances: Float[Tensor, " n"] | None

    def __getitem__(self, rows: slice) -> "Views":
        distances = None if self.distances is None else self.distances[rows]
        return Views(self.embeddings[rows], self.truth[rows], distances)


@torch.inference_mode()
def encoded(model: GeoCLIP, data: FeatureSet) -> Views:
    """Encode images whose backbone features are known."""
    parts = [F.normalize(model.image_encoder.forward_head(part.float()), dim=1) for part in data.features.split(512)]
    subspace = model.image_encoder.subspace
    distances = None if subspace is None else subspace.distance(data.features)
    return Views(torch.cat(parts), data.coordinates.numpy(), distances)


def fitted(index: GalleryIndex, views: Views, scale: float, name: str, others: Sequence[Views] = ()) -> Calibration:
    """Fit the calibration by maximum likelihood on validation views.

    Args:
        index: of the gallery.
        views: to fit on.
        scale: the model's.
        name: of the views.
        others: further renderings, which are in distribution too.
    """

    def progress(done: int, total: int) -> None:
        console.print(f"calibration: {done:,} of {total:,} views")

    distribution = None
    if views.distances is not None:
        usual = [views, *others]
        best = [index.logits(part, 1.0).amax(dim=1) for one in usual for part in one.embeddings.split(128)]
        distances = [one.distances for one in usual if one.distances is not None]
        distribution = fit_distribution(torch.cat(best).double().numpy(), torch.cat(distances))
    return fit_calibration(
        index,
        views.embeddings,
        views.truth,
        scale,
        name=name,
        n_refined=_BETWEEN,
        distances=views.distances,
        distribution=distribution,
        progress=progress,
    )


def posteriors(
    index: GalleryIndex, cells: GalleryCells, views: Views, scale: float, calibration: Calibration
) -> Iterator[tuple[slice, Posterior, Posterior]]:
    """Yield posteriors of a few images at a time, calibrated and not."""
    for start in range(0, len(views.truth), _CHUNK):
        rows = slice(start, start + _CHUNK)
        part = views[rows]
        logits = index.logits(part.embeddings, scale)
        plain = Posterior.from_logits(logits, cells)
        yield (
            rows,
            Posterior.from_logits(logits, cells, calibration, scale=scale, distances=part.distances),
            plain,
        )


def count_sure(index: GalleryIndex, model: GeoCLIP, calibration: Calibration) -> dict[str, dict[str, int]]:
    """Count out-of-distribution images, and those with a sure answer, by kind."""
    cells = GalleryCells.from_gallery(index.gallery)
    found = {}
    for kind, images in out_of_distribution_images().items():
        batch = encode_images(model, images)
        logits = index.logits(batch.embeddings, model.scale)
        posterior = Posterior.from_logits(logits, cells, calibration, scale=model.scale, distances=batch.distances)
        sure = posterior.is_sure(posterior.profile(posterior.decode("mass", ANSWER_KM)))
        found[kind] = {"images": len(images), "sure": sum(map(bool, sure))}
    return found


def measure(index: GalleryIndex, views: Views, scale: float, calibration: Calibration) -> dict[str, Any]:
    """Measure one model on one set of views."""
    cells, n = GalleryCells.from_gallery(index.gallery), len(views.truth)
    answers, raw = {name: np.empty((n, 2)) for name, _, _ in DECODINGS}, np.empty(n)

    def decoded() -> Iterator[Posterior]:
        for rows, posterior, plain in posteriors(index, cells, views, scale, calibration):
            for name, how, radius in DECODINGS:
                answers[name][rows] = posterior.decode(how, radius)
            raw[rows] = plain.log_density(views.truth[rows])
            yield posterior
            console.print(f"{min(rows.stop, n):,} of {n:,} views")

    found = measure_calibration(decoded(), views.truth)
    return found | {
        "calibration": calibration.to_dict(),
        "decoding": {name: summary(distances_km(views.truth, places)) for name, places in answers.items()},
        "nats_per_km2": {"calibrated": found["nats_per_km2"], "not calibrated": float(-raw.mean())},
    }


def page(name: str, figures: dict[str, Any]) -> str:
    """Return docs/accuracy.md."""
    cal, test = figures["calibration"], figures
    lines = [
        "# Accuracy and calibration",
        "",
        f"Model `{name}`, {test['n']:,} test views of the Earth. `make accuracy` writes this page. No parameter was "
        "tuned on these views;",
        "only the decision to calibrate circles was made after the test results of the first model were known",
        "([log](log/2026-11-23-posterior.md)).",
        "",
        f"The calibration was fitted on {cal['n_images']:,} {cal['fitted_on']}: temperature {cal['temperature']}, "
        f"smoothing {cal['sigma_km']} km, background",
        f"{100 * cal['background']:.2f} % for an image whose best logit is {cal['reference_logit']:.1f}, its log odds "
        f"{cal['background_slope']:.2f} higher for each unit below. See",
        "[search/calibration.py](../src/open_geoclip/search/calibration.py) for the parameters.",
        "",
        "## Decoding",
        "",
        "| answer | " + " | ".join(f"{t} km" for t in THRESHOLDS_KM) + " | median km | mean km | GeoScore |",
        "| --- |" + " --- |" * 8,
    ]
    for how, s in test["decoding"].items():
        within = " | ".join(f"{s['within_km'][str(t)]:.1f}" for t in THRESHOLDS_KM)
        lines.append(f"| {how} | {within} | {s['median_km']:.1f} | {s['mean_km']:.1f} | {s['geoscore']:.0f} |")
    lines += [
        "",
        "Percent within each distance. The maximum is a place of the gallery, as in the released package; the other",
        "methods also give places between them.",
        "",
        "## Calibration",
        "",
        "| level | circle contains the true place | its median radius | smallest region contains the true place |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {s} % | {holds:.1f} % | {test['circle_median_km'][s]:.0f} km | {test['region_holds'][s]:.1f} % |"
        for s, holds in test["circle_holds"].items()
    ]
    lines += [
        "",
        "| distance | mean predicted probability | observed frequency | expected calibration error |",
        "| --- | --- | --- | --- |",
    ]
    for km, found in test["reliability"].items():
        weights = [b["n"] for b in found["bins"]]
        claimed, right = (np.average([b[k] for b in found["bins"]], weights=weights) for k in ("claimed", "right"))
        lines.append(f"| {km} km | {100 * claimed:.1f} % | {100 * right:.1f} % | {100 * found['ece']:.1f} % |")
    nats, sure = test["nats_per_km2"], test["sure"]
    lines += [
        "",
        "![Reliability diagram](reliability.png)",
        "",
        f"Negative log-likelihood of the true places: {nats['calibrated']:.2f} nats per km² "
        f"({nats['not calibrated']:.2f} without calibration; 18.82 for a uniform distribution over land).",
        "",
        f"An answer is sure if its probability within {SURE_KM:.0f} km is at least {100 * SURE_PROBABILITY:.0f} %, and "
        f"its best score is at least the {100 * (1 - IN_DISTRIBUTION_SHARE):.0f} % quantile of the validation views, "
        "and the image is [in distribution](out-of-distribution.md). "
        f"{sure['share']:.1f} % of the answers are sure; "
        + ", ".join(
            f"{value:.1f} % of {who} are right within {SURE_KM:.0f} km"
            for who, value in (("these", sure["right_when_sure"]), ("the others", sure["right_when_not_sure"]))
            if value is not None
        )
        + ".",
        "",
        "## Out-of-distribution images",
        "",
        "Answers for images that are no views of the Earth, such as a flower, should not be sure.",
        "",
        "| images | n | sure |",
        "| --- | --- | --- |",
        *(f"| {kind} | {count['images']} | {count['sure']} |" for kind, count in test["out_of_distribution"].items()),
        "",
        *several_lines(test),
        "The released `geoclip` weights are not calibrated, for lack of validation photos: `sure` is null, and",
        "probabilities use the temperature of the weights. How often their answers were right is",
        "[measured by place](reliability.md). With photos of your own, `geoclip calibrate` fits one.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Fit the calibration with ``--fit``, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="earth")
    parser.add_argument("--fit", action="store_true", help="fit on validation views and write it into the model's card")
    parser.add_argument("--features", type=Path, default=Path("build/earth-model/features"))
    parser.add_argument("--views", type=int, default=4096)
    parser.add_argument(
        "--subspace-views",
        type=int,
        nargs=2,
        default=SUBSPACE_VIEWS,
        metavar=("FIRST", "LAST"),
        help="training views that the subspace of features is fitted on",
    )
    parser.add_argument("--test-views", type=int, default=4096, help="measure on the first of them only")
    parser.add_argument(
        "--rendered", type=int, default=96, help="number of groups of views, and of images in ten crops, to render"
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--json", type=Path, default=Path("build/accuracy.json"))
    options = parser.parse_args()

    release = load_release(options.model)
    if release.gallery is None:
        parser.error(f"{options.model} has no gallery")
    model, gallery = load_model(release), Gallery.from_file(release.gallery)
    index = GalleryIndex.build(model.location_encoder, gallery)

    def views(split: Split, imagery: Imagery = "bluemarble") -> Views:
        return encoded(model, earth_view_features(options.features, split, options.views, imagery=imagery))

    if options.fit:
        trained_on = earth_view_features(
            options.features, "train", options.subspace_views[1], imagery="varied", first=options.subspace_views[0]
        )
        subspace = fit_subspace(trained_on.features)
        save_subspace(folder(options.model), subspace)
        model.image_encoder.subspace = load_release(options.model).subspace  # as it is stored
        others = [views("validation", imagery) for imagery in OTHER_RENDERINGS]
        calibration = fitted(index, views("validation"), model.scale, "validation views", others)
        save_calibration(folder(options.model), calibration.to_dict())
    else:
        calibration = Calibration.from_dict(release.calibration)
    console.print(calibration)
    if calibration.fitted_on is None:
        parser.error(f"{options.model} is not calibrated: --fit does it")
    test = views("test")
    test = test[: options.test_views]
    figures = measure(index, test, model.scale, calibration)
    figures["out_of_distribution"] = count_sure(index, model, calibration)
    locator = Locator.from_pretrained(options.model, dtype="float32")  # with the calibration as it now stands
    several: dict[str, Callable[[], dict[str, Any]]] = {
        "refined": lambda: refined(locator, test.embeddings[:_REFINED], test.truth[:_REFINED]),
        "neighbourhoods": lambda: neighbourhoods(locator, options.rendered),
        "trips": lambda: trips(locator, max(options.rendered // 2, 1)),
        "crops": lambda: crops(locator, options.rendered),
    }
    for name, work in several.items():
        console.print(name)
        figures[name] = work()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (options.docs / "accuracy.md").write_text(page(options.model, figures), encoding="utf-8")
    binned = {str(km): figures["reliability"][str(km)] for km in BINNED_KM}
    draw_reliability(options.docs / "reliability.png", binned)
    sys.stdout.write(page(options.model, figures))


if __name__ == "__main__":
    main()
