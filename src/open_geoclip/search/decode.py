"""Decoding: the point estimate that is best for a given aim, which may lie between the places of a gallery."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM

__all__ = ["DecodeMethod", "Modes", "check_decode", "chord_km", "decode"]

DecodeMethod = Literal["mass", "distance", "geoscore", "max"]
"""What is maximised: probability within a radius, negative expected distance, expected GeoScore; or the top cell."""

_STARTS = 32  # cells that are compared as starting points
_STEPS = 12  # of the iteration from the best of them
_GEOSCORE_KM = 1492.7


@dataclass(frozen=True, eq=False)
class Modes:
    """Separate modes of n posteriors, most probable first.

    Attributes:
        coordinates: (lat, lon) in degrees; NaN where no mass was left for so many.
        mass: probability assigned to each mode.
        radius_km: radius around each mode that holds 90 % of its mass.
    """

    coordinates: Float64[np.ndarray, "n k 2"]
    mass: Float64[np.ndarray, "n k"]
    radius_km: Float64[np.ndarray, "n k"]


def check_decode(method: str, radius_km: float) -> None:
    """Check the arguments of :func:`decode`.

    Raises:
        SettingsError: an unknown method, or a radius that is not above 0.
    """
    if method not in ("mass", "distance", "geoscore", "max"):
        raise SettingsError(f"decode: mass, distance, geoscore or max, not {method!r}")
    if not 0 < radius_km < math.inf:
        raise SettingsError(f"radius_km: kilometres above 0, not {radius_km}")


def chord_km(chord: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return great-circle distances in kilometres from chords between unit vectors."""
    return 2 * EARTH_RADIUS_KM * torch.asin((chord / 2).clamp(max=1))


def decode(
    mass: Float64[Tensor, "n t"],
    points: Float32[Tensor, "n t 3"],
    sigma_km: Float64[Tensor, "n t"],
    method: DecodeMethod,
    radius_km: float,
) -> Float64[Tensor, "n 3"]:
    """Return the best answer of each row as a unit vector.

    The best of the 32 cells with the most mass is improved by fixed-point steps: mean shift for ``mass`` (Cheng, "Mean
    shift, mode seeking, and clustering", 1995), Weiszfeld's algorithm for ``distance``.

    Args:
        mass: of t cells a row.
        points: unit vectors of the cells.
        sigma_km: standard deviation of the smoothing of each cell.
        method: see :data:`DecodeMethod`.
        radius_km: of ``mass``.
    """
    rows = torch.arange(len(mass))
    starts = mass.topk(min(_STARTS, mass.shape[1]), dim=1).indices
    if method == "max":
        return points[rows, starts[:, 0]].double()
    # Kernels are smooth: float32 moves the answer by centimetres, as all vectors are taken relative to the start.
    points = points if method == "mass" else points.double()
    columns = points.permute(2, 0, 1).contiguous()
    # A disc has a quarter of its radius squared as variance along each axis: a Gaussian of that stands for it.
    variance = (sigma_km.square() + radius_km**2 / 4) / EARTH_RADIUS_KM**2
    if method == "mass":
        # As a power of two: torch's exp is up to 25 times slower where it underflows, which is nearly everywhere.
        rate = (-0.5 / math.log(2) / variance).float()
        weight, pull = (mass / variance).float(), (mass / variance.square()).float()
    else:
        weight = pull = mass

    def utility(answers: Float[Tensor, "n c 3"]) -> Float[Tensor, "n c"]:
        square: Any = 0  # of chords; products of matrices would lose 3 km, torch.cdist takes five times as long
        for axis in range(3):
            square = (answers[:, :, None, axis] - columns[axis, :, None]).square_().add_(square)
        if method == "mass":
            kernel = square.mul_(rate[:, None]).exp2_()
        else:
            km = (chord_km(square.sqrt_()).square() + sigma_km[:, None].square()).sqrt()
            kernel = -km if method == "distance" else torch.exp(-km / _GEOSCORE_KM)
        return (kernel * weight[:, None]).sum(dim=2)

    best = utility(points[rows[:, None], starts]).argmax(dim=1)
    start = points[rows, starts[rows, best]]
    relative = columns - start.T[..., None]
    answer = start = start.double()
    for _ in range(_STEPS):
        square = (relative - (answer - start).T.to(points.dtype)[..., None]).square_().sum(dim=0)
        if method == "mass":
            share = pull * square.mul_(rate).exp2_()
        else:
            km = (chord_km(square.sqrt()).square() + sigma_km.square()).sqrt()
            share = pull / km * (torch.exp(-km / _GEOSCORE_KM) if method == "geoscore" else 1)
        shift = (share * relative).sum(dim=-1) / share.sum(dim=-1)
        answer = F.normalize(start + shift.T.double(), dim=1)
    value = utility(torch.stack((answer, start), dim=1).to(points.dtype))
    return torch.where((value[:, 0] >= value[:, 1])[:, None], answer, start)
