"""The report of an evaluation, as Markdown: everything that one must know to quote its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from open_geoclip.evaluation.benchmarks import describe_counts
from open_geoclip.evaluation.metrics import FIGURES, THRESHOLDS_KM

__all__ = ["TITLES", "flat", "markdown", "shown"]

TITLES = {"median_km": "median", "mean_km": "mean", "geoscore": "GeoScore"}
_NAMES = 15  # of countries in the table


def flat(figures: Mapping[str, Any]) -> list[Any]:
    """The values of a :func:`~.metrics.summary` in the order of :data:`~.metrics.FIGURES`."""
    return [*figures["within_km"].values(), *(figures[name] for name in FIGURES[len(THRESHOLDS_KM) :])]


def shown(figure: str, value: float) -> str:
    """A figure with its unit."""
    return f"{value:.2f} %" if figure.startswith("within") else f"{value:,.1f}" + " km" * figure.endswith("km")


def markdown(found: Mapping[str, Any], *, command: str, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The report.

    Args:
        found: the figures of an :class:`~.evaluate.Evaluation`.
        command: what made it.
        pictures: files of figures beside the report, and what they show.
    """
    loud = [note for note in found["notes"] if note.startswith("LEAK")]
    lines = [f"# {found['model']} on {found['data']}", ""]
    lines += [f"> **{note}**\n" for note in loud]
    lines += [*_figures(found), "", *_notes(found, loud), ""]
    for file, text in pictures:
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
        "told in docs/evaluation.md. Both record what was read.",
    ]
    return "\n".join(lines) + "\n"


def _figures(found: Mapping[str, Any]) -> list[str]:
    drawn = found["intervals"]
    columns = [found["best_constant"], found["gallery_random_place"], found["gallery_ceiling"]]
    intervals = flat(drawn) if drawn else [None] * len(FIGURES)
    lines = [
        f"{found['n']:,} photos.",
        "",
        "| | answers | 95 % interval | best constant | random gallery place | gallery's ceiling |",
        "| --- | ---: | :---: | ---: | ---: | ---: |",
    ]
    values = zip(FIGURES, flat(found), intervals, *map(flat, columns), strict=True)
    for figure, value, low_high, *rest in values:
        title = TITLES.get(figure, figure.replace("_", " "))
        between = " to ".join(shown(figure, end) for end in low_high) if low_high else "-"
        lines.append(
            f"| {title} | **{shown(figure, value)}** | {between} | {' | '.join(shown(figure, v) for v in rest)} |"
        )
    by = ""
    if drawn:
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


def _notes(found: Mapping[str, Any], loud: Sequence[str]) -> list[str]:
    counts = found["counts"]
    left_out = describe_counts(counts)
    lines = [f"- {note}" for note in found["notes"] if note not in loud]
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
