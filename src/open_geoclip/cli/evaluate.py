"""``geoclip evaluate``: measure a model on photos with known places."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._options import Bootstrap, Crops, Distance, ImageModelOptions
from open_geoclip.cli._output import TextFormat, TextOutput, resumable_progress, to_json, write_output
from open_geoclip.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from open_geoclip.evaluation.evaluate import Evaluation, Names
    from open_geoclip.evaluation.labelled import Labelled

__all__ = ["evaluate", "run", "write_results"]


def evaluate(
    benchmark: Literal["im2gps", "im2gps3k", "yfcc4k", "yfcc26k", "gws15k", "osv5m"] | None = None,
    /,
    *,
    data: str,
    table: Path | None = None,
    options: ImageModelOptions = ImageModelOptions(),
    crops: Crops = 1,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    format_: TextFormat = "table",
    distance: Distance = "haversine",
    bootstrap: Bootstrap = 1000,
    group: str | None = None,
    allow_leak: bool = False,
) -> None:
    """Measure a model on photos with known places: any table and folder, or a published benchmark.

    Writes a report with figures, predictions.csv (for geoclip score and geoclip compare) and evaluation.json into a
    folder. The same command resumes an interrupted run.

    Args:
        benchmark: Layout of the data; default: any table and folder.
        data: Folder of the photos; or photos as geoclip train takes them: a table, a folder of photos with GPS, tar
            shards, hf:NAME, earth-views:SPLIT:COUNT. Nothing is downloaded.
        table: CSV or Parquet of names and places (columns such as IMG_ID, LAT, LON); default: found in the folder.
        output: Folder for the results; default: evaluation-NAME.
        group: Column whose photos are resampled together; default: the author's, if there is one.
        allow_leak: Go on although the gallery contains the coordinates of more than half of the photos.
    """
    labelled = _labelled(data, benchmark, table, group)
    folder = Path(f"evaluation-{benchmark or labelled.name}") if output is None else output
    found = run(labelled, folder, options, crops=crops, distance=distance, bootstrap=bootstrap, allow_leak=allow_leak)
    write_results(found, folder)
    TextOutput(format_=format_).write(found.figures, table=_table(found.figures, folder))
    for one in found.figures["broken"]:
        print(f"geoclip: {one['image']}: {one['error']}", file=sys.stderr)
    if found.figures["counts"]["photos_broken"]:
        sys.exit(1)


def _labelled(data: str, benchmark: str | None, table: Path | None, group: str | None) -> "Labelled":
    """Photos of a folder with a table of labels, or of any source."""
    from open_geoclip.data.sources import open_source
    from open_geoclip.evaluation.benchmarks import label_tables, read_labelled
    from open_geoclip.evaluation.labelled import label_source

    folder = Path(data)
    has_table = folder.is_dir() and bool(label_tables(folder))
    if benchmark is not None or table is not None or group is not None or has_table:
        return read_labelled(folder, benchmark=benchmark, table=table, group=group)
    return label_source(open_source(data))


def run(
    labelled: "Labelled",
    folder: Path,
    options: ImageModelOptions,
    *,
    crops: int = 1,
    distance: Literal["haversine", "geodesic"] = "haversine",
    bootstrap: int = 1000,
    allow_leak: bool = False,
    **model: Any,
) -> "Evaluation":
    """Evaluate with progress on stderr, and report what was skipped; ``model`` are further options of the locator."""
    from open_geoclip.evaluation import evaluate as evaluation
    from open_geoclip.evaluation.benchmarks import describe_counts

    countries, continents = _names()
    if bootstrap < 0:
        raise SettingsError(f"--bootstrap is a number of resamples, 0 or more, not {bootstrap}")
    for text in (*describe_counts(labelled.counts), *labelled.notes):
        print(f"geoclip: {text}", file=sys.stderr)
    locator = options.load(crops=crops, **model)
    with resumable_progress("locating", folder) as progress:
        return evaluation.evaluate(
            locator,
            labelled,
            folder,
            distance=distance,
            resamples=bootstrap,
            allow_leak=allow_leak,
            countries=countries,
            continents=continents,
            settings={"dtype": options.dtype, "merge_tokens": options.merge_tokens},
            progress=progress,
        )


def _names() -> "tuple[Names, Names] | tuple[None, None]":
    """Return functions that name countries and continents, if the extra is installed."""
    import numpy as np

    from open_geoclip.geo.countries import continents as continents_of
    from open_geoclip.geo.countries import country_codes, country_name

    def countries(coordinates: "Float[np.ndarray, 'n 2']") -> list[str | None]:
        return [country_name(code) or None for code in country_codes(coordinates).tolist()]

    def continents(coordinates: "Float[np.ndarray, 'n 2']") -> list[str | None]:
        return [name or None for name in continents_of(coordinates).tolist()]

    try:
        countries(np.array([[0.0, 0.0]]))
    except MissingExtraError as error:
        print(f"geoclip: there will be no country accuracy: {error}", file=sys.stderr)
        return None, None
    return countries, continents


def write_results(found: "Evaluation", folder: Path) -> None:
    """Write evaluation.json, predictions.csv (and .parquet if the extra is installed), report.md and its figures."""
    import shlex

    from open_geoclip.evaluation.report import markdown
    from open_geoclip.export.tables import format_rows

    write_output(to_json(found.figures), folder / "evaluation.json")
    rows = [dict(zip(found.table, row, strict=True)) for row in zip(*found.table.values(), strict=True)]
    write_output(format_rows("csv", rows), folder / "predictions.csv")
    with suppress(MissingExtraError):
        write_output(format_rows("parquet", rows), folder / "predictions.parquet")
    command = shlex.join(["geoclip", *sys.argv[1:]])
    write_output(markdown(found.figures, command=command, images=_draw_figures(found, folder)), folder / "report.md")


def _draw_figures(found: "Evaluation", folder: Path) -> list[tuple[str, str]]:
    import numpy as np

    from open_geoclip.export.figures import draw_error_curve, draw_error_map

    figures = found.figures
    title = f"{figures['model']} on {figures['data']}, {figures['n']:,} photos"
    try:
        draw_error_curve(
            folder / "curve.png",
            found.distance_km,
            title=title,
            ceiling_km=np.array(found.table["gallery_nearest_km"]),
            others={
                "best constant": list(figures["best_constant"]["within_km"].values()),
                "random gallery place": list(figures["gallery_random_place"]["within_km"].values()),
            },
        )
        draw_error_map(folder / "map.png", found.truth, found.distance_km, title=title)
    except MissingExtraError as error:
        print(f"geoclip: the report has no figures: {error}", file=sys.stderr)
        return []
    return [("curve.png", "Percent of answers within a distance"), ("map.png", "Errors by place")]


def _table(found: dict[str, Any], folder: Path) -> str:
    from open_geoclip.evaluation.report import text_rows

    lines = [
        f"{found['model']} on {found['data']}: {found['n']:,} photos",
        "",
        f"{'':16}{'':>13}   {'95 % interval':^25}{'best constant':>16}{'random place':>15}{'ceiling':>13}",
    ]
    rows = text_rows(found, "best_constant", "gallery_random_place", "gallery_ceiling")
    for title, value, interval, constant, drawn, ceiling in rows:
        lines.append(f"{title:<16}{value:>13}   {interval:^25}{constant:>16}{drawn:>15}{ceiling:>13}")
    if found.get("country", {}).get("n"):
        lines.append(f"{'right country':<16}{found['country']['percent']:>11.2f} %")
    lines += ["", *found["notes"], f"report, predictions and figures are in {folder}"]
    return "".join(f"{line.rstrip()}\n" for line in lines)
