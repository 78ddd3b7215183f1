"""``geoclip results``: summarise and convert the results of a job."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from open_geoclip.cli._answers import print_written
from open_geoclip.cli._output import AnswerOutput, progress_bar, write_output
from open_geoclip.errors import SettingsError

if TYPE_CHECKING:
    from open_geoclip.scale.results import Summary

__all__ = ["results"]


@dataclass(frozen=True, kw_only=True)
class ResultsOutput(AnswerOutput):
    """Options of the output, which may also be a database."""

    takes_database: ClassVar[bool] = True


def results(folder: Path, /, *, output: ResultsOutput = ResultsOutput()) -> None:
    """Summarise the results of a job, and convert them to other formats.

    Without --output, prints a summary; --format json prints it with the settings of the job. --output may be a
    database with PostGIS: postgresql://USER@HOST/DATABASE.

    Args:
        folder: The folder that geoclip locate -o wrote.
    """
    from open_geoclip.scale.results import Results

    if output.target is None and output.format not in ("table", "json"):
        raise SettingsError(f"--format {output.format} is for answers: name a file with --output")
    if output.path is not None and output.format == "table":
        raise SettingsError("a table is a summary: leave out --output, or write answers in another format")
    found = Results(folder)
    if isinstance(output.target, str):
        from open_geoclip.scale.postgis import PostGIS

        with PostGIS(output.target) as database, progress_bar("writing", log_interval_s=30) as progress:
            written = database.write(found.answers(), found.manifest, progress=progress)
        print_written(database.name, *written)
        return
    if output.path is None:
        summary = found.summary()
        output.write({**found.manifest, **asdict(summary)}, table=_table(summary))
        return
    from open_geoclip.export.formats import render

    write_output(render(list(found.answers()), output.format), output.path)


def _table(summary: "Summary") -> str:
    lines = [f"{summary.photos:,} photos: {summary.located:,} located, {summary.photos - summary.located:,} failed"]
    if summary.sure or summary.unsure:
        share = summary.sure / (summary.sure + summary.unsure)
        lines.append(f"sure: {summary.sure:,} ({100 * share:.1f} %)")
    if summary.photos_per_s is not None:
        lines.append(f"{summary.photos_per_s:,} photos per second and process")
    if summary.duplicates:
        lines.append(f"{summary.duplicates:,} photos were done twice, the first row of each counts")
    if summary.countries:
        lines.append("countries:")
        lines += [f"  {count:>9,}  {name or 'at sea'}" for name, count in list(summary.countries.items())[:20]]
    if summary.errors:
        lines.append("errors:")
        found = list(summary.errors.items())[:20]
        lines += [f"  {count:>9,}  {reason}, such as {summary.examples[reason]}" for reason, count in found]
    return "".join(f"{line}\n" for line in lines)
