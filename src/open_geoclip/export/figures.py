"""Figures of an evaluation: how many answers are within which distance, and where the far ones are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from open_geoclip.errors import MissingExtraError, OpenGeoCLIPError
from open_geoclip.export.world import MAP_RATIO, draw_world
from open_geoclip.files import atomic_file
from open_geoclip.geo.projections import equal_earth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_error_curve", "draw_error_map"]

_TICKS = (1, 25, 200, 750, 2500)
_COLOURS = ("#1A6FB5", "#5AA5C8", "#9BC97F", "#F0B93A", "#E8743B", "#B2182B")  # near to far
_INK, _PALE = "#1B2A33", "#9AA7AF"


def draw_error_curve(
    path: Path,
    distance_km: Float[np.ndarray, " n"],
    *,
    title: str,
    ceiling_km: Float[np.ndarray, " n"] | None = None,
    others: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Draw the percentage of answers within each distance as a PNG.

    Args:
        path: the picture.
        distance_km: of each answer from the truth.
        title: above the figure.
        ceiling_km: of each truth from the nearest place that could be answered.
        others: percent within 1, 25, 200, 750 and 2500 km of something else, by its name.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    figure = _figure((7.2, 4.4))
    axes = figure.add_axes((0.09, 0.12, 0.86, 0.76))
    for tick in _TICKS:
        axes.axvline(tick, color="#E3E8EB", linewidth=0.8, zorder=0)
    percent = 100 * np.arange(1, len(distance_km) + 1) / len(distance_km)
    if ceiling_km is not None:
        axes.step(_shown(ceiling_km), percent, where="post", color=_PALE, linewidth=1.4, label="nearest in the gallery")
    axes.step(_shown(distance_km), percent, where="post", color=_COLOURS[0], linewidth=2.2, label="the model's answers")
    for marker, (name, within) in zip("os^v", (others or {}).items(), strict=False):
        axes.plot(_TICKS, within, marker=marker, markersize=4, linewidth=0.8, color=_INK, alpha=0.7, label=name)
    axes.set(
        xscale="log", xlim=(0.1, 20_040), ylim=(0, 100), xlabel="within km of the true place", ylabel="% of photos"
    )
    axes.set_xticks([0.1, *_TICKS, 20_000], ["0.1", *(f"{tick:,}" for tick in _TICKS), "20,000"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    figure.text(0.09, 0.93, title, fontsize=11, color=_INK)
    _save(figure, path)


def draw_error_map(
    path: Path, truth: Float[np.ndarray, "n 2"], distance_km: Float[np.ndarray, " n"], *, title: str
) -> None:
    """Draw a dot at each true place, in the colour of how far off its answer is, as a PNG.

    Args:
        path: the picture.
        truth: (lat, lon) in degrees.
        distance_km: of each answer from the truth.
        title: above the map.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    width = 10.0
    figure = _figure((width, 0.92 * width * MAP_RATIO + 1.0))
    axes = figure.add_axes((0.05, 0.1, 0.92, 0.8))
    axes.set(xlim=(-1, 1), ylim=(-MAP_RATIO, MAP_RATIO), aspect="equal")
    axes.axis("off")
    draw_world(axes)
    kinds = np.searchsorted(_TICKS, distance_km)
    size = float(np.clip(9000 / len(distance_km), 5, 24))
    for kind, colour in enumerate(_COLOURS):
        rows = kinds == kind
        near = f"{_TICKS[kind - 1]:,} to " if kind else "up to "
        name = f"{near}{_TICKS[kind]:,} km" if kind < len(_TICKS) else f"over {_TICKS[-1]:,} km"
        share = 100 * np.count_nonzero(rows) / len(rows)
        places = equal_earth(np.asarray(truth, np.float64)[rows])
        label = f"{name}: {share:.0f} %"
        axes.scatter(places[:, 0], places[:, 1], s=size, color=colour, linewidths=0, alpha=0.85, zorder=5, label=label)
    figure.legend(
        frameon=False,
        fontsize=8,
        loc="lower center",
        ncols=len(_COLOURS),
        handletextpad=0,
        columnspacing=1,
        markerscale=1.5,
    )
    figure.text(0.05, 0.94, title, fontsize=11, color=_INK)
    _save(figure, path)


def _shown(distance_km: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """In ascending order, none so near that it falls off a logarithmic axis."""
    return np.clip(np.sort(distance_km), 0.1, None)


def _figure(size: tuple[float, float]) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Drawing figures", "earth") from error
    return Figure(figsize=size, dpi=150, facecolor="white")


def _save(figure: "Figure", path: Path) -> None:
    try:
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png")
    except OSError as error:
        raise OpenGeoCLIPError(f"{path} cannot be written: {error.strerror or error}") from error
