"""Answers as tables, files and maps."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_geoclip.cli._output import to_json, write_output

if TYPE_CHECKING:
    from open_geoclip.search.answer import Answer
    from open_geoclip.search.posterior import Posterior

__all__ = ["draw_answers", "has_detail", "write_answers"]

_DRAWN = ("geojson", "kml", "kmz", "gpkg", "html")  # formats that show regions on a map


def has_detail(detail: bool | None, format_: str) -> bool:
    """Return whether answers include regions and heat: the value of --detail, else whether the format draws them."""
    if detail is not None or format_ not in _DRAWN:
        return bool(detail)
    if all(find_spec(name) for name in ("shapely", "contourpy")):
        return True
    print("geoclip: the file has no regions, which need pip install 'open-geoclip[places]'", file=sys.stderr)
    return False


def write_answers(answers: "list[Answer]", format_: str, output: Path | None, *, max_pixels: int) -> None:
    """Write answers to a file or stdout.

    Args:
        answers: in order, with those that are errors.
        format_: one of :data:`~open_geoclip.cli._output.ANSWER_FORMATS`.
        output: a file; default: stdout.
        max_pixels: of photos whose thumbnails are made.
    """
    if format_ == "table":
        write_output(_table(answers), output)
        return
    records = [answer.to_dict() for answer in answers]
    if format_ == "json":
        write_output(to_json(records), output)
        return
    from open_geoclip.export.formats import render

    for record in records:
        if record.get("image") and "error" not in record:
            record |= _photo_details(Path(record["image"]), format_, max_pixels)
    write_output(render(records, format_), output)


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
    lines = []
    for answer in answers:
        if answer.error is None:
            lines.append(answer.name)
            lines += [
                f"  {rank:>2}  {c.lat:>10.5f} {c.lon:>11.5f}  {100 * c.probability:6.2f} % in {c.radius_km:,.0f} km"
                + (f"  {c.place}" if c.place else "")
                for rank, c in enumerate(answer.candidates, 1)
            ]
            lines.append(f"      {_confidence(answer)}")
    located = [answer for answer in answers if answer.error is None]
    if located:
        first = located[0]
        lines.append(f"estimates by {first.model}; {first.gallery}; open-geoclip {first.version}")
    return "".join(f"{line}\n" for line in lines)


def _confidence(answer: "Answer") -> str:
    """Return how sure an answer is, in one line."""
    if answer.sure is None:
        return "not calibrated for this: percentages compare places, they are not chances of being right"
    radii = ", ".join(f"{share} % within {km:,.0f} km" for share, km in answer.credible_radius_km.items())
    countries = ", ".join(f"{code} {100 * share:.0f} %" for code, share in list((answer.countries or {}).items())[:3])
    doubt = "not sure"
    if answer.in_distribution is False:
        doubt += ": unlike the images that the model was calibrated on"
    parts = ["sure" if answer.sure else doubt, radii, countries]
    return "; ".join(part for part in parts if part)


def draw_answers(
    path: Path,
    answers: "list[Answer]",
    posterior: "Posterior | None",
    *,
    together: Sequence[Path] = (),
    max_pixels: int = 0,
) -> None:
    """Draw the probabilities of a single answer as a heat map, or the candidates of several.

    Args:
        path: the PNG.
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
            lines = (f"{best.lat:.3f}, {best.lon:.3f}", f"probability {100 * best.probability:.1f} %", *confidence)
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
