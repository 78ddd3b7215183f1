"""Heat maps: the posterior of an image or text, and the similarity of places on the Earth to one place.

Colours of a posterior are logarithms of the probability per square kilometre. Lines enclose the smallest regions that
hold the truth in 50 and 90 % of cases (:meth:`~open_geoclip.search.posterior.Posterior.nominal_hpd_levels`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float64
from PIL import Image, ImageOps

from open_geoclip.errors import SettingsError
from open_geoclip.export.basemap import (
    EXTENT,
    INK,
    LAND,
    MAP_RATIO,
    PALE,
    SEA,
    add_world,
    check_png,
    draw_coasts,
    new_figure,
    save_png,
    shorelines,
)
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

__all__ = ["SimilarityMap", "draw_posterior", "draw_similarity", "near_density", "world_density"]

_DECADES = 4.0  # from the palest to the strongest colour
_COLOURS: dict[str, Any] = {"cmap": "YlOrRd", "vmin": -_DECADES, "vmax": 0.0, "interpolation": "nearest"}
_COAST, _TRUTH = "#5A646B", "#0072B2"
_PIXELS = 220  # of the map around the best candidate
_HORIZON_KM = 12_000  # a polygon beyond it would be inverted on the azimuthal map


# --- density --------------------------------------------------------------------------------------


def world_density(posterior: Posterior, row: int, width: int = 900) -> Float64[np.ndarray, "h {width}"]:
    """Return the probability per km² on the Equal Earth map, south first; NaN where the gallery has no cells.

    A pixel has the density of the nearest cell, if it lies within that cell's area, or that of a cell within the pixel.

    Args:
        posterior: of any number of images.
        row: which of them.
        width: pixels from west to east.
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
    pixel_km = EARTH_RADIUS_KM * 2 / width  # the least reach, or fine galleries would show holes
    reach = np.maximum(np.sqrt(cells.area_km2[nearest]), 2 * pixel_km)
    mass = posterior.mass[row].double().numpy()
    density = np.where(chord * EARTH_RADIUS_KM <= reach, mass[nearest] / cells.area_km2[nearest], np.nan)
    grid = np.full((height, width), np.nan)
    grid[inside] = density
    shares = equal_earth(cells.coordinates.astype(np.float64)) / (1, MAP_RATIO) / 2 + 0.5
    column, line = np.minimum(shares * (width, height), (width - 1, height - 1)).astype(int).T
    empty = np.isnan(grid[line, column])  # pixels are narrow near the poles
    grid[line[empty], column[empty]] = (mass / cells.area_km2)[empty]
    return grid


def near_density(
    posterior: Posterior, row: int, centre: Float[np.ndarray, "2"], reach_km: float
) -> Float64[np.ndarray, "p p"]:
    """Return the probability per km² around a place, on Lambert's azimuthal equal-area map, south first.

    Args:
        posterior: of any number of images.
        row: which of them.
        centre: (lat, lon) in degrees.
        reach_km: from the centre to an edge.
    """
    step = ((np.arange(_PIXELS) + 0.5) / _PIXELS * 2 - 1) * reach_km
    km = np.stack(np.meshgrid(step, step), axis=-1).reshape(-1, 2)
    places = azimuthal_equal_area_inverse(km, tangent_frame(unit_vectors(np.asarray(centre, np.float64))))
    return Mixture.from_posterior(posterior, row).density(places).reshape(_PIXELS, _PIXELS)


# --- a posterior ----------------------------------------------------------------------------------


