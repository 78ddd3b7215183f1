"""Photos between known places in time: what the fixes around a photo say, its picture, and the other photos.

Between two fixes a photo lies within the space-time prism of the speed limit (Hägerstrand, "What about people in
regional science?", 1970). Its prior is a mixture: mostly a Brownian bridge around the place that is interpolated along
the great circle (Horne et al., "Analyzing animal movements using Brownian bridges", 2007); the rest is even over the
prism, more of it the longer ago the nearest fix is. How fast somebody diffuses, only the distances between fixes say,
those that are about as long apart. With Jeffreys' prior of the rate and k such distances d over t hours, the bridge is
a Student t distribution in the plane with 2 k degrees of freedom; at the share u of T hours its squared scale is
u (1 - u) T times the mean of d^2 / (2 t). Before the first fix and after the last it is the mean times the hours since.
Nobody stays quite still, which adds a little for each hour.
The prior is represented by places of its own: a gallery has one in 50 km. The picture weighs them by its likelihood
ratio; one that is unlike those that the model was calibrated on weighs nothing. Photos between the same fixes form a
hidden Markov model with the same speed limit; see :mod:`open_geoclip.search.trips`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from open_geoclip.data.clocks import Anchors
from open_geoclip.data.tracks import Fix
from open_geoclip.geo.areas import Allowed
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, coordinates_of, destination, haversine_km, unit_vectors
from open_geoclip.search.calibration import SURE_KM, Calibration
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.refine import encode_cosines
from open_geoclip.search.search_space import SearchSpace
from open_geoclip.search.trips import chain_marginals, trip_weights

__all__ = ["anchored_posteriors"]

_BRIDGE_POINTS, _PRISM_POINTS = 128, 256
_MIN_GALLERY = 64  # places of the gallery in a prism stand for it; fewer are too coarse
_DRIFT_KMH = 1.0  # added to the scale halfway between two fixes, per hour between them
_WALK_KMH = 5.0  # and before the first fix and after the last, per hour
_ALIKE = 4.0  # intervals up to so many times longer or shorter say how fast somebody diffuses
_EVEN = 0.02  # least share of the prism
_FORGET_H = 24.0  # in which the bridge's share falls to 1/e
_ONE_SIGMA = 1.515  # the radius that holds 68 % of a Gaussian, in standard deviations along each axis
_UNRESOLVED_KM = 0.5  # no model tells places within this distance
_WHOLE_EARTH_KM = 10_000.0
_MAX_DISC_KM = 0.999 * math.pi * EARTH_RADIUS_KM


@dataclass(frozen=True, eq=False)
class _Prior:
    """What the fixes around a photo say.

    Attributes:
        coordinates: (lat, lon) in degrees.
        log_mass: of each place, normalised.
        area_km2: that each place stands for.
        rows: of the gallery; -1 for places of the photo's own.
        sigma_km: scale of the bridge.
        reach_km: the photo lies within this distance of the middle of the prism.
    """

    coordinates: Float64[np.ndarray, "m 2"]
    log_mass: Float64[np.ndarray, " m"]
    area_km2: Float64[np.ndarray, " m"]
    rows: Int64[np.ndarray, " m"]
    sigma_km: float
    reach_km: float


@torch.inference_mode()
def anchored_posteriors(
    space: SearchSpace,
    embeddings: Float[Tensor, "n d"],
    scale: float,
    calibration: Calibration,
    anchors: Anchors,
    speed_kmh: float,
    distances: Float[Tensor, " n"] | None = None,
) -> tuple[list[Posterior], list[float], bool]:
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
        The posteriors; the scale of each in kilometres; and whether the photos keep to the limit.
    """
    fixes = sorted({fix for pair in anchors.brackets for fix in pair if fix is not None}, key=lambda fix: fix.time_s)
    intervals = _intervals(fixes)
    priors = [
        _prior(space.cells, before, after, time_s, speed_kmh, intervals, space.allowed)
        for (before, after), time_s in zip(anchors.brackets, anchors.times_s, strict=True)
    ]
    ratios = _likelihood_ratios(space, embeddings, scale, calibration, priors, distances)
    weights = trip_weights(embeddings, np.array(anchors.times_s) / 3600, speed_kmh).tolist()
    rows = [
        torch.log_softmax(torch.from_numpy(prior.log_mass) + weight * ratio, dim=0)
        for prior, ratio, weight in zip(priors, ratios, weights, strict=True)
    ]
    points = [unit_vectors(torch.from_numpy(prior.coordinates)) for prior in priors]
    is_possible = True
    for _, group in groupby(np.argsort(anchors.times_s, kind="stable").tolist(), key=anchors.brackets.__getitem__):
        members = list(group)
        # Without evidence there is nothing to pass on, and the prior of a wide prism has many places.
        if len(members) > 1 and any(bool(ratios[n].any()) for n in members):
            travel_km = np.diff(np.array([anchors.times_s[n] for n in members])) / 3600 * speed_kmh
            radius_km = [torch.from_numpy(np.sqrt(priors[n].area_km2) / 2) for n in members]
            marginals, log_evidence, _ = chain_marginals(
                [rows[n] for n in members], [points[n] for n in members], radius_km, travel_km
            )
            is_possible &= log_evidence > -math.inf
            for n, marginal in zip(members, marginals, strict=True):
                rows[n] = marginal
    posteriors = []
    for prior, row, vectors in zip(priors, rows, points, strict=True):
        cells = GalleryCells(
            prior.coordinates.astype(np.float32),
            vectors,
            prior.area_km2,
            torch.from_numpy(prior.log_mass),
            np.where(prior.rows < 0, space.cells.nearest(prior.coordinates), prior.rows),
        )
        # Farther from the fixes, nothing was measured of how often such answers are right.
        fitted_on = "known places in time" if prior.reach_km <= SURE_KM else None
        known = Calibration(calibration.temperature, fitted_on=fitted_on)
        posteriors.append(Posterior.from_log_mass(row[None], cells, known))
    return posteriors, [prior.sigma_km for prior in priors], is_possible


