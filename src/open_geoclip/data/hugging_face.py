"""Hugging Face datasets with images and coordinates, from the hub, a folder, or as a stream."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from open_geoclip.data.photo_tables import photo_columns
from open_geoclip.data.photos import Entry, Fault, IndexedPhotos, Photo, PhotoSource, check_part, photo_or_fault, usable
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
    columns = photo_columns(names if names is not None else list(next(iter(data))), spec, places=places)
    if isinstance((data.features or {}).get(columns["file"]), datasets.Image):
        data = data.cast_column(columns["file"], datasets.Image(decode=False))  # images are decoded by us
    if streaming:
        fingerprint = hashlib.sha256(f"{spec}{data.info.version}{data.info.dataset_size}".encode()).hexdigest()
        return DatasetStream(spec, fingerprint, data, columns)
    return DatasetPhotos(spec, data._fingerprint, np.arange(len(data)), data, columns)


def _entry(record: Mapping[str, Any], columns: dict[str, str], row: int | str) -> Entry:
    key = record[columns["key"]]
    key = f"{row}" if columns["key"] == columns["file"] and not isinstance(key, str) else str(key)
    image = record[columns["file"]]
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if image is None:
        return Fault(key, "missing", "the record holds no image")
    if "lat" not in columns:
        return Photo(key, image, float("nan"), float("nan"))
    lat, lon = (
        float("nan") if record[name] is None else float(record[name]) for name in (columns["lat"], columns["lon"])
    )
    group = record[columns["group"]] if "group" in columns else None
    return photo_or_fault(key, image, lat, lon, None if group is None else str(group))


@dataclass(frozen=True, eq=False)
class DatasetPhotos(IndexedPhotos):
    """A dataset on this machine. The fingerprint is its own.

    Attributes:
        data: a ``datasets.Dataset``.
        columns: which of its columns hold what.
    """

    data: Any
    columns: dict[str, str]

    def entry(self, row: int) -> Entry:
        """The photo of a row."""
        return _entry(self.data[row], self.columns, row)


@dataclass(frozen=True, eq=False)
class DatasetStream:
    """A dataset that is read as it comes. The fingerprint covers its name, version and size.

    Attributes:
        name: what messages call it.
        whole_fingerprint: of all of it.
        data: a ``datasets.IterableDataset``.
        columns: which of its columns hold what.
        part: (i, n): records i, i + n, i + 2n...
        order: seeds that the order is drawn with.
    """

    name: str
    whole_fingerprint: str
    data: Any
    columns: dict[str, str]
    part: tuple[int, int] = (0, 1)
    order: tuple[int, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of what this gives."""
        return hashlib.sha256(f"{self.whole_fingerprint}{self.part}{self.order}".encode()).hexdigest()

    @property
    def count(self) -> int | None:
        """Not known before the end."""
        return None

    def entries(self) -> Iterator[Entry]:
        """All entries."""
        first, step = self.part
        for number, record in enumerate(self.data):
            if number % step == first:
                yield _entry(record, self.columns, number)

    def __iter__(self) -> Iterator[Photo]:
        return usable(self.entries(), self.name)

    def shard(self, rank: int, world: int) -> "DatasetStream":
        """Every ``world``-th record."""
        check_part(rank, world)
        first, step = self.part
        return replace(self, part=(first + step * rank, step * world))

    def shuffled(self, seed: int, epoch: int = 0) -> "DatasetStream":
        """The dataset's own shuffle: of its shards, and through a buffer."""
        order = (*self.order, seed, epoch)
        drawn = int(np.random.default_rng(order).integers(2**31))
        return replace(self, data=self.data.shuffle(seed=drawn, buffer_size=_BUFFER), order=order)
