"""Shared by the commands that read and write photos' metadata: input files, reports, exit status."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from open_geoclip.cli._output import Kind, rows_as, to_json
from open_geoclip.errors import ImageError

__all__ = ["ROW_FORMATS", "RowFormat", "finish", "photo_files", "print_errors", "report"]

RowFormat = Literal["table", "json", "csv", "parquet"]
ROW_FORMATS: tuple[RowFormat, ...] = ("table", "json", "csv", "parquet")
Record = Mapping[str, Any]


def photo_files(paths: list[Path]) -> tuple[list[Path], list[dict[str, Any]]]:
    """The photos among files and folders, each once, and a record with an error for each path that holds none."""
    from open_geoclip.images import find_images
    from open_geoclip.metadata.files import unique_files

    files: list[Path] = []
    failed: list[dict[str, Any]] = []
    for path in paths:
        try:
            files += find_images([path])
        except ImageError as error:
            failed.append({"image": error.name, "error": error.reason})
    files, repeated = unique_files(files)
    if repeated:
        print(f"geoclip: {len(repeated):,} named twice, such as {repeated[0]}: done once", file=sys.stderr)
    return files, failed


def report(format_: str, records: Sequence[Record], columns: Mapping[str, Kind], table: str) -> str | bytes:
    """What was done, as a row a photo; JSON has what there is to say of each and no more.

    Args:
        format_: one of :data:`ROW_FORMATS`.
        records: in order, with errors.
        columns: of CSV and Parquet.
        table: the lines for people.
    """
    if format_ == "table":
        return table
    return to_json(list(records)) if format_ == "json" else rows_as(format_, records, columns)


def print_errors(records: Sequence[Record]) -> None:
    """Print to stderr which photos could not be done, and why."""
    for record in records:
        if "error" in record:
            print(f"geoclip: {record['image']}: {record['error']}", file=sys.stderr)


def finish(records: Sequence[Record], *, interrupted: bool, found: bool = False) -> None:
    """End the command: 130 when it was interrupted, 1 when a photo could not be done or something was found."""
    if interrupted:
        sys.exit(130)
    if found or any("error" in record for record in records):
        sys.exit(1)
