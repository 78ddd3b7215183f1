"""The report of an evaluation, as Markdown: everything that one must know to quote its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from open_geoclip.evaluation.benchmarks import describe_counts
from open_geoclip.evaluation.metrics import FIGURES, figure_values

__all__ = ["figure_rows", "figure_title", "markdown", "text_rows"]

_NAMES = 15  # of countries in the table


def figure_title(figure: str) -> str:
    """What tables call a figure."""
    return {"median_km": "median", "mean_km": "mean", "geoscore": "GeoScore"}.get(figure, figure.replace("_", " "))


def figure_rows(found: Mapping[str, Any], *others: str) -> list[tuple[Any, ...]]:
    """Name, value and interval (None without one) of each figure, and its value in other summaries."""
    intervals = figure_values(found["intervals"]) if found["intervals"] else [None] * len(FIGURES)
    columns = (figure_values(found[name]) for name in others)
    return list(zip(FIGURES, figure_values(found), intervals, *columns, strict=True))


def text_rows(found: Mapping[str, Any], *others: str) -> list[list[str]]:
    """The same with titles and units."""

    def text(figure: str, value: float) -> str:
        return f"{value:.2f} %" if figure.startswith("within") else f"{value:,.1f}" + " km" * figure.endswith("km")

    rows = []
    for figure, value, interval, *rest in figure_rows(found, *others):
        between = " to ".join(text(figure, end) for end in interval) if interval else "-"
        rows.append([figure_title(figure), text(figure, value), between, *(text(figure, other) for other in rest)])
    return rows


def markdown(found: Mapping[str, Any], *, command: str, images: Sequence[tuple[str, str]] = ()) -> str:
    """The report.

    Args:
        found: the figures of an :class:`~.evaluate.Evaluation`.
        command: what made it.
        images: files of figures beside the report, and what they show.
    """
    leaks = [note for note in found["notes"] if note.startswith("LEAK")]
    lines = [f"# {found['model']} on {found['data']}", ""]
    lines += [f"> **{note}**\n" for note in leaks]
    lines += [*_figures(found), "", *_notes(found, leaks), ""]
    if rest := found["leak"]["without"]:
        lines += [f"## Without the {found['leak']['photos']:,} photos whose coordinates are in the gallery", ""]
        lines += [f"{rest['n']:,} photos.", "", "| | answers | 95 % interval |", "| --- | ---: | :---: |"]
        lines += [f"| {' | '.join(row)} |" for row in text_rows(rest)]
        lines.append("")
    for file, text in images:
        lines += [f"![{text}]({file})", ""]
    for name, title in (("continent", "By continent"), ("country", "By country")):
        if name in found:
            lines += _names(found[name], name, title)
    lines += ["## What was run", "", f"    {command}", ""]
    gallery = found["gallery"]
    rate = found["photos_per_second"]
    rows = {
        "model": found["model"],
        "open-geoclip": found["version"],
        "gallery": f"{gallery['name']}, {gallery['places']:,} places, sha256 {gallery['sha256']}",
        "labels": f"{found['labels']['file']}, sha256 {found['labels']['sha256']}",
        "places of the labels, sha256": found["labels"]["places_sha256"],
        "photos, sha256": found["photos_sha256"],
        "speed": "all answers were there already" if rate is None else f"{rate:.2f} photos a second",
    }
    rows |= {name.replace("_", " "): value for name, value in found["settings"].items() if name not in ("model",)}
    lines += [f"- {name}: {value}" for name, value in rows.items()]
    lines += [
        "",
        "The sha256 of the photos is that of the lines `sha256  name` in the order of names; that of the places is "
        "described in docs/evaluation.md. Both record what was read.",
    ]
    return "\n".join(lines) + "\n"


def _figures(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{found['n']:,} photos.",
        "",
        "| | answers | 95 % interval | best constant | random gallery place | gallery's ceiling |",
        "| --- | ---: | :---: | ---: | ---: | ---: |",
    ]
    for title, value, *rest in text_rows(found, "best_constant", "gallery_random_place", "gallery_ceiling"):
        lines.append(f"| {title} | **{value}** | {' | '.join(rest)} |")
    by = ""
    if drawn := found["intervals"]:
        units = "photos" if drawn["groups"] is None else f"{drawn['groups']:,} groups ({found['labels']['group']})"
        by = f" Intervals: {drawn['resamples']:,} resamples of {units}."
    lines += [
        "",
        f"Distances: {found['distance']}.{by} Best constant: the best that one answer for all photos can be. Random "
        "gallery place: what no look at the photo gives. Ceiling: the gallery's place that is nearest to the truth.",
    ]
    if "country" in found and found["country"]["n"]:
        country = found["country"]
        between = " to ".join(f"{end:.1f}" for end in country["interval"]) if country["interval"] else "-"
        lines += ["", f"Right country: **{country['percent']:.1f} %** ({between}) of {country['n']:,} photos on land."]
    return lines


def _notes(found: Mapping[str, Any], leaks: Sequence[str]) -> list[str]:
    counts = found["counts"]
    left_out = describe_counts(counts)
    lines = [f"- {note}" for note in found["notes"] if note not in leaks]
    lines.append(f"- the table has {counts['rows']:,} rows; {counts['photos_answered']:,} photos were answered")
    lines += [f"- {text}" for text in left_out]
    if counts["photos_missing"] or counts["photos_broken"]:
        within = ", ".join(f"{value:.2f}" for value in found["within_km_of_all"].values())
        lines.append(f"- if missing and broken photos count as wrong: {within} % within 1, 25, 200, 750, 2500 km")
    for name in found["missing"][:5]:
        lines.append(f"  - missing: {name}")
    for one in found["broken"][:5]:
        lines.append(f"  - broken: {one['image']}: {one['error']}")
    return lines


def _names(found: Mapping[str, Any], name: str, title: str) -> list[str]:
    rows = list(found["by"].items())
    lines = [
        f"## {title}",
        "",
        f"| | photos | 1 km | 25 km | 200 km | 750 km | 2500 km | median | right {name} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for label, one in rows[:_NAMES]:
        within = " | ".join(f"{value:.1f}" for value in one["within_km"].values())
        right = "-" if one["percent"] is None else f"{one['percent']:.0f} %"
        lines.append(f"| {label} | {one['n']:,} | {within} | {one['median_km']:,.0f} km | {right} |")
    if len(rows) > _NAMES:
        lines += ["", f"And {len(rows) - _NAMES:,} more with fewer photos each; evaluation.json has them all."]
    return [*lines, ""]
