"""Several pictures of one place, or of one trip, located together.

**One place.** Pictures of one place multiply their evidence. Those that look alike do not tell twice what they tell,
so each has a weight of one over the number of pictures that are like it, itself among them: see
:func:`evidence_weights`. Two copies of a picture count as one picture.

**One trip.** Pictures with times form a hidden Markov chain over the places of a gallery. Between two pictures
nobody moves faster than a speed limit along the great circle; all trips that keep to it are equally likely before the
pictures are looked at. :func:`trip_posterior` gives each picture's posterior by the forward-backward algorithm
(Rabiner, "A tutorial on hidden Markov models", 1989).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, unit_vectors

__all__ = ["LIKENESS", "Trip", "evidence_weights", "pool_embeddings", "trip_posterior"]

LIKENESS = 8.0
"""The exponent of :func:`evidence_weights`. On validation views that differ, nothing is gained by more (2026-11-23)."""

_ENDS = 256  # compared at a time
# What may be wrong with a probability because places with hardly any mass were left out of a trip.
_TOLERANCE = 1e-3


def evidence_weights(vectors: Float[Tensor, "n d"], likeness: float = LIKENESS) -> Float64[Tensor, " n"]:
    """How much each picture of one place counts, from 1/n (all of them alike) to 1 (none like another).

    The weight of a picture is one over the sum of ``max(0, cosine) ** likeness`` over all pictures, as sequences
    are weighted in biology (Vingron and Argos, 1989). 0 takes the mean of all evidence; a large one its plain product,
    copies aside.

    Args:
        vectors: of the pictures; of any length but zero.
        likeness: how fast two pictures cease to be alike.

    Raises:
        SettingsError: likeness is below 0.
    """
    if not likeness >= 0:
        raise SettingsError(f"likeness: 0 or more, not {likeness}")
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    alike = (unit @ unit.T).clamp(0, 1) ** likeness
    return 1 / alike.sum(dim=1)


def pool_embeddings(vectors: Float[Tensor, "n d"], likeness: float = LIKENESS) -> Float64[Tensor, " d"]:
    """One vector for all pictures of one place: its logits are the weighted sums of theirs.

    Logits are linear in a picture's vector, so the product of evidence needs no other search than one picture does.
    The vector's length says how much evidence there is: it is not to be normalised.

    Args:
        vectors: of the pictures, of length 1.
        likeness: see :func:`evidence_weights`.
    """
    return evidence_weights(vectors, likeness) @ vectors.double()


@dataclass(frozen=True)
class Trip:
    """Where each picture of a trip was taken.

    Attributes:
        log_mass: of each place for each picture, given all pictures; -inf where a place was left out or cannot be.
        log_evidence: logarithm of the probability of keeping to the speed limit, had each picture been located alone:
            far below 0, the pictures contradict the times.
        left_out: bound on what a probability may be wrong by because places of hardly any mass were left out.
    """

    log_mass: Float64[Tensor, "n m"]
    log_evidence: float
    left_out: float


def trip_posterior(
    log_mass: Float[Tensor, "n m"],
    places: Float[np.ndarray, "m 2"],
    times_h: Float[np.ndarray, " n"],
    *,
    speed_kmh: float,
    slack_km: float = 0.0,
) -> Trip:
    """Posterior of each picture, given all pictures of a trip, their times and a speed limit.

    Exact up to ``left_out``: places of a picture whose masses together are too small to matter are left out, and if
    the trip that is left turns out so unlikely that they could matter, fewer are.

    Args:
        log_mass: of each picture alone, n pictures by m places; each row sums to one.
        places: (lat, lon) in degrees.
        times_h: hours from any moment; in any order.
        speed_kmh: the most that anybody travels at.
        slack_km: is added to what can be travelled: how far the places of the gallery are apart.

    Raises:
        SettingsError: a speed or slack below 0, or a time that is no number.
    """
    if not (speed_kmh >= 0 and slack_km >= 0 and math.isfinite(speed_kmh + slack_km)):
        raise SettingsError(f"speed and slack: numbers of 0 or more, not {speed_kmh} and {slack_km}")
    if not np.isfinite(times_h).all():
        raise SettingsError("each picture of a trip needs its time")
    order = np.argsort(times_h, kind="stable")
    reach_km = np.diff(times_h[order]) * speed_kmh + slack_km
    sphere = unit_vectors(torch.from_numpy(np.asarray(places, np.float64)))
    rows = torch.log_softmax(log_mass.double(), dim=1)[torch.from_numpy(order)]
    for threshold in (1e-7, 1e-10, 1e-14, 0.0):
        kept, left = _kept(rows, threshold)
        log_evidence, marginals = _forward_backward(rows, kept, sphere, reach_km)
        error = left / math.exp(log_evidence) if log_evidence > -700 else (0.0 if left == 0 else math.inf)
        if error <= _TOLERANCE:
            break
    full = torch.full_like(rows, -torch.inf)
    for number, (at, mass) in enumerate(zip(kept, marginals, strict=True)):
        full[order[number], at] = mass
    return Trip(full, log_evidence, error)


def _kept(rows: Float64[Tensor, "n m"], threshold: float) -> tuple[list[Int64[Tensor, " _"]], float]:
    """The places of each picture that together hold all mass but a threshold, and how much all pictures lose."""
    kept, left = [], 0.0
    for row in rows:
        ordered, at = row.sort()
        below = ordered.exp().cumsum(dim=0)
        count = int((below < threshold).sum()) if threshold else int((ordered == -torch.inf).sum())
        left += float(below[count - 1]) if count and threshold else 0.0
        kept.append(at[count:].sort().values)
    return kept, left


def _forward_backward(
    rows: Float64[Tensor, "n m"],
    kept: list[Int64[Tensor, " _"]],
    sphere: Float64[Tensor, "m 3"],
    reach_km: Float[np.ndarray, " k"],
) -> tuple[float, list[Float64[Tensor, " _"]]]:
    """Log evidence and log marginals over the kept places. Messages are scaled, so that nothing underflows."""
    n = len(rows)
    local = [row[at] for row, at in zip(rows, kept, strict=True)]
    points = [sphere[at] for at in kept]
    forward, log_evidence = [local[0]], 0.0
    for i in range(1, n):
        message, scale = _passed(forward[-1], points[i - 1], points[i], float(reach_km[i - 1]))
        forward.append(local[i] + message)
        log_evidence += scale
        top = float(torch.logsumexp(forward[-1], dim=0))
        if top == -math.inf:  # no trip keeps to the limit
            return -math.inf, [torch.full_like(part, -torch.inf) for part in local]
        forward[-1] = forward[-1] - top
        log_evidence += top
    backward = torch.zeros_like(local[-1])
    marginals = [torch.log_softmax(forward[-1], dim=0)]
    for i in range(n - 2, -1, -1):
        backward, _ = _passed(local[i + 1] + backward, points[i + 1], points[i], float(reach_km[i]))
        marginals.append(torch.log_softmax(forward[i] + backward, dim=0))
    return log_evidence, marginals[::-1]


def _passed(
    log_mass: Float64[Tensor, " a"], start: Float64[Tensor, "a 3"], end: Float64[Tensor, "b 3"], reach_km: float
) -> tuple[Float64[Tensor, " b"], float]:
    """For each end the logarithm of the mass within reach, and the logarithm of what it was divided by."""
    top = float(log_mass.max())
    mass = (log_mass - top).exp()
    if reach_km >= math.pi * EARTH_RADIUS_KM:
        return torch.full((len(end),), float(mass.sum().log()), dtype=torch.float64), top
    # Chords instead of angles: a cosine cannot tell distances below 100 m apart.
    angle = reach_km / EARTH_RADIUS_KM
    chord = 2 * math.sin(angle / 2) + 1e-12
    # Sorted by latitude, only a band of starts comes into question for each few ends.
    lat, order = torch.asin(start[:, 2].clamp(-1, 1)).sort()
    start, mass = start[order], mass[order]
    end_order = end[:, 2].argsort()
    sums = torch.empty(len(end), dtype=torch.float64)
    for rows in end_order.split(_ENDS):
        south, north = (float(x) for x in torch.asin(end[rows][[0, -1], 2].clamp(-1, 1)))
        first = int(torch.searchsorted(lat, south - angle - 1e-9))
        last = int(torch.searchsorted(lat, north + angle + 1e-9, right=True))
        apart = torch.cdist(end[rows], start[first:last], compute_mode="donot_use_mm_for_euclid_dist")
        sums[rows] = torch.where(apart <= chord, mass[first:last], 0.0).sum(dim=1)
    return sums.log(), top
