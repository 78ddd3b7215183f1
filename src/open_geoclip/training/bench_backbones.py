"""Image backbones compared: the same head, data, budget and seeds for each, and what each one costs."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from jaxtyping import Float64

from open_geoclip.data.sources import open_source
from open_geoclip.errors import SettingsError, TrainingError
from open_geoclip.evaluation.metrics import FIGURES, bootstrap, distances_km, figure_values, interval, summary
from open_geoclip.files import atomic_write
from open_geoclip.model.backbones.runtime import prepare_backbone
from open_geoclip.model.backbones.transformers import Feature
from open_geoclip.search.gallery import Gallery
from open_geoclip.training.cache import cache_features
from open_geoclip.training.checkpoint import CHECKPOINT
from open_geoclip.training.distributed import resolve_device
from open_geoclip.training.evaluation import best_places
from open_geoclip.training.features import FeatureExtractor
from open_geoclip.training.loop import Callbacks, check_batch
from open_geoclip.training.run import run
from open_geoclip.training.settings import DataSettings, RunSettings
from open_geoclip.weights.backbones import find_licence, load_image_backbone
from open_geoclip.weights.load import load_model

__all__ = ["bench_backbones", "markdown_table", "measure_cost"]

_SHOWN = ("within_25_km", "within_200_km", "within_750_km", "median_km")
_RESAMPLES = 2000


def bench_backbones(
    settings: RunSettings,
    backbones: Sequence[str],
    test: str,
    *,
    seeds: int = 3,
    speed: bool = True,
    callbacks: Callbacks | None = None,
) -> list[dict[str, Any]]:
    """Train a head on each backbone with each seed, and return accuracy on test photos and cost.

    Features, runs and results are in the output folder: a second call continues, also with further backbones or seeds.
    The last epoch is kept, so that nothing is chosen on the test photos.

    Args:
        settings: of all runs; ``backbone``, ``seed``, ``validation`` and ``monitor`` are replaced.
        backbones: names; all are loaded before the first photo is encoded.
        test: photos to test on, by a name that :func:`~open_geoclip.data.sources.open_source` knows.
        seeds: runs per backbone.
        speed: measure photos per second; otherwise it is None.
        callbacks: report progress.

    Returns:
        For each backbone ``backbone``, ``feature``, ``dim``, ``parameters``, ``memory_bytes``, ``photos_per_s``,
        ``licence``, ``seeds``, ``n``, and for each figure its mean over the seeds, ``interval`` (95 %, a bootstrap over
        the test photos) and ``deviation`` (standard deviation over the seeds; None for one seed).

    Raises:
        SettingsError: settings do not fit, test names the photos to train on, or the folder holds a comparison with
            other settings.
        ModelNameError, WeightsError, MissingExtraError: a backbone cannot be loaded.
    """
    callbacks, folder = callbacks or Callbacks(), Path(settings.output)
    if seeds < 1 or not backbones or len(set(backbones)) < len(backbones):
        raise SettingsError("name each backbone once, and one seed or more")
    if test == settings.data.train:
        raise SettingsError(f"test: {test} are the photos to train on: name others (geoclip data split divides them)")
    if settings.model.start:
        raise SettingsError("start: trained weights have one backbone; each one here gets a new head")
    settings = replace(
        settings,
        data=replace(settings.data, validation=0.0, buffer_km=DataSettings.buffer_km),
        train=replace(settings.train, monitor="", patience=0),
    )
    photos = open_source(settings.data.train, images=settings.data.images or None)
    if photos.count is not None:
        check_batch(settings.train, photos.count * settings.data.together, 1)
    test_photos = open_source(test, images=settings.data.images or None)
    _check_record(folder, settings, test)
    device = str(resolve_device(settings.model.device))
    costs = [
        _cost(name, settings.model.feature, device, _home(folder, name) / "cost.json", speed) for name in backbones
    ]
    rows = []
    for name, cost in zip(backbones, costs, strict=True):
        callbacks.log(f"{name}: {cost['parameters'] / 1e6:,.1f} million parameters, {cost['dim']:,} features per photo")
        km = np.stack([_test(settings, name, seed, test_photos, folder, callbacks) for seed in range(seeds)])
        rows.append({"backbone": name, **cost, "seeds": seeds, **_summarize(km)})
    return rows


def measure_cost(name: str, feature: Feature, device: str, seconds: float = 3.0) -> dict[str, Any]:
    """Return what a backbone costs, in a process that does nothing else: size, memory and, unless 0 seconds, speed."""
    module, preprocessing = load_image_backbone(name, feature=feature)
    cost: dict[str, Any] = {
        "feature": getattr(module, "feature", ""),
        "dim": module.dim,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "licence": find_licence(name),
        "device": device,
    }
    backbone = prepare_backbone(module, "auto", "auto", device, side=preprocessing.crop)
    pixels = torch.rand(16 if device == "cpu" else 128, 3, preprocessing.crop, preprocessing.crop, device=device)
    times: list[float] = []
    with torch.inference_mode():
        backbone(pixels)  # the first batch also reserves memory
        while sum(times) < seconds:
            start = time.perf_counter()
            backbone(pixels).cpu()
            times.append(time.perf_counter() - start)
    cost["memory_bytes"] = _peak_memory() if device == "cpu" else torch.cuda.max_memory_allocated(device)
    cost["photos_per_s"] = len(pixels) / median(times) if times else None
    return cost


def _peak_memory() -> int | None:
    """Return the most memory that this process has had, where the system says so."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else None


