"""Circles, boxes and polygons on the sphere: what they contain, their area, even points in them.

Edges of polygons are straight in longitude and latitude (RFC 7946). An edge that spans more than 180 degrees goes the
short way, across the antimeridian.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from open_geoclip.errors import AreaError, CoordinateError, MissingExtraError
from open_geoclip.geo.projections import cut_antimeridian
from open_geoclip.geo.sphere import (
    EARTH_RADIUS_KM,
    GOLDEN_RATIO,
    MAX_LONGITUDE_DEG,
    check_coordinates,
    destination,
    even_points,
    haversine_km,
)

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

__all__ = ["EARTH", "MAX_CORNERS", "Box", "Circle", "Polygon", "Shape"]

MAX_CORNERS = 1_000_000
"""Corners that a GeoJSON object may have by default."""

_MAX_CROSSINGS = 1000  # edges that cross each other; repairing more takes minutes
_MAX_PAIRS = 5_000_000  # edges whose bounding boxes overlap, which are tested for crossings
_MIN_RADIUS_KM = 1e-6
_MIN_AREA_KM2 = 1e-12


@dataclass(frozen=True)
class Circle:
    """All places within a great-circle distance, from 1 mm to half the way around the Earth, of a centre in degrees.

    Raises:
        AreaError: the centre is not on Earth, or the radius is out of range.
    """

    lat: float
    lon: float
    radius_km: float

    def __post_init__(self) -> None:
        _check_corner(self.lat, self.lon, self.name)
        if not _MIN_RADIUS_KM <= self.radius_km <= math.pi * EARTH_RADIUS_KM:
            raise AreaError(f"{self.name}: a radius is from 1 mm to 20,015 km, half the way around the Earth")

    @property
    def name(self) -> str:
        """The circle as it is written on the command line."""
        return f"{self.lat:.10g},{self.lon:.10g},{self.radius_km:.10g}km"

    @property
    def area_km2(self) -> float:
        """Area of the spherical cap."""
        return 4 * math.pi * (EARTH_RADIUS_KM * math.sin(self.radius_km / EARTH_RADIUS_KM / 2)) ** 2

    def contains(self, coordinates: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Return which (lat, lon) lie within the radius."""
        return haversine_km(np.asarray(coordinates, np.float64), np.array([[self.lat, self.lon]])) <= self.radius_km

    def points(self, n: int) -> Float64[np.ndarray, "m 2"]:
        """Return n points that represent equal areas, on a Fibonacci spiral."""
        step = np.arange(n) + 0.5
        angle = 2 * np.arcsin(math.sin(self.radius_km / EARTH_RADIUS_KM / 2) * np.sqrt(step / n))
        return destination(np.array([[self.lat, self.lon]]), 360 * (step * GOLDEN_RATIO % 1), angle * EARTH_RADIUS_KM)


