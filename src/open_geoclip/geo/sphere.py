"""Geometry of the Earth: checked coordinates, distances, the Equal Earth map, unit vectors, moving a point.

Coordinates are (lat, lon) in degrees on WGS84, in the last axis of an array. Radians stay inside this
file. Every function takes torch tensors or numpy arrays and answers in kind, with the dtype it was given;
each formula stands here once, in torch, and numpy arrays pass through without being copied. Tensors keep
their gradient and their device.

The Earth is a sphere of its mean radius here, which gets a distance wrong by 0.56 % at most. Only
:func:`geodesic_km` measures on the ellipsoid.
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
    "MAX_LONGITUDE_DEG",
    "check_coordinates",
    "coordinates_of",
    "destination",
    "equal_earth",
    "equal_earth_inverse",
    "even_points",
    "geodesic_km",
    "haversine_km",
    "offset",
    "unit_vectors",
]

EARTH_RADIUS_KM = 6371.0088
"""Mean radius of the Earth (IUGG): a third of the polar and two thirds of the equatorial one."""

MAX_LONGITUDE_DEG = 540.0
"""The largest longitude that is wrapped instead of refused: one full turn beyond 180, which covers data
counted from 0 to 360 and tracks that run on over the 180th meridian. Anything larger is a mistake."""

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

    Values that are in range come back bit for bit as they were, and if all are, so does the very array: +180
    stays +180, which the released location encoder tells apart from -180.

    Args:
        coordinates: (n, 2) latitudes and longitudes in degrees, a float32 or float64 tensor or array.
            Integers and lists of pairs become float64. n may be 0.

    Returns:
        The same kind of array (lists become numpy arrays), latitudes in [-90, 90], longitudes in [-180, 180].

    Raises:
        CoordinateError: wrong shape or dtype, NaN or infinity, a latitude beyond ±90 or a longitude beyond
            ±``MAX_LONGITUDE_DEG``. The message names the first row that is wrong.
    """
    if isinstance(coordinates, Tensor):
        whole = not (coordinates.is_floating_point() or coordinates.is_complex())
        if whole and coordinates.dtype != torch.bool:
            coordinates = coordinates.to(torch.float64)
        return _checked(_tensor(coordinates))
    try:
        array = np.asarray(coordinates)
    except ValueError as error:
        raise CoordinateError(f"coordinates must be pairs of (lat, lon): {error}") from error
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    values = _tensor(array)
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

    The leading axes broadcast: ``haversine_km(a[:, None], b[None])`` is the table of all distances. Exact to
    rounding from millimetres to antipodes: the haversine h and its complement are both computed without
    cancellation, and the angle is ``2 atan2(sqrt(h), sqrt(1 - h))``. The gradient is zero at zero distance.

    Args:
        a: (..., 2) degrees.
        b: (..., 2) degrees.

    Returns:
        (...) kilometres.
    """
    lat_a, lon_a = _tensor(a).unbind(-1)
    lat_b, lon_b = _tensor(b).unbind(-1)
    half_lat = torch.deg2rad(lat_b - lat_a) / 2
    mean_lat = torch.deg2rad(lat_b + lat_a) / 2
    half_lon = torch.deg2rad(_turned(lon_b - lon_a)) / 2
    cosines = torch.cos(torch.deg2rad(lat_a)) * torch.cos(torch.deg2rad(lat_b))
    near = torch.sin(half_lat) ** 2 + cosines * torch.sin(half_lon) ** 2
    # The haversine to b's antipode, which is 1 - near without the cancellation.
    far = torch.sin(mean_lat) ** 2 + cosines * torch.cos(half_lon) ** 2
    return _like(2 * EARTH_RADIUS_KM * torch.atan2(_root(near), _root(far)), a)


def geodesic_km(a: Float[np.ndarray, "*#n 2"], b: Float[np.ndarray, "*#n 2"]) -> Float[np.ndarray, "..."]:
    """Return shortest distances on the WGS84 ellipsoid, in kilometres, good to 0.1 mm.

    Vincenty's inverse formula (Survey Review 23, 1975) on all pairs at once. It does not settle for pairs that are
    nearly antipodal; those go to Karney's algorithm (2013), by pyproj, which takes pair by pair.

    Args:
        a: (..., 2) degrees.
        b: (..., 2) degrees; the leading axes broadcast.

    Returns:
        (...) kilometres, float64.
    """
    lat_a, lon_a, lat_b, lon_b = np.broadcast_arrays(a[..., 0], a[..., 1], b[..., 0], b[..., 1])
    pairs = np.stack([lat_a.ravel(), lon_a.ravel(), lat_b.ravel(), lon_b.ravel()]).astype(np.float64)
    blocks = [pairs[:, start : start + _VINCENTY_BLOCK] for start in range(0, pairs.shape[1], _VINCENTY_BLOCK)]
    metres = np.concatenate([_vincenty_m(torch.from_numpy(block)).numpy() for block in blocks] or [np.empty(0)])
    rest = ~np.isfinite(metres)
    if rest.any():
        a_lat, a_lon, b_lat, b_lon = pairs[:, rest]
        metres[rest] = Geod(ellps="WGS84").inv(a_lon, a_lat, b_lon, b_lat)[2]
    return np.asarray(metres / 1000).reshape(lat_a.shape)


_WGS84_A, _WGS84_F = 6_378_137.0, 1 / 298.257_223_563
_VINCENTY_BLOCK = 8192  # pairs at once: they stay in the processor's cache
_VINCENTY_ROUNDS = 7  # four are enough for all but pairs that are nearly antipodal
_VINCENTY_SETTLED = 1e-11  # radians of longitude: 0.06 mm


def _vincenty_m(pairs: Float[Tensor, "4 n"]) -> Float[Tensor, " n"]:
    """Return geodesic distances in metres, NaN where the formula has not settled."""
    f, b = _WGS84_F, _WGS84_A * (1 - _WGS84_F)
    reduced = torch.atan((1 - f) * torch.tan(torch.deg2rad(pairs[0::2])))
    (sin_a, sin_b), (cos_a, cos_b) = torch.sin(reduced), torch.cos(reduced)
    lon = torch.deg2rad(_turned(pairs[3] - pairs[1]))
    sines, cosines, crossed, straight = sin_a * sin_b, cos_a * cos_b, cos_a * sin_b, sin_a * cos_b
    on_sphere = lon
    for _ in range(_VINCENTY_ROUNDS):
        sin_lon, cos_lon = torch.sin(on_sphere), torch.cos(on_sphere)
        sin_sigma = ((cos_b * sin_lon).square_() + (crossed - straight * cos_lon).square_()).sqrt_()
        cos_sigma = sines + cosines * cos_lon
        sigma = torch.atan2(sin_sigma, cos_sigma)
        sin_alpha = cosines * sin_lon / sin_sigma.clamp_min(1e-300)
        cos2_alpha = (1 - sin_alpha * sin_alpha).clamp_min_(1e-15)  # along the equator, where sines is 0
        cos_2m = cos_sigma - 2 * sines / cos2_alpha
        c = f / 16 * cos2_alpha * ((4 + 4 * f) - 3 * f * cos2_alpha)
        series = cos_2m + c * cos_sigma * (2 * cos_2m * cos_2m - 1)
        before, on_sphere = on_sphere, lon + (1 - c) * f * sin_alpha * (sigma + c * sin_sigma * series)
        moved = (on_sphere - before).abs_()
        if float(moved.max()) < _VINCENTY_SETTLED:
            break
    k = cos2_alpha * ((_WGS84_A**2 - b**2) / b**2)
    big_a = 1 + k / 16384 * (4096 + k * (-768 + k * (320 - 175 * k)))
    big_b = k / 1024 * (256 + k * (-128 + k * (74 - 47 * k)))
    square = cos_2m * cos_2m
    tail = big_b / 6 * cos_2m * (4 * sin_sigma * sin_sigma - 3) * (4 * square - 3)
    delta = big_b * sin_sigma * (cos_2m + big_b / 4 * (cos_sigma * (2 * square - 1) - tail))
    settled = (moved < _VINCENTY_SETTLED) & (on_sphere.abs() <= math.pi)
    return torch.where(settled, b * big_a * (sigma - delta), torch.nan)


# --- Equal Earth ----------------------------------------------------------------------------------

_A1, _A2, _A3, _A4 = 1.340264, -0.081106, 0.000893, 0.003796
_SQRT3 = math.sqrt(3.0)
_SCALE = 66.50336  # and divided by 180: the released model's units, in which x ends at ±1


def equal_earth(coordinates: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
    """Project onto the Equal Earth map, in the released model's units.

    Šavrič, Patterson and Jenny, "The Equal Earth map projection", 2018. Equal areas on Earth are equal on the
    map. The order of operations is the released one, so that float32 tensors give its very bits.

    Args:
        coordinates: (..., 2) degrees.

    Returns:
        (..., 2) x in [-1, 1], y in [-0.4867, 0.4867]; y grows to the north.
    """
    lat, lon = torch.deg2rad(_tensor(coordinates)).unbind(-1)
    theta = torch.asin(_SQRT3 / 2 * torch.sin(lat))
    x = (2 * _SQRT3 * lon * torch.cos(theta)) / (3 * _slope(theta))
    return _like(torch.stack((x, _height(theta)), dim=-1) * _SCALE / 180, coordinates)


def equal_earth_inverse(xy: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
    """Return the coordinates of points on the Equal Earth map, by Newton's method.

    In float64 a place is found again within 1e-9 degrees, except within 0.01 degrees of a pole, where the map
    itself keeps no more than 1e-6 degrees (parallels crowd together quadratically towards the pole's line).

    Args:
        xy: (..., 2) as :func:`equal_earth` gives them.

    Returns:
        (..., 2) degrees. A point beside the map's outline has a longitude beyond ±180, a point above or below
        it has latitude ±90.
    """
    x, y = (_tensor(xy) * 180 / _SCALE).unbind(-1)
    theta = y / _A1
    for _ in range(4):  # three steps reach the last bit of float64 everywhere on the map
        theta = theta - (_height(theta) - y) / _slope(theta)
    lat = torch.asin((2 / _SQRT3 * torch.sin(theta)).clamp(-1, 1))
    lon = x * 3 * _slope(theta) / (2 * _SQRT3 * torch.cos(theta))
    return _like(torch.rad2deg(torch.stack((lat, lon), dim=-1)), xy)


def _height(theta: Tensor) -> Tensor:
    """Return y of the map before it is scaled, equation 7 of the paper."""
    return _A4 * theta**9 + _A3 * theta**7 + _A2 * theta**3 + _A1 * theta


def _slope(theta: Tensor) -> Tensor:
    """Return dy/dtheta, in the released order of terms."""
    return 9 * _A4 * theta**8 + 7 * _A3 * theta**6 + 3 * _A2 * theta**2 + _A1


# --- unit vectors ---------------------------------------------------------------------------------


def unit_vectors(coordinates: Float[Array, "*n 2"]) -> Float[Array, "*n 3"]:
    """Return points on the unit sphere: x towards (0, 0), y towards (0, 90), z towards the north pole.

    Args:
        coordinates: (..., 2) degrees.

    Returns:
        (..., 3) of length 1.
    """
    lat, lon = torch.deg2rad(_tensor(coordinates)).unbind(-1)
    x, y, z = torch.cos(lat) * torch.cos(lon), torch.cos(lat) * torch.sin(lon), torch.sin(lat)
    return _like(torch.stack((x, y, z), dim=-1), coordinates)


def coordinates_of(vectors: Float[Array, "*n 3"]) -> Float[Array, "*n 2"]:
    """Return the coordinates that vectors from the Earth's centre point at.

    Args:
        vectors: (..., 3) as :func:`unit_vectors` gives them; of any length but zero, so that a mean of unit
            vectors can be handed in as it is.

    Returns:
        (..., 2) degrees, longitudes in [-180, 180). The longitude of a pole is arbitrary.

    Raises:
        CoordinateError: a vector of length zero or one that is not finite, which points nowhere.
    """
    points = _tensor(vectors)
    length = torch.linalg.vector_norm(points.detach(), dim=-1)
    nowhere = ~(length.isfinite() & (length > 0))
    if nowhere.any():
        raise CoordinateError(f"{int(nowhere.sum())} of the vectors are zero or not finite and point nowhere")
    x, y, z = points.unbind(-1)
    lat, lon = torch.atan2(z, torch.hypot(x, y)), torch.atan2(y, x)
    lat_deg, lon_deg = torch.rad2deg(lat), _wrapped(torch.rad2deg(lon))
    return _like(torch.stack((lat_deg, lon_deg), dim=-1), vectors)


# --- moving a point -------------------------------------------------------------------------------


def destination(
    coordinates: Float[Array, "*#n 2"],
    bearing_deg: Float[Array, "*#n"] | float,
    distance_km: Float[Array, "*#n"] | float,
) -> Float[Array, "*m 2"]:
    """Return where one arrives who sets out in a direction and keeps to the great circle.

    Right at the poles, where the bearing is counted from the meridian of the given longitude: bearing 0 at
    the north pole runs down the opposite meridian, 180 down the given one. float64 is good to a micrometre,
    float32 to two metres over 1000 km (float32 degrees near the 180th meridian are 1.7 m apart).

    Args:
        coordinates: (..., 2) degrees.
        bearing_deg: (...) degrees clockwise from north.
        distance_km: (...) kilometres; negative goes backwards. All three broadcast.

    Returns:
        (..., 2) degrees, longitudes in [-180, 180).
    """
    start = _tensor(coordinates)
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
    return _like(torch.stack((new_lat, new_lon), dim=-1), coordinates)


def offset(
    coordinates: Float[Array, "*#n 2"],
    north_m: Float[Array, "*#n"] | float,
    east_m: Float[Array, "*#n"] | float,
) -> Float[Array, "*m 2"]:
    """Move points by metres: ``hypot(north, east)`` along the great circle that sets out in that direction.

    Right at the poles and at the 180th meridian; see :func:`destination`, which does the work.

    Args:
        coordinates: (..., 2) degrees.
        north_m: (...) metres towards the north.
        east_m: (...) metres towards the east; all three broadcast.

    Returns:
        (..., 2) degrees, longitudes in [-180, 180).
    """
    start = _tensor(coordinates)
    north, east = _number(north_m, start), _number(east_m, start)
    bearing_deg = torch.rad2deg(torch.atan2(east, north))
    return _like(destination(start, bearing_deg, torch.hypot(north, east) / 1000), coordinates)


# --- even points ----------------------------------------------------------------------------------


def even_points(n: int, lat_min: float = -90.0, lat_max: float = 90.0) -> Float[np.ndarray, "{n} 2"]:
    """Spread n points evenly over the Earth or a band of latitudes: a Fibonacci lattice.

    Every point stands for the same area. González, "Measurement of areas on a sphere using Fibonacci and
    latitude-longitude lattices", 2010.

    Args:
        n: how many points.
        lat_min: southern edge of the band, degrees.
        lat_max: northern edge of the band, degrees.

    Returns:
        (n, 2) degrees, float64, from south to north.

    Raises:
        CoordinateError: fewer than one point, or a band that is empty or not on Earth.
    """
    if n < 1:
        raise CoordinateError(f"even_points needs at least 1 point, not {n}")
    if not -90 <= lat_min < lat_max <= 90:
        raise CoordinateError(f"a band needs -90 <= lat_min < lat_max <= 90, not {lat_min} to {lat_max}")
    step = np.arange(n, dtype=np.float64)
    south, north = math.sin(math.radians(lat_min)), math.sin(math.radians(lat_max))
    lat = np.degrees(np.arcsin(south + (north - south) * (step + 0.5) / n))
    golden = (math.sqrt(5.0) - 1) / 2
    lon = 360 * ((step * golden) % 1.0) - 180
    return np.stack((lat, lon), axis=-1)


# --- torch and numpy alike ------------------------------------------------------------------------


def _tensor(array: Tensor | np.ndarray) -> Tensor:
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


def _like(result: Tensor, example: Array) -> Array:
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
