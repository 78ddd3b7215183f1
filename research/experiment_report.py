"""Tables and plots of the experiments, from ``runs.jsonl``."""

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

__all__ = ["write_report"]

_THRESHOLDS = ("25", "200", "750", "2500")
_TITLES = {
    "main": "Base configuration",
    "levels": "(a) Levels of resolution",
    "projection": "(b) Projection",
    "queue": "(c) Queue",
    "noise": "(c) Noise on the coordinates",
    "mask": "(c) Near-duplicate negatives",
    "data": "(d) Limited data",
    "gallery": "(e) Gallery",
    "head": "(f) Image head",
    "cells": "Cell sizes, on validation views",
}
_METHODS = {"geoclip": "GeoCLIP", "cells": "cells", "knn": "image retrieval (kNN)"}


def write_report(runs: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write ``tables.md`` and the plots.

    Args:
        runs: results by row, as :func:`research.experiments.read` gives them.
        folder: where to write.
    """
    rows = _by_row(runs)
    parts = ["# Experiments on Earth views: tables\n\n`make experiments` writes this page from `runs.jsonl`. See the"]
    parts[0] += " [summary](../experiments.md).\n"
    for group, title in _TITLES.items():
        chosen = {name: found for (row_group, name), found in rows.items() if row_group == group}
        if group != "main" and group != "cells" and group != "data":
            chosen = {"*base configuration*": rows.get(("main", _main_name(rows)), []), **chosen}
        if any(chosen.values()):
            parts.append(_table(title, chosen, "validation" if group == "cells" else "test"))
            about_edges = {name: found for name, found in chosen.items() if found and _edges_of(found[0])}
            if about_edges and (group == "main" or len(about_edges) > 1):
                parts.append(_edges(about_edges))
            if group in ("main", "levels", "data"):
                parts.append(_table(f"{title}: on shaded relief", chosen, "shadedrelief"))
    (folder / "tables.md").write_text("\n".join(parts), encoding="utf-8")
    _plot_data(rows, folder / "data.png")


def _by_row(runs: dict[str, dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Group the runs of each row."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, record in runs.items():
        group, rest = key.split("/", 1)
        rows.setdefault((group, rest.rsplit("/", 1)[0]), []).append(record)
    return rows


def _main_name(rows: Iterable[tuple[str, str]]) -> str:
    return next((name for group, name in rows if group == "main"), "")


def _cell(found: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> str:
    """Format the mean over seeds, and the standard deviation if there are several."""
    values = [value(record) for record in found]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _table(title: str, rows: dict[str, list[dict[str, Any]]], views: str) -> str:
    lines = [
        f"\n## {title}\n",
        "| | seeds | 25 km | 200 km | 750 km | 2500 km | median km |",
        "| --- |" + " ---: |" * 6,
    ]
    for name, found in rows.items():
        if found:
            shares = [
                _cell(found, lambda record, km=km: record[views]["all"]["within_km"][km])  # type: ignore[misc]
                for km in _THRESHOLDS
            ]
            median = _cell(found, lambda record: record[views]["all"]["median_km"])
            lines.append(f"| {name} | {len(found)} | {' | '.join(shares)} | {median} |")
    return "\n".join(lines) + "\n"


def _edges_of(record: dict[str, Any]) -> list[str]:
    """Return the names of the view sets at the edges of flat maps."""
    return [name for name in record if name.startswith("beyond")]


def _edges(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table of results at the edges of flat maps."""
    parts = _edges_of(next(iter(rows.values()))[0])
    lines = ["\nPercent within 200 km, and the median in km, on additional views near the edges of flat maps:\n"]
    lines += [
        "| | " + " | ".join(f"{part} (n) | median" for part in parts) + " |",
        "| --- |" + " ---: | ---: |" * len(parts),
    ]
    for name, found in rows.items():
        cells = []
        for part in parts:
            share = _cell(found, lambda record, part=part: record[part]["all"]["within_km"]["200"])  # type: ignore[misc]
            median = _cell(found, lambda record, part=part: record[part]["all"]["median_km"])  # type: ignore[misc]
            cells.append(f"{share} ({found[0][part]['all']['n']:,}) | {median}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plot_data(rows: dict[tuple[str, str], list[dict[str, Any]]], path: Path) -> None:
    """Plot accuracy against the share of the data, one line per method."""
    points: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for (group, _), found in rows.items():
        if group == "data":
            about = found[0]["settings"]
            points.setdefault(about["method"], {})[about["share"]] = found
    if not points:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    for axis, km in zip(axes, _THRESHOLDS[:3], strict=True):
        for method, shares in points.items():
            x = sorted(shares)
            values = [[record["test"]["all"]["within_km"][km] for record in shares[share]] for share in x]
            spread = [stdev(value) if len(value) > 1 else 0.0 for value in values]
            axis.errorbar(
                [100 * s for s in x], list(map(mean, values)), spread, marker="o", ms=4, label=_METHODS[method]
            )
        axis.set_xscale("log")
        axis.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        axis.minorticks_off()
        axis.set_title(f"within {km} km")
        axis.set_xlabel("% of the training views")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("% of test views")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)