@dataclass(frozen=True)
class Box:
    """All places between two parallels and two meridians, in degrees; ``west`` > ``east`` crosses the antimeridian.

    Raises:
        AreaError: a corner is not on Earth, the box has no area, or ``south`` is north of ``north``.
    """

    south: float
    west: float
    north: float
    east: float

    def __post_init__(self) -> None:
        _check_corner(self.south, self.west, self.name)
        _check_corner(self.north, self.east, self.name)
        order = "a box is south,west,north,east: latitude first, the south-western corner before the north-eastern one"
        if self.south > self.north:
            raise AreaError(f"{self.name}: {self.south:g} is not south of {self.north:g}; {order}")
        if self.area_km2 < _MIN_AREA_KM2:
            raise AreaError(f"{self.name}: the box has no area; {order}")

    @property
    def name(self) -> str:
        """The box as it is written on the command line."""
        return ",".join(f"{edge:.10g}" for edge in (self.south, self.west, self.north, self.east))

    @property
    def width_deg(self) -> float:
        """Degrees of longitude from the western edge eastwards to the eastern one."""
        return 360.0 if self.east - self.west >= 360 else (self.east - self.west) % 360

    @property
    def area_km2(self) -> float:
        """Area on the sphere."""
        height = math.sin(math.radians(self.north)) - math.sin(math.radians(self.south))
        return EARTH_RADIUS_KM**2 * math.radians(self.width_deg) * height

    def contains(self, coordinates: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Return which (lat, lon) lie inside. A box that reaches a pole contains it, whatever its longitude."""
        lat, lon = np.asarray(coordinates, np.float64).T
        across = (lon - self.west) % 360 <= self.width_deg
        return (lat >= self.south) & (lat <= self.north) & (across | (np.abs(lat) == 90))

    def points(self, n: int) -> Float64[np.ndarray, "m 2"]:
        """Return n points that represent equal areas, a Fibonacci lattice."""
        return even_points(max(1, n), self.south, self.north, self.west, self.west + self.width_deg)


def read_geojson(path: Path) -> Any:
    """Return the content of a GeoJSON file, not yet checked.

    Raises:
        AreaError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise AreaError(f"{path}: there is no such file") from error
    except (ValueError, RecursionError) as error:
        raise AreaError(f"{path}: it is not GeoJSON: {error}") from error
    except OSError as error:
        raise AreaError(f"{path}: it cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True, eq=False)
class Polygon:
    """All places inside polygons.

    Attributes:
        name: how answers and errors refer to it.
        geometry: a shapely Polygon or MultiPolygon, longitude first, within ±180 and ±90 degrees. :meth:`from_geojson`
            makes one of arbitrary rings.
    """

    name: str
    geometry: "BaseGeometry"

    @classmethod
    def from_geojson(cls, content: object, name: str = "polygon", *, max_corners: int = MAX_CORNERS) -> "Polygon":
        """Read the polygons of a GeoJSON object, cut at the antimeridian where they cross it.

        A ring around a pole means the smaller side. A ring that crosses itself encloses what an odd number of its
        turns surround.

        Args:
            content: a Polygon, a MultiPolygon, a Feature, a FeatureCollection or a GeometryCollection.
            name: how answers and errors refer to it.
            max_corners: of all rings together.

        Raises:
            AreaError: it is not GeoJSON, has no polygon or no area, more corners than ``max_corners``, or edges that
                cross each other in more than 1,000 places.
            MissingExtraError: the extra ``places`` is not installed.
        """
        try:
            import shapely
        except ImportError as error:
            raise MissingExtraError("A polygon", "places") from error

        try:
            polygons = list(_polygon_rings(content, name))
            corners = [ring for rings in polygons for ring in rings]
            if sum(map(len, corners)) > max_corners:
                raise AreaError(f"{name}: it has more than {max_corners:,} corners: simplify the polygon")
            if not all(shapely.is_valid(shapely.Polygon(rings[0], rings[1:])) for rings in polygons):
                _check_crossings(corners, name)
            shapes = []
            for exterior, *holes in polygons:
                shape = cut_antimeridian(exterior)
                if holes:
                    shape = shapely.difference(shape, shapely.union_all([cut_antimeridian(hole) for hole in holes]))
                shapes += _polygons(shape)
            geometry = shapely.union_all(shapes)
        except (ValueError, OverflowError, shapely.GEOSException) as error:
            if isinstance(error, AreaError):
                raise
            raise AreaError(f"{name}: a ring cannot be made a polygon: {error}") from error
        if _area_km2(geometry) < _MIN_AREA_KM2:
            raise AreaError(f"{name}: the polygon has no area")
        return cls(name, geometry)

    @classmethod
    def from_file(cls, path: str | Path) -> "Polygon":
        """Read the polygons of a GeoJSON file.

        Raises:
            AreaError: the file cannot be read; see :meth:`from_geojson`.
        """
        return cls.from_geojson(read_geojson(Path(path)), str(path))

    @cached_property
    def area_km2(self) -> float:
        """Area on the sphere, edges taken as straight on an equal-area map."""
        return _area_km2(self.geometry)

    def contains(self, coordinates: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Return which (lat, lon) lie inside or on the edge."""
        import shapely

        lat, lon = np.asarray(coordinates, np.float64).T
        shapely.prepare(self.geometry)
        inside = shapely.intersects_xy(self.geometry, lon, lat)
        seam = np.abs(lon) == 180  # +180 and -180 are one meridian
        inside[seam] |= shapely.intersects_xy(self.geometry, -lon[seam], lat[seam])
        for pole in (-90, 90):  # one place, whatever its longitude
            here = lat == pole
            if here.any():
                inside[here] = shapely.intersects(self.geometry, shapely.LineString([(-180, pole), (180, pole)]))
        return np.asarray(inside, bool)

    def points(self, n: int) -> Float64[np.ndarray, "m 2"]:
        """Return about n points that represent equal areas: a Fibonacci lattice over the bounds of each part."""
        import shapely

        found = []
        for part in _polygons(self.geometry):
            west, south, east, north = part.bounds
            count = math.ceil(n * Box(south, west, north, east).area_km2 / self.area_km2)
            points = even_points(min(count, 100 * n), south, north, west, east)
            shapely.prepare(part)
            found.append(points[shapely.intersects_xy(part, points[:, 1], points[:, 0])])
        return np.concatenate(found)


Shape: TypeAlias = Circle | Box | Polygon
"""One part of an area: its ``name``, its ``area_km2``, which places it ``contains`` and about n even ``points``."""


def _check_corner(lat: float, lon: float, name: str) -> None:
    try:
        check_coordinates(np.array([[lat, lon]], np.float64))
    except CoordinateError as error:
        hint = "; it looks like longitude first, but latitude comes first here" if abs(lon) <= 90 < abs(lat) else ""
        raise AreaError(f"{name}: ({lat:g}, {lon:g}) is not a place on Earth{hint}") from error


EARTH = Box(-90, -180, 90, 180)
"""All of it, as a box."""


# --- GeoJSON --------------------------------------------------------------------------------------


def _polygon_rings(content: object, name: str) -> Iterator[list[Float64[np.ndarray, "_ 2"]]]:
    """Yield the rings of each polygon in a GeoJSON object, as (longitude, latitude) in degrees."""
    match content:
        case {"type": "FeatureCollection", "features": list(members)}:
            for member in members:
                yield from _polygon_rings(member, name)
        case {"type": "GeometryCollection", "geometries": list(members)}:
            for member in members:
                yield from _polygon_rings(member, name)
        case {"type": "Feature", "geometry": geometry}:
            yield from _polygon_rings(geometry, name)
        case {"type": "Polygon", "coordinates": list(rings)} if rings:
            yield [_read_ring(ring, name) for ring in rings]
        case {"type": "MultiPolygon", "coordinates": list(polygons)} if polygons:
            for polygon in polygons:
                yield from _polygon_rings({"type": "Polygon", "coordinates": polygon}, name)
        case {"type": "Point" | "MultiPoint" | "LineString" | "MultiLineString" as kind}:
            raise AreaError(f"{name}: a {kind} has no area; polygons are needed (a circle is lat,lon,radius)")
        case _:
            raise AreaError(f"{name}: it is not GeoJSON with polygons (RFC 7946)")


def _read_ring(positions: Any, name: str) -> Float64[np.ndarray, "n 2"]:
    if not isinstance(positions, list) or len(positions) < 4:
        raise AreaError(f"{name}: a ring is a list of four positions or more, the last one equal to the first")
    ring = np.empty((len(positions), 2))
    for row, position in enumerate(positions):
        match position:
            case [int() | float() as lon, int() | float() as lat, *_] if (
                abs(lat) <= 90 and abs(lon) <= MAX_LONGITUDE_DEG
            ):
                ring[row] = lon, lat
            case [int() | float() as lon, int() | float() as lat, *_]:
                swapped = ": it looks like (latitude, longitude), but GeoJSON writes longitude first"
                hint = swapped if abs(lon) <= 90 else ""
                raise AreaError(f"{name}: [{lon:.10g}, {lat:.10g}] is not a position on Earth{hint}")
            case _:
                raise AreaError(f"{name}: {position!r:.60} is not a position [longitude, latitude]")
    if (ring[0] != ring[-1]).any():
        first, last = ring[[0, -1]].tolist()
        raise AreaError(f"{name}: a ring ends where it begins; this one begins at {first} and ends at {last}")
    return ring


def _check_crossings(rings: list[Float64[np.ndarray, "_ 2"]], name: str) -> None:
    """Raise AreaError if edges cross each other in more places than can be repaired in a second."""
    import shapely

    starts, ends = (np.concatenate([ring[part] for ring in rings]) for part in (slice(-1), slice(1, None)))
    tree = shapely.STRtree(shapely.linestrings(np.stack((starts, ends), axis=1)))
    crossings = pairs = 0
    block = max(1, 2_000_000 // len(starts))
    for first in range(0, len(starts), block):
        one, other = tree.query(tree.geometries[first : first + block])
        one += first
        one, other = one[one < other], other[one < other]
        a, b, c, d = starts[one], ends[one], starts[other], ends[other]
        crossings += int(((_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)).sum())
        pairs += len(one)
        if crossings > _MAX_CROSSINGS or pairs > _MAX_PAIRS:
            raise AreaError(f"{name}: its edges cross each other in too many places (more than {_MAX_CROSSINGS:,})")


def _side(
    a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "n 2"], c: Float64[np.ndarray, "n 2"]
) -> Float64[np.ndarray, " n"]:
    """Return 1, 0 or -1 where c is left of, on, or right of the line from a to b."""
    return np.sign((b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0]))


def _area_km2(geometry: "BaseGeometry") -> float:
    import shapely

    # Cylindrical equal-area: longitude in radians, sine of the latitude.
    flat = shapely.transform(
        geometry, lambda xy: np.stack((np.radians(xy[:, 0]), np.sin(np.radians(xy[:, 1]))), axis=1)
    )
    return float(flat.area * EARTH_RADIUS_KM**2)


def _polygons(geometry: "BaseGeometry") -> "list[BaseGeometry]":
    """Return the polygons with an area in a geometry, without the lines and points that repairs leave."""
    parts = [geometry] if geometry.geom_type == "Polygon" else getattr(geometry, "geoms", [])
    found: list[BaseGeometry] = []
    for part in parts:
        found += [part] * (part.area > 0) if part.geom_type == "Polygon" else _polygons(part)
    return found
