"""Answers for people and programs: tables, JSON, CSV and maps."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from open_geoclip.search.answers import Answer
    from open_geoclip.search.locator import Locator

__all__ = ["FORMATS", "draw"]


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
        return "not calibrated for this: percentages compare places, they are not chances of being right"
    radii = ", ".join(f"{share} % within {km:,.0f} km" for share, km in answer.credible_radius_km.items())
    countries = ", ".join(f"{code} {100 * share:.0f} %" for code, share in list((answer.countries or {}).items())[:3])
    parts = ["sure" if answer.sure else "not sure", radii, countries]
    return "; ".join(part for part in parts if part)


def draw(path: Path, answers: "list[Answer]", locator: "Locator", *, together: list[Path] | None = None) -> None:
    """One answer's probabilities as a heat map; several pictures and their candidates on one map.

    Args:
        path: the PNG.
        answers: those with errors are left out.
        locator: what gave them.
        together: the pictures that have one answer; each has its own when not given.
    """
    import numpy as np

    from open_geoclip.export.heatmap import draw_posterior
    from open_geoclip.export.map import PlacedPicture, draw_answers
    from open_geoclip.images import load_image
    from open_geoclip.search.trips import together as joined

    located = [answer for answer in answers if answer.error is None]
    if len(located) == 1 and located[0].text is None:
        [answer] = located
        files = together or [Path(answer.image)]
        vectors = locator.encode(files)
        if together:
            vectors = joined(vectors).float()[None]
        best = answer.candidates[0]
        draw_posterior(
            path,
            locator.posterior_between(vectors[0]) if locator.refine else locator.posterior(vectors),
            name=", ".join(file.name for file in files),
            candidates=np.array([(c.lat, c.lon) for c in answer.candidates]),
            image=load_image(files[0], max_pixels=locator.max_pixels),
            lines=(
                f"{best.lat:.3f}, {best.lon:.3f}",
                f"probability {100 * best.probability:.1f} %",
                *(["not calibrated for this"] if answer.sure is None else _confidence(answer).split("; ")),
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