def _likelihood_ratios(
    space: SearchSpace,
    embeddings: Float[Tensor, "n d"],
    scale: float,
    calibration: Calibration,
    priors: Sequence[_Prior],
    distances: Float[Tensor, " n"] | None,
) -> list[Float64[Tensor, " _"]]:
    """Return the log of how much more likely each picture is at each of its places than anywhere."""
    logits = space.index.logits(embeddings, scale, exact=5).double()
    log_prior = torch.log_softmax(space.cells.log_prior.double(), dim=0)
    best = space.cells.best_logits(logits)
    temperature = calibration.temperature_of(best)
    normaliser = torch.logsumexp(log_prior + logits / temperature[:, None], dim=1)
    background = calibration.background_of(best, distances)
    is_in_distribution = calibration.is_in_distribution(best / scale, distances)
    if is_in_distribution is not None:
        background = background.masked_fill(~is_in_distribution, 1.0)
    ratios = []
    for n, prior in enumerate(priors):
        share = float(background[n])
        extent_km = float(haversine_km(prior.coordinates, prior.coordinates[:1]).max())
        if share == 1 or extent_km < _UNRESOLVED_KM:
            ratios.append(torch.zeros(len(prior.log_mass), dtype=torch.float64))
            continue
        rows, own = torch.from_numpy(prior.rows), torch.from_numpy(prior.rows < 0)
        ratio = logits[n, rows.clamp(min=0)]
        places = torch.from_numpy(prior.coordinates)[own]
        ratio[own] = scale * encode_cosines(space.index.encoder, embeddings[[n]], places[None])[0].double()
        ratio = ratio / temperature[n] - normaliser[n] + math.log1p(-share)
        floor = torch.full_like(ratio, math.log(share) if share else -math.inf)
        ratios.append(torch.logaddexp(ratio, floor))
    return ratios


