"""Plans of ``geoclip tag``: CSV files of estimates that a person reviews before they are written."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from open_geoclip.data.columns import COORDINATES, Column
from open_geoclip.data.tables import Table, format_csv, read_table
from open_geoclip.errors import DataError
from open_geoclip.metadata.tag import Estimate

__all__ = ["PlanRow", "format_plan", "read_plan"]

_COLUMNS = {
    "write": Column(("write",)),
    "image": Column(("image",)),
    **COORDINATES,
    "radius_km": Column(("radius_km",), "number"),
    "probability": Column(("probability",), "number"),
    "sure": Column(("sure",)),
    "reason": Column(("reason",), required=False),
    "anchors": Column(("anchors",), required=False),
    "estimated_lat": Column(("estimated_lat",), "number"),
    "estimated_lon": Column(("estimated_lon",), "number"),
    "model": Column(("model",)),
    "gallery": Column(("gallery",)),
    "version": Column(("version",)),
    "sha256": Column(("sha256",)),
}
_DECISIONS = {"yes": True, "y": True, "true": True, "1": True, "no": False, "n": False, "false": False, "0": False}
_SURE = {"true": True, "false": False, "": None}
_SAME_DEG = 1e-5  # spreadsheets round


@dataclass(frozen=True)
class PlanRow:
    """A photo of a plan.

    Attributes:
        path: of the photo.
        sha256: of its bytes when the plan was made.
        write: whether the place is to be written.
        estimate: the place; where a person corrected it, without accuracy.
        reason: why it is not to be written unless a person decides so; None: it is.
    """

    path: Path
    sha256: str
    write: bool
    estimate: Estimate
    reason: str | None = None


def format_plan(rows: Iterable[PlanRow], path: Path) -> str:
    """Return a plan as CSV; names of photos are relative to the folder of the plan."""
    cells = []
    for row in rows:
        place = row.estimate
        values = {**vars(place), "sure": "" if place.sure is None else str(place.sure).lower()}
        values |= {"write": "yes" if row.write else "no", "reason": row.reason, "sha256": row.sha256}
        values |= {
            "image": os.path.relpath(row.path, path.parent),
            "estimated_lat": place.lat,
            "estimated_lon": place.lon,
        }
        cells.append([values[name] for name in _COLUMNS])
    return format_csv(_COLUMNS, cells)


def read_plan(path: Path) -> list[PlanRow]:
    """Read a plan that :func:`format_plan` wrote and a person edited.

    Raises:
        DataError: a row is wrong; says which one and why.
    """
    table, rows = read_table(path, _COLUMNS), []
    seen: set[Path] = set()
    for number in range(len(table)):
        row = _read_row(table, number)
        if row.path in seen:
            raise DataError(f"{path}: {table.where(number)}: {row.path} is named twice")
        seen.add(row.path)
        rows.append(row)
    return rows


def _read_row(table: Table, number: int) -> PlanRow:
    texts = {name: column[number] for name, column in table.texts.items()}
    numbers = {name: float(column[number]) for name, column in table.numbers.items()}
    where = f"{table.path}: {table.where(number)}"
    decision, sure = _DECISIONS.get(texts["write"].lower()), _SURE.get(texts["sure"].lower(), "unknown")
    if decision is None:
        raise DataError(f"{where}: write is yes or no, not {texts['write']!r}")
    if isinstance(sure, str):
        raise DataError(f"{where}: sure is true, false or empty, not {texts['sure']!r}")
    if math.isnan(numbers["lat"]) or math.isnan(numbers["lon"]):
        raise DataError(f"{where}: lat and lon are needed: fill them in, or remove the row")
    if not (abs(numbers["lat"]) <= 90 and abs(numbers["lon"]) <= 180):
        raise DataError(f"{where}: {numbers['lat']:g}, {numbers['lon']:g} is not a latitude and a longitude")
    if not texts["image"] or len(texts["sha256"]) != 64:
        raise DataError(f"{where}: image and sha256 must stay as they were")
    radius_km = None if math.isnan(numbers["radius_km"]) else numbers["radius_km"]
    source = (texts["model"], texts["gallery"], texts["version"])
    of_model = (*source, radius_km, numbers["probability"], sure)
    estimate = Estimate(numbers["lat"], numbers["lon"], *of_model, anchors=texts.get("anchors", ""))
    moved = max(abs(numbers[name] - numbers[f"estimated_{name}"]) for name in ("lat", "lon"))
    if not moved <= _SAME_DEG:
        estimate = replace(estimate, radius_km=None, probability=None, sure=None, is_corrected=True)
    return PlanRow(table.path.parent / texts["image"], texts["sha256"], decision, estimate)
