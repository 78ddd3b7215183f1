"""Tables of photos: files in a folder, or images inside a Parquet file."""

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from open_geoclip.data.columns import COORDINATES, Column, Texts
from open_geoclip.data.photos import Entry, IndexedPhotos, Photo, SkippedRecord, photo_or_skipped
from open_geoclip.data.tables import TABLE_SUFFIXES, read_table
from open_geoclip.errors import DataError
from open_geoclip.files import sha256
from open_geoclip.images import ImageSource

__all__ = [
    "PHOTO_COLUMNS",
    "ParquetPhotos",
    "PhotoTable",
    "TablePhotos",
    "open_table",
    "read_photo_table",
]

PHOTO_COLUMNS = {
    **COORDINATES,
    "file": Column(
        (
            *("img_file", "source_file", "file", "file_name", "path", "file_path", "img_path", "image_path", "image"),
            *("img", "photo", "picture", "jpg", "image_file", "photo_file"),
        ),
        required=False,
    ),
    "key": Column(("img_id", "image_id", "photo_id", "id", "__key__", "idx"), required=False),
    "group": Column(
        (
            *("group", "author", "user", "user_id", "owner", "uid", "photographer", "author_id", "creator_username"),
            *("sequence", "sequence_id", "place", "place_id"),
        ),
        required=False,
    ),
}
_GUESSED_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # for tables that name a photo by its number alone
_MAX_ROW_GROUP_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class PhotoTable:
    """A table with one photo per row, not checked.

    Attributes:
        path: the table.
        fingerprint: sha256 of the file.
        files: name of the image of each row.
        keys: name of each row; ``files`` if there is no other.
        coordinates: (lat, lon) in degrees; NaN where a row has none.
        groups: of each row; empty where it has none.
        invalid: what is wrong with damaged rows, by row.
        image_column: the Parquet column of the images themselves, if there is one.
        places: whether coordinates were read.
    """

    path: Path
    fingerprint: str
    files: Texts
    keys: Texts
    coordinates: Float64[np.ndarray, "n 2"]
    groups: Texts | None
    invalid: dict[int, str]
    image_column: str | None = None
    places: bool = True

    def __len__(self) -> int:
        return len(self.files)

    def group(self, row: int) -> str | None:
        """Return the group of a row, if it has one."""
        return None if self.groups is None else self.groups[row] or None


def read_photo_table(path: Path, *, places: bool = True) -> PhotoTable:
    """Read a table of photos. A damaged row is kept without coordinates, and marked as invalid.

    Args:
        path: CSV, Parquet or GeoJSON.
        places: read coordinates; otherwise all are NaN.

    Raises:
        DataError: the file cannot be read, lacks a column, or has no row.
        MissingExtraError: a Parquet file without the extra ``parquet``.
    """
    wanted = PHOTO_COLUMNS if places else {n: column for n, column in PHOTO_COLUMNS.items() if n not in COORDINATES}
    table = read_table(path, wanted, strict=False)
    if not len(table):
        raise DataError(f"{path}: it holds no photo, only the names of columns")
    if "file" not in table.names and "key" not in table.names:
        raise DataError(f"{path} has no column that names the image (IMG_FILE, for one)")
    files = table.texts.get("file") or table.texts["key"]
    image_column = None
    if TABLE_SUFFIXES[path.suffix.lower()] == "parquet":
        from pyarrow import parquet, types

        name = table.names.get("file", "")
        kind = parquet.read_schema(path).field(name).type if name else None
        if kind is not None and (types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind)):
            image_column = name
    invalid = {row: f"{table.where(row)}: {text}" for row, text in table.invalid.items()}
    keys = table.texts.get("key") or files
    coordinates = table.coordinates() if places else np.full((len(table), 2), np.nan)
    groups = table.texts.get("group")
    return PhotoTable(path, sha256(path), files, keys, coordinates, groups, invalid, image_column, places)


def open_table(path: Path, folder: Path | None = None, *, places: bool = True) -> "TablePhotos | ParquetPhotos":
    """Open a table of photos.

    Args:
        path: CSV, Parquet or GeoJSON.
        folder: where relative names start; the table's own folder when not given.
        places: see `read_photo_table`.

    Raises:
        DataError: see `read_photo_table`; or the folder is not there.
        MissingExtraError: a Parquet file without the extra ``parquet``.
    """
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of images")
    table = read_photo_table(path, places=places)
    rows = np.arange(len(table))
    if table.image_column is not None and folder is None:
        return ParquetPhotos(str(path), table.fingerprint, rows, table, _row_group_starts(path, table.image_column))
    folder = path.parent if folder is None else folder
    where = os.path.relpath(folder.resolve(), path.parent.resolve())  # the same when both are moved
    whole = table.fingerprint if where == "." else sha256(f"{table.fingerprint}{where}".encode())
    return TablePhotos(str(path), whole, rows, table, folder)


