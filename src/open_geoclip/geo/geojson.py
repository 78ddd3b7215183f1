"""Rings of polygons out of GeoJSON (RFC 7946), every position checked."""

from typing import Any

from open_geoclip.errors import AreaError

__all__ = ["polygon_rings"]


def polygon_rings(content: object, name: str) -> list[list[list[tuple[float, float]]]]:
    """The rings of each polygon in a GeoJSON object, as (longitude, latitude) in degrees.

    Args:
        content: a Polygon, a MultiPolygon, a Feature, a FeatureCollection or a GeometryCollection.
        name: what errors call it.

    Raises:
        AreaError: it is not GeoJSON with polygons, or a position is not on Earth.
    """
    match content:
        case {"type": "FeatureCollection", "features": list(members)}:
            return [rings for member in members for rings in polygon_rings(member, name)]
        case {"type": "GeometryCollection", "geometries": list(members)}:
            return [rings for member in members for rings in polygon_rings(member, name)]
        case {"type": "Feature", "geometry": geometry}:
            return polygon_rings(geometry, name)
        case {"type": "Polygon", "coordinates": list(rings)} if rings:
            return [[_ring(ring, name) for ring in rings]]
        case {"type": "MultiPolygon", "coordinates": list(polygons)} if polygons:
            return [polygon_rings({"type": "Polygon", "coordinates": polygon}, name)[0] for polygon in polygons]
        case {"type": "Point" | "MultiPoint" | "LineString" | "MultiLineString" as kind}:
            raise AreaError(f"{name}: a {kind} has no area; polygons are needed (a circle is lat,lon,radius)")
    raise AreaError(f"{name}: it is not GeoJSON with polygons (RFC 7946)")


def _ring(positions: Any, name: str) -> list[tuple[float, float]]:
    if not isinstance(positions, list) or len(positions) < 4:
        raise AreaError(f"{name}: a ring is a list of four positions or more, the last one the first")
    ring = []
    for position in positions:
        match position:
            case [int() | float() as lon, int() | float() as lat, *_]:
                _checked_position(lon, lat, name)
                ring.append((float(lon), float(lat)))
            case _:
                raise AreaError(f"{name}: {position!r:.60} is not a position [longitude, latitude]")
    if ring[0] != ring[-1]:
        raise AreaError(f"{name}: a ring ends where it begins; this one begins at {ring[0]} and ends at {ring[-1]}")
    return ring


def _checked_position(lon: float, lat: float, name: str) -> None:
    if abs(lat) <= 90 and abs(lon) <= 540:
        return
    hint = ": it looks like (latitude, longitude), but GeoJSON writes longitude first" if abs(lon) <= 90 else ""
    raise AreaError(f"{name}: [{lon:.10g}, {lat:.10g}] is not a position on Earth{hint}")
