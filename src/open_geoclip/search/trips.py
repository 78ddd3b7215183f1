"""Several images of one place, or of one trip, located jointly.

**One place.** The evidence of images of one place is multiplied. They are not independent, so each is weighted by one
over the number of images like it, itself included, and all are tempered: see :func:`evidence_weights`. Two copies count
once.

**One trip.** Images with times form a hidden Markov model over the places of a gallery: between two images nobody moves
faster than a speed limit along the great circle, and a priori all trips within it are equally likely.
:func:`trip_posterior` computes the posterior of each image by the forward-backward algorithm (Rabiner, "A tutorial on
hidden Markov models and selected applications in speech recognition", 1989).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import unit_vectors
from open_geoclip.search.reach import PlaceBlocks

__all__ = [
    "SIMILARITY_POWER",
    "TEMPERING",
    "TripPosterior",
    "chain_marginals",
    "evidence_weights",
    "trip_posterior",
    "trip_weights",
]

SIMILARITY_POWER = 8.0
"""Default exponent of :func:`evidence_weights`; larger ones gained nothing on validation views (2026-11-23)."""

TEMPERING = 0.75
"""Default of :func:`evidence_weights`, chosen on validation views with ``python -m research.trip_tempering``."""

_SAME_PLACE_KM = 50.0  # as those of the groups that the tempering was fitted on
_TOLERANCE = 1e-3  # of a probability, because cells of hardly any mass are omitted
_MIN_OMITTED = 0.1  # share of the places, fewer save no time
_OMITTED_MASS = (1e-7, 1e-10, 1e-14, 0.0)  # of each image, tried until the tolerance is met


def evidence_weights(
    embeddings: Float[Tensor, "n d"],
    power: float = SIMILARITY_POWER,
    tempering: float = TEMPERING,
    near: Bool[Tensor, "n n"] | None = None,
) -> Float64[Tensor, " n"]:
    """Return the exponent of each image's evidence among images of one place.

    Similar images are weighted by one over the sum of ``max(0, cosine) ** power`` over all images, as sequences are in
    biology (Vingron and Argos, "A fast and sensitive multiple sequence alignment algorithm", 1989). The sum of these
    weights, from 1 (all are alike) to n (none is like another), is the effective number of images. What the model
    mistakes at a place it mistakes in all of them: the weights are divided by this number to the power of ``tempering``
    (a composite likelihood; Pauli, Racugno and Ventura, "Bayesian composite marginal likelihoods", 2011).

    Args:
        embeddings: of any length but zero.
        power: how fast similarity decreases with the angle.
        tempering: 0: images that are not alike are independent; 1: all together say as much as one.
        near: which images are of one place. Default: all.

    Raises:
        SettingsError: power is below 0, or tempering is not within 0 and 1.
    """
    if not (power >= 0 and 0 <= tempering <= 1):
        raise SettingsError(f"power: 0 or more, and tempering: from 0 to 1, not {power} and {tempering}")
    unit = F.normalize(embeddings.double(), dim=1)
    together = torch.ones(len(unit), len(unit)).bool() if near is None else near
    similarity = (unit @ unit.T).clamp(0, 1) ** power * together
    weights = 1 / similarity.sum(dim=1)
    return weights / (together.double() @ weights) ** tempering


def trip_weights(
    embeddings: Float[Tensor, "n d"], times_h: Float[np.ndarray, " n"], speed_kmh: float
) -> Float64[Tensor, " n"]:
    """Return the exponent of each image's evidence on a trip: images are of one place if nobody gets 50 km between."""
    times = torch.from_numpy(np.asarray(times_h, np.float64))
    return evidence_weights(embeddings, near=(times[:, None] - times).abs() * speed_kmh <= _SAME_PLACE_KM)


@dataclass(frozen=True)
class TripPosterior:
    """Posterior of each image of a trip.

    Attributes:
        log_mass: of each place for each image, given all images; -inf where a place is impossible or was omitted.
        log_evidence: log probability that a trip keeps to the speed limit, had each image been located alone. Far
            below 0, the images contradict the times.
        truncation_error: bound on the error of a probability because places of hardly any mass were omitted.
    """

    log_mass: Float64[Tensor, "n m"]
    log_evidence: float
    truncation_error: float


