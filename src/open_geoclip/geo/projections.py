"""Maps of the sphere that keep areas: Equal Earth, Lambert's azimuthal map, a grid of cells; and the antimeridian.

Coordinates are (lat, lon) in degrees, as in :mod:`open_geoclip.geo.sphere`.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from open_geoclip.geo.sphere import EARTH_RADIUS_KM, Array, as_tensor, like

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

__all__ = [
    "EqualAreaGrid",
    "azimuthal_equal_area",
    "azimuthal_equal_area_inverse",
    "cut_antimeridian",
    "equal_earth",
    "equal_earth_inverse",
]

# --- Equal Earth ----------------------------------------------------------------------------------

_A1, _A2, _A3, _A4 = 1.340264, -0.081106, 0.000893, 0.003796
_SQRT3 = math.sqrt(3.0)
_SCALE = 66.50336  # divided by 180: the released model's units, in which x is within ±1


def equal_earth(coordinates: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
    """Project onto the Equal Earth map, in the released model's units.

    x is in [-1, 1] and y, to the north, in [-0.4867, 0.4867]. Šavrič, Patterson and Jenny, "The Equal Earth map
    projection", 2018. Operations are in the order of the released model: float32 results are equal to the last bit.
    """
    lat, lon = torch.deg2rad(as_tensor(coordinates)).unbind(-1)
    theta = torch.asin(_SQRT3 / 2 * torch.sin(lat))
    x = (2 * _SQRT3 * lon * torch.cos(theta)) / (3 * _slope(theta))
    return like(torch.stack((x, _height(theta)), dim=-1) * _SCALE / 180, coordinates)


def equal_earth_inverse(xy: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
    """Return the coordinates of points on the Equal Earth map, by Newton's method.

    A float64 round trip is exact to 1e-9 degrees, within 0.01 degrees of a pole to 1e-6. A point east or west of the
    outline of the map has a longitude beyond ±180, a point above or below it has latitude ±90.
    """
    x, y = (as_tensor(xy) * 180 / _SCALE).unbind(-1)
    theta = y / _A1
    for _ in range(4):  # three steps reach the last bit of float64 everywhere on the map
        theta = theta - (_height(theta) - y) / _slope(theta)
    lat = torch.asin((2 / _SQRT3 * torch.sin(theta)).clamp(-1, 1))
    lon = x * 3 * _slope(theta) / (2 * _SQRT3 * torch.cos(theta))
    return like(torch.rad2deg(torch.stack((lat, lon), dim=-1)), xy)


def _height(theta: Tensor) -> Tensor:
    """Return y of the map before it is scaled, equation 7 of the paper."""
    return _A4 * theta**9 + _A3 * theta**7 + _A2 * theta**3 + _A1 * theta


def _slope(theta: Tensor) -> Tensor:
    """Return dy/dtheta, in the released order of terms."""
    return 9 * _A4 * theta**8 + 7 * _A3 * theta**6 + 3 * _A2 * theta**2 + _A1


# --- Lambert's azimuthal equal-area map -----------------------------------------------------------


def azimuthal_equal_area(
    points: Float64[np.ndarray, "n 3"], frame: Float64[np.ndarray, "3 3"]
) -> Float64[np.ndarray, "n 2"]:
    """Project unit vectors onto Lambert's azimuthal equal-area map, in kilometres east and north of the centre.

    ``frame`` is the :func:`~open_geoclip.geo.sphere.tangent_frame` of the centre. Snyder, "Map projections", 1987,
    section 24.
    """
    x, y, z = (points @ frame.T).T
    scale = EARTH_RADIUS_KM * np.sqrt(2 / np.maximum(1 + z, 1e-9))
    return np.stack((scale * x, scale * y), axis=1)


def azimuthal_equal_area_inverse(
    km: Float64[np.ndarray, "*n 2"], frame: Float64[np.ndarray, "*#n 3 3"]
) -> Float64[np.ndarray, "*n 3"]:
    """Return the unit vectors of points on the map, NaN beyond its outline; each point may have a frame of its own."""
    flat = km / EARTH_RADIUS_KM
    square = (flat**2).sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        local = np.concatenate((flat * np.sqrt(1 - square / 4), 1 - square / 2), axis=-1)
    return np.asarray(np.einsum("...i,...ij->...j", local, frame))


# --- a grid of cells of one area ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EqualAreaGrid:
    """Cells of exactly one area, nearly square, in rows of latitude; numbered from north to south and west to east.

    Attributes:
        rows: number of cells in each row. Rows end where the area to their north is that of the cells there.
    """

    rows: Int64[np.ndarray, " r"]

    @classmethod
    def from_cell_km(cls, cell_km: float) -> "EqualAreaGrid":
        """A grid whose cells have sides of about ``cell_km``."""
        height = max(1, round(math.pi * EARTH_RADIUS_KM / cell_km))
        lat = (np.arange(height) + 0.5) / height * math.pi
        return cls(np.maximum(1, np.round(2 * height * np.sin(lat))).astype(np.int64))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def cell_km(self) -> float:
        """Side of a square with the area of a cell."""
        return math.sqrt(4 * math.pi / len(self)) * EARTH_RADIUS_KM

    @cached_property
    def _starts(self) -> Int64[np.ndarray, " s"]:
        return np.concatenate(([0], np.cumsum(self.rows)))

    def cells(self, coordinates: Float[np.ndarray, "n 2"]) -> Int64[np.ndarray, " n"]:
        """The number of the cell that contains each (lat, lon)."""
        to_the_north = (1 - np.sin(np.deg2rad(coordinates[:, 0]))) / 2 * len(self)
        row = np.clip(np.searchsorted(self._starts, to_the_north, side="right") - 1, 0, len(self.rows) - 1)
        column = np.floor((coordinates[:, 1] + 180) / 360 * self.rows[row]).astype(np.int64) % self.rows[row]
        return np.asarray(self._starts[row] + column)

    def centres(self, cells: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 2"]:
        """(lat, lon) of the centre of each cell."""
        row = np.searchsorted(self._starts, cells, side="right") - 1
        lat = np.rad2deg(np.arcsin(1 - (self._starts[row] + self._starts[row + 1]) / len(self)))
        lon = (cells - self._starts[row] + 0.5) / self.rows[row] * 360 - 180
        return np.stack((lat, lon), axis=1)


# --- the antimeridian -----------------------------------------------------------------------------


def cut_antimeridian(ring: Float64[np.ndarray, "n 2"]) -> "BaseGeometry":
    """Return the polygons that a closed ring of (lon, lat) in degrees encloses, within ±180 degrees of longitude.

    If an edge spans more than 180 degrees (but not the whole turn from -180 to 180), each edge goes the short way. A
    ring around a pole encloses the smaller side.
    """
    import shapely

    lon, lat = ring.T
    step = np.abs(np.diff(lon))
    if ((step > 180) & (step < 360)).any():
        lon = np.unwrap(lon, period=360)
        if abs(lon[-1] - lon[0]) > 180:
            # The area between the ring and the equator, positive if most of the ring lies in the north.
            sines = np.sin(np.deg2rad(lat))
            mean_sine = ((sines[1:] + sines[:-1]) / 2 * np.diff(lon)).sum() / (lon[-1] - lon[0])
            pole = math.copysign(90, mean_sine)
            lon, lat = np.append(lon, [lon[-1], lon[0], lon[0]]), np.append(lat, [pole, pole, lat[0]])
        else:
            lon[-1] = lon[0]
    enclosed = shapely.make_valid(shapely.Polygon(np.stack((lon, lat), axis=1)))
    turns = range(math.floor((lon.min() + 180) / 360), max(1, math.ceil((lon.max() + 180) / 360)))
    if turns == range(1):
        return enclosed
    parts = []
    for turn in turns:
        part = shapely.intersection(enclosed, shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90))
        parts.append(shapely.transform(part, lambda xy, east=360 * turn: xy - [east, 0]))
    return shapely.union_all(parts)
