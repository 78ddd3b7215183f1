"""Shapes on the sphere: circles, boxes and polygons; what they contain, their area, even points in them.

Circles are great-circle discs, right around the poles. Edges of polygons are straight in longitude and latitude, as
RFC 7946 says; one that spans more than 180 degrees goes the short way, over the 180th meridian.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from open_geoclip.errors import AreaError, CoordinateError
from open_geoclip.geo.geojson import polygon_rings
from open_geoclip.geo.sphere import (
    EARTH_RADIUS_KM,
    GOLDEN_RATIO,
    check_coordinates,
    destination,
    even_points,
    haversine_km,
)

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

__all__ = ["EARTH", "Box", "Circle", "Polygon", "Shape"]


@dataclass(frozen=True)
class Circle:
    """All places within a radius of a centre.

    Attributes:
        lat: of the centre, degrees.
        lon: of the centre, degrees.
        radius_km: along the great circle, at most half the way around the Earth.

    Raises:
        AreaError: the centre is not on Earth, or the radius is not above 0.
    """

    lat: float
    lon: float
    radius_km: float

    def __post_init__(self) -> None:
        _checked_corner(self.lat, self.lon, self.name)
        if not 0 < self.radius_km <= math.pi * EARTH_RADIUS_KM:
            raise AreaError(f"{self.name}: a radius is above 0 and at most half the way around the Earth, 20,015 km")

    @property
    def name(self) -> str:
        """The circle as it is typed."""
        return f"{self.lat:.10g},{self.lon:.10g},{self.radius_km:.10g}km"

    @property
    def area_km2(self) -> float:
        """Of the spherical cap."""
        return 4 * math.pi * (EARTH_RADIUS_KM * math.sin(self.radius_km / EARTH_RADIUS_KM / 2)) ** 2

    def contains(self, coordinates: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Which places lie within the radius."""
        return haversine_km(np.asarray(coordinates, np.float64), np.array([[self.lat, self.lon]])) <= self.radius_km

    def points(self, n: int) -> Float64[np.ndarray, "m 2"]:
        """A sunflower's seeds: n points of equal area each."""
        step = np.arange(n) + 0.5
        angle = 2 * np.arcsin(math.sin(self.radius_km / EARTH_RADIUS_KM / 2) * np.sqrt(step / n))
        return destination(np.array([[self.lat, self.lon]]), 360 * (step * GOLDEN_RATIO % 1), angle * EARTH_RADIUS_KM)