def draw_posterior(
    path: Path,
    posterior: Posterior,
    row: int = 0,
    *,
    name: str = "",
    candidates: Float[np.ndarray, "k 2"] | None = None,
    truth: tuple[float, float] | None = None,
    image: Image.Image | None = None,
    lines: tuple[str, ...] = (),
    note: str = "",
) -> None:
    """Draw a posterior on a world map and around its best candidate, as a PNG file.

    Args:
        path: the file, ``*.png``.
        posterior: of any number of images.
        row: which of them.
        name: of the image, or the text.
        candidates: (lat, lon) in degrees, the best first; default: the best of the posterior.
        truth: (lat, lon) in degrees, if it is known.
        image: for the thumbnail, if there is one.
        lines: further text, such as how sure the answer is.
        note: a line of small print.

    Raises:
        SettingsError: the name does not end in .png, or there is no such row.
        CoordinateError: a candidate or the truth is not on Earth.
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    check_png(path)
    if not 0 <= row < len(posterior):
        raise SettingsError(f"row: from 0 to {len(posterior) - 1}, not {row}")
    one = posterior[row]
    places = np.asarray(one.candidates(1).coordinates[0] if candidates is None else candidates, np.float64)
    check_coordinates(places)
    truths = np.array([] if truth is None else [truth], np.float64).reshape(-1, 2)
    check_coordinates(truths)
    reach = float(np.clip(2.5 * one.profile(places[:1]).radius_km((0.9,))[0, 0], 100, 4000))

    figure = new_figure(13.2, 5.6, 160)
    figure.text(0.015, 0.955, name, fontsize=11, fontweight="bold", color=INK, va="center", parse_math=False)
    figure.text(0.985, 0.02, note, fontsize=7, color=PALE, ha="right", va="bottom", parse_math=False)
    world = add_world(figure, (0.015, 0.07, 0.67, 0.84))
    density = world_density(one, 0)
    world.imshow(_decades(density, float(np.nanmax(density))), extent=EXTENT, origin="lower", zorder=3.5, **_COLOURS)
    _draw_markers(world, equal_earth(places), equal_earth(truths))
    near = figure.add_axes((0.705, 0.07, 0.28, 0.84 if image is None else 0.66), aspect="equal")
    _draw_near(near, one, places, truths, reach)
    left, top = (0.015, 0.075) if image is None else (0.822, 0.945)
    if image is not None:
        frame = figure.add_axes((0.705, 0.765, 0.11, 0.2))
        frame.imshow(np.asarray(ImageOps.contain(image.convert("RGB"), (360, 260), Image.Resampling.LANCZOS)))
        frame.set_axis_off()
    for number, text in enumerate(lines):
        figure.text(left, top - 0.036 * number, text, fontsize=8, color=PALE, va="center", parse_math=False)
    save_png(figure, path)


def _draw_near(
    axes: "Axes",
    posterior: Posterior,
    places: Float64[np.ndarray, "k 2"],
    truths: Float64[np.ndarray, "t 2"],
    reach_km: float,
) -> None:
    """Draw the surroundings of the best candidate: coasts, density, and the regions of 50 and 90 %."""
    frame = tangent_frame(unit_vectors(places[0]))

    def project(coordinates: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        return azimuthal_equal_area(unit_vectors(coordinates), frame)

    axes.set(xlim=(-reach_km, reach_km), ylim=(-reach_km, reach_km), facecolor=SEA, xticks=[], yticks=[])
    extent = (-reach_km, reach_km, -reach_km, reach_km)
    for level, (shores, colour) in enumerate(zip(shorelines(), (LAND, SEA), strict=True), 1):
        for km in map(project, shores):
            if (np.abs(km) < 1.5 * reach_km).all(axis=1).any():
                axes.fill(*km.T, color=colour, zorder=level, visible=bool(np.abs(km).max() < _HORIZON_KM))
                axes.plot(*km.T, color=_COAST, linewidth=0.7, zorder=3.5)
    density = near_density(posterior, 0, places[0], reach_km)
    axes.imshow(_decades(density, float(density.max())), extent=extent, origin="lower", zorder=3, **_COLOURS)
    levels = Mixture.from_posterior(posterior).hpd_density(posterior.nominal_hpd_levels(REGION_LEVELS)[0].tolist())
    for level, style in zip(levels.tolist(), ("solid", "dashed"), strict=True):
        if density.min() < level < density.max():
            lines: dict[str, Any] = {"colors": INK, "linewidths": 0.9, "linestyles": style, "alpha": 0.8}
            axes.contour(density, [level], extent=extent, zorder=4, **lines)
    _draw_markers(axes, project(places), project(truths))
    unit = 10.0 ** math.floor(math.log10(reach_km))
    bar = unit if reach_km < 4 * unit else 2 * unit
    axes.plot([-0.9 * reach_km, -0.9 * reach_km + bar], [-0.9 * reach_km] * 2, color=INK, linewidth=2, zorder=6)
    axes.text(-0.9 * reach_km, -0.86 * reach_km, f"{bar:,.0f} km", fontsize=7.5, color=INK, zorder=6)
    axes.set_title("around the best candidate; regions of 50 % (solid) and 90 % (dashed)", fontsize=7.5, color=PALE)


def _draw_markers(axes: "Axes", places: Float[np.ndarray, "k 2"], truths: Float[np.ndarray, "t 2"]) -> None:
    """Draw circles at the candidates, the best one larger, and a star at the truth."""
    circle: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "zorder": 8}
    axes.scatter(places[1:, 0], places[1:, 1], s=14, linewidths=0.8, clip_on=True, gid="candidates", **circle)
    axes.scatter(places[:1, 0], places[:1, 1], s=46, linewidths=1.4, gid="best", **circle)
    if len(truths):
        star: dict[str, Any] = {"marker": "*", "edgecolors": "white", "linewidths": 0.7}
        axes.scatter(truths[:, 0], truths[:, 1], s=90, c=_TRUTH, zorder=9, gid="truth", **star)


def _decades(density: Float64[np.ndarray, "h w"], top: float) -> "np.ma.MaskedArray[Any, Any]":
    """Return decades below the highest density; those too pale to draw are masked."""
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(density / top)
    return np.ma.masked_array(decades, ~(decades > -_DECADES))


# --- similarity -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """The similarity of the Earth to a place, by one model.

    Attributes:
        title: above the map.
        cosines: on the Equal Earth map, north first, NaN outside it.
        places: (lat, lon) of the most similar places, in the order of their numbers.
    """

    title: str
    cosines: Float[np.ndarray, "h w"]
    places: Float[np.ndarray, "k 2"]


def draw_similarity(path: Path, place: tuple[float, float], maps: Sequence[SimilarityMap]) -> None:
    """Draw maps of similarity to a place one below the other, each with its own colour scale, as a PNG file.

    Raises:
        SettingsError: there is no map, or the name does not end in .png.
        MissingExtraError: the extra ``earth`` is not installed.
        OpenGeoCLIPError: the file cannot be written.
    """
    check_png(path)
    if not maps:
        raise SettingsError("there is no map to draw")
    figure = new_figure(10, 5.1 * len(maps), 130, layout="constrained")
    for axes, one in zip(np.ravel(figure.subplots(len(maps), 1)), maps, strict=True):
        # Most of the Earth is similar: the scale ends where the differences are.
        low, high = np.nanpercentile(one.cosines, [2, 99.8])
        artist = axes.imshow(one.cosines, extent=EXTENT, cmap="viridis", vmin=low, vmax=high, zorder=1)
        draw_coasts(axes)
        for number, (x, y) in enumerate(equal_earth(one.places), start=1):
            axes.plot(x, y, "o", markersize=9, color="white", markeredgecolor="black", markeredgewidth=0.6, zorder=4)
            axes.text(x, y, str(number), fontsize=6, ha="center", va="center_baseline", zorder=5)
        axes.plot(*equal_earth(np.array(place, np.float64)), "*", markersize=14, color="#D55E00", mec="white", zorder=6)
        axes.set_title(one.title, fontsize=9)
        axes.set_axis_off()
        figure.colorbar(artist, ax=axes, shrink=0.6, label="cosine")
    save_png(figure, path)
