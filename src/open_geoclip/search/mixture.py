"""A posterior as a mixture of few Gaussians on the sphere, so that its density can be evaluated anywhere.

A posterior has a Gaussian at each of up to a million cells. Most have hardly any mass, or neighbours within their own
standard deviation. They are merged in an octree of the cube around the Earth, from coarse to fine: a node becomes one
Gaussian, with the mass, mean and variance of its content, when it has little mass, or a small spread compared with the
smoothing of its cells. At most 300 remain, fine where the mass is and coarse elsewhere; poles and the antimeridian are
not special.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from open_geoclip.geo.areas import Allowed
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, coordinates_of, tangent_offset
from open_geoclip.search.prior import OCTREE_LEVELS, morton_codes

if TYPE_CHECKING:
    from open_geoclip.search.posterior import Posterior

__all__ = ["Approach", "Mixture"]

_FIRST_LEVEL = 3  # of the octree: cubes of 1,600 km; the last are 200 m
_MIN_MASS = 1 / 400  # a node with less is not divided
_MIN_SPREAD = 0.25  # nor one whose content varies so little, as a share of the variance of its smoothing
_KEPT = 0.9995  # of the mass, unless all Gaussians are kept
_MAX_GAUSSIANS = 300
_N_SAMPLES = 4000
_MIN_SAMPLES = 100  # within limits
_MIN_SIGMA_KM = 1e-3
_PLASTIC = np.array([0.7548776662466927, 0.5698402909980532])  # one over the plastic number, and over its square
_TINY = 1e-300
_BLOCK = 256  # places whose density is computed together: they stay in the processor's cache


class Approach(NamedTuple):
    """How near the HPD regions of a posterior come to a place.

    Attributes:
        levels: of the regions that are nearer than all smaller ones; the last is the first that contains the place.
        km: distances to these regions.
    """

    levels: Float64[np.ndarray, " k"]
    km: Float64[np.ndarray, " k"]

    def outside_km(self, level: float) -> float:
        """Return the distance to the region of a level, 0 inside."""
        return float(self.km[max(int(np.searchsorted(self.levels, level, side="right")) - 1, 0)])


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of n Gaussians on the sphere. Make one with :meth:`from_posterior`.

    Attributes:
        means: unit vectors.
        mass: of each Gaussian; they sum to one.
        sigma_km: standard deviation of each along each axis.
        samples: unit vectors drawn from the posterior before anything was merged, of equal mass.
        allowed: where the density is not zero; None: everywhere.
    """

    means: Float64[np.ndarray, "n 3"]
    mass: Float64[np.ndarray, " n"]
    sigma_km: Float64[np.ndarray, " n"]
    samples: Float64[np.ndarray, "s 3"]
    allowed: Allowed | None = None

    @classmethod
    def from_posterior(cls, posterior: "Posterior", row: int = 0, allowed: Allowed | None = None) -> "Mixture":
        """Compute the mixture of one row of a posterior.

        Args:
            posterior: of any number of images.
            row: which of them.
            allowed: limits beyond which the density is zero, though the smoothing of cells reaches there.
        """
        codes, order = posterior.cells.octree
        mass = posterior.mass[row].double().numpy()[order]
        points = posterior.cells.points.double().numpy()[order]
        variance = posterior.sigma_km[order] ** 2
        left, parts = np.flatnonzero(mass > 0), []
        for level in range(_FIRST_LEVEL, OCTREE_LEVELS + 1):
            node = codes[left] >> 3 * (OCTREE_LEVELS - level)
            merged, count = _merge(node, mass[left], points[left], variance[left])
            narrow = merged.spread <= _MIN_SPREAD * merged.variance
            done = (merged.mass < _MIN_MASS) | narrow | (count == 1) | (level == OCTREE_LEVELS)
            parts.append(merged.subset(done))
            left = left[~np.repeat(done, count)]
            if len(left) == 0:
                break
        few = _reduce(_Moments(*(np.concatenate(values) for values in zip(*parts, strict=True))))
        sigma_km = np.sqrt(variance)
        samples = _samples(mass, points, sigma_km)
        if allowed is not None:
            inside = allowed(coordinates_of(samples))
            while inside.sum() < _MIN_SAMPLES and sigma_km.max() > _MIN_SIGMA_KM:  # smaller limits than the smoothing
                sigma_km = sigma_km / 4
                samples = _samples(mass, points, sigma_km)
                inside = allowed(coordinates_of(samples))
            samples = samples[inside] if inside.any() else samples
        return cls(few.means, few.mass / few.mass.sum(), np.sqrt(few.variance + few.spread), samples, allowed)

    def __len__(self) -> int:
        return len(self.mass)

    def subset(self, rows: np.ndarray) -> "Mixture":
        """Return some of the Gaussians, not normalised."""
        return replace(self, means=self.means[rows], mass=self.mass[rows], sigma_km=self.sigma_km[rows])

    def density(self, points: Float64[np.ndarray, "p 3"]) -> Float64[np.ndarray, " p"]:
        """Return the probability density by square kilometre at unit vectors."""
        kappa = (EARTH_RADIUS_KM / self.sigma_km) ** 2
        peak = self.mass * kappa / -np.expm1(-2 * kappa) / (2 * np.pi * EARTH_RADIUS_KM**2)
        means, peak32 = np.ascontiguousarray(self.means.T), peak.astype(np.float32)
        density = np.empty(len(points))
        for start in range(0, len(points), _BLOCK):
            # Cosines in float64, which resolve decimetres; their exponentials need no more than float32.
            power = points[start : start + _BLOCK] @ means
            power -= 1
            power *= kappa
            density[start : start + _BLOCK] = np.exp(power.astype(np.float32)) @ peak32
        if self.allowed is not None and len(points):
            density[~self.allowed(coordinates_of(points))] = 0.0
        return density

    @cached_property
    def _by_density(self) -> tuple[Float64[np.ndarray, "s 3"], Float64[np.ndarray, " s"]]:
        """Samples and the log densities there, in descending order of density."""
        log_densities = np.log(np.maximum(self.density(self.samples), _TINY))
        order = np.argsort(-log_densities, kind="stable")
        return self.samples[order], log_densities[order]

    @cached_property
    def _ranks(self) -> Float64[np.ndarray, " s"]:
        """Share of the samples with a higher density than each."""
        return (np.arange(len(self.samples)) + 0.5) / len(self.samples)

    def hpd_density(self, levels: Sequence[float]) -> Float64[np.ndarray, " l"]:
        """Return the density at the edge of the HPD regions (highest posterior density) of some levels.

        It is a quantile of the density at samples (Hyndman, "Computing and graphing highest density regions", 1996).
        The samples are those of the posterior itself, so that merging does not bias it.
        """
        return np.exp(np.interp(np.asarray(levels, np.float64), self._ranks, self._by_density[1]))

    def hpd_level(self, points: Float64[np.ndarray, "p 3"]) -> Float64[np.ndarray, " p"]:
        """Return the level of the smallest HPD region that contains each of some unit vectors."""
        log_density = np.log(np.maximum(self.density(points), _TINY))
        return np.interp(-log_density, -self._by_density[1], self._ranks)

    def approach(self, point: Float64[np.ndarray, "3"]) -> Approach:
        """Return how near the HPD regions come to a unit vector; the distance to a region is that to its samples."""
        [level] = self.hpd_level(point[None])
        chords = np.linalg.norm(self._by_density[0] - point, axis=1)
        nearer = np.flatnonzero(np.diff(np.minimum.accumulate(chords), prepend=np.inf) < 0)
        nearer = nearer[self._ranks[nearer] < level]
        km = 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(chords[nearer] / 2, 0, 1))
        return Approach(np.append(self._ranks[nearer], level), np.append(km, 0.0))