def trip_posterior(
    log_mass: Float[Tensor, "n m"],
    places: Float[np.ndarray, "m 2"],
    times_h: Float[np.ndarray, " n"],
    *,
    speed_kmh: float,
    slack_km: float = 0.0,
) -> TripPosterior:
    """Compute the posterior of each image, given all images of a trip, their times and a speed limit.

    Exact up to ``truncation_error``: places of hardly any mass are omitted, and fewer of them when the remaining trips
    are so unlikely that they could matter.

    Args:
        log_mass: of n images alone, over m places; each row is normalised.
        places: (lat, lon) in degrees.
        times_h: hours from any origin, in any order.
        speed_kmh: the speed limit.
        slack_km: added to the distance that can be travelled: the spacing of the gallery.

    Raises:
        SettingsError: a speed or slack below 0, or a time that is not finite.
    """
    if not (speed_kmh >= 0 and slack_km >= 0 and math.isfinite(speed_kmh + slack_km)):
        raise SettingsError(f"speed and slack: numbers of 0 or more, not {speed_kmh} and {slack_km}")
    if not np.isfinite(times_h).all():
        raise SettingsError("each image of a trip needs its time")
    order = np.argsort(times_h, kind="stable")
    points = unit_vectors(torch.from_numpy(np.asarray(places, np.float64)))
    rows = list(torch.log_softmax(log_mass.double(), dim=1)[torch.from_numpy(order)])
    radius_km = torch.full((len(points),), slack_km / 2, dtype=torch.float64)
    n, travel_km = len(rows), np.diff(times_h[order]) * speed_kmh
    marginals, log_evidence, error = chain_marginals(rows, [points] * n, [radius_km] * n, travel_km)
    full = torch.empty(n, len(points), dtype=torch.float64)
    full[torch.from_numpy(order)] = torch.stack(marginals)
    return TripPosterior(full, log_evidence, error)


def chain_marginals(
    rows: Sequence[Float64[Tensor, " _"]],
    points: Sequence[Float64[Tensor, "_ 3"]],
    radius_km: Sequence[Float64[Tensor, " _"]],
    travel_km: Float[np.ndarray, " k"],
) -> tuple[list[Float64[Tensor, " _"]], float, float]:
    """Return the log marginals of images in the order of time, each with places of its own.

    Args:
        rows: log mass of each image's places, normalised.
        points: unit vectors of the places.
        radius_km: of the cell that each place stands for.
        travel_km: the most that anybody travels between an image and the next. Two places are within reach when they
            are no further apart than this and both radii.

    Returns:
        The marginals, the log evidence and the bound of :class:`TripPosterior`.
    """
    for omitted in _OMITTED_MASS:
        kept, lost = _truncate(rows, omitted)
        blocks = [
            PlaceBlocks.build(*(part[at] for part in place)) for *place, at in zip(points, radius_km, kept, strict=True)
        ]
        local = [row[at] for row, at in zip(rows, kept, strict=True)]
        log_evidence, marginals = _forward_backward(local, blocks, travel_km)
        error = lost / math.exp(log_evidence) if log_evidence > -700 else (0.0 if lost == 0 else math.inf)
        if error <= _TOLERANCE:
            break
    full = [torch.full_like(row, -torch.inf) for row in rows]
    for row, at, marginal in zip(full, kept, marginals, strict=True):
        row[at] = marginal
    return full, log_evidence, error


def _truncate(rows: Sequence[Float64[Tensor, " _"]], omitted: float) -> tuple[list[Int64[Tensor, " _"]], float]:
    """Return the places of each image that hold all but some mass, and the total mass lost.

    Where a background leaves little to omit, nothing is.
    """
    kept, lost = [], 0.0
    for row in rows:
        ascending, at = row.sort()
        cumulated = ascending.exp().cumsum(dim=0)
        impossible = int((ascending == -torch.inf).sum())
        count = max(impossible, int((cumulated < omitted).sum()))
        if count - impossible < _MIN_OMITTED * len(row):
            count = impossible
        lost += float(cumulated[count - 1]) if count else 0.0
        kept.append(at[count:].sort().values)
    return kept, lost


def _forward_backward(
    local: Sequence[Float64[Tensor, " _"]], blocks: Sequence[PlaceBlocks], travel_km: Float[np.ndarray, " k"]
) -> tuple[float, list[Float64[Tensor, " _"]]]:
    """Return the log evidence and the log marginals; messages are scaled against underflow."""
    forward, log_evidence = [local[0]], 0.0
    for i in range(1, len(local)):
        message, scale = _propagate(forward[-1], blocks[i - 1], blocks[i], float(travel_km[i - 1]))
        forward.append(local[i] + message)
        log_evidence += scale
        top = float(torch.logsumexp(forward[-1], dim=0))
        if top == -math.inf:  # no trip keeps to the limit
            return -math.inf, [torch.full_like(part, -torch.inf) for part in local]
        forward[-1] = forward[-1] - top
        log_evidence += top
    backward = torch.zeros_like(local[-1])
    marginals = [torch.log_softmax(forward[-1], dim=0)]
    for i in range(len(local) - 2, -1, -1):
        backward, _ = _propagate(local[i + 1] + backward, blocks[i + 1], blocks[i], float(travel_km[i]))
        marginals.append(torch.log_softmax(forward[i] + backward, dim=0))
    return log_evidence, marginals[::-1]


def _propagate(
    log_mass: Float64[Tensor, " a"], starts: PlaceBlocks, ends: PlaceBlocks, travel_km: float
) -> tuple[Float64[Tensor, " b"], float]:
    """Return the log mass within reach of each end, up to a scale, and the log of the scale."""
    top = float(log_mass.max())
    return starts.mass_within((log_mass - top).exp(), ends, travel_km).log(), top
