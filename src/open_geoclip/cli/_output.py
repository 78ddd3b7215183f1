"""Output of all commands: formats, rows as files, progress, errors and exit status."""

import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import Parameter

from open_geoclip.errors import MissingExtraError, OpenGeoCLIPError, SettingsError
from open_geoclip.files import atomic_write

__all__ = [
    "ANSWER_FORMATS",
    "POINT_FORMATS",
    "ROW_FORMATS",
    "TEXT_FORMATS",
    "AnswerFormat",
    "Kind",
    "PointFormat",
    "RowFormat",
    "TextFormat",
    "choose_format",
    "collect",
    "exit_if_failed",
    "print_errors",
    "progress_bar",
    "rows_as",
    "to_json",
    "write_output",
    "write_result",
]

T = TypeVar("T")
Kind = Literal["text", "texts", "number", "flag"]

_FORMAT = Parameter(
    name="--format", help="Default: by the ending of --output, else a table. csv-bom is CSV that Excel reads as UTF-8."
)
TextFormat = Annotated[Literal["table", "json"] | None, _FORMAT]
RowFormat = Annotated[Literal["table", "json", "csv", "csv-bom", "parquet"] | None, _FORMAT]
PointFormat = Annotated[Literal["table", "json", "csv", "csv-bom", "geojson", "parquet"] | None, _FORMAT]
AnswerFormat = Annotated[
    Literal["table", "json", "csv", "csv-bom", "geojson", "kml", "kmz", "parquet", "gpkg", "html"] | None, _FORMAT
]

TEXT_FORMATS = ("table", "json")
ROW_FORMATS = (*TEXT_FORMATS, "csv", "csv-bom", "parquet")
POINT_FORMATS = (*TEXT_FORMATS, "csv", "csv-bom", "geojson", "parquet")
ANSWER_FORMATS = (*TEXT_FORMATS, "csv", "csv-bom", "geojson", "kml", "kmz", "parquet", "gpkg", "html")

_SUFFIXES = {
    ".txt": "table",
    ".json": "json",
    ".csv": "csv",
    ".geojson": "geojson",
    ".kml": "kml",
    ".kmz": "kmz",
    ".parquet": "parquet",
    ".gpkg": "gpkg",
    ".html": "html",
    ".htm": "html",
}
_BINARY = {"kmz", "parquet", "gpkg"}


# --- formats --------------------------------------------------------------------------------------


def choose_format(format_: str | None, output: Path | None, offered: Sequence[str], *, option: str = "--output") -> str:
    """Return the format: that of ``--format``, or that of the ending of ``--output``.

    Args:
        format_: the value of ``--format``.
        output: the value of ``--output``.
        offered: formats that the command writes; the first is the default.
        option: the option that names the file.

    Raises:
        SettingsError: the ending is of no format, or the command does not write it; or it is not for a terminal.
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


def write_result(
    format_: str,
    output: Path | None,
    content: object,
    *,
    table: str,
    rows: Sequence[Mapping[str, Any]] = (),
    columns: Mapping[str, Kind] | None = None,
) -> None:
    """Write what a command found to a file or stdout.

    Args:
        format_: as :func:`choose_format` returns it.
        output: a file; default: stdout.
        content: for ``json``.
        table: for ``table``.
        rows: for other formats; see :func:`rows_as`.
        columns: of these rows.
    """
    if format_ == "table":
        write_output(table, output)
    else:
        write_output(to_json(content) if format_ == "json" else rows_as(format_, rows, columns), output)


def write_output(content: str | bytes, output: Path | None) -> None:
    """Write text or bytes to stdout, or to a file atomically.

    Raises:
        OpenGeoCLIPError: the file cannot be written.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    if output is None:
        if isinstance(content, str):
            sys.stdout.write(content)
        else:
            sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    try:
        atomic_write(output, data)
    except OSError as error:
        raise OpenGeoCLIPError(f"{output} cannot be written: {error.strerror or error}") from error


def to_json(content: object) -> str:
    """Return JSON as all commands print it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def rows_as(format_: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Kind] | None = None) -> str | bytes:
    """Return rows as ``csv``, ``csv-bom``, ``parquet`` or ``geojson``.

    Args:
        format_: one of these.
        rows: at least one unless ``columns`` are given. For GeoJSON they have ``lat`` and ``lon``.
        columns: names and kinds of the columns of CSV and Parquet; default: those of the first row.

    Raises:
        MissingExtraError: Parquet without the extra ``parquet``.
    """
    if format_ in ("csv", "csv-bom"):
        from open_geoclip.data.tables import format_csv

        names = list(columns or rows[0])
        return format_csv(names, ([row.get(name) for name in names] for row in rows), bom=format_ == "csv-bom")
    if format_ == "parquet":
        return _parquet(rows, columns)
    return to_json(_points(rows))


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
    valid = [{name: _utf8(value) for name, value in row.items()} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(valid, schema), file, compression="zstd")
    return file.getvalue()


def _utf8(value: object) -> object:
    """Return text that can be written: names of files may be bytes of no encoding."""
    if isinstance(value, list):
        return [_utf8(one) for one in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _points(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # RFC 7946: longitude comes first.
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [row["lon"], row["lat"]]},
            "properties": {name: value for name, value in row.items() if name not in ("lat", "lon")},
        }
        for row in rows
    ]
    return {"type": "FeatureCollection", "features": features}


# --- progress, errors, exit status ----------------------------------------------------------------


@contextmanager
def progress_bar(text: str, *, log_interval_s: float | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar on stderr from the first call with (done, total) on.

    Args:
        text: what is done.
        log_interval_s: how often a line is printed where stderr is not a terminal, as in the log of a cluster; default:
            never.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=None, visible=False)
        start = last = time.monotonic()

        def show(done: int, total: int | None) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total, visible=True)
            now = time.monotonic()
            if log_interval_s is not None and not console.is_terminal and now - last >= log_interval_s:
                last = now
                of = "" if total is None else f" of {total:,}"
                rate = f"{done / (now - start):.1f} per second"
                print(f"geoclip: {text}: {done:,}{of}, {rate}", file=sys.stderr, flush=True)

        yield show


def collect(items: Iterable[T], total: int, text: str) -> tuple[list[T], bool]:
    """Return the items, with progress on stderr, and whether the user interrupted; those that were done are kept."""
    found: list[T] = []
    try:
        with progress_bar(text) as progress:
            for item in items:
                found.append(item)
                progress(len(found), total)
    except KeyboardInterrupt:
        print(f"geoclip: interrupted after {len(found):,} of {total:,} photos", file=sys.stderr)
        return found, True
    return found, False


def print_errors(records: Iterable[Mapping[str, Any]]) -> None:
    """Print to stderr which images failed, and why."""
    for record in records:
        if "error" in record:
            print(f"geoclip: {record['image']}: {record['error']}", file=sys.stderr)


def exit_if_failed(records: Iterable[Mapping[str, Any]], *, interrupted: bool = False, found: bool = False) -> None:
    """Exit with 130 if interrupted, with 1 if an image failed or something was found."""
    if interrupted:
        sys.exit(130)
    if found or any("error" in record for record in records):
        sys.exit(1)
