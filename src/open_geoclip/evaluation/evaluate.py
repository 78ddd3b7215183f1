"""Evaluate a model on labelled photos."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from PIL import Image

from open_geoclip._version import __version__
from open_geoclip.errors import BenchmarkError
from open_geoclip.evaluation.bounds import LEAK_M, LEAK_SHARE, MAX_LEAK_SHARE, ceiling, nearest_km, random_place
from open_geoclip.evaluation.journal import Journal
from open_geoclip.evaluation.labelled import Labelled
from open_geoclip.evaluation.metrics import (
    LEVEL,
    Distance,
    bootstrap,
    distances_km,
    interval,
    score,
    summary,
)
from open_geoclip.files import sha256
from open_geoclip.search.answer import Answer
from open_geoclip.search.index import index_key
from open_geoclip.search.locator import Locator

__all__ = ["Evaluation", "Names", "evaluate", "leaks", "locator_settings", "probe"]

Names = Callable[[Float[np.ndarray, "n 2"]], Sequence[str | None]]
"""Returns the name of the country, or of the continent, of each place; None at sea."""

_FAR_KM = 20_000.0


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of :func:`evaluate`.

    Attributes:
        figures: for JSON; see docs/evaluation.md.
        table: columns by name, a row per answered photo, as :func:`~.predictions.read_predictions` reads them.
        truth: (lat, lon) of the answered photos.
        predicted: their answers.
        distance_km: between the two.
    """

    figures: dict[str, Any]
    table: dict[str, list[Any]]
    truth: Float64[np.ndarray, "n 2"]
    predicted: Float64[np.ndarray, "n 2"]
    distance_km: Float64[np.ndarray, " n"]


def leaks(nearest: Float64[np.ndarray, " n"], gallery: str, *, allowed: bool = False) -> dict[str, Any]:
    """Count the photos whose coordinates are in the gallery.

    Args:
        nearest: distance of each true place from the gallery, in km.
        gallery: its name, for the message.
        allowed: do not raise.

    Raises:
        BenchmarkError: they are more than :data:`~.bounds.MAX_LEAK_SHARE`, and that is not allowed.
    """
    count = int(np.count_nonzero(nearest <= LEAK_M / 1000))
    found = {"photos": count, "percent": 100 * count / len(nearest), "within_m": LEAK_M, "allowed": allowed}
    if count > MAX_LEAK_SHARE * len(nearest) and not allowed:
        raise BenchmarkError(
            f"the gallery {gallery} holds the coordinates of {count:,} of the {len(nearest):,} test photos (within "
            f"{LEAK_M:g} m): it was made of the answers. Use a gallery of other photos, or --allow-leak"
        )
    return found


