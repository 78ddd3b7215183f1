"""Figures of an evaluation (share of answers within a distance, map of the errors, reliability) and of training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from open_geoclip.export.basemap import INK, MAP_RATIO, add_world, new_figure, save_png
from open_geoclip.geo.projections import equal_earth

__all__ = ["draw_backbones", "draw_error_curve", "draw_error_map", "draw_reliability", "draw_training_curves"]

_TICKS = (1, 25, 200, 750, 2500)
_COLOURS = ("#1A6FB5", "#5AA5C8", "#9BC97F", "#F0B93A", "#E8743B", "#B2182B")  # small to large errors
_DPI = 150


def draw_error_curve(
    path: Path,
    distance_km: Float[np.ndarray, " n"],
    *,
    title: str,
    ceiling_km: Float[np.ndarray, " n"] | None = None,
    others: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Draw the percentage of answers within each distance, as a PNG file.

    Args:
        path: the file.
        distance_km: from each answer to the truth.
        title: above the figure.
        ceiling_km: from each truth to the nearest place of the gallery.
        others: percent within 1, 25, 200, 750 and 2500 km of other answers, by name.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    figure = new_figure(7.2, 4.4, _DPI)
    axes = figure.add_axes((0.09, 0.12, 0.86, 0.76))
    for tick in _TICKS:
        axes.axvline(tick, color="#E3E8EB", linewidth=0.8, zorder=0)
    percent = 100 * np.arange(1, len(distance_km) + 1) / len(distance_km)

    def step(km: Float[np.ndarray, " n"], label: str, colour: str, width: float) -> None:
        on_axis = np.clip(np.sort(km), 0.1, None)  # the axis is logarithmic
        axes.step(on_axis, percent, where="post", color=colour, linewidth=width, label=label)

    if ceiling_km is not None:
        step(ceiling_km, "nearest in the gallery", "#9AA7AF", 1.4)
    step(distance_km, "the model's answers", _COLOURS[0], 2.2)
    for marker, (name, within) in zip("os^v", (others or {}).items(), strict=False):
        axes.plot(_TICKS, within, marker=marker, markersize=4, linewidth=0.8, color=INK, alpha=0.7, label=name)
    axes.set(xscale="log", xlim=(0.1, 20_040), ylim=(0, 100), xlabel="within km of the truth", ylabel="% of photos")
    axes.set_xticks([0.1, *_TICKS, 20_000], ["0.1", *(f"{tick:,}" for tick in _TICKS), "20,000"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    figure.text(0.09, 0.93, title, fontsize=11, color=INK)
    save_png(figure, path)


def draw_reliability(path: Path, reliability: Mapping[str, Any]) -> None:
    """Draw how often answers were right over the predicted probability, as a PNG file.

    Args:
        path: the file.
        reliability: by distance in km, as :func:`open_geoclip.evaluation.reliability.reliability` gives it.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    figure = new_figure(4.4, 4.4, _DPI)
    axes = figure.add_axes((0.14, 0.12, 0.83, 0.85), xlim=(0, 1.02), ylim=(0, 1.02))
    axes.plot([0, 1], [0, 1], color="#A9B4BC", linewidth=1)
    for (km, found), colour in zip(reliability.items(), ("#0072B2", "#D55E00", "#009E73"), strict=False):
        claimed, right = ([row[key] for row in found["bins"]] for key in ("claimed", "right"))
        axes.plot(claimed, right, "o-", color=colour, markersize=4, linewidth=1, label=f"within {km} km")
    axes.set(xlabel="mean predicted probability", ylabel="observed frequency")
    axes.legend(frameon=False, loc="upper left")
    save_png(figure, path)


