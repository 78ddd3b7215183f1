"""Regions of highest posterior density as polygons, and the density as cells of a grid.

The density is a mixture of Gaussians of all sizes, which no single grid resolves. Gaussians of similar size that are
near each other are contoured together (marching squares, by contourpy) on an equal-area map around them, whose cells
are as small as they need. The contours are projected to longitude and latitude, cut at the antimeridian, closed over
the poles, and united.
"""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from open_geoclip.errors import MissingExtraError
from open_geoclip.geo.areas import Allowed
from open_geoclip.geo.projections import (
    EqualAreaGrid,
    azimuthal_equal_area,
    azimuthal_equal_area_inverse,
    cut_antimeridian,
)
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, coordinates_of, tangent_frame, tangent_offset, unit_vectors
from open_geoclip.search.mixture import Mixture
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.smoothing import gaussian_quadrature

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

__all__ = ["REGION_LEVELS", "describe_regions", "heat_cells", "hpd_regions"]

REGION_LEVELS = (0.5, 0.9)
"""Probabilities that the regions of an answer hold."""

# Contours
_SIZE_RATIO = 4.0  # Gaussians within this factor in size are contoured together
_LINK_SIGMAS = 2.5  # if they are nearer than so many standard deviations of both
_MARGIN_SIGMAS = 3.5  # of a map around its Gaussians
_FEW_SAMPLES = 10  # fewer do not say where limits end
_CELLS_PER_SIGMA = 1.5  # of a map, in the smallest standard deviation
_MIN_CELLS, _MAX_CELLS = 24, 80  # of a map along its longer side, the least of those that limits make smaller
_MAX_EXTENT = math.radians(50)  # clusters that extend farther from their centre are divided
_WIDE_KM = 600.0  # Gaussians as wide are contoured in degrees, on the whole Earth
_WIDE_NODES = 91  # from south to north
_OTHERS_SHARE = 0.2  # of a level, that others may add to a Gaussian which is drawn on its own
_MAX_LOG_DENSITY = 700.0
# Polygons
_CIRCLE_CORNERS = 16
_TOLERANCE = 0.05  # of a cell, by which simplified outlines may be off
_MAX_EDGE = 8  # cells: a straight edge on the map is not straight in degrees
_MAX_POINTS = 900  # of a region
# Heat
_HEAT_MASS, _MAX_HEAT_CELLS = 0.99, 1000
_HEAT_POINTS = 24  # of each Gaussian, that determine which cells it reaches
_CELL_SIZES_KM = tuple(base * 10**power for power in range(-1, 4) for base in (1, 1.5, 2, 3, 5, 7))


def describe_regions(posterior: Posterior, row: int = 0, allowed: Allowed | None = None) -> dict[str, Any]:
    """Return the ``regions`` and the ``heat`` of an answer in detail.

    Args:
        posterior: of any number of images.
        row: which of them.
        allowed: limits that were set.

    Raises:
        MissingExtraError: the extra ``places`` is not installed.
    """
    mixture = Mixture.from_posterior(posterior, row, allowed)
    nominal = posterior.nominal_hpd_levels(REGION_LEVELS)[row].tolist()
    return {"regions": hpd_regions(mixture, nominal=nominal), "heat": heat_cells(mixture)}


