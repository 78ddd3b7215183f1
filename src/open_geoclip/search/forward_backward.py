"""The forward-backward algorithm over places, from coarse to fine.

Images in the order of time form a hidden Markov chain: between an image and the next one, nobody gets farther than a
given distance, and all steps within it are equally likely (Rabiner, "A tutorial on hidden Markov models and selected
applications in speech recognition", 1989). A gallery has tens of thousands of places, of which the posterior of an
image has a few hundred.

Hence the chain is first computed over groups of neighbouring places (:class:`~open_geoclip.search.reach.PlaceTree`).
A group has the mass of its places, and a radius that contains them, so that each path of places is one of groups:
groups never have less weight than their places. Groups that matter are opened, image by image, and the chain is
computed again, until those that remain have a total probability of at most one in a thousand, over all images. This
bounds the error of each probability: without these paths, the chain is that of the places.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from open_geoclip.search.reach import PlaceBlocks, PlaceTree

__all__ = ["ChainMarginals", "PlaceMass", "chain_marginals"]

_TOLERANCE = 1e-3  # of a probability
_MARGIN = 16.0  # groups are opened until what remains is so many times less: opening some makes others likelier


@dataclass(frozen=True, eq=False)
class PlaceMass:
    """What is known of an image's place without the other images.

    Attributes:
        log_mass: of each place; -inf where it is impossible.
        rows: of the places in a :class:`~open_geoclip.search.reach.PlaceTree`; -1 for places of the image's own.
        points: unit vectors of its own places.
        radius_km: of the cells that its own places stand for.
    """

    log_mass: Float64[Tensor, " m"]
    rows: Int64[Tensor, " m"]
    points: Float64[Tensor, "k 3"]
    radius_km: Float64[Tensor, " k"]


@dataclass(frozen=True, eq=False)
class ChainMarginals:
    """Posteriors of the images of a chain.

    Attributes:
        kept: numbers of each image's places that have a posterior; the others have hardly any.
        log_mass: of these places, given all images; normalised.
        log_evidence: log probability that the chain is possible, had each image been located alone; -inf: it is not.
            Too high by at most ``truncation_error``.
        truncation_error: bound on the error of each probability because other places are omitted.
    """

    kept: list[Int64[Tensor, " _"]]
    log_mass: list[Float64[Tensor, " _"]]
    log_evidence: float
    truncation_error: float


@dataclass(frozen=True, eq=False)
class _States:
    """Places and groups that an image may be at: first its own places, then places of the tree, then groups.

    Attributes:
        at: number of each place in the image's :class:`PlaceMass`.
        nodes: of the tree, of the places that are not the image's own, and of the groups.
    """

    log_mass: Float64[Tensor, " s"]
    at: Int64[Tensor, " p"]
    nodes: Int64[Tensor, " t"]
    points: Float64[Tensor, "k 3"]
    radius_km: Float64[Tensor, " k"]

    @classmethod
    def build(cls, image: PlaceMass, tree: PlaceTree, opened: Int64[Tensor, " g"]) -> "_States":
        is_open = torch.zeros(len(tree.points), dtype=torch.bool)
        is_open[opened] = True
        nodes = image.rows.clone()
        is_own, is_possible = nodes < 0, image.log_mass > -math.inf
        for groups in tree.groups:  # from small to large ones
            group = groups[image.rows]
            nodes = torch.where(is_open[group] | is_own, nodes, group)
        own = (is_own & is_possible).nonzero()[:, 0]
        at = ((nodes == image.rows) & ~is_own & is_possible).nonzero()[:, 0]
        grouped = ((nodes != image.rows) & is_possible).nonzero()[:, 0]
        total = _log_sums(image.log_mass[grouped], nodes[grouped], len(tree.points))
        closed = (total > -math.inf).nonzero()[:, 0]
        kept = torch.cat((own, at))
        possible = is_possible[is_own]
        return cls(
            torch.cat((image.log_mass[kept], total[closed])),
            kept,
            torch.cat((nodes[at], closed)),
            image.points[possible],
            image.radius_km[possible],
        )

    def blocks(self, tree: PlaceTree) -> PlaceBlocks:
        points = torch.cat((self.points, tree.points[self.nodes]))
        return PlaceBlocks.build(points, torch.cat((self.radius_km, tree.radius_km[self.nodes])))


def _log_sums(values: Float64[Tensor, " n"], rows: Int64[Tensor, " n"], size: int) -> Float64[Tensor, " size"]:
    """Return the logarithm of the sum of the exponentials of the values in each row."""
    top = torch.full((size,), -math.inf, dtype=torch.float64).scatter_reduce_(0, rows, values, "amax")
    return top + torch.zeros(size, dtype=torch.float64).index_add_(0, rows, (values - top[rows]).exp()).log()


def chain_marginals(
    n: int, image: Callable[[int], PlaceMass], tree: PlaceTree, travel_km: Float[np.ndarray, " k"]
) -> ChainMarginals:
    """Compute the posterior of each image of a chain.

    Args:
        n: number of images.
        image: what is known of each, in the order of time. It is called several times for each, so that they need not
            all be in memory.
        tree: of the places that images share.
        travel_km: the most that anybody travels between an image and the next. Two places are within reach when they
            are no farther apart than this and both radii.
    """
    opened = [torch.empty(0, dtype=torch.int64)] * n
    while True:
        states = [_States.build(image(i), tree, groups) for i, groups in enumerate(opened)]
        log_evidence, marginals = _forward_backward(states, tree, travel_km)
        closed = [part[len(state.at) :].exp() for state, part in zip(states, marginals, strict=True)]
        error = float(sum(part.sum() for part in closed))
        if log_evidence == -math.inf or error <= _TOLERANCE:
            break
        for i, (state, part) in enumerate(zip(states, closed, strict=True)):
            if part.sum() > _TOLERANCE / n:
                ascending, order = part.sort()
                remaining = int((ascending.cumsum(dim=0) <= _TOLERANCE / n / _MARGIN).sum())
                groups = state.nodes[len(state.nodes) - len(part) :]
                opened[i] = torch.cat((opened[i], groups[order[remaining:]]))
    kept = [part[: len(state.at)] for state, part in zip(states, marginals, strict=True)]
    return ChainMarginals([state.at for state in states], kept, log_evidence, error)


def _forward_backward(
    states: Sequence[_States], tree: PlaceTree, travel_km: Float[np.ndarray, " k"]
) -> tuple[float, list[Float64[Tensor, " _"]]]:
    """Return the log evidence and the log marginals; messages are scaled against underflow."""
    forward, log_evidence, here = [states[0].log_mass], 0.0, states[0].blocks(tree)
    for state, km in zip(states[1:], travel_km, strict=True):
        start, here = here, state.blocks(tree)
        message, scale = _propagate(forward[-1], start, here, float(km))
        forward.append(state.log_mass + message)
        top = float(torch.logsumexp(forward[-1], dim=0))
        if top == -math.inf:  # no chain keeps to the limit
            return -math.inf, [torch.full_like(state.log_mass, -math.inf) for state in states]
        forward[-1] -= top
        log_evidence += scale + top
    backward = torch.zeros_like(forward[-1])
    marginals = [torch.log_softmax(forward[-1], dim=0)]
    for i in range(len(states) - 2, -1, -1):
        start, here = here, states[i].blocks(tree)
        backward, _ = _propagate(states[i + 1].log_mass + backward, start, here, float(travel_km[i]))
        marginals.append(torch.log_softmax(forward[i] + backward, dim=0))
    return log_evidence, marginals[::-1]


def _propagate(
    log_mass: Float64[Tensor, " a"], starts: PlaceBlocks, ends: PlaceBlocks, travel_km: float
) -> tuple[Float64[Tensor, " b"], float]:
    """Return the log mass within reach of each end, up to a scale, and the log of the scale."""
    top = float(log_mass.max())
    return starts.mass_within((log_mass - top).exp(), ends, travel_km).log(), top
