"""``geoclip locate``: where photos were taken."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from open_geoclip.cli._answers import AnswerFormat, chosen, draw, in_detail, write
from open_geoclip.cli._shared import load_locator, progress_bar, show_log
from open_geoclip.cli._times import hours_of
from open_geoclip.errors import ImageError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.search.locator import Locator
    from open_geoclip.search.query import Query

__all__ = ["locate"]


def locate(
    images: list[Path],
    /,
    *,
    model: str = "earth",
    backbone: str | None = None,
    gallery: Path | None = None,
    within: Annotated[list[str] | None, Parameter(allow_leading_hyphen=True)] = None,
    not_within: Annotated[list[str] | None, Parameter(allow_leading_hyphen=True)] = None,
    together: bool = False,
    trip: bool = False,
    times: Path | None = None,
    speed_kmh: float = 900.0,
    refine: bool = False,
    crops: Literal[1, 10] = 1,
    top_k: int = 5,
    format_: Annotated[AnswerFormat | None, Parameter(name="--format")] = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    detail: bool | None = None,
    map_: Annotated[Path | None, Parameter(name="--map")] = None,
    decode: Literal["mass", "distance", "geoscore", "max"] | None = None,
    merge_km: float | None = None,
    radius_km: float | None = None,
    prior: str = "gallery",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    engine: Literal["auto", "torch", "openvino"] = "auto",
    batch_size: int = 8,
    max_pixels: int | None = None,
    text: str | None = None,
    text_weight: float = 0.5,
) -> None:
    """Say where photos were taken.

    A photo that cannot be read is reported, the others are done, and the exit status is 1.

    Args:
        images: Pictures, or folders that are searched for pictures.
        model: earth (embedded, for views from orbit), geoclip (released, for photos), hub:org/repo@revision or
            dir:/folder.
        backbone: Where the image backbone is, such as dir:/clip; the one that the model names when not given.
        gallery: Places to choose from: CSV, GeoJSON or Parquet; the model's own when not given.
        within: Where it can only have been: a country (France), a box south,west,north,east (35,-10,60,30), a circle
            lat,lon,radius (48.86,2.29,50km) or a GeoJSON file. Given several times, any of them.
        not_within: Where it cannot have been, written as for --within.
        together: All pictures show one place: one answer for all.
        trip: All pictures are of one trip: one answer each, none faster than --speed-kmh from the one before.
        times: For --trip: CSV with the columns image and time (2026-05-01T14:03:00, perhaps with a zone), instead of
            what the cameras wrote down (EXIF).
        speed_kmh: For --trip: the most that is travelled; 900 is an airliner.
        refine: Look for answers between the places of the gallery too.
        crops: 1, or 10 as in the paper's evaluation: slower by ten.
        top_k: Candidates a picture.
        format_: A table to read, or a file: JSON, CSV, GeoJSON, KML (or KMZ, with pictures), Parquet, or HTML, a
            report that works from disk. When not given, what the name of --output ends in, else a table.
        output: A file to write instead of stdout.
        detail: Say the regions that hold 50 and 90 % and where the probability lies; when not given, in the files that
            show them on a map (GeoJSON, KML, KMZ, HTML).
        map_: A PNG to draw into: probabilities and candidates, for one picture or each; for many, candidates alone.
        decode: What the best answer is best for: most probability within a radius, least expected distance, best
            expected GeoScore, or the gallery's best place. When not given, mass for a calibrated model, else max.
        merge_km: Candidates are further apart than this; 0 merges nothing.
        radius_km: Of --decode mass; that of merging when not given.
        prior: What is known beforehand: gallery, even (all land alike), population, or a file of places and weights.
        dtype: What the backbone computes in; auto is bfloat16 where the processor has it.
        engine: What runs the image backbone; auto is openvino where the extra fast is installed.
        batch_size: Pictures the model sees at once.
        max_pixels: Larger pictures are refused before they are decoded (JPEGs may have four times as many); about 89
            million when not given.
        text: What is known beside the pictures, in words, such as "a hot desert".
        text_weight: How much the text counts against the picture: 0 is the picture alone, 1 the text alone.
    """
    show_log()
    if together and trip:
        raise SettingsError("--together is for one place, --trip for several: give one of the two")
    if text is not None and (together or trip):
        raise SettingsError("--text goes beside pictures that are located alone")
    if times is not None and not trip:
        raise SettingsError("--times is for --trip")
    from open_geoclip._version import __version__
    from open_geoclip.geo.areas import Area
    from open_geoclip.images import find_images
    from open_geoclip.search.answer import Answer
    from open_geoclip.search.describe import AnswerSettings

    format_ = chosen(format_, output)
    area = Area.parse(within or (), not_within or ())  # before anything slow: it may be refused
    locator = load_locator(
        model,
        backbone=backbone,
        gallery=gallery,
        dtype=dtype,
        engine=engine,
        batch_size=batch_size,
        max_pixels=max_pixels,
        answers=AnswerSettings(decode, merge_km, radius_km, prior),
        refine=refine,
        crops=crops,
    ).within(area)
    files: list[Path] = []
    answers: list[Answer] = []
    for path in images:
        try:
            files += find_images([path])
        except ImageError as error:
            answers.append(Answer(error.name, locator.model_name, "", __version__, error=error.reason))
    interrupted, posterior, detail = False, None, in_detail(detail, format_)
    try:
        with progress_bar("locating") as progress:
            if together or trip:
                hours = hours_of(files, times) if trip else None
                queries = _as_one(locator, files, hours, speed_kmh)
            else:
                queries = locator.query_images(files, text=text, text_weight=text_weight)
            for done, (answer, of_this) in enumerate(locator.answer(queries, top_k, detail=detail), 1):
                answers.append(answer)
                posterior = of_this or posterior
                progress(done, len(files))
    except KeyboardInterrupt:  # what was found so far is not thrown away
        interrupted = True
        print(f"geoclip: interrupted; answers for {len(answers):,} of {len(files):,} pictures", file=sys.stderr)
    for answer in answers:
        if answer.error is not None:
            print(f"geoclip: {answer.image}: {answer.error}", file=sys.stderr)
    write(answers, format_, output, max_pixels=locator.encoding.max_pixels)
    if map_ is not None:
        draw(
            map_,
            answers,
            posterior,
            together=files if together else (),
            max_pixels=locator.encoding.max_pixels,
        )
    if interrupted:
        sys.exit(130)
    if any(answer.error is not None for answer in answers):
        sys.exit(1)


def _as_one(locator: "Locator", files: list[Path], hours: "list[float] | None", speed_kmh: float) -> "Iterator[Query]":
    """Yield the query of images of one place or, where there are times, of one trip; none if there is no image."""
    if files and hours is None:
        yield locator.query_together(files)
    elif files and hours is not None:
        yield locator.query_trip(files, hours, speed_kmh=speed_kmh)
