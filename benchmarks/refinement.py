"""``make refinement``: accuracy and cost of searching between the places of a gallery.

Parts: ``earth`` (galleries of 2,000 to 100,000 places, with and without refinement, on test views) and ``released``
(places found again from noisy embeddings of the released location tower: its images are not here). Settings were chosen
on validation views and other places. Figures go to results/refinement.json, tables into docs/refinement.md. Several
images, ten crops and refinement with decisions are measured by ``make accuracy``.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from open_geoclip import Gallery, LocationEncoder
from open_geoclip.data.earth import is_land
from open_geoclip.data.earth_views import even_land
from open_geoclip.evaluation.metrics import summary
from open_geoclip.geo.sphere import geodesic_km, offset
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.refine import RingCache, local_search, n_starts
from open_geoclip.weights.load import load_model, load_release
from report import put_between
from research.view_features import earth_view_features

RESULTS = Path(__file__).parent / "results" / "refinement.json"
PAGE = Path(__file__).parents[1] / "docs" / "refinement.md"
BATCH = 32
ALL_KEPT = 8192  # places: the surroundings of a smaller gallery are encoded beforehand
COARSE_KM = 50 * math.sqrt(52_699 / 2000)  # between places on land, for 2,000 of them
RADII = ("1", "25", "200", "750", "2500")


def measured(answers: Tensor, truth: Tensor) -> dict[str, Any]:
    """Percent within distances, and the median."""
    found = summary(geodesic_km(truth.numpy(), answers.numpy()))
    within = {f"{km} km": round(found["within_km"][km], 1) for km in RADII}
    return {"n": found["n"], **within, "median_km": round(found["median_km"], 1)}


@dataclass(frozen=True)
class Searched:
    """A gallery and its embeddings, as a locator keeps them."""

    encoder: LocationEncoder
    places: Tensor
    located: Tensor

    def plain(self, embeddings: Tensor) -> Tensor:
        """The gallery's best place for each vector."""
        return self.places[(embeddings @ self.located.T).argmax(dim=1)]

    def refined(self, embeddings: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Refined places and what they cost in processor time: once for the gallery, and for each image on top."""
        spacing_km = GalleryCells.from_gallery(Gallery.from_coordinates(self.places.numpy())).spacing_km
        starts, began = min(n_starts(spacing_km), len(spacing_km)), time.process_time()
        rings = RingCache(self.encoder, self.places.numpy(), spacing_km)
        if len(spacing_km) <= ALL_KEPT:
            rings.cosines(embeddings[:1], torch.arange(len(spacing_km))[None])
        once = time.process_time() - began
        answers, began = [], time.process_time()
        for part in embeddings.split(BATCH):
            rows = (part @ self.located.T).topk(starts, dim=1).indices
            answers.append(local_search(rings, part, rows).coordinates)
        each = 1000 * (time.process_time() - began) / len(embeddings)
        return torch.cat(answers), {"ms_per_image": round(each, 1), "s_once": round(once, 1)}

    def rows(self, embeddings: Tensor, truth: Tensor, about: dict[str, Any]) -> list[dict[str, Any]]:
        """Two rows of a table: without and with."""
        answers, cost = self.refined(embeddings)
        found = [
            {**about, "places": len(self.places), "refined": False, **measured(self.plain(embeddings), truth)},
            {**about, "places": len(self.places), "refined": True, **measured(answers, truth), **cost},
        ]
        print(json.dumps(found), flush=True)
        return found


def earth_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Galleries of the embedded model, with and without."""
    model = load_model("earth")
    data = earth_view_features(options.features, options.split, 4096).first(options.n)
    with torch.inference_mode():
        embeddings = F.normalize(model.image_encoder.forward_head(data.features.float()), dim=1)
    rows = []
    for size in (2_000, 10_000, 52_699, 100_000):
        places = torch.from_numpy(even_land(50 * math.sqrt(52_699 / size)))
        searched = Searched(model.location_encoder, places, model.location_encoder.encode(places.float()))
        rows += searched.rows(embeddings, data.coordinates, {})
    return rows


def released_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Places found again from noisy embeddings of the released tower: from 2,000 places, and from its own gallery."""
    release = load_release("geoclip")
    encoder = load_model(release, towers=()).location_encoder
    own = Gallery.from_file(release.gallery or "")
    index = GalleryIndex.build(encoder, own)
    whole = Searched(encoder, torch.from_numpy(own.coordinates.astype(np.float64)), index.embeddings.float())
    rng, n = np.random.default_rng(options.split == "test"), options.places
    mixed = torch.from_numpy(rng.permutation(len(own)))
    spots = np.stack((np.degrees(np.arcsin(rng.uniform(-0.8, 0.95, 20 * n))), rng.uniform(-180, 180, 20 * n)), axis=1)
    even = torch.from_numpy(even_land(COARSE_KM))
    part = whole.places[mixed[:2000]]
    asked = {
        "anywhere on land": (torch.from_numpy(spots[is_land(spots)][:n]), even, "even on land"),
        "5 km from photos": (offset(whole.places[mixed[2000 : 2000 + n]], 3000.0, -4000.0), part, "of the gallery"),
    }
    rows = []
    for name, (truth, places, kind) in asked.items():
        coarse = Searched(encoder, places, encoder.encode(places.float()))
        of_truth = encoder.encode(truth.float())
        noise = F.normalize(torch.randn(of_truth.shape, generator=torch.Generator().manual_seed(0)), dim=1)
        for cosine in (1.0, 0.5):
            embeddings = cosine * of_truth + math.sqrt(1 - cosine**2) * noise
            about = {"truths": name, "cosine": cosine}
            found = {**about, "places": len(own), "refined": False, **measured(whole.plain(embeddings), truth)}
            print(json.dumps(found), flush=True)
            rows += [found, *coarse.rows(embeddings, truth, {**about, "kind": kind})]
    return rows


def earth_table(rows: list[dict[str, Any]]) -> list[str]:
    """Of the embedded model, and what it says."""
    lines = [
        f"| places, {rows[0]['n']:,} test views | 25 km | 200 km | 750 km | 2500 km | median | time per image |",
        "| --- |" + " --- |" * 6,
    ]
    lines += [f"| {_gallery(row)} | {_cells(row, RADII[1:])} | {_cost(row)} |" for row in rows]
    finest = next(row for row in reversed(rows) if not row["refined"])
    said = [
        f"{rows[1][f'{km} km']:.1f} % within {km} km from {rows[1]['places']:,} places with refinement, "
        f"{finest[f'{km} km']:.1f} % from {finest['places']:,} without"
        for km in ("25", "200")
    ]
    return [
        *lines,
        "",
        f"Summary: {'; '.join(said)}. The standard error is {_chance(finest):.1f} points.",
    ]


def released_table(rows: list[dict[str, Any]]) -> list[str]:
    """Of the released tower, and what it costs."""
    lines = [
        f"| true place, {rows[0]['n']:,} places | cosine with it | gallery places | 1 km | 25 km | 200 km | 2500 km "
        "| median | time per image |",
        "| --- |" + " --- |" * 8,
    ]
    lines += [
        f"| {row['truths']} | {row['cosine']:g} | {_gallery(row)}{', ' + row['kind'] if 'kind' in row else ''} "
        f"| {_cells(row, ('1', '25', '200', '2500'))} | {_cost(row)} |"
        for row in rows
    ]
    most, once = (max(row.get(key, 0.0) for row in rows) for key in ("ms_per_image", "s_once"))
    cost = (
        f"Refinement adds at most {most:.0f} ms per image, after {once:.0f} s once for the first rings of 2,000 places."
    )
    return [*lines, "", f"{cost} CPU time of one thread, in batches of {BATCH}."]


def _gallery(row: dict[str, Any]) -> str:
    return f"**{row['places']:,}, refined**" if row["refined"] else f"{row['places']:,}"


def _cells(row: dict[str, Any], radii: tuple[str, ...]) -> str:
    return " | ".join([*(f"{row[f'{km} km']:.1f}" for km in radii), f"{row['median_km']:.1f} km"])


def _cost(row: dict[str, Any]) -> str:
    return f"{row['ms_per_image']:.0f} ms" if row["refined"] else ""


def _chance(row: dict[str, Any]) -> float:
    """Standard error of a share within 25 km, in points."""
    share = row["25 km"] / 100
    return 100 * math.sqrt(share * (1 - share) / row["n"])


PARTS: dict[str, tuple[Callable[[argparse.Namespace], Any], Callable[[list[dict[str, Any]]], list[str]]]] = {
    "earth": (earth_part, earth_table),
    "released": (released_part, released_table),
}


def main() -> None:
    """Run the parts, keep their figures, write their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all when not given")
    parser.add_argument("--features", type=Path, default=Path("build/earth-model/features"))
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("-n", type=int, default=1024, help="views of earth")
    parser.add_argument("--places", type=int, default=64, help="places of released")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(unknown)}: there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for part in options.parts or PARTS:
        run, table = PARTS[part]
        found = run(options)
        print("\n".join(table(found)))
        if options.split == "test":
            known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            known = {key: value for key, value in known.items() if key in PARTS}
            known |= {"machine": f"{platform.machine()}, 1 thread", part: found}
            RESULTS.write_text(json.dumps(known, indent=1) + "\n")
            put_between(PAGE, f"make refinement, {part}", "\n".join(table(found)))


if __name__ == "__main__":
    main()