def evaluate(
    locator: Locator,
    labelled: Labelled,
    folder: Path,
    *,
    distance: Distance = "haversine",
    resamples: int = 1000,
    allow_leak: bool = False,
    countries: Names | None = None,
    continents: Names | None = None,
    settings: dict[str, Any] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Evaluation:
    """Locate all photos and measure the errors. Answers are written to the folder; the same call resumes a killed one.

    Args:
        locator: the model and its gallery.
        labelled: photos and their places.
        folder: of the answers.
        distance: see :func:`~.metrics.distances_km`.
        resamples: for the intervals; 0 for none.
        allow_leak: go on although the gallery holds the coordinates of more than half of the photos.
        countries: for country accuracy.
        continents: for a table by continent.
        settings: further ones of the locator, such as its dtype; answers of other settings are not reused.
        progress: called with photos done, all photos, and those done by an earlier call.

    Raises:
        BenchmarkError: the gallery holds the test's coordinates, no photo can be read, the folder cannot be written.
    """
    gallery = locator.gallery
    nearest = nearest_km(labelled.truth, gallery)
    leak = leaks(nearest, gallery.name, allowed=allow_leak)
    settings = locator_settings(locator) | (settings or {})
    started = time.perf_counter()
    with Journal.opened(folder, settings, probe(locator)) as journal:
        lines, resumed = journal.complete(labelled, lambda photos: map(_fields, locator.stream(photos, 1)), progress)
    seconds = time.perf_counter() - started
    good = np.array([row for row, line in enumerate(lines) if "error" not in line], np.int64)
    broken = [line for line in lines if "error" in line]
    if len(good) == 0:
        raise BenchmarkError(
            f"none of the {len(lines):,} photos can be read; the first is {broken[0]['image']}: {broken[0]['error']}"
        )
    truth = labelled.truth[good]
    predicted = np.array([(lines[row]["lat"], lines[row]["lon"]) for row in good], np.float64)
    groups = None if labelled.groups is None else [labelled.groups[row] for row in good]
    drawn = groups if groups is not None and len(set(groups)) > 1 else None
    resamples = resamples if len(good) > 1 else 0
    km = distances_km(truth, predicted, distance)
    figures = score(truth, predicted, distance=distance, resamples=resamples, groups=drawn)
    clean = nearest[good] > LEAK_M / 1000
    leak["without"] = None
    if clean.any() and not clean.all():
        rest = None if drawn is None else [group for group, is_clean in zip(drawn, clean, strict=True) if is_clean]
        again = resamples if len(set(rest or range(clean.sum()))) > 1 else 0
        leak["without"] = score(truth[clean], predicted[clean], distance=distance, resamples=again, groups=rest)
    counts = dict(labelled.counts) | {"photos_broken": len(broken), "photos_answered": len(good)}
    asked = len(good) + len(broken) + counts["photos_missing"]
    figures |= {
        "within_km_of_all": {key: value * len(good) / asked for key, value in figures["within_km"].items()},
        "data": labelled.name,
        "model": locator.model_name,
        "version": __version__,
        "settings": settings,
        "gallery": {"name": gallery.name, "places": len(gallery), "sha256": gallery.fingerprint},
        "gallery_ceiling": ceiling(nearest[good]),
        "gallery_random_place": random_place(truth, gallery),
        "leak": leak,
        "counts": counts,
        "missing": list(labelled.missing[:20]),
        "broken": [{"image": line["image"], "error": line["error"]} for line in broken[:20]],
        "labels": {
            "file": labelled.table.name,
            "sha256": labelled.table_sha256,
            "places_sha256": labelled.places_sha256,
            "group": labelled.group_column,
        },
        "photos_sha256": _photos_sha256(lines),
        "seconds": seconds,
        "photos_per_second": (len(lines) - resumed) / seconds if len(lines) > resumed else None,
        "resumed": resumed,
        "notes": [*labelled.notes, *_leak_notes(leak, len(labelled))],
    }
    table: dict[str, list[Any]] = {
        "id": [labelled.ids[row] for row in good],
        "image": [labelled.images[row] for row in good],
        "idx": labelled.rows[good].tolist(),
        **({} if groups is None else {"group": groups}),
        "true_lat": truth[:, 0].tolist(),
        "true_lon": truth[:, 1].tolist(),
        "pred_lat": predicted[:, 0].tolist(),
        "pred_lon": predicted[:, 1].tolist(),
        "distance_km": km.tolist(),
        "gallery_nearest_km": nearest[good].tolist(),
        "score": [lines[row]["score"] for row in good],
        "probability": [lines[row]["probability"] for row in good],
        "sha256": [lines[row]["sha256"] for row in good],
    }
    for name, names in (("country", countries), ("continent", continents)):
        if names is not None:
            true, answered = list(names(truth)), list(names(predicted))
            table |= {f"true_{name}": true, f"pred_{name}": answered}
            figures[name] = _agreement(true, answered, resamples, drawn) | {"by": _by_name(true, answered, km)}
    return Evaluation(figures, table, truth, predicted, km)


def _fields(answer: Answer) -> dict[str, Any]:
    """Return what the journal keeps of an answer."""
    if answer.error is not None:
        return {"error": answer.error}
    return {name: getattr(answer.candidates[0], name) for name in ("lat", "lon", "score", "probability")}


def locator_settings(locator: Locator) -> dict[str, Any]:
    """Return what answers depend on, except the backbone's weights, which the probe distinguishes."""
    head = hashlib.sha256()
    learned = locator.model.image_encoder.state_dict()
    for name, tensor in sorted((name, learned[name]) for name in learned if not name.startswith("backbone.")):
        head.update(name.encode())
        head.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    encoder = locator.model.image_encoder
    return {
        "model": locator.model_name,
        "backbone": encoder.settings.backbone,
        "engine": type(encoder.backbone).__name__,
        "image_head_sha256": head.hexdigest(),
        "places_and_location_encoder_sha256": index_key(locator.model.location_encoder, locator.gallery),
        "weights_sha256": locator.weights_sha256,
        "gallery_sha256": locator.gallery.fingerprint,
        "scale": round(locator.model.scale, 6),
        "calibration_sha256": locator.calibration.fingerprint,
        "crops": locator.encoding.crops,
        "max_pixels": locator.encoding.max_pixels,
        "answers": {name: str(value) for name, value in vars(locator.answers).items() if name != "prior"},
        "prior_sha256": sha256(locator.search_space.cells.log_prior.numpy().tobytes()),
        "refine": locator.refine,
        "photo_index_sha256": None if locator.evidence is None else locator.evidence.fingerprint,
    }


def probe(locator: Locator) -> Float[np.ndarray, " k"]:
    """The vector of an image of coloured blocks, the same on every machine."""
    blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((224, 224), Image.Resampling.NEAREST)
    return np.asarray(locator.encode([image])[0])


def _photos_sha256(lines: Sequence[dict[str, Any]]) -> str:
    """Return the sha256 of the lines "sha256  name" of all photos, as sha256sum prints them, sorted by name."""
    listed = sorted((line["image"], line["sha256"]) for line in lines)
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in listed).encode()).hexdigest()


