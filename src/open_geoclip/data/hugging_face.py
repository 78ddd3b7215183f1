"""Hugging Face datasets with images and coordinates, from the hub, a folder, or as a stream."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from open_geoclip.data.columns import COORDINATES, find_columns
from open_geoclip.data.photo_tables import PHOTO_COLUMNS
from open_geoclip.data.photos import (
    Entry,
    IndexedPhotos,
    Photo,
    PhotoSource,
    SkippedRecord,
    check_part,
    photo_or_skipped,
    usable,
)
from open_geoclip.errors import DataError, MissingExtraError, SettingsError

__all__ = ["DatasetPhotos", "DatasetStream", "open_dataset"]

_BUFFER = 2048


def open_dataset(spec: str, *, places: bool = True) -> PhotoSource:
    """Open ``hf:NAME[:SPLIT]`` or ``hf-stream:NAME[:SPLIT]``.

    NAME is a hub name or a folder, SPLIT train if not given.

    Args:
        spec: the dataset.
        places: read coordinates; otherwise all are NaN.

    Raises:
        DataError: it cannot be loaded, or lacks a column.
        SettingsError: the name is empty.
        MissingExtraError: the extra ``hf`` is not installed.
    """
    scheme, _, rest = spec.partition(":")
    name, _, split = rest.rpartition(":") if ":" in rest else (rest, "", "train")
    if not name:
        raise SettingsError(f"{spec!r} is not hf:NAME[:SPLIT], such as hf:osv5m/osv5m:test")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("Reading a Hugging Face dataset", "hf") from error
    streaming = scheme == "hf-stream"
    try:
        if (Path(name) / "dataset_info.json").exists() or (Path(name) / "dataset_dict.json").exists():
            data = datasets.load_from_disk(name)
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
            data = data.to_iterable_dataset() if streaming else data
        else:
            data = datasets.load_dataset(name, split=split, streaming=streaming)
    except Exception as error:  # loaders of any format fail in any way
        raise DataError(f"{spec}: it cannot be loaded: {type(error).__name__}: {error}") from error
    names = data.column_names
    columns = _columns(list(next(iter(data))) if names is None else names, spec, places=places)
    if isinstance((data.features or {}).get(columns["file"]), datasets.Image):
        data = data.cast_column(columns["file"], datasets.Image(decode=False))  # images are decoded by us
    if streaming:
        fingerprint = hashlib.sha256(f"{spec}{data.info.version}{data.info.dataset_size}".encode()).hexdigest()
        return DatasetStream(spec, fingerprint, data, columns)
    return DatasetPhotos(spec, data._fingerprint, np.arange(len(data)), data, columns)


def _columns(names: Sequence[str], spec: str, *, places: bool) -> dict[str, str]:
    """Return the columns of photos by our names; ``file`` and ``key`` stand for each other if one is missing."""
    found = {column: names[at] for column, at in find_columns(names, PHOTO_COLUMNS).items()}
    present = ", ".join(names[:20]) or "none"
    if not places:
        found = {column: name for column, name in found.items() if column not in COORDINATES}
    elif "lat" not in found or "lon" not in found:
        raise DataError(f"{spec} has no columns of latitude and longitude (LAT and LON, for one), only {present}")
    if "file" not in found and "key" not in found:
        raise DataError(f"{spec} has no column that names the image (IMG_FILE, for one), only {present}")
    return {"file": found.get("key", ""), "key": found.get("file", "")} | found


def _entry(record: Mapping[str, Any], columns: dict[str, str], row: int | str) -> Entry:
    key = record[columns["key"]]
    key = f"{row}" if columns["key"] == columns["file"] and not isinstance(key, str) else str(key)
    image = record[columns["file"]]
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if image is None:
        return SkippedRecord(key, "missing", "the record holds no image")
    if "lat" not in columns:
        return Photo(key, image, float("nan"), float("nan"))
    try:
        lat, lon = (float("nan") if (value := record[columns[x]]) is None else float(value) for x in ("lat", "lon"))
    except (TypeError, ValueError):
        return SkippedRecord(key, "no coordinates", "its coordinates are no numbers")
    group = record[columns["group"]] if "group" in columns else None
    return photo_or_skipped(key, image, lat, lon, None if group is None else str(group))


@dataclass(frozen=True, eq=False)
class DatasetPhotos(IndexedPhotos):
    """A dataset on this machine (``datasets.Dataset``) with its own fingerprint; ``columns`` by our names."""

    data: Any
    columns: dict[str, str]

    def entry(self, row: int) -> Entry:
        """Return the photo of a row."""
        return _entry(self.data[row], self.columns, row)


@dataclass(frozen=True, eq=False)
class DatasetStream:
    """A streamed dataset. The fingerprint covers its name, version and size.

    Attributes:
        name: the name in messages.
        whole_fingerprint: of all of it.
        data: a ``datasets.IterableDataset``.
        columns: by our names.
        part: (i, n): records i, i + n, i + 2n...
        order: seeds of the order.
    """

    name: str
    whole_fingerprint: str
    data: Any
    columns: dict[str, str]
    part: tuple[int, int] = (0, 1)
    order: tuple[int, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Changes with the dataset, the part and the order."""
        return hashlib.sha256(f"{self.whole_fingerprint}{self.part}{self.order}".encode()).hexdigest()

    @property
    def count(self) -> int | None:
        """None: not known before the end."""
        return None

    def entries(self) -> Iterator[Entry]:
        """Yield all entries."""
        first, step = self.part
        for number, record in enumerate(self.data):
            if number % step == first:
                yield _entry(record, self.columns, number)

    def __iter__(self) -> Iterator[Photo]:
        return usable(self.entries(), self.name)

    def shard(self, rank: int, world: int) -> "DatasetStream":
        """Return every ``world``-th record."""
        check_part(rank, world)
        first, step = self.part
        return replace(self, part=(first + step * rank, step * world))

    def shuffled(self, seed: int, epoch: int = 0) -> "DatasetStream":
        """Return the dataset's own shuffle: of its shards, and through a buffer."""
        order = (*self.order, seed, epoch)
        drawn = int(np.random.default_rng(order).integers(2**31))
        return replace(self, data=self.data.shuffle(seed=drawn, buffer_size=_BUFFER), order=order)
