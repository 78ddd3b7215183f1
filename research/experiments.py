"""``make experiments``: the paper's experiments repeated on Earth views.

Each row is one training of some minutes on two cores. What is done stands in ``runs.jsonl``, so that the command can
be interrupted and goes on where it was; tables and plots are made from that file alone. All rows share features, views,
gallery and test; choices (the baseline's cells, its learning rate, k of the neighbours) are made on validation views.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from rich.console import Console
from torch import Tensor

from open_geoclip.data.earth import Basemap
from open_geoclip.data.earth_views import Split, even_land, near_any
from open_geoclip.data.sources import EarthViewPhotos
from open_geoclip.evaluation.baselines import nearest_images, neighbour_places, tuned_k
from open_geoclip.geo.sphere import geodesic_km
from open_geoclip.model.backbones.earth import EfficientNetLite
from open_geoclip.model.location_encoder import LocationSettings, Projection
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.cache import cache_features
from open_geoclip.training.evaluation import best_places
from open_geoclip.training.features import FeatureExtractor
from open_geoclip.training.loop import train
from open_geoclip.training.settings import TrainSettings
from research.cells import CellSettings, train_cells
from research.earth_model import new_model
from research.experiment_report import write_report
from research.view_features import earth_view_features

__all__ = ["Row", "main", "rows"]

VIEWS, HELD_OUT = 12_288, 4096
SPACING_KM = 50.0
SEEDS = (0, 1, 2)
SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
DIM = EfficientNetLite().dim
LOCATION = LocationSettings(sigmas=(4.0, 32.0), features=256, width=512, depth=3, output=512, projection="sphere")
PLAIN = LocationSettings(encoding="plain", width=512, depth=3, output=512, projection="sphere")
PROJECTED: tuple[Projection, ...] = ("sphere", "equal_earth", "degrees")
SETTINGS = TrainSettings(epochs=6)
EDGES = {"beyond 165 degrees of longitude": (0.0, 165.0), "beyond 65 degrees of latitude": (65.0, 0.0)}
EDGE_VIEWS, EDGE_POOL = 1024, 131_072  # views of each edge, and among how many they are looked for
CELLS = (
    CellSettings(most=(25,)),
    CellSettings(most=(100, 25)),
    CellSettings(most=(400, 100, 25)),
    CellSettings(most=(100, 10)),
    CellSettings(most=(100, 10), learning_rate=3e-4),
    CellSettings(most=(100, 10), epochs=16),
)
RESULTS = Path("docs/experiments")

console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """One training, or one answer without training.

    Attributes:
        group: the experiment it belongs to.
        name: what differs in it.
        method: ``geoclip``, ``cells`` or ``knn``.
        seed: of weights, order, noise, and of the views that a share of the data holds.
        share: of the training views.
        location: the location encoder.
        settings: of the contrastive training.
        cells: of the classifier; None: the one that did best on validation views.
        widths: of the image head.
        spacing_km: of the gallery; 0: the training coordinates are the gallery.
    """

    group: str
    name: str
    method: str = "geoclip"
    seed: int = 0
    share: float = 1.0
    location: LocationSettings = LOCATION
    settings: TrainSettings = SETTINGS
    cells: CellSettings | None = None
    widths: tuple[int, ...] = (DIM, 512, 512)
    spacing_km: float = SPACING_KM
    key: str = field(init=False)

    @property
    def is_about_edges(self) -> bool:
        """Whether it is tried on more views of the edges of a flat map than the test views have."""
        return self.group in ("main", "projection") or self.location.encoding == "plain"

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.group}/{self.name}/{self.seed}")


def rows() -> Iterator[Row]:
    """Every row, the ones that others wait for first."""
    for cells in CELLS:
        yield Row(
            "cells", f"at most {cells.most}, lr {cells.learning_rate:g}, {cells.epochs} epochs", "cells", cells=cells
        )
    for seed in SEEDS:
        yield Row("main", "sphere, sigmas 4 and 32", seed=seed)
    for sigmas in (
        (1.0,),
        (4.0,),
        (16.0,),
        (32.0,),
        (64.0,),
        (1.0, 16.0),
        (4.0, 32.0),
        (1.0, 16.0, 256.0),
        (2.0, 8.0, 32.0, 128.0),
    ):
        name = " + ".join(f"{sigma:g}" for sigma in sigmas)
        for seed in SEEDS:
            yield Row("levels", name, seed=seed, location=replace(LOCATION, sigmas=sigmas))
    for projection in PROJECTED:
        name = "no Fourier features" + ("" if projection == "sphere" else f", {projection}")
        for seed in SEEDS:
            if projection != "sphere":
                yield Row("projection", projection, seed=seed, location=replace(LOCATION, projection=projection))
            group = "levels" if projection == "sphere" else "projection"
            yield Row(group, name, seed=seed, location=replace(PLAIN, projection=projection))
    for queue in (0, 512, 2048, 4096):
        yield Row("queue", f"queue {queue}", settings=replace(SETTINGS, queue_size=queue))
    for noise, queue_noise in ((0.0, 0.0), (150.0, 1000.0), (10_000.0, 10_000.0)):
        settings = replace(SETTINGS, noise_m=noise, queue_noise_m=queue_noise)
        yield Row("noise", f"noise {noise:g} m, queue {queue_noise:g} m", settings=settings)
    for mask in (0.0, 100.0):
        yield Row("mask", f"negatives nearer than {mask:g} km left out", settings=replace(SETTINGS, mask_km=mask))
    for share in SHARES:
        for seed in SEEDS:
            # The same number of steps as far as four times the epochs go: fewer photos are seen more often.
            epochs = round(SETTINGS.epochs * min(4, 1 / share))
            for method in ("geoclip", "cells", "knn"):
                settings = replace(SETTINGS, epochs=epochs)
                yield Row("data", f"{method}, {share:.0%}", method, seed, share, settings=settings)
    for widths in ((DIM, 512), (DIM, 1024, 512), (DIM, 512, 512, 512)):
        yield Row("head", "-".join(map(str, widths)), widths=widths)
    for spacing in (200.0, 100.0, 30.0, 0.0):
        yield Row("gallery", f"{spacing:g} km apart" if spacing else "training coordinates", spacing_km=spacing)


@dataclass(frozen=True)
class _Views:
    train: FeatureSet
    validation: FeatureSet
    tests: dict[str, FeatureSet]
    edges: dict[str, FeatureSet]


def _share(data: FeatureSet, share: float, seed: int) -> FeatureSet:
    if share == 1:
        return data
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: round(share * len(data))]
    return FeatureSet(data.features[chosen], data.coordinates[chosen])


def _gallery(spacing_km: float, data: FeatureSet) -> Float64[Tensor, "m 2"]:
    return torch.from_numpy(np.round(even_land(spacing_km), 3)) if spacing_km else data.coordinates


def _figures(answers: Float64[Tensor, "n 2"], truth: Float64[Tensor, "n 2"]) -> dict[str, Any]:
    """Percent within 25 to 2500 km and the median, of all views and of those at the edges of a flat map."""
    km = geodesic_km(truth.numpy(), answers.numpy())
    parts = {"all": np.ones(len(truth), bool), **{name: _at_edge(truth.numpy(), name) for name in EDGES}}
    return {
        name: {
            "n": int(chosen.sum()),
            "within_km": {str(t): round(float(100 * np.mean(km[chosen] <= t)), 2) for t in (25, 200, 750, 2500)},
            "median_km": round(float(np.median(km[chosen])), 1),
        }
        for name, chosen in parts.items()
        if chosen.any()
    }


def _at_edge(places: Float64[np.ndarray, "n 2"], name: str) -> Bool[np.ndarray, " n"]:
    lat, lon = np.abs(places).T
    return np.asarray((lat > EDGES[name][0]) & (lon > EDGES[name][1]))


def _edge_views(folder: Path, name: str, progress: Callable[[int, int | None], None]) -> FeatureSet:
    """Views at an edge of a flat map: of the split that is trained on, behind those that are, and none near them."""
    every = EarthViewPhotos.opened("train", EDGE_POOL)
    rows = VIEWS + np.flatnonzero(_at_edge(every.centres[VIEWS:], name))
    rows = rows[~near_any(every.centres[rows], every.centres[:VIEWS])][:EDGE_VIEWS]
    return cache_features(every.select(rows), FeatureExtractor.load("earth"), folder, progress=progress).first_view()


def _asked(row: Row, views: _Views) -> dict[str, FeatureSet]:
    """What a row is tried on."""
    return {"validation": views.validation, **views.tests, **(views.edges if row.is_about_edges else {})}


def _answers(
    row: Row, data: FeatureSet, views: _Views, work: Path, done: dict[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Answers to each set of views, by its name."""
    asked = _asked(row, views)
    if row.method == "knn":
        k = tuned_k(
            *nearest_images(data.features, views.validation.features, 40),
            data.coordinates,
            views.validation.coordinates,
        )
        for name, part in asked.items():
            yield name, neighbour_places(*nearest_images(data.features, part.features, k), data.coordinates)
        return
    if row.method == "cells":
        cells = row.cells or best_cells(done)
        longer = round(cells.epochs * min(4, 1 / row.share))
        classifier = train_cells(data, replace(cells, seed=row.seed, epochs=longer))
        for name, part in asked.items():
            yield name, classifier.places(part.features)
        return
    settings = replace(row.settings, seed=row.seed, batch_size=min(row.settings.batch_size, len(data) // 2))
    torch.manual_seed(row.seed)
    model = new_model(data.features[:4096], row.widths[1:-1], row.location)
    train(model, data, settings, _folder(work, row), resume=True)
    gallery = _gallery(row.spacing_km, data)
    for name, part in asked.items():
        yield name, best_places(model, part.features, gallery)


def _folder(work: Path, row: Row) -> Path:
    """Where a row's checkpoint is; rows that differ in the gallery alone share their training."""
    return work / "runs" / ("gallery" if row.group == "gallery" else row.key.replace("/", "_").replace(" ", "_"))


def best_cells(done: dict[str, Any]) -> CellSettings:
    """The classifier that put most validation views within 200 km, among those that were tried."""
    tried = {row.key: row.cells for row in rows() if row.cells is not None}
    return tried[max(tried, key=lambda key: done[key]["validation"]["all"]["within_km"]["200"])]


def read(path: Path) -> dict[str, Any]:
    """Results by row."""
    if not path.exists():
        return {}
    return {(record := json.loads(line))["key"]: record for line in path.read_text().splitlines()}


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/earth-model"), help="features and checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of runs.jsonl, tables and plots")
    parser.add_argument("--only", help="one group")
    options = parser.parse_args()

    def features(split: Split, n: int, look: Basemap = "bluemarble") -> FeatureSet:
        told = partial(tell, f"{split} views, {look}")
        return earth_view_features(options.work / "features", split, n, imagery=look, progress=told)

    def tell(what: str, done: int, total: int | None) -> None:
        console.print(f"features of {what}: {done:,} of {total:,}")

    views = _Views(
        features("train", VIEWS),
        features("validation", HELD_OUT),
        {"test": features("test", HELD_OUT), "shadedrelief": features("test", HELD_OUT, "shadedrelief")},
        {name: _edge_views(options.work / "features", name, partial(tell, name)) for name in EDGES},
    )
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "runs.jsonl"
    todo = [row for row in rows() if options.only in (None, row.group)]
    for number, row in enumerate(todo, 1):
        done = read(path)
        if row.key in done:
            continue
        console.print(f"{number} of {len(todo)}: {row.key}")
        data = _share(views.train, row.share, row.seed)
        asked = _asked(row, views)
        found = {
            name: _figures(answers, asked[name].coordinates)
            for name, answers in _answers(row, data, views, options.work, done)
        }
        record = {"key": row.key, "settings": _described(row), **found}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if row.method == "geoclip" and row.group != "gallery":
            shutil.rmtree(_folder(options.work, row))
    found = read(path)
    write_report({row.key: found[row.key] for row in rows() if row.key in found}, options.results)


def _described(row: Row) -> dict[str, Any]:
    """What a row was made with."""
    about: dict[str, Any] = {"method": row.method, "share": row.share, "views": round(VIEWS * row.share)}
    if row.method == "geoclip":
        about |= {
            "location": asdict(row.location),
            "training": asdict(replace(row.settings, seed=row.seed)),
            "widths": row.widths,
            "spacing_km": row.spacing_km,
        }
    return about


if __name__ == "__main__":
    main()
