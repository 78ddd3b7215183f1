"""Check which photos of a source can be used."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from open_geoclip.data.decoding import map_photos
from open_geoclip.data.photos import SKIP_KINDS, Photo, PhotoSource, SkippedRecord
from open_geoclip.data.shards import TarPhotos
from open_geoclip.errors import ImageError
from open_geoclip.images import load_image

__all__ = ["Check", "check_source"]


@dataclass(frozen=True)
class Check:
    """What was found in a source.

    Attributes:
        source: its name.
        fingerprint: its fingerprint.
        entries: number of photos, usable or not.
        usable: number of those that can be used.
        places: number of their different coordinates.
        sharing_a_place: number of usable photos with the coordinates of another; that is no reason to skip one.
        groups: number of groups of the usable photos.
        bounds: south, west, north, east of the usable photos, in degrees; None without any.
        decoded: whether images were decoded, or only looked for.
        faults: the photos that cannot be used, and duplicates, which can, in order.
    """

    source: str
    fingerprint: str
    entries: int
    usable: int
    places: int
    sharing_a_place: int
    groups: int
    bounds: tuple[float, float, float, float] | None
    decoded: bool
    faults: tuple[SkippedRecord, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of faults of each kind."""
        found = Counter(fault.kind for fault in self.faults)
        return {kind: found[kind] for kind in SKIP_KINDS if found[kind]}

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON, with ``counts`` as ``unusable`` and ``duplicates``."""
        unusable = self.counts
        return asdict(self) | {"duplicates": unusable.pop("duplicate", 0), "unusable": unusable}


def check_source(
    source: PhotoSource,
    *,
    decode: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Check:
    """Read a source once.

    A photo with the pixels of one before it is a duplicate, whatever its name, metadata and coordinates. Duplicates
    are listed, but usable: training uses them.

    Args:
        source: the photos.
        decode: decode each image; without, files are only looked for, and duplicates are not found.
        workers: threads that decode; default: one per processor core.
        progress: called with (done, total) entries, if the total is known.
    """
    faults: list[SkippedRecord] = []
    first: dict[bytes, str] = {}
    seen: set[str] = set()
    groups: set[str] = set()
    coordinates: Counter[tuple[float, float]] = Counter()
    entries = 0
    for result in map_photos(source, _digest if decode else _look, workers=workers):
        entries += 1
        if isinstance(result, SkippedRecord):
            faults.append(result)
            seen.add(result.key)
        else:
            photo, digest = result
            seen.add(photo.key)
            if digest and digest in first:
                faults.append(SkippedRecord(photo.key, "duplicate", f"it has the pixels of {first[digest]}"))
            first.setdefault(digest, photo.key)
            coordinates[photo.lat, photo.lon] += 1
            if photo.group is not None:
                groups.add(photo.group)
        if progress is not None and source.count is not None:
            progress(entries, source.count)
    if isinstance(source, TarPhotos) and source.table is not None:
        absent = [key for key in source.table.keys if key not in seen]
        entries += len(absent)
        faults += [SkippedRecord(key, "missing", "it is in the table and in none of the shards") for key in absent]
    places = np.array(list(coordinates), np.float64).reshape(-1, 2)
    bounds = (*places.min(axis=0).tolist(), *places.max(axis=0).tolist()) if len(places) else None
    return Check(
        source=source.name,
        fingerprint=source.fingerprint,
        entries=entries,
        usable=coordinates.total(),
        places=len(coordinates),
        sharing_a_place=sum(count for count in coordinates.values() if count > 1),
        groups=len(groups),
        bounds=bounds,
        decoded=decode,
        faults=tuple(faults),
    )


def _digest(photo: Photo) -> bytes:
    pixels = np.ascontiguousarray(load_image(photo.image, name=photo.key))
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    return digest.digest()


def _look(photo: Photo) -> bytes:
    if isinstance(photo.image, (str, os.PathLike)) and not Path(photo.image).is_file():
        raise ImageError(photo.key, "there is no such file")
    return b""
