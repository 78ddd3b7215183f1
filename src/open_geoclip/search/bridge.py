"""What the fixes around a photo say of its place: bridges and space-time prisms.

Between two fixes a photo lies within the space-time prism of the speed limit (Hägerstrand, "What about people in
regional science?", 1970). Its prior is a mixture: mostly a Brownian bridge around the place that is interpolated along
the great circle (Horne et al., "Analyzing animal movements using Brownian bridges", 2007); the rest is even over the
prism, more of it the longer ago the nearest fix is. How fast somebody diffuses, only the distances between fixes say,
those that are about as long apart. With Jeffreys' prior of the rate and k such distances d over t hours, the bridge is
a Student t distribution in the plane with 2 k degrees of freedom; at the share u of T hours its squared scale is
u (1 - u) T times the mean of d^2 / (2 t). Before the first fix and after the last it is the mean times the hours since.
Nobody stays quite still, which adds a little for each hour.
The prior is represented by places of its own: a gallery has one in 50 km.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from open_geoclip.data.tracks import Fix
from open_geoclip.geo.areas import Allowed
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, coordinates_of, destination, haversine_km, unit_vectors
from open_geoclip.search.prior import GalleryCells

__all__ = ["Bracket", "FixPrior", "Intervals", "fix_prior", "intervals_between"]

Bracket = tuple[Fix | None, Fix | None]
"""The fix before a photo and the one after it."""

_BRIDGE_POINTS, _PRISM_POINTS = 128, 256
_MIN_GALLERY = 64  # places of the gallery in a prism stand for it; fewer are too coarse
_DRIFT_KMH = 1.0  # added to the scale halfway between two fixes, per hour between them
_WALK_KMH = 5.0  # and before the first fix and after the last, per hour
_ALIKE = 4.0  # intervals up to so many times longer or shorter say how fast somebody diffuses
_EVEN = 0.02  # least share of the prism
_FORGET_H = 24.0  # in which the bridge's share falls to 1/e
_ONE_SIGMA = 1.515  # the radius that holds 68 % of a Gaussian, in standard deviations along each axis
_WHOLE_EARTH_KM = 10_000.0
_MAX_DISC_KM = 0.999 * math.pi * EARTH_RADIUS_KM


@dataclass(frozen=True, eq=False)
class FixPrior:
    """What the fixes around a photo say of its place.

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

    @cached_property
    def extent_km(self) -> float:
        """The largest distance from the first place; infinite where places of the gallery stand for the prism."""
        if (self.rows >= 0).any():
            return math.inf
        return float(haversine_km(self.coordinates, self.coordinates[:1]).max())


Intervals = Float64[np.ndarray, "k 2"]
"""Hours between two fixes that follow each other, and the variance per hour along each axis that they say."""


def intervals_between(fixes: Sequence[Fix]) -> Intervals:
    """Return how fast somebody diffused between fixes in the order of time."""
    hours = np.diff([fix.time_s for fix in fixes]) / 3600
    places = np.array([(fix.lat, fix.lon) for fix in fixes], np.float64)
    rate = haversine_km(places[1:], places[:-1]) ** 2 / (2 * np.maximum(hours, 1e-9))
    return np.stack((hours, rate), axis=1)[hours > 0]


def _diffusion(intervals: Intervals, hours: float) -> tuple[float, int]:
    """Return the mean variance per hour of intervals about as long as some hours, or of all, and their number."""
    is_alike = (intervals[:, 0] >= hours / _ALIKE) & (intervals[:, 0] <= hours * _ALIKE)
    rates = intervals[is_alike if is_alike.any() else slice(None), 1]
    return (float(rates.mean()), len(rates)) if len(rates) else (0.0, 1)


def fix_prior(
    cells: GalleryCells,
    before: Fix | None,
    after: Fix | None,
    time_s: float,
    speed_kmh: float,
    intervals: Intervals,
    allowed: Allowed | None,
) -> FixPrior:
    """Return the prior of a photo from the fixes around it."""
    fixes = list(dict.fromkeys(fix for fix in (before, after) if fix is not None))
    places = np.array([(fix.lat, fix.lon) for fix in fixes], np.float64)
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
    even, even_area, even_mass, even_rows = _prism(cells, centre, disc_km, places, reach_km, allowed)
    even_share = 1 - (1 - _EVEN) * math.exp(-float(hours.min()) / _FORGET_H)
    parts = []
    for share, coordinates, area, mass, rows in (
        (1 - even_share, bridge, bridge_area, bridge_mass, np.full(_BRIDGE_POINTS, -1)),
        (even_share, even, even_area, even_mass, even_rows),
    ):
        inside = share * mass > 0
        if (rows < 0).any():  # those of the gallery were chosen so
            inside &= _within(coordinates, places, reach_km)
        if allowed is not None:
            inside &= allowed(coordinates)
        if inside.any():
            parts.append((coordinates[inside], area[inside], share * mass[inside] / mass[inside].sum(), rows[inside]))
    sigma_km = math.hypot(moved_km, known_km)
    if not parts:  # rounding leaves nothing, or limits that are out of reach: the interpolated place itself
        parts = [(centre[None], np.array([math.pi * sigma_km**2]), np.ones(1), np.array([-1]))]
    coordinates, area, mass, rows = (np.concatenate(values) for values in zip(*parts, strict=True))
    return FixPrior(coordinates, np.log(mass / mass.sum()), np.maximum(area, 1e-9), rows, sigma_km, disc_km)


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
    allowed: Allowed | None,
) -> tuple[Float64[np.ndarray, "m 2"], Float64[np.ndarray, " m"], Float64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Return places that stand for the prism, their areas, mass and rows: of the gallery, or an even spiral.

    Limits may be small in a wide prism: the spiral has no place there, the gallery has.
    """
    inside = torch.ones(len(cells), dtype=torch.bool)
    for point, km in zip(unit_vectors(torch.from_numpy(places)).to(cells.points), reach_km, strict=True):
        chord = 2 * math.sin(min(float(km) / EARTH_RADIUS_KM, math.pi) / 2)
        inside &= (cells.points - point).square().sum(dim=1) <= chord**2
    rows = inside.nonzero()[:, 0].numpy()
    spiral = _spiral(centre, disc_km * np.sqrt((np.arange(_PRISM_POINTS) + 0.5) / _PRISM_POINTS))
    is_missed = allowed is not None and not (_within(spiral, places, reach_km) & allowed(spiral)).any()
    if len(rows) >= _MIN_GALLERY or ((is_missed or disc_km > _WHOLE_EARTH_KM) and len(rows)):
        log_prior = cells.log_prior[torch.from_numpy(rows)].double()
        mass = torch.softmax(log_prior, dim=0).nan_to_num(0.0).numpy()
        return cells.coordinates[rows].astype(np.float64), cells.area_km2[rows], mass, rows
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
