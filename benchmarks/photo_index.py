"""Search of a large photo index by its inverted file against exact search: recall, memory and time.

Photos are simulated from features of training views (in the layout of `research.view_features`): each is one view plus
``--spread`` times the difference of two others, so that neighbours are as alike as neighbouring views are. Queries are
validation views. The index is kept in ``--folder``, and a second run measures it again.

    python benchmarks/photo_index.py FEATURES --folder build/large-index --photos 1200000
"""

import argparse
import itertools
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from open_geoclip.search.photo_index import PhotoIndex
from open_geoclip.search.photo_records import IndexRecords, Neighbours, QueryPhotos
from research.photo_index import pool
from research.view_features import Imagery, earth_view_features

PART = 65_536
K = 24  # neighbours that an answer uses


def simulate(folder: Path, photos: int, spread: float) -> Iterator[IndexRecords]:
    """Yield photos, part by part."""
    views, rng = pool(folder), np.random.default_rng(0)
    for start in range(0, photos, PART):
        n = min(PART, photos - start)
        at, one, other = (torch.from_numpy(rng.integers(0, len(views.features), n)) for _ in range(3))
        features = views.features[at].float()
        features += spread * (views.features[one].float() - views.features[other].float())
        ids = [f"{start + row:08d}" for row in range(n)]
        yield IndexRecords.from_features(features.half(), views.coordinates[at].numpy(), ids)


def build(folder: Path, features: Path, photos: int, spread: float) -> None:
    """Write the index, then its inverted file."""
    start, parts = time.perf_counter(), simulate(features, photos, spread)
    index = PhotoIndex.create(folder, next(parts), backbone="earth")
    for part in parts:
        index = index.add(part)
    written = time.perf_counter()
    index.with_inverted_file()
    print(f"written in {written - start:,.0f} s, inverted file in {time.perf_counter() - written:,.0f} s")


def resident_mib() -> tuple[int, int]:
    """Return memory of this process that is its own, and that of mapped files, in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, files = (int(status[key].split()[0]) // 1024 for key in ("RssAnon", "RssFile"))
    return own, files


def measure(folder: Path, features: Path, queries: int) -> list[str]:
    """Return lines of Markdown: recall by rendering, then memory and time of both searches."""
    imageries: tuple[Imagery, ...] = ("bluemarble", "varied", "shadedrelief")
    views = [earth_view_features(features, "validation", 4096, imagery=one).features[:queries] for one in imageries]
    index = PhotoIndex.open(folder)
    exact = PhotoIndex(folder, {**index.manifest, "inverted_file": None})
    lines = ["| validation views | best photo found | of the 24 best |", "| --- | ---: | ---: |"]
    times: dict[str, list[float]] = {"inverted file": [], "exact": []}
    memory: dict[str, tuple[int, int]] = {}
    found: dict[str, list[list[Neighbours]]] = {}
    for name, one in (("inverted file", index), ("exact", exact)):
        found[name] = [[], [], []]
        for number, view in itertools.product(range(queries), range(len(views))):
            start = time.perf_counter()
            found[name][view] += one.search(QueryPhotos(views[view][number : number + 1]), K)
            times[name].append(time.perf_counter() - start)
        memory[name] = resident_mib()
    for view, imagery in enumerate(imageries):
        pairs = list(zip(found["inverted file"][view], found["exact"][view], strict=True))
        first = np.mean([one.rows[0] == other.rows[0] for one, other in pairs])
        all_ = np.mean([len(np.intersect1d(one.rows, other.rows)) / K for one, other in pairs])
        lines.append(f"| {imagery} | {100 * first:.1f} % | {100 * all_:.1f} % |")
    sizes = [sum(file.stat().st_size for file in folder.glob(name)) / 2**20 for name in ("photos-*", "*.faiss")]
    lines += [
        "",
        f"{len(index):,} photos. Features and records {sizes[0]:,.0f} MiB, inverted file {sizes[1]:,.0f} MiB.",
        "",
        "| search | ms per photo, median | 95 % | memory of its own, MiB | of mapped files, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, seconds in times.items():
        median, slow = 1000 * np.quantile(seconds, (0.5, 0.95))
        lines.append(f"| {name} | {median:,.0f} | {slow:,.0f} | {memory[name][0]:,} | {memory[name][1]:,} |")
    return lines


def main() -> None:
    """Build the index where it is missing, and print the tables."""
    parser = argparse.ArgumentParser(description="Measure search in a large photo index.")
    parser.add_argument("features", type=Path, help="folder of research.view_features")
    parser.add_argument("--folder", type=Path, required=True, help="of the index")
    parser.add_argument("--photos", type=int, default=1_200_000)
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--queries", type=int, default=100, help="of each rendering")
    options = parser.parse_args()
    if not options.folder.exists():
        build(options.folder, options.features, options.photos, options.spread)
    print("\n".join(measure(options.folder, options.features, options.queries)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\nMost memory of this process: {peak / 1024:,.0f} MiB.")


if __name__ == "__main__":
    main()