def _samples(
    mass: Float64[np.ndarray, " m"], points: Float64[np.ndarray, "m 3"], sigma_km: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, "s 3"]:
    """Return quasirandom samples of the smoothed mass, stratified over the points in the given order.

    Within a kernel they follow the R2 sequence (Roberts, "The unreasonable effectiveness of quasirandom sequences",
    2018), which fills the square evenly however many are taken.
    """
    cumulated = np.cumsum(mass)
    rows = np.searchsorted(cumulated, (np.arange(_N_SAMPLES) + 0.5) / _N_SAMPLES * cumulated[-1]).clip(
        max=len(mass) - 1
    )
    first, second = (np.arange(_N_SAMPLES)[:, None] * _PLASTIC % 1).T
    radius = np.sqrt(-2 * np.log(1 - first)) * sigma_km[rows] / EARTH_RADIUS_KM
    return tangent_offset(points[rows], radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second))


class _Moments(NamedTuple):
    """Content of nodes of an octree: mass, mean, mean variance of the smoothing, and variance of the points."""

    means: Float64[np.ndarray, "n 3"]
    mass: Float64[np.ndarray, " n"]
    variance: Float64[np.ndarray, " n"]
    spread: Float64[np.ndarray, " n"]

    def subset(self, rows: np.ndarray) -> "_Moments":
        return _Moments(*(values[rows] for values in self))


def _merge(
    node: Int64[np.ndarray, " m"],
    mass: Float64[np.ndarray, " m"],
    points: Float64[np.ndarray, "m 3"],
    variance: Float64[np.ndarray, " m"],
) -> tuple[_Moments, Int64[np.ndarray, " n"]]:
    """Return the moments of each node, and how many points it has; nodes are sorted."""
    starts = np.flatnonzero(np.diff(node, prepend=-1))
    total = np.add.reduceat(mass, starts)
    mean = np.add.reduceat(mass[:, None] * points, starts) / total[:, None]
    length = np.linalg.norm(mean, axis=1)
    # The mean squared distance of unit vectors from their mean is 1 - length², shared by two axes of the surface.
    spread = np.maximum(1 - length**2, 0) / 2 * EARTH_RADIUS_KM**2
    smoothing = np.add.reduceat(mass * variance, starts) / total
    return _Moments(mean / length[:, None], total, smoothing, spread), np.diff(starts, append=len(node))


def _reduce(moments: _Moments) -> _Moments:
    """Return at most 300 of them: the lightest are merged with their neighbours, as little as is needed."""
    order = np.argsort(-moments.mass, kind="stable")
    order = order[: 1 + int(np.searchsorted(np.cumsum(moments.mass[order]), _KEPT * moments.mass.sum()))]
    if len(order) <= _MAX_GAUSSIANS:
        return moments.subset(order)
    half = _MAX_GAUSSIANS // 2
    light = moments.subset(order[half:])
    codes = morton_codes(light.means)
    sorted_ = np.argsort(codes, kind="stable")
    codes, light = codes[sorted_], light.subset(sorted_)
    shift = next(shift for shift in range(0, 3 * OCTREE_LEVELS, 3) if len(np.unique(codes >> shift)) <= half)
    merged, _ = _merge(codes >> shift, light.mass, light.means, light.variance + light.spread)
    return _Moments(*(np.concatenate(values) for values in zip(moments.subset(order[:half]), merged, strict=True)))
