"""One picture's posterior as few Gaussians on the sphere, so that its density can be asked for anywhere.

A gallery has up to a million places, and a posterior over them is a Gaussian at each. Most of them tell nothing: their
mass is tiny, or their neighbours lie within their own blur. Here they are joined in an octree of the cube around the
Earth, from coarse to fine: a cell is one Gaussian with the mass, the middle and the variance of what lies in it when
it has hardly any mass, or hardly any spread beside the blur of its places. What is left are some hundreds, fine where
the mass is and coarse elsewhere, and neither poles nor 180 degrees are anything special.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from open_geoclip.geo.sphere import EARTH_RADIUS_KM, coordinates_of
from open_geoclip.search.prior import Ground
from open_geoclip.search.refine import Allowed

if TYPE_CHECKING:
    from open_geoclip.search.posterior import Posterior

__all__ = ["Mixture", "around"]

_FIRST, _LAST = 3, 16  # levels of the octree: cubes of 1,600 km down to 200 m
_LEAST_MASS = 1 / 400  # a cell with less is not divided
_LEAST_SPREAD = 0.25  # nor one whose places vary by so little, as a share of their blur's variance
_KEPT = 0.9995  # of the mass; the rest is in Gaussians of next to nothing
_MOST = 300  # Gaussians
_SAMPLES = 4000  # that stand for the mass
_SPREADING = np.array([0.7548776662466927, 0.5698402909980532])  # one over the plastic number, and over its square
_NOTHING = 1e-300
_BLOCK = 256  # of them that are looked at together: they stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians on the sphere.

    Attributes:
        middles: unit vectors.
        mass: of each; they sum to one.
        blur_km: standard deviation along each axis.
        samples: unit vectors that stand for equal shares of the posterior itself, before anything was joined.
        allowed: where the density is not nought; everywhere when not given.
    """

    middles: Float64[np.ndarray, "n 3"]
    mass: Float64[np.ndarray, " n"]
    blur_km: Float64[np.ndarray, " n"]
    samples: Float64[np.ndarray, "s 3"]
    allowed: Allowed | None = None

    @classmethod
    def of(cls, posterior: "Posterior", row: int = 0, allowed: Allowed | None = None) -> "Mixture":
        """The density of one picture's posterior.

        Args:
            posterior: of any number of pictures.
            row: which of them.
            allowed: limits that no density reaches beyond, though the blur of the places does.
        """
        keys, order = _octree(posterior.ground)
        mass = posterior.mass[row].double().numpy()[order]
        points = posterior.ground.points.double().numpy()[order]
        variance = posterior.blur_km[order] ** 2
        left, found = np.flatnonzero(mass > 0), []
        for level in range(_FIRST, _LAST + 1):
            cells, count = _joined(keys[left] >> 3 * (_LAST - level), mass[left], points[left], variance[left])
            narrow = cells.spread <= _LEAST_SPREAD * cells.variance
            done = (cells.mass < _LEAST_MASS) | narrow | (count == 1) | (level == _LAST)
            found.append(cells.only(done))
            left = left[~np.repeat(done, count)]
            if len(left) == 0:
                break
        few = _few(_Cells(*(np.concatenate(parts) for parts in zip(*found, strict=True))))
        samples = _samples(mass, points, np.sqrt(variance))
        if allowed is not None:
            inside = allowed(coordinates_of(samples))
            samples = samples[inside] if inside.any() else samples  # limits may be smaller than samples can tell
        return cls(few.middles, few.mass / few.mass.sum(), np.sqrt(few.variance + few.spread), samples, allowed)

    def __len__(self) -> int:
        return len(self.mass)

    def only(self, rows: np.ndarray) -> "Mixture":
        """Some of the Gaussians, with the masses that they have."""
        return replace(self, middles=self.middles[rows], mass=self.mass[rows], blur_km=self.blur_km[rows])

    def density(self, places: Float64[np.ndarray, "p 3"]) -> Float64[np.ndarray, " p"]:
        """Probability for each square kilometre.

        Args:
            places: unit vectors.
        """
        kappa = (EARTH_RADIUS_KM / self.blur_km) ** 2
        peak = self.mass * kappa / -np.expm1(-2 * kappa) / (2 * np.pi * EARTH_RADIUS_KM**2)
        turned, peak32 = np.ascontiguousarray(self.middles.T), peak.astype(np.float32)
        found = np.empty(len(places))
        for start in range(0, len(places), _BLOCK):
            # Cosines in float64, which tell decimetres apart; what is made of them needs no more than float32.
            power = places[start : start + _BLOCK] @ turned
            power -= 1
            power *= kappa
            found[start : start + _BLOCK] = np.exp(power.astype(np.float32)) @ peak32
        if self.allowed is not None and len(places):
            found[~self.allowed(coordinates_of(places))] = 0.0
        return found

    @cached_property
    def _heights(self) -> Float64[np.ndarray, " s"]:
        """Logarithms of the densities at the samples, the highest first."""
        return -np.sort(-np.log(np.maximum(self.density(self.samples), _NOTHING)))

    @cached_property
    def _upto(self) -> Float64[np.ndarray, " s"]:
        """Share of the samples that are denser than each."""
        return (np.arange(len(self.samples)) + 0.5) / len(self.samples)

    def levels(self, shares: Sequence[float]) -> Float64[np.ndarray, " s"]:
        """The densities that the smallest regions with some shares of the probability end at.

        Where the density is at least that quantile of it which is left below, a share lies (Hyndman, "Computing and
        graphing highest density regions", 1996): no grid is needed to find it. Quantiles are over the posterior's own
        samples, so that regions hold what they say though Gaussians were joined.
        """
        return np.exp(np.interp(np.asarray(shares, np.float64), self._upto, self._heights))

    def shares(self, places: Float64[np.ndarray, "p 3"]) -> Float64[np.ndarray, " p"]:
        """The probability of all that is denser than each place: the share of the smallest region that it lies in.

        Args:
            places: unit vectors.
        """
        height = np.log(np.maximum(self.density(places), _NOTHING))
        return np.interp(-height, -self._heights, self._upto)


