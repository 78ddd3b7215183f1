"""Tables that people bring: CSV or Parquet, one photo a row, columns found by name."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from open_geoclip.errors import MissingExtraError, OpenGeoCLIPError

__all__ = ["Table", "read_table", "rows_have", "shown"]


@dataclass(frozen=True)
class Table:
    """The cells of the columns that matter, and where each row stands in the file.

    Attributes:
        what: what messages call it, such as "predictions".
        error: the class of what is raised.
        path: the file.
        cells: a column by our name for it.
        names: what the file calls each of them.
        where: of each row, such as "line 17".
    """

    what: str
    error: type[OpenGeoCLIPError]
    path: Path
    cells: Mapping[str, Sequence[Any]]
    names: Mapping[str, str]
    where: Sequence[str]

    def __len__(self) -> int:
        return len(self.where)

    def name_of(self, row: int, columns: Sequence[str]) -> str:
        """Where a row is, with the photo's name if it has one: ``line 17 (idx 15)``."""
        ids = [f"{name} {self.cells[name][row]}" for name in columns]
        return f"{self.where[row]} ({', '.join(ids)})" if ids else self.where[row]

    def texts(self, column: str) -> list[str]:
        """The cells of a column as text.

        Raises:
            OpenGeoCLIPError: of the class ``error``: one is empty.
        """
        texts = self.texts_or_none(column)
        empty = [row for row, text in enumerate(texts) if not text]
        if empty:
            raise self.error(
                f"{self.what} {self.path}: {rows_have(len(empty), len(texts))} no {column}; "
                f"the first is {self.where[empty[0]]}"
            )
        return texts

    def texts_or_none(self, column: str) -> list[str]:
        """The cells of a column as text, empty where there is none."""
        # NaN is not itself. The text "NA" is a name: Namibia, for one.
        return ["" if cell is None or cell != cell else str(cell).strip() for cell in self.cells[column]]

    def refuse_doubles(self, column: str, names: Sequence[str]) -> None:
        """Raise if a name stands there twice."""
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            rows = [self.where[row] for row, name in enumerate(names) if name == twice[0]]
            raise self.error(
                f"{self.what} {self.path}: {len(twice):,} of the photos in column {column} stand there more than "
                f"once; the first is {twice[0]}, at {' and '.join(rows[:2])}: one row a photo is needed"
            )

    def numbers(self, columns: Sequence[str]) -> Float64[np.ndarray, "n k"]:
        """Columns as numbers, NaN where a cell holds none."""
        return np.column_stack([[_number(cell) for cell in self.cells[column]] for column in columns])


def read_table(
    path: Path,
    needed: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]],
    *,
    what: str,
    error: type[OpenGeoCLIPError],
) -> Table:
    """Read some columns of a CSV or Parquet file.

    Args:
        path: ends in .csv or .parquet.
        needed: our name for a column, and what files call it, the most telling first; capitals do not matter.
        optional: the same, for columns that need not be there.
        what: what messages call the file.
        error: the class of what is raised.

    Raises:
        OpenGeoCLIPError: of the class ``error``: the file cannot be read, is empty, or lacks a column.
        MissingExtraError: a Parquet file without the extra ``parquet``.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    named = f"{what} {path}"
    if path.suffix.lower() not in readers:
        raise error(f"{named}: a file name that ends in {' or '.join(readers)} is needed")

    def choose(names: Sequence[str]) -> dict[str, int]:
        return _chosen(names, needed, optional, named, error)

    try:
        names, cells, where = readers[path.suffix.lower()](path, choose, named, error)
    except FileNotFoundError as fault:
        raise error(f"{named}: there is no such file") from fault
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise error(f"{named}: it cannot be read: {fault}") from fault
    if not where:
        raise error(f"{named}: it holds no {what}, only the names of columns")
    return Table(what, error, path, cells, names, where)


def rows_have(count: int, of: int) -> str:
    """``1 of 3 rows has``."""
    return f"{count:,} of {of:,} rows {'has' if count == 1 else 'have'}"


def shown(cell: object) -> str:
    """A cell as a message shows it."""
    return "empty" if cell is None or cell == "" else repr(cell) if isinstance(cell, str) else str(cell)


def _number(cell: Any) -> float:
    """The number in a cell, NaN when there is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


def _chosen(
    names: Sequence[str],
    needed: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]],
    named: str,
    error: type[OpenGeoCLIPError],
) -> dict[str, int]:
    """Which column (its number) holds what (our name for it)."""
    plain = [name.strip().lower() for name in names]
    chosen: dict[str, int] = {}
    for ours, theirs in {**needed, **optional}.items():
        for wanted in theirs:
            held = [i for i, name in enumerate(names) if name.strip() == wanted]
            held = held or [i for i, name in enumerate(plain) if name == wanted.lower()]
            if len(held) > 1:
                raise error(f"{named}: it has {len(held)} columns named {wanted}")
            if held:
                chosen[ours] = held[0]
                break
    missing = [" or ".join(theirs) for ours, theirs in needed.items() if ours not in chosen]
    if missing:
        hint = ""
        if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
            hint = "; columns are separated by commas"
        raise error(f"{named}: no column {' or '.join(missing)}; it has {', '.join(plain) or 'none'}{hint}")
    return chosen


def _read_csv(path: Path, choose: Any, named: str, error: type[OpenGeoCLIPError]) -> tuple[Any, Any, list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, None)
        if names is None:
            raise error(f"{named}: it is empty")
        chosen = choose(names)
        rows, where = [], []
        for row in _filled(reader):
            if len(row) != len(names):
                raise error(
                    f"{named}, line {reader.line_num}: {len(row)} cells under {len(names)} names of "
                    "columns; a comma inside a cell needs quotes around the cell"
                )
            rows.append([row[at] for at in chosen.values()])
            where.append(f"line {reader.line_num}")
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(chosen)
    return (
        {ours: names[at].strip() for ours, at in chosen.items()},
        dict(zip(chosen, columns, strict=True)),
        where,
    )


def _filled(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    return (row for row in rows if row)  # a blank line, often the last one, holds nothing


def _read_parquet(path: Path, choose: Any, named: str, error: type[OpenGeoCLIPError]) -> tuple[Any, Any, list[str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as fault:
        raise MissingExtraError(f"Reading {path.name}", "parquet") from fault
    try:
        names = parquet.read_schema(path).names
        chosen = choose(names)
        table = parquet.read_table(path, columns=sorted({names[at] for at in chosen.values()}))
        cells = {ours: table[names[at]].to_pylist() for ours, at in chosen.items()}
    except pyarrow.ArrowException as fault:
        raise error(f"{named}: it cannot be read as Parquet: {fault}") from fault
    return {ours: names[at] for ours, at in chosen.items()}, cells, [f"row {row}" for row in range(table.num_rows)]
