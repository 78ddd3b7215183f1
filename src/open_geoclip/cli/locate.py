"""``geoclip locate``: estimate where photos were taken."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
)
from open_geoclip.cli._times import hours_of
from open_geoclip.errors import ImageError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.search.answer import Answer
    from open_geoclip.search.query import Query

__all__ = ["locate"]

_AREA = Parameter(allow_leading_hyphen=True)


def locate(
    images: Photos,
    /,
    *,
    options: ImageModelOptions = ImageModelOptions(),
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

    chosen = choose_format(format_, output, ANSWER_FORMATS)
    area = Area.parse(within or (), not_within or ())  # before the model is loaded: it may be an error
    settings = AnswerSettings(decode, merge_km, radius_km, prior)
    locator = options.load(answers=settings, refine=refine, crops=crops).within(area)
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
