"""Anybody's predictions, read from a table: true and predicted places, one photo a row."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from open_geoclip.errors import CoordinateError, MissingExtraError, PredictionsError
from open_geoclip.sphere import MAX_LONGITUDE_DEG, check_coordinates, haversine_km

__all__ = ["ID_COLUMNS", "Predictions", "read_predictions"]

ID_COLUMNS = ("id", "image", "IMG_ID", "idx")
"""Columns that name the photo, the most telling first."""

_TRUTH = ("true_lat", "true_lon")
_ANSWER = ("pred_lat", "pred_lon")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Where photos were taken, and where somebody's model says they were. See :func:`read_predictions`.

    Attributes:
        name: what a message calls them.
        truth: (lat, lon) in degrees.
        predicted: (lat, lon) in degrees, row by row.
        ids: the photos' names, each once, by the column that holds them; none of the columns need be there.
        groups: for each photo, what it belongs to.

    Raises:
        PredictionsError: the parts are not of one length, or a photo is named twice.
    """

    name: str
    truth: Float64[np.ndarray, "n 2"]
    predicted: Float64[np.ndarray, "n 2"]
    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        columns = {"predicted": self.predicted, "groups": self.groups} | dict(self.ids)
        for name, column in columns.items():
            if column is not None and len(column) != len(self):
                raise PredictionsError(
                    f"{self.name}: {name} has {len(column):,} rows, but there are {len(self):,} truths"
                )
        for name, names in self.ids.items():
            if len(set(names)) != len(names):
                raise PredictionsError(f"{self.name}: {len(names) - len(set(names)):,} of {name} name a photo again")

    def __len__(self) -> int:
        return len(self.truth)


def read_predictions(path: str | Path, *, group: str | None = None) -> Predictions:
    """Read true_lat, true_lon, pred_lat and pred_lon, in degrees, from CSV or Parquet.

    Any of the columns id, image, IMG_ID and idx is taken as the photo's name. Other columns are left alone, their
    order does not matter, nor do capitals in their names.

    Args:
        path: ends in .csv or .parquet.
        group: a column that says what each photo belongs to, such as its author.

    Raises:
        PredictionsError: the file cannot be read, is empty, lacks a column; a coordinate is missing or not on Earth;
            latitude and longitude are exchanged; a photo stands there twice. Says how many rows, and the first.
        MissingExtraError: a Parquet file without the extra ``parquet``.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise PredictionsError(f"predictions {path}: a file name that ends in {' or '.join(readers)} is needed")
    try:
        table = readers[path.suffix.lower()](path, group)
    except FileNotFoundError as error:
        raise PredictionsError(f"predictions {path}: there is no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PredictionsError(f"predictions {path}: it cannot be read: {error}") from error
    if not table.where:
        raise PredictionsError(f"predictions {path}: it holds no predictions, only the names of columns")
    ids = {name: table.texts(name) for name in ID_COLUMNS if name in table.cells}
    for name, names in ids.items():
        table.refuse_doubles(name, names)
    truth = table.places(_TRUTH, "true")
    predicted = table.places(_ANSWER, "predicted")
    _refuse_exchanged(path, truth, predicted)
    return Predictions(path.name, truth, predicted, ids, None if group is None else table.texts(group))


@dataclass(frozen=True)
class _Table:
    """The cells of the columns that matter, and where each row stands in the file."""

    path: Path
    cells: Mapping[str, Sequence[Any]]
    where: Sequence[str]

    def name_of(self, row: int) -> str:
        """Where a row is, with the photo's name if it has one: ``line 17 (idx 15)``."""
        ids = [f"{name} {self.cells[name][row]}" for name in ID_COLUMNS if name in self.cells]
        return f"{self.where[row]} ({', '.join(ids)})" if ids else self.where[row]

    def texts(self, column: str) -> list[str]:
        # NaN is not itself. The text "NA" is a name: Namibia, for one.
        texts = ["" if cell is None or cell != cell else str(cell).strip() for cell in self.cells[column]]
        empty = [row for row, text in enumerate(texts) if not text]
        if empty:
            raise PredictionsError(
                f"predictions {self.path}: {_rows(len(empty), len(texts))} no {column}; "
                f"the first is {self.where[empty[0]]}"
            )
        return texts

    def refuse_doubles(self, column: str, names: Sequence[str]) -> None:
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            rows = [self.where[row] for row, name in enumerate(names) if name == twice[0]]
            raise PredictionsError(
                f"predictions {self.path}: {len(twice):,} of the photos in column {column} stand there more than "
                f"once; the first is {twice[0]}, at {' and '.join(rows[:2])}: one row a photo is needed"
            )

    def places(self, columns: tuple[str, str], kind: str) -> Float64[np.ndarray, "n 2"]:
        """The coordinates in two columns.

        Raises:
            PredictionsError: a cell holds no number, or a row is not a place on Earth.
        """
        table = np.column_stack([[_number(cell) for cell in self.cells[column]] for column in columns])
        wrong = np.flatnonzero(~np.isfinite(table).all(axis=1))
        if len(wrong):
            row = int(wrong[0])
            held = ", ".join(f"{column} is {_shown(self.cells[column][row])}" for column in columns)
            advice = (
                "give every photo an answer (a place far away counts as wrong), or leave it out of the file and say so"
                if columns == _ANSWER
                else "leave photos out whose place is not known"
            )
            raise PredictionsError(
                f"predictions {self.path}: {_rows(len(wrong), len(table))} no {kind} place; "
                f"the first is {self.name_of(row)}, where {held}: {advice}"
            )
        try:
            return check_coordinates(table)
        except CoordinateError as error:
            first = int(np.argmax((np.abs(table) > (90, MAX_LONGITUDE_DEG)).any(axis=1)))
            raise PredictionsError(
                f"predictions {self.path}, {' and '.join(columns)}: {error}. That row is {self.name_of(first)}"
            ) from error


