"""``geoclip results``: summarise and convert the results of a job."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from open_geoclip.cli._output import ANSWER_FORMATS, TEXT_FORMATS, AnswerFormat, choose_format, to_json, write_output

if TYPE_CHECKING:
    from open_geoclip.scale.results import Summary

__all__ = ["results"]


def results(
    folder: Path,
    /,
    *,
    output: Annotated[
        Path | None, Parameter(alias="-o", help="Write the answers to this file; else a summary.")
    ] = None,
    format_: AnswerFormat = None,
) -> None:
    """Summarise the results of a job, and convert them to other formats.

    Args:
        folder: The folder that geoclip locate -o wrote.
    """
    from open_geoclip.scale.results import Results

    found = Results(folder)
    if output is None:
        chosen = choose_format(format_, None, TEXT_FORMATS)
        summary = found.summary()
        write_output(to_json({**found.manifest, **asdict(summary)}) if chosen == "json" else _table(summary), None)
        return
    from open_geoclip.export.formats import render

    chosen = choose_format(format_, output, ANSWER_FORMATS[1:])
    write_output(render(list(found.answers()), chosen), output)


def _table(summary: "Summary") -> str:
    lines = [f"{summary.photos:,} photos: {summary.located:,} located, {summary.photos - summary.located:,} failed"]
    if summary.sure or summary.unsure:
        share = summary.sure / (summary.sure + summary.unsure)
        lines.append(f"sure: {summary.sure:,} ({100 * share:.1f} %)")
    if summary.photos_per_s is not None:
        lines.append(f"{summary.photos_per_s:,} photos per second and process")
    if summary.duplicates:
        lines.append(f"{summary.duplicates:,} photos were done twice, the first row of each counts")
    for title, counts in (("countries", summary.countries), ("errors", summary.errors)):
        if counts:
            lines.append(f"{title}:")
            lines += [f"  {count:>9,}  {name or 'at sea'}" for name, count in list(counts.items())[:20]]
    return "".join(f"{line}\n" for line in lines)