def _samples(
    mass: Float64[np.ndarray, " m"], points: Float64[np.ndarray, "m 3"], blur_km: Float64[np.ndarray, " m"]
) -> Float64[np.ndarray, "s 3"]:
    """Points that stand for equal shares of the mass, blur and all; neighbours one after the other share evenly.

    Within a place's blur they follow the sequence of Roberts ("The unreasonable effectiveness of quasirandom
    sequences", 2018), which fills the square evenly however many are taken.
    """
    upto = np.cumsum(mass)
    rows = np.searchsorted(upto, (np.arange(_SAMPLES) + 0.5) / _SAMPLES * upto[-1]).clip(max=len(mass) - 1)
    first, second = (np.arange(_SAMPLES)[:, None] * _SPREADING % 1).T
    radius = np.sqrt(-2 * np.log(1 - first)) * blur_km[rows] / EARTH_RADIUS_KM
    return around(points[rows], radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second))


def around(
    points: Float64[np.ndarray, "n 3"], east: Float64[np.ndarray, " n"], north: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, "n 3"]:
    """Points that lie east and north of others, by tangents that are given in radii of the Earth."""
    level = np.stack((-points[:, 1], points[:, 0] + 1e-12, np.zeros(len(points))), axis=1)
    level /= np.linalg.norm(level, axis=1, keepdims=True)
    found = points + east[:, None] * level + north[:, None] * np.cross(points, level)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


class _Cells(NamedTuple):
    """What lies in cells of an octree: mass, its middle, the variance of the blur and that of the middles."""

    middles: Float64[np.ndarray, "n 3"]
    mass: Float64[np.ndarray, " n"]
    variance: Float64[np.ndarray, " n"]
    spread: Float64[np.ndarray, " n"]

    def only(self, rows: np.ndarray) -> "_Cells":
        return _Cells(*(values[rows] for values in self))


def _joined(
    cell: Int64[np.ndarray, " m"],
    mass: Float64[np.ndarray, " m"],
    points: Float64[np.ndarray, "m 3"],
    variance: Float64[np.ndarray, " m"],
) -> tuple[_Cells, Int64[np.ndarray, " n"]]:
    """What lies in each cell, and how many of what is given; cells are in order."""
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    total = np.add.reduceat(mass, starts)
    middle = np.add.reduceat(mass[:, None] * points, starts) / total[:, None]
    length = np.linalg.norm(middle, axis=1)
    # Unit vectors lie 1 - length² apart from their mean, in all directions together; over the ground, there are two.
    spread = np.maximum(1 - length**2, 0) / 2 * EARTH_RADIUS_KM**2
    blur = np.add.reduceat(mass * variance, starts) / total
    return _Cells(middle / length[:, None], total, blur, spread), np.diff(starts, append=len(cell))


def _few(cells: _Cells) -> _Cells:
    """At most :data:`_MOST` of them: the lightest are joined with what is near, as little as is needed."""
    best = np.argsort(-cells.mass, kind="stable")
    best = best[: 1 + int(np.searchsorted(np.cumsum(cells.mass[best]), _KEPT * cells.mass.sum()))]
    if len(best) <= _MOST:
        return cells.only(best)
    half = _MOST // 2
    light = cells.only(best[half:])
    keys = _keys(light.middles)
    order = np.argsort(keys, kind="stable")
    keys, light = keys[order], light.only(order)
    level = next(level for level in range(_LAST, 0, -1) if len(np.unique(keys >> 3 * (_LAST - level))) <= half)
    own = light.variance + light.spread
    joined, _ = _joined(keys >> 3 * (_LAST - level), light.mass, light.middles, own)
    return _Cells(*(np.concatenate(parts) for parts in zip(cells.only(best[:half]), joined, strict=True)))


def _octree(ground: Ground) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Cells of the places in the finest level, sorted, and the places in that order; kept with the ground."""
    known = vars(ground).get("_octree")
    if known is None:
        keys = _keys(ground.points.double().numpy())
        order = np.argsort(keys, kind="stable")
        known = vars(ground)["_octree"] = keys[order], order
    return known


def _keys(points: Float64[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
    """The cell of each unit vector in the finest level; eight times coarser for each three bits that are cut off."""
    at = ((points + 1) / 2 * 2**_LAST).astype(np.int64).clip(0, 2**_LAST - 1)
    keys = np.zeros(len(at), np.int64)
    for bit in reversed(range(_LAST)):
        for axis in range(3):
            keys = keys << 1 | at[:, axis] >> bit & 1
    return keys
