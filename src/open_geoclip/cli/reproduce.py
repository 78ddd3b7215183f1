"""``geoclip reproduce``: evaluate the released weights on a benchmark and compare with published results."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._options import Crops, Dtype, ImageModelOptions, Model
from open_geoclip.cli._output import TextFormat, TextOutput, progress_bar, to_json, write_output

if TYPE_CHECKING:
    from open_geoclip.evaluation.predictions import Predictions

__all__ = ["reproduce"]


@dataclass(frozen=True, kw_only=True)
class ReleasedModelOptions(ImageModelOptions):
    """The model that the published answers are of, in the precision that they were computed in."""

    model: Model = "geoclip"
    dtype: Dtype = "float32"


def reproduce(
    benchmark: Literal["im2gps3k"],
    /,
    *,
    data: Path,
    table: Path | None = None,
    published: Path | None = None,
    options: ReleasedModelOptions = ReleasedModelOptions(),
    crops: Crops = 1,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    format_: TextFormat = "table",
) -> None:
    """Evaluate the released weights on your copy of a benchmark, and compare with published figures and answers.

    Exit status 1 if a figure differs significantly, or cannot be compared. The same command resumes an interrupted run.

    Args:
        data: Folder of the photos.
        table: Table of the benchmark; default: im2gps3k_places365.csv in the folder.
        published: Published answers of the same weights: CSV with true_lat, true_lon, pred_lat, pred_lon and IMG_ID or
            idx, the number of the row in the benchmark's table from 0.
        output: Folder for the results; default: reproduce-NAME.
    """
    from open_geoclip.cli.evaluate import run, write_results
    from open_geoclip.evaluation.benchmarks import BENCHMARKS, read_labelled
    from open_geoclip.evaluation.predictions import read_predictions
    from open_geoclip.evaluation.reproduce import agreement, figures_agree

    theirs = None if published is None else _named(read_predictions(published))
    labelled = read_labelled(data, benchmark=benchmark, table=table)
    folder = Path(f"reproduce-{benchmark}") if output is None else output
    found = run(labelled, folder, options, crops=crops, calibration=options.shipped_calibration())
    write_results(found, folder)
    figures = figures_agree(found.figures["within_km"], found.figures["n"], BENCHMARKS[benchmark].published[crops])
    whole = labelled.places_sha256 == BENCHMARKS[benchmark].places_sha256
    result: dict[str, Any] = {"labels_are_the_benchmarks": whole, "figures": figures, "answers": None}
    if theirs is not None:
        with progress_bar("resampling") as progress:
            result["answers"] = agreement(
                read_predictions(folder / "predictions.csv"), theirs, progress=progress
            ).to_dict()
    write_output(to_json(result), folder / "reproduce.json")
    TextOutput(format_=format_).write(result, table=_table(result, found.figures))
    if theirs is None:
        agree = whole and all(one["agrees"] for one in figures.values())
    else:
        agree = not result["answers"]["differing"]
    if not agree:
        sys.exit(1)


def _named(published: "Predictions") -> "Predictions":
    """Published answers without names of photos are in the order of the table."""
    if "IMG_ID" in published.ids:
        return replace(published, ids={"id": published.ids["IMG_ID"]})
    if published.ids:
        return published
    print(f"geoclip: {published.name} names no photos: it is taken to be in the table's order", file=sys.stderr)
    return replace(published, ids={"idx": [str(row) for row in range(len(published))]})


def _table(result: dict[str, Any], found: dict[str, Any]) -> str:
    crops = found["settings"]["crops"]
    lines = [
        f"{found['model']} on {found['data']}: {found['n']:,} photos, {crops} crop{'s' * (crops > 1)}",
        "",
        f"{'':16}{'here':>9}{'published':>12}{'std. error':>12}",
    ]
    for key, one in result["figures"].items():
        verdict = "within three standard errors" if one["agrees"] else "DIFFERS"
        cells = f"{one['here']:>7.2f} %{one['published']:>10.2f} %{one['standard_error']:>12.2f}"
        lines.append(f"within {key + ' km':<9}{cells}   {verdict}")
    if not result["labels_are_the_benchmarks"]:
        lines.append("these are not the benchmark's labels: the published figures say nothing about them")
    answers = result["answers"]
    if answers is None:
        return "\n".join([*lines, "", "for a check photo by photo give the published answers: --published FILE"]) + "\n"
    within = ", ".join(f"{value:.2f} % within {key} km" for key, value in answers["answers_within_km"].items())
    only = f"{answers['only_here']:,} only here, {answers['only_published']:,} only published"
    verdict = (
        "no figure differs by more than chance (McNemar and paired bootstrap, Holm, 5 %)"
        if answers["within_sampling_error"]
        else f"MORE THAN CHANCE in {', '.join(answers['differing'])}"
    )
    lines += [
        "",
        f"the same answer for {answers['same_answer']:.2f} % of {answers['n']:,} photos ({only})",
        f"answers apart: median {answers['answers_median_km']:,.1f} km; {within}",
        verdict,
    ]
    return "\n".join(lines) + "\n"
