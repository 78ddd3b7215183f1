"""What refinement, several pictures and crops are worth: ``python benchmarks/refinement.py PART --features FOLDER``.

Parts: ``earth`` (galleries of 2,000 to 100,000 places, with and without refinement, on test views), ``released``
(places found again from noisy vectors of the released location tower), ``together`` (several views of one place, and
of one trip), ``crops`` (one or ten). Settings were chosen on validation views (``--split validation``). Results of
test views go to results/refinement.json, a key a part.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from open_geoclip import Gallery, LocationEncoder, pretrained
from open_geoclip.data.earth import is_land
from open_geoclip.data.earth_views import even_land, views
from open_geoclip.evaluation.metrics import summary
from open_geoclip.model.two_towers import TwoTowers
from open_geoclip.search.refinement import RefineSettings, nearest_gap_km, refine, starts_for
from open_geoclip.search.trips import along_trip, together
from open_geoclip.sphere import coordinates_of, geodesic_km, haversine_km, unit_vectors
from open_geoclip.training.features import earth_view_features

RESULTS = Path(__file__).parent / "results" / "refinement.json"
BATCH = 32


def measured(answers: Tensor, truth: Tensor) -> dict[str, Any]:
    """Percent within distances, and the median."""
    found = summary(geodesic_km(truth.numpy(), answers.numpy()))
    return {
        "n": found["n"],
        **{f"{km} km": round(found["within_km"][km], 1) for km in ("1", "25", "200", "750", "2500")},
        "median_km": round(found["median_km"], 1),
    }


def refined(encoder: LocationEncoder, vectors: Tensor, places: Tensor, located: Tensor) -> tuple[Tensor, float, int]:
    """Refined places, milliseconds of processor time a picture, places encoded a picture."""
    gaps = torch.from_numpy(nearest_gap_km(places.numpy(), places.numpy()))
    settings = RefineSettings(starts=min(starts_for(gaps.numpy()), len(places)))
    answers, encoded = [], 0
    start = time.process_time()
    for part in vectors.split(BATCH):
        rows = (part @ located.T).topk(settings.starts, dim=1).indices
        found = refine(encoder, part, places[rows], gaps[rows], settings)
        answers.append(found.coordinates)
        encoded = max(encoded, found.encoded)
    return torch.cat(answers), 1000 * (time.process_time() - start) / len(vectors), encoded


def earth_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Galleries of the embedded model, with and without."""
    model = TwoTowers.from_release(pretrained.load("earth"))
    data = earth_view_features(options.features, options.split, 4096).first(options.n)
    with torch.inference_mode():
        vectors = F.normalize(model.image_encoder.mlp(data.features.float()), dim=1)
    rows = []
    for size in (2_000, 10_000, 52_699, 100_000):
        places = torch.from_numpy(even_land(50 * math.sqrt(52_699 / size)))
        located = model.location_encoder.encode(places.float())
        plain = places[(vectors @ located.T).argmax(dim=1)]
        rows.append({"places": len(places), "refined": False, **measured(plain, data.coordinates)})
        answers, ms, encoded = refined(model.location_encoder, vectors, places, located)
        cost = {"ms_a_picture": round(ms, 1), "places_encoded": encoded}
        rows.append({"places": len(places), "refined": True, **measured(answers, data.coordinates), **cost})
        print(json.dumps(rows[-2:]), flush=True)
    return rows