def _rows(count: int, of: int) -> str:
    return f"{count:,} of {of:,} rows {'has' if count == 1 else 'have'}"


def _number(cell: Any) -> float:
    """The number in a cell, NaN when there is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


def _shown(cell: object) -> str:
    return "empty" if cell is None or cell == "" else repr(cell) if isinstance(cell, str) else str(cell)


def _refuse_exchanged(path: Path, truth: Float64[np.ndarray, "n 2"], predicted: Float64[np.ndarray, "n 2"]) -> None:
    """Refuse lon, lat where lat, lon is meant, also where all numbers happen to be latitudes, as in Europe.

    No real run gets ten times better by exchanging the columns.
    """
    if len(truth) < 10 or np.abs(predicted[:, 1]).max() > 90:
        return
    now = float(np.median(haversine_km(truth, predicted)))
    exchanged = float(np.median(haversine_km(truth, np.ascontiguousarray(predicted[:, ::-1]))))
    if now > 500 and exchanged < now / 10:
        raise PredictionsError(
            f"predictions {path}: latitude and longitude seem to be exchanged, in either the true or the predicted "
            f"columns: the median error is {now:,.0f} km, and {exchanged:,.0f} km when one pair is turned around"
        )


def _chosen(names: Sequence[str], path: Path, group: str | None) -> dict[str, int]:
    """Which column (its number) holds what (our name for it)."""
    plain = [name.strip().lower() for name in names]
    chosen: dict[str, int] = {}
    for wanted in (*_TRUTH, *_ANSWER, *ID_COLUMNS, *([group] if group else [])):
        held = [i for i, name in enumerate(names) if name.strip() == wanted]
        held = held or [i for i, name in enumerate(plain) if name == wanted.lower()]
        if len(held) > 1:
            raise PredictionsError(f"predictions {path}: it has {len(held)} columns named {wanted}")
        if held:
            chosen[wanted] = held[0]
    missing = [name for name in (*_TRUTH, *_ANSWER, *([group] if group else [])) if name not in chosen]
    if missing:
        hint = ""
        if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
            hint = "; columns are separated by commas"
        raise PredictionsError(
            f"predictions {path}: no column {' or '.join(missing)}; it has {', '.join(plain) or 'none'}{hint}"
        )
    return chosen


def _read_csv(path: Path, group: str | None) -> _Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, None)
        if names is None:
            raise PredictionsError(f"predictions {path}: it is empty")
        chosen = _chosen(names, path, group)
        rows, where = [], []
        for row in _filled(reader):
            if len(row) != len(names):
                raise PredictionsError(
                    f"predictions {path}, line {reader.line_num}: {len(row)} cells under {len(names)} names of "
                    "columns; a comma inside a cell needs quotes around the cell"
                )
            rows.append(row)
            where.append(f"line {reader.line_num}")
    return _Table(path, {name: [row[at] for row in rows] for name, at in chosen.items()}, where)


def _filled(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    return (row for row in rows if row)  # a blank line, often the last one, holds nothing


def _read_parquet(path: Path, group: str | None) -> _Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"Reading {path.name}", "parquet") from error
    try:
        names = parquet.read_schema(path).names
        chosen = _chosen(names, path, group)
        table = parquet.read_table(path, columns=sorted({names[at] for at in chosen.values()}))
        cells = {name: table[names[at]].to_pylist() for name, at in chosen.items()}
    except pyarrow.ArrowException as error:
        raise PredictionsError(f"predictions {path}: it cannot be read as Parquet: {error}") from error
    return _Table(path, cells, [f"row {row}" for row in range(table.num_rows)])
