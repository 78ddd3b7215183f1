"""Decisions: the one place that is the best answer for what is asked, found between places where that is better."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM

__all__ = ["Decode", "Distinct", "check_decision", "chord_km", "decided", "nearest"]

Decode = Literal["mass", "distance", "geoscore", "max"]
"""What the answer is best for: most mass nearby, least expected distance, best expected GeoScore, the best place."""

_TRIED = 32  # places that are tried as an answer
_STEPS = 12  # of a search between places
_GEOSCORE_KM = 1492.7


@dataclass(frozen=True, eq=False)
class Distinct:
    """Places that are really different, for each of n pictures, best first.

    Attributes:
        coordinates: (lat, lon) in degrees; NaN where no mass was left for so many.
        mass: of all that was merged into each.
        radius_km: around each, within which nine tenths of that mass lie.
    """

    coordinates: Float64[np.ndarray, "n k 2"]
    mass: Float64[np.ndarray, "n k"]
    radius_km: Float64[np.ndarray, "n k"]


def check_decision(how: str, radius_km: float) -> None:
    """Refuse what is no decision.

    Raises:
        SettingsError: an unknown way to decide, or a radius that is not above 0.
    """
    if how not in ("mass", "distance", "geoscore", "max"):
        raise SettingsError(f"decode: mass, distance, geoscore or max, not {how!r}")
    if not 0 < radius_km < math.inf:
        raise SettingsError(f"radius_km: kilometres above 0, not {radius_km}")


def chord_km(chord: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """Kilometres along the sphere, of chords between unit vectors."""
    return 2 * EARTH_RADIUS_KM * torch.asin((chord / 2).clamp(max=1))


def nearest(
    answer: Float64[Tensor, "n 3"], where: Float64[Tensor, "n t 3"], rest: Float64[Tensor, "n t"]
) -> Int64[Tensor, " n"]:
    """The place with mass that is nearest to each answer: it is merged even where places are far apart."""
    return (where - answer[:, None]).square().sum(dim=-1).masked_fill(rest <= 0, torch.inf).argmin(dim=1)


def decided(
    mass: Float64[Tensor, "n t"],
    where: Float64[Tensor, "n t 3"],
    blur_km: Float64[Tensor, "n t"],
    how: Decode,
    radius_km: float,
) -> Float64[Tensor, "n 3"]:
    """The answer, as a unit vector: the best of the places that are tried, then steps between them.

    Args:
        mass: of the places.
        where: unit vectors of the places.
        blur_km: of each place.
        how: see :data:`Decode`.
        radius_km: of ``mass``.
    """
    at = mass.topk(min(_TRIED, mass.shape[1]), dim=1).indices
    tried = where.gather(1, at[..., None].expand(-1, -1, 3))
    if how == "max":
        return tried[:, 0]
    # A disc has a quarter of its radius squared as variance along each axis: a Gaussian of that stands for it.
    width = (blur_km.square() + radius_km**2 / 4) / EARTH_RADIUS_KM**2

    def gain(answers: Float64[Tensor, "n c 3"]) -> Float64[Tensor, "n c"]:
        chord = torch.cdist(answers, where, compute_mode="donot_use_mm_for_euclid_dist")
        if how == "mass":
            return torch.einsum("nct,nt->nc", torch.exp(-chord.square() / (2 * width[:, None])), mass / width)
        km = (chord_km(chord).square() + blur_km[:, None].square()).sqrt()
        worth = -km if how == "distance" else torch.exp(-km / _GEOSCORE_KM)
        return torch.einsum("nct,nt->nc", worth, mass)

    best = gain(tried).argmax(dim=1)
    answer = tried[torch.arange(len(tried)), best]
    for _ in range(_STEPS):
        square = (where - answer[:, None]).square().sum(dim=-1)
        if how == "mass":
            pull = mass / width.square() * torch.exp(-square / (2 * width))
        else:
            km = (chord_km(square.sqrt()).square() + blur_km.square()).sqrt()
            pull = mass / km * (torch.exp(-km / _GEOSCORE_KM) if how == "geoscore" else 1)
        answer = torch.nn.functional.normalize(torch.einsum("nt,ntd->nd", pull, where), dim=1)
    stepped = gain(torch.stack((answer, tried[torch.arange(len(tried)), best]), dim=1))
    return torch.where((stepped[:, 0] >= stepped[:, 1])[:, None], answer, tried[torch.arange(len(tried)), best])
