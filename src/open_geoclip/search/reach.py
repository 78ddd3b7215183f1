"""Sums of mass within reach on the sphere, exact and without comparing every pair of places.

Places are sorted into the leaves of a balanced k-d tree (Bentley, "Multidimensional binary search trees used for
associative searching", 1975). A leaf that lies wholly within reach of a block of places counts with its total; only
those at the edge of the reach are compared place by place. Of 52,699 places these are at most one pair in twenty.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from open_geoclip.geo.sphere import EARTH_RADIUS_KM

__all__ = ["PlaceBlocks", "PlaceTree"]

_LEAF = 16
_CHUNK = 64  # leaves that are compared with all others at once
_SLACK_RAD = 1e-3  # of angles between leaves, which float32 resolves to 5e-4
_MAX_GROUPS = 256
_ROUNDING_KM = 0.1  # of angles between places
_ROUNDING = 1e-15  # of cosines between places, which resolves 0.3 m at distance 0


@dataclass(frozen=True, eq=False)
class PlaceBlocks:
    """Places with radii, as leaves of a tree. Make one with :meth:`build`.

    Attributes:
        n: number of places.
        rows: of the places in each leaf; those from n on are padding, which repeats the last place.
        points: unit vectors.
        radius_rad: of each place.
        centres: unit vectors of the middles of the leaves.
        extents_rad: angle from the middle of each leaf to its farthest place.
    """

    n: int
    rows: Int64[Tensor, "b leaf"]
    points: Float64[Tensor, "b leaf 3"]
    radius_rad: Float64[Tensor, "b leaf"]
    centres: Float64[Tensor, "b 3"]
    extents_rad: Float64[Tensor, " b"]

    @classmethod
    def build(cls, points: Float64[Tensor, "n 3"], radius_km: Float64[Tensor, " n"]) -> "PlaceBlocks":
        """Sort places into leaves.

        Args:
            points: unit vectors.
            radius_km: of the cell that each place stands for.
        """
        rows = _leaves(points)
        at = rows.clamp(max=len(points) - 1)
        inside = points[at]
        centres = F.normalize(inside.mean(dim=1), dim=1)
        extents = _angles((inside @ centres[..., None])[..., 0]).amax(dim=1)
        return cls(len(points), rows, inside, radius_km[at] / EARTH_RADIUS_KM, centres, extents)

    def mass_within(self, mass: Float64[Tensor, " n"], ends: "PlaceBlocks", travel_km: float) -> Float64[Tensor, " e"]:
        """Return, for each of some ends, the total mass of the places within reach.

        A place is within reach of an end when they are no farther apart than ``travel_km`` and both radii.
        """
        least_km = EARTH_RADIUS_KM * float(self.radius_rad.min() + ends.radius_rad.min())
        if travel_km + least_km >= math.pi * EARTH_RADIUS_KM:
            return mass.sum().expand(ends.n)
        held = torch.where(self.rows < self.n, mass[self.rows.clamp(max=self.n - 1)], 0.0)
        totals = held.sum(dim=1)
        # cos(apart) >= cos(a + b), where a and b are the two parts of the reach, is one inner product of 5 numbers.
        reach = self.radius_rad + travel_km / EARTH_RADIUS_KM
        start = torch.cat((self.points, -reach.cos()[..., None], reach.sin()[..., None]), dim=2)
        end = torch.cat((ends.points, ends.radius_rad.cos()[..., None], ends.radius_rad.sin()[..., None]), dim=2)
        least, most = reach.amin(dim=1), reach.amax(dim=1)
        turns = float(most.max() + ends.radius_rad.max()) >= math.pi  # cosines do there
        sums = torch.empty(len(ends.rows), _LEAF, dtype=torch.float64)
        for first in range(0, len(sums), _CHUNK):
            part = slice(first, first + _CHUNK)
            apart = _angles(ends.centres[part].float() @ self.centres.float().T)
            extents = (ends.extents_rad[part, None] + self.extents_rad + _SLACK_RAD).float()
            radius = ends.radius_rad[part]
            inside = (apart + extents).clamp_(max=math.pi) <= (radius.amin(dim=1)[:, None] + least).float()
            outside = apart - extents > (radius.amax(dim=1)[:, None] + most).float()
            sums[part] = (inside.double() @ totals)[:, None]
            edge = ~(inside | outside) & (totals > 0)
            for row, at in enumerate(edge.nonzero()[:, 1].split(edge.sum(dim=1).tolist()), first):
                if len(at):
                    near = (start[at].view(-1, 5) @ end[row].T).ge_(-_ROUNDING)
                    if turns:
                        near[reach[at].view(-1, 1) + ends.radius_rad[row] >= math.pi] = 1.0
                    sums[row] += held[at].view(-1) @ near
        found = torch.empty(ends.rows.numel(), dtype=torch.float64)
        found[ends.rows.view(-1)] = sums.view(-1)
        return found[: ends.n]


@dataclass(frozen=True, eq=False)
class PlaceTree:
    """Places, groups of up to 16 neighbours, groups of up to 256, and so on. Make one with :meth:`build`.

    Attributes:
        points: unit vectors of the places, then of the middles of the groups, small ones first.
        radius_km: of the cell that each place stands for. That of a group contains the cells of its places.
        groups: the row of the group of each place; one array for each size of groups.
    """

    points: Float64[Tensor, "nodes 3"]
    radius_km: Float64[Tensor, " nodes"]
    groups: tuple[Int64[Tensor, " n"], ...]

    @classmethod
    def build(cls, points: Float64[Tensor, "n 3"], radius_km: Float64[Tensor, " n"]) -> "PlaceTree":
        """Sort places into groups, of which the largest are at most 256; arguments are those of PlaceBlocks."""
        n = len(points)
        slots = _leaves(points).view(-1)
        at = torch.empty(n, dtype=torch.int64)
        at[slots[slots < n]] = (slots < n).nonzero()[:, 0]
        all_points, all_radii, groups = [points], [radius_km], []
        count, size = n, 1
        while count > _MAX_GROUPS:
            size *= _LEAF
            numbers, group = (at // size).unique(return_inverse=True)
            centres = F.normalize(torch.zeros(len(numbers), 3, dtype=torch.float64).index_add_(0, group, points), dim=1)
            reach = _angles((points * centres[group]).sum(dim=1)) * EARTH_RADIUS_KM + radius_km + _ROUNDING_KM
            radii = torch.zeros(len(numbers), dtype=torch.float64).scatter_reduce_(0, group, reach, "amax")
            groups.append(group + sum(map(len, all_points)))
            all_points.append(centres)
            all_radii.append(radii)
            count = len(numbers)
        return cls(torch.cat(all_points), torch.cat(all_radii), tuple(groups))


def _leaves(points: Float64[Tensor, "n 3"]) -> Int64[Tensor, "b leaf"]:
    """Return the rows of the places in each leaf of a balanced k-d tree; those from n on are padding."""
    n = len(points)
    depth = max(0, math.ceil(math.log2(n / _LEAF)))
    rows = torch.arange(_LEAF << depth)
    for level in range(depth):
        nodes = rows.view(1 << level, -1)
        inside = points[nodes.clamp(max=n - 1)]
        axis = (inside.amax(dim=1) - inside.amin(dim=1)).argmax(dim=1)
        along = inside.gather(2, axis[:, None, None].expand(-1, inside.shape[1], 1))[..., 0]
        rows = nodes.gather(1, along.argsort(dim=1)).view(-1)
    return rows.view(-1, _LEAF)


def _angles(cosines: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return cosines.clamp(-1, 1).acos()