def draw_error_map(
    path: Path, truth: Float[np.ndarray, "n 2"], distance_km: Float[np.ndarray, " n"], *, title: str
) -> None:
    """Draw a dot at each true place, coloured by the error of its answer, as a PNG file.

    Args:
        path: the file.
        truth: (lat, lon) in degrees.
        distance_km: from each answer to the truth.
        title: above the map.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    width = 10.0
    figure = new_figure(width, 0.92 * width * MAP_RATIO + 1.0, _DPI)
    axes = add_world(figure, (0.05, 0.1, 0.92, 0.8))
    bins = np.searchsorted(_TICKS, distance_km)
    size = float(np.clip(9000 / len(distance_km), 5, 24))
    for number, colour in enumerate(_COLOURS):
        rows = bins == number
        lower = f"{_TICKS[number - 1]:,} to " if number else "up to "
        name = f"{lower}{_TICKS[number]:,} km" if number < len(_TICKS) else f"over {_TICKS[-1]:,} km"
        x, y = equal_earth(np.asarray(truth, np.float64)[rows]).T
        label = f"{name}: {100 * np.count_nonzero(rows) / len(rows):.0f} %"
        axes.scatter(x, y, s=size, color=colour, linewidths=0, alpha=0.85, zorder=5, label=label)
    figure.legend(
        frameon=False, fontsize=8, loc="lower center", ncols=6, handletextpad=0, columnspacing=1, markerscale=1.5
    )
    figure.text(0.05, 0.94, title, fontsize=11, color=INK)
    save_png(figure, path)


def draw_training_curves(path: Path, epochs: Sequence[Mapping[str, float]], *, kept: float) -> None:
    """Draw the losses and, where there are validation photos, the median distance of each epoch, as a PNG file.

    Args:
        path: the file.
        epochs: the figures of each epoch, as in ``metrics.jsonl``.
        kept: the epoch whose weights are kept.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    panels = [{"loss": "training", "validation_loss": "validation"}, {"median_km": "validation"}]
    panels = [{key: label for key, label in panel.items() if key in epochs[0]} for panel in panels]
    titles = [title for title, panel in zip(("loss", "median distance, km"), panels, strict=True) if panel]
    figure = new_figure(4.4 * len(titles), 3.4, _DPI)
    for number, (title, panel) in enumerate(zip(titles, filter(None, panels), strict=True)):
        axes = figure.add_subplot(1, len(titles), number + 1)
        for (key, label), colour in zip(panel.items(), (_COLOURS[0], _COLOURS[4]), strict=False):
            points = [(epoch["epoch"], epoch[key]) for epoch in epochs if key in epoch]
            axes.plot(*zip(*points, strict=True), color=colour, marker=".", label=label)
        axes.axvline(kept, color="#9AA7AF", linewidth=1.0, linestyle="--", label=f"kept: epoch {kept:.0f}")
        axes.set(xlabel="epoch", title=title)
        axes.locator_params(axis="x", integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    save_png(figure, path)


def draw_backbones(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the share of photos within 200 km, with its 95 % interval, over the cost of each backbone, as a PNG file.

    Args:
        path: the file.
        rows: as :func:`open_geoclip.training.bench_backbones.bench_backbones` returns them. The cost is the time per
            photo where it was measured for all, else the number of parameters.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    is_timed = all(row["photos_per_s"] for row in rows)
    figure = new_figure(6.4, 4.2, _DPI)
    axes = figure.add_axes((0.11, 0.13, 0.85, 0.82))
    for row in rows:
        cost = 1000 / row["photos_per_s"] if is_timed else row["parameters"] / 1e6
        mean, (low, high) = row["within_200_km"]["mean"], row["within_200_km"]["interval"]
        axes.errorbar(cost, mean, [[max(mean - low, 0)], [max(high - mean, 0)]], fmt="o", color=_COLOURS[0], capsize=3)
        axes.annotate(row["backbone"], (cost, mean), xytext=(6, 6), textcoords="offset points", fontsize=8, color=INK)
    axes.margins(x=0.3, y=0.1)
    cost_label = "milliseconds per photo" if is_timed else "parameters, million"
    axes.set(xscale="log", xlabel=cost_label, ylabel="% of photos within 200 km")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)
