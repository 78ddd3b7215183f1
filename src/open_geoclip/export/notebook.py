"""An answer as Jupyter shows it: thumbnail, world map and candidates, in HTML that loads nothing from elsewhere."""

import base64
import io
from html import escape
from pathlib import Path

import numpy as np

from open_geoclip.errors import ImageError, MissingExtraError
from open_geoclip.export.basemap import MAP_RATIO, add_world, new_figure
from open_geoclip.export.kml import confidence
from open_geoclip.export.maps import draw_candidates, place_text
from open_geoclip.export.tables import CAUTION
from open_geoclip.export.thumbnails import thumbnail
from open_geoclip.geo.projections import equal_earth
from open_geoclip.images import MAX_PIXELS
from open_geoclip.search.answer import Answer

__all__ = ["answer_html"]

_WIDTH = 420  # of the map, in CSS pixels
_COLOUR = "#D55E00"


def answer_html(answer: Answer) -> str:
    """Return an answer as an HTML element, without scripts and links.

    The photo is shown if its file is still there, the map if the extra ``earth`` is installed.
    """
    name = f"<b>{escape(answer.name)}</b>"
    if answer.error is not None:
        return f"<div>{name}: {escape(answer.error)}</div>"
    images = [(_thumbnail(answer.image), "max-width:200px;max-height:205px", "the photo")]
    images.append((_map(answer), f"width:{_WIDTH}px;max-width:100%", "a world map of the candidates"))
    shown = "".join(f'<img src="{uri}" alt="{alt}" style="{style}">' for uri, style, alt in images if uri)
    lines = [("place", "lat, lon", "probability", "radius")]
    lines += [
        (
            f"{rank}. {escape(c.place or c.country or '')}",
            place_text(np.array([c.lat, c.lon])),
            "means nothing" if answer.warning else f"{100 * c.probability:.1f} %",
            f"{c.radius_km:,.0f} km",
        )
        for rank, c in enumerate(answer.candidates, 1)
    ]
    rows = "".join(f"<tr>{''.join(map(_cell, range(len(line)), line))}</tr>" for line in lines)
    made_by = "; ".join(escape(part) for part in (answer.model, answer.gallery, CAUTION) if part)
    sure = answer.warning or confidence(answer.to_dict()) + (
        f"; {answer.reliability.text}" if answer.reliability is not None else ""
    )
    return (
        f'<div style="max-width:660px"><div>{name}<br>{escape(sure)}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:12px;align-items:center;margin:8px 0">{shown}</div>'
        f'<table style="color:inherit;font-size:inherit;border-collapse:collapse">{rows}</table>'
        f'<div style="opacity:.7;font-size:85%;margin-top:6px">{made_by}</div></div>'
    )


def _cell(column: int, text: str) -> str:
    align = "right;white-space:nowrap" if column else "left"
    return f'<td style="padding:2px 16px 2px 0;vertical-align:top;text-align:{align}">{text}</td>'


def _thumbnail(image: str) -> str | None:
    try:  # no device or pipe, which may never end; a name that is none of a file may be too long for one
        return thumbnail(image, max_pixels=MAX_PIXELS) if image and Path(image).is_file() else None
    except (ImageError, OSError):
        return None


def _map(answer: Answer) -> str | None:
    """Return candidates and regions on a world map as the data URI of a PNG."""
    try:
        figure = new_figure(4.2, 4.2 * MAP_RATIO, 200)
        axes = add_world(figure, (0.06, 0.02, 0.92, 0.96))
    except MissingExtraError:
        return None
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Shape

    for region in (answer.regions or {}).values():
        rings = [ring for polygon in region["coordinates"] for ring in polygon]  # holes turn the other way
        if rings:
            shape = Shape.make_compound_path(
                *(Shape(equal_earth(np.array(ring)[:, ::-1]), closed=True) for ring in rings)
            )
            axes.add_artist(PathPatch(shape, facecolor=_COLOUR, alpha=0.3, linewidth=0, zorder=5))
    places = np.array([(c.lat, c.lon) for c in answer.candidates])
    draw_candidates(axes, places, np.array([c.probability for c in answer.candidates]), _COLOUR)
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