def _leak_notes(leak: dict[str, Any], photos: int) -> list[str]:
    if leak["photos"] == 0:
        return []
    held = f"the gallery holds the coordinates of {leak['photos']:,} of {photos:,} photos (within {LEAK_M:g} m)"
    if leak["photos"] <= LEAK_SHARE * photos:
        return [f"{held}: so few that landmarks explain them"]
    if leak["without"] is None:
        return [f"LEAK: {held}: these figures say nothing about other photos and must not be quoted"]
    within = ", ".join(f"{share:.2f}" for share in leak["without"]["within_km"].values())
    rest = f"the other {leak['without']['n']:,} are right for {within} % within 1, 25, 200, 750, 2500 km"
    return [f"LEAK: {held}: quote the figures without them: {rest}"]


def _agreement(
    true: Sequence[str | None], answered: Sequence[str | None], resamples: int, groups: Sequence[str] | None
) -> dict[str, Any]:
    """Return the percentage of photos on land whose answer has the same name, and its interval."""
    land = [row for row, name in enumerate(true) if name is not None]
    right = np.array([true[row] == answered[row] for row in land], bool)
    found: dict[str, Any] = {"n": len(land), "percent": 100 * float(right.mean()) if land else None, "interval": None}
    units = None if groups is None else [groups[row] for row in land]
    if resamples and len(land if units is None else set(units)) > 1:
        # As distances, right ones are within any threshold and wrong ones within none.
        draws = bootstrap(np.where(right, 0.0, _FAR_KM)[None], resamples, groups=units)[0]
        found |= {"interval": interval(draws)[0], "level": LEVEL}
    return found


def _by_name(
    true: Sequence[str | None], answered: Sequence[str | None], km: Float64[np.ndarray, " n"]
) -> dict[str, dict[str, Any]]:
    """Return the figures of the photos of each name, most photos first."""
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(true):
        rows_of.setdefault(name or "at sea", []).append(row)
    found = {}
    for name, rows in sorted(rows_of.items(), key=lambda item: (-len(item[1]), item[0])):
        figures = summary(km[rows])
        right = sum(answered[row] == true[row] for row in rows) if name != "at sea" else None
        found[name] = figures | {"percent": None if right is None else 100 * right / len(rows)}
    return found
