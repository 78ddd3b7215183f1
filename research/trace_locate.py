"""List the functions of open_geoclip that ``geoclip locate`` goes through, from a photo to JSON.

    python -m research.trace_locate [PHOTO ...]

The command runs in this process. The first run loads the model and fills caches; the second one, with the same locator,
is traced. Bodies of modules and classes, comprehensions, generator expressions and lambdas are not counted; properties
and special methods are. Loading the model is listed apart.
"""

import contextlib
import io
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

import open_geoclip
from open_geoclip.search.locator import Locator

__all__ = ["main", "trace_command", "write_views"]

Functions = list[tuple[str, str]]
_PACKAGE = Path(open_geoclip.__file__).parent
_UNNAMED = {"<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<lambda>"}


def trace_command(arguments: Sequence[str]) -> tuple[Functions, Functions]:
    """Return file and qualified name of each function that loads the model, and of each that runs once it is loaded."""
    from open_geoclip.cli import app

    def run() -> None:
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
            app(list(arguments), result_action="return_value")

    loaded: list[Locator] = []
    loading: Functions = []

    def load(*names: Any, **options: Any) -> Locator:
        if not loaded:
            with _traced(loading):
                loaded.append(original(*names, **options))
        return loaded[0]

    original, locating = Locator.from_pretrained, Functions()
    with mock.patch.object(Locator, "from_pretrained", load):
        run()
        with _traced(locating):
            run()
    return loading, locating


@contextlib.contextmanager
def _traced(functions: Functions) -> Iterator[None]:
    """Note the functions that this thread, and those that are started meanwhile, call for the first time."""
    found: dict[CodeType, None] = {}

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found.setdefault(frame.f_code)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    functions += [
        (str(Path(code.co_filename).relative_to(_PACKAGE)), code.co_qualname)
        for code in list(found)
        if code.co_name not in _UNNAMED and Path(code.co_filename).is_relative_to(_PACKAGE)
    ]


def write_views(folder: Path, count: int) -> list[Path]:
    """Write test views of the Earth as PNG files."""
    from PIL import Image

    from open_geoclip.data.earth_views import views

    paths: list[Path] = []
    for batch in views("test", count):
        for view in batch.images:
            paths.append(folder / f"view_{len(paths)}.png")
            Image.fromarray(view).save(paths[-1])
    return paths


def main(arguments: Sequence[str]) -> None:
    """Trace the command and print what it goes through, file by file."""
    with tempfile.TemporaryDirectory() as folder:
        photos = list(arguments) or [str(path) for path in write_views(Path(folder), 12)]
        traces = trace_command(["locate", *photos, "--format", "json"])
    for title, functions in zip(("loading the model", "from photos to JSON"), traces, strict=True):
        files = dict.fromkeys(file for file, _ in functions)
        print(f"{title}: {len(functions)} functions in {len(files)} files")
        for file in files:
            print(f"    {file}: {', '.join(name for other, name in functions if other == file)}")


if __name__ == "__main__":
    main(sys.argv[1:])
