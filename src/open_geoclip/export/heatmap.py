"""A posterior as a picture: the world in equal-area cells, and the surroundings of the best answer beside it.

Colours are logarithms of the probability for each square kilometre. Lines enclose the smallest regions that hold the
truth in 50 and 90 % of cases (:meth:`~open_geoclip.search.posterior.Posterior.nominal_hpd_levels`). It draws any
:class:`~open_geoclip.search.posterior.Posterior`, of a picture or of a text.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float64
from PIL import Image, ImageOps

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.export.world import MAP_RATIO, draw_world, shorelines
from open_geoclip.files import atomic_file
from open_geoclip.geo.projections import (
    azimuthal_equal_area,
    azimuthal_equal_area_inverse,
    equal_earth,
    equal_earth_inverse,
)
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, check_coordinates, tangent_frame, unit_vectors
from open_geoclip.search.mixture import Mixture
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.regions import REGION_LEVELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_posterior", "near_density", "posterior_figure", "world_density"]

_DECADES = 4.0  # from the palest to the strongest colour
_INK, _PALE, _TRUTH = "#1B2329", "#66727B", "#0072B2"
_PIXELS = 220


def world_density(posterior: Posterior, row: int, width: int = 900) -> Float64[np.ndarray, "h {width}"]:
    """Probability for each square kilometre in cells of the Equal Earth map, which have one area; NaN off the cells.

    A cell has the density of the nearest place, if it lies on ground that this stands for.

    Args:
        posterior: of any number of pictures.
        row: which of them.
        width: cells from west to east.
    """
    from scipy.spatial import cKDTree

    height = round(width * MAP_RATIO)
    x = (np.arange(width) + 0.5) / width * 2 - 1
    y = ((np.arange(height) + 0.5) / height * 2 - 1) * MAP_RATIO
    places = equal_earth_inverse(np.stack(np.meshgrid(x, y), axis=-1))
    inside = np.abs(places[..., 1]) <= 180
    cells = posterior.cells
    tree = cKDTree(cells.points.numpy().astype(np.float64))
    chord, nearest = tree.query(unit_vectors(places[inside]))
    cell_km = EARTH_RADIUS_KM * 2 / width  # not less than a cell of the map, or fine galleries would show holes
    reach = np.maximum(np.sqrt(cells.area_km2[nearest]), 2 * cell_km)
    mass = posterior.mass[row].double().numpy()
    density = np.where(chord * EARTH_RADIUS_KM <= reach, mass[nearest] / cells.area_km2[nearest], np.nan)
    grid = np.full((height, width), np.nan)
    grid[inside] = density
    return grid


def near_density(
    posterior: Posterior, row: int, centre: Float[np.ndarray, "2"], reach_km: float
) -> Float64[np.ndarray, "p p"]:
    """Probability for each square kilometre around a place, on Lambert's azimuthal equal-area map; south first.

    Args:
        posterior: of any number of pictures.
        row: which of them.
        centre: (lat, lon) in degrees of the middle.
        reach_km: from the middle to an edge.
    """
    step = ((np.arange(_PIXELS) + 0.5) / _PIXELS * 2 - 1) * reach_km
    km = np.stack(np.meshgrid(step, step), axis=-1).reshape(-1, 2)
    places = azimuthal_equal_area_inverse(km, tangent_frame(unit_vectors(np.asarray(centre, np.float64))))
    return Mixture.from_posterior(posterior, row).density(places).reshape(_PIXELS, _PIXELS)


def draw_posterior(path: Path, posterior: Posterior, row: int = 0, **about: Any) -> None:
    """Write the picture to a PNG file, which replaces an older one only when it is complete.

    Args:
        path: the file, ``*.png``.
        posterior: of any number of pictures.
        row: which of them.
        about: see :func:`posterior_figure`.

    Raises:
        SettingsError: a name that does not end in .png, or no such row.
        MissingExtraError: the extra ``earth`` is not installed.
        OSError: the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise SettingsError(f"the map is a PNG file: give it a name ending in .png, not {path.name}")
    figure = posterior_figure(posterior, row, **about)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "open-geoclip"})


