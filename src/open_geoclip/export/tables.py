"""Answers as tables, CSV and Parquet: a row a candidate, a row for each picture that could not be read."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from open_geoclip.errors import MissingExtraError

__all__ = ["COLUMNS", "rows", "to_csv", "to_parquet"]

COLUMNS: dict[str, str] = {
    "image": "string",
    "text": "string",
    "rank": "int32",
    "lat": "float64",
    "lon": "float64",
    "score": "float64",
    "probability": "float64",
    "radius_km": "float64",
    "country": "string",
    "place": "string",
    "credible_radius_50_km": "float64",
    "credible_radius_90_km": "float64",
    "within_200_km": "float64",
    "sure": "bool",
    "exif_lat": "float64",
    "exif_lon": "float64",
    "model": "string",
    "gallery": "string",
    "version": "string",
    "weights_sha256": "string",
    "gallery_sha256": "string",
    "error": "string",
    "caution": "string",
    "created": "string",
}
"""Columns and their kinds. Figures of the answer as a whole stand in each of its rows."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_TEXTS = ("image", "text", "place", "error", "gallery", "model")


def rows(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One dict a row, with every column; None where there is nothing to say."""
    empty = dict.fromkeys(COLUMNS)
    made = {"caution": about["caution"], "created": about["created"]}
    for record in records:
        exif, radii = record.get("exif") or {}, record.get("credible_radius_km", {})
        common = {
            **{key: record.get(key) for key in ("image", "text", "model", "gallery", "version", "error", "sure")},
            "credible_radius_50_km": radii.get("50"),
            "credible_radius_90_km": radii.get("90"),
            "within_200_km": record.get("within_km", {}).get("200"),
            "exif_lat": exif.get("lat"),
            "exif_lon": exif.get("lon"),
            **{f"{what}_sha256": mark for what, mark in record.get("sha256", {}).items()},
            **made,
        }
        for rank, candidate in enumerate(record.get("candidates", ()), 1):
            yield {**empty, **common, "rank": rank, **candidate}
        if not record.get("candidates"):
            yield {**empty, **common}


def to_csv(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> bytes:
    """CSV in UTF-8. A text that a spreadsheet would take for a formula has an apostrophe before it."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    for row in rows(records, about):
        for name in _TEXTS:
            if isinstance(row[name], str) and row[name].startswith(_FORMULA):
                row[name] = f"'{row[name]}"
        writer.writerow(row)
    return file.getvalue().encode("utf-8", "backslashreplace")


def to_parquet(records: Sequence[Mapping[str, Any]], about: dict[str, str]) -> bytes:
    """Parquet, zstd; what made it is in the metadata of its schema.

    Raises:
        MissingExtraError: the extra ``parquet`` is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Parquet", "parquet") from error
    kinds = {"string": pa.string(), "int32": pa.int32(), "float64": pa.float64(), "bool": pa.bool_()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()], metadata=about)
    made = [
        {key: _utf8(value) if isinstance(value, str) else value for key, value in row.items()}
        for row in rows(records, about)
    ]
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(made, schema), file, compression="zstd")
    return file.getvalue()


def _utf8(text: str) -> str:
    """Names of files may be bytes of no encoding; what cannot be written is written out."""
    return text.encode("utf-8", "backslashreplace").decode()
