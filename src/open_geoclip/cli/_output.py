"""Output of all commands: formats, progress, errors and exit status."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from cyclopts import Parameter, Token

from open_geoclip.errors import DataError, ImageError, OpenGeoCLIPError, SettingsError
from open_geoclip.files import atomic_write

__all__ = [
    "MAP_FORMATS",
    "AnswerOutput",
    "DetailOutput",
    "PictureOutput",
    "PointOutput",
    "RowOutput",
    "TextFormat",
    "TextOutput",
    "attempt",
    "collect",
    "exit_if_failed",
    "file_or_database",
    "hide_password",
    "print_errors",
    "progress_bar",
    "to_json",
    "write_output",
]

T = TypeVar("T")

_FORMAT = Parameter(name="--format", help="Default: by the ending of the file name, else a table.")
_TABLE_FORMAT = Parameter(name="--format", help=f"{_FORMAT.help} csv-bom is CSV that Excel reads as UTF-8.")
TextFormat = Annotated[Literal["table", "json"] | None, _FORMAT]
AnswerFormat = Annotated[
    Literal["table", "json", "csv", "csv-bom", "geojson", "kml", "kmz", "parquet", "gpkg", "html"] | None, _TABLE_FORMAT
]

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
    ".png": "png",
}
_BINARY = ("kmz", "parquet", "gpkg", "png")
MAP_FORMATS = ("geojson", "kml", "kmz", "gpkg", "html", "postgis")
"""Formats that have regions."""


# --- where a result goes, and in which format -----------------------------------------------------


def file_or_database(_: object, tokens: Sequence[Token]) -> Path | str:
    """Return the URL of a database as it is, and all else as the path of a file."""
    value = tokens[0].value
    return value if re.match("postgres(ql)?://", value) else Path(value)


def hide_password(text: str) -> str:
    """Return a message in which the URL of a database, given in a wrong place, shows no password."""
    return re.sub(r"(postgres(?:ql)?:/+[^:@/]*:).*@", r"\1***@", re.sub(r"(password=)[^&\s]*", r"\1***", text))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Output:
    """Options of all commands that write a result; subclasses name the formats that there are."""

    option: ClassVar[str] = "--output"
    takes_folder: ClassVar[bool] = False
    takes_database: ClassVar[bool] = False
    format_: Annotated[str | None, _FORMAT] = None
    target: Annotated[
        Path | str | None,
        Parameter(name=["--output", "-o"], converter=file_or_database, help="Write to this file; default: stdout."),
    ] = None

    def __post_init__(self) -> None:
        if self.format == "html":  # an error is one before any work
            from open_geoclip.export.formats import report_page

            report_page()

    @property
    def path(self) -> Path | None:
        """The file, if it is to be one."""
        return self.target if isinstance(self.target, Path) else None

    @property
    def format(self) -> str:
        """The format: that of ``--format``, or that of the ending of the file; else ``folder`` or ``postgis``.

        Raises:
            SettingsError: the ending is of no format, or the command does not write it; or it is not for a terminal.
        """
        offered = get_args(get_args(get_type_hints(type(self))["format_"])[0])
        endings = ", ".join(suffix for suffix, name in _SUFFIXES.items() if name in offered and suffix != ".htm")
        chosen = self.format_
        if isinstance(self.target, str):
            if not self.takes_database or chosen is not None:
                raise SettingsError(
                    f"{self.option}: " + ("a database has no --format" if chosen else "this command writes no database")
                )
            return "postgis"
        if chosen is None and self.path is not None:
            if self.takes_folder and (self.path.is_dir() or not self.path.suffix):
                return "folder"
            chosen = _SUFFIXES.get(self.path.suffix.lower())
            if chosen is None:
                raise SettingsError(f"{self.option} {self.path}: end its name in {endings}, or say --format")
        chosen = chosen or "table"
        if chosen not in offered:
            raise SettingsError(
                f"{self.option} {self.path}: this command writes {', '.join(offered)}; end the name in {endings}"
            )
        if chosen in _BINARY and self.path is None and sys.stdout.isatty():
            raise SettingsError(f"{chosen} is not for a terminal: name a file with {self.option}")
        return chosen

    def write(
        self,
        content: object,
        *,
        table: str,
        rows: Sequence[Mapping[str, Any]] = (),
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Write the result of a command.

        Args:
            content: for JSON.
            table: for a table.
            rows: for other formats; see :func:`~open_geoclip.export.tables.format_rows`.
            columns: of these rows.
        """
        if self.format in ("table", "json"):
            write_output(table if self.format == "table" else to_json(content), self.path)
            return
        from open_geoclip.export.tables import format_rows

        write_output(format_rows(self.format, rows, columns), self.path)


@dataclass(frozen=True, kw_only=True)
class TextOutput(Output):
    """Options of a command that writes a table or JSON."""

    format_: TextFormat = None


