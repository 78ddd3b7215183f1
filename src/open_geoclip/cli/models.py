"""``geoclip models``: list models, installed or not."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_geoclip.cli._output import TextOutput
from open_geoclip.weights.folders import Status, status
from open_geoclip.weights.registry import RECORDS

if TYPE_CHECKING:
    from open_geoclip.weights.calibrations import UserCalibration

__all__ = ["models"]


def models(*, output: TextOutput = TextOutput()) -> None:
    """List the models: whether they are on this machine, download size, licence, training data and accuracy.

    Other models are named by their location: hub:org/repo@revision or dir:/folder. Below the table are the calibrations
    that geoclip calibrate fitted.
    """
    from open_geoclip.weights.calibrations import user_calibrations

    found, own = [status(name) for name in RECORDS], list(user_calibrations())
    lines = []
    for one in own:
        photos = f"{one.calibration['n_images']:,} {one.calibration['fitted_on']}"
        lines.append(f"{one.model} over {one.gallery}: calibrated on {photos}\n")
    output.write([_as_json(one, own) for one in found], table="".join([_table(found, output.path), *lines]))


def _as_json(one: Status, own: "list[UserCalibration]") -> dict[str, Any]:
    record = one.record
    calibrations = [
        {"gallery": kept.gallery, "fitted_on": kept.calibration["fitted_on"], "photos": kept.calibration["n_images"]}
        for kept in own
        if kept.model.split()[0] == record.name
    ]
    return {
        "name": record.name,
        "title": record.title,
        "here": one.folder is not None,
        "folder": None if one.folder is None else str(one.folder),
        "bytes": one.bytes_here,
        "bytes_to_get": one.bytes_to_get,
        "command": one.command,
        "source": record.source,
        "version": record.version,
        "backbone": record.backbone,
        "licence": record.licence,
        "trained_on": record.trained_on,
        "accuracy": record.accuracy,
        "calibrations": calibrations,
    }


_BENCHMARKS = 2  # in the table
EXTRA = "pip install 'open-geoclip[earth]'"


def _table(found: list[Status], path: Path | None) -> str:
    from rich.console import Console
    from rich.table import Table

    # A file or a pipe has no width of its own. And the brackets in a pip command are no markup.
    width = None if path is None and Console().is_terminal else 200
    console = Console(width=width, markup=False, highlight=False)
    table = Table(show_lines=True)
    for title in ("name", "here", "to get it", "licence", "trained on", "accuracy"):
        # Wide enough that a command can be copied, but for those that hold a commit.
        table.add_column(title, overflow="fold", min_width=len(EXTRA) if title == "to get it" else None)
    for one in found:
        table.add_row(
            f"{one.record.name}\n{one.record.title}",
            f"{_size(one.bytes_here)}\n{one.folder}" if one.folder else "no",
            _cost(one),
            one.record.licence,
            one.record.trained_on,
            _accuracy(one.record.accuracy),
        )
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _cost(one: Status) -> str:
    if one.command is None:
        return "nothing"
    return f"{_size(one.bytes_to_get)}\n{one.command}" if one.bytes_to_get else one.command


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _accuracy(accuracy: object) -> str:
    """Return percentages within distances of the first benchmarks, a line each; a sentence stays as it is."""
    if not isinstance(accuracy, dict):
        return str(accuracy)
    lines = []
    for benchmark, figures in accuracy.items():
        if isinstance(figures, dict):
            # "1 km": 13.01, "25 km": 32.1 reads as "13.01 / 32.1 % within 1 km / 25 km"
            values, within = " / ".join(map(str, figures.values())), " / ".join(map(str, figures))
            lines.append(f"{benchmark}: {values} % within {within}")
        else:
            lines.append(f"{benchmark}: {figures}")
    more = [f"and {len(lines) - _BENCHMARKS} more: geoclip models --format json"] if len(lines) > _BENCHMARKS else []
    return "\n".join([*lines[:_BENCHMARKS], *more])
