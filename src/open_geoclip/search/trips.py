"""Several images of one place, or of one trip, located jointly.

**One place.** The evidence of images of one place is multiplied. They are not independent, so each is weighted by one
over the number of images like it, itself included: see :func:`evidence_weights`. Two copies count once.

**One trip.** Images with times form a hidden Markov model over the places of a gallery: between two images nobody moves
faster than a speed limit along the great circle, and a priori all trips within it are equally likely.
:func:`trip_posterior` computes the posterior of each image; see :mod:`open_geoclip.search.forward_backward`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import unit_vectors
from open_geoclip.search.forward_backward import PlaceMass, chain_marginals
from open_geoclip.search.reach import PlaceTree

__all__ = [
    "SIMILARITY_POWER",
    "TripPosterior",
    "evidence_weights",
    "trip_posterior",
    "trip_weights",
]

SIMILARITY_POWER = 8.0
"""Default exponent of :func:`evidence_weights`; larger ones gained nothing on validation views (2026-11-23)."""

_SAME_PLACE_KM = 50.0


def evidence_weights(
    embeddings: Float[Tensor, "n d"],
    power: float = SIMILARITY_POWER,
    near: Bool[Tensor, "n n"] | None = None,
) -> Float64[Tensor, " n"]:
    """Return the exponent of each image's evidence among images of one place.

    Similar images are weighted by one over the sum of ``max(0, cosine) ** power`` over all images, as sequences are in
    biology (Vingron and Argos, "A fast and sensitive multiple sequence alignment algorithm", 1989). The sum of these
    weights, from 1 (all are alike) to n (none is like another), is the effective number of images.

    Args:
        embeddings: of any length but zero.
        power: how fast similarity decreases with the angle.
        near: which images are of one place. Default: all.

    Raises:
        SettingsError: power is below 0.
    """
    if not power >= 0:
        raise SettingsError(f"power: 0 or more, not {power}")
    unit = F.normalize(embeddings.double(), dim=1)
    together = torch.ones(len(unit), len(unit)).bool() if near is None else near
    similarity = (unit @ unit.T).clamp(0, 1) ** power * together
    return 1 / similarity.sum(dim=1)


def trip_weights(
    embeddings: Float[Tensor, "n d"], times_h: Float[np.ndarray, " n"], speed_kmh: float
) -> Float64[Tensor, " n"]:
    """Return the exponent of each image's evidence on a trip: images are of one place if nobody gets 50 km between."""
    times = torch.from_numpy(np.asarray(times_h, np.float64))
    return evidence_weights(embeddings, near=(times[:, None] - times).abs() * speed_kmh <= _SAME_PLACE_KM)


@dataclass(frozen=True, eq=False)
class TripPosterior:
    """Posterior of each image of a trip, over the places that matter.

    Attributes:
        rows: of the places of each image, ascending; all others are impossible or were omitted.
        log_mass: of these places, given all images.
        log_evidence: log probability that a trip keeps to the speed limit, had each image been located alone. Far
            below 0, the images contradict the times. Too high by at most ``truncation_error``.
        truncation_error: bound on the error of a probability because places of hardly any mass were omitted.
    """

    rows: Sequence[Int64[Tensor, " _"]]
    log_mass: Sequence[Float64[Tensor, " _"]]
    log_evidence: float
    truncation_error: float

    def part(
        self, images: slice, among: Int64[Tensor, " k"] | None = None
    ) -> tuple[Int64[Tensor, " k"], Float64[Tensor, "n k"]]:
        """Return the log mass of some images over the same places, by default all those that any of them has."""
        rows, masses = self.rows[images], self.log_mass[images]
        among = torch.cat([*rows]).unique() if among is None else among
        log_mass = torch.full((len(rows), len(among)), -torch.inf, dtype=torch.float64)
        for row, at, mass in zip(log_mass, rows, masses, strict=True):
            row[torch.searchsorted(among, at)] = mass
        return among, log_mass


def trip_posterior(
    log_mass: Callable[[int], Float[Tensor, " m"]],
    places: Float[np.ndarray, "m 2"],
    times_h: Float[np.ndarray, " n"],
    *,
    speed_kmh: float,
    slack_km: float = 0.0,
) -> TripPosterior:
    """Compute the posterior of each image, given all images of a trip, their times and a speed limit.

    Exact up to ``truncation_error``; see :mod:`open_geoclip.search.forward_backward`.

    Args:
        log_mass: that of an image alone, over m places; it need not be normalised. It is called several times for each,
            in the order of time, so that the masses of a long trip need not all be in memory.
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
    tree = PlaceTree.build(points, torch.full((len(points),), slack_km / 2, dtype=torch.float64))
    every, none = torch.arange(len(points)), torch.empty(0, dtype=torch.float64)

    def image(i: int) -> PlaceMass:
        mass = torch.log_softmax(log_mass(int(order[i])).double(), dim=0)
        return PlaceMass(mass, every, none.view(0, 3), none)

    chain = chain_marginals(len(order), image, tree, np.diff(times_h[order]) * speed_kmh)
    rank = np.argsort(order).tolist()
    rows, masses = ([values[i] for i in rank] for values in (chain.kept, chain.log_mass))
    return TripPosterior(rows, masses, chain.log_evidence, chain.truncation_error)
