"""What a training loop asks of its data: batches of features, in an order that can be taken up at any step."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from open_geoclip.geo.sphere import unit_vectors
from open_geoclip.training.features import FeatureSet

__all__ = ["Batch", "InMemory", "Part", "TrainingData", "neighbourhoods"]


@dataclass(frozen=True)
class Part:
    """Which batches are asked for.

    Attributes:
        epoch: the pass over the data; each has an order of its own.
        seed: of the order.
        size: pictures a batch, over all processes.
        rank: which of the processes asks.
        world: how many processes there are.
        position: where to begin, as an earlier batch told it; 0 is the beginning of the epoch.
    """

    epoch: int
    seed: int
    size: int
    rank: int = 0
    world: int = 1
    position: int = 0

    @property
    def own_size(self) -> int:
        """Pictures a batch for this process."""
        return self.size // self.world

    def generator(self) -> torch.Generator:
        """Random numbers of the epoch, the same in each process."""
        return torch.Generator().manual_seed(self.seed * 100_003 + self.epoch + 1)


@dataclass(frozen=True)
class Batch:
    """One process's part of a batch.

    Attributes:
        features: of the frozen backbone.
        coordinates: (lat, lon) in degrees.
        position: where the next batch begins; not for the reader, who gives it back to go on.
        keys: names of the pictures, for messages.
    """

    features: Float[Tensor, "n d"]
    coordinates: Float64[Tensor, "n 2"]
    position: int
    keys: Callable[[], Sequence[str]]


@runtime_checkable
class TrainingData(Protocol):
    """Features of pictures and where these were taken, from memory, from a cache on disk or straight from pixels."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data change."""
        ...

    def __len__(self) -> int:
        """Pictures an epoch; where it is not known before the end, the most that there can be."""
        ...

    def some_coordinates(self, n: int, seed: int) -> Float64[Tensor, "m 2"]:
        """Coordinates of n pictures drawn by chance, or of all if they are fewer. The same in each process."""
        ...

    def batches(self, part: Part) -> Iterator[Batch]:
        """Whole batches of an epoch, from a position on."""
        ...


class InMemory:
    """A :class:`FeatureSet` as training data. Each process holds all of it, and takes its share of each batch.

    Args:
        data: features and coordinates.
        nearby: half of each batch is made of groups of about this many neighbours on Earth, since of pictures drawn by
            chance hardly any lie near enough to each other to be mistaken; 0 draws all by chance.
    """

    def __init__(self, data: FeatureSet, nearby: int = 0) -> None:
        self.data = data
        self.nearby = nearby
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Over all coordinates, and about a thousand rows of the features."""
        if self._fingerprint is None:
            features, coordinates = self.data.features, self.data.coordinates
            digest = hashlib.sha256(str(tuple(features.shape)).encode())
            digest.update(coordinates.contiguous().numpy().tobytes())
            digest.update(features[:: max(1, len(features) // 1000)].contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.data)

    def some_coordinates(self, n: int, seed: int) -> Float64[Tensor, "m 2"]:
        """Coordinates drawn by chance."""
        generator = torch.Generator().manual_seed(seed)
        return self.data.coordinates[torch.randperm(len(self), generator=generator)[:n]]

    def batches(self, part: Part) -> Iterator[Batch]:
        """Batches in a random order of all pictures; the position is the number of batches before."""
        order = self._order(part)
        first = part.rank * part.own_size
        for step in range(part.position, len(self) // part.size):
            rows = order[step * part.size :][first : first + part.own_size]
            yield Batch(self.data.features[rows], self.data.coordinates[rows], step + 1, _Rows(rows))

    def _order(self, part: Part) -> Int64[Tensor, " n"]:
        generator = part.generator()
        if not self.nearby:
            return torch.randperm(len(self), generator=generator)
        groups = neighbourhoods(self.data.coordinates, self.nearby, generator)
        order = torch.cat([groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()])
        half, steps = part.size // 2, len(self) // part.size
        near, rest = order.split([steps * half, len(self) - steps * half])
        rest = rest[torch.randperm(len(rest), generator=generator)][: steps * (part.size - half)]
        return torch.cat([near.view(steps, half), rest.view(steps, part.size - half)], dim=1).flatten()


def neighbourhoods(
    coordinates: Float64[Tensor, "n 2"], size: int, generator: torch.Generator
) -> list[Int64[Tensor, " k"]]:
    """Pictures in groups of at most ``size`` that lie together on Earth: halved across chance directions.

    Args:
        coordinates: (lat, lon) in degrees.
        size: of the largest group; none is smaller than half of it, if there are as many pictures.
        generator: of the directions.
    """
    points = unit_vectors(coordinates)
    waiting, done = [torch.arange(len(points))], []
    while waiting:
        rows = waiting.pop()
        if len(rows) <= size:
            done.append(rows)
            continue
        direction = torch.randn(3, generator=generator, dtype=points.dtype)
        rows = rows[(points[rows] @ direction).argsort(stable=True)]
        waiting += rows.tensor_split(2)
    return done


@dataclass(frozen=True)
class _Rows:
    """Names of pictures that have none: their rows."""

    rows: Int64[Tensor, " n"]

    def __call__(self) -> Sequence[str]:
        return [f"row {row}" for row in self.rows.tolist()]
