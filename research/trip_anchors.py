"""What known places give to the photos of a trip, and how well the clock of a camera is recovered.

    python -m research.trip_anchors docs/trips.md

renders test views along simulated trips and writes the tables between the markers of the page. Nothing is tuned on
them.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from open_geoclip.data.clocks import Anchors, TripPhoto, find_anchors
from open_geoclip.data.earth import Basemap, Earth
from open_geoclip.data.earth_views import view_centres
from open_geoclip.data.tracks import Fix, Track
from open_geoclip.evaluation.metrics import distances_km
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import great_circle, haversine_km
from open_geoclip.search.answer import Answer
from open_geoclip.search.encode import EncodedBatch
from open_geoclip.search.locator import Locator
from open_geoclip.search.query import Query
from research.trip_evaluation import HOURS, SPEED_KMH, draw_trip, rendered

__all__ = ["main"]

SEEDS, TRIPS, STOPS, KNOWN = (11, 12, 13), 2, 20, 2
LOOKS: tuple[Basemap, ...] = ("bluemarble", "shadedrelief")
START = datetime(2026, 5, 1, tzinfo=UTC)
RADII_KM = (25, 200, 750, 2500)
BEGIN, END = "<!-- research.trip_anchors -->\n", "<!-- end -->\n"
_RESAMPLES = 1000

Scores = dict[str, list[Float64[np.ndarray, " k"]]]
"""By kind of answer, one row per trip and column per measure."""


def measure(answers: Sequence[Answer], truth: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " k"]:
    """Return the measures of a trip: shares within radii, held by circles, sure, and right where sure; the median."""
    best = np.array([(answer.candidates[0].lat, answer.candidates[0].lon) for answer in answers])
    km = distances_km(truth, best)
    radii = np.array([[answer.credible_radius_km[level] for level in ("50", "90")] for answer in answers])
    held = (km[:, None] <= radii).mean(axis=0)
    sure = np.array([answer.sure is True for answer in answers])
    right = [sure.mean(), (sure & (km <= 200)).mean()]
    return np.array([*(np.mean(km <= radius) for radius in RADII_KM), *held, *right, np.median(km)])


def trips(locator: Locator, look: Basemap, seed: int) -> Scores:
    """Locate the photos without a fix of simulated trips, of which a tenth of the photos have one."""
    rng, scores = np.random.default_rng(seed), defaultdict(list)
    starts = view_centres("test", TRIPS * (seed + 1))[-TRIPS:]
    places = [draw_trip(start, STOPS, rng) for start in starts]
    embeddings = rendered(locator, Earth(look), np.concatenate(places), 4096 + 1000 * seed).split(STOPS)
    hours, times_s = np.arange(STOPS) * HOURS, START.timestamp() + 3600 * HOURS * np.arange(STOPS)
    model = locator.calibration, locator.search_space, locator.model.scale
    ignored = replace(locator.calibration, min_score=2.0)  # all are out of distribution
    for truth, part in zip(places, embeddings, strict=True):
        known = rng.choice(STOPS, KNOWN, replace=False)
        others = np.setdiff1d(np.arange(STOPS), known)
        track = Track.from_fixes(Fix(times_s[n], truth[n, 0], truth[n, 1], 10.0, "fix") for n in known)
        photos = [TripPhoto(str(n), START + timedelta(hours=float(hours[n]))) for n in others]
        anchors = find_anchors(photos, [track])
        encoded = EncodedBatch.from_embeddings(part[others])
        queries = {
            "each photo alone": locator.query_encoded(encoded),
            "as a trip": Query.from_trip(encoded, *model, hours[others], SPEED_KMH),
            "between the fixes, pictures ignored": Query.from_anchors(encoded, ignored, *model[1:], anchors, SPEED_KMH),
            "between the fixes": Query.from_anchors(encoded, *model, anchors, SPEED_KMH),
        }
        for name, query in queries.items():
            answers = [answer for answer, _ in locator.answer([query], 1)]
            scores[name].append(measure(answers, truth[others]))
    return scores


def clocks(seed: int) -> list[tuple[float, float]]:
    """Return, per trip, the error of the offset in seconds, and the median error of places without it in km."""
    rng, found = np.random.default_rng(seed), []
    for start in view_centres("test", TRIPS * (seed + 1))[-TRIPS:]:
        stops = draw_trip(start, STOPS, rng)
        legs = [great_circle(a, b) for a, b in pairwise(stops)]
        path = np.concatenate([leg[np.linspace(0, len(leg) - 1, 120).astype(int)] for leg in legs])  # one fix a minute
        times_s = START.timestamp() + 60.0 * np.arange(len(path))
        track = Track.from_fixes(Fix(t, p[0], p[1], 10.0, "track") for t, p in zip(times_s, path, strict=True))
        offset_s = rng.uniform(-12, 12) * 3600
        at = rng.choice(len(path), 60, replace=False)
        both = set(rng.choice(60, 5, replace=False).tolist())
        photos = []
        for n, row in enumerate(at.tolist()):
            shown = datetime.fromtimestamp(times_s[row] + offset_s, UTC).replace(tzinfo=None, microsecond=0)
            # A GPS time is that of the last fix, some seconds old.
            fix_time = datetime.fromtimestamp(times_s[row] - rng.exponential(5), UTC) if n in both else None
            photos.append(TripPhoto(str(n), shown, "X1", None, None, fix_time))
        unset = [TripPhoto(photo.name, photo.taken and photo.taken.replace(tzinfo=UTC), "X1") for photo in photos]
        right = find_anchors(photos, [track])
        errors_s = np.array(right.times_s) - times_s[at]
        km = np.median(haversine_km(_nearest_fixes(find_anchors(unset, [track])), path[at]))
        found.append((float(np.median(np.abs(errors_s))), float(km)))
    return found


def _nearest_fixes(anchors: Anchors) -> Float64[np.ndarray, "n 2"]:
    """Return the nearest fix of each photo: fixes are a minute apart."""
    nearest = [
        min(filter(None, pair), key=lambda fix: abs(fix.time_s - time_s))
        for pair, time_s in zip(anchors.brackets, anchors.times_s, strict=True)
    ]
    return np.array([(fix.lat, fix.lon) for fix in nearest])


def table(scores: Scores) -> list[str]:
    """Return a table of means over all trips with 95 % intervals, trips resampled."""
    rng = np.random.default_rng(0)
    radii = " | ".join(f"{km} km" for km in RADII_KM)
    lines = [
        f"| answer | {radii} | median | 50, 90 % circle holds it | sure, of which right |",
        "| --- |" + " --- |" * 7,
    ]
    for name, rows in scores.items():
        values = np.stack(rows)
        means = np.stack([values[rng.integers(0, len(values), len(values))].mean(axis=0) for _ in range(_RESAMPLES)])
        half = (np.quantile(means, 0.975, axis=0) - np.quantile(means, 0.025, axis=0)) / 2
        mean = values.mean(axis=0)
        shares = [f"{100 * mean[n]:.1f} ± {100 * half[n]:.1f}" for n in range(6)]
        right = f"{100 * mean[7] / mean[6]:.1f}" if mean[6] > 0 else "-"
        sure = f"{100 * mean[6]:.1f}, {right}" if mean[6] > 0 else "not known"
        median = f"{mean[8]:.0f} ± {half[8]:.0f} km"
        lines.append(f"| {name} | {' | '.join(shares[:4])} | {median} | {shares[4]}, {shares[5]} | {sure} |")
    return lines


def report() -> str:
    """Return the tables."""
    recovered = np.array([row for seed in SEEDS for row in clocks(seed)])
    print(recovered, file=sys.stderr)
    lines: list[str] = []
    locator = Locator.from_pretrained("earth")
    for look in LOOKS:
        total: Scores = defaultdict(list)
        for seed in SEEDS:
            for name, rows in trips(locator, look, seed).items():
                total[name] += rows
            print(f"{look}, seed {seed}", file=sys.stderr)
        lines += [f"### {look}", "", *table(total), ""]
    lines += [
        f"{len(SEEDS) * TRIPS} trips of {STOPS} views (seeds {', '.join(map(str, SEEDS))}), {HOURS:g} hours apart; "
        f"each is on land, anywhere within reach at {SPEED_KMH:.0f} km/h of the one before. {KNOWN} of a trip have a "
        "fix. In percent of the others, ± half a 95 % interval with trips resampled; the median is the mean of those "
        "of the trips.",
        "",
        "### Another clock",
        "",
        "| | median |",
        "| --- | --- |",
    ]
    low, middle, high = np.quantile(recovered, (0.025, 0.5, 0.975), axis=0)
    names = ("error of the recovered clock", "s"), ("error of places, clock taken to be UTC", "km")
    for n, (name, unit) in enumerate(names):
        lines.append(f"| {name} | {middle[n]:.1f} {unit} (95 % of trips: {low[n]:.1f} to {high[n]:.1f}) |")
    lines += [
        "",
        "The same trips with a fix per minute and 60 photos of a camera whose clock is up to 12 hours off. Five photos "
        "have a GPS time, 5 s old on average (exponential), and no place.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the tables into a page."""
    [page] = map(Path, sys.argv[1:])
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    atomic_write(page, (before + BEGIN + report() + END + rest.partition(END)[2]).encode())


if __name__ == "__main__":
    main()
