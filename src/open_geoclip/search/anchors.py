"""Photos between known places in time: what the fixes around a photo say, its picture, and the other photos.

The prior of a photo is that of the fixes around it (:mod:`open_geoclip.search.bridge`). The picture weighs it by its
likelihood ratio; one that is unlike those that the model was calibrated on weighs nothing. Photos between the same
fixes form a hidden Markov model with the same speed limit; see :mod:`open_geoclip.search.forward_backward`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from open_geoclip.data.clocks import Anchors
from open_geoclip.geo.sphere import unit_vectors
from open_geoclip.search.bridge import Bracket, FixPrior, Intervals, fix_prior, intervals_between
from open_geoclip.search.calibration import SURE_KM, Calibration
from open_geoclip.search.forward_backward import PlaceMass, chain_marginals
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.reach import PlaceTree
from open_geoclip.search.refine import encode_cosines
from open_geoclip.search.search_space import SearchSpace
from open_geoclip.search.trips import trip_weights

__all__ = ["anchored_posteriors"]

_UNRESOLVED_KM = 0.5  # no model tells places within this distance
_CHUNK = 32  # photos whose scores are computed together
_KEPT = 64  # photos whose places are kept in memory


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What the pictures say, which is computed when it is asked for: its size is that of the gallery.

    Attributes:
        embeddings: of the photos.
        background: how likely each of them says nothing.
        temperature: of their logits.
        normaliser: log probability of each picture anywhere.
    """

    space: SearchSpace
    embeddings: Float[Tensor, "n d"]
    scale: float
    background: Float64[Tensor, " n"]
    temperature: Float64[Tensor, " n"]
    normaliser: Float64[Tensor, " n"]

    @classmethod
    def compute(
        cls,
        space: SearchSpace,
        embeddings: Float[Tensor, "n d"],
        scale: float,
        calibration: Calibration,
        distances: Float[Tensor, " n"] | None,
    ) -> "_Evidence":
        log_prior = torch.log_softmax(space.cells.log_prior.double(), dim=0)
        parts = []
        for start in range(0, len(embeddings), _CHUNK):
            part = slice(start, start + _CHUNK)
            logits = space.index.logits(embeddings[part], scale, exact=5).double()
            best = space.cells.best_logits(logits)
            temperature = calibration.temperature_of(best)
            known = None if distances is None else distances[part]
            background = calibration.background_of(best, known)
            is_in_distribution = calibration.is_in_distribution(best / scale, known)
            if is_in_distribution is not None:
                background = background.masked_fill(~is_in_distribution, 1.0)
            normaliser = torch.logsumexp(log_prior + logits / temperature[:, None], dim=1)
            parts.append(torch.stack((background, temperature, normaliser)))
        return cls(space, embeddings, scale, *torch.cat(parts, dim=1))

    @cached_property
    def _logits(self) -> Callable[[int], Float[Tensor, "c m"]]:
        def logits(chunk: int) -> Float[Tensor, "c m"]:
            return self.space.index.logits(self.embeddings[chunk * _CHUNK :][:_CHUNK], self.scale, exact=5)

        return lru_cache(maxsize=4)(logits)

    def is_informative(self, n: int, prior: FixPrior) -> bool:
        """Return whether a picture can say anything of where in a prior it was taken."""
        return float(self.background[n]) < 1 and prior.extent_km >= _UNRESOLVED_KM

    def log_ratio(self, n: int, prior: FixPrior) -> Float64[Tensor, " m"]:
        """Return the log of how much more likely a picture is at each place than anywhere."""
        if not self.is_informative(n, prior):
            return torch.zeros(len(prior.log_mass), dtype=torch.float64)
        share, own = float(self.background[n]), torch.from_numpy(prior.rows < 0)
        ratio = self._logits(n // _CHUNK)[n % _CHUNK].double()[torch.from_numpy(prior.rows).clamp(min=0)]
        places = torch.from_numpy(prior.coordinates)[own]
        cosines = encode_cosines(self.space.index.encoder, self.embeddings[[n]], places[None])
        ratio[own] = self.scale * cosines[0].double()
        ratio = ratio / self.temperature[n] - self.normaliser[n] + math.log1p(-share)
        return torch.logaddexp(ratio, torch.full_like(ratio, math.log(share) if share else -math.inf))


@dataclass(frozen=True, eq=False)
class _Photos:
    """Photos in the order of time, each alone with the fixes around it.

    Attributes:
        weights: exponent of what each picture says.
        intervals: between the fixes of the trip.
    """

    evidence: _Evidence
    weights: Sequence[float]
    times_s: Sequence[float]
    brackets: Sequence[Bracket]
    speed_kmh: float
    intervals: Intervals

    def prior(self, n: int) -> FixPrior:
        space, fixes = self.evidence.space, self.brackets[n]
        return fix_prior(space.cells, *fixes, self.times_s[n], self.speed_kmh, self.intervals, space.allowed)

    def log_mass(self, n: int, prior: FixPrior) -> Float64[Tensor, " m"]:
        """Return the log mass of each place, given the fixes and the picture."""
        ratio = self.evidence.log_ratio(n, prior)
        return torch.log_softmax(torch.from_numpy(prior.log_mass) + self.weights[n] * ratio, dim=0)

    def place_mass(self, first: int, i: int) -> PlaceMass:
        """Return what is known of a photo's place without the other photos; numbers are counted from the first."""
        return self._place_mass(first + i)

    @cached_property
    def _place_mass(self) -> Callable[[int], PlaceMass]:
        def place_mass(n: int) -> PlaceMass:
            prior = self.prior(n)
            own = prior.rows < 0
            points = unit_vectors(torch.from_numpy(prior.coordinates[own]))
            radius_km = torch.from_numpy(np.sqrt(prior.area_km2[own]) / 2)
            return PlaceMass(self.log_mass(n, prior), torch.from_numpy(prior.rows), points, radius_km)

        return lru_cache(maxsize=_KEPT)(place_mass)

    @torch.inference_mode()
    def posterior(
        self, n: int, temperature: float, marginal: tuple[Int64[Tensor, " k"], Float64[Tensor, " k"]] | None
    ) -> Posterior:
        """Return the posterior of a photo, given the marginal of a chain or alone."""
        prior = self.prior(n)
        given = (torch.arange(len(prior.rows)), self.log_mass(n, prior)) if marginal is None else marginal
        kept, log_mass = given[0].numpy(), given[1]  # a tensor of one number would be taken for the number
        coordinates, rows = prior.coordinates[kept], prior.rows[kept].copy()
        rows[rows < 0] = self.evidence.space.cells.nearest(coordinates[rows < 0])
        cells = GalleryCells(
            coordinates.astype(np.float32),
            unit_vectors(torch.from_numpy(coordinates)),
            prior.area_km2[kept],
            torch.from_numpy(prior.log_mass[kept]),
            rows,
        )
        # Farther from the fixes, nothing was measured of how often such answers are right.
        fitted_on = "known places in time" if prior.reach_km <= SURE_KM else None
        return Posterior.from_log_mass(log_mass[None], cells, Calibration(temperature, fitted_on=fitted_on))


@torch.inference_mode()
def anchored_posteriors(
    space: SearchSpace,
    embeddings: Float[Tensor, "n d"],
    scale: float,
    calibration: Calibration,
    anchors: Anchors,
    speed_kmh: float,
    distances: Float[Tensor, " n"] | None = None,
) -> tuple[Callable[[int], Posterior], list[float], bool]:
    """Compute the posterior of each photo of a trip, on places of its own.

    Args:
        space: the gallery, and limits of the answers.
        embeddings: of the photos.
        scale: logits are scale times cosine.
        calibration: of the model.
        anchors: known places around each photo.
        speed_kmh: the speed limit. Where two fixes contradict it, it is what leads from one to the other.
        distances: of the features of the photos, where they are known.

    Returns:
        The posterior of a photo by its number; the scale of each in kilometres; and whether the photos keep to the
        limit and can be where the space's area is.
    """
    order = np.argsort(anchors.times_s, kind="stable")
    rank, at = np.argsort(order).tolist(), torch.from_numpy(order)
    evidence = _Evidence.compute(
        space, embeddings[at], scale, calibration, None if distances is None else distances[at]
    )
    fixes = sorted({fix for pair in anchors.brackets for fix in pair if fix is not None}, key=lambda fix: fix.time_s)
    times_s, brackets = [anchors.times_s[n] for n in order], [anchors.brackets[n] for n in order]
    weights = trip_weights(embeddings[at], np.array(times_s) / 3600, speed_kmh).tolist()
    photos = _Photos(evidence, weights, times_s, brackets, speed_kmh, intervals_between(fixes))
    # Without evidence there is nothing to pass on, and the prior of a wide prism has many places.
    scales_km, is_informative, is_possible = [], [], True
    for n in range(len(order)):
        prior = photos.prior(n)
        is_possible &= space.allowed is None or bool(space.allowed(prior.coordinates).all())
        scales_km.append(prior.sigma_km)
        is_informative.append(evidence.is_informative(n, prior))
    groups = [list(group) for _, group in groupby(range(len(order)), key=brackets.__getitem__)]
    chains = [members for members in groups if len(members) > 1 and any(is_informative[n] for n in members)]
    marginals: dict[int, tuple[Int64[Tensor, " k"], Float64[Tensor, " k"]]] = {}
    tree = _tree(space.cells) if chains else None
    for members in chains:
        assert tree is not None
        travel_km = np.diff([times_s[n] for n in members]) / 3600 * speed_kmh
        chain = chain_marginals(len(members), partial(photos.place_mass, members[0]), tree, travel_km)
        is_possible &= chain.log_evidence > -math.inf
        marginals |= dict(zip(members, zip(chain.kept, chain.log_mass, strict=True), strict=True))

    def posterior(number: int) -> Posterior:
        return photos.posterior(rank[number], calibration.temperature, marginals.get(rank[number]))

    return posterior, [scales_km[n] for n in rank], is_possible


def _tree(cells: GalleryCells) -> PlaceTree:
    points = unit_vectors(torch.from_numpy(cells.coordinates.astype(np.float64)))
    return PlaceTree.build(points, torch.from_numpy(np.sqrt(cells.area_km2) / 2))
