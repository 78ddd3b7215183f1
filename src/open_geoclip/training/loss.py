"""The objective: each picture is asked for its place among those of the batch and of a queue.

Cross-entropy of a picture's vector over the vectors of places (Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023,
section 3.2 and equation 5). Beyond it: coordinates are moved by a little noise, negatives that lie too near the truth
to be wrong are left out, several places may be right, and each place may be asked for its picture as well.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from open_geoclip.geo.sphere import EARTH_RADIUS_KM, offset, unit_vectors

__all__ = ["contrastive_loss", "near_duplicates", "noisy"]


def noisy(coordinates: Float64[Tensor, "n 2"], sigma_m: float, generator: torch.Generator) -> Float64[Tensor, "n 2"]:
    """Coordinates moved by normal noise of ``sigma_m`` metres, north and east each, along great circles: poles too."""
    if sigma_m == 0 or len(coordinates) == 0:
        return coordinates
    north, east = sigma_m * torch.randn(2, len(coordinates), generator=generator, dtype=torch.float64)
    return offset(coordinates, north, east)


def near_duplicates(
    truth: Float64[Tensor, "n 2"], candidates: Float64[Tensor, "m 2"], radius_km: float, first: int = 0
) -> Bool[Tensor, "n m"]:
    """Which candidates are too near a truth to be called wrong.

    A truth's own is not one of them: that of row i is candidate ``first + i``.
    """
    cosine = unit_vectors(truth) @ unit_vectors(candidates).T
    near = cosine > math.cos(radius_km / EARTH_RADIUS_KM)
    near.diagonal(first).fill_(False)
    return near


def contrastive_loss(
    image: Float[Tensor, "n k"],
    location: Float[Tensor, "m k"],
    scale: Float[Tensor, ""],
    left_out: Bool[Tensor, "n m"] | None = None,
    *,
    first: int = 0,
    also_right: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of each picture over all places; its own is place ``first + i`` for row i.

    Args:
        image: vectors of n pictures, any length.
        location: vectors of m >= n places.
        scale: what cosines are multiplied with.
        left_out: negatives that do not count.
        first: where the pictures' own places begin.
        also_right: other places that are as right as the own: the mean of their cross-entropies is taken, as in
            supervised contrastive learning (Khosla et al., NeurIPS 2020, equation 2).
    """
    logits = scale * F.normalize(image.float(), dim=1) @ F.normalize(location.float(), dim=1).T
    if left_out is not None:
        logits = logits.masked_fill(left_out if also_right is None else left_out & ~also_right, -torch.inf)
    own = torch.arange(first, first + len(image), device=image.device)
    if also_right is None:
        return F.cross_entropy(logits, own)
    right = also_right.clone()
    right[torch.arange(len(image), device=image.device), own] = True
    surprise = -logits.log_softmax(dim=1).masked_fill(~right, 0.0)  # not times 0: those left out are infinite
    return (surprise.sum(dim=1) / right.sum(dim=1)).mean()