@dataclass(frozen=True)
class Box:
    """All places between two parallels and two meridians.

    Attributes:
        south: degrees.
        west: degrees; more than ``east`` when the box crosses the 180th meridian.
        north: degrees.
        east: degrees.

    Raises:
        AreaError: a corner is not on Earth, the box has no area, or south lies north of north.
    """

    south: float
    west: float
    north: float
    east: float

    def __post_init__(self) -> None:
        _checked_corner(self.south, self.west, self.name)
        _checked_corner(self.north, self.east, self.name)
        order = "a box is south,west,north,east: latitude first, the south-western corner before the north-eastern one"
        if self.south > self.north:
            raise AreaError(f"{self.name}: {self.south:g} is not south of {self.north:g}; {order}")
        if self.south == self.north or self.width_deg == 0:
            raise AreaError(f"{self.name}: the box has no area; {order}")

    @property
    def name(self) -> str:
        """The box as it is typed."""
        return ",".join(f"{edge:.10g}" for edge in (self.south, self.west, self.north, self.east))

    @property
    def width_deg(self) -> float:
        """From the western edge eastwards to the eastern one."""
        return 360.0 if self.east - self.west >= 360 else (self.east - self.west) % 360

    @property
    def area_km2(self) -> float:
        """On the sphere."""
        height = math.sin(math.radians(self.north)) - math.sin(math.radians(self.south))
        return EARTH_RADIUS_KM**2 * math.radians(self.width_deg) * height

    def contains(self, coordinates: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Which places lie inside; a pole does when the box reaches it, whatever its longitude."""
        lat, lon = np.asarray(coordinates, np.float64).T
        across = (lon - self.west) % 360 <= self.width_deg
        return (lat >= self.south) & (lat <= self.north) & (across | (np.abs(lat) == 90))

    def points(self, n: int) -> Float64[np.ndarray, "m 2"]:
        """A Fibonacci lattice of n points of equal area each."""
        return even_points(max(1, n), self.south, self.north, self.west, self.west + self.width_deg)


@dataclass(frozen=True, eq=False)
class Polygon:
    """All places inside polygons.

    Attributes:
        name: what answers call it.
        geometry: a shapely Polygon or MultiPolygon, longitude first, within ±180 and ±90 degrees; make one of
            arbitrary rings with :meth:`from_geojson`.
    """

    name: str
    geometry: "BaseGeometry"

    @classmethod
    def from_geojson(cls, content: object, name: str = "polygon") -> "Polygon":
        """Polygons of a GeoJSON object, cut at the 180th meridian where they cross it.

        A ring around a pole means the smaller side. Polygons that cross themselves are mended.

        Args:
            content: a Polygon, a MultiPolygon, a Feature, a FeatureCollection or a GeometryCollection.
            name: what answers and errors call it.

        Raises:
            AreaError: it is not GeoJSON, has no polygon, or what it has is no area on Earth.
        """
        import shapely
        from antimeridian import fix_polygon

        parts = []
        for rings in polygon_rings(content, name):
            try:
                raw = shapely.Polygon(rings[0], rings[1:])
                crosses = np.abs(np.diff(np.array(rings[0])[:, 0])).max() > 180  # perhaps around a pole
                if not crosses and shapely.make_valid(raw).area == 0:
                    continue
                shape = min(
                    (fix_polygon(way, fix_winding=True, great_circle=False) for way in (raw, raw.reverse())),
                    key=_area_km2,
                )
                parts += [part for part in _polygons(shapely.make_valid(shape)) if part.area > 0]
            except (ValueError, shapely.GEOSException) as error:
                raise AreaError(f"{name}: a ring cannot be made a polygon: {error}") from error
        if not parts:
            raise AreaError(f"{name}: the polygon has no area")
        return cls(name, shapely.union_all(parts))

    @classmethod
    def from_file(cls, path: str | Path) -> "Polygon":
        """Polygons of a GeoJSON file.

        Raises:
            AreaError: the file cannot be read; see :meth:`from_geojson`.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            raise AreaError(f"{path}: there is no such file") from error
        except (ValueError, RecursionError) as error:
            raise AreaError(f"{path}: it is not GeoJSON: {error}") from error
        except OSError as error:
            raise AreaError(f"{path}: it cannot be read: {error.strerror or error}") from error
        return cls.from_geojson(content, str(path))

    @cached_property
    def area_km2(self) -> float:
        """On the sphere, edges taken as straight on an equal-area map."""
        return _area_km2(self.geometry)

    def contains(self, coordinates: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """Which places lie inside or on the edge."""
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
        """A Fibonacci lattice in the frame of each part, those outside left out."""
        import shapely

        found = []
        for part in _polygons(self.geometry):
            west, south, east, north = part.bounds
            share = _area_km2(part) / self.area_km2
            box = Box(south, west, north, east)
            count = math.ceil(n * share * box.area_km2 / max(_area_km2(part), 1e-9))
            spots = even_points(min(count, 100 * n), south, north, west, east)
            shapely.prepare(part)
            found.append(spots[shapely.intersects_xy(part, spots[:, 1], spots[:, 0])])
        return np.concatenate(found)


Shape: TypeAlias = Circle | Box | Polygon
"""One part of an area: its ``name``, its ``area_km2``, which places it ``contains`` and about n even ``points``."""


def _checked_corner(lat: float, lon: float, name: str) -> None:
    try:
        check_coordinates(np.array([[lat, lon]], np.float64))
    except CoordinateError as error:
        hint = "; it looks like longitude first, but latitude comes first here" if abs(lon) <= 90 < abs(lat) else ""
        raise AreaError(f"{name}: ({lat:g}, {lon:g}) is not a place on Earth{hint}") from error


EARTH = Box(-90, -180, 90, 180)
"""All of it, as a box."""


def _area_km2(geometry: "BaseGeometry") -> float:
    import shapely

    # Cylindrical equal-area: longitude in radians, sine of the latitude.
    flat = shapely.transform(
        geometry, lambda xy: np.stack((np.radians(xy[:, 0]), np.sin(np.radians(xy[:, 1]))), axis=1)
    )
    return float(flat.area * EARTH_RADIUS_KM**2)


def _polygons(geometry: "BaseGeometry") -> "list[BaseGeometry]":
    """The polygons in a geometry, lines and points that mending left over not among them."""
    parts = [geometry] if geometry.geom_type == "Polygon" else getattr(geometry, "geoms", [])
    found: list[BaseGeometry] = []
    for part in parts:
        found += [part] if part.geom_type == "Polygon" else _polygons(part)
    return found
