"""Read predictions of any model from a table: true and predicted places, one photo per row."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from open_geoclip.data.columns import Column
from open_geoclip.data.tables import Table, read_table
from open_geoclip.errors import CoordinateError, DataError, PredictionsError
from open_geoclip.geo.sphere import MAX_LONGITUDE_DEG, check_coordinates, haversine_km

__all__ = ["ID_COLUMNS", "Predictions", "read_predictions"]

ID_COLUMNS = ("id", "image", "IMG_ID", "idx")
"""Columns that name the photo, in order of preference."""

_TRUTH = ("true_lat", "true_lon")
_ANSWER = ("pred_lat", "pred_lon")


@dataclass(frozen=True, eq=False)
class Predictions:
    """True and predicted places of photos; see :func:`read_predictions`.

    Attributes:
        name: for messages.
        truth: (lat, lon) in degrees.
        predicted: (lat, lon) in degrees, row by row.
        ids: names of the photos, each once, by column; may be empty.
        groups: of each photo.

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
    """Read true_lat, true_lon, pred_lat and pred_lon, in degrees, from CSV, Parquet or GeoJSON properties.

    The columns id, image, IMG_ID and idx name the photos; others are ignored.

    Args:
        path: the file; its suffix is that of the format.
        group: a column of groups, such as authors.

    Raises:
        PredictionsError: the file cannot be read, is empty, lacks a column; a coordinate is missing or not on Earth;
            latitude and longitude are exchanged; a photo stands there twice. Says how many rows, and the first.
        MissingExtraError: a Parquet file without the extra ``parquet``.
    """
    path = Path(path)
    named = [name for name in ID_COLUMNS if name != group]
    columns = {name: Column((name,), "degrees") for name in (*_TRUTH, *_ANSWER)}
    columns |= {name: Column((name,), required=False) for name in named}
    columns |= {} if group is None else {"group": Column((group,))}
    try:
        table = read_table(path, columns)
    except DataError as error:
        raise PredictionsError(f"predictions {error}") from error
    if not len(table):
        raise PredictionsError(f"predictions {path}: it holds no predictions, only the names of columns")
    ids = {name: _filled(table, name, name) for name in named if name in table.names}
    for name, names in ids.items():
        _refuse_repeated(table, name, names)
    truth = _coordinates(table, _TRUTH, ids, "true place", "leave photos out whose place is not known")
    predicted = _coordinates(
        table,
        _ANSWER,
        ids,
        "predicted place",
        "give every photo an answer (a place far away counts as wrong), or leave it out of the file and say so",
    )
    _refuse_exchanged(path, truth, predicted)
    groups = None if group is None else _filled(table, "group", group)
    return Predictions(path.name, truth, predicted, ids, groups)


def _filled(table: Table, column: str, name: str) -> list[str]:
    """Return the texts of a column, none of them empty."""
    texts = list(table.texts[column])
    empty = [row for row, text in enumerate(texts) if not text]
    if empty:
        raise PredictionsError(
            f"predictions {table.path}: {_rows_have(len(empty), len(texts))} no {name}; "
            f"the first is {table.where(empty[0])}"
        )
    return texts


def _refuse_repeated(table: Table, column: str, names: Sequence[str]) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        places = [table.where(row) for row, name in enumerate(names) if name == repeated[0]]
        raise PredictionsError(
            f"predictions {table.path}: {len(repeated):,} of the photos in column {column} are in several rows; the "
            f"first is {repeated[0]}, at {' and '.join(places[:2])}: one row per photo is needed"
        )


def _coordinates(
    table: Table, columns: tuple[str, str], ids: Mapping[str, Sequence[str]], what: str, advice: str
) -> Float64[np.ndarray, "n 2"]:
    """Return two columns as coordinates, all of which must exist and be on Earth."""
    degrees = table.coordinates(*columns)

    def where(row: int) -> str:
        names = ", ".join(f"{column} {names[row]}" for column, names in ids.items())
        return f"{table.where(row)} ({names})" if names else table.where(row)

    absent = np.flatnonzero(~np.isfinite(degrees).all(axis=1))
    if len(absent):
        row = int(absent[0])
        cells = ", ".join(f"{name} is {_cell(table.numbers[name][row])}" for name in columns)
        raise PredictionsError(
            f"predictions {table.path}: {_rows_have(len(absent), len(degrees))} no {what}; the first is "
            f"{where(row)}, where {cells}: {advice}"
        )
    try:
        return check_coordinates(degrees)
    except CoordinateError as error:
        first = int(np.argmax((np.abs(degrees) > (90, MAX_LONGITUDE_DEG)).any(axis=1)))
        raise PredictionsError(
            f"predictions {table.path}, {' and '.join(columns)}: {error}. That row is {where(first)}"
        ) from error


def _cell(number: float) -> str:
    return "empty" if np.isnan(number) else f"{number:.10g}"


def _rows_have(count: int, of: int) -> str:
    return f"{count:,} of {of:,} rows {'has' if count == 1 else 'have'}"


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
