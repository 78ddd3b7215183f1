"""``geoclip locate``: where photos were taken."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from open_geoclip.cli._shared import progress_bar, show_log, write_output
from open_geoclip.errors import ImageError

if TYPE_CHECKING:
    from open_geoclip.search.locator import Answer, Locator

__all__ = ["FORMATS", "locate"]


def locate(
    images: list[Path],
    /,
    *,
    model: str = "earth",
    backbone: str | None = None,
    gallery: Path | None = None,
    top_k: int = 5,
    format_: Annotated[Literal["table", "json", "csv"], Parameter(name="--format")] = "table",
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    map_: Annotated[Path | None, Parameter(name="--map")] = None,
    decode: Literal["mass", "distance", "geoscore", "max"] = "mass",
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
        top_k: Candidates a picture.
        format_: A table to read, JSON or CSV.
        output: A file to write instead of stdout.
        map_: A PNG to draw into: probabilities and candidates, for one picture or each; for many, candidates alone.
        decode: What the best answer is best for: most probability within a radius, least expected distance, best
            expected GeoScore, or the gallery's best place.
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
    from open_geoclip._version import __version__
    from open_geoclip.images import MAX_PIXELS, find_images
    from open_geoclip.search.locator import Answer, AnswerSettings, Locator

    with progress_bar("encoding the gallery, once") as progress:
        locator = Locator.from_pretrained(
            model,
            backbone=backbone,
            gallery=gallery,
            dtype=dtype,
            engine=engine,
            batch_size=batch_size,
            max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
            progress=progress,
            answers=AnswerSettings(decode, merge_km, radius_km, prior),
        )
    files: list[Path] = []
    answers: list[Answer] = []
    for path in images:
        try:
            files += find_images([path])
        except ImageError as error:
            answers.append(Answer(error.name, locator.model_name, "", __version__, error=error.reason))
    interrupted = False
    try:
        with progress_bar("locating") as progress:
            for done, answer in enumerate(locator.stream(files, top_k, text=text, text_weight=text_weight), 1):
                answers.append(answer)
                progress(done, len(files))
    except KeyboardInterrupt:  # what was found so far is not thrown away
        interrupted = True
        print(f"geoclip: interrupted; answers for {len(answers):,} of {len(files):,} pictures", file=sys.stderr)
    for answer in answers:
        if answer.error is not None:
            print(f"geoclip: {answer.image}: {answer.error}", file=sys.stderr)
    write_output(FORMATS[format_](answers), output)
    if map_ is not None:
        _draw(map_, answers, locator)
    if interrupted:
        sys.exit(130)
    if any(answer.error is not None for answer in answers):
        sys.exit(1)


def _json(answers: "list[Answer]") -> str:
    return json.dumps([answer.to_dict() for answer in answers], indent=2, ensure_ascii=False) + "\n"


def _csv(answers: "list[Answer]") -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(
        ["image", "rank", "lat", "lon", "score", "probability", "radius_km", "model", "gallery", "version", "error"]
    )
    for answer in answers:
        about = [answer.model, answer.gallery, answer.version]
        for rank, c in enumerate(answer.candidates, 1):
            writer.writerow([answer.name, rank, c.lat, c.lon, c.score, c.probability, c.radius_km, *about, ""])
        if answer.error is not None:
            writer.writerow([answer.image, *[""] * 6, *about, answer.error])
    return file.getvalue()


def _table(answers: "list[Answer]") -> str:
    lines = []
    for answer in answers:
        if answer.error is None:
            lines.append(answer.name)
            lines += [
                f"  {rank:>2}  {c.lat:>10.5f} {c.lon:>11.5f}  {100 * c.probability:6.2f} % in {c.radius_km:,.0f} km"
                for rank, c in enumerate(answer.candidates, 1)
            ]
            lines.append(f"      {_confidence(answer)}")
    located = [answer for answer in answers if answer.error is None]
    if located:
        first = located[0]
        lines.append(f"estimates by {first.model}; {first.gallery}; open-geoclip {first.version}")
    return "".join(f"{line}\n" for line in lines)


FORMATS = {"table": _table, "json": _json, "csv": _csv}


def _confidence(answer: "Answer") -> str:
    """A line on how sure an answer is, for people."""
    if answer.sure is None:
        return "these weights are not calibrated: percentages compare places, they are not chances of being right"
    radii = ", ".join(f"{share} % within {km:,.0f} km" for share, km in answer.credible_radius_km.items())
    countries = ", ".join(f"{code} {100 * share:.0f} %" for code, share in list((answer.countries or {}).items())[:3])
    parts = ["sure" if answer.sure else "not sure", radii, countries]
    return "; ".join(part for part in parts if part)


def _draw(path: Path, answers: "list[Answer]", locator: "Locator") -> None:
    """One picture's probabilities as a heat map; several pictures and their candidates on one map."""
    import numpy as np

    from open_geoclip.export.heatmap import draw_posterior
    from open_geoclip.export.map import PlacedPicture, draw_answers
    from open_geoclip.images import load_image

    located = [answer for answer in answers if answer.error is None]
    if len(located) == 1 and located[0].text is None:
        [answer] = located
        image = load_image(answer.image, max_pixels=locator.max_pixels)
        best = answer.candidates[0]
        draw_posterior(
            path,
            locator.posterior(locator.encode([image])),
            name=Path(answer.image).name,
            candidates=np.array([(c.lat, c.lon) for c in answer.candidates]),
            image=image,
            lines=(
                f"{best.lat:.3f}, {best.lon:.3f}",
                f"probability {100 * best.probability:.1f} %",
                *_confidence(answer).split("; "),
            ),
            note=f"Estimate by {answer.model}, not evidence",
        )
        return
    draw_answers(
        path,
        [
            PlacedPicture(
                image=load_image(answer.image),
                name=Path(answer.image).name,
                candidates=np.array([(c.lat, c.lon) for c in answer.candidates]),
                probabilities=np.array([c.probability for c in answer.candidates]),
            )
            for answer in located
        ],
        note=f"Estimates by {located[0].model}, not evidence" if located else "",
    )
