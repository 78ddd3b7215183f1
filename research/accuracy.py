"""``make accuracy``: calibration of the probabilities and accuracy of each decoding, on test views.

Writes docs/accuracy.md, its plot, and all figures as JSON. With ``--fit`` the calibration is fitted on validation
views first (:mod:`research.view_calibration`) and written into the card of the model; nothing else here looks at them,
and nothing is tuned on test views.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from open_geoclip.data.earth_views import Split
from open_geoclip.evaluation.calibration import ANSWER_KM
from open_geoclip.evaluation.metrics import THRESHOLDS_KM, distances_km, summary
from open_geoclip.evaluation.reliability import measure_calibration
from open_geoclip.export.figures import draw_reliability
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.search.calibration import SURE_KM, Calibration
from open_geoclip.search.decode import DecodeMethod
from open_geoclip.search.encode import encode_images
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.locator import Locator
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.weights.folders import folder
from open_geoclip.weights.load import load_model, load_release
from open_geoclip.weights.save import save_calibration, save_subspace
from research.out_of_distribution import fit_subspace, out_of_distribution_images
from research.trip_evaluation import crops, neighbourhoods, refined, several_lines, trips
from research.view_calibration import FIT_VIEWS, Views, compare_factors, encoded, fit_view_calibration, posteriors
from research.view_features import ALTERED, Imagery, earth_view_features

__all__ = ["SUBSPACE_VIEWS", "main", "measure", "page"]

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
SUBSPACE_VIEWS = (131_072, 139_264)  # of the second stage of training
_REFINED = 512  # views that refinement is measured on: it takes longer

console = Console(stderr=True)


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

    found = measure_calibration(decoded(), views.truth, np.arange(n))
    return found | {
        "calibration": calibration.to_dict(),
        "decoding": {name: summary(distances_km(views.truth, places)) for name, places in answers.items()},
        "nats_per_km2": {"calibrated": found["nats_per_km2"], "not calibrated": float(-raw.mean())},
    }


def measure_renderings(
    index: GalleryIndex, renderings: dict[str, Views], scale: float, calibration: Calibration
) -> dict[str, dict[str, Any]]:
    """Measure the calibration on each rendering, with intervals over the views."""
    cells, found = GalleryCells.from_gallery(index.gallery), {}
    for name, views in renderings.items():
        console.print(name)
        calibrated = (posterior for _, posterior, _ in posteriors(index, cells, views, scale, calibration))
        found[name] = measure_calibration(calibrated, views.truth, np.arange(len(views)))
    return found


def renderings_lines(figures: dict[str, dict[str, Any]], fitted_on: str) -> list[str]:
    """Return the part of docs/accuracy.md about other renderings."""
    n = next(iter(figures.values()))["n"]
    lines = [
        "## When the world differs",
        "",
        f"{n:,} test views of each rendering, 95 % bootstrap intervals. The calibration was fitted on {fitted_on}, "
        "as they are,",
        "in all weathers, of ETOPO1, and [altered](../research/altered_views.py): recoloured, coarse, hazy, noisy, of "
        "other contrast, as JPEG. None of them",
        "is of January or May, and those of shaded relief were left out.",
        "",
        "| views | 50 % circles hold | 90 % circles hold | median radius, 50, 90 % | sure | sure answers right "
        "| calibration error, 25, 200, 750 km |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in figures.items():
        holds = [
            f"{found['circle_holds'][s]:.1f} % ({low:.1f} to {high:.1f})"
            for s, (low, high) in found["circle_interval"].items()
        ]
        low, high = found["sure_interval"]
        errors = ", ".join(f"{100 * found['reliability'][str(km)]['ece']:.1f}" for km in BINNED_KM)
        radii = ", ".join(f"{km:.0f}" for km in found["circle_median_km"].values())
        lines.append(
            f"| {name} | {' | '.join(holds)} | {radii} km | {found['sure']['share']:.1f} % "
            f"| {found['sure']['right_when_sure']:.2f} % ({low:.2f} to {high:.2f}) | {errors} % |"
        )
    return [*lines, "", "Right: within 200 km.", ""]


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
        f"The calibration was fitted on {cal['n_images']:,} {cal['fitted_on']}: smoothing {cal['sigma_km']} km; "
        f"temperature {cal['temperature']} and background",
        f"{100 * cal['background']:.2f} % for an image whose best logit is {cal['reference_logit']:.1f}; the logarithm "
        f"of the temperature is {cal['temperature_slope']:.3f}, the log odds of the background",
        f"{cal['background_slope']:.2f} higher for each unit below. See [search/calibration.py]"
        "(../src/open_geoclip/search/calibration.py) for the parameters.",
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
        f"An answer is sure if its probability within {SURE_KM:.0f} km is at least "
        f"{100 * cal['sure_probability']:.1f} %, with which 99 % of such answers are right on each kind of validation "
        f"views, its best score is at least {cal['sure_score']:.3f}, and the image is "
        "[in distribution](out-of-distribution.md). "
        f"{sure['share']:.1f} % of the answers are sure; "
        + ", ".join(
            f"{value:.1f} % of {who} are right within {SURE_KM:.0f} km"
            for who, value in (("these", sure["right_when_sure"]), ("the others", sure["right_when_not_sure"]))
            if value is not None
        )
        + ".",
        "",
        *renderings_lines({"Blue Marble, August": test} | test["renderings"], cal["fitted_on"]),
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
    parser.add_argument("--factors", action="store_true", help="compare factors of the fit, on validation views")
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
    parser.add_argument("--january", type=Path, default=Path("build/others/january.jpg"))
    parser.add_argument("--may", type=Path, default=Path("build/others/may.jpg"))
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
        n = min(options.views, FIT_VIEWS) if imagery in ALTERED else options.views
        return encoded(model, earth_view_features(options.features, split, n, imagery=imagery))

    if options.factors:
        for line in compare_factors(index, partial(views, "validation"), model.scale):
            print(line, flush=True)
        return
    if options.fit:
        trained_on = earth_view_features(
            options.features, "train", options.subspace_views[1], imagery="varied", first=options.subspace_views[0]
        )
        subspace = fit_subspace(trained_on.features)
        save_subspace(folder(options.model), subspace)
        model.image_encoder.subspace = load_release(options.model).subspace  # as it is stored
        calibration = fit_view_calibration(index, partial(views, "validation"), model.scale)
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
    others: dict[str, Imagery] = {"Blue Marble, January": options.january}
    others |= {"Blue Marble, May, at 20 km a pixel": options.may, "shaded relief": "shadedrelief"}
    renderings = {name: views("test", imagery)[: options.test_views] for name, imagery in others.items()}
    figures["renderings"] = measure_renderings(index, renderings, model.scale, calibration)
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
