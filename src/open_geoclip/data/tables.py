"""The one reader of tables (CSV, Parquet, GeoJSON; columns are found by their usual names) and the one writer of CSV.

Every command that reads a table uses `read_table`. A file is read once, front to back and in blocks, also from a pipe:
numbers take 8 bytes each and texts their UTF-8 bytes, so that a million rows are read in seconds.
"""

import csv
import io
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float64

from open_geoclip.data.columns import COORDINATES, Column, Texts, find_columns
from open_geoclip.data.geojson import feature_points, read_features
from open_geoclip.errors import DataError, MissingExtraError

__all__ = [
    "TABLE_SUFFIXES",
    "Table",
    "TableKind",
    "format_csv",
    "read_table",
]

T = TypeVar("T")
TableKind = Literal["csv", "parquet", "geojson"]
TABLE_SUFFIXES: dict[str, TableKind] = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".geojson", ".json"), "geojson"),
}


_BLOCK = 8192  # rows
_DELIMITERS = ",;\t|"
_MISSING = {"", "na", "n/a", "#n/a", "null", "none", "nan", "\\n"}
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what a spreadsheet reads as the start of a formula
_END_OF_FILE = "\0\x1a \t\ufeff"  # what old editors and interrupted copies leave behind the last row


@dataclass(frozen=True, eq=False)
class Table:
    """The columns that were asked for, and where each row is in the file.

    Attributes:
        path: the file.
        unit: of the positions: ``line`` (CSV, the header is line 1), ``row`` or ``feature`` (from 0).
        names: of the columns in the file; optional ones that it lacks are absent here and below.
        numbers: columns of numbers and degrees.
        texts: columns of text.
        positions: the line, row or feature of each row.
        invalid: what is wrong with damaged rows, by row; numbers of theirs are NaN.
    """

    path: Path
    unit: str
    names: dict[str, str]
    numbers: dict[str, Float64[np.ndarray, " n"]]
    texts: dict[str, Texts]
    positions: Sequence[int]
    invalid: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def where(self, row: int) -> str:
        """Return the place of a row in the file, such as ``line 17``."""
        return f"{self.unit} {self.positions[row]}"

    def coordinates(self, lat: str = "lat", lon: str = "lon") -> Float64[np.ndarray, "n 2"]:
        """Return (lat, lon) in degrees; NaN where a row has none."""
        return np.stack([self.numbers[lat], self.numbers[lon]], axis=1)


def read_table(
    path: str | Path, columns: Mapping[str, Column], *, kind: TableKind | None = None, strict: bool = True
) -> Table:
    """Read some columns of a CSV, Parquet or GeoJSON file.

    CSV may be separated by commas, semicolons, tabs or bars, in UTF-8 or UTF-16, with decimal points or commas. GeoJSON
    holds points; its properties are columns, and a MultiPoint gives a row for each of its points.

    Args:
        path: the file.
        columns: what to read, by our names.
        kind: the format; by the suffix (`TABLE_SUFFIXES`) when not given.
        strict: refuse a damaged row; else it is kept, see `Table.invalid`.

    Raises:
        DataError: the file cannot be read or lacks a column, or a row is damaged; says which one and why.
        MissingExtraError: a Parquet file without the extra ``parquet``.
    """
    path = Path(path)
    kind = TABLE_SUFFIXES.get(path.suffix.lower()) if kind is None else kind
    if kind is None:
        raise DataError(f"{path}: a file name that ends in {', '.join(TABLE_SUFFIXES)} is needed")
    readers = {"csv": _read_csv, "parquet": _read_parquet, "geojson": _read_geojson}
    try:
        return readers[kind](_Builder(path, columns, strict))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except (OSError, UnicodeError) as error:
        if path.is_dir():
            raise DataError(f"{path}: it is a folder, not a table") from error
        raise DataError(f"{path}: it cannot be read: {error}") from error


