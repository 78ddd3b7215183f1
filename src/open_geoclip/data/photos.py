"""A photo, and the interface of all sources of photos.

A source yields *entries*, each a `Photo` or a `SkippedRecord`: what cannot be used is named and counted. Images are
decoded by `open_geoclip.data.decoding`. Sources are immutable and hold no open files, so they can be sent to another
process.
`shard` and `shuffled` return new ones; any chain of the two keeps the parts disjoint and complete.
"""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, TypeVar, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int64

from open_geoclip.errors import DataError, SettingsError
from open_geoclip.geo.sphere import MAX_LONGITUDE_DEG
from open_geoclip.images import ImageSource

__all__ = [
    "MAX_SWAPPED",
    "SKIP_KINDS",
    "Entry",
    "IndexedPhotos",
    "Photo",
    "PhotoSource",
    "SkipKind",
    "SkipLog",
    "SkippedRecord",
    "check_part",
    "check_swapped",
    "photo_or_skipped",
    "usable",
]

_log = logging.getLogger(__name__)

SkipKind = Literal["missing", "broken", "no coordinates", "zero", "out of range", "duplicate", "cut off"]
SKIP_KINDS: tuple[SkipKind, ...] = get_args(SkipKind)


@dataclass(frozen=True)
class Photo:
    """An image and where it was taken.

    Attributes:
        key: its name within the source.
        image: what `images.load_image` takes; not decoded yet.
        lat: latitude in degrees, WGS84; NaN in a source that was opened without places.
        lon: longitude in degrees, -180 to 180; likewise.
        group: such as its photographer; a split keeps the photos of a group together.
    """

    key: str
    image: ImageSource
    lat: float
    lon: float
    group: str | None = None


@dataclass(frozen=True)
class SkippedRecord:
    """An entry that cannot be used, and why.

    Attributes:
        key: its name within the source; for a shard that ends early, the shard's.
        kind: one of `SKIP_KINDS`.
        reason: for messages.
    """

    key: str
    kind: SkipKind
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


Entry: TypeAlias = Photo | SkippedRecord