def released_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Places on land, found again from vectors of the released tower with noise, from even galleries."""
    encoder = LocationEncoder.from_pretrained("geoclip")
    generator = np.random.default_rng(0)
    spots = np.stack((np.degrees(np.arcsin(generator.uniform(-0.8, 0.95, 400))), generator.uniform(-180, 180, 400)), 1)
    truth = torch.from_numpy(spots[is_land(spots)][: options.n])
    own = encoder.encode(truth.float())
    noise = F.normalize(torch.randn(own.shape, generator=torch.Generator().manual_seed(0)), dim=1)
    even = even_land(50 * math.sqrt(52_699 / 2000))
    released = Gallery.from_file(pretrained.load("geoclip").gallery or "").coordinates.astype(np.float64)
    rows = []
    for name, gallery in (("even", even), ("of the released gallery", generator.permutation(released)[:2000])):
        places = torch.from_numpy(np.ascontiguousarray(gallery))
        located = encoder.encode(places.float())
        for cosine in (1.0, 0.5):
            vectors = cosine * own + math.sqrt(1 - cosine**2) * noise
            plain = places[(vectors @ located.T).argmax(dim=1)]
            answers, ms, encoded = refined(encoder, vectors, places, located)
            about = {"gallery": f"{len(places):,} places, {name}", "cosine_with_truth": cosine}
            rows.append({**about, "refined": False, **measured(plain, truth)})
            cost = {"ms_a_picture": round(ms, 1), "places_encoded": encoded}
            rows.append({**about, "refined": True, **measured(answers, truth), **cost})
            print(json.dumps(rows[-2:]), flush=True)
    return rows


def together_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One view and four of a neighbourhood, and views along trips: views of the split that happen to lie so."""
    model = TwoTowers.from_release(pretrained.load("earth"))
    places = torch.from_numpy(even_land(50.0))
    located = model.location_encoder.encode(places.float())
    data = earth_view_features(options.features, options.split, 4096, look=options.look)
    with torch.inference_mode():
        vectors = F.normalize(model.image_encoder.mlp(data.features.float()), dim=1)
    rng = np.random.default_rng([3, options.split == "test"])
    apart = haversine_km(data.coordinates[:, None], data.coordinates[None])
    rows: list[dict[str, Any]] = []

    # One place: a view and the three nearest to it, all within 150 km; it is where their middles have their mean.
    near, at = apart.topk(4, dim=1, largest=False)
    groups = at[near[:, 3] <= 150][: options.n]
    goal = coordinates_of(unit_vectors(data.coordinates)[groups].mean(dim=1))
    cell = haversine_km(goal[:, None], places[None]).argmin(dim=1)
    asked = {"one view": vectors[groups[:, 0]]}
    for likeness in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 64.0):
        asked[f"four views, likeness {likeness:g}"] = torch.stack([together(vectors[g], likeness) for g in groups])
    for name, vector in asked.items():
        logits = model.scale * (vector.float() @ located.T)
        nats = float(-torch.log_softmax(logits, dim=1)[torch.arange(len(goal)), cell].mean())
        rows.append({"what": name, **measured(places[logits.argmax(dim=1)], goal), "nats": round(nats, 2)})
        print(json.dumps(rows[-1]), flush=True)

    # A trip: four views, two hours apart, up to 600 km from one to the next.
    trips = []
    for start in range(min(options.n, len(apart))):
        trip = [start]
        while len(trip) < 4:
            reach = torch.nonzero(apart[trip[-1]] <= 600)[:, 0].numpy()
            trip.append(int(rng.choice(reach)))
        trips.append(trip)
    stops = torch.tensor(trips).flatten()
    alone = torch.log_softmax(model.scale * (vectors[stops] @ located.T), dim=1).view(len(trips), 4, -1)
    start_s = time.process_time()
    found = [along_trip(a, places.numpy(), np.arange(4) * 2.0, speed_kmh=300, slack_km=50) for a in alone]
    cost = 1000 * (time.process_time() - start_s) / len(trips)
    best = torch.stack([trip.log_mass.argmax(dim=1) for trip in found]).flatten()
    truth = data.coordinates[stops]
    rows.append({"what": "views of trips, each alone", **measured(places[alone.argmax(dim=2).flatten()], truth)})
    rows.append({"what": "views of trips, as trips", **measured(places[best], truth), "ms_a_trip": round(cost, 1)})
    print(json.dumps(rows[-2:]), flush=True)
    return rows


@torch.inference_mode()
def crops_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One crop and ten of the same views."""
    model = TwoTowers.from_release(pretrained.load("earth"))
    places = torch.from_numpy(even_land(50.0))
    located = model.location_encoder.encode(places.float())
    pre, one, ten, truth = model.image_encoder.preprocessing, [], [], []
    for batch in views(options.split, min(options.n, 256), batch_size=64):
        truth.append(torch.from_numpy(batch.coordinates))
        for image in map(Image.fromarray, batch.images):
            one.append(F.normalize(model.image_encoder(pre(image)[None]).float(), dim=1))
            ten.append(F.normalize(model.image_encoder(pre.ten_crops(image)).float(), dim=1).mean(dim=0, keepdim=True))
    goal = torch.cat(truth)
    return [
        {"crops": crops, **measured(places[(torch.cat(vectors) @ located.T).argmax(dim=1)], goal)}
        for crops, vectors in ((1, one), (10, ten))
    ]


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "earth": earth_part,
    "released": released_part,
    "together": together_part,
    "crops": crops_part,
}


def main() -> None:
    """Run a part and keep its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--features", type=Path, default=Path("build/earth-model/features"))
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--look", choices=("bluemarble", "shadedrelief"), default="bluemarble", help="of together")
    parser.add_argument("-n", type=int, default=1024, help="pictures or places")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    found = PARTS[options.part](options)
    print(json.dumps(found, indent=1))
    if options.split == "test":
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
        known[options.part + (f" {options.look}" if options.look != "bluemarble" else "")] = found
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
