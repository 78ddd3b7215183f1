"""``--format`` and ``--output`` alike on every command: what is written, told by either, and rows as files."""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from open_geoclip.errors import MissingExtraError, SettingsError

__all__ = ["Kind", "choose", "rows_as", "to_json"]

Kind = Literal["text", "texts", "number", "flag"]

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


def choose(format_: str | None, output: Path | None, offered: Sequence[str], *, option: str = "--output") -> str:
    """The format that was asked for: by ``--format``, or by what the name of ``--output`` ends in.

    Args:
        format_: what ``--format`` says, if it was given.
        output: what ``--output`` names, if it was given.
        offered: what the command writes; the first is for stdout when nothing is asked for.
        option: what the option is called that names the file.

    Raises:
        SettingsError: the name tells of no format, or of one that the command does not write; or the format is not for
            a terminal.
    """
    endings = ", ".join(suffix for suffix, name in _SUFFIXES.items() if name in offered and suffix != ".htm")
    if format_ is None and output is not None:
        format_ = _SUFFIXES.get(output.suffix.lower())
        if format_ is None:
            raise SettingsError(f"{option} {output}: end its name in {endings}, or say --format")
    format_ = format_ or offered[0]
    if format_ not in offered:
        named = f"--format {format_}" if output is None else f"{option} {output}"
        raise SettingsError(f"{named}: this command writes {', '.join(offered)}; end the name in {endings}")
    if format_ in _BINARY and output is None and sys.stdout.isatty():
        raise SettingsError(f"{format_} is not for a terminal: name a file with {option}")
    return format_


def to_json(content: object) -> str:
    """JSON as every command prints it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def rows_as(format_: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Kind] | None = None) -> str | bytes:
    """Rows as ``csv``, ``parquet``, ``geojson`` or ``json``.

    Args:
        format_: one of these.
        rows: all have the names of the first, of which there must be one. GeoJSON takes ``lat`` and ``lon`` of each for
            its point.
        columns: names and kinds of the columns of CSV and Parquet. With these a row may lack some, there may be no row
            at all, and every file of a command has the same columns, whatever was found.

    Raises:
        MissingExtraError: Parquet, and the extra ``parquet`` is not installed.
    """
    if format_ == "csv":
        return _csv(rows, list(columns or rows[0]))
    if format_ == "parquet":
        return _parquet(rows, columns)
    return to_json(_points(rows)) if format_ == "geojson" else to_json(list(rows))


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """CSV; a text that a spreadsheet would take for a formula has an apostrophe before it, a list has semicolons."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _harmless(value) for name, value in row.items()})
    return file.getvalue()


def _harmless(value: object) -> object:
    if isinstance(value, list):
        value = "; ".join(map(str, value))
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _parquet(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Kind] | None) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Parquet", "parquet") from error
    kinds = {"text": pyarrow.string(), "number": pyarrow.float64(), "flag": pyarrow.bool_()}
    kinds["texts"] = pyarrow.list_(pyarrow.string())
    schema = columns and pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    file = io.BytesIO()
    made = [{name: _utf8(value) for name, value in row.items()} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(made, schema), file, compression="zstd")
    return file.getvalue()


def _utf8(value: object) -> object:
    """Names of files may be bytes of no encoding; what cannot be written is written out."""
    if isinstance(value, list):
        return [_utf8(one) for one in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


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
