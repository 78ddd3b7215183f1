"""Anybody's predictions, read from a table: true and predicted places, one photo a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from open_geoclip.errors import CoordinateError, PredictionsError
from open_geoclip.evaluation.table import Table, read_table, rows_have, shown
from open_geoclip.geo.sphere import MAX_LONGITUDE_DEG, check_coordinates, haversine_km

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
    needed = {name: (name,) for name in (*_TRUTH, *_ANSWER, *([group] if group else []))}
    optional = {name: (name,) for name in ID_COLUMNS if name not in needed}
    table = read_table(path, needed, optional, what="predictions", error=PredictionsError)
    ids = {name: table.texts(name) for name in ID_COLUMNS if name in table.cells}
    for name, names in ids.items():
        table.refuse_doubles(name, names)
    truth = _places(table, _TRUTH, "true", "leave photos out whose place is not known")
    predicted = _places(
        table,
        _ANSWER,
        "predicted",
        "give every photo an answer (a place far away counts as wrong), or leave it out of the file and say so",
    )
    _refuse_exchanged(path, truth, predicted)
    return Predictions(path.name, truth, predicted, ids, None if group is None else table.texts(group))


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


def _places(table: Table, columns: tuple[str, str], kind: str, advice: str) -> Float64[np.ndarray, "n 2"]:
    """The coordinates in two columns, each of them a number.

    Raises:
        PredictionsError: a cell holds no number, or a row is not a place on Earth.
    """
    numbers = table.numbers(columns)
    wrong = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(wrong):
        row = int(wrong[0])
        held = ", ".join(f"{column} is {shown(table.cells[column][row])}" for column in columns)
        names = [name for name in ID_COLUMNS if name in table.cells]
        raise PredictionsError(
            f"predictions {table.path}: {rows_have(len(wrong), len(numbers))} no {kind} place; "
            f"the first is {table.name_of(row, names)}, where {held}: {advice}"
        )
    try:
        return check_coordinates(numbers)
    except CoordinateError as error:
        first = int(np.argmax((np.abs(numbers) > (90, MAX_LONGITUDE_DEG)).any(axis=1)))
        names = [name for name in ID_COLUMNS if name in table.cells]
        raise PredictionsError(
            f"predictions {table.path}, {' and '.join(columns)}: {error}. That row is {table.name_of(first, names)}"
        ) from error
