"""``geoclip locate``: estimate where photos were taken."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from cyclopts import Parameter

from open_geoclip.cli._answers import draw_answers, print_written, write_answers
from open_geoclip.cli._options import Crops, ImageModelOptions, Map, Photos, RayOptions, photo_files
from open_geoclip.cli._output import DetailOutput, collect, exit_if_failed, print_errors, progress_bar
from open_geoclip.cli._trips import TripOptions
from open_geoclip.errors import SettingsError

if TYPE_CHECKING:
    from open_geoclip.data.photos import PhotoSource
    from open_geoclip.geo.areas import Area
    from open_geoclip.images import ImageSource
    from open_geoclip.scale.jobs import JobSettings
    from open_geoclip.scale.postgis import PostGIS
    from open_geoclip.scale.results import Location
    from open_geoclip.search.answer import Answer
    from open_geoclip.search.locator import Locator
    from open_geoclip.search.query import Query

__all__ = ["locate"]

_AREA = Parameter(allow_leading_hyphen=True)


@Parameter(name="*", group="Jobs (when -o names a folder)")
@dataclass(frozen=True, kw_only=True)
class JobOptions(RayOptions):
    """How a job runs."""

    resume: Annotated[bool, Parameter(help="Continue in a folder that contains results.", negative=())] = False
    retry_errors: Annotated[
        bool, Parameter(help="Continue, and locate photos again whose rows have an error.", negative=())
    ] = False
    shard: Annotated[
        str, Parameter(help="I/N: do the I-th of N shares of the photos; run the others anywhere, at any time.")
    ] = "1/1"
    part_size: Annotated[int, Parameter(help="Photos per file, or fewer: one is written every five minutes.")] = 1000
    photo_timeout_s: Annotated[float, Parameter(help="A photo that takes longer to decode is an error.")] = 60.0
    workers: Annotated[int | None, Parameter(help="Processes that decode; default: one per processor core.")] = None

    def prepare(self, images: list[Path], folder: Path) -> Callable[..., None]:
        """Return a function that runs the job with a locator; what can be refused is refused before one is loaded."""
        from open_geoclip.data.remote import as_path
        from open_geoclip.data.sources import open_source
        from open_geoclip.images import SUFFIXES
        from open_geoclip.scale.jobs import JobSettings

        number, slash, count = self.shard.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise SettingsError(f"--shard: I/N, such as 3/16, not {self.shard!r}")
        if len(images) != 1 or (images[0].suffix.lower() in SUFFIXES and not images[0].is_dir()):
            raise SettingsError(
                f"-o {folder} has no ending such as .json, so it is the folder of a job, which has one source: a "
                "folder of photos, a table, shards or hf:NAME. Add an ending, or name the folder of the photos"
            )
        actors = self.actors()
        if self.ray is not None and self.workers is not None:
            raise SettingsError("--workers is not for --ray, which decodes on all processor cores")
        of_job = {name: value for name, value in asdict(self).items() if not name.startswith("ray")}
        settings = JobSettings(**{**of_job, "shard": (int(number), int(count))})
        source = open_source(str(images[0]), places=False)
        return partial(_run_job, source, as_path(folder), settings, address=self.ray, actors=actors)


@dataclass(frozen=True, kw_only=True)
class LocateOutput(DetailOutput):
    """Options of the output, which may also be a folder, that of a job, or a database."""

    takes_folder: ClassVar[bool] = True
    takes_database: ClassVar[bool] = True


def locate(
    images: Photos,
    /,
    *,
    options: ImageModelOptions = ImageModelOptions(),
    job: JobOptions = JobOptions(),
    within: Annotated[list[str] | None, _AREA] = None,
    not_within: Annotated[list[str] | None, _AREA] = None,
    together: bool = False,
    trip: TripOptions = TripOptions(),
    text: str | None = None,
    text_weight: float = 0.5,
    refine: bool = False,
    crops: Crops = 1,
    fast_decode: bool = False,
    top_k: int = 5,
    output: LocateOutput = LocateOutput(),
    map_: Map = None,
    decode: Literal["mass", "distance", "geoscore", "max"] | None = None,
    merge_km: float | None = None,
    radius_km: float | None = None,
    prior: str = "gallery",
    explain: bool = False,
    index: list[Path] | None = None,
    exclude_group: list[str] | None = None,
) -> None:
    """Estimate where photos were taken.

    Exit status 1 if a photo cannot be read; the others are located.

    With -o FOLDER (a name without an ending) it is a job: one SOURCE, which may also be a table of paths, tar shards
    (shards/{000..012}.tar), hf:NAME or s3://BUCKET/FOLDER, is located into Parquet files; FOLDER too may be on an
    object store. It can be interrupted, and continued with --resume. See geoclip results.

    With -o postgresql://USER@HOST/DATABASE answers are written to a database with PostGIS while photos are located.

    Args:
        within: Where the photos were taken: a country (France), a box south,west,north,east (35,-10,60,30), a circle
            lat,lon,radius (48.86,2.29,50km) or a GeoJSON file. Several are united.
        not_within: Where they were not taken, written like --within.
        together: All images show one place: one answer for all.
        text: A description that all images share, such as "a hot desert".
        text_weight: Weight of the text: 0 is the image alone, 1 the text alone.
        refine: Also search between the places of the gallery.
        fast_decode: Decode large JPEGs at a reduced scale: about twice as fast, answers differ slightly.
        top_k: Candidates per image.
        decode: What the best answer optimises: probability within a radius, expected distance, expected GeoScore, or
            the gallery's best place. Default: mass for a calibrated model, else max.
        merge_km: Least distance between candidates; 0 merges nothing.
        radius_km: For --decode mass; default: that of --merge-km.
        prior: gallery, even (all land alike), population, or a file of places and weights.
        explain: In JSON and HTML reports, show what in each photo speaks for its first candidate; see geoclip explain.
        index: Folder of geoclip index build: photos that look alike count as evidence and stand in the answer. Can be
            given several times.
        exclude_group: No photo of this group is found in an index; can be given several times.
    """
    if together and trip.trip:
        raise SettingsError("--together is for one place, --trip for several: give one of the two")
    if text is not None and (together or trip.trip):
        raise SettingsError("--text is for images that are located separately, not with --together or --trip")
    if trip != TripOptions():
        trip.check()
    if explain and (together or output.format not in ("json", "html")):
        raise SettingsError(
            "--explain is for JSON and HTML reports (-o report.html) of photos that are located separately"
        )
    if index and (text is not None or together or trip.trip):
        raise SettingsError("--index is for images that are located separately, not with --text, --together or --trip")
    if exclude_group and not index:
        raise SettingsError("--exclude-group is for --index")
    from open_geoclip._version import __version__
    from open_geoclip.geo.areas import Area
    from open_geoclip.search.answer import Answer
    from open_geoclip.search.describe import AnswerSettings
    from open_geoclip.search.photo_index import PhotoIndex

    is_job = output.format == "folder"
    if output.format in ("folder", "postgis") and (together or trip.trip or map_ is not None):
        raise SettingsError("--together, --trip and --map are for a file or stdout, not for a folder or a database")
    if not is_job and job != JobOptions():
        raise SettingsError("--resume and the other options of jobs need -o FOLDER, a name without an ending")
    run_job = job.prepare(images, output.path) if is_job and output.path is not None else None
    area = Area.parse(within or (), not_within or ())  # before the model is loaded: it may be an error
    database = None
    if isinstance(output.target, str):
        from open_geoclip.scale.postgis import PostGIS

        database = PostGIS(output.target)
    settings = AnswerSettings(decode, merge_km, radius_km, prior)
    for folder in index or ():
        PhotoIndex.open(folder)  # an error is one before the model is loaded
    groups = exclude_group or []
    answering: dict[str, Any] = {"answers": settings, "refine": refine, "crops": crops, "fast_decode": fast_decode}
    if options.dtype == "int8":
        answering["calibration_images"] = _MixedImages(images, is_job=is_job)
    load = partial(_load, options, index or [], groups, area, **answering)
    locator = load()
    limits: dict[str, Any] = {"within": within or [], "not_within": not_within or []}
    if index:
        limits["exclude_group"] = groups
    if options.dtype != "auto":
        limits["dtype"] = options.dtype
    wanted: dict[str, Any] = {"top_k": top_k, "text": text, "text_weight": text_weight, "options": limits}
    if run_job is not None:
        run_job(locator, load, detail=bool(output.detail), **wanted)
        return
    files, failed = photo_files(images, unique=False)
    if database is not None:
        _fill_database(database, locator, files, failed, detail=output.has_detail, **wanted)
        return
    queries: Iterable[Query] = ()
    if files and together:
        queries = [locator.query_together(files)]
    elif files and trip.trip:
        queries = [trip.query(locator, files)]
    elif files:
        queries = locator.query_images(files, text=text, text_weight=text_weight)
    posterior = None

    def located() -> Iterator["Answer"]:
        nonlocal posterior
        for answer, of_answer in locator.answer(queries, top_k, detail=output.has_detail):
            posterior = of_answer or posterior
            yield answer

    found, interrupted = collect(located(), len(files), "locating")
    made_by = (locator.model_name, "", __version__)
    answers = [Answer(one["image"], *made_by, error=one["error"]) for one in failed] + found
    errors = [answer.to_dict() for answer in answers if answer.error is not None]
    print_errors(errors)
    max_pixels = locator.encoding.max_pixels
    write_answers(answers, output, max_pixels=max_pixels, explain=locator.explain if explain else None)
    if map_ is not None:
        draw_answers(map_, answers, posterior, together=files if together else (), max_pixels=max_pixels)
    exit_if_failed(errors, interrupted=interrupted)


@dataclass(frozen=True)
class _MixedImages:
    """The images to locate, mixed: int8 is quantised on the first ones, where it was not before."""

    images: list[Path]
    is_job: bool

    def __iter__(self) -> Iterator["ImageSource"]:
        import numpy as np

        from open_geoclip.data.sources import open_source

        if self.is_job:
            yield from (photo.image for photo in open_source(str(self.images[0]), places=False).shuffled(0))
        else:
            files = photo_files(self.images, unique=False)[0]
            yield from map(files.__getitem__, np.random.default_rng(0).permutation(len(files)))


def _load(
    options: ImageModelOptions, index: list[Path], exclude_groups: list[str], area: "Area", **settings: Any
) -> "Locator":
    """Load the locator with its photo indexes; processes of Ray call it, too."""
    from open_geoclip.search.photo_index import PhotoIndex

    locator = options.load(area, **settings)
    if not index:
        return locator
    return locator.with_photo_index(*map(PhotoIndex.open, index), exclude_groups=exclude_groups)


def _run_job(
    source: "PhotoSource",
    folder: "Location",
    settings: "JobSettings",
    locator: "Locator",
    load: Callable[..., "Locator"],
    *,
    address: str | None,
    actors: dict[str, Any],
    **options: Any,
) -> None:
    from open_geoclip.scale.jobs import run_job
    from open_geoclip.scale.ray import RaySettings, connect

    ray = None if address is None else RaySettings(load, **actors)
    try:
        with (
            nullcontext() if address is None else redirect_stdout(sys.stderr),  # Ray prints warnings to stdout
            nullcontext() if address is None else connect(address),
            progress_bar("locating", log_interval_s=30) as progress,
        ):
            report = run_job(locator, source, folder, settings, ray=ray, progress=progress, **options)
    except KeyboardInterrupt:
        print(f"geoclip: interrupted; {folder} has what is finished, --resume continues from there", file=sys.stderr)
        sys.exit(130)
    before = f"; {report.done_before:,} were done before" if report.done_before else ""
    repeated = f"; {report.duplicates:,} named twice, done once" if report.duplicates else ""
    print_written(folder, report.located, report.failed, before + repeated)
    if report.failed:
        print(f"geoclip: geoclip results {folder} says why photos failed", file=sys.stderr)
        sys.exit(1)


def _fill_database(
    database: "PostGIS",
    locator: "Locator",
    files: list[Path],
    failed: list[dict[str, Any]],
    *,
    detail: bool,
    options: dict[str, Any],
    **wanted: Any,
) -> None:
    """Locate photos and store the answers batch by batch; what is finished is stored also after Ctrl-C."""
    from open_geoclip.scale.jobs import describe_job

    interrupted = False

    def records() -> Iterator[dict[str, Any]]:
        nonlocal interrupted
        yield from failed
        try:
            with progress_bar("locating", log_interval_s=30) as progress:
                for done, answer in enumerate(locator.stream(files, detail=detail, **wanted), 1):
                    progress(done, len(files))
                    yield answer.to_dict()
        except KeyboardInterrupt:
            interrupted = True

    def reported() -> Iterator[dict[str, Any]]:
        for record in records():
            print_errors([record])
            yield record

    with database:
        manifest = describe_job(locator, "", detail=detail, options=options, **wanted)
        n_located, n_failed = database.write(reported(), manifest, batch_size=100)
    print_written(database.name, n_located, n_failed)
    if interrupted:
        print("geoclip: interrupted; run the command again for the other photos", file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if n_failed else 0)
