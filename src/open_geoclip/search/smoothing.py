"""Kernel smoothing of cells: distances to smoothed mass, radial distributions, density.

Each cell's mass is spread by a Gaussian on the sphere (von Mises-Fisher). Where distances to it are needed, 24
quadrature points of equal mass stand for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from open_geoclip.geo.sphere import EARTH_RADIUS_KM, tangent_frame

__all__ = [
    "RadialProfile",
    "gaussian_quadrature",
    "log_kernel",
    "radial_cdf",
    "smoothed_chords",
    "weighted_quantile",
]

_STEP = math.log(1.03)  # the radii of a profile grow by 3 %
_MIN_KM = 0.05
_N_RADII = math.ceil(math.log(math.pi * EARTH_RADIUS_KM / _MIN_KM) / _STEP) + 2
_LOG_RADII = math.log(_MIN_KM) + _STEP * np.arange(_N_RADII)


@dataclass(frozen=True, eq=False)
class RadialProfile:
    """Distribution of the distance from one place a row, of n posteriors.

    Attributes:
        cdf: probability within each of a scale of radii, which grow by 3 %.
    """

    cdf: Float64[np.ndarray, "n radii"]

    def within(self, radii_km: Sequence[float]) -> Float64[np.ndarray, "n r"]:
        """Return the probability within some radii."""
        log_radii = np.log(np.asarray(radii_km, np.float64))
        return np.array([np.interp(log_radii, _LOG_RADII, row) for row in self.cdf]).reshape(len(self.cdf), -1)

    def radius_km(self, levels: Sequence[float]) -> Float64[np.ndarray, "n l"]:
        """Return the radii that hold some probabilities: quantiles of the distance."""
        return np.array([np.exp(np.interp(levels, row, _LOG_RADII)) for row in self.cdf]).reshape(len(self.cdf), -1)


def radial_cdf(
    distances_km: Sequence[Float[Tensor, "n _p"]], masses: Sequence[Float[Tensor, "n _p"]]
) -> Float64[np.ndarray, "n radii"]:
    """Return the ``cdf`` of a :class:`RadialProfile` from weighted distances, in any number of parts."""
    sums = torch.zeros(len(distances_km[0]), _N_RADII, dtype=torch.float64)
    for km, mass in zip(distances_km, masses, strict=True):
        bins = km.log().sub_(math.log(_MIN_KM)).div_(_STEP).ceil_().clamp_(0, _N_RADII - 1)
        sums.scatter_add_(1, bins.long(), mass.double())
    cdf = sums.cumsum(dim=1)
    return np.asarray((cdf / cdf[:, -1:]).numpy(), np.float64)


def gaussian_quadrature(n: int = 24) -> Float64[np.ndarray, "n 2"]:
    """Return points of equal mass with the mean and variance of a standard Gaussian in the plane: a golden spiral."""
    step = (np.arange(n) + 0.5) / n
    radius, angle = np.sqrt(-2 * np.log(1 - step)), np.arange(n) * np.pi * (3 - math.sqrt(5))
    points = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    points -= points.mean(axis=0)
    return np.asarray(points / np.sqrt((points**2).mean()))


_QUADRATURE = torch.from_numpy(gaussian_quadrature())
_OFFSETS = torch.cat((torch.ones(1, len(_QUADRATURE)), _QUADRATURE.T))  # of the points from a cell: up, east, north
_SQUARES = torch.stack((torch.ones(len(_QUADRATURE)), _QUADRATURE.square().sum(dim=1)))


def smoothed_chords(
    answers: Float64[Tensor, "n 3"],
    mass: Float[Tensor, "n t"],
    points: Float64[Tensor, "n t 3"],
    sigma_km: Float64[Tensor, "n t"],
) -> tuple[Float64[Tensor, "n p"], Float64[Tensor, "n p"]]:
    """Return squared chords from each answer to the quadrature points of its cells, and the mass of each point.

    Args:
        answers: unit vectors.
        mass: of the cells.
        points: unit vectors of the cells.
        sigma_km: standard deviation of the smoothing of each cell.
    """
    n, t, _ = points.shape
    # The answer in the frame (east, north, up) of each cell: three numbers for 24 points instead of 72.
    frames = tangent_frame(points).flatten(1, 2)
    east, north, up = torch.bmm(frames, answers[..., None]).view(n, t, 3).unbind(2)
    sigma = sigma_km / EARTH_RADIUS_KM
    # Points that were float32 once are not exactly of length 1, which would show as kilometres.
    square_length = torch.stack((points.square().sum(dim=2), sigma.square()), dim=2) @ _SQUARES
    cosine = (torch.stack((up, sigma * east, sigma * north), dim=2) @ _OFFSETS).mul_(square_length.rsqrt_())
    share = (mass.double() / len(_QUADRATURE)).repeat_interleave(len(_QUADRATURE), dim=1)
    return cosine.mul_(-2).add_(2).clamp_(min=0).flatten(1), share


def log_kernel(chord_square: Float64[Tensor, "*n"], sigma: Float64[Tensor, "*#n"]) -> Float64[Tensor, "*n"]:
    """Return the log density of a von Mises-Fisher kernel by square kilometre: exp(-chord²/2 sigma²), normalised.

    Args:
        chord_square: squared chord between unit vectors.
        sigma: standard deviation along each axis, in Earth radii.
    """
    kappa = 1 / sigma.square()
    norm = torch.log(2 * math.pi * EARTH_RADIUS_KM**2 * sigma.square()) + torch.log1p(-torch.exp(-2 * kappa))
    return -kappa * chord_square / 2 - norm


def weighted_quantile(
    values: Float64[Tensor, "n p"], weights: Float64[Tensor, "n p"], level: float
) -> Float64[Tensor, " n"]:
    """Return, row by row, the least value at which the cumulated weights reach a level of their sum."""
    order = torch.from_numpy(values.float().numpy().argsort(axis=1))
    cumulated = weights.gather(1, order).cumsum(dim=1)
    at = torch.searchsorted(cumulated, level * cumulated[:, -1:]).clamp_(max=values.shape[1] - 1)
    return values.gather(1, order.gather(1, at))[:, 0]
