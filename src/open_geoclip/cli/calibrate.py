"""``geoclip calibrate``: fit the calibration of a model on photos with known places."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from open_geoclip.cli._options import ImageModelOptions
from open_geoclip.cli._output import TextFormat, TextOutput, progress_bar, resumable_progress, to_json, write_output
from open_geoclip.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.evaluation.calibrate import CalibrationReport
    from open_geoclip.search.locator import Locator

__all__ = ["calibrate"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class _CalibratedModelOptions(ImageModelOptions):
    model: Annotated[str, Parameter(help="The model to calibrate, such as geoclip (released, for photos).")] = "geoclip"


def calibrate(
    source: str | None = None,
    /,
    *,
    options: _CalibratedModelOptions = _CalibratedModelOptions(),
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    format_: TextFormat = "table",
    buffer_km: float = 1.0,
    load: Path | None = None,
    remove: bool = False,
    index: Path | None = None,
) -> None:
    """Fit the calibration of a model on a few hundred photos with known places, and use it from then on.

    Prints how well probabilities hold on photos that were left out, before and after. Every command that answers with
    these weights and this gallery uses the calibration. The same command resumes an interrupted run.

    Args:
        source: Photos as geoclip train takes them: a folder of photos with GPS, a table, tar shards, hf:NAME.
        output: Folder for report.md, calibration.json and the embeddings; default: calibration-NAME.
        buffer_km: Photos within this distance, or of one group, are never on two sides of the cross-validation.
        load: Use a calibration.json, such as a colleague's, instead of fitting one.
        remove: Remove the calibration that was kept.
        index: Folder of geoclip index build: fit instead how much its photos count for this model, and store it there.
    """
    if index is not None:
        if source is None or load is not None or remove or output is not None:
            raise SettingsError("--index is for SOURCE alone: what is fitted is stored in the folder of the index")
        _fit_index(source, index, options, TextOutput(format_=format_), buffer_km)
        return
    if (source is not None) + (load is not None) + remove != 1:
        raise SettingsError("give photos to fit on, or --load FILE, or --remove")
    if source is not None:
        _fit(source, options, output, TextOutput(format_=format_), buffer_km)
        return
    from open_geoclip.search.calibration import Calibration
    from open_geoclip.weights.calibrations import UserCalibration, find_calibration

    weights, gallery = _fingerprints(options)
    if load is not None:
        loaded = UserCalibration.from_file(load)
        loaded.check(weights, gallery)
        Calibration.from_dict(loaded.calibration)
        loaded.save()
        print(f"geoclip: {options.name} uses the calibration of {load}", file=sys.stderr)
        return
    found = find_calibration(weights, gallery)
    if found is None:
        raise SettingsError(f"{options.name} has no calibration of your own over this gallery")
    found.path.unlink()
    print(f"geoclip: the calibration of {options.name} is removed", file=sys.stderr)


def _fingerprints(options: ImageModelOptions) -> tuple[str, str]:
    """Return the hashes of the weights and of the gallery; no network is built."""
    from open_geoclip.search.gallery import Gallery
    from open_geoclip.weights.load import load_release
    from open_geoclip.weights.release import with_merged_tokens

    release = with_merged_tokens(load_release(options.name), options.merge_tokens)
    file = options.gallery or release.gallery
    if file is None:
        raise SettingsError(f"{options.name} has no gallery of its own: give one with --gallery")
    return release.fingerprint, Gallery.from_file(file).fingerprint


def _fit(source: str, options: ImageModelOptions, output: Path | None, text: TextOutput, buffer_km: float) -> None:
    from open_geoclip.data.sources import open_source
    from open_geoclip.evaluation import calibrate as evaluation
    from open_geoclip.evaluation.labelled import label_source

    labelled = label_source(open_source(source))
    evaluation.check_size(labelled)
    for note in labelled.notes:
        print(f"geoclip: {note}", file=sys.stderr)
    folder = Path(f"calibration-{labelled.name}") if output is None else output
    locator = options.load(calibration=options.shipped_calibration())
    with resumable_progress("encoding", folder) as progress:
        report = evaluation.calibrate(locator, labelled, folder, buffer_km=buffer_km, progress=progress)
    for image, reason in report.broken:
        print(f"geoclip: {image}: {reason}", file=sys.stderr)
    report.result.save()
    write_output(report.result.to_json(), folder / "calibration.json")
    table = _table(report)
    figures = {"photos": report.n_photos, "clusters": report.n_clusters, "before": report.before, "after": report.after}
    write_output(to_json(figures), folder / "report.json")
    write_output(_markdown(report, locator, _draw(report, folder)), folder / "report.md")
    text.write(figures, table=f"{table}\nthe calibration is used from now on; report and calibration.json: {folder}\n")


def _fit_index(source: str, folder: Path, options: ImageModelOptions, text: TextOutput, buffer_km: float) -> None:
    from open_geoclip.data.sources import open_source
    from open_geoclip.evaluation.evidence import fit_index
    from open_geoclip.evaluation.labelled import label_source
    from open_geoclip.search.photo_index import PhotoIndex

    index, labelled = PhotoIndex.open(folder), label_source(open_source(source))
    with progress_bar("encoding") as progress:
        found = fit_index(options.load(), index, labelled, buffer_km=buffer_km, progress=progress)
    rows = "".join(f"{key:>18}  {value}\n" for key, value in found["settings"].items())
    table = f"{rows}fitted and calibrated on {found['n_images']:,} photos; stored in {folder}\n"
    text.write({"settings": found["settings"], "n_images": found["n_images"]}, table=table)


def _rows(report: "CalibrationReport") -> list[tuple[str, str, str]]:
    """Return each figure's name, and its value before and after."""

    def both(name: str, value: Any) -> tuple[str, str, str]:
        return name, value(report.before), value(report.after)

    def circle(level: str) -> Any:
        def value(found: dict[str, Any]) -> str:
            low, high = found["circle_interval"][level]
            return f"{found['circle_holds'][level]:.1f} % ({low:.1f} to {high:.1f})"

        return value

    def sure(found: dict[str, Any]) -> str:
        if found["sure"] is None:
            return "not calibrated"
        right = found["sure"]["right_when_sure"]
        return f"{found['sure']['share']:.1f} %" + ("" if right is None else f", {right:.1f} % right")

    rows = [both(f"{level} % circles hold the true place", circle(level)) for level in ("50", "90")]
    rows += [
        both(
            f"{level} % circles, median radius",
            lambda found, level=level: f"{found['circle_median_km'][level]:,.0f} km",
        )
        for level in ("50", "90")
    ]
    rows += [
        both(f"calibration error within {km} km", lambda found, km=km: f"{100 * found['reliability'][km]['ece']:.1f} %")
        for km in report.after["reliability"]
    ]
    rows.append(both("negative log-likelihood, nats per km²", lambda found: f"{found['nats_per_km2']:.2f}"))
    rows.append(both("sure answers", sure))
    return rows


