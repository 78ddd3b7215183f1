"""The command line. Data is written to stdout, everything else to stderr."""

import inspect
import logging
import os
import re
import sys
from importlib import resources

from cyclopts import App, CycloptsPanel, Parameter

from open_geoclip._version import __version__
from open_geoclip.cli._output import hide_password
from open_geoclip.errors import ModelNameError, OpenGeoCLIPError, SettingsError, TextError

__all__ = ["app", "main"]

app = App(
    name="geoclip",
    help="Estimate where on Earth a photo was taken. Answers are estimates, not evidence.",
    version=__version__,
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=()),  # no --empty-within and the like
    suppress_keyboard_interrupt=False,  # main reports it
    error_formatter=lambda error: CycloptsPanel(hide_password(str(error))),
)
_COMMANDS = (
    *("locate", "results", "text", "explain", "verify", "tag", "strip", "serve", "mcp"),
    *("embed", "similar", "where", "gallery", "index", "render"),
    *("models", "pull", "push", "train", "bench_backbones", "data"),
    *("evaluate", "calibrate", "score", "compare", "reproduce"),
)
_GROUPS = ("data", "gallery", "index")


def _read_help(name: str) -> str:
    """Return the docstring of a command without its arguments, or the help of a group, from the module's source.

    A command's module is imported only when it is called: importing all of them takes twice as long as ``--help`` may.
    """
    source = (resources.files(__name__) / f"{name}.py").read_text(encoding="utf-8")
    pattern = (
        r'^app = App\([^)]*help="([^"]*)"' if name in _GROUPS else rf'^def {name}\(.*?"""(.*?)\s*(?:"""|\n    Args:)'
    )
    found = re.search(pattern, source, re.DOTALL | re.MULTILINE)
    assert found is not None
    return inspect.cleandoc(found[1])


for _name in _COMMANDS:
    app.command(
        f"{__name__}.{_name}:{'app' if _name in _GROUPS else _name}",
        name=_name.replace("_", "-"),
        help=_read_help(_name),
    )


def main(words: list[str] | None = None) -> None:
    """Run ``geoclip``. Exit status: 0 done, 1 something failed, 2 wrong use, 130 interrupted.

    Args:
        words: the arguments; default: those of the process.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # Beside a busy process, a photo takes four times as long where torch's threads wait for each other by spinning
        # on a core for milliseconds, as they do by default: see docs/guides/deploy.md.
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="geoclip: %(message)s")
    try:
        app(words)
    except (ModelNameError, SettingsError, TextError) as error:
        print(f"geoclip: {hide_password(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OpenGeoCLIPError as error:
        print(f"geoclip: {hide_password(str(error))}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader, such as head, has ended
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        print("geoclip: interrupted", file=sys.stderr)
        sys.exit(130)
