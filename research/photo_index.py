"""``python -m research.photo_index FEATURES``: what an index of views with known places gives to answers about others.

Compares the location model alone, retrieval alone and both as one posterior, on test views of four renderings. The rule
of the combination, its calibration and the k of retrieval are fitted on validation views of the sources that the
model's own calibration is fitted on (:mod:`research.view_calibration`): none is of January, May or shaded relief. Each
row is written to docs/experiments/photo-index.jsonl when it is done, and a second run continues; the page is made of
them. Needs ``pip install 'open-geoclip[earth]'`` and features (:mod:`research.view_features`).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int64

from open_geoclip.evaluation.evidence import calibrate_evidence, fit_evidence
from open_geoclip.evaluation.metrics import distances_km
from open_geoclip.geo.sphere import coordinates_of, unit_vectors
from open_geoclip.search.evidence import combine
from open_geoclip.search.locator import Locator
from open_geoclip.search.photo_index import PhotoIndex
from open_geoclip.search.photo_records import IndexRecords, Neighbours, QueryPhotos
from open_geoclip.search.posterior import Posterior
from open_geoclip.training.batches import FeatureSet
from research.view_calibration import FIT_IMAGERY, FIT_VIEWS, source_numbers
from research.view_features import ALTERED, Imagery, earth_view_features

__all__ = ["main", "measure", "page", "retrieve"]

RADII_KM = (25, 200, 750, 2500)
SIZES = (131_072, 100_000, 10_000, 1_000)
SEEDS = 3
VIEWS, TEST_VIEWS = 4096, 2048  # of features that are kept, and of those that are located
_KS = (1, 3, 5, 10, 20)  # neighbours of retrieval alone, chosen on validation views
_SHARES = (0.5, 0.9)
_FITTED = 256  # validation views of each imagery that the rule is fitted on
_CALIBRATED = 512  # others of each, that it is calibrated on
_RESAMPLES = 1000
_PAGE = Path(__file__).resolve().parents[1] / "docs/experiments/photo-index.md"

View = tuple[Posterior, Neighbours]
Known = list[tuple[FeatureSet, Int64[np.ndarray, " n"]]]
"""Validation views of several imageries, and of each view the number of its source."""


def pool(folder: Path) -> FeatureSet:
    """Return the views that are indexed: half of all in varied weather, half of the Blue Marble."""
    parts = [
        earth_view_features(folder, "train", 196_608, imagery="varied", first=131_072),
        earth_view_features(folder, "train", 262_144, imagery="bluemarble", first=196_608),
    ]
    return FeatureSet(torch.cat([p.features for p in parts]), torch.cat([p.coordinates for p in parts]))


def known_views(locator: Locator, folder: Path) -> Known:
    """Return the validation views of each imagery, without those that are held out or out of distribution."""
    found = []
    for imagery, numbers in zip(FIT_IMAGERY, source_numbers(FIT_VIEWS), strict=True):
        n = FIT_VIEWS if imagery in ALTERED else VIEWS  # as they are kept for the calibration of the model
        views = earth_view_features(folder, "validation", n, imagery=imagery)
        posteriors = Queries(locator, views).posteriors(range(FIT_VIEWS))
        inside = [bool(one.is_in_distribution is None or one.is_in_distribution[0]) for one in posteriors]
        rows = np.flatnonzero(np.array(inside) & (numbers >= 0))
        found.append((FeatureSet(views.features[rows], views.coordinates[rows]), numbers[rows]))
    return found


def retrieve(neighbours: Sequence[Neighbours], k: int) -> Float64[np.ndarray, "n 2"]:
    """Return the place among the first k neighbours that is best supported: nearest to the others, by similarity."""
    found = []
    for near in neighbours:
        points = unit_vectors(near.coordinates[:k])
        weight = np.exp((near.similarity[:k] - near.similarity[0]) / 0.1)
        support = (np.exp(-(2 - 2 * points @ points.T) / (2 * (100 / 6371) ** 2)) * weight).sum(axis=1)
        best = int(np.argmax(support))
        close = points @ points[best] > np.cos(150 / 6371)
        found.append(coordinates_of(torch.from_numpy((points[close] * weight[close, None]).sum(axis=0))).numpy())
    return np.stack(found)


class Queries:
    """Views of one rendering: embeddings, features, places."""

    def __init__(self, locator: Locator, views: FeatureSet) -> None:
        self.locator, self.features, self.truth = locator, views.features, views.coordinates.numpy()
        with torch.inference_mode():
            parts = views.features.split(1024)
            embeddings = [locator.model.image_encoder.forward_head(part.float()) for part in parts]
        self.embeddings = F.normalize(torch.cat(embeddings), dim=1)
        subspace = locator.model.image_encoder.subspace
        self.distances = None if subspace is None else subspace.distance(views.features)

    def posteriors(self, rows: range) -> Iterator[Posterior]:
        """Yield posteriors of some views by the location model."""
        space, scale, calibration = self.locator.search_space, self.locator.model.scale, self.locator.calibration
        for start in range(rows.start, rows.stop, 64):
            part = slice(start, min(start + 64, rows.stop))
            known = None if self.distances is None else self.distances[part]
            whole = space.posterior(self.embeddings[part], scale, calibration, known)
            yield from (whole[row] for row in range(len(whole)))

    def views(self, index: PhotoIndex, rows: range, k: int = 24) -> Iterator[View]:
        """Yield posterior and neighbours of some views."""
        posteriors = self.posteriors(rows)
        for start in range(rows.start, rows.stop, 64):
            part = slice(start, min(start + 64, rows.stop))
            for near in index.search(QueryPhotos(self.features[part]), k):
                yield next(posteriors), near


def measure(
    locator: Locator,
    views: FeatureSet,
    validation: Known,
    tests: dict[str, FeatureSet],
    size: int,
    seed: int,
) -> dict[str, Any]:
    """Index ``size`` of the views, fit on validation views, and locate test views in three ways.

    Args:
        locator: the model.
        views: to be indexed.
        validation: what :func:`known_views` returns.
        tests: by name.
        size: of the index.
        seed: draws the views that are indexed (of all 131,072 a sample with replacement, each once), and the
            validation views.
    """
    rng = np.random.default_rng([seed, size])
    rows = np.unique(rng.integers(0, len(views.features), len(views.features)))  # a bootstrap sample
    if size < len(views.features):
        rows = np.sort(rng.permutation(len(views.features))[:size])
    elif seed == 0:
        rows = np.arange(len(views.features))
    order = torch.from_numpy(rng.permutation(rows))
    with tempfile.TemporaryDirectory() as folder:
        records = IndexRecords.from_features(views.features[order], views.coordinates[order].numpy())
        index = PhotoIndex.create(Path(folder) / "index", records, backbone="earth")
        del records
        return {"photos": len(index)} | _fit_and_locate(locator, index, validation, tests, rng)


def _fit_and_locate(
    locator: Locator,
    index: PhotoIndex,
    validation: Known,
    tests: dict[str, FeatureSet],
    rng: np.random.Generator,
) -> dict[str, Any]:
    fitted, calibrating = [], []
    for part, numbers in validation:
        rows = rng.permutation(len(numbers))[: _FITTED + _CALIBRATED]
        known = Queries(locator, FeatureSet(part.features[rows], part.coordinates[rows]))
        views = list(zip(known.views(index, range(len(rows))), known.truth, numbers[rows], strict=True))
        fitted += views[:_FITTED]
        calibrating += views[_FITTED:]
    first, second = ([view for view, _, _ in part] for part in (fitted, calibrating))
    truth = [np.stack([place for _, place, _ in part]) for part in (fitted, calibrating)]
    sources = np.array([number for _, _, number in calibrating])
    settings = fit_evidence([one for one, _ in first], [near for _, near in first], truth[0])
    near = [neighbours for _, neighbours in second]
    calibration = calibrate_evidence([one for one, _ in second], near, truth[1], settings, "validation views", sources)
    k = max(_KS, key=lambda k: float((distances_km(truth[1], retrieve(near, k)) <= 200).mean()))
    found: dict[str, Any] = {"settings": vars(settings), "k": k, "sets": {}}
    for name, part in tests.items():
        queries = Queries(locator, part)
        km: dict[str, list[Any]] = {"model": [], "both": []}
        held, within, sure, seen = [], [], [], []
        for number, (posterior, neighbours) in enumerate(queries.views(index, range(len(part.features)))):
            place = queries.truth[number][None]
            both = combine(posterior, neighbours, settings, calibration)
            for way, one in (("model", posterior), ("both", both)):
                answer = one.decode("mass", 75.0)
                km[way].append(float(distances_km(place, answer)[0]))
            profile = both.profile(answer)
            held.append((km["both"][-1] <= profile.radius_km(_SHARES)[0]).tolist())
            within.append(float(profile.within((200,))[0, 0]))
            sure.append(bool(both.is_sure(profile)[0]))
            seen.append(neighbours)
        km["retrieval"] = distances_km(queries.truth, retrieve(seen, k)).tolist()
        found["sets"][name] = {
            "held": {way: _held(values) for way, values in km.items()},
            "circle_holds": (100 * np.mean(held, axis=0)).tolist(),
            "claimed_200": 100 * float(np.mean(within)),
            "sure": [100 * float(np.mean(sure)), _right(km["both"], sure)],
        }
    return found


def _held(km: Sequence[float]) -> str:
    """Return for each view the first of the radii that holds the answer, as a digit; one more than the last: none."""
    return "".join(map(str, np.searchsorted(RADII_KM, km)))


def _within(held: str) -> Bool[np.ndarray, "n radii"]:
    return np.array(list(held), int)[:, None] <= np.arange(len(RADII_KM))


def _right(km: Sequence[float], sure: Sequence[bool]) -> float | None:
    chosen = np.asarray(km)[np.asarray(sure, bool)]
    return 100 * float((chosen <= 200).mean()) if len(chosen) else None


def page(runs: Sequence[dict[str, Any]]) -> str:
    """Return the page: accuracy by set and size with intervals of paired differences, and calibration."""
    views = runs[0]["views"]
    seeds = sorted({run["seed"] for run in runs})
    lines = [
        "# Photo index on Earth views",
        "",
        "`python -m research.photo_index FEATURES --others FOLDER` writes this page from "
        "[photo-index.jsonl](photo-index.jsonl).",
        "",
        f"Indexed: training views of the embedded model (half in varied weather). {views:,} test views of each "
        "rendering; January and May were never trained on, shaded relief is one in seven of the varied views. The "
        f"rule of the combination ({_FITTED} validation views of each imagery that the calibration of the model is "
        f"fitted on: none of January, May or shaded relief), its calibration ({_CALIBRATED} others) and the number of "
        "neighbours of retrieval alone are fitted on validation views; levels hold on each of their sources, and of "
        "sure answers 99 % are right on each. A seed draws the views that are indexed (of all 131,072: seed 0 takes "
        "all, others a bootstrap sample, each view once), those that the projection is fitted on, and the validation "
        "views.",
        f"Seeds: {', '.join(map(str, seeds))}. Percent of test views within each distance, mean over seeds; gain: both "
        "minus the better of the two others, with the 95 % interval of paired resamples of views (all seeds of a view "
        "together).",
        "",
    ]
    for size in sorted({run["size"] for run in runs}, reverse=True):
        here = [run for run in runs if run["size"] == size]
        lines += [f"## {size:,} views indexed, {len(here)} {'seed' if len(here) == 1 else 'seeds'}", ""]
        heads = "".join(f" {km} km | gain |" for km in RADII_KM)
        lines += [f"| views | answer by |{heads}", "| --- | --- |" + " ---: | ---: |" * len(RADII_KM)]
        for name in here[0]["sets"]:
            lines += _rows(name, [run["sets"][name]["held"] for run in here])
        lines += [
            "",
            "| views | 50 % circles hold | 90 % circles hold | claimed, right within 200 km | sure, of these right |",
        ]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        for name in here[0]["sets"]:
            several = [run["sets"][name] for run in here]
            half, most = np.mean([one["circle_holds"] for one in several], axis=0)
            right = np.mean([_within(one["held"]["both"])[:, RADII_KM.index(200)] for one in several])
            sure = np.mean([one["sure"][0] for one in several])
            of_sure = [one["sure"][1] for one in several if one["sure"][1] is not None]
            claimed = np.mean([one["claimed_200"] for one in several])
            text = f"{np.mean(of_sure):.1f}" if of_sure else "none"
            lines.append(
                f"| {name} | {half:.1f} | {most:.1f} | {claimed:.1f}, {100 * right:.1f} | {sure:.1f}, {text} |"
            )
        fitted = "; ".join(", ".join(f"{key} {value:g}" for key, value in run["settings"].items()) for run in here)
        lines += [
            "",
            f"Fitted: {fitted}. Neighbours of retrieval alone: {', '.join(str(run['k']) for run in here)}.",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _rows(name: str, several: Sequence[dict[str, str]]) -> list[str]:
    hits = {
        way: 100 * np.mean([_within(held[way]) for held in several], axis=0) for way in ("model", "retrieval", "both")
    }
    n = len(hits["both"])
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
    rows = []
    for way, text in (("model", "location model"), ("retrieval", "retrieval"), ("both", "both")):
        cells = []
        for column in range(len(RADII_KM)):
            gain = ""
            if way == "both":
                other = max(("model", "retrieval"), key=lambda one: hits[one][:, column].mean())
                difference = hits["both"][:, column] - hits[other][:, column]
                low, high = np.quantile(draws @ difference, (0.025, 0.975))
                gain = f"{difference.mean():+.1f} ({low:+.1f} to {high:+.1f})"
            cells.append(f" {hits[way][:, column].mean():.1f} | {gain} |")
        rows.append(f"| {name} | {text} |{''.join(cells)}")
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m research.photo_index")
    parser.add_argument("features", type=Path, help="folder of research.view_features")
    parser.add_argument("--others", type=Path, help="folder of january.jpg and may.jpg", required=True)
    parser.add_argument("--views", type=int, default=TEST_VIEWS, help="test views of each rendering")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--output", type=Path, default=_PAGE)
    arguments = parser.parse_args(words)
    records = arguments.output.with_suffix(".jsonl")
    runs = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    runs = [run for run in runs if run["views"] == arguments.views]
    done = {(run["size"], run["seed"]) for run in runs}

    def load(split: Any, imagery: Imagery) -> FeatureSet:
        return earth_view_features(arguments.features, split, VIEWS, imagery=imagery)

    imageries: dict[str, Imagery] = {
        "test": "bluemarble",
        "January": arguments.others / "january.jpg",
        "May": arguments.others / "may.jpg",
        "shaded relief": "shadedrelief",
    }
    tests = {}
    for name, imagery in imageries.items():
        whole = load("test", imagery)
        tests[name] = FeatureSet(whole.features[: arguments.views], whole.coordinates[: arguments.views])
    locator, views = Locator.from_pretrained("earth"), pool(arguments.features)
    validation = known_views(locator, arguments.features)
    for seed in range(arguments.seeds):
        for size in arguments.sizes:
            if (size, seed) in done:
                continue
            run = measure(locator, views, validation, tests, size, seed)
            runs.append({"size": size, "seed": seed, "views": arguments.views, **run})
            with records.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
            arguments.output.write_text(page(runs), encoding="utf-8")
            print(f"{size:,} views, seed {seed}: done", file=sys.stderr)
    arguments.output.write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
