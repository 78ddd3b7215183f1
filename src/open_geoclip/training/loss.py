"""The contrastive loss: each image is classified among the places of its batch and of a queue.

Cross-entropy of an image's embedding over the embeddings of places (Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023,
section 3.2 and equation 5). Beyond the paper's code: coordinates get noise, negatives that are too near to be wrong can
be ignored, and several places can be right.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from open_geoclip.geo.sphere import EARTH_RADIUS_KM, offset, unit_vectors

__all__ = ["add_noise", "contrastive_loss", "near_duplicates"]


def add_noise(
    coordinates: Float64[Tensor, "n 2"], sigma_m: float, generator: torch.Generator
) -> Float64[Tensor, "n 2"]:
    """Move coordinates along great circles by normal noise of ``sigma_m`` metres, north and east each."""
    if sigma_m == 0 or len(coordinates) == 0:
        return coordinates
    north, east = sigma_m * torch.randn(2, len(coordinates), generator=generator, dtype=torch.float64)
    return offset(coordinates, north, east)


def near_duplicates(
    truth: Float64[Tensor, "n 2"], candidates: Float64[Tensor, "m 2"], radius_km: float, first: int = 0
) -> Bool[Tensor, "n m"]:
    """Return which candidates are within a radius of each truth, its own candidate ``first + i`` excepted."""
    cosine = unit_vectors(truth) @ unit_vectors(candidates).T
    near = cosine > math.cos(radius_km / EARTH_RADIUS_KM)
    near.diagonal(first).fill_(False)
    return near


def contrastive_loss(
    image: Float[Tensor, "n k"],
    location: Float[Tensor, "m k"],
    scale: Float[Tensor, ""],
    *,
    first: int = 0,
    ignore: Bool[Tensor, "n m"] | None = None,
    positives: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of images over places; image i was taken at place ``first + i``.

    Args:
        image: embeddings of n images, of length 1.
        location: embeddings of m >= n places, of length 1.
        scale: what cosines are multiplied with: the inverse temperature.
        first: row of the first image's own place.
        ignore: negatives that do not count.
        positives: further places that are right: the mean of their cross-entropies is taken, as in supervised
            contrastive learning (Khosla et al., NeurIPS 2020, equation 2). A positive is never ignored.
    """
    logits = scale * image @ location.T
    own = torch.arange(first, first + len(image), device=image.device)
    if ignore is not None:
        logits = logits.masked_fill(ignore if positives is None else ignore & ~positives, -torch.inf)
    if positives is None:
        return F.cross_entropy(logits, own)
    right = positives.scatter(1, own[:, None], True)
    negative_log = -logits.log_softmax(dim=1).masked_fill(~right, 0.0)  # not times 0: ignored entries are infinite
    return (negative_log.sum(dim=1) / right.sum(dim=1)).mean()
