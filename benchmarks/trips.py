"""Seconds per photo and peak memory of long trips, with known places and without.

    python benchmarks/trips.py

simulates a trip of 2,000 photos, on average two hours apart, with test views of the Blue Marble, and locates them with
the embedded model: those without a fix between the tenth that has one, and all without fixes. Encoding photos is not
included. Prints JSON.
"""

import argparse
import json
import time
from datetime import UTC, datetime, timedelta

import numpy as np

from large_gallery import peak_bytes
from open_geoclip import Locator
from open_geoclip.data.clocks import TripPhoto, find_anchors
from open_geoclip.data.earth import Earth, is_land
from open_geoclip.data.earth_views import view_centres
from open_geoclip.data.tracks import Fix, Track
from open_geoclip.geo.sphere import destination
from open_geoclip.search.encode import EncodedBatch
from open_geoclip.search.query import Query
from research.trip_evaluation import rendered

TRUE_KMH = 300.0
MEAN_HOURS = 2.0
START = datetime(2026, 5, 1, tzinfo=UTC)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--speed-kmh", type=float, nargs="+", default=[300.0, 900.0])
    arguments = parser.parse_args()
    n, rng = arguments.photos, np.random.default_rng(7)
    locator = Locator.from_pretrained("earth")
    hours = np.cumsum(rng.exponential(MEAN_HOURS, n))
    trip = [view_centres("test", 40)[-1]]
    while len(trip) < n:
        most_km = (hours[len(trip)] - hours[len(trip) - 1]) * TRUE_KMH
        to = destination(trip[-1], rng.uniform(0, 360), most_km * np.sqrt(rng.uniform()))
        if is_land(to[None])[0] and -60 < to[0] < 75:
            trip.append(to)
    embeddings = rendered(locator, Earth("bluemarble"), np.stack(trip), 9000)
    known = rng.choice(n, n // 10, replace=False)
    others = np.setdiff1d(np.arange(n), known)
    fixes = (Fix(START.timestamp() + 3600 * hours[k], float(trip[k][0]), float(trip[k][1]), 10.0, "fix") for k in known)
    photos = [TripPhoto(str(k), START + timedelta(hours=float(hours[k]))) for k in others]
    anchors = find_anchors(photos, [Track.from_fixes(fixes)])
    model = locator.calibration, locator.search_space, locator.model.scale
    list(locator.answer([locator.query_encoded(EncodedBatch.from_embeddings(embeddings[:1]))]))  # reads what it needs
    for speed_kmh in arguments.speed_kmh:
        for rows in (others, np.arange(n)):
            has_fixes = rows is others
            batch = EncodedBatch.from_embeddings(embeddings[rows])
            before, began = peak_bytes(reset=True), time.perf_counter()
            if has_fixes:
                query = Query.from_anchors(batch, *model, anchors, speed_kmh)
            else:
                query = Query.from_trip(batch, *model, hours, speed_kmh)
            searched = time.perf_counter()
            answers = sum(1 for _ in locator.answer([query], 1))
            found = {
                "photos": answers,
                "speed_kmh": speed_kmh,
                "fixes": len(known) if has_fixes else 0,
                "trip_s_per_photo": (searched - began) / answers,
                "answer_s_per_photo": (time.perf_counter() - searched) / answers,
                "peak_mb_beyond_model_and_gallery": (peak_bytes() - before) / 1e6,
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