@runtime_checkable
class PhotoSource(Protocol):
    """Photos with coordinates. Iterating again yields the same ones in the same order."""

    @property
    def name(self) -> str:
        """The name in messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the entries change; it need not cover the pixels."""
        ...

    @property
    def count(self) -> int | None:
        """The number of entries; None if it is not known before the end."""
        ...

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, also those that cannot be used."""
        ...

    def __iter__(self) -> Iterator[Photo]:
        """Yield the photos; the log says what is left out."""
        ...

    def shard(self, rank: int, world: int) -> "PhotoSource":
        """Return part ``rank`` of ``world`` disjoint parts."""
        ...

    def shuffled(self, seed: int, epoch: int = 0) -> "PhotoSource":
        """Return the same entries in an order that depends on seed and epoch."""
        ...


class SkipLog:
    """Logs the first skipped records, each in a line, and their number when it is closed; ``counts`` is by kind."""

    def __init__(self, name: str, shown: int = 10) -> None:
        self.name = name
        self.counts: Counter[SkipKind] = Counter()
        self._shown = shown

    def __call__(self, fault: SkippedRecord) -> None:
        """Count a skipped record."""
        self.counts[fault.kind] += 1
        if self.counts.total() <= self._shown:
            _log.warning("left out: %s", fault)

    def close(self) -> None:
        """Log how many there were, if more than were shown."""
        if (total := self.counts.total()) > self._shown:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
            _log.warning("%s: %s entries were left out (%s)", self.name, f"{total:,}", kinds)


def usable(entries: Iterable[Entry], name: str) -> Iterator[Photo]:
    """Yield the photos among entries; the log says what is left out."""
    log = SkipLog(name)
    try:
        for entry in entries:
            if isinstance(entry, SkippedRecord):
                log(entry)
            else:
                yield entry
    finally:
        log.close()


def photo_or_skipped(key: str, image: ImageSource, lat: float, lon: float, group: str | None = None) -> Entry:
    """Return a photo, or why its coordinates (NaN: none) cannot be used. Longitudes up to 540 degrees are wrapped."""
    if math.isnan(lat) or math.isnan(lon):
        return SkippedRecord(key, "no coordinates", "it has no coordinates")
    if lat == 0 and lon == 0:
        return SkippedRecord(key, "zero", "its coordinates are 0, 0, which is what a receiver without a fix writes")
    if not abs(lat) <= 90:
        swapped = "; latitude and longitude look exchanged" if abs(lon) <= 90 and abs(lat) <= 180 else ""
        return SkippedRecord(key, "out of range", f"latitude {lat:.10g} is not within -90 and 90 degrees{swapped}")
    if not abs(lon) <= MAX_LONGITUDE_DEG:
        return SkippedRecord(key, "out of range", f"longitude {lon:.10g} is not within -180 and 180 degrees")
    if abs(lon) > 180:
        lon -= 360 * round(lon / 360)
    return Photo(key, image, float(lat), float(lon), group)


MAX_SWAPPED = 0.05
"""Largest share of entries whose latitude and longitude look swapped."""


def check_swapped(
    faults: Iterable[SkippedRecord], entries: int, name: str, *, most: float = MAX_SWAPPED, override: str = ""
) -> None:
    """Raise `DataError` where many latitudes look like longitudes: the entries in range may be swapped, too.

    Args:
        faults: what cannot be used.
        entries: all entries.
        name: of the source.
        most: largest share of entries that may look swapped.
        override: the end of the message: how to use the other entries all the same.
    """
    swapped = sum(fault.kind == "out of range" and "exchanged" in fault.reason for fault in faults)
    if swapped > most * entries:
        raise DataError(
            f"{name}: latitude and longitude look swapped: {swapped:,} of {entries:,} entries have a latitude beyond "
            f"90 degrees. Swap the columns, or their names in the first line{override}"
        )


def check_part(rank: int, world: int) -> None:
    """Raise `SettingsError` unless ``rank`` is one of 0 to ``world - 1``."""
    if world < 1 or not 0 <= rank < world:
        raise SettingsError(f"part {rank} of {world}: parts are counted from 0 to one less than their number")


_Source = TypeVar("_Source", bound="IndexedPhotos")


@dataclass(frozen=True, eq=False)
class IndexedPhotos:
    """Base of sources with random access.

    Attributes:
        name: the name in messages.
        whole_fingerprint: of the whole source, in its own order.
        rows: which of its rows, in which order.
    """

    name: str
    whole_fingerprint: str
    rows: Int64[np.ndarray, " n"]

    @property
    def fingerprint(self) -> str:
        """Changes with the whole source, the rows and their order."""
        digest = hashlib.sha256(self.whole_fingerprint.encode())
        digest.update(np.ascontiguousarray(self.rows).tobytes())
        return digest.hexdigest()

    @property
    def count(self) -> int:
        """The number of entries."""
        return len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def entry(self, row: int) -> Entry:
        """Return the entry of a row of the whole source."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Entry:
        return self.entry(int(self.rows[index]))

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, in order."""
        return (self.entry(row) for row in self.rows.tolist())

    def __iter__(self) -> Iterator[Photo]:
        return usable(self.entries(), self.name)

    def select(self: _Source, rows: Int64[np.ndarray, " m"]) -> _Source:
        """Return some entries, by their positions in this source."""
        return replace(self, rows=self.rows[rows])

    def shard(self: _Source, rank: int, world: int) -> _Source:
        """Return every ``world``-th entry, from ``rank`` on."""
        check_part(rank, world)
        return replace(self, rows=self.rows[rank::world])

    def shuffled(self: _Source, seed: int, epoch: int = 0) -> _Source:
        """Return a permutation."""
        return replace(self, rows=np.random.default_rng([seed, epoch]).permutation(self.rows))


OnSkip: TypeAlias = Callable[[SkippedRecord], None]
