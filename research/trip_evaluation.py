"""Accuracy and calibration of refinement, several images, trips and ten crops.

``make accuracy`` measures them on test views. Views of neighbourhoods and trips are rendered around the centres of test
views; nothing is tuned on them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from open_geoclip.data.earth import Basemap, Earth, is_land
from open_geoclip.data.earth_views import Split, sample_cameras, view_centres, views
from open_geoclip.evaluation.calibration import ANSWER_KM
from open_geoclip.evaluation.metrics import THRESHOLDS_KM, distances_km, summary
from open_geoclip.geo.sphere import destination
from open_geoclip.search.encode import EncodedBatch, EncodeSettings, encode_images
from open_geoclip.search.locator import Locator
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.query import Query

__all__ = ["crops", "draw_trip", "neighbourhoods", "refined", "several_lines", "trips"]

SHARES = (0.5, 0.9)
APART_KM = 50.0  # the most that views of one neighbourhood are apart
TOGETHER = (2, 3, 5)
HOURS, SPEED_KMH, STOPS = 2.0, 300.0, 4
BASEMAPS: tuple[Basemap, ...] = ("bluemarble", "shadedrelief")
_CHUNK = 32


def judged(posteriors: Iterable[Posterior], truth: Float64[np.ndarray, "n 2"]) -> dict[str, Any]:
    """Score answers, and measure how often circles and regions contain the true place."""
    answers, radii, levels, start = [], [], [], 0
    for posterior in posteriors:
        best = posterior.decode("mass", ANSWER_KM)
        answers.append(best)
        radii.append(posterior.profile(best).radius_km(SHARES))
        levels.append(posterior.hpd_level(truth[start : start + len(best)]))
        start += len(best)
    km, level = distances_km(truth, np.concatenate(answers)), np.concatenate(levels)
    holds = zip(SHARES, np.concatenate(radii).T, strict=True)
    return {
        **summary(km),
        "circle_holds": {f"{100 * share:.0f}": 100 * float(np.mean(km <= radius)) for share, radius in holds},
        "region_holds": {f"{100 * share:.0f}": 100 * float(np.mean(level <= share)) for share in SHARES},
    }


def refined(locator: Locator, embeddings: Float[Tensor, "n d"], truth: Float64[np.ndarray, "n 2"]) -> dict[str, Any]:
    """Locate the same images without and with refinement."""
    parts = embeddings.split(_CHUNK)
    scale, space = locator.model.scale, locator.search_space
    between = (one for part in parts for one in space.refined_posteriors(part, scale, locator.calibration))
    return {"not refined": judged(map(locator.posterior, parts), truth), "refined": judged(between, truth)}


def rendered(
    locator: Locator, earth: Earth, centres: Float64[np.ndarray, "n 2"], first: int, split: Split = "test"
) -> Float[Tensor, "n d"]:
    """Encode rendered views of given places, with the cameras of views of a split from ``first`` on."""
    found = []
    for start in range(0, len(centres), _CHUNK):
        part = centres[start : start + _CHUNK]
        width, turn, light = sample_cameras(split, first + start, first + start + len(part))
        found.append(locator.encode(list(earth.render(part, width, turn, light))))
    return torch.cat(found)


def neighbourhoods(locator: Locator, n: int = 256) -> dict[str, dict[str, Any]]:
    """Locate one view and several views of a neighbourhood; the true place is its centre."""
    middles, most = view_centres("test", n), max(TOGETHER)
    rng = np.random.default_rng(4)
    km = APART_KM / 2 * np.sqrt(rng.uniform(size=(n, most)))
    centres = destination(np.repeat(middles[:, None], most, axis=1), rng.uniform(0, 360, (n, most)), km)
    found: dict[str, dict[str, Any]] = {}
    for look in BASEMAPS:
        embeddings = rendered(locator, Earth(look), centres.reshape(-1, 2), 0).view(n, most, -1)

        def together(count: int, embeddings: Tensor = embeddings) -> Iterator[Posterior]:
            for group in embeddings:
                query = Query.from_place(EncodedBatch.from_embeddings(group[:count]), locator.calibration)
                yield locator.posterior(query.encoded.embeddings, query.calibration)

        found[look] = {
            "one view": judged(together(1), middles),
            **{f"{count} views together": judged(together(count), middles) for count in TOGETHER},
        }
    return found


def draw_trip(start: Float64[np.ndarray, " 2"], stops: int, rng: np.random.Generator) -> Float64[np.ndarray, "s 2"]:
    """Draw places on land, each within reach of the previous one."""
    trip = [start]
    while len(trip) < stops:
        to = destination(trip[-1], rng.uniform(0, 360), HOURS * SPEED_KMH * np.sqrt(rng.uniform()))
        if is_land(to[None])[0] and -60 < to[0] < 75:
            trip.append(to)
    return np.stack(trip)


def trips(locator: Locator, n: int = 128) -> dict[str, dict[str, Any]]:
    """Locate views alone, and as trips with the true speed limit and with that of an airliner."""
    rng = np.random.default_rng(5)
    centres = np.stack([draw_trip(start, STOPS, rng) for start in view_centres("test", n)])
    hours, truth = np.arange(STOPS) * HOURS, centres.reshape(-1, 2)
    found: dict[str, dict[str, Any]] = {}
    for look in BASEMAPS:
        parts = rendered(locator, Earth(look), truth, 4096).split(STOPS)

        def as_trips(speed_kmh: float, parts: tuple[Tensor, ...] = parts) -> Iterator[Posterior]:
            for part in parts:
                query = Query.from_trip(
                    EncodedBatch.from_embeddings(part),
                    locator.calibration,
                    locator.search_space,
                    locator.model.scale,
                    hours,
                    speed_kmh,
                )
                assert query.trip is not None
                assert query.cells is not None
                rows, log_mass = query.trip.part(slice(None))
                yield Posterior.from_log_mass(log_mass, query.cells.part(rows.numpy()), query.calibration)

        found[look] = {
            "each view alone": judged(map(locator.posterior, parts), truth),
            **{f"as trips, at most {speed:.0f} km/h": judged(as_trips(speed), truth) for speed in (SPEED_KMH, 900.0)},
        }
    return found


def crops(locator: Locator, n: int = 256) -> dict[str, Any]:
    """Locate the same views from one crop and from ten."""
    ten = EncodeSettings(locator.encoding.batch_size, crops=10)
    embeddings: dict[str, list[Tensor]] = {"one crop": [], "ten crops": []}
    truth = []
    for batch in views("test", n, batch_size=_CHUNK):
        truth.append(batch.coordinates)
        embeddings["one crop"].append(locator.encode(list(batch.images)))
        embeddings["ten crops"].append(encode_images(locator.model, list(batch.images), ten).embeddings)
    return {name: judged(map(locator.posterior, parts), np.concatenate(truth)) for name, parts in embeddings.items()}


def several_lines(figures: dict[str, Any]) -> list[str]:
    """Return the part of docs/accuracy.md about refinement, several images, trips and crops."""
    among = next(iter(figures["neighbourhoods"].values()))["one view"]["n"]
    stops = next(iter(figures["trips"].values()))["each view alone"]["n"]
    lines = ["## Refinement", ""]
    lines += _table("answer", figures["refined"])
    lines += [
        "",
        f"The first {figures['refined']['refined']['n']:,} test views, decoding: most probability within "
        f"{ANSWER_KM:.0f} km. `--refine` has levels of its own in the calibration.",
        "",
        "## Several images",
        "",
        f"{among} groups of views up to {APART_KM:.0f} km apart, one answer per group. The true place is the centre of "
        "the group.",
        "",
    ]
    for look, rows in figures["neighbourhoods"].items():
        lines += [*_table(f"{look}", rows), ""]
    lines += [
        f"{stops} views of trips, {STOPS} per trip, {HOURS:g} hours apart; the true speed is at most "
        f"{SPEED_KMH:.0f} km/h.",
        "",
    ]
    for look, rows in figures["trips"].items():
        lines += [*_table(f"{look}", rows), ""]
    lines += ["## Ten crops", "", *_table("answer", figures["crops"]), ""]
    lines += [
        f"{figures['crops']['ten crops']['n']} views. Corner crops of a view from orbit have other centres, and a "
        "mirrored coast is another coast.",
        "",
    ]
    return lines


def _table(what: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        f"| {what} | "
        + " | ".join(f"{km} km" for km in THRESHOLDS_KM[1:])
        + " | median | 50, 90 % circle contains it | 50, 90 % region contains it |",
        "| --- |" + " --- |" * 7,
    ]
    for name, row in rows.items():
        within = " | ".join(f"{row['within_km'][str(km)]:.1f}" for km in THRESHOLDS_KM[1:])
        holds = " | ".join(", ".join(f"{x:.1f}" for x in row[key].values()) for key in ("circle_holds", "region_holds"))
        lines.append(f"| {name} | {within} | {row['median_km']:.1f} km | {holds} |")
    return lines
