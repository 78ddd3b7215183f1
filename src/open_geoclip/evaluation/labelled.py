"""Photos whose places are known, and what was left out: what an evaluation is made on."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int

from open_geoclip.data.photos import Photo, PhotoSource, SkippedRecord, check_swapped
from open_geoclip.errors import BenchmarkError
from open_geoclip.images import ImageSource

if TYPE_CHECKING:
    from open_geoclip.evaluation.benchmarks import Benchmark

__all__ = ["Labelled", "label_source", "places_fingerprint"]

_SHOWN_RECORDS = 5


@dataclass(frozen=True, eq=False)
class Labelled:
    """Photos and their true places, and what was left out.

    Attributes:
        name: of the data, for reports.
        benchmark: the published benchmark, if it is one.
        rows: of each photo in the table, from 0.
        ids: of the photos in the table, each once.
        photos: what they are read from, in order at each pass: files, or whatever a source of photos has.
        images: names for reports, each once: of files, below the data folder.
        truth: (lat, lon) in degrees.
        groups: of each photo, such as its author; None if the table has none.
        group_column: the column of the groups.
        table: the file of labels, or the name of the source.
        table_sha256: of its bytes, or the source's fingerprint.
        places_sha256: of its places, see :func:`places_fingerprint`.
        counts: rows of the table, those left out by reason, and photos without a label.
        missing: ids whose photo was not found.
        notes: for reports.
    """

    name: str
    benchmark: "Benchmark | None"
    rows: Int[np.ndarray, " n"]
    ids: Sequence[str]
    photos: Iterable[ImageSource]
    images: Sequence[str]
    truth: Float64[np.ndarray, "n 2"]
    groups: Sequence[str] | None
    group_column: str | None
    table: Path
    table_sha256: str
    places_sha256: str
    counts: Mapping[str, int]
    missing: Sequence[str]
    notes: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)


def places_fingerprint(places: Float64[np.ndarray, "n 2"]) -> str:
    """sha256 of places, whatever their order: of the sorted (lat, lon) as little-endian float32."""
    points = np.asarray(places, np.float64).astype("<f4")
    order = np.lexsort((points[:, 1], points[:, 0]))
    return hashlib.sha256(np.ascontiguousarray(points[order]).tobytes()).hexdigest()


class _SourceImages(Iterable[ImageSource]):
    """The images of a source's photos, in order: read again at each pass, so that none is held in memory."""

    def __init__(self, source: PhotoSource) -> None:
        self._source = source

    def __iter__(self) -> Iterator[ImageSource]:
        return (entry.image for entry in self._source.entries() if isinstance(entry, Photo))


def label_source(source: PhotoSource) -> Labelled:
    """Return the photos of a source, as :func:`~open_geoclip.data.sources.open_source` opens it.

    Raises:
        BenchmarkError: no photo has a place.
        DataError: many latitudes and longitudes look swapped.
    """
    photos: list[tuple[str, float, float, str | None]] = []
    faults: list[SkippedRecord] = []
    seen: Counter[str] = Counter()
    for entry in source.entries():
        if isinstance(entry, SkippedRecord):
            faults.append(entry)
            continue
        seen[entry.key] += 1
        name = entry.key if seen[entry.key] == 1 else f"{entry.key}#{seen[entry.key]}"
        photos.append((name, entry.lat, entry.lon, entry.group))
    check_swapped(faults, len(photos) + len(faults), source.name)
    if not photos:
        first = f"; the first of {len(faults):,} that cannot be used: {faults[0]}" if faults else ""
        raise BenchmarkError(f"{source.name}: there is no photo whose place is known{first}")
    names = [name for name, *_ in photos]
    truth = np.array([(lat, lon) for _, lat, lon, _ in photos], np.float64)
    groups = [group or name for name, _, _, group in photos] if any(group for *_, group in photos) else None
    missing = [fault.key for fault in faults if fault.kind == "missing"]
    counts = {"rows": len(photos) + len(faults), "photos": len(photos), "photos_missing": len(missing)}
    return Labelled(
        name=re.sub(r"[^\w.-]+", "-", Path(source.name).name),
        benchmark=None,
        rows=np.arange(len(photos)),
        ids=names,
        photos=_SourceImages(source),
        images=names,
        truth=truth,
        groups=groups,
        group_column=None,
        table=Path(source.name),
        table_sha256=source.fingerprint,
        places_sha256=places_fingerprint(truth),
        counts=counts | {"rows_without_place": len(faults) - len(missing)},
        missing=missing,
        notes=[f"left out: {fault}" for fault in faults[:_SHOWN_RECORDS]],
    )