def hpd_regions(
    mixture: Mixture, levels: Sequence[float] = REGION_LEVELS, *, nominal: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return the smallest regions that hold the truth with some probabilities.

    Args:
        mixture: the density.
        levels: the probabilities, above 0 and below 1.
        nominal: share of the mass in each region; see
            :meth:`open_geoclip.search.posterior.Posterior.nominal_hpd_levels`. Default: ``levels``.

    Returns:
        For each level in percent ("50", "90") a GeoJSON MultiPolygon (RFC 7946), exteriors counterclockwise, cut at the
        antimeridian.

    Raises:
        MissingExtraError: the extra ``places`` is not installed.
    """
    try:
        import contourpy  # noqa: F401  # used in `_contours`: fail before anything is computed
        import shapely
    except ImportError as error:
        raise MissingExtraError("Regions as polygons", "places") from error
    densities = mixture.hpd_density(levels if nominal is None else nominal)
    isolated, clusters = _clusters(mixture, float(densities.min()))
    parts = [_circles(mixture, isolated, density) for density in densities.tolist()]
    for cluster, counted in clusters:
        for polygons, more in zip(parts, _contours(mixture, cluster, counted, densities), strict=True):
            polygons += more
    finest = min((polygon.cell_km for polygons in parts for polygon in polygons), default=1.0)
    digits = int(np.clip(math.ceil(-math.log10(finest / 111 / 10)), 2, 6))
    wide = _wide_contours(mixture, densities)
    return {
        f"{100 * level:.4g}": _geojson(_simplify(shapely.union_all([*_to_degrees(polygons), *others])), digits)
        for level, polygons, others in zip(levels, parts, wide, strict=True)
    }


class _MapPolygon(NamedTuple):
    """A polygon on an azimuthal equal-area map.

    Attributes:
        rings: kilometres east and north of the map's centre; the exterior, then holes.
        frame: of the map; see :func:`~open_geoclip.geo.sphere.tangent_frame`.
        cell_km: resolution that it was drawn at.
        is_minimal: whether it has no points to remove.
    """

    rings: list[Float64[np.ndarray, "_ 2"]]
    frame: Float64[np.ndarray, "3 3"]
    cell_km: float
    is_minimal: bool = False


def _clusters(
    mixture: Mixture, level: float
) -> tuple[Int64[np.ndarray, " l"], list[tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]]]:
    """Return isolated Gaussians, and clusters, each with all that is counted on its map: Gaussians no smaller.

    Gaussians whose centres are below the level are not drawn, nor wide ones; see :func:`_wide_contours`.
    """
    from scipy.sparse.csgraph import connected_components

    density = mixture.density(mixture.means)
    dense = (density >= level) & (mixture.sigma_km < _WIDE_KM)
    # What others add at the centre hardly matters to the outline of an isolated one.
    alone = density - mixture.mass / (2 * math.pi * mixture.sigma_km**2) <= _OTHERS_SHARE * level
    size = np.floor(np.log(mixture.sigma_km) / math.log(_SIZE_RATIO)).astype(int)
    isolated, clusters = [], []
    for one in np.unique(size[dense]):
        rows = np.flatnonzero(dense & (size == one))
        reach = _LINK_SIGMAS * mixture.sigma_km[rows] / EARTH_RADIUS_KM
        chord = np.sqrt(np.maximum(2 - 2 * mixture.means[rows] @ mixture.means[rows].T, 0))
        _, labels = connected_components(chord <= reach[:, None] + reach, directed=False)
        counted = np.flatnonzero(size >= one)
        for label, count in enumerate(np.bincount(labels).tolist()):
            members = rows[labels == label]
            if count == 1 and alone[members[0]] and mixture.allowed is None:
                isolated.append(members)
            else:
                clusters += [(part, counted) for part in _divide(members, mixture.means)]
    return np.concatenate(isolated) if isolated else np.zeros(0, np.int64), clusters


def _divide(rows: Int64[np.ndarray, " c"], means: Float64[np.ndarray, "n 3"]) -> list[Int64[np.ndarray, " _"]]:
    """Return the rows, divided by the sides of a cube if they spread over too much of the Earth for one map."""
    if (means[rows] @ _centre(means[rows])).min() >= math.cos(_MAX_EXTENT):
        return [rows]
    axis = np.abs(means[rows]).argmax(axis=1)
    side = 2 * axis + (means[rows, axis] > 0)
    return [rows[side == one] for one in np.unique(side)]


def _centre(points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "3"]:
    total = points.sum(axis=0)
    length = float(np.linalg.norm(total))
    return np.asarray(total / length if length > 1e-6 else points[0])


def _circles(mixture: Mixture, isolated: Int64[np.ndarray, " l"], level: float) -> list[_MapPolygon]:
    """Return the part of isolated Gaussians that is denser than a level: circles, as polygons of the same area."""
    sigma, means = mixture.sigma_km[isolated], mixture.means[isolated]
    peak = mixture.mass[isolated] / (2 * math.pi * sigma**2)
    others = mixture.density(means) - peak
    high = peak > level - others
    # On the equal-area map around its centre a circle of the sphere is a circle.
    radius = sigma[high] * np.sqrt(2 * np.log(peak[high] / (level - others[high])))
    angle = np.append(np.arange(_CIRCLE_CORNERS), 0) / _CIRCLE_CORNERS * 2 * math.pi
    same_area = math.sqrt(2 * math.pi / _CIRCLE_CORNERS / math.sin(2 * math.pi / _CIRCLE_CORNERS))
    circle = same_area * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return [
        _MapPolygon([km * circle], frame, one / _CELLS_PER_SIGMA, is_minimal=True)
        for km, frame, one in zip(radius.tolist(), tangent_frame(means[high]), sigma[high].tolist(), strict=True)
    ]


def _contours(
    mixture: Mixture,
    cluster: Int64[np.ndarray, " c"],
    counted: Int64[np.ndarray, " d"],
    levels: Float64[np.ndarray, " s"],
) -> list[list[_MapPolygon]]:
    """Return, for each level, the part of the map around a cluster that is denser."""
    from contourpy import FillType, contour_generator

    frame = tangent_frame(_centre(mixture.means[cluster]))
    sigma = mixture.sigma_km[cluster]
    centres, margin = azimuthal_equal_area(mixture.means[cluster], frame), _MARGIN_SIGMAS * sigma[:, None]
    low, high = (centres - margin).min(axis=0), (centres + margin).max(axis=0)
    cell = float(sigma.min()) / _CELLS_PER_SIGMA
    if mixture.allowed is not None:  # the map ends where the samples do: limits may be smaller than the cells
        found = azimuthal_equal_area(mixture.samples, frame)
        found = found[((found > low) & (found < high)).all(axis=1)]
        if len(found) >= _FEW_SAMPLES:
            margin = 0.05 * np.ptp(found, axis=0)
            low, high = np.maximum(low, found.min(axis=0) - margin), np.minimum(high, found.max(axis=0) + margin)
            cell = min(cell, float((high - low).max()) / _MIN_CELLS)
    cell = max(cell, float((high - low).max()) / _MAX_CELLS)
    x, y = (np.arange(math.ceil((end - start) / cell) + 1) * cell + start for start, end in zip(low, high, strict=True))
    # Gaussians narrower than a cell are widened to one, or they could lie between the nodes.
    near = counted[mixture.means[counted] @ frame[2] > -0.5]
    sigma = np.maximum(mixture.sigma_km[near], 0.7 * cell)
    along_x, along_y = (
        np.exp(-(((axis[:, None] - centre) / sigma) ** 2) / 2)
        for axis, centre in zip((x, y), azimuthal_equal_area(mixture.means[near], frame).T, strict=True)
    )
    density = (along_y * (mixture.mass[near] / (2 * math.pi * sigma**2))) @ along_x.T
    if mixture.allowed is not None:
        points = azimuthal_equal_area_inverse(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2), frame)
        inside = np.isfinite(points[:, 0])
        inside[inside] = mixture.allowed(coordinates_of(points[inside]))
        density = np.where(inside.reshape(density.shape), density, 0)
    # Contours are interpolated in the logarithm, which is smoother than the density.
    log_density = np.log(np.maximum(density, float(levels.min()) * 1e-6))
    generator = contour_generator(x, y, log_density, fill_type=FillType.OuterOffset)
    return [
        [
            _MapPolygon([points[start:end] for start, end in itertools.pairwise(offsets.tolist())], frame, cell)
            for points, offsets in zip(*generator.filled(level, _MAX_LOG_DENSITY), strict=True)
        ]
        for level in np.log(levels).tolist()
    ]


def _wide_contours(mixture: Mixture, levels: Float64[np.ndarray, " s"]) -> list[list["BaseGeometry"]]:
    """Return, for each level, the part of the Earth where wide Gaussians alone are denser: polygons in degrees."""
    import shapely
    from contourpy import FillType, contour_generator

    wide = mixture.subset(mixture.sigma_km >= _WIDE_KM)
    if (wide.density(wide.means) < levels.min()).all():
        return [[] for _ in levels]
    (south, west), (north, east) = np.array([[-90, -180], [90, 180]])
    if mixture.allowed is not None:  # the grid ends where the samples do: limits may be smaller than its steps
        lat, lon = coordinates_of(mixture.samples).T
        span = np.stack((lat, lon[0] + (lon - lon[0] + 180) % 360 - 180), axis=1)
        margin = 0.02 * np.ptp(span, axis=0)
        (south, west), (north, east) = span.min(axis=0) - margin, span.max(axis=0) + margin
    lat, lon = np.linspace(max(south, -90), min(north, 90), _WIDE_NODES), np.linspace(west, east, 2 * _WIDE_NODES - 1)
    places = np.stack(np.meshgrid(lat, lon, indexing="ij"), axis=-1)
    density = wide.density(unit_vectors(places.reshape(-1, 2))).reshape(places.shape[:2])
    log_density = np.log(np.maximum(density, float(levels.min()) * 1e-6))
    generator = contour_generator(lon, lat, log_density, fill_type=FillType.OuterOffset)
    found: list[list[BaseGeometry]] = []
    for level in np.log(levels).tolist():
        found.append([])
        for points, offsets in zip(*generator.filled(level, _MAX_LOG_DENSITY), strict=True):
            ends = itertools.pairwise(offsets.tolist())
            exterior, *holes = (cut_antimeridian(points[start:end]) for start, end in ends)
            found[-1].append(shapely.difference(exterior, shapely.union_all(holes)))
    return found


# --- from maps to degrees -------------------------------------------------------------------------


def _to_degrees(polygons: list[_MapPolygon]) -> np.ndarray:
    """Return shapely polygons in degrees, longitude first, cut at the antimeridian and closed over the poles."""
    import shapely

    if not polygons:
        return np.empty(0, object)
    cell_km = np.array([polygon.cell_km for polygon in polygons])
    ring_ends = np.cumsum([0, *(len(ring) for polygon in polygons for ring in polygon.rings)])
    polygon_ends = np.cumsum([0, *(len(polygon.rings) for polygon in polygons)])
    points = np.concatenate([ring for polygon in polygons for ring in polygon.rings])
    shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (ring_ends, polygon_ends))
    tolerance_km = np.where([polygon.is_minimal for polygon in polygons], 0, _TOLERANCE * cell_km)
    shapes = shapely.segmentize(shapely.simplify(shapes, tolerance_km), _MAX_EDGE * cell_km)
    kept = np.flatnonzero(~shapely.is_empty(shapes))
    _, points, (ring_ends, polygon_ends) = shapely.to_ragged_array(shapes[kept])
    frames = np.stack([polygons[at].frame for at in kept.tolist()])
    owner = np.repeat(np.arange(len(kept)), np.diff(ring_ends[polygon_ends]))
    lat, lon = coordinates_of(azimuthal_equal_area_inverse(points, frames[owner])).T
    # Rings that cross the antimeridian, or enclose a pole, jump by more than half a turn between two points.
    jumps = np.abs(np.diff(lon, append=lon[-1])) > 180
    jumps[ring_ends[1:] - 1] = False  # from one ring to the next
    crossing = np.logical_or.reduceat(jumps, ring_ends[polygon_ends[:-1]])
    flat = np.stack((lon, lat), axis=1)
    shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, flat, (ring_ends, polygon_ends))
    for at in np.flatnonzero(crossing).tolist():
        rings = range(polygon_ends[at], polygon_ends[at + 1])
        exterior, *holes = (cut_antimeridian(flat[ring_ends[ring] : ring_ends[ring + 1]]) for ring in rings)
        shapes[at] = shapely.difference(exterior, shapely.union_all(holes)) if holes else exterior
    return np.asarray(shapely.make_valid(shapes))


def _simplify(shape: "BaseGeometry") -> "BaseGeometry":
    """Reduce a shape to about 900 points; each part loses detail in proportion to its size."""
    import shapely

    tolerance = 0.01
    while shapely.get_num_coordinates(shape) > _MAX_POINTS and tolerance < 0.1:
        parts = shapely.get_parts(shape)
        shape = shapely.union_all(shapely.simplify(parts, tolerance * np.sqrt(shapely.area(parts))))
        tolerance *= 2
    return shape


def _geojson(shape: "BaseGeometry", digits: int) -> dict[str, Any]:
    """Return a MultiPolygon as GeoJSON that is valid after rounding."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts(shapely.set_precision(shape, 10.0**-digits)))
    parts = parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)]
    polygons = [
        [
            [[round(lon, digits), round(lat, digits)] for lon, lat in ring.coords]
            for ring in (part.exterior, *part.interiors)
        ]
        for part in shapely.orient_polygons(parts).tolist()
    ]
    return {"type": "MultiPolygon", "coordinates": polygons}


