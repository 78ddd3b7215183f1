"""Mass that is blurred over the ground of its places: points that stand for it, mass within radii, density."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from open_geoclip.geo.sphere import EARTH_RADIUS_KM
from open_geoclip.search.decode import chord_km

__all__ = ["Profile", "blurred", "log_gauss", "quadrature", "quantile", "spread", "upto_marks"]

_STEP = math.log(1.03)  # radii are found on a scale that grows by 3 %, and between its marks
_LEAST_KM = 0.05
_MARKS = math.ceil(math.log(math.pi * EARTH_RADIUS_KM / _LEAST_KM) / _STEP) + 2
_EDGES = math.log(_LEAST_KM) + _STEP * np.arange(_MARKS)


@dataclass(frozen=True, eq=False)
class Profile:
    """Mass of n pictures within radii around one place each.

    Attributes:
        upto: share of the mass up to each mark of a scale of radii on which a step is 3 %.
    """

    upto: Float64[np.ndarray, "n marks"]

    def within(self, radii_km: Sequence[float]) -> Float64[np.ndarray, "n r"]:
        """Share of the mass within some radii."""
        marks = np.log(np.asarray(radii_km, np.float64))
        return np.array([np.interp(marks, _EDGES, row) for row in self.upto]).reshape(len(self.upto), len(marks))

    def radius_km(self, shares: Sequence[float]) -> Float64[np.ndarray, "n s"]:
        """Radii within which some shares of the mass lie."""
        found = [np.exp(np.interp(shares, row, _EDGES)) for row in self.upto]
        return np.array(found).reshape(len(self.upto), len(shares))


def upto_marks(
    parts: Sequence[tuple[Float64[Tensor, "n _p"] | Float32[Tensor, "n _p"], Tensor]],
) -> Float64[np.ndarray, "n marks"]:
    """What :class:`Profile` holds, of points.

    Args:
        parts: kilometres of points, and the mass of each.
    """
    sums = torch.zeros(len(parts[0][0]), _MARKS, dtype=torch.float64)
    for distance, mass in parts:
        mark = ((distance.clamp(min=_LEAST_KM).log_() - math.log(_LEAST_KM)) / _STEP).ceil_().long()
        sums.scatter_add_(1, mark.clamp_(max=_MARKS - 1), mass.double())
    upto = sums.cumsum(dim=1)
    return np.asarray((upto / upto[:, -1:]).numpy(), np.float64)


def quadrature(n: int = 24) -> Float64[np.ndarray, "n 2"]:
    """Points that stand for a Gaussian of variance one along each axis: even in mass, turning by the golden angle."""
    step = (np.arange(n) + 0.5) / n
    radius, angle = np.sqrt(-2 * np.log(1 - step)), np.arange(n) * np.pi * (3 - math.sqrt(5))
    points = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    points -= points.mean(axis=0)
    return np.asarray(points / np.sqrt((points**2).mean()))


_QUADRATURE = quadrature()


def spread(where: Float64[Tensor, "*n 3"], blur_km: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n q 3"]:
    """24 points for each place that stand for its blur, of equal mass each.

    Args:
        where: unit vectors of the places.
        blur_km: one standard deviation along each axis.
    """
    offsets = torch.from_numpy(_QUADRATURE) * (blur_km / EARTH_RADIUS_KM)[..., None, None]
    # East of a place, and anything that is level at a pole.
    east = torch.stack((-where[..., 1], where[..., 0] + 1e-12, torch.zeros_like(where[..., 0])), dim=-1)
    east = torch.nn.functional.normalize(east, dim=-1)
    north = torch.linalg.cross(where, east)
    points = where[..., None, :] + offsets[..., :1] * east[..., None, :] + offsets[..., 1:] * north[..., None, :]
    return torch.nn.functional.normalize(points, dim=-1)


def blurred(
    answers: Float64[Tensor, "n 3"], mass: Tensor, where: Float64[Tensor, "n t 3"], blur_km: Float64[Tensor, "n t"]
) -> tuple[Float64[Tensor, "n p"], Float64[Tensor, "n p"]]:
    """Distances from answers to points that stand for the blur of some places, and the mass of each point."""
    points = spread(where, blur_km).flatten(1, 2)
    share = mass.double().repeat_interleave(len(_QUADRATURE), dim=1) / len(_QUADRATURE)
    return chord_km((points - answers[:, None]).norm(dim=-1)), share


def log_gauss(chord_square: Float64[Tensor, "*n"], blur: Float64[Tensor, "*#n"]) -> Float64[Tensor, "*n"]:
    """Log density by square kilometre of a von Mises-Fisher blur; on the sphere it is exp(-chord²/2 blur²)."""
    kappa = 1 / blur.square()
    norm = torch.log(2 * math.pi * EARTH_RADIUS_KM**2 * blur.square()) + torch.log1p(-torch.exp(-2 * kappa))
    return -kappa * chord_square / 2 - norm


def quantile(
    km: Float64[Tensor, "n p"], share: Float64[Tensor, "n p"], levels: Sequence[float]
) -> Float64[Tensor, "n l"]:
    """Distances within which some parts of the shares lie."""
    ordered, order = km.sort(dim=1)
    upto = share.gather(1, order).cumsum(dim=1)
    goal = upto[:, -1:] * torch.tensor(levels, dtype=torch.float64)
    at: Int64[Tensor, "n l"] = torch.searchsorted(upto, goal.contiguous()).clamp(max=km.shape[1] - 1)
    return ordered.gather(1, at)