_Intervals = Float64[np.ndarray, "k 2"]
"""Hours between two fixes that follow each other, and the variance per hour along each axis that they say."""


def _intervals(fixes: Sequence[Fix]) -> _Intervals:
    hours = np.diff([fix.time_s for fix in fixes]) / 3600
    places = np.array([(fix.lat, fix.lon) for fix in fixes])
    rate = haversine_km(places[1:], places[:-1]) ** 2 / (2 * np.maximum(hours, 1e-9))
    return np.stack((hours, rate), axis=1)[hours > 0]


def _diffusion(intervals: _Intervals, hours: float) -> tuple[float, int]:
    """Return the mean variance per hour of intervals about as long as some hours, or of all, and their number."""
    is_alike = (intervals[:, 0] >= hours / _ALIKE) & (intervals[:, 0] <= hours * _ALIKE)
    rates = intervals[is_alike if is_alike.any() else slice(None), 1]
    return (float(rates.mean()), len(rates)) if len(rates) else (0.0, 1)


def _prior(
    cells: GalleryCells,
    before: Fix | None,
    after: Fix | None,
    time_s: float,
    speed_kmh: float,
    intervals: _Intervals,
    allowed: Allowed | None,
) -> _Prior:
    """Return the prior of a photo from the fixes around it."""
    fixes = list(dict.fromkeys(fix for fix in (before, after) if fix is not None))
    places = np.array([(fix.lat, fix.lon) for fix in fixes])
    error_km = np.array([fix.accuracy_m / 1000 for fix in fixes])
    hours = np.abs(np.array([fix.time_s for fix in fixes]) - time_s) / 3600
    between = len(fixes) == 2
    diffusion, count = _diffusion(intervals, float(hours.sum()))
    if between:
        centre, moved_km, known_km, speed_kmh = _bridge(places, error_km, hours, speed_kmh, diffusion)
    else:
        centre, known_km = places[0], error_km[0] / _ONE_SIGMA
        moved_km = _WALK_KMH * hours[0] + math.sqrt(diffusion * hours[0])
    reach_km = hours * speed_kmh + 3 * error_km
    # Distances are convex: whatever lies within both reaches is no farther from a place between the fixes.
    weights = hours[::-1] / hours.sum() if between and hours.sum() > 0 else np.full(len(fixes), 1 / len(fixes))
    disc_km = min(float(weights @ reach_km), _MAX_DISC_KM)
    # Quantiles of the squared distance: of the Student t distribution, and of the Gaussian error of the fixes.
    left = 1 - (np.arange(_BRIDGE_POINTS) + 0.5) / _BRIDGE_POINTS
    tail = left ** (-1 / count)
    bridge = _spiral(centre, np.sqrt(2 * (moved_km**2 * count * (tail - 1) - known_km**2 * np.log(left))))
    bridge_area = 2 * math.pi * (moved_km**2 * tail + known_km**2) / (_BRIDGE_POINTS * left)  # inverse of the density
    bridge_mass = np.full(_BRIDGE_POINTS, 1 / _BRIDGE_POINTS)
    even, even_area, even_mass, even_rows = _prism(cells, centre, disc_km, places, reach_km)
    even_share = 1 - (1 - _EVEN) * math.exp(-float(hours.min()) / _FORGET_H)
    parts = []
    for share, coordinates, area, mass, rows in (
        (1 - even_share, bridge, bridge_area, bridge_mass, np.full(_BRIDGE_POINTS, -1)),
        (even_share, even, even_area, even_mass, even_rows),
    ):
        inside = _within(coordinates, places, reach_km) & (share * mass > 0)
        if allowed is not None:
            inside &= allowed(coordinates)
        if inside.any():
            parts.append((coordinates[inside], area[inside], share * mass[inside] / mass[inside].sum(), rows[inside]))
    sigma_km = math.hypot(moved_km, known_km)
    if not parts:  # limits or rounding leave nothing: the interpolated place itself
        parts = [(centre[None], np.array([math.pi * sigma_km**2]), np.ones(1), np.array([-1]))]
    coordinates, area, mass, rows = (np.concatenate(values) for values in zip(*parts, strict=True))
    return _Prior(coordinates, np.log(mass / mass.sum()), np.maximum(area, 1e-9), rows, sigma_km, disc_km)


