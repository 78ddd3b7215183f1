"""A table of photos: CSV or Parquet, and the folder that its pictures lie in."""

import csv
import hashlib
from _csv import Reader
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float64

from open_geoclip.data.columns import PhotoColumns
from open_geoclip.data.photos import Entry, Fault, IndexedPhotos, Texts, photo_or_fault
from open_geoclip.errors import DataError, MissingExtraError

__all__ = ["PhotoTable", "TablePhotos", "read_photo_table"]

_DELIMITERS = ",;\t|"
_NAN = float("nan")
_Row: TypeAlias = tuple[str, str, float, float, str, str]  # file, key, latitude, longitude, group, note
_NO_NUMBER = ("", "na", "n/a", "null", "none", "nan")
_GUESSED_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # for tables that name a photo by its number alone


@dataclass(frozen=True, eq=False)
class PhotoTable:
    """What a table says, a row a photo, as it stands there.

    Attributes:
        path: the table.
        fingerprint: of the file's bytes.
        files: what each row names as its picture.
        keys: what each row is called.
        coordinates: (lat, lon) in degrees, not looked at yet; NaN where a row has none.
        groups: what each row belongs to; the empty text where it says nothing.
        notes: what is wrong with a row's cells, by its number.
    """

    path: Path
    fingerprint: str
    files: Texts
    keys: Texts
    coordinates: Float64[np.ndarray, "n 2"]
    groups: Texts | None
    notes: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)

    def group(self, row: int) -> str | None:
        """What a row belongs to, if the table says so."""
        return None if self.groups is None else self.groups[row] or None


def read_photo_table(path: Path) -> PhotoTable:
    """Read CSV (separated by comma, semicolon, tab or bar) or Parquet.

    A row that is damaged becomes a row without coordinates, with a note; the others are kept.

    Raises:
        DataError: the file cannot be read, is not UTF-8, has not the columns, or has no row.
        MissingExtraError: a Parquet file without the extra ``parquet``.
    """
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        read = _read_parquet if path.suffix.lower() in (".parquet", ".pq") else _read_csv
        table = read(path, digest.hexdigest())
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: it cannot be read: {error}") from error
    if not len(table):
        raise DataError(f"{path}: it holds no photo, only the names of columns")
    return table


class _Rows:
    """Rows as they come in; 24 bytes and their texts each."""

    def __init__(self, path: Path, columns: PhotoColumns) -> None:
        self.path, self.columns = path, columns
        self.files = Texts()
        self.keys = self.files if columns.key == columns.file else Texts()
        self.groups = None if columns.group is None else Texts()
        self.values = array("d")
        self.notes: dict[int, str] = {}

    def take(self, rows: Iterable[_Row]) -> None:
        """Add rows, some at a time: calls a row would take most of the time."""
        rows = iter(rows)
        while block := list(islice(rows, 8192)):
            start = len(self.files)
            files, keys, lats, lons, groups, notes = zip(*block, strict=True)
            self.files.extend(files)
            if self.keys is not self.files:
                self.keys.extend(keys)
            if self.groups is not None:
                self.groups.extend(groups)
            self.values.extend(chain.from_iterable(zip(lats, lons, strict=True)))
            self.notes |= {start + i: note for i, note in enumerate(notes) if note}

    def table(self, fingerprint: str) -> PhotoTable:
        places = np.array(self.values, np.float64).reshape(-1, 2)
        return PhotoTable(self.path, fingerprint, self.files, self.keys, places, self.groups, self.notes)


def _read_csv(path: Path, fingerprint: str) -> PhotoTable:
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            header = next(reader, [])
            rows = _Rows(path, PhotoColumns.found(header, str(path)))
            rows.take(_csv_rows(reader, header, rows.columns, "," if delimiter == ";" else ""))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: it is not UTF-8, {_where_not_utf8(path)}: save it as UTF-8 "
                "(iconv -f latin1 -t utf-8, if it came from Windows or Excel)"
            ) from error
    return rows.table(fingerprint)


