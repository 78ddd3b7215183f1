"""``geoclip locate``: estimate where photos were taken."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._answers import draw_answers, has_detail, write_answers
from open_geoclip.cli._options import Crops, Detail, ImageModelOptions, Map, Output, Photos
from open_geoclip.cli._output import (
    ANSWER_FORMATS,
    AnswerFormat,
    choose_format,
    collect,
    exit_if_failed,
    print_errors,
    progress_bar,
)
from open_geoclip.cli._times import hours_of
from open_geoclip.errors import ImageError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.search.answer import Answer
    from open_geoclip.search.locator import Locator
    from open_geoclip.search.query import Query

__all__ = ["locate"]

_AREA = Parameter(allow_leading_hyphen=True)


@Parameter(name="*", group="Jobs (when -o names a folder)")
@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job runs."""

    resume: Annotated[bool, Parameter(help="Continue in a folder that holds results.", negative=())] = False
    retry_errors: Annotated[
        bool, Parameter(help="Continue, and locate photos again whose rows have an error.", negative=())
    ] = False
    shard: Annotated[
        str, Parameter(help="I/N: do the I-th of N shares of the photos; run the others anywhere, at any time.")
    ] = "1/1"
    part_size: Annotated[int, Parameter(help="Photos per file.")] = 1000
    photo_timeout_s: Annotated[float, Parameter(help="A photo that takes longer to decode is an error.")] = 60.0
    workers: Annotated[int | None, Parameter(help="Processes that decode; default: one per processor core.")] = None


