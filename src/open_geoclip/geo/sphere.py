"""Geometry on the sphere: validated coordinates, distances, unit vectors, tangent frames, moving points, even points.

Coordinates are (lat, lon) in degrees on WGS84, in the last axis of an array. Functions take torch tensors or numpy
arrays and return the same kind with the same dtype; each formula is written once, in torch, and numpy arrays are not
copied. Tensors keep their gradient and device.

The Earth is a sphere of its mean radius, which changes a distance by at most 0.56 %. Only :func:`geodesic_km` measures
on the ellipsoid. Maps of the sphere are in :mod:`open_geoclip.geo.projections`.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Float
from pyproj import Geod
from torch import Tensor

from open_geoclip.errors import CoordinateError

__all__ = [
    "EARTH_RADIUS_KM",
    "GOLDEN_RATIO",
    "MAX_LONGITUDE_DEG",
    "check_coordinates",
    "coordinates_of",
    "destination",
    "even_points",
    "geodesic_direction",
    "geodesic_km",
    "great_circle",
    "haversine_km",
    "offset",
    "tangent_frame",
    "tangent_offset",
    "unit_vectors",
]

EARTH_RADIUS_KM = 6371.0088
"""Mean radius of the Earth (IUGG): a third of the polar and two thirds of the equatorial one."""

MAX_LONGITUDE_DEG = 540.0
"""The largest longitude that is wrapped: one turn beyond 180, for data from 0 to 360 and tracks beyond 180."""

GOLDEN_RATIO = (math.sqrt(5.0) - 1) / 2
"""Fractional part of the golden ratio: successive points of a lattice turn by it."""

_WGS84 = Geod(ellps="WGS84")
_DIRECTIONS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")

# One kind of array in, the same kind out.
Array = TypeVar("Array", Tensor, np.ndarray)


# --- coordinates that can be trusted --------------------------------------------------------------


@overload
def check_coordinates(coordinates: Tensor) -> Float[Tensor, "n 2"]: ...
@overload
def check_coordinates(coordinates: np.ndarray | Sequence[Any]) -> Float[np.ndarray, "n 2"]: ...
def check_coordinates(
    coordinates: Tensor | np.ndarray | Sequence[Any],
) -> Float[Tensor, "n 2"] | Float[np.ndarray, "n 2"]:
    """Return the coordinates if they are places on Earth, with longitudes beyond ±180 wrapped.

    Values in range stay as they are, to the last bit: the released location encoder distinguishes +180 from -180.

    Args:
        coordinates: (n, 2) degrees, float32 or float64. Integers and lists of pairs become float64. n may be 0.

    Returns:
        The same kind of array (lists become numpy arrays), latitudes in [-90, 90], longitudes in [-180, 180].

    Raises:
        CoordinateError: wrong shape or dtype, NaN or infinity, a latitude beyond ±90 or a longitude beyond
            ±``MAX_LONGITUDE_DEG``. The message has the first wrong row.
    """
    if isinstance(coordinates, Tensor):
        whole = not (coordinates.is_floating_point() or coordinates.is_complex())
        if whole and coordinates.dtype != torch.bool:
            coordinates = coordinates.to(torch.float64)
        return _checked(as_tensor(coordinates))
    try:
        array = np.asarray(coordinates)
    except ValueError as error:
        raise CoordinateError(f"coordinates must be pairs of (lat, lon): {error}") from error
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    values = as_tensor(array)
    checked = _checked(values)
    return array if checked is values else checked.numpy()


def _checked(values: Tensor) -> Tensor:
    """Return the very tensor if it needs no change, one with wrapped longitudes if it does."""
    if values.ndim != 2 or values.shape[1] != 2:
        hint = "write one place as [[lat, lon]]" if values.shape == (2,) else "one (lat, lon) a row"
        raise CoordinateError(f"coordinates must have shape (n, 2), not {tuple(values.shape)}: {hint}")
    lat, lon = values.unbind(-1)
    _refuse(~(lat.isfinite() & lon.isfinite()), values, "both numbers must be finite")
    beyond = lat.abs() > 90
    swapped = bool((beyond & (lon.abs() <= 90)).any())
    hint = "; it looks like (lon, lat), but the order here is (lat, lon)" if swapped else ""
    _refuse(beyond, values, f"a latitude is within -90 and 90 degrees{hint}")
    _refuse(lon.abs() > MAX_LONGITUDE_DEG, values, "a longitude is within ±180 degrees, ±540 at most")
    outside = lon.abs() > 180
    if not outside.any():
        return values
    return torch.stack((lat, torch.where(outside, _wrapped(lon), lon)), dim=-1)


def _refuse(wrong: Tensor, values: Tensor, rule: str) -> None:
    count = int(wrong.sum())
    if count:
        row = int(wrong.nonzero()[0])
        first, second = values[row].tolist()
        rows = "1 row is" if count == 1 else f"{count} rows are"
        place = f"({first:.10g}, {second:.10g})"
        raise CoordinateError(f"{rows} not a place on Earth; the first is row {row}: {place}: {rule}")


# --- distances ------------------------------------------------------------------------------------


def haversine_km(a: Float[Array, "*#n 2"], b: Float[Array, "*#n 2"]) -> Float[Array, "..."]:
    """Return great-circle distances on a sphere of radius ``EARTH_RADIUS_KM``, in kilometres.

    Exact to rounding from millimetres to antipodes: the haversine h and its complement are both computed without
    cancellation, and the angle is ``2 atan2(sqrt(h), sqrt(1 - h))``. The gradient is zero at zero distance.

    Args:
        a: (..., 2) degrees.
        b: (..., 2) degrees; the leading axes broadcast.
    """
    lat_a, lon_a = as_tensor(a).unbind(-1)
    lat_b, lon_b = as_tensor(b).unbind(-1)
    half_lat = torch.deg2rad(lat_b - lat_a) / 2
    mean_lat = torch.deg2rad(lat_b + lat_a) / 2
    half_lon = torch.deg2rad(_turned(lon_b - lon_a)) / 2
    cosines = torch.cos(torch.deg2rad(lat_a)) * torch.cos(torch.deg2rad(lat_b))
    near = torch.sin(half_lat) ** 2 + cosines * torch.sin(half_lon) ** 2
    # The haversine to b's antipode, which is 1 - near without the cancellation.
    far = torch.sin(mean_lat) ** 2 + cosines * torch.cos(half_lon) ** 2
    return like(2 * EARTH_RADIUS_KM * torch.atan2(_root(near), _root(far)), a)


def geodesic_km(a: Float[np.ndarray, "*#n 2"], b: Float[np.ndarray, "*#n 2"]) -> Float[np.ndarray, "..."]:
    """Return shortest distances on the WGS84 ellipsoid, in kilometres.

    Karney, "Algorithms for geodesics" (Journal of Geodesy 87, 2013), by pyproj; exact to 15 nm. About 1 us per pair.

    Args:
        a: (..., 2) degrees.
        b: (..., 2) degrees; the leading axes broadcast.
    """
    a, b = np.broadcast_arrays(a, b)
    (lat_a, lon_a), (lat_b, lon_b) = (end.reshape(-1, 2).astype(np.float64).T for end in (a, b))
    return np.asarray(_WGS84.inv(lon_a, lat_a, lon_b, lat_b)[2] / 1000).reshape(a.shape[:-1])


def geodesic_direction(start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"]) -> tuple[str, float]:
    """Return the direction in which the geodesic from one (lat, lon) to another starts, as one of eight words.

    Returns:
        The direction, and the kilometres of :func:`geodesic_km`.
    """
    (lat_a, lon_a), (lat_b, lon_b) = start.tolist(), end.tolist()
    azimuth_deg, _, metres = _WGS84.inv(lon_a, lat_a, lon_b, lat_b)
    return _DIRECTIONS[round(azimuth_deg / 45) % 8], metres / 1000


# --- unit vectors ---------------------------------------------------------------------------------


def unit_vectors(coordinates: Float[Array, "*n 2"]) -> Float[Array, "*n 3"]:
    """Return points on the unit sphere: x towards (0, 0), y towards (0, 90), z towards the north pole."""
    lat, lon = torch.deg2rad(as_tensor(coordinates)).unbind(-1)
    x, y, z = torch.cos(lat) * torch.cos(lon), torch.cos(lat) * torch.sin(lon), torch.sin(lat)
    return like(torch.stack((x, y, z), dim=-1), coordinates)


def coordinates_of(vectors: Float[Array, "*n 3"]) -> Float[Array, "*n 2"]:
    """Return the coordinates that vectors of any length point at, such as means of unit vectors.

    Longitudes are in [-180, 180); that of a pole is arbitrary.

    Raises:
        CoordinateError: a vector is zero or not finite.
    """
    points = as_tensor(vectors)
    length = torch.linalg.vector_norm(points.detach(), dim=-1)
    nowhere = ~(length.isfinite() & (length > 0))
    if nowhere.any():
        raise CoordinateError(f"{int(nowhere.sum())} of the vectors are zero or not finite and point nowhere")
    x, y, z = points.unbind(-1)
    lat, lon = torch.atan2(z, torch.hypot(x, y)), torch.atan2(y, x)
    lat_deg, lon_deg = torch.rad2deg(lat), _wrapped(torch.rad2deg(lon))
    return like(torch.stack((lat_deg, lon_deg), dim=-1), vectors)


def tangent_frame(points: Float[Array, "*n 3"]) -> Float[Array, "*n 3 3"]:
    """Return the unit vectors east, north and up at points, in rows; at a pole, east is longitude 90."""
    up = as_tensor(points)
    x, y, _ = up.unbind(-1)
    level = torch.hypot(x, y)
    at_pole = level == 0
    level = torch.where(at_pole, 1.0, level)
    east = torch.stack((-y / level, torch.where(at_pole, 1.0, x / level), torch.zeros_like(x)), dim=-1)
    return like(torch.stack((east, torch.linalg.cross(up, east), up), dim=-2), points)


def tangent_offset(
    points: Float[Array, "*#n 3"], east: Float[Array, "*#n"], north: Float[Array, "*#n"]
) -> Float[Array, "*m 3"]:
    """Move points on the unit sphere along their tangent plane, in Earth radii, and project them back to the sphere."""
    to_east, to_north, up = as_tensor(tangent_frame(points)).unbind(-2)
    moved = up + as_tensor(east)[..., None] * to_east + as_tensor(north)[..., None] * to_north
    return like(torch.nn.functional.normalize(moved, dim=-1), points)


# --- moving a point -------------------------------------------------------------------------------


def destination(
    coordinates: Float[Array, "*#n 2"],
    bearing_deg: Float[Array, "*#n"] | float,
    distance_km: Float[Array, "*#n"] | float,
) -> Float[Array, "*m 2"]:
    """Return the ends of great circles from a start in a direction; longitudes are in [-180, 180).

    At a pole, the bearing is counted from the meridian of the given longitude: bearing 0 at the north pole is down the
    opposite meridian. float64 is exact to a micrometre, float32 to two metres over 1000 km.

    Args:
        coordinates: (..., 2) degrees.
        bearing_deg: (...) degrees clockwise from north.
        distance_km: (...) kilometres; negative is backwards. All three broadcast.
    """
    start = as_tensor(coordinates)
    bearing = torch.deg2rad(_number(bearing_deg, start))
    angle = _number(distance_km, start) / EARTH_RADIUS_KM
    lat, lon = start.unbind(-1)
    # Rounding can put the cosine of ±90 degrees below zero, which would turn the pole's meridian around.
    sin_lat, cos_lat = torch.sin(torch.deg2rad(lat)), torch.cos(torch.deg2rad(lat)).clamp(min=0)
    east = torch.sin(angle) * torch.sin(bearing)
    north = torch.sin(angle) * torch.cos(bearing)
    # The end in the start's own frame: outwards along its meridian, towards the east, along the Earth's axis.
    out = cos_lat * torch.cos(angle) - sin_lat * north
    up = sin_lat * torch.cos(angle) + cos_lat * north
    new_lat = torch.rad2deg(torch.atan2(up, torch.hypot(out, east)))
    new_lon = _wrapped(lon + torch.rad2deg(torch.atan2(east, out)))
    return like(torch.stack((new_lat, new_lon), dim=-1), coordinates)


def offset(
    coordinates: Float[Array, "*#n 2"],
    north_m: Float[Array, "*#n"] | float,
    east_m: Float[Array, "*#n"] | float,
) -> Float[Array, "*m 2"]:
    """Move points by metres: :func:`destination` at the distance ``hypot(north_m, east_m)``. All three broadcast."""
    start = as_tensor(coordinates)
    north, east = _number(north_m, start), _number(east_m, start)
    bearing_deg = torch.rad2deg(torch.atan2(east, north))
    return like(destination(start, bearing_deg, torch.hypot(north, east) / 1000), coordinates)


def great_circle(start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"]) -> Float[np.ndarray, "m 2"]:
    """Return points along the shortest way between two (lat, lon), at most 1 degree apart; NaN at the antimeridian."""
    u, v = unit_vectors(start), unit_vectors(end)
    aside = v - (u @ v) * u
    if np.linalg.norm(aside) < 1e-12:  # the same place or its antipode: any direction is as short
        aside = np.cross(u, np.eye(3)[np.abs(u).argmin()])
    angle = np.linspace(0, math.atan2(float(np.linalg.norm(np.cross(u, v))), float(u @ v)), 181)[:, None]
    way = coordinates_of(np.cos(angle) * u + np.sin(angle) * aside / np.linalg.norm(aside))
    cuts = np.flatnonzero(np.abs(np.diff(way[:, 1])) > 180) + 1
    return np.insert(way, cuts, np.nan, axis=0)


# --- even points ----------------------------------------------------------------------------------


def even_points(
    n: int, lat_min: float = -90.0, lat_max: float = 90.0, lon_min: float = -180.0, lon_max: float = 180.0
) -> Float[np.ndarray, "{n} 2"]:
    """Return a Fibonacci lattice of n points over the Earth, or over the part between two parallels and meridians.

    Every point represents the same area. Points are from south to north, with longitudes in [-180, 180). González,
    "Measurement of areas on a sphere using Fibonacci and latitude-longitude lattices", 2010.

    Raises:
        CoordinateError: ``n`` is below 1, or the edges enclose no area on Earth; ``lon_max`` may be up to 360 degrees
            beyond ``lon_min``.
    """
    if n < 1:
        raise CoordinateError(f"even_points needs at least 1 point, not {n}")
    if not (-90 <= lat_min < lat_max <= 90 and lon_min < lon_max <= lon_min + 360):
        edges = f"latitudes {lat_min} to {lat_max}, longitudes {lon_min} to {lon_max}"
        raise CoordinateError(f"even_points needs -90 <= lat_min < lat_max <= 90 and lon_min < lon_max, not {edges}")
    step = np.arange(n, dtype=np.float64)
    south, north = math.sin(math.radians(lat_min)), math.sin(math.radians(lat_max))
    lat = np.degrees(np.arcsin(south + (north - south) * (step + 0.5) / n))
    lon = (lon_max - lon_min) * (step * GOLDEN_RATIO % 1) + lon_min
    return np.stack((lat, _wrapped(torch.from_numpy(lon)).numpy()), axis=-1)


# --- torch and numpy alike ------------------------------------------------------------------------


def as_tensor(array: Tensor | np.ndarray) -> Tensor:
    """View an array as a tensor; what torch cannot view (read-only, reversed, foreign bytes) is copied."""
    dtype = array.dtype if isinstance(array, Tensor) else array.dtype.newbyteorder("=")
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "float64"):
        coarse = ": 16 bits move a place by kilometres, convert the numbers before they are rounded"
        hint = coarse if name in ("float16", "bfloat16") else ""
        raise CoordinateError(f"coordinates must be float32 or float64, not {name}{hint}")
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def like(result: Tensor, example: Array) -> Array:
    """Return the result as the kind of array that the example is."""
    if isinstance(example, Tensor):
        return result
    return result.numpy()


def _number(value: Tensor | np.ndarray | float, start: Tensor) -> Tensor:
    """Return a number or an array of numbers with the dtype and on the device of the start."""
    if isinstance(value, np.ndarray):
        value = np.require(value, requirements=["C", "W"])  # torch warns about read-only arrays
    return torch.as_tensor(value, dtype=start.dtype, device=start.device)


def _root(square: Tensor) -> Tensor:
    """Return the square root, with gradient zero instead of infinity at zero."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def _turned(lon_deg: Tensor) -> Tensor:
    """Take whole turns off a longitude; what is within ±180 already stays as it is, to the last bit."""
    return lon_deg - 360 * torch.round(lon_deg / 360)


def _wrapped(lon_deg: Tensor) -> Tensor:
    """Return the longitude in [-180, 180)."""
    lon_deg = _turned(lon_deg)  # in [-180, 180]: half a turn is rounded to an even number of turns
    return torch.where(lon_deg >= 180, lon_deg - 360, lon_deg)