def _table(report: "CalibrationReport") -> str:
    lines = [
        f"{report.n_photos:,} photos of {report.n_clusters:,} places or groups; after: on photos that were left out",
        "",
        f"{'':40}{'before':>26}{'after':>26}",
        *(f"{name:40}{before:>26}{after:>26}" for name, before, after in _rows(report)),
    ]
    return "\n".join(lines) + "\n"


def _markdown(report: "CalibrationReport", locator: "Locator", figure: str | None) -> str:
    result = report.result
    lines = [
        f"# Calibration of {result.model}",
        "",
        f"Fitted on {report.n_photos:,} {result.calibration['fitted_on']}, of {report.n_clusters:,} places or groups. "
        "After: five-fold cross-validation by place",
        "and group. Intervals of 95 % resample places and groups. It holds for photos like these.",
        "",
        "| | before | after |",
        "| --- | ---: | ---: |",
        *(f"| {' | '.join(row)} |" for row in _rows(report)),
        "",
    ]
    lines += [f"![Reliability]({figure})", ""] if figure else []
    lines += [
        f"- gallery: {result.gallery}, {len(locator.gallery):,} places, sha256 {result.gallery_sha256}",
        f"- weights: sha256 {result.weights_sha256}",
    ]
    return "\n".join(lines) + "\n"


def _draw(report: "CalibrationReport", folder: Path) -> str | None:
    from open_geoclip.export.figures import draw_reliability

    try:
        draw_reliability(folder / "reliability.png", report.after["reliability"])
    except MissingExtraError as error:
        print(f"geoclip: the report has no figure: {error}", file=sys.stderr)
        return None
    return "reliability.png"
