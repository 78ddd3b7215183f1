"""What several commands share: progress on stderr, coordinates as arguments, output to a file or stdout."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_geoclip.errors import CoordinateError, OpenGeoCLIPError
from open_geoclip.files import atomic_write

if TYPE_CHECKING:
    from open_geoclip.search.locator import Locator

__all__ = ["load_locator", "parse_coordinate", "progress_bar", "show_log", "write_output"]


def show_log() -> None:
    """Show the library's warnings on stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="geoclip: %(message)s")


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that appears at the first call with (done, total); nothing when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def load_locator(model: str, *, max_pixels: int | None = None, **options: Any) -> "Locator":
    """The locator that a command was asked for; a bar shows while the gallery is encoded, which happens once.

    Args:
        model: the weights.
        max_pixels: the package's own bound when not given.
        options: more arguments of :meth:`~open_geoclip.search.locator.Locator.from_pretrained`.
    """
    from open_geoclip.images import MAX_PIXELS
    from open_geoclip.search.locator import Locator

    bound = MAX_PIXELS if max_pixels is None else max_pixels
    with progress_bar("encoding the gallery, once") as progress:
        return Locator.from_pretrained(model, max_pixels=bound, progress=progress, **options)


def parse_coordinate(text: str) -> tuple[float, float]:
    """A coordinate as people type it: ``48.8584,2.2945``.

    Raises:
        CoordinateError: it is not two numbers, or not on Earth.
    """
    import numpy as np

    from open_geoclip.geo.sphere import check_coordinates

    parts = text.split(",")
    try:
        lat, lon = (float(part) for part in parts)
    except ValueError as error:
        raise CoordinateError(f"{text!r} is not LAT,LON: two numbers in degrees, such as 48.8584,2.2945") from error
    check_coordinates(np.array([[lat, lon]]))
    return lat, lon


def write_output(content: str | bytes, output: Path | None) -> None:
    """Text or bytes to stdout, or to a file that is written beside its goal and renamed into place.

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