def _csv_rows(reader: Reader, header: list[str], columns: PhotoColumns, comma: str) -> Iterator[_Row]:
    lat, lon, file, key = (header.index(name) for name in (columns.lat, columns.lon, columns.file, columns.key))
    group = None if columns.group is None else header.index(columns.group)
    for row in reader:
        if not row:
            continue  # an empty line is no row
        if len(row) != len(header):
            name, called = ((row[at].strip() if at < len(row) else "") for at in (file, key))
            note = f"line {reader.line_num}: {len(row)} cells, where the header has {len(header)}"
            yield name, called or name, _NAN, _NAN, "", note
            continue
        note = ""
        try:
            north, east = float(row[lat]), float(row[lon])
        except ValueError:
            try:
                north, east = _number(row[lat], comma), _number(row[lon], comma)
            except ValueError:
                north = east = _NAN
                note = f"line {reader.line_num}: {row[lat]!r}, {row[lon]!r} are not two numbers in degrees"
        yield row[file].strip(), row[key].strip(), north, east, "" if group is None else row[group].strip(), note


def _delimiter(header: str) -> str:
    """What separates the names of the columns: the character that most often stands between them."""
    return max(_DELIMITERS, key=header.count)


def _number(text: str, comma: str) -> float:
    text = text.strip()
    if text.lower() in _NO_NUMBER:
        return float("nan")
    return float(text.replace(comma, ".") if comma else text)


def _where_not_utf8(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number} holds the byte 0x{line[error.start]:02x}"
    return "it ends in the middle of a character"


def _read_parquet(path: Path, fingerprint: str) -> PhotoTable:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"Reading {path.name}", "parquet") from error
    try:
        columns = PhotoColumns.found(parquet.read_schema(path).names, str(path))
        rows = _Rows(path, columns)
        wanted = [columns.file, columns.key, columns.lat, columns.lon, columns.group]
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=list(dict.fromkeys(name for name in wanted if name))):
                nothing = [None] * batch.num_rows
                cells = [nothing if name is None else batch.column(name).to_pylist() for name in wanted]
                rows.take(_parquet_rows(cells, len(rows.files)))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: it cannot be read as Parquet: {error}") from error
    return rows.table(fingerprint)


def _parquet_rows(cells: list[list[Any]], start: int) -> Iterator[_Row]:
    for number, (*texts, lat, lon, group) in enumerate(zip(*cells, strict=True), start):
        name, key, group = ("" if text is None else str(text) for text in (*texts, group))
        note = ""
        try:
            north, east = (_NAN if value is None else float(value) for value in (lat, lon))
        except (TypeError, ValueError):
            north = east = _NAN
            note = f"row {number}: {lat!r}, {lon!r} are not two numbers in degrees"
        yield name, key, north, east, group, note


@dataclass(frozen=True, eq=False)
class TablePhotos(IndexedPhotos):
    """Photos that a table names. Whether a picture is there is seen when it is decoded.

    The fingerprint covers the table, not the pixels: after changing pictures under the same names, change the table.

    Attributes:
        table: the rows.
        folder: where relative names start.
    """

    table: PhotoTable
    folder: Path

    @staticmethod
    def opened(path: Path, folder: Path | None = None) -> "TablePhotos":
        """Read a table.

        Args:
            path: CSV or Parquet.
            folder: where its relative names start; the table's own folder when not given.

        Raises:
            DataError: see `read_photo_table`; or the folder is not there.
            MissingExtraError: a Parquet file without the extra ``parquet``.
        """
        folder = path.parent if folder is None else folder
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder of pictures")
        table = read_photo_table(path)
        return TablePhotos(str(path), table.fingerprint, np.arange(len(table)), table, folder)

    def entry(self, row: int) -> Entry:
        """The photo of a row, or what is wrong with it."""
        key = self.table.keys[row]
        note = self.table.notes.get(row)
        if note is not None:
            return Fault(key, "no coordinates", note)
        name = self.table.files[row]
        if not name:
            return Fault(key or f"row {row}", "missing", "the table names no picture")
        lat, lon = self.table.coordinates[row].tolist()
        return photo_or_fault(key, self._path(name), lat, lon, self.table.group(row))

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if path.suffix == "" and not path.exists():
            guesses = (path.with_name(path.name + suffix) for suffix in _GUESSED_SUFFIXES)
            return next((guess for guess in guesses if guess.exists()), path)
        return path