def posterior_figure(
    posterior: Posterior,
    row: int = 0,
    *,
    name: str = "",
    candidates: Float[np.ndarray, "k 2"] | None = None,
    truth: tuple[float, float] | None = None,
    image: Image.Image | None = None,
    lines: tuple[str, ...] = (),
    note: str = "",
) -> "Figure":
    """Return the picture as a Matplotlib figure.

    Args:
        posterior: of any number of pictures.
        row: which of them.
        name: of the picture, or the text.
        candidates: (lat, lon) in degrees, the best first; the posterior's own best when not given.
        truth: (lat, lon) in degrees, if it is known.
        image: the picture itself, if there is one.
        lines: what else to say, such as how sure it is.
        note: a line of small print.

    Raises:
        SettingsError: no such row.
        CoordinateError: a candidate or the truth is not a place on Earth.
        MissingExtraError: the extra ``earth`` is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Drawing a map", "earth") from error
    if not 0 <= row < len(posterior):
        raise SettingsError(f"row: from 0 to {len(posterior) - 1}, not {row}")
    one = posterior[row]
    places = one.candidates(1).coordinates[0] if candidates is None else candidates
    check_coordinates(places)
    if truth is not None:
        check_coordinates([truth])
    reach = float(np.clip(2.5 * one.profile(places[:1]).radius_km((0.9,))[0, 0], 100, 4000))

    figure = Figure(figsize=(13.2, 5.6), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.015, 0.955, name, fontsize=11, fontweight="bold", color=_INK, va="center", parse_math=False)
    figure.text(0.985, 0.02, note, fontsize=7, color=_PALE, ha="right", va="bottom", parse_math=False)
    world = figure.add_axes((0.015, 0.07, 0.67, 0.84), xlim=(-1, 1), ylim=(-MAP_RATIO, MAP_RATIO), aspect="equal")
    world.set_axis_off()
    draw_world(world)
    density = world_density(one, 0)
    top = float(np.nanmax(density))
    world.imshow(
        _logarithm(density, top), extent=(-1, 1, -MAP_RATIO, MAP_RATIO), origin="lower", zorder=3.5, **_colours()
    )
    _mark(world, equal_earth(places), None if truth is None else equal_earth(np.array([truth], np.float64)))

    near = figure.add_axes((0.705, 0.07, 0.28, 0.66 if image is not None else 0.84), aspect="equal")
    _draw_near(near, one, places, truth, reach)
    top_line = 0.9
    if image is not None:
        side = ImageOps.contain(image.convert("RGB"), (360, 260), Image.Resampling.LANCZOS)
        frame = figure.add_axes((0.705, 0.765, 0.11, 0.2))
        frame.imshow(np.asarray(side))
        frame.set_axis_off()
    for number, text in enumerate(lines):
        left, height = (0.83, top_line + 0.045) if image is not None else (0.015, 0.13)
        figure.text(left, height - 0.036 * number, text, fontsize=8, color=_PALE, va="center", parse_math=False)
    return figure


def _draw_near(
    axes: "Axes",
    posterior: Posterior,
    places: Float[np.ndarray, "k 2"],
    truth: tuple[float, float] | None,
    reach_km: float,
) -> None:
    """The surroundings of the best answer, with shores, and the regions of 50 and 90 %."""
    density = near_density(posterior, 0, places[0], reach_km)
    axes.set(xlim=(-reach_km, reach_km), ylim=(-reach_km, reach_km), facecolor="#EEF3F7")
    extent = (-reach_km, reach_km, -reach_km, reach_km)
    frame = tangent_frame(unit_vectors(np.asarray(places[0], np.float64)))

    def project(coordinates: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        return azimuthal_equal_area(unit_vectors(np.asarray(coordinates, np.float64)), frame)

    for lakes, shores in enumerate(shorelines()):
        for shore in shores:
            km = project(shore)
            if (np.abs(km) < 1.5 * reach_km).all(axis=1).any():
                far = np.abs(km).max() > 12_000  # beyond the horizon a shore would be turned inside out
                axes.fill(*km.T, color=("#D3D8D4", "#EEF3F7")[lakes], zorder=1 + lakes, visible=not far)
                axes.plot(*km.T, color="#5A646B", linewidth=0.7, zorder=3.5)
    axes.imshow(_logarithm(density, float(density.max())), extent=extent, origin="lower", zorder=3, **_colours())
    levels = Mixture.from_posterior(posterior).hpd_density(posterior.nominal_hpd_levels(REGION_LEVELS)[0].tolist())
    for level, style in zip(levels.tolist(), ("solid", "dashed"), strict=True):
        if density.min() < level < density.max():
            axes.contour(
                density, [level], extent=extent, colors=_INK, linewidths=0.9, linestyles=style, zorder=4, alpha=0.8
            )
    _mark(axes, project(places), None if truth is None else project(np.array([truth])))
    axes.set_xticks([])
    axes.set_yticks([])
    bar = 10.0 ** math.floor(math.log10(reach_km)) * (1 if reach_km / 10 ** math.floor(math.log10(reach_km)) < 4 else 2)
    axes.plot([-0.9 * reach_km, -0.9 * reach_km + bar], [-0.9 * reach_km] * 2, color=_INK, linewidth=2, zorder=6)
    axes.text(-0.9 * reach_km, -0.86 * reach_km, f"{bar:,.0f} km", fontsize=7.5, color=_INK, zorder=6)
    axes.set_title("around the best answer; lines hold 50 % (solid) and 90 % (dashed)", fontsize=7.5, color=_PALE)


def _mark(axes: "Axes", places: Float[np.ndarray, "k 2"], truth: Float[np.ndarray, "1 2"] | None) -> None:
    axes.scatter(
        places[1:, 0],
        places[1:, 1],
        14,
        "none",
        edgecolors=_INK,
        linewidths=0.8,
        zorder=8,
        clip_on=True,
        gid="candidates",
    )
    axes.scatter(places[:1, 0], places[:1, 1], 46, "none", edgecolors=_INK, linewidths=1.4, zorder=8, gid="best")
    if truth is not None:
        axes.scatter(
            truth[:, 0], truth[:, 1], 90, _TRUTH, marker="*", edgecolors="white", linewidths=0.7, zorder=9, gid="truth"
        )


def _logarithm(density: Float64[np.ndarray, "h w"], top: float) -> "np.ma.MaskedArray[Any, Any]":
    """Decades below the highest density, with what is too pale to draw masked."""
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(density / top)
    return np.ma.masked_array(decades, ~(decades > -_DECADES))


def _colours() -> dict[str, Any]:
    return {"cmap": "YlOrRd", "vmin": -_DECADES, "vmax": 0.0, "interpolation": "nearest", "aspect": "equal"}
