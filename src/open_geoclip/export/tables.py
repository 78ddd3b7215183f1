"""Rows as CSV, Parquet and GeoJSON; of answers a row per candidate, and one per image that could not be read."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import numpy as np

from open_geoclip.data.tables import format_csv
from open_geoclip.errors import MissingExtraError
from open_geoclip.schema import type_hints
from open_geoclip.search.answer import Answer, Candidate, Columns

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "CAUTION",
    "COLUMNS",
    "add_geometry",
    "arrow_table",
    "escape",
    "format_rows",
    "point_feature",
    "rows",
    "to_csv",
    "to_csv_with_bom",
    "to_parquet",
]

CAUTION = "an estimate, not evidence"

_KINDS = {str: "string", float: "float64", bool: "bool"}


def _columns(cls: type) -> dict[str, tuple[str, str, str | None]]:
    """Return kind, field and key of each column that a dataclass declares."""
    columns: dict[str, tuple[str, str, str | None]] = {}
    for name, hint in type_hints(cls).items():
        kind, *metadata = get_args(hint)
        options = [option for option in get_args(kind) or (kind,) if option in _KINDS]
        for one in metadata:
            if isinstance(one, Columns):
                of_values = str if kind == Mapping[str, str] else float
                columns |= {one.name.format(key): (_KINDS[of_values], name, key) for key in one.keys}
        if options and get_origin(kind) in (None, Union, UnionType):
            columns[name] = (_KINDS[options[0]], name, None)
    return columns


_ANSWER = _columns(Answer)
_RELIABILITY = {
    f"reliability_within_{km}_km_{kind}": (km, at)
    for km in ("25", "200")
    for at, kind in enumerate(("any", "recognisable"))
}
_MADE_BY = ("model", "gallery", "version", "image_sha256", "weights_sha256", "gallery_sha256", "error")
COLUMNS: dict[str, str] = {
    "image": "string",
    "text": "string",
    "rank": "int32",
    "warning": "string",
    **{name: kind for name, (kind, *_) in _columns(Candidate).items()},
    **{name: kind for name, (kind, *_) in _ANSWER.items() if name not in (*_MADE_BY, "image", "text", "warning")},
    "reliability": "string",
    **dict.fromkeys(_RELIABILITY, "float64"),
    "exif_lat": "float64",
    "exif_lon": "float64",
    "decision": "string",
    "note": "string",
    **{name: _ANSWER[name][0] for name in _MADE_BY},
    "caution": "string",
    "created": "string",
}
"""Columns and their kinds. Figures of the answer as a whole stand in each of its rows."""


def rows(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield one dict per row, with every column; None where there is no value."""
    empty = dict.fromkeys(COLUMNS)
    made = {"caution": about["caution"], "created": about["created"]}
    for record in records:
        exif, reliability = record.get("exif") or {}, record.get("reliability")
        within = reliability and reliability["within_km"]
        common = {
            **{
                column: record.get(name) if key is None else record.get(name, {}).get(key)
                for column, (_, name, key) in _ANSWER.items()
            },
            "reliability": reliability and reliability["text"],
            **{column: within and within[km][at] for column, (km, at) in _RELIABILITY.items()},
            "exif_lat": exif.get("lat"),
            "exif_lon": exif.get("lon"),
            "decision": record.get("decision"),
            "note": record.get("note"),
            **made,
        }
        for rank, candidate in enumerate(record.get("candidates", ()), 1):
            yield {**empty, **common, "rank": rank, **candidate}
        if not record.get("candidates"):
            yield {**empty, **common}