def _cost(name: str, feature: Feature, device: str, path: Path, speed: bool) -> dict[str, Any]:
    """Return the cost of a backbone, measured once in a process of its own."""
    if path.exists():
        cost: dict[str, Any] = json.loads(path.read_text())
        if cost["device"] == device and (cost["photos_per_s"] or not speed):
            return cost
    load_image_backbone(name, feature=feature)  # here, where its errors are raised as they are
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        cost = pool.submit(measure_cost, name, feature, device, 3.0 if speed else 0.0).result()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(cost, indent=2) + "\n")
    return cost


def _home(folder: Path, name: str) -> Path:
    return folder / "runs" / quote(name, safe="")


def _check_record(folder: Path, settings: RunSettings, test: str) -> None:
    """Check that what is in the folder was made with the same settings, or write them."""
    record = {
        "test": test,
        "data": asdict(settings.data),
        "model": asdict(settings.model) | {"backbone": ""},
        "train": asdict(replace(settings.train, seed=0)),
    }
    record = json.loads(json.dumps(record))
    path = folder / "settings.json"
    try:
        before = json.loads(path.read_text()) if path.exists() else record
        # A setting that an earlier version did not have counts as the same.
        before = {part: {**record[part], **old} if isinstance(old, dict) else old for part, old in before.items()}
        if before != record and any(folder.glob("runs/*/*/")):
            part = next(key for key in record if before.get(key) != record[key])
            raise SettingsError(f"{folder} holds a comparison with other settings ({part}): choose another output")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written: {error.strerror or error}: choose another output") from error


def _test(
    settings: RunSettings, name: str, seed: int, photos: Any, folder: Path, callbacks: Callbacks
) -> Float64[np.ndarray, " n"]:
    """Return the distance of each answer from the truth, of a model that is trained unless it was before."""
    home = _home(folder, name) / str(seed)
    path = home / "test_km.json"
    if path.exists():
        return np.array(json.loads(path.read_text()))
    callbacks.log(f"{name}: seed {seed}")
    cache = Path(settings.data.cache or folder / "features")
    trained = run(
        RunSettings(
            str(home),
            replace(settings.data, cache=str(cache)),
            replace(settings.model, backbone=name),
            replace(settings.train, seed=seed),
        ),
        resume=(home / CHECKPOINT).exists(),
        callbacks=callbacks,
    )
    chosen = settings.model
    model = load_model(f"dir:{trained}", towers=("text",))  # the head, without the backbone
    extractor = FeatureExtractor.load(
        name,
        feature=chosen.feature,
        device=resolve_device(chosen.device),
        batch_size=settings.data.encode_batch,
        adapter=model.image_encoder.adapter,
    )
    features = cache_features(
        photos, extractor, cache, workers=settings.data.workers,
        progress=lambda done, total: callbacks.encoding("test photos", done, total),
    ).first_view()  # fmt: skip
    gallery = torch.from_numpy(Gallery.from_file(trained / "gallery.csv").coordinates.astype(np.float64))
    km = distances_km(features.coordinates.numpy(), best_places(model, features.features, gallery).numpy()).round(4)
    atomic_write(path, json.dumps(km.tolist()))
    return km


def _summarize(km: Float64[np.ndarray, "seeds n"]) -> dict[str, Any]:
    """Return the mean of each figure over the seeds, its interval over the photos and its deviation over the seeds."""
    values = np.array([figure_values(summary(row)) for row in km])
    low_high = interval(bootstrap(km, _RESAMPLES).mean(axis=0))
    deviation = values.std(axis=0, ddof=1).tolist() if len(km) > 1 else [None] * len(FIGURES)
    figures = zip(FIGURES, values.mean(axis=0).tolist(), low_high, deviation, strict=True)
    return {"n": km.shape[1]} | {
        name: {"mean": mean, "interval": between, "deviation": spread} for name, mean, between, spread in figures
    }


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a table; means over the seeds with their standard deviation and 95 % interval."""
    head = ["backbone", "feature", "within 25 km, %", "200 km", "750 km", "median, km"]
    head += ["photos/s", "memory, MB", "parameters", "licence"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row["backbone"], " ".join(filter(None, [row["feature"], f"{row['dim']:,}"]))]
        for figure in _SHOWN:
            one = row[figure]
            spread = "" if one["deviation"] is None else f" ± {one['deviation']:,.1f}"
            cells.append("{:,.1f}{} ({:,.1f} to {:,.1f})".format(one["mean"], spread, *one["interval"]))
        rate, memory = row["photos_per_s"], row["memory_bytes"]
        cells += ["-" if rate is None else f"{rate:,.3g}", "-" if memory is None else f"{memory / 1e6:,.0f}"]
        cells += [f"{row['parameters'] / 1e6:,.1f} million", row["licence"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