def locate(
    images: Photos,
    /,
    *,
    options: ImageModelOptions = ImageModelOptions(),
    job: JobOptions = JobOptions(),
    within: Annotated[list[str] | None, _AREA] = None,
    not_within: Annotated[list[str] | None, _AREA] = None,
    together: bool = False,
    trip: bool = False,
    times: Path | None = None,
    speed_kmh: float = 900.0,
    text: str | None = None,
    text_weight: float = 0.5,
    refine: bool = False,
    crops: Crops = 1,
    top_k: int = 5,
    format_: AnswerFormat = None,
    output: Output = None,
    detail: Detail = None,
    map_: Map = None,
    decode: Literal["mass", "distance", "geoscore", "max"] | None = None,
    merge_km: float | None = None,
    radius_km: float | None = None,
    prior: str = "gallery",
) -> None:
    """Estimate where photos were taken.

    Exit status 1 if a photo cannot be read; the others are located.

    With -o FOLDER (a name without an ending) it is a job: one SOURCE, which may also be a table of paths, tar shards
    (shards/{000..012}.tar) or hf:NAME, is located into Parquet files. It can be interrupted, and continued with
    --resume. See geoclip results.

    Args:
        within: Where the photos were taken: a country (France), a box south,west,north,east (35,-10,60,30), a circle
            lat,lon,radius (48.86,2.29,50km) or a GeoJSON file. Several are united.
        not_within: Where they were not taken, written like --within.
        together: All images show one place: one answer for all.
        trip: The images are of one trip: one answer each, consistent with --speed-kmh.
        times: For --trip: CSV with columns image and time (2026-05-01T14:03:00, with or without a time zone); default:
            EXIF times.
        speed_kmh: For --trip: the highest speed of travel; 900 is an airliner.
        text: A description that all images share, such as "a hot desert".
        text_weight: Weight of the text: 0 is the image alone, 1 the text alone.
        refine: Also search between the places of the gallery.
        top_k: Candidates per image.
        decode: What the best answer optimises: probability within a radius, expected distance, expected GeoScore, or
            the gallery's best place. Default: mass for a calibrated model, else max.
        merge_km: Least distance between candidates; 0 merges nothing.
        radius_km: For --decode mass; default: that of --merge-km.
        prior: gallery, even (all land alike), population, or a file of places and weights.
    """
    if together and trip:
        raise SettingsError("--together is for one place, --trip for several: give one of the two")
    if text is not None and (together or trip):
        raise SettingsError("--text is for images that are located alone, not with --together or --trip")
    if times is not None and not trip:
        raise SettingsError("--times is for --trip")
    from open_geoclip._version import __version__
    from open_geoclip.geo.areas import Area
    from open_geoclip.images import find_images
    from open_geoclip.search.answer import Answer
    from open_geoclip.search.describe import AnswerSettings

    is_job = output is not None and format_ is None and (output.is_dir() or not output.suffix)
    if is_job and (together or trip or map_ is not None):
        raise SettingsError("--together, --trip and --map are for a file or stdout, not for a folder of results")
    if not is_job and job != JobOptions():
        raise SettingsError("--resume and the other options of jobs need -o FOLDER, a name without an ending")
    chosen = "job" if is_job else choose_format(format_, output, ANSWER_FORMATS)
    area = Area.parse(within or (), not_within or ())  # before the model is loaded: it may be an error
    settings = AnswerSettings(decode, merge_km, radius_km, prior)
    locator = options.load(answers=settings, refine=refine, crops=crops).within(area)
    if is_job:
        assert output is not None
        limits = {"within": within or [], "not_within": not_within or []}
        _run_job(images, output, job, locator, top_k, text, text_weight, bool(detail), limits)
        return
    files: list[Path] = []
    failed: list[Answer] = []
    for path in images:
        try:
            files += find_images([path])
        except ImageError as error:
            failed.append(Answer(error.name, locator.model_name, "", __version__, error=error.reason))

    def queries() -> Iterator["Query"]:
        if files and together:
            yield locator.query_together(files)
        elif files and trip:
            yield locator.query_trip(files, hours_of(files, times), speed_kmh=speed_kmh)
        elif files:
            yield from locator.query_images(files, text=text, text_weight=text_weight)

    posterior = None

    def located() -> Iterator["Answer"]:
        nonlocal posterior
        for answer, of_answer in locator.answer(queries(), top_k, detail=has_detail(detail, chosen)):
            posterior = of_answer or posterior
            yield answer

    found, interrupted = collect(located(), len(files), "locating")
    answers = failed + found
    errors = [answer.to_dict() for answer in answers if answer.error is not None]
    print_errors(errors)
    max_pixels = locator.encoding.max_pixels
    write_answers(answers, chosen, output, max_pixels=max_pixels)
    if map_ is not None:
        draw_answers(map_, answers, posterior, together=files if together else (), max_pixels=max_pixels)
    exit_if_failed(errors, interrupted=interrupted)


def _run_job(
    images: list[Path],
    folder: Path,
    job: JobOptions,
    locator: "Locator",
    top_k: int,
    text: str | None,
    text_weight: float,
    detail: bool,
    limits: dict[str, Any],
) -> None:
    from open_geoclip.data.sources import open_source
    from open_geoclip.scale.jobs import JobSettings, run_job

    if len(images) != 1:
        raise SettingsError(
            f"-o {folder} is a job, which has one source (a folder, a table, shards), not {len(images)}"
        )
    number, slash, count = job.shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise SettingsError(f"--shard: I/N, such as 3/16, not {job.shard!r}")
    settings = JobSettings(**{**asdict(job), "shard": (int(number), int(count))})
    source = open_source(str(images[0]), places=False)
    with progress_bar("locating", log_interval_s=30) as progress:
        report = run_job(
            locator,
            source,
            folder,
            settings,
            top_k=top_k,
            text=text,
            text_weight=text_weight,
            detail=detail,
            options=limits,
            progress=progress,
        )
    before = f"; {report.done_before:,} were done before" if report.done_before else ""
    repeated = f"; {report.duplicates:,} named twice, done once" if report.duplicates else ""
    print(f"geoclip: {folder}: {report.located:,} located, {report.failed:,} failed{before}{repeated}", file=sys.stderr)
    if report.failed:
        sys.exit(1)