def to_csv(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> bytes:
    """Write CSV in UTF-8; see :func:`open_geoclip.data.tables.format_csv`."""
    return format_rows("csv", list(rows(records, about)), COLUMNS)


def to_csv_with_bom(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> bytes:
    """Write the same after a byte order mark, for Excel."""
    return format_rows("csv-bom", list(rows(records, about)), COLUMNS)


def to_parquet(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> bytes:
    """Write GeoParquet 1.1; ``about`` is in the metadata of its schema."""
    table = add_geometry(arrow_table(list(rows(records, about)), COLUMNS))
    return _parquet(table.replace_schema_metadata({**table.schema.metadata, **about}))


def format_rows(format_: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> bytes:
    """Return rows as ``csv``, ``csv-bom``, ``parquet`` or ``geojson``.

    Args:
        format_: one of these.
        rows: at least one unless ``columns`` are given. For GeoJSON they have ``lat`` and ``lon``.
        columns: names and kinds (string, strings, int32, float64, bool) of the columns of CSV and Parquet; default:
            those of the first row.

    Raises:
        MissingExtraError: Parquet without the extra ``parquet``.
    """
    if format_ in ("csv", "csv-bom"):
        names = list(columns or rows[0])
        cells = ([row.get(name) for name in names] for row in rows)
        return format_csv(names, cells, bom=format_ == "csv-bom").encode("utf-8", "backslashreplace")
    if format_ == "parquet":
        return _parquet(arrow_table(rows, columns))
    assert format_ == "geojson"
    features = [
        point_feature(row, {name: value for name, value in row.items() if name not in ("lat", "lon")}) for row in rows
    ]
    collection = {"type": "FeatureCollection", "features": features}
    return (json.dumps(collection, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def point_feature(place: Mapping[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return a GeoJSON point; RFC 7946 writes longitude first."""
    point = {"type": "Point", "coordinates": [place["lon"], place["lat"]]}
    return {"type": "Feature", "geometry": point, "properties": properties}


def _parquet(table: "pa.Table") -> bytes:
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def arrow_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> "pa.Table":
    """Return rows as an Arrow table. Names of files may be bytes of no encoding: what is not UTF-8 is escaped.

    Args:
        rows: at least one unless ``columns`` are given.
        columns: names and kinds, as for :func:`format_rows`.

    Raises:
        MissingExtraError: the extra ``parquet`` is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError("Parquet", "parquet") from error
    kinds = {"string": pa.string(), "int32": pa.int32(), "float64": pa.float64(), "bool": pa.bool_()}
    kinds["strings"] = pa.list_(pa.string())
    schema = columns and pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    return pa.Table.from_pylist([{name: _escape(value) for name, value in row.items()} for row in rows], schema)


def _escape(value: object) -> object:
    if isinstance(value, list):
        return [_escape(one) for one in value]
    return escape(value) if isinstance(value, str) else value


def escape(text: str) -> str:
    """Return text that can be encoded: bytes in the name of a file that are not UTF-8 become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def add_geometry(table: "pa.Table") -> "pa.Table":
    """Add what makes a table GeoParquet 1.1: ``geometry``, points of ``lon`` and ``lat`` as WKB, and ``bbox``."""
    import pyarrow as pa

    lon, lat = (table.column(name).to_numpy() for name in ("lon", "lat"))
    is_there = np.isfinite(lon)
    points = np.zeros(len(lon), [("order", "u1"), ("kind", "<u4"), ("x", "<f8"), ("y", "<f8")])
    points["order"], points["kind"], points["x"], points["y"] = 1, 1, lon, lat
    geometry = pa.array([bytes(p) if ok else None for p, ok in zip(points, is_there, strict=True)], pa.binary())
    corners = {"xmin": lon, "ymin": lat, "xmax": lon, "ymax": lat}
    bbox = pa.StructArray.from_arrays(list(map(pa.array, corners.values())), list(corners), mask=pa.array(~is_there))
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["Point"],
        "covering": {"bbox": {corner: ["bbox", corner] for corner in corners}},
    }
    if is_there.any():
        inside = lon[is_there], lat[is_there]
        column["bbox"] = [float(edge(axis)) for edge in (np.min, np.max) for axis in inside]
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    table = table.append_column("geometry", geometry).append_column("bbox", bbox)
    return table.replace_schema_metadata({**(table.schema.metadata or {}), b"geo": json.dumps(geo).encode()})