def format_csv(columns: Iterable[str], rows: Iterable[Iterable[object]], *, bom: bool = False) -> str:
    """Return rows as CSV (RFC 4180, with CR LF, so that a CR or LF in a cell is quoted).

    A text that a spreadsheet would read as a formula gets an apostrophe, which `read_table` removes. A list is written
    with semicolons.

    Args:
        columns: their names.
        rows: the cells of each row; None is an empty cell.
        bom: begin with a byte order mark, without which Excel does not read UTF-8.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows(map(_cell, row) for row in rows)
    return "\ufeff" * bom + file.getvalue()


def _cell(value: object) -> object:
    text = "; ".join(map(str, value)) if isinstance(value, list) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(_FORMULA) else text


class _Builder:
    """Collects a table block by block."""

    def __init__(self, path: Path, columns: Mapping[str, Column], strict: bool) -> None:
        self.path, self.columns, self.strict = path, columns, strict
        self.decimal_comma = False
        self.names: dict[str, str] = {}
        self.positions: array[int] | range = array("q")
        self.numbers = {name: array("d") for name, column in columns.items() if column.kind != "text"}
        self.texts = {name: Texts() for name, column in columns.items() if column.kind == "text"}
        self.invalid: dict[int, str] = {}

    def find(self, names: Sequence[str], *, hint: str = "") -> dict[str, int]:
        """Return the positions of the columns; raise an error that names the missing ones."""
        try:
            found = find_columns(names, self.columns)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error
        self.names |= {name: names[at].strip() for name, at in found.items()}
        self.require(found, names, hint)
        return found

    def require(self, found: Iterable[str], names: Sequence[str], hint: str = "") -> None:
        """Refuse a file without a column that is required."""
        known = set(found)
        absent = [column.names[0] for name, column in self.columns.items() if column.required and name not in known]
        if absent:
            present = ", ".join(name.strip() for name in names[:20]) or "none"
            raise DataError(f"{self.path}: it has no column {' or '.join(absent)}; its columns are {present}{hint}")

    def add(self, cells: Mapping[str, Any], positions: Sequence[int], invalid: Mapping[int, str] | None = None) -> None:
        """Add a block of rows: the cells of each column, and what is wrong with damaged rows, by row of the block."""
        start = len(self.positions)
        if isinstance(self.positions, range):
            self.positions = range(start + len(positions))
        else:
            self.positions.extend(positions)
        self.invalid |= {start + row: text for row, text in (invalid or {}).items()}
        for name, values in cells.items():
            if self.columns[name].kind == "text":
                self.texts[name].extend(map(_text, values))
                continue
            numbers = self._to_numbers(name, values, start)
            for row in invalid or {}:
                numbers[row] = np.nan
            self.numbers[name].frombytes(np.asarray(numbers, np.float64).tobytes())

    def _to_numbers(self, name: str, cells: Any, start: int) -> Any:
        if isinstance(cells, np.ndarray):
            return cells.astype(np.float64)
        try:
            return list(map(float, cells))
        except (TypeError, ValueError, OverflowError):
            pass  # a cell of this block is empty, has a decimal comma, or holds no number
        numbers = []
        degrees = self.columns[name].kind == "degrees"
        for row, cell in enumerate(cells, start):
            try:
                numbers.append(_number(cell, decimal_comma=degrees or self.decimal_comma))
            except (TypeError, ValueError, OverflowError):
                numbers.append(np.nan)
                text = f"{self.names[name]} is {cell!r}, not a number{' in degrees' * degrees}"
                text += " (exiftool -n writes numbers)" * (" deg " in str(cell))
                self.invalid.setdefault(row, text)
        return numbers

    def table(self, unit: str) -> Table:
        numbers = {
            name: np.frombuffer(values, np.float64) for name, values in self.numbers.items() if name in self.names
        }
        texts = {name: values for name, values in self.texts.items() if name in self.names}
        table = Table(self.path, unit, self.names, numbers, texts, self.positions, self.invalid)
        if self.strict and self.invalid:
            row = min(self.invalid)
            raise DataError(f"{self.path}, {table.where(row)}: {self.invalid[row]}")
        return table


def _text(cell: Any) -> str:
    if isinstance(cell, str):
        text = cell.strip().rstrip("\0\x1a")
        return text[1:] if text[:1] == "'" and text[1:].startswith(_FORMULA) else text  # see format_csv
    return "" if cell is None or cell != cell else str(cell)  # NaN is not itself


def _number(cell: Any, *, decimal_comma: bool) -> float:
    if cell is None:
        return float("nan")
    if not isinstance(cell, str):
        return float(cell)
    text = _text(cell)
    if text.casefold() in _MISSING:
        return float("nan")
    text = text.replace("\N{MINUS SIGN}", "-")
    # 1,234 in a file of commas may be a thousand. No coordinate is: there it can only be a decimal comma.
    return float(text.replace(",", ".", 1) if decimal_comma and "." not in text else text)


# --- CSV ------------------------------------------------------------------------------------------


def _read_csv(builder: _Builder) -> Table:
    with builder.path.open("rb") as binary, _decoded(binary, builder.path) as file:
        lines = _checked_lines(file, builder.path)
        filled = ((number, line) for number, line in enumerate(lines) if line.strip(_END_OF_FILE + "\r\n"))
        skipped, first = next(filled, (0, ""))
        named = re.fullmatch(r"sep=(.)\s*", first, re.IGNORECASE)  # what Excel reads and writes
        if named:
            skipped, first = next(filled, (0, ""))
        if not first:
            raise DataError(f"{builder.path}: it is empty; its first line must name the columns")
        bare = re.sub(r'"[^"]*"', "", first)
        delimiter = named[1] if named else max(_DELIMITERS, key=bare.count)
        builder.decimal_comma = delimiter != ","
        reader = csv.reader(chain([first], lines), delimiter=delimiter, skipinitialspace=True, strict=True)
        positions: list[int] = []  # of a block; pairs with the rows would take twice the time
        last = skipped  # line of the last row that could be read

        def rows() -> Iterator[list[str]]:
            nonlocal last
            for row in reader:
                last = reader.line_num + skipped
                if len(row) > 1 or "".join(row).strip(_END_OF_FILE):
                    positions.append(last)
                    yield row

        try:
            header = next(reader)
            last = reader.line_num + skipped
            found = builder.find(header, hint="; its first line must name the columns")
            for block in _blocks(rows()):
                invalid = _fit(block, len(header))
                builder.add({name: [row[at] for row in block] for name, at in found.items()}, positions, invalid)
                positions.clear()
        except csv.Error as error:
            raise DataError(
                f"{builder.path}, line {last + 1}: the row that begins here cannot be read ({error}): "
                "is a quotation mark not closed?"
            ) from error
    return builder.table("line")


def _blocks(rows: Iterator[T]) -> Iterator[list[T]]:
    """Yield some rows at a time."""
    while block := list(islice(rows, _BLOCK)):
        yield block


def _decoded(file: io.BufferedReader, path: Path) -> io.TextIOWrapper:
    """Return the file as text, in the encoding that its first bytes show."""
    head = file.peek(4096)[:4096]  # which takes nothing from a pipe
    if head.startswith(b"PK\x03\x04"):
        raise DataError(f"{path}: it is a zip archive or an Excel workbook: save the sheet as CSV")
    zeros = head[::2].count(0), head[1::2].count(0)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif min(zeros) == 0 and max(zeros) > len(head) // 4:
        encoding = "utf-16-le" if zeros[1] else "utf-16-be"
    else:
        return io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    return io.TextIOWrapper(file, encoding, newline="")


def _checked_lines(file: io.TextIOWrapper, path: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.isascii() and (escaped := re.search("[\udc80-\udcff]", line)):
            raise DataError(
                f"{path}: it is not UTF-8, line {number} holds the byte 0x{ord(escaped[0]) - 0xDC00:02x}: save it as "
                "UTF-8 (iconv -f latin1 -t utf-8, if it came from Windows or Excel)"
            )
        yield line


def _fit(rows: list[list[str]], width: int) -> dict[int, str]:
    """Give all rows the width of the header; return which ones had another."""
    if set(map(len, rows)) == {width}:
        return {}
    invalid = {}
    for at, row in enumerate(rows):
        if len(row) > width and not any(row[width:]):  # some programs end each row with a delimiter
            rows[at] = row[:width]
        elif len(row) != width:
            quote = ": a cell that holds a delimiter needs quotation marks" if len(row) > width else ""
            cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
            invalid[at] = f"{cells}, where the header has {width}{quote}"
            rows[at] = [*row, *[""] * width][:width]
    return invalid


# --- Parquet --------------------------------------------------------------------------------------


def _read_parquet(builder: _Builder) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet, types
    except ImportError as error:
        raise MissingExtraError(f"Reading {builder.path.name}", "parquet") from error
    try:
        with parquet.ParquetFile(builder.path) as file:
            schema = file.schema_arrow
            found = builder.find(schema.names)
            wanted = {schema.names[at]: schema.names[at] for at in found.values()}
            for name in list(wanted):  # of an image in the table only its path is read here
                kind = schema.field(name).type
                if types.is_struct(kind) and kind.get_field_index("path") >= 0:
                    wanted[name] += ".path"
                elif types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind):
                    del wanted[name]
            builder.positions = range(0)
            for batch in file.iter_batches(65_536, columns=list(wanted.values())):
                cells: dict[str, Any] = {}
                for name, at in found.items():
                    if schema.names[at] not in wanted:
                        cells[name] = [None] * batch.num_rows
                        continue
                    column = batch.column(schema.names[at])
                    column = column.field("path") if types.is_struct(column.type) else column
                    number = types.is_integer(column.type) or types.is_floating(column.type)
                    as_array = number and builder.columns[name].kind != "text"
                    cells[name] = column.to_numpy(zero_copy_only=False) if as_array else column.to_pylist()
                builder.add(cells, range(batch.num_rows))
    except pyarrow.ArrowException as error:
        raise DataError(f"{builder.path}: it cannot be read as Parquet: {error}") from error
    pyarrow.default_memory_pool().release_unused()
    return builder.table("row")


# --- GeoJSON --------------------------------------------------------------------------------------


def _read_geojson(builder: _Builder) -> Table:
    path, columns = builder.path, builder.columns
    usual = {name: column for name, column in columns.items() if name not in COORDINATES}
    builder.names |= {name: name for name in COORDINATES if name in columns}
    found_in: dict[tuple[str, ...], dict[str, int]] = {}  # by the names of a feature's properties

    positions: list[int] = []

    def rows() -> Iterator[list[Any]]:
        for number, feature in enumerate(read_features(path)):
            properties = feature.get("properties") or {}
            keys = tuple(properties) if isinstance(properties, dict) else ()
            if keys not in found_in:
                try:
                    found_in[keys] = find_columns(keys, usual)
                except DataError as error:
                    raise DataError(f"{path}, feature {number}: {error}") from error
                builder.names |= {name: keys[at] for name, at in found_in[keys].items()}
            cells = {name: properties[keys[at]] for name, at in found_in[keys].items()}
            for cells["lat"], cells["lon"] in feature_points(feature["geometry"], f"{path}, feature {number}"):
                positions.append(number)
                yield [cells.get(name) for name in columns]

    for block in _blocks(rows()):
        builder.add(dict(zip(columns, zip(*block, strict=True), strict=True)), positions)
        positions.clear()
    if found_in:
        builder.require(builder.names, list(dict.fromkeys(chain.from_iterable(found_in))))
    return builder.table("feature")