# --- heat -----------------------------------------------------------------------------------------


def heat_cells(mixture: Mixture) -> dict[str, Any]:
    """Return the probability of cells of equal area.

    Cells are those of an :class:`~open_geoclip.geo.projections.EqualAreaGrid`, as small as the Gaussians that hold most
    of the mass, and larger where there would be more than 1,000.

    Returns:
        ``cell_km``, the side of a square of a cell's area, and ``cells``, a list of [lat, lon, probability], most
        probable first, that hold 99 % of the mass.
    """
    order = np.argsort(mixture.sigma_km)
    typical = mixture.sigma_km[order][np.searchsorted(np.cumsum(mixture.mass[order]), 0.25)]
    east, north = (
        (mixture.sigma_km[:, None, None] * gaussian_quadrature(_HEAT_POINTS) / EARTH_RADIUS_KM).reshape(-1, 2).T
    )
    points = tangent_offset(np.repeat(mixture.means, _HEAT_POINTS, axis=0), east, north)
    owner = np.repeat(np.arange(len(mixture)), _HEAT_POINTS)
    if mixture.allowed is not None:  # limits may be too small for these points to hit, not for the samples
        inside = mixture.allowed(coordinates_of(points))
        points = np.concatenate((points[inside], mixture.samples))
        owner = np.append(owner[inside], np.full(len(mixture.samples), len(mixture)))
    for size_km in (km for km in _CELL_SIZES_KM if km >= min(0.8 * typical, _CELL_SIZES_KM[-1])):
        grid = EqualAreaGrid.from_cell_km(size_km)
        cells, first, of = np.unique(grid.cells(coordinates_of(points)), return_index=True, return_inverse=True)
        if len(cells) <= 1.3 * _MAX_HEAT_CELLS:
            centres, cell_km = grid.centres(cells), grid.cell_km
            places = unit_vectors(centres)
            if mixture.allowed is not None:
                beyond = ~mixture.allowed(centres)
                places[beyond] = points[first[beyond]]
            # The mass of a cell is the density at its centre times its area, but for Gaussians narrower than a cell.
            narrow = mixture.sigma_km < 0.7 * cell_km
            mass = mixture.subset(~narrow).density(places) * cell_km**2
            counts = np.bincount(owner, minlength=len(mixture))[: len(mixture)]
            share = np.append(np.where(narrow, mixture.mass / np.maximum(counts, 1), 0.0), 0.0)
            mass += np.bincount(of, weights=share[owner], minlength=len(cells))
            mass /= mass.sum()
            best = np.argsort(-mass, kind="stable")
            count = 1 + int(np.searchsorted(np.cumsum(mass[best]), _HEAT_MASS))
            if count <= _MAX_HEAT_CELLS:
                break
    digits = int(np.clip(math.ceil(-math.log10(cell_km / 111 / 20)), 2, 5))
    return {
        "cell_km": round(cell_km, 3),
        "cells": [
            [round(lat, digits), round(lon, digits), float(f"{probability:.3g}")]
            for (lat, lon), probability in zip(centres[best[:count]].tolist(), mass[best[:count]].tolist(), strict=True)
        ],
    }
