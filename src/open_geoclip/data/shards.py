"""Tar shards in WebDataset's format: ``000001.jpg`` and ``000001.json``, one after the other.

Files of one record follow each other and share their name up to the first dot. The image is the file with an
image's suffix. The coordinates come from a table, where one is given, else from ``.json`` (names as in a table), else
from the image's own EXIF data.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from open_geoclip.data.columns import find_columns
from open_geoclip.data.exif import NoPositionError, read_position
from open_geoclip.data.photo_tables import PHOTO_COLUMNS, PhotoTable
from open_geoclip.data.photos import Entry, Photo, SkippedRecord, check_part, photo_or_skipped, usable
from open_geoclip.data.tar import CutOffError, Member, members
from open_geoclip.errors import DataError, ImageError
from open_geoclip.images import SUFFIXES

__all__ = ["INDEX", "SHARD_SUFFIXES", "TarPhotos", "expand_braces", "find_shards"]

INDEX = "index.json"
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
BUFFER = 2048
"""Photos in memory while a shard is shuffled: about 100 MB of images of 50 kB."""


def expand_braces(pattern: str) -> list[str]:
    """``a{000..012}.tar`` and ``a{x,y}.tar`` written out, as a shell does.

    Raises:
        DataError: more than a million names.
    """
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    first, last, names = found.groups()
    if names is not None:
        middle = names.split(",")
    else:
        if abs(int(last) - int(first)) >= 1_000_000:
            raise DataError(f"{pattern}: these are more than a million shards")
        step = 1 if int(last) >= int(first) else -1
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        middle = [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    return [
        name for part in middle for name in expand_braces(f"{pattern[: found.start()]}{part}{pattern[found.end() :]}")
    ]


def find_shards(pattern: str | Path) -> tuple[Path, ...]:
    """The shards of a folder, a pattern with braces or ``*``, or one file.

    Raises:
        DataError: one of them is not there, or there is none.
    """
    paths: list[Path] = []
    for name in expand_braces(str(pattern)):
        path = Path(name)
        if "*" in path.name or "?" in path.name:
            paths += sorted(path.parent.glob(path.name))
        elif path.is_dir():
            paths += sorted(child for child in path.iterdir() if child.name.lower().endswith(SHARD_SUFFIXES))
        elif path.exists():
            paths.append(path)
        else:
            raise DataError(f"{path}: there is no such shard")
    if not paths:
        raise DataError(f"{pattern}: there is no shard ({', '.join(SHARD_SUFFIXES)}) there")
    return tuple(paths)


@dataclass(frozen=True, eq=False)
class TarPhotos:
    """Photos in tar shards, read as a stream.

    ``shard`` returns whole shards, or every n-th record if there are fewer shards than parts. ``shuffled`` shuffles the
    shards, and the photos through a buffer of ``BUFFER``. The fingerprint covers the names, sizes and times of change
    of the shards, or their entries in ``index.json``, and the table.

    Attributes:
        name: the name in messages.
        paths: the shards.
        table: which records to take and where they were taken; default: all records.
        lookup: the row of the table by each name of a record.
        stride: (i, n): of each shard, records i, i + n, i + 2n...
        order: seeds of the order; as stored if empty.
        places: whether coordinates are read; otherwise all are NaN, and keys begin with the name of the shard.
    """

    name: str
    paths: tuple[Path, ...]
    whole_fingerprint: str
    table: PhotoTable | None = None
    lookup: dict[str, int] = field(default_factory=dict)
    whole_count: int | None = None
    stride: tuple[int, int] = (0, 1)
    order: tuple[int, ...] = ()
    places: bool = True

    @staticmethod
    def opened(pattern: str | Path, table: PhotoTable | None = None, *, places: bool = True) -> "TarPhotos":
        """Find the shards.

        Args:
            pattern: a folder, a file, or a pattern such as ``shards/{000..012}.tar``.
            table: which photos to take and where they were taken, by key or file name.
            places: read coordinates.

        Raises:
            DataError: a shard is not there.
        """
        paths = find_shards(pattern)
        digest, count = hashlib.sha256(), 0
        known = _index(paths)
        for path in paths:
            entry = known.get(path)
            stat = path.stat()
            if entry is not None and entry["bytes"] == stat.st_size:
                digest.update(f"{path.name}\0{entry['sha256']}\n".encode())
                count += entry["count"]
            else:
                digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
                known.clear()
        whole = count if known else None
        if table is None:
            return TarPhotos(str(pattern), paths, digest.hexdigest(), whole_count=whole, places=places)
        digest.update(table.fingerprint.encode())
        return TarPhotos(f"{table.path} in {pattern}", paths, digest.hexdigest(), table, _row_by_name(table))

    @property
    def fingerprint(self) -> str:
        """Changes with the shards, the records of them and their order."""
        names = "\n".join(path.name for path in self.paths)
        return hashlib.sha256(f"{self.whole_fingerprint}{names}{self.stride}{self.order}".encode()).hexdigest()

    @property
    def count(self) -> int | None:
        """The number of photos, if ``index.json`` has it and this is the whole source."""
        return self.whole_count

    def __iter__(self) -> Iterator[Photo]:
        return usable(self.entries(), self.name)

    def shard(self, rank: int, world: int) -> "TarPhotos":
        """Return part ``rank`` of ``world``: whole shards, or every ``world``-th record if there are too few."""
        check_part(rank, world)
        if world == 1:
            return self
        if self.stride == (0, 1) and len(self.paths) >= world:
            return replace(self, paths=self.paths[rank::world], whole_count=None)
        first, step = self.stride
        return replace(self, stride=(first + step * rank, step * world), whole_count=None)

    def shuffled(self, seed: int, epoch: int = 0) -> "TarPhotos":
        """Return the shards in another order, with photos shuffled through a buffer."""
        order = (*self.order, seed, epoch)
        paths = [self.paths[i] for i in np.random.default_rng(order).permutation(len(self.paths))]
        return replace(self, paths=tuple(paths), order=order)

    def entries(self) -> Iterator[Entry]:
        """Yield all entries; for a shard that breaks, a skipped record after what is whole before the break."""
        stored = (entry for path in self.paths for entry in self._shard_entries(path))
        return _buffered(stored, np.random.default_rng((*self.order, 1))) if self.order else stored

    def _shard_entries(self, path: Path) -> Iterator[Entry]:
        first, step = self.stride
        taken = 0  # records so far
        last: str | None = None

        def mine(name: str) -> bool:
            # Asked once a file, before its data are read: a new record is counted here.
            nonlocal taken, last
            if (key := _stem(name)) != last:
                taken, last = taken + 1, key
            return (taken - 1) % step == first and _is_wanted(name)

        record: list[Member] = []
        try:
            for member in members(path, mine):
                if record and _stem(member.name) != _stem(record[0].name):
                    yield from self._entry(path, record)
                    record = []
                record.append(member)
        except CutOffError as cut:
            # The last record may be whole: then it is used. Without its JSON it is not.
            if self.table is not None or any(member.name.endswith(".json") for member in record):
                yield from (entry for entry in self._entry(path, record) if isinstance(entry, Photo))
            if first == 0:  # told once, not by each part
                yield SkippedRecord(str(path), "cut off", str(cut).removeprefix(f"{path}: "))
            return
        except OSError as error:
            yield SkippedRecord(str(path), "missing", f"the shard cannot be read: {error.strerror or error}")
            return
        yield from self._entry(path, record)

    def _entry(self, path: Path, record: list[Member]) -> Iterator[Entry]:
        if not record:
            return
        stem = _stem(record[0].name)
        place = f"{path.name}/{stem} (byte {record[0].offset:,})"
        image = next((member.data for member in record if Path(member.name).suffix.lower() in SUFFIXES), None)
        if not self.places:
            key = f"{path.name}/{stem}"
            if image is None:
                yield SkippedRecord(key, "missing", f"there is no image among {', '.join(m.name for m in record)}")
            else:
                yield Photo(key, image, math.nan, math.nan)
            return
        text = next((member.data for member in record if member.name.endswith(".json")), b"{}")
        try:
            facts = json.loads(text)
            facts = _by_column(facts if isinstance(facts, dict) else {})
        except DataError as error:
            yield SkippedRecord(stem, "no coordinates", f"{place}: {error}")
            return
        except ValueError as error:
            yield SkippedRecord(stem, "no coordinates", f"{place}: its JSON is damaged ({error})")
            return
        given = [str(facts["key"])] if facts.get("key") not in (None, "") else []
        key = given[0] if given else stem
        if self.table is not None:
            names = [member.name for member in record]
            aliases = [*given, *names, stem, *(Path(name).name for name in names), Path(stem).name]
            row = next((self.lookup[alias] for alias in aliases if alias in self.lookup), None)
            if row is None:
                return  # not in the table: not asked for
            key = self.table.keys[row]
            lat, lon = self.table.coordinates[row].tolist()
            group = self.table.group(row)
        if image is None:
            yield SkippedRecord(key, "missing", f"{place}: there is no image among {', '.join(m.name for m in record)}")
            return
        if self.table is None:
            try:
                lat, lon = _place(facts) or read_position(image, name=key)
            except NoPositionError as error:
                yield SkippedRecord(key, error.kind, f"{place}: {error.reason}")
                return
            except ImageError as error:
                yield SkippedRecord(key, "broken", f"{place}: {error.reason}")
                return
            except (TypeError, ValueError):
                yield SkippedRecord(key, "no coordinates", f"{place}: its coordinates are no numbers")
                return
            group = None if facts.get("group") is None else str(facts["group"])
        entry = photo_or_skipped(key, image, lat, lon, group)
        yield SkippedRecord(key, entry.kind, f"{place}: {entry.reason}") if isinstance(entry, SkippedRecord) else entry


def _row_by_name(table: PhotoTable) -> dict[str, int]:
    """Return the row of each name that a record may have: that in the table, or without its ending or its folder.

    A name without its folder says nothing where several rows have it.
    """
    whole: dict[str, int] = {}
    stems: dict[str, int] = {}
    bases: dict[str, int] = {}
    for names in (table.keys, table.files):
        for row, name in enumerate(names):
            whole.setdefault(name, row)
            stems.setdefault(_stem(name), row)
            for base in (Path(name).name, _stem(Path(name).name)):
                if bases.setdefault(base, row) != row:
                    bases[base] = -1
    return {name: row for name, row in bases.items() if row >= 0} | stems | whole


def _stem(name: str) -> str:
    """Return what the files of a record share: the name up to the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _is_wanted(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES | {".json"}


def _by_column(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a record's JSON by our names for them."""
    names = list(facts)
    return {name: facts[names[at]] for name, at in find_columns(names, PHOTO_COLUMNS).items()}


def _place(facts: dict[str, Any]) -> tuple[float, float] | None:
    if facts.get("lat") is None or facts.get("lon") is None:
        return None
    return float(str(facts["lat"])), float(str(facts["lon"]))


def _buffered(entries: Iterable[Entry], rng: np.random.Generator) -> Iterator[Entry]:
    """Shuffle a stream: each entry that comes in sends out one of those that wait."""
    waiting: list[Entry] = []
    for entry in entries:
        if len(waiting) < BUFFER:
            waiting.append(entry)
            continue
        at = int(rng.integers(BUFFER))
        waiting[at], entry = entry, waiting[at]
        yield entry
    yield from (waiting[i] for i in rng.permutation(len(waiting)))


def _index(paths: tuple[Path, ...]) -> dict[Path, dict[str, Any]]:
    """Return the entry of each shard in the index beside it."""
    known: dict[Path, dict[str, Any]] = {}
    for folder in {path.parent for path in paths}:
        path = folder / INDEX
        if not path.is_file():
            continue
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            known |= {folder / shard["name"]: shard for shard in index["shards"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: it is no index of shards ({error}); remove it, or pack again") from error
    return known