def _bridge(
    places: Float64[np.ndarray, "2 2"],
    error_km: Float64[np.ndarray, " 2"],
    hours: Float64[np.ndarray, " 2"],
    speed_kmh: float,
    diffusion: float,
) -> tuple[Float64[np.ndarray, " 2"], float, float, float]:
    """Return the interpolated place, its scale, its error by the fixes, and the speed limit or what they need."""
    distance_km, total_h = float(haversine_km(places[0], places[1])), float(hours.sum())
    share = float(hours[0]) / total_h if total_h > 0 else 0.5
    start, end = unit_vectors(places)
    angle = distance_km / EARTH_RADIUS_KM
    if angle < 1e-9 or math.sin(angle) < 1e-9:
        centre = places[0]
    else:
        centre = coordinates_of(start * math.sin((1 - share) * angle) + end * math.sin(share * angle))
    halfway_km = math.sqrt(diffusion * total_h) / 2 + _DRIFT_KMH * total_h
    moved_km = 2 * math.sqrt(share * (1 - share)) * halfway_km
    known_km = math.hypot((1 - share) * error_km[0], share * error_km[1]) / _ONE_SIGMA
    if total_h > 0:
        speed_kmh = max(speed_kmh, 1.05 * (distance_km - float(error_km.sum())) / total_h)
    return centre, moved_km, known_km, speed_kmh


def _prism(
    cells: GalleryCells,
    centre: Float64[np.ndarray, " 2"],
    disc_km: float,
    places: Float64[np.ndarray, "f 2"],
    reach_km: Float64[np.ndarray, " f"],
) -> tuple[Float64[np.ndarray, "m 2"], Float64[np.ndarray, " m"], Float64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Return places that stand for the prism, their areas, mass and rows: of the gallery, or an even spiral."""
    rows = np.flatnonzero(_within(cells.coordinates.astype(np.float64), places, reach_km))
    if len(rows) >= _MIN_GALLERY or (disc_km > _WHOLE_EARTH_KM and len(rows)):
        log_prior = cells.log_prior[torch.from_numpy(rows)].double()
        mass = torch.softmax(log_prior, dim=0).nan_to_num(0.0).numpy()
        return cells.coordinates[rows].astype(np.float64), cells.area_km2[rows], mass, rows
    spiral = _spiral(centre, disc_km * np.sqrt((np.arange(_PRISM_POINTS) + 0.5) / _PRISM_POINTS))
    share = np.full(_PRISM_POINTS, 1 / _PRISM_POINTS)
    return spiral, math.pi * disc_km**2 * share, share, np.full(_PRISM_POINTS, -1)


def _spiral(centre: Float64[np.ndarray, " 2"], distance_km: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 2"]:
    """Return places at some distances, in directions that turn by the golden angle."""
    bearing = np.degrees(np.arange(len(distance_km)) * math.pi * (3 - math.sqrt(5)))
    return destination(centre, bearing, np.minimum(distance_km, _MAX_DISC_KM))


def _within(
    coordinates: Float64[np.ndarray, "m 2"], places: Float64[np.ndarray, "f 2"], reach_km: Float64[np.ndarray, " f"]
) -> Bool[np.ndarray, " m"]:
    inside = np.ones(len(coordinates), bool)
    for place, reach in zip(places, reach_km, strict=True):
        inside &= haversine_km(coordinates, place) <= reach
    return inside
