"""The contrastive loss: each image is classified among the places of its batch and of a queue.

Cross-entropy of an image's embedding over the embeddings of places (Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023,
section 3.2 and equation 5). Beyond the paper's code: coordinates get noise, negatives that are too near to be wrong can
be ignored, several places can be right, the distance of a place can decide how right or how important it is, and places
near the true ones can be drawn as further candidates.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor, nn

from open_geoclip.geo.sphere import EARTH_RADIUS_KM, check_coordinates, offset, unit_vectors
from open_geoclip.model.backbones.runtime import resolve_dtype
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.training.distributed import Ranks
from open_geoclip.training.settings import TrainSettings

__all__ = [
    "Loss",
    "SigLIPLoss",
    "add_noise",
    "batch_loss",
    "contrastive_loss",
    "distances_km",
    "encode_inputs",
    "near_duplicates",
    "near_weights",
    "nearby_places",
    "siglip_loss",
    "smooth_targets",
]

Loss = Callable[..., Float[Tensor, ""]]
"""Called as :func:`contrastive_loss`: with embeddings of images and of places, ``scale``,
and by keyword ``first``, ``ignore``, ``positives``; ``targets`` if ``smooth_km``, ``weights`` if ``near_weight``."""


def add_noise(
    coordinates: Float64[Tensor, "n 2"], sigma_m: float, generator: torch.Generator
) -> Float64[Tensor, "n 2"]:
    """Move coordinates along great circles by normal noise of ``sigma_m`` metres, north and east each.

    Raises:
        CoordinateError: a coordinate is not on Earth; latitude and longitude may be swapped.
    """
    coordinates = check_coordinates(coordinates)
    if sigma_m == 0 or len(coordinates) == 0:
        return coordinates
    north, east = sigma_m * torch.randn(2, len(coordinates), generator=generator, dtype=torch.float64)
    return offset(coordinates, north, east)


def nearby_places(
    coordinates: Float64[Tensor, "n 2"], each: int, distance_km: tuple[float, float], generator: torch.Generator
) -> Float64[Tensor, "m 2"]:
    """Draw places around each coordinate, in all directions, as many in each octave of the distance.

    Places of other images are rarely near enough to be confused with an image's own; these are, and need no image.

    Args:
        coordinates: (lat, lon) in degrees.
        each: how many around each, k.
        distance_km: the least and the greatest distance.
        generator: of the random numbers.

    Returns:
        m = n k places; the first k are around the first coordinate.
    """
    near, far = (math.log(1000 * km) for km in distance_km)
    share, turn = torch.rand(2, len(coordinates) * each, generator=generator, dtype=torch.float64)
    distance_m, bearing = torch.exp(near + (far - near) * share), 2 * math.pi * turn
    return offset(coordinates.repeat_interleave(each, dim=0), distance_m * bearing.cos(), distance_m * bearing.sin())


def near_duplicates(
    truth: Float64[Tensor, "n 2"], candidates: Float64[Tensor, "m 2"], radius_km: float, first: int = 0
) -> Bool[Tensor, "n m"]:
    """Return which candidates are within a radius of each truth, its own candidate ``first + i`` excepted."""
    cosine = unit_vectors(truth) @ unit_vectors(candidates).T
    near = cosine > math.cos(radius_km / EARTH_RADIUS_KM)
    near.diagonal(first).fill_(False)
    return near


def distances_km(truth: Float64[Tensor, "n 2"], candidates: Float64[Tensor, "m 2"]) -> Float64[Tensor, "n m"]:
    """Return the great-circle distance of each pair; rounding keeps equal places within a metre."""
    return EARTH_RADIUS_KM * (unit_vectors(truth) @ unit_vectors(candidates).T).clamp(-1, 1).acos()


def smooth_targets(distance_km: Float64[Tensor, "n m"], widths_km: Sequence[float]) -> Float64[Tensor, "n m"]:
    """Return the share of each place in the target of each image: Gaussians of the distance, each row with the sum 1.

    For one width s, q_ij = exp(-d_ij² / 2s²) / sum_k exp(-d_ik² / 2s²); for several, the mean of these. This is the
    haversine smoothing of PIGEON (Haas et al., CVPR 2024, section 3.2) with places of batch and queue instead of cells
    and a Gaussian instead of an exponential. Widths towards 0 leave the image's own place: the plain contrastive loss.
    """
    return torch.stack([(-((distance_km / width) ** 2) / 2).softmax(dim=1) for width in widths_km]).mean(dim=0)


def near_weights(distance_km: Float64[Tensor, "n m"], weight: float, radius_km: float) -> Float64[Tensor, "n m"]:
    """Return the weight of each negative in the softmax, w_ij = 1 + weight exp(-d_ij / radius_km).

    Near negatives count more, as hard ones do in Robinson et al. ("Contrastive Learning with Hard Negative Samples",
    ICLR 2021), by their distance on Earth instead of their similarity. A weight of 0 is the plain contrastive loss.
    """
    return 1 + weight * (-distance_km / radius_km).exp()


def contrastive_loss(
    image: Float[Tensor, "n k"],
    location: Float[Tensor, "m k"],
    scale: Float[Tensor, ""],
    *,
    first: int = 0,
    ignore: Bool[Tensor, "n m"] | None = None,
    positives: Bool[Tensor, "n m"] | None = None,
    targets: Float[Tensor, "n m"] | None = None,
    weights: Float[Tensor, "n m"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of images over places; image i was taken at place ``first + i``.

    With logits l_ij and targets q_ij it is -1/n sum_ij q_ij log(w_ij exp(l_ij) / sum_k w_ik exp(l_ik)).

    Args:
        image: embeddings of n images, of length 1.
        location: embeddings of m >= n places, of length 1.
        scale: what cosines are multiplied with: the inverse temperature.
        first: row of the first image's own place.
        ignore: negatives that do not count.
        positives: further places that are right: the mean of their cross-entropies is taken, as in supervised
            contrastive learning (Khosla et al., NeurIPS 2020, equation 2). A positive is never ignored.
        targets: q, the share of each place in what is right, of sum 1 for each image, instead of ``positives``. A
            place with a share is never ignored.
        weights: w, above 0, of the negatives in the softmax; those of the image's own place and positives are 1.
    """
    logits = scale * image @ location.T
    own = torch.arange(first, first + len(image), device=image.device)
    right = torch.zeros_like(logits, dtype=torch.bool) if positives is None else positives
    right = right.scatter(1, own[:, None], True)
    has_share = right if targets is None else targets > 0
    if weights is not None:
        logits = logits + weights.log().masked_fill(right, 0.0).to(logits.dtype)
    if ignore is not None:
        logits = logits.masked_fill(ignore & ~has_share, -torch.inf)
    if targets is None and positives is None:
        return F.cross_entropy(logits, own)
    if targets is None:
        targets = right / right.sum(dim=1, keepdim=True)
    negative_log = -logits.log_softmax(dim=1).masked_fill(~has_share, 0.0)  # not times 0: ignored ones are infinite
    return (targets.to(logits.dtype) * negative_log).sum(dim=1).mean()