@dataclass(frozen=True, kw_only=True)
class PictureOutput(Output):
    """Options of a command that writes a table, JSON or a picture."""

    format_: Annotated[Literal["table", "json", "png"] | None, _FORMAT] = None


@dataclass(frozen=True, kw_only=True)
class RowOutput(Output):
    """Options of a command that also writes rows."""

    format_: Annotated[Literal["table", "json", "csv", "csv-bom", "parquet"] | None, _TABLE_FORMAT] = None


@dataclass(frozen=True, kw_only=True)
class PointOutput(Output):
    """Options of a command that also writes rows with coordinates."""

    format_: Annotated[Literal["table", "json", "csv", "csv-bom", "geojson", "parquet"] | None, _TABLE_FORMAT] = None


@dataclass(frozen=True, kw_only=True)
class AnswerOutput(Output):
    """Options of a command that writes answers."""

    format_: AnswerFormat = None


@dataclass(frozen=True, kw_only=True)
class DetailOutput(AnswerOutput):
    """The same, and whether answers have regions."""

    detail: Annotated[
        bool | None,
        Parameter(
            help="Include the regions of 50 and 90 % and the heat map; default: in formats that draw them (GeoJSON, "
            "KML, KMZ, GeoPackage, HTML, PostGIS)."
        ),
    ] = None

    @property
    def has_detail(self) -> bool:
        """Whether answers include regions and heat: as ``--detail`` says, else whether the format draws them."""
        if self.detail is not None or self.format not in MAP_FORMATS:
            return bool(self.detail)
        if all(find_spec(name) for name in ("shapely", "contourpy")):
            return True
        print("geoclip: there are no regions, which need pip install 'open-geoclip[places]'", file=sys.stderr)
        return False


def to_json(content: object) -> str:
    """Return JSON as all commands print it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_output(content: str | bytes, path: Path | None) -> None:
    """Write text or bytes to stdout, or to a file atomically.

    Raises:
        OpenGeoCLIPError: the file cannot be written.
    """
    if path is None:
        if isinstance(content, str):
            sys.stdout.write(content)
        else:
            sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    try:
        atomic_write(path, content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    except OSError as error:
        raise OpenGeoCLIPError(f"{path} cannot be written: {error.strerror or error}") from error


# --- progress, errors, exit status ----------------------------------------------------------------


@contextmanager
def progress_bar(text: str, *, log_interval_s: float | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar on stderr from the first call with (done, total) on.

    Args:
        text: what is done.
        log_interval_s: how often a line is printed where stderr is not a terminal, as in the log of a cluster; default:
            never.
    """
    if log_interval_s is None and not sys.stderr.isatty():  # rich takes 0.1 s to import
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=None, visible=False)
        start = last = time.monotonic()
        first: int | None = None

        def show(done: int, total: int | None) -> None:
            nonlocal first, last
            bar.update(task, completed=done, total=total, visible=True)
            first = done if first is None else first  # what an earlier run did counts for no rate
            now = time.monotonic()
            if log_interval_s is not None and not console.is_terminal and now - last >= log_interval_s and done > first:
                last = now
                rate = (done - first) / (now - start)
                left = "" if total is None else f" of {total:,}, {(total - done) / rate / 60:.0f} minutes left"
                print(f"geoclip: {text}: {done:,}{left}, {rate:.1f} per second", file=sys.stderr, flush=True)

        yield show


@contextmanager
def resumable_progress(text: str, folder: Path) -> Iterator[Callable[[int, int, int], None]]:
    """Show progress of work that is kept in a folder: done, all, and what an earlier run did; tell how to resume it."""
    try:
        with progress_bar(text, log_interval_s=30) as bar:

            def progress(done: int, total: int, resumed: int) -> None:
                if done == resumed and resumed:
                    print(f"geoclip: {resumed:,} of {total:,} photos are done already", file=sys.stderr)
                bar(done, total)

            yield progress
    except KeyboardInterrupt:
        print(f"geoclip: finished photos are in {folder}: run the same command again to resume", file=sys.stderr)
        raise


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


def attempt(path: Path, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return what the work on a photo returns, or a record with its error."""
    try:
        return work(path)
    except (ImageError, DataError) as error:
        return {"image": str(path), "error": error.reason if isinstance(error, ImageError) else str(error)}


def print_errors(records: Iterable[Mapping[str, Any]]) -> None:
    """Print to stderr which images failed, and why."""
    for record in records:
        if "error" in record:
            print(f"geoclip: {hide_password(record['image'])}: {record['error']}", file=sys.stderr)


def exit_if_failed(records: Iterable[Mapping[str, Any]], *, interrupted: bool = False, found: bool = False) -> None:
    """Exit with 130 if interrupted, with 1 if an image failed or something was found."""
    if interrupted:
        sys.exit(130)
    if found or any("error" in record for record in records):
        sys.exit(1)