@dataclass(frozen=True, eq=False)
class TablePhotos(IndexedPhotos):
    """Photos that a table names; ``folder`` is where relative names start.

    The fingerprint covers the table and where the folder lies, seen from the table, but not the images.
    """

    table: PhotoTable
    folder: Path

    def entry(self, row: int) -> Entry:
        """Return the photo of a row, or what is wrong with it."""
        key, name = self.table.keys[row], self.table.files[row]
        if not name and row not in self.table.invalid:
            return SkippedRecord(key or f"row {row}", "missing", "the table names no image")
        return _entry(self.table, row, key or name, self._path(name))

    def names_files(self) -> bool:
        """Return whether any of a thousand rows, spread over the table, names a file that exists."""
        rows = np.unique(np.linspace(0, len(self.table) - 1, min(len(self.table), 1000)).astype(int))
        names = (self.table.files[row] for row in rows.tolist())
        return any(Path(self._path(name)).is_file() for name in names if name)

    def _path(self, name: str) -> Path | str:
        if "://" in name:
            return name  # which jobs read, and everything else refuses
        path = self.folder / name
        if path.suffix == "" and not path.exists():
            guesses = (path.with_name(path.name + suffix) for suffix in _GUESSED_SUFFIXES if path.name)
            return next((guess for guess in guesses if guess.exists()), path)
        return path


def _entry(table: PhotoTable, row: int, key: str, image: ImageSource) -> Entry:
    if row in table.invalid:
        return SkippedRecord(key, "no coordinates" if table.places else "broken", table.invalid[row])
    if not table.places:
        return Photo(key, image, math.nan, math.nan)
    lat, lon = table.coordinates[row].tolist()
    return photo_or_skipped(key, image, lat, lon, table.group(row))


@dataclass(frozen=True, eq=False)
class ParquetPhotos(IndexedPhotos):
    """Photos whose images are in the Parquet file: bytes, or a struct of bytes and path as `datasets` writes it.

    A row group is read at a time, so `shuffled` keeps the rows of one together. ``starts`` has the first row of each
    row group, and the number of rows.
    """

    table: PhotoTable
    starts: Int64[np.ndarray, " groups"]

    def entry(self, row: int) -> Entry:
        """The photo of a row, or what is wrong with it."""
        key = self.table.keys[row] or f"row {row}"
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        image = _read_row_group(self.table, group)[row - int(self.starts[group])]
        if image is None and row not in self.table.invalid:
            name = self.table.files[row]
            if not name:
                return SkippedRecord(key, "missing", "the table holds no image")
            return _entry(self.table, row, key, self.table.path.parent / name)
        return _entry(self.table, row, key, image or b"")

    def shuffled(self, seed: int, epoch: int = 0) -> "ParquetPhotos":
        """Return a permutation of the row groups and of the rows within each."""
        rng = np.random.default_rng([seed, epoch])
        groups = rng.permutation(len(self.starts))[np.searchsorted(self.starts, self.rows, side="right")]
        return self.select(np.lexsort((rng.permutation(len(self.rows)), groups)))


def _row_group_starts(path: Path, column: str) -> Int64[np.ndarray, " groups"]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    for group in groups:
        columns = (group.column(i) for i in range(group.num_columns))
        size = sum(part.total_uncompressed_size for part in columns if part.path_in_schema.split(".")[0] == column)
        if size > _MAX_ROW_GROUP_BYTES:
            raise DataError(
                f"{path}: a row group holds {size / 1e9:.1f} GB of images, and is read at once: write it with "
                f"row_group_size={max(1, group.num_rows * (_MAX_ROW_GROUP_BYTES // 4) // size)} or less"
            )
    return np.cumsum([0, *(group.num_rows for group in groups)])


@lru_cache(maxsize=2)
def _read_row_group(table: PhotoTable, group: int) -> "list[bytes | None]":
    from pyarrow import parquet, types

    with parquet.ParquetFile(table.path) as file:
        images = file.read_row_group(group, columns=[table.image_column])[table.image_column].combine_chunks()
    if types.is_struct(images.type):
        images = images.field("bytes")
    found: list[bytes | None] = images.to_pylist()
    return found
