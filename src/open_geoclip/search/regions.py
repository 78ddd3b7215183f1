"""Where a picture was taken, drawn: the smallest regions that hold a share of the probability, and heat.

A region is what is denser than a level, and Gaussians of all sizes make the density, so that no single grid can show
it. Gaussians of like size that touch each other are drawn together, on an equal-area map around them whose cells are
as fine as they need; outlines are lines of equal density on it (marching squares, by contourpy). They are brought to
longitudes and latitudes, cut at 180 degrees, closed over the poles, and united.
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

__all__ = ["REGIONS", "drawn", "heat", "regions"]

REGIONS = (0.5, 0.9)
"""Shares of the probability that regions are drawn of."""

_HEAT_SHARE, _HEAT_CELLS = 0.99, 1000
_SPOTS = 24  # of each Gaussian, that tell which cells it reaches
_LADDER_KM = tuple(base * 10**power for power in range(-1, 4) for base in (1, 1.5, 2, 3, 5, 7))
_ALIKE = 4.0  # Gaussians within this factor in size are drawn together
_TOUCH = 2.5  # and do so when they are nearer than so many standard deviations of both
_REACH = 3.5  # a map ends so many standard deviations beyond its Gaussians
_FINE = 1.5  # cells of a map within the smallest standard deviation
_MOST_CELLS = 80  # of a map along each side
_WIDE = math.radians(50)  # what reaches farther from its middle is drawn in parts
_SIMPLER = 0.05  # of a cell, by which an outline may be off
_OTHERS = 0.2  # of a level, that others may add to a Gaussian which is drawn as if it were alone
_CORNERS = 16  # of a circle
_MOST_POINTS = 900  # of a region
_ABOVE_ALL = 700.0  # as a logarithm of a density
_LONGEST = 8  # cells of an edge: straight on the map and straight in degrees are not the same


def drawn(posterior: Posterior, row: int = 0, allowed: Allowed | None = None) -> dict[str, Any]:
    """What an answer tells in detail: the ``regions`` and the ``heat`` of one picture.

    Args:
        posterior: of any number of pictures.
        row: which of them.
        allowed: the limits that were set.

    Raises:
        MissingExtraError: the extra ``places`` is not installed.
    """
    mixture = Mixture.from_posterior(posterior, row, allowed)
    told = posterior.nominal_hpd_levels(REGIONS)[row].tolist()
    return {"regions": regions(mixture, told=told), "heat": heat(mixture)}


def regions(
    mixture: Mixture, shares: Sequence[float] = REGIONS, *, told: Sequence[float] | None = None
) -> dict[str, Any]:
    """The smallest regions that hold the truth in some shares of cases.

    Args:
        mixture: density of one picture.
        shares: above 0 and below 1.
        told: which share of the mass holds the truth so often, each; see
            :meth:`open_geoclip.search.posterior.Posterior.nominal_hpd_levels`. The same when not given.

    Returns:
        For each share in percent ("50", "90") a GeoJSON MultiPolygon (RFC 7946), exteriors counterclockwise, cut at
        180 degrees.

    Raises:
        MissingExtraError: the extra ``places`` is not installed.
    """
    try:
        import contourpy  # noqa: F401  # `_outlines` has it: missed before anything is computed
        import shapely
    except ImportError as error:
        raise MissingExtraError("Regions as polygons", "places") from error
    levels = mixture.hpd_density(shares if told is None else told)
    lone, clusters = _clusters(mixture, float(levels.min()))
    parts = [_circles(mixture, lone, level) for level in levels.tolist()]
    for cluster, counted in clusters:
        for found, new in zip(parts, _outlines(mixture, cluster, counted, levels), strict=True):
            found += new
    finest = min((one.cell_km for found in parts for one in found), default=1.0)
    digits = int(np.clip(math.ceil(-math.log10(finest / 111 / 10)), 2, 6))
    return {
        f"{100 * share:.4g}": _geojson(_lean(shapely.union_all(_in_degrees(found))), digits)
        for share, found in zip(shares, parts, strict=True)
    }


class _Drawn(NamedTuple):
    """A polygon on an equal-area map.

    Attributes:
        rings: kilometres east and north of the map's middle; the outline, then holes.
        frame: of the map, see :func:`~open_geoclip.geo.sphere.tangent_frame`.
        cell_km: how fine it was drawn.
        plain: it has no point too many.
    """

    rings: list[Float64[np.ndarray, "_ 2"]]
    frame: Float64[np.ndarray, "3 3"]
    cell_km: float
    plain: bool = False


Cluster = tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " d"]]


def _clusters(mixture: Mixture, level: float) -> tuple[Int64[np.ndarray, " l"], list[Cluster]]:
    """Gaussians that stand alone, and those that are drawn on one map with what is counted there: they and larger ones.

    Those that are nowhere part of what is denser than the level are not drawn.
    """
    from scipy.sparse.csgraph import connected_components

    density = mixture.density(mixture.means)
    dense = density >= level
    # What others add in the middle hardly matters to the outline of one that stands alone.
    alone = density - mixture.mass / (2 * math.pi * mixture.sigma_km**2) <= _OTHERS * level
    size = np.floor(np.log(mixture.sigma_km) / math.log(_ALIKE)).astype(int)
    lone, found = [], []
    for one in np.unique(size[dense]):
        rows = np.flatnonzero(dense & (size == one))
        reach = _TOUCH * mixture.sigma_km[rows] / EARTH_RADIUS_KM
        chord = np.sqrt(np.maximum(2 - 2 * mixture.means[rows] @ mixture.means[rows].T, 0))
        _, labels = connected_components(chord <= reach[:, None] + reach, directed=False)
        counted = np.flatnonzero(size >= one)
        for label, count in enumerate(np.bincount(labels).tolist()):
            members = rows[labels == label]
            if count == 1 and alone[members[0]]:
                lone.append(members)
            else:
                found += [(part, counted) for part in _narrow(members, mixture.means)]
    return np.concatenate(lone) if lone else np.zeros(0, np.int64), found


def _narrow(rows: Int64[np.ndarray, " c"], middles: Float64[np.ndarray, "n 3"]) -> list[Int64[np.ndarray, " d"]]:
    """The rows, or if they spread over too much of the Earth, those that look out of each side of a cube."""
    centre = _centre(middles[rows])
    if (middles[rows] @ centre).min() >= math.cos(_WIDE):
        return [rows]
    axis = np.abs(middles[rows]).argmax(axis=1)
    side = 2 * axis + (middles[rows, axis] > 0)
    return [rows[side == one] for one in np.unique(side)]


def _centre(points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "3"]:
    total = points.sum(axis=0)
    length = float(np.linalg.norm(total))
    return np.asarray(total / length if length > 1e-6 else points[0])


def _circles(mixture: Mixture, lone: Int64[np.ndarray, " l"], level: float) -> list[_Drawn]:
    """What is denser than a level of Gaussians that stand alone: circles, as polygons of the same area."""
    blur, middles = mixture.sigma_km[lone], mixture.means[lone]
    own = mixture.mass[lone] / (2 * math.pi * blur**2)
    others = mixture.density(middles) - own
    high = own > level - others
    # On the equal-area map around its middle a circle of the sphere is one too.
    radius = blur[high] * np.sqrt(2 * np.log(own[high] / (level - others[high])))
    angle = np.append(np.arange(_CORNERS), 0) / _CORNERS * 2 * math.pi
    even = math.sqrt(2 * math.pi / _CORNERS / math.sin(2 * math.pi / _CORNERS))
    circle = even * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return [
        _Drawn([km * circle], frame, sigma / _FINE, plain=True)
        for km, frame, sigma in zip(radius.tolist(), tangent_frame(middles[high]), blur[high].tolist(), strict=True)
    ]


def _outlines(
    mixture: Mixture,
    cluster: Int64[np.ndarray, " c"],
    counted: Int64[np.ndarray, " d"],
    levels: Float64[np.ndarray, " s"],
) -> list[list[_Drawn]]:
    """What is denser than each level around some Gaussians."""
    from contourpy import FillType, contour_generator

    frame = tangent_frame(_centre(mixture.means[cluster]))
    blur = mixture.sigma_km[cluster]
    where = azimuthal_equal_area(mixture.means[cluster], frame)
    low, high = (where - _REACH * blur[:, None]).min(axis=0), (where + _REACH * blur[:, None]).max(axis=0)
    cell = max(float(blur.min()) / _FINE, float((high - low).max()) / _MOST_CELLS)
    x, y = (np.arange(math.ceil((end - start) / cell) + 1) * cell + start for start, end in zip(low, high, strict=True))
    # What is smaller than a cell is blurred to one, or it might lie between the cells.
    near = counted[mixture.means[counted] @ frame[2] > -0.5]
    blur = np.maximum(mixture.sigma_km[near], 0.7 * cell)
    across, along = (
        np.exp(-(((axis[:, None] - middle) / blur) ** 2) / 2)
        for axis, middle in zip((x, y), azimuthal_equal_area(mixture.means[near], frame).T, strict=True)
    )
    density = (along * (mixture.mass[near] / (2 * math.pi * blur**2))) @ across.T
    if mixture.allowed is not None:
        places = azimuthal_equal_area_inverse(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2), frame)
        on_map = np.isfinite(places[:, 0])
        on_map[on_map] = mixture.allowed(coordinates_of(places[on_map]))
        density = np.where(on_map.reshape(density.shape), density, 0)
    # Between cells the logarithm of a Gaussian is straighter than the Gaussian itself.
    height = np.log(np.maximum(density, float(levels.min()) * 1e-6))
    lines = contour_generator(x, y, height, fill_type=FillType.OuterOffset)
    return [
        [
            _Drawn([part[start:end] for start, end in itertools.pairwise(offsets.tolist())], frame, cell)
            for part, offsets in zip(*lines.filled(level, _ABOVE_ALL), strict=True)
        ]
        for level in np.log(levels).tolist()
    ]


# --- from the map to degrees ----------------------------------------------------------------------


def _in_degrees(drawn: list[_Drawn]) -> np.ndarray:
    """Polygons in degrees, longitude first, cut at 180 and closed over the poles."""
    import shapely

    if not drawn:
        return np.empty(0, object)
    cell_km = np.array([one.cell_km for one in drawn])
    rings = np.cumsum([0, *(len(ring) for one in drawn for ring in one.rings)])
    polygons = np.cumsum([0, *(len(one.rings) for one in drawn)])
    points = np.concatenate([ring for one in drawn for ring in one.rings])
    shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (rings, polygons))
    off_km = np.where([one.plain for one in drawn], 0, _SIMPLER * cell_km)
    shapes = shapely.segmentize(shapely.simplify(shapes, off_km), _LONGEST * cell_km)
    kept = np.flatnonzero(~shapely.is_empty(shapes))
    _, points, (rings, polygons) = shapely.to_ragged_array(shapes[kept])
    frames = np.stack([drawn[at].frame for at in kept.tolist()])
    own = np.repeat(np.arange(len(kept)), np.diff(rings[polygons]))
    lat, lon = coordinates_of(azimuthal_equal_area_inverse(points, frames[own])).T
    # Rings that cross 180 degrees, or go around a pole, turn by more than half a turn between two points.
    jumps = np.abs(np.diff(lon, append=lon[-1])) > 180
    jumps[rings[1:] - 1] = False  # from one ring to the next
    crossing = np.logical_or.reduceat(jumps, rings[polygons[:-1]])
    flat = np.stack((lon, lat), axis=1)
    shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, flat, (rings, polygons))
    for at in np.flatnonzero(crossing).tolist():
        outside, *holes = (
            cut_antimeridian(flat[rings[ring] : rings[ring + 1]]) for ring in range(polygons[at], polygons[at + 1])
        )
        shapes[at] = shapely.difference(outside, shapely.union_all(holes)) if holes else outside
    return np.asarray(shapely.make_valid(shapes))


def _lean(shape: "BaseGeometry") -> "BaseGeometry":
    """A shape with about as many points as an answer has room for: each part loses detail in proportion to its size."""
    import shapely

    off = 0.01
    while shapely.get_num_coordinates(shape) > _MOST_POINTS and off < 0.1:
        parts = shapely.get_parts(shape)
        shape = shapely.union_all(shapely.simplify(parts, off * np.sqrt(shapely.area(parts))))
        off *= 2
    return shape


def _geojson(shape: "BaseGeometry", digits: int) -> dict[str, Any]:
    """A MultiPolygon as GeoJSON, valid in so many digits."""
    import shapely

    kept = shapely.get_parts(shapely.get_parts(shapely.set_precision(shape, 10.0**-digits)))
    kept = kept[(shapely.get_type_id(kept) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(kept)]
    polygons = [
        [
            [[round(lon, digits), round(lat, digits)] for lon, lat in ring.coords]
            for ring in (part.exterior, *part.interiors)
        ]
        for part in shapely.orient_polygons(kept).tolist()
    ]
    return {"type": "MultiPolygon", "coordinates": polygons}


# --- heat -----------------------------------------------------------------------------------------


def heat(mixture: Mixture) -> dict[str, Any]:
    """Where the probability lies, in cells of one area.

    Cells are those of an :class:`~open_geoclip.geo.projections.EqualAreaGrid`, as fine as the Gaussians that hold most
    of the mass, and coarser where there would be more than 1,000 of them.

    Returns:
        ``cell_km``, the side of a square of a cell's area, and ``cells``, a list of [lat, lon, probability], the
        likeliest first, which hold 99 % of it.
    """
    order = np.argsort(mixture.sigma_km)
    typical = mixture.sigma_km[order][np.searchsorted(np.cumsum(mixture.mass[order]), 0.25)]
    offsets = gaussian_quadrature(_SPOTS) / EARTH_RADIUS_KM
    spots = tangent_offset(
        np.repeat(mixture.means, _SPOTS, axis=0), *(mixture.sigma_km[:, None, None] * offsets).reshape(-1, 2).T
    )
    each = np.repeat(np.arange(len(mixture)), _SPOTS)
    if mixture.allowed is not None and (inside := mixture.allowed(coordinates_of(spots))).any():
        spots, each = spots[inside], each[inside]
    for asked_km in (km for km in _LADDER_KM if km >= min(0.8 * typical, _LADDER_KM[-1])):
        grid = EqualAreaGrid.from_cell_km(asked_km)
        cells, of = np.unique(grid.cells(coordinates_of(spots)), return_inverse=True)
        if len(cells) <= 1.3 * _HEAT_CELLS:
            middles, cell_km = grid.centres(cells), grid.cell_km
            # The density at the middle tells the mass of a cell, unless a Gaussian is narrower than the cell.
            narrow = mixture.sigma_km < 0.7 * cell_km
            found = mixture.subset(~narrow).density(unit_vectors(middles)) * cell_km**2
            mass = np.where(narrow, mixture.mass / np.maximum(np.bincount(each, minlength=len(mixture)), 1), 0.0)
            found += np.bincount(of, weights=mass[each], minlength=len(cells))
            found /= found.sum()
            best = np.argsort(-found, kind="stable")
            count = 1 + int(np.searchsorted(np.cumsum(found[best]), _HEAT_SHARE))
            if count <= _HEAT_CELLS:
                break
    digits = int(np.clip(math.ceil(-math.log10(cell_km / 111 / 20)), 2, 5))
    return {
        "cell_km": round(cell_km, 3),
        "cells": [
            [round(lat, digits), round(lon, digits), float(f"{share:.3g}")]
            for (lat, lon), share in zip(middles[best[:count]].tolist(), found[best[:count]].tolist(), strict=True)
        ],
    }
