"""Answers as tables, files and maps."""

import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_geoclip.cli._output import AnswerOutput, progress_bar, write_output

if TYPE_CHECKING:
    from open_geoclip.search.answer import Answer
    from open_geoclip.search.explanation import Explanation
    from open_geoclip.search.posterior import Posterior

__all__ = ["draw_answers", "print_written", "write_answers"]


def write_answers(
    answers: "list[Answer]",
    output: AnswerOutput,
    *,
    max_pixels: int,
    explain: "Callable[[str, tuple[float, float]], Explanation] | None" = None,
) -> None:
    """Write answers, with those that are errors.

    Args:
        answers: in order.
        output: where and how.
        max_pixels: the limit for photos whose thumbnails are made.
        explain: explains the first candidate of each photo; default: nothing is explained.
    """
    records = [answer.to_dict() for answer in answers]
    if explain is not None:
        from open_geoclip.errors import ImageError

        located = [(answer, record) for answer, record in zip(answers, records, strict=True) if answer.candidates]
        with progress_bar("explaining") as progress:
            for done, (answer, record) in enumerate(located, 1):
                best = answer.candidates[0]
                try:
                    record["explanation"] = explain(answer.image, (best.lat, best.lon)).to_dict()
                except ImageError as error:  # the file went away since it was read
                    print(f"geoclip: {answer.image}: not explained: {error.reason}", file=sys.stderr)
                progress(done, len(located))
    if output.format in ("table", "json"):
        output.write(records, table=_table(answers) if output.format == "table" else "")
        return
    from open_geoclip.export.formats import render

    for record in records:
        if record.get("image") and "error" not in record:
            record |= _photo_details(Path(record["image"]), output.format, max_pixels)
    write_output(render(records, output.format), output.path)


def print_written(where: object, located: int, failed: int, more: str = "") -> None:
    """Print to stderr what a job or a database has got."""
    print(f"geoclip: {where}: {located:,} located, {failed:,} failed{more}", file=sys.stderr)


def _photo_details(path: Path, format_: str, max_pixels: int) -> dict[str, Any]:
    """Return a thumbnail and the place in the metadata, as a report shows them next to an answer."""
    from open_geoclip.errors import ImageError
    from open_geoclip.export.thumbnails import thumbnail
    from open_geoclip.metadata.read import read_place

    details: dict[str, Any] = {}
    if not path.is_file():  # several images of one place are no single file
        return details
    try:
        if format_ in ("html", "kmz"):
            details["thumbnail"] = thumbnail(path, max_pixels=max_pixels)
        place = read_place(path)
    except ImageError:  # the file has changed since it was decoded
        return details
    return details | ({"exif": place.to_dict()} if place is not None and place.is_on_earth else {})


def _table(answers: "list[Answer]") -> str:
    from open_geoclip.export.kml import format_km

    warnings = dict.fromkeys(answer.warning for answer in answers if answer.warning)
    lines = [re.sub(r"(?<=:) (?=geoclip )|; (?=geoclip )", "\n    ", warning) for warning in warnings]  # to be copied
    for answer in answers:
        if answer.error is None:
            lines += [answer.name, f"      {_confidence(answer)}"]
            if answer.reliability is not None:
                lines.append(f"      {answer.reliability.text}")
            if answer.anchors:
                lines.append(f"      estimated from known places: {_anchors(answer)}")
            lines += [
                f"  {rank:>2}  {c.lat:>10.5f} {c.lon:>11.5f}  "
                + ("means nothing" if answer.warning else f"{100 * c.probability:6.2f} % in {format_km(c.radius_km)}")
                + (f"  {c.place}" if c.place else "")
                for rank, c in enumerate(answer.candidates, 1)
            ]
            lines += [
                f"      most like it in the index: {one.id} (similarity {one.similarity:.2f}), "
                f"{one.distance_km:,.0f} km from the first candidate"
                for one in answer.look_alikes
            ]
    located = [answer for answer in answers if answer.error is None]
    if located:
        first = located[0]
        lines.append(f"estimates by {first.model}; {first.gallery}; open-geoclip {first.version}")
    return "".join(f"{line}\n" for line in lines)


def _anchors(answer: "Answer") -> str:
    """Return where the known places of an answer are from, and how long before or after the photo."""
    parts = []
    for anchor in answer.anchors:
        seconds = round(
            (datetime.fromisoformat(anchor.time) - datetime.fromisoformat(answer.time or "")).total_seconds()
        )
        when = "at the same time" if seconds == 0 else f"{timedelta(seconds=abs(seconds))} "
        parts.append(f"{anchor.source}, {when}{'' if seconds == 0 else 'before' if seconds < 0 else 'after'}")
    return "; ".join(parts)


def _confidence(answer: "Answer") -> str:
    """Return how sure an answer is, and the most probable countries, in one line."""
    from open_geoclip.export.kml import confidence

    shares = [] if answer.sure is None or answer.warning else list((answer.countries or {}).items())[:3]
    countries = ", ".join(f"{code} {100 * share:.0f} %" for code, share in shares)
    return "; ".join(part for part in (confidence(answer.to_dict()), countries) if part)


def draw_answers(
    path: Path,
    answers: "list[Answer]",
    posterior: "Posterior | None",
    *,
    together: Sequence[Path] = (),
    max_pixels: int = 0,
) -> None:
    """Draw the posterior of a single answer as a heat map, or the candidates of several, as a PNG file.

    Args:
        path: the file.
        answers: those with errors are skipped.
        posterior: of a single answer.
        together: the images of a single answer for several.
        max_pixels: of the images that are drawn.
    """
    import numpy as np

    from open_geoclip.export.heatmaps import draw_posterior
    from open_geoclip.export.maps import LocatedImage
    from open_geoclip.export.maps import draw_answers as draw_candidates
    from open_geoclip.images import load_image

    located = [answer for answer in answers if answer.error is None]
    note = f"Estimate{'s' if len(located) > 1 else ''} by {located[0].model}, not evidence" if located else ""
    if len(located) == 1 and posterior is not None:
        [answer] = located
        files = list(together) or ([Path(answer.image)] if answer.image else [])
        best = answer.candidates[0]
        lines: tuple[str, ...] = ("probabilities compare places,", "they are not chances of being right")
        if files:
            confidence = ["not calibrated for this"] if answer.sure is None else _confidence(answer).split("; ")
            if answer.reliability is not None:
                low, high = answer.reliability.within_km["25"]
                confidence += [
                    "answers here were right within 25 km",
                    f"for {100 * low:.0f} to {100 * high:.0f} % of photos",
                ]
            probability = "means nothing" if answer.warning else f"probability {100 * best.probability:.1f} %"
            lines = (f"{best.lat:.3f}, {best.lon:.3f}", probability, *confidence)
        draw_posterior(
            path,
            posterior,
            name=", ".join(file.name for file in files) or answer.name,
            candidates=np.array([(c.lat, c.lon) for c in answer.candidates]),
            image=load_image(files[0], max_pixels=max_pixels) if files else None,
            lines=lines,
            note=note,
        )
        return
    placed = [
        LocatedImage(
            image=load_image(answer.image, max_pixels=max_pixels) if answer.image else None,
            name=Path(answer.image).name or answer.name,
            candidates=np.array([(c.lat, c.lon) for c in answer.candidates]),
            probabilities=np.array([c.probability for c in answer.candidates]),
            sure=answer.sure,
        )
        for answer in located
    ]
    draw_candidates(path, placed, note=note)