def siglip_loss(
    image: Float[Tensor, "n k"],
    location: Float[Tensor, "m k"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    first: int = 0,
    ignore: Bool[Tensor, "n m"] | None = None,
    positives: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, ""]:
    """Return the sigmoid loss: each pair of image and place is right or wrong by itself.

    -1/n sum_ij log sigmoid(z_ij (scale x_i y_j + bias)), z_ij = 1 for right pairs and -1 for others (Zhai et al.,
    "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, section 3.2). The queue's places are wrong for all.

    Args:
        image: embeddings of n images, of length 1.
        location: embeddings of m >= n places, of length 1.
        scale: what cosines are multiplied with: the inverse temperature.
        bias: added to each logit; negative, since most pairs are wrong.
        first: row of the first image's own place.
        ignore: wrong pairs that do not count.
        positives: further pairs that are right.
    """
    logits = scale * image @ location.T + bias
    own = torch.arange(first, first + len(image), device=image.device)
    right = torch.zeros_like(logits, dtype=torch.bool) if positives is None else positives
    right = right.scatter(1, own[:, None], True)
    loss = -F.logsigmoid(torch.where(right, logits, -logits))
    if ignore is not None:
        loss = loss.masked_fill(ignore & ~right, 0.0)
    return loss.sum(dim=1).mean()


class SigLIPLoss(nn.Module):
    """:func:`siglip_loss` with its trained bias.

    Args:
        bias: at the start; -10 in the paper.
    """

    def __init__(self, bias: float = -10.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(
        self, image: Float[Tensor, "n k"], location: Float[Tensor, "m k"], scale: Float[Tensor, ""], **pairs: Any
    ) -> Float[Tensor, ""]:
        """Return the loss; arguments are those of :func:`siglip_loss`."""
        return siglip_loss(image, location, scale, self.bias, **pairs)


def encode_inputs(model: GeoCLIP, features: Float[Tensor, "n d"] | UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n k"]:
    """Return embeddings of features, or of pixels as the backbone's preprocessing crops them."""
    if features.dtype == torch.uint8:
        return model.encode_image(model.image_encoder.preprocessing.normalize(features))
    return model.encode_features(features.float())


def batch_loss(
    model: GeoCLIP,
    features: Float[Tensor, "n d"] | UInt8[Tensor, "n h w 3"],
    places: Float64[Tensor, "m 2"],
    candidates: Float64[Tensor, "m 2"],
    settings: TrainSettings,
    *,
    loss: Loss = contrastive_loss,
    first: int = 0,
    progress: float = 1.0,
    ranks: Ranks | None = None,
) -> Float[Tensor, ""]:
    """Return the loss of some images of a batch against all candidates.

    Args:
        model: the model.
        features: of n images, or their pixels as the backbone's preprocessing crops them.
        places: (lat, lon) of the whole batch and of the queue; those of the images are ``first`` and following.
        candidates: the same with noise: what is encoded.
        settings: which places are right, wrong or ignored, and whether the loss is symmetric.
        loss: of embeddings.
        first: row of the first image's own place.
        progress: share of the run that is done, for the widths of smooth targets.
        ranks: the processes that share the batch; only this one when not given.
    """
    own = slice(first, first + len(features))
    dtype = resolve_dtype(settings.dtype, places.device)
    with nullcontext() if dtype == torch.float32 else torch.autocast(places.device.type, dtype):
        image, location = encode_inputs(model, features), model.encode_location(candidates)
    scale = model.logit_scale.exp()
    pairs = _relations(places[own], places, candidates, settings, first, progress)
    value = loss(image, location, scale, **pairs)
    if not settings.symmetric:
        return value
    images = image if ranks is None else ranks.gather_with_gradient(image)
    pairs = _relations(places[own], places[: len(images)], candidates[: len(images)], settings, first, progress)
    if settings.mask_km:
        pairs["ignore"] = near_duplicates(candidates[own], places[: len(images)], settings.mask_km, first)
    return (value + loss(location[own], images, scale, **pairs)) / 2


def _relations(
    truth: Float64[Tensor, "n 2"],
    places: Float64[Tensor, "m 2"],
    candidates: Float64[Tensor, "m 2"],
    settings: TrainSettings,
    first: int,
    progress: float,
) -> dict[str, Any]:
    """Return what a loss is told about pairs of images and places; ``candidates`` are the places with noise."""
    # Without a radius nothing is ignored: of the same place twice, rounding would decide.
    ignore = near_duplicates(truth, candidates, settings.mask_km, first) if settings.mask_km else None
    positives = near_duplicates(truth, places, settings.positive_km, first) if settings.positive_km else None
    pairs: dict[str, Any] = {"first": first, "ignore": ignore, "positives": positives}
    if settings.smooth_km:
        widths = [width * settings.smooth_end**progress for width in settings.smooth_km]
        pairs["targets"] = smooth_targets(distances_km(truth, places), widths)
    if settings.near_weight:
        pairs["weights"] = near_weights(distances_km(truth, places), settings.near_weight, settings.near_weight_km)
    return pairs
