"""Calibrating a model on photos of one's own: embeddings that survive interruptions, cross-validation, the fit."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from open_geoclip.data.splitting import clusters as find_clusters
from open_geoclip.errors import BenchmarkError, SettingsError
from open_geoclip.evaluation.calibration import fit_calibration
from open_geoclip.evaluation.evaluate import locator_settings, probe
from open_geoclip.evaluation.journal import Journal
from open_geoclip.evaluation.labelled import Labelled
from open_geoclip.evaluation.reliability import measure_calibration
from open_geoclip.images import ImageSource
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.locator import Locator
from open_geoclip.search.posterior import Posterior
from open_geoclip.weights.calibrations import UserCalibration

__all__ = ["CalibrationReport", "calibrate", "check_locator", "check_size"]

_MIN_PHOTOS, _MIN_CLUSTERS = 200, 20
_FOLDS = 5
_REFINED = 512  # photos that levels of refined posteriors are fitted on: they take longer
_BATCH = 32


@dataclass(frozen=True)
class CalibrationReport:
    """What :func:`calibrate` fitted and measured.

    Attributes:
        result: the calibration, not saved yet.
        n_photos: photos that it was fitted on.
        n_clusters: groups of photos of one place or one group.
        before: figures of :func:`~open_geoclip.evaluation.reliability.measure_calibration` with the locator's own.
        after: those of calibrations that were fitted without the photos they are measured on.
        broken: photos that could not be read, with the reason.
    """

    result: UserCalibration
    n_photos: int
    n_clusters: int
    before: dict[str, Any]
    after: dict[str, Any]
    broken: list[tuple[str, str]]


def calibrate(
    locator: Locator,
    labelled: Labelled,
    folder: Path,
    *,
    buffer_km: float = 1.0,
    progress: Callable[[int, int, int], None] | None = None,
) -> CalibrationReport:
    """Fit a calibration on photos whose places are known, and measure it by cross-validation.

    Photos of one group, or within the buffer of each other, are in one cluster. In each of five folds a calibration is
    fitted on four fifths of the photos and measured on the other clusters. The result is fitted on all photos.

    Args:
        locator: the model, its gallery, and the calibration to compare with.
        labelled: the photos.
        folder: keeps their embeddings: the same call resumes one that was killed.
        buffer_km: see above.
        progress: called with photos encoded, all photos, and those encoded by an earlier run.

    Raises:
        BenchmarkError: fewer than 200 photos can be used, or they are of fewer than 20 clusters, or most of them of
            one; or the folder cannot be written.
        SettingsError: see :func:`check_locator`.
    """
    weights_sha256 = check_locator(locator)
    check_size(labelled)
    settings = {**locator_settings(locator), "embeddings": True}
    del settings["calibration_sha256"]
    with Journal.opened(folder, settings, probe(locator)) as journal:
        lines, _ = journal.complete(labelled, partial(_encoded, locator), progress)
    rows = np.array([row for row, line in enumerate(lines) if "error" not in line], np.int64)
    broken = [(line["image"], line["error"]) for line in lines if "error" in line]
    if len(rows) < _MIN_PHOTOS:
        raise _too_few(f"{len(rows):,} photos that can be read")
    embeddings = torch.from_numpy(np.stack([_from_text(lines[row]["embedding"]) for row in rows]))
    known = [lines[row].get("distance") for row in rows]
    distances = None if None in known else torch.tensor(known, dtype=torch.float32)
    truth = labelled.truth[rows]
    groups = [None if labelled.groups is None else labelled.groups[row] for row in rows]
    clusters = find_clusters(truth, groups, buffer_km)
    folds = _folds(clusters)
    index, scale = locator.search_space.index, locator.model.scale

    def fit(part: np.ndarray, *, n_refined: int = 0) -> Calibration:
        return fit_calibration(
            index,
            embeddings[part],
            truth[part],
            scale,
            name=f"photos of {labelled.name}",
            n_refined=n_refined,
            distances=None if distances is None else distances[part],
        )

    def posteriors(part: np.ndarray, calibration: Calibration) -> Iterator[Posterior]:
        own = torch.from_numpy(np.flatnonzero(part))
        for some in own.split(_BATCH):
            off = None if distances is None else distances[some]
            yield locator.search_space.posterior(embeddings[some], scale, calibration, off)

    def held_out() -> Iterator[Posterior]:
        for fold in range(_FOLDS):
            calibration = fit(folds != fold)
            yield from posteriors(folds == fold, calibration)

    order = np.argsort(folds, kind="stable")
    before = measure_calibration(posteriors(np.ones(len(truth), bool), locator.calibration), truth, clusters)
    after = measure_calibration(held_out(), truth[order], clusters[order])
    result = UserCalibration(
        locator.model_name,
        locator.gallery.name,
        weights_sha256,
        locator.gallery.fingerprint,
        fit(np.ones(len(truth), bool), n_refined=min(len(truth), _REFINED)).to_dict(),
    )
    return CalibrationReport(result, len(truth), int(clusters.max()) + 1, before, after, broken)


def check_locator(locator: Locator) -> str:
    """Check that probabilities of a locator can be calibrated, and return the hash of its weights.

    Raises:
        SettingsError: it uses ten crops, another prior or a gallery in two levels, or has no hash of its weights.
    """
    if locator.encoding.crops != 1 or locator.answers.prior != "gallery" or locator.weights_sha256 is None:
        raise SettingsError("a calibration is of named weights, one crop and the gallery's own prior")
    if locator.search_space.groups is not None:
        raise SettingsError(f"{locator.gallery.name}: a gallery this large, in two levels, cannot be calibrated")
    return locator.weights_sha256


def check_size(labelled: Labelled) -> None:
    """Check that there are enough photos, before a model is loaded.

    Raises:
        BenchmarkError: there are fewer than 200.
    """
    if len(labelled) < _MIN_PHOTOS:
        raise _too_few(f"{len(labelled):,} photos with a place")


def _too_few(what: str) -> BenchmarkError:
    return BenchmarkError(
        f"{what} are too few for a calibration: it takes at least {_MIN_PHOTOS} of {_MIN_CLUSTERS} places or groups"
    )


def _encoded(locator: Locator, photos: Iterator[ImageSource]) -> Iterator[dict[str, Any]]:
    """Yield what the journal keeps of each photo: its embedding, its distance if known, or why it cannot be read."""
    for query in locator.query_images(photos):
        batch = query.encoded
        rows = iter(range(len(batch.embeddings)))
        for error in batch.errors:
            if error:
                yield {"error": error.reason}
                continue
            row = next(rows)
            distance = {} if batch.distances is None else {"distance": float(batch.distances[row])}
            yield {"embedding": _to_text(batch.embeddings[row].numpy())} | distance


def _to_text(embedding: Float[np.ndarray, " k"]) -> str:
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode()


def _from_text(text: str) -> Float[np.ndarray, " k"]:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


def _folds(clusters: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return the fold of each photo: clusters in random order, the largest first, each to the smallest fold."""
    sizes = np.bincount(clusters)
    largest = int(sizes.max())
    if len(sizes) < _MIN_CLUSTERS or largest > len(clusters) / 2:
        raise BenchmarkError(
            f"the {len(clusters):,} photos are of {len(sizes):,} places or groups, the largest of {largest:,}: a "
            f"calibration takes at least {_MIN_CLUSTERS}, none of more than half; add photos of other places, or "
            "take a smaller buffer (--buffer-km)"
        )
    fold_of, filled = np.empty(len(sizes), np.int64), np.zeros(_FOLDS, np.int64)
    shuffled = np.random.default_rng(0).permutation(len(sizes))
    for cluster in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[cluster] = filled.argmin()
        filled[fold_of[cluster]] += sizes[cluster]
    return fold_of[clusters]
