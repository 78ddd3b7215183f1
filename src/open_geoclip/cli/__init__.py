"""The command line: each command opens, calls one method and prints. Data on stdout, everything else on stderr."""

import logging
import sys

from cyclopts import App

from open_geoclip._version import __version__
from open_geoclip.errors import ModelNameError, OpenGeoCLIPError, SettingsError, TextError

__all__ = ["app", "main"]

app = App(
    name="geoclip",
    help="Say where on Earth a photo was taken. Answers are estimates, not evidence.",
    version=__version__,
    version_flags=["--version"],
)
# Named as text, a command's module is imported when it is called; the help of each is its docstring's first line.
for _name, _help in {
    "locate": "Say where photos were taken.",
    "results": "Summarise the results of a job, and convert them to other formats.",
    "text": "Say where on Earth words lead.",
    "embed": "Give the location vector of each coordinate, not normalised.",
    "similar": "Find the places most like a place, or between two, to a model's location vectors.",
    "gallery": "Look at the places that answers are chosen from, and encode them.",
    "data": "Check, pack and split photos with coordinates.",
    "verify": "Hold pictures against the places that their metadata name.",
    "tag": "Write estimated places into XMP sidecars or EXIF, marked as estimates.",
    "strip": "Remove places from photos; the pixels stay the same.",
    "train": "Train a model on photos with coordinates.",
    "models": "List the models: what is on this machine, and what the others would cost.",
    "pull": "Bring a model, and the backbone that it needs, to this machine.",
    "push": "Upload a trained model to the Hugging Face Hub.",
    "score": "Score anybody's predictions: share within 1 to 2500 km, median, mean, GeoScore.",
    "compare": "Compare two runs on the same photos, and say whether the difference is real.",
    "where": "Name the country and the nearest city of each coordinate, offline.",
    "evaluate": "Measure a model on photos whose places are known: a table and a folder, or a published benchmark.",
    "reproduce": "Run the released weights on your copy of a benchmark, and hold the result against published answers.",
    "render": "Render a view of the Earth as from orbit.",
    "serve": "Answer over HTTP, and show a page for people.",
    "mcp": "Offer the tools to a program that speaks the Model Context Protocol, over standard input and output.",
}.items():
    app.command(f"open_geoclip.cli.{_name}:{'app' if _name in ('data', 'gallery') else _name}", name=_name, help=_help)


def main(words: list[str] | None = None) -> None:
    """Run ``geoclip``. Exit status: 0 done, 1 something failed, 2 wrong use, 130 interrupted.

    Args:
        words: what stands behind ``geoclip``; what the program was called with when not given.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="geoclip: %(message)s")
    try:
        app(words)
    except (ModelNameError, SettingsError, TextError) as error:
        print(f"geoclip: {error}", file=sys.stderr)
        sys.exit(2)
    except OpenGeoCLIPError as error:
        print(f"geoclip: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        print("geoclip: interrupted", file=sys.stderr)
        sys.exit(130)
