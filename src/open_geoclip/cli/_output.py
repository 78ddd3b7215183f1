"""``--format`` and ``--output`` alike on every command: what is written, told by either, and rows as files."""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from open_geoclip.errors import MissingExtraError, SettingsError

__all__ = ["choose", "rows_as", "to_json"]

_SUFFIXES = {
    ".txt": "table",
    ".json": "json",
    ".csv": "csv",
    ".geojson": "geojson",
    ".kml": "kml",
    ".kmz": "kmz",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
}
_BINARY = {"kmz", "parquet"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def choose(format_: str | None, output: Path | None, offered: Sequence[str]) -> str:
    """The format that was asked for: by ``--format``, or by what the name of ``--output`` ends in.

    Args:
        format_: what ``--format`` says, if it was given.
        output: what ``--output`` names, if it was given.
        offered: what the command writes; the first is for stdout when nothing is asked for.

    Raises:
        SettingsError: the name tells of no format, or of one that the command does not write; or the format is not for
            a terminal.
    """
    endings = ", ".join(suffix for suffix, name in _SUFFIXES.items() if name in offered and suffix != ".htm")
    if format_ is None and output is not None:
        format_ = _SUFFIXES.get(output.suffix.lower())
        if format_ is None:
            raise SettingsError(f"--output {output}: end its name in {endings}, or say --format")
    format_ = format_ or offered[0]
    if format_ not in offered:
        named = f"--format {format_}" if output is None else f"--output {output}"
        raise SettingsError(f"{named}: this command writes {', '.join(offered)}; end the name in {endings}")
    if format_ in _BINARY and output is None and sys.stdout.isatty():
        raise SettingsError(f"{format_} is not for a terminal: name a file with --output")
    return format_


def to_json(content: object) -> str:
    """JSON as every command prints it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def rows_as(format_: str, rows: Sequence[Mapping[str, Any]]) -> str | bytes:
    """Rows as ``csv``, ``parquet``, ``geojson`` or ``json``.

    Args:
        format_: one of these.
        rows: at least one; all have the names of the first. GeoJSON takes ``lat`` and ``lon`` of each for its point.

    Raises:
        MissingExtraError: Parquet, and the extra ``parquet`` is not installed.
    """
    if format_ == "csv":
        return _csv(rows)
    if format_ == "parquet":
        return _parquet(rows)
    return to_json(_points(rows)) if format_ == "geojson" else to_json(list(rows))


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV; a text that a spreadsheet would take for a formula has an apostrophe before it."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _harmless(value) for name, value in row.items()})
    return file.getvalue()


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Parquet", "parquet") from error
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), file, compression="zstd")
    return file.getvalue()


def _points(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """RFC 7946: longitude comes first."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [row["lon"], row["lat"]]},
            "properties": {name: value for name, value in row.items() if name not in ("lat", "lon")},
        }
        for row in rows
    ]
    return {"type": "FeatureCollection", "features": features}
