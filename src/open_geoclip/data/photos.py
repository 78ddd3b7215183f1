"""One record, and what every source of photos can do.

A source gives *entries*, each a `Photo` or a `Fault`: what cannot be used is named and counted, never dropped in
silence. Pictures are not decoded here; see `decoding.decoded`.

Sources are values: `shard` and `shuffled` give new ones and change nothing. They hold no open files, so that they can
be sent to another process. Any chain of the two, in any order, keeps the parts disjoint and complete.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, TypeVar, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int64

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import MAX_LONGITUDE_DEG
from open_geoclip.images import ImageSource

__all__ = [
    "FAULT_KINDS",
    "Entry",
    "Fault",
    "FaultKind",
    "FaultLog",
    "IndexedPhotos",
    "Photo",
    "PhotoSource",
    "check_part",
    "photo_or_fault",
    "usable",
]

_log = logging.getLogger(__name__)

FaultKind = Literal["missing", "broken", "no coordinates", "zero", "out of range", "duplicate", "cut off"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


@dataclass(frozen=True)
class Photo:
    """A picture and where it was taken.

    Attributes:
        key: its name within the source.
        image: what `images.load_image` takes; not decoded yet.
        lat: latitude in degrees, WGS84; NaN in a source that was opened without places.
        lon: longitude in degrees, -180 to 180; likewise.
        group: what it belongs to, such as its photographer; nobody's photos may stand on both sides of a split.
    """

    key: str
    image: ImageSource
    lat: float
    lon: float
    group: str | None = None


@dataclass(frozen=True)
class Fault:
    """An entry that cannot be used, and why.

    Attributes:
        key: its name within the source; for a shard that ends early, the shard's.
        kind: one of `FAULT_KINDS`.
        reason: a sentence for people.
    """

    key: str
    kind: FaultKind
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


Entry: TypeAlias = Photo | Fault


@runtime_checkable
class PhotoSource(Protocol):
    """Photos with coordinates, from wherever they are kept. Iterating again gives the same ones in the same order."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when what it gives changes. Cheap: pixels may be left out, each source says what it covers."""
        ...

    @property
    def count(self) -> int | None:
        """How many entries it gives, or None when nobody knows before the end. Photos are as many at most."""
        ...

    def entries(self) -> Iterator[Entry]:
        """All entries, those that cannot be used as well."""
        ...

    def __iter__(self) -> Iterator[Photo]:
        """The photos. What was left out is told in the log."""
        ...

    def shard(self, rank: int, world: int) -> "PhotoSource":
        """Part ``rank`` of ``world`` parts that have nothing in common and are everything together."""
        ...

    def shuffled(self, seed: int, epoch: int = 0) -> "PhotoSource":
        """The same entries in another order, the same for the same seed and epoch."""
        ...


class FaultLog:
    """Tells the first faults in the log, each in a line, and how many there were when it is closed.

    Attributes:
        counts: how many of each kind.
    """

    def __init__(self, name: str, shown: int = 10) -> None:
        self.name = name
        self.counts: dict[FaultKind, int] = {}
        self._shown = shown

    def __call__(self, fault: Fault) -> None:
        """Count a fault."""
        self.counts[fault.kind] = self.counts.get(fault.kind, 0) + 1
        if self.total <= self._shown:
            _log.warning("left out: %s", fault)

    @property
    def total(self) -> int:
        """How many faults there were."""
        return sum(self.counts.values())

    def close(self) -> None:
        """Say how many there were, if more than were shown."""
        if self.total > self._shown:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
            _log.warning("%s: %s entries were left out (%s)", self.name, f"{self.total:,}", kinds)


def usable(entries: Iterable[Entry], name: str) -> Iterator[Photo]:
    """The photos among entries; the rest is told in the log."""
    log = FaultLog(name)
    try:
        for entry in entries:
            if isinstance(entry, Fault):
                log(entry)
            else:
                yield entry
    finally:
        log.close()


def photo_or_fault(key: str, image: ImageSource, lat: float, lon: float, group: str | None = None) -> Entry:
    """A photo, or the fault of its coordinates. Longitudes from 180 to 540 degrees are wrapped.

    Args:
        key: its name.
        image: the picture.
        lat: latitude in degrees; NaN where there is none.
        lon: longitude in degrees; NaN where there is none.
        group: what it belongs to.
    """
    if math.isnan(lat) or math.isnan(lon):
        return Fault(key, "no coordinates", "it has no coordinates")
    if lat == 0 and lon == 0:
        return Fault(key, "zero", "its coordinates are 0, 0, which is what a receiver without a fix writes")
    if not abs(lat) <= 90:
        swapped = "; latitude and longitude look exchanged" if abs(lon) <= 90 and abs(lat) <= 180 else ""
        return Fault(key, "out of range", f"latitude {lat:.10g} is not within -90 and 90 degrees{swapped}")
    if not abs(lon) <= MAX_LONGITUDE_DEG:
        return Fault(key, "out of range", f"longitude {lon:.10g} is not within -180 and 180 degrees")
    if abs(lon) > 180:
        lon -= 360 * round(lon / 360)
    return Photo(key, image, float(lat), float(lon), group)


def check_part(rank: int, world: int) -> None:
    """Refuse a part that does not exist.

    Raises:
        SettingsError: ``rank`` is not one of 0 to ``world - 1``.
    """
    if world < 1 or not 0 <= rank < world:
        raise SettingsError(f"part {rank} of {world}: parts are counted from 0 to one less than their number")


_Source = TypeVar("_Source", bound="IndexedPhotos")


@dataclass(frozen=True, eq=False)
class IndexedPhotos:
    """A source that can give any entry at any time; the base of those that can.

    Attributes:
        name: what messages call it.
        whole_fingerprint: of the whole source, in its own order.
        rows: which of its rows, in which order.
    """

    name: str
    whole_fingerprint: str
    rows: Int64[np.ndarray, " n"]

    @property
    def fingerprint(self) -> str:
        """Of what this gives: which rows of what, in which order."""
        digest = hashlib.sha256(self.whole_fingerprint.encode())
        digest.update(np.ascontiguousarray(self.rows).tobytes())
        return digest.hexdigest()

    @property
    def count(self) -> int:
        """How many entries."""
        return len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def entry(self, row: int) -> Entry:
        """The entry of a row of the whole source."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Entry:
        return self.entry(int(self.rows[index]))

    def entries(self) -> Iterator[Entry]:
        """All entries, in order."""
        return (self.entry(row) for row in self.rows.tolist())

    def __iter__(self) -> Iterator[Photo]:
        return usable(self.entries(), self.name)

    def select(self: _Source, rows: Int64[np.ndarray, " m"]) -> _Source:
        """Some of the entries, by position in this source, in the order given."""
        return replace(self, rows=self.rows[rows])

    def shard(self: _Source, rank: int, world: int) -> _Source:
        """Every ``world``-th entry, from ``rank`` on."""
        check_part(rank, world)
        return replace(self, rows=self.rows[rank::world])

    def shuffled(self: _Source, seed: int, epoch: int = 0) -> _Source:
        """An exact permutation."""
        return replace(self, rows=np.random.default_rng([seed, epoch]).permutation(self.rows))


OnFault: TypeAlias = Callable[[Fault], None]
