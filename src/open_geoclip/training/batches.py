"""Training data: batches of features and coordinates, in an order that can be resumed at any step."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from open_geoclip.errors import DataError
from open_geoclip.geo.sphere import check_coordinates, unit_vectors

__all__ = ["Batch", "BatchRequest", "FeatureSet", "TrainingData", "batch_order", "neighborhoods"]


@dataclass(frozen=True)
class BatchRequest:
    """Which batches of which epoch a process asks for.

    Attributes:
        epoch: the pass over the data; each has an order of its own.
        seed: of the order.
        size: images per batch, over all processes.
        rank: the process that asks.
        world: how many processes there are.
        position: where to begin, as the batch before gave it; 0 is the beginning of the epoch.
    """

    epoch: int
    seed: int
    size: int
    rank: int = 0
    world: int = 1
    position: int = 0

    @property
    def rank_size(self) -> int:
        """Images per batch for this process."""
        return self.size // self.world

    def generator(self) -> torch.Generator:
        """Return the random numbers of the epoch, the same in each process."""
        return torch.Generator().manual_seed(self.seed * 100_003 + self.epoch + 1)


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch.

    Attributes:
        features: of the frozen backbone; or pixels, as its preprocessing crops them.
        coordinates: (lat, lon) in degrees.
        position: where the next batch begins, for :class:`BatchRequest`.
        keys: returns the names of the images, for messages.
    """

    features: Float[Tensor, "n d"] | UInt8[Tensor, "n h w 3"]
    coordinates: Float64[Tensor, "n 2"]
    position: int
    keys: Callable[[], Sequence[str]]


@runtime_checkable
class TrainingData(Protocol):
    """Features of images and where these were taken: in memory, from a cache on disk or computed from pixels."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data change."""
        ...

    def __len__(self) -> int:
        """Images per epoch; where that is not known before its end, the most there can be."""
        ...

    def sample_coordinates(self, n: int, seed: int) -> Float64[Tensor, "m 2"]:
        """Return coordinates of n random images, or of all if they are fewer; the same in each process."""
        ...

    def batches(self, request: BatchRequest) -> Iterator[Batch]:
        """Yield the whole batches of an epoch, from a position on."""
        ...


class FeatureSet:
    """Features and coordinates in memory. Each process holds all of them and takes its share of a batch.

    Args:
        features: (n, d) array or tensor of the frozen backbone's features, of any floating point dtype; or (n, h, w, 3)
            uint8 pixels, as the backbone's preprocessing crops them, for a model with a backbone.
        coordinates: (n, 2) array or tensor of (lat, lon) in degrees.
        neighborhood: half of each batch consists of groups of about this many images from the same area, because random
            images are rarely near enough to each other to be confused; 0 draws all at random.

    Raises:
        DataError: lengths differ, there is no image, or a feature is not a finite number.
        CoordinateError: a coordinate is not on Earth; latitude and longitude may be swapped.
    """

    def __init__(self, features: Tensor | np.ndarray, coordinates: Tensor | np.ndarray, neighborhood: int = 0) -> None:
        self.features = torch.as_tensor(features)
        self.coordinates = check_coordinates(torch.as_tensor(coordinates).to(torch.float64))
        self.neighborhood = neighborhood
        pixels = self.features.dtype == torch.uint8 and self.features.ndim == 4 and self.features.shape[3] == 3
        if not pixels and (self.features.ndim != 2 or not self.features.is_floating_point()):
            kind = f"{tuple(self.features.shape)} of {self.features.dtype}"
            raise DataError(f"features must be (n, d) floating point numbers or (n, h, w, 3) uint8 pixels, not {kind}")
        if len(self.features) != len(self.coordinates) or not len(self.features):
            raise DataError(
                f"{len(self.features):,} features and {len(self.coordinates):,} coordinates: give one per image"
            )
        for start in range(0, len(self.features), 65_536):
            finite = self.features[start : start + 65_536].flatten(1).isfinite().all(dim=1)
            if not finite.all():
                raise DataError(f"row {start + int(finite.int().argmin())} of the features holds NaN or infinity")

    def __len__(self) -> int:
        return len(self.coordinates)

    def first(self, n: int) -> "FeatureSet":
        """Return the first n images."""
        return FeatureSet(self.features[:n], self.coordinates[:n], self.neighborhood)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all coordinates and of about a thousand rows of the features."""
        digest = hashlib.sha256(str(tuple(self.features.shape)).encode())
        digest.update(self.coordinates.contiguous().numpy().tobytes())
        sample = self.features[:: max(1, len(self.features) // 1000)]
        digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def sample_coordinates(self, n: int, seed: int) -> Float64[Tensor, "m 2"]:
        """Return coordinates of n random images."""
        generator = torch.Generator().manual_seed(seed)
        return self.coordinates[torch.randperm(len(self), generator=generator)[:n]]

    def batches(self, request: BatchRequest) -> Iterator[Batch]:
        """Yield batches in a random order of all images; the position is the number of batches before."""
        order = batch_order(self.coordinates, request.size, self.neighborhood, request.generator())
        first = request.rank * request.rank_size
        for step in range(request.position, len(self) // request.size):
            rows = order[step * request.size :][first : first + request.rank_size]
            yield Batch(self.features[rows], self.coordinates[rows], step + 1, partial(_row_keys, rows))


def _row_keys(rows: Int64[Tensor, " n"]) -> list[str]:
    return [f"row {row}" for row in rows.tolist()]


def neighborhoods(
    coordinates: Float64[Tensor, "n 2"], size: int, generator: torch.Generator
) -> list[Int64[Tensor, " k"]]:
    """Group images that were taken near each other, by halving the set across random directions.

    Args:
        coordinates: (lat, lon) in degrees.
        size: of the largest group; none is smaller than half of it, if there are as many images.
        generator: of the directions.
    """
    points = unit_vectors(coordinates)
    open_groups, done = [torch.arange(len(points))], []
    while open_groups:
        rows = open_groups.pop()
        if len(rows) <= size:
            done.append(rows)
            continue
        direction = torch.randn(3, generator=generator, dtype=points.dtype)
        rows = rows[(points[rows] @ direction).argsort(stable=True)]
        open_groups += rows.tensor_split(2)
    return done


def batch_order(
    coordinates: Float64[Tensor, "n 2"], batch: int, neighborhood: int, generator: torch.Generator
) -> Int64[Tensor, " n"]:
    """Return all images in a random order; with neighbourhoods, half of each batch consists of such groups.

    Args:
        coordinates: (lat, lon) in degrees.
        batch: images per batch.
        neighborhood: size of the largest group; 0 draws all at random.
        generator: of the order.
    """
    n = len(coordinates)
    if not neighborhood:
        return torch.randperm(n, generator=generator)
    groups = neighborhoods(coordinates, neighborhood, generator)
    order = torch.cat([groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()])
    half, steps = batch // 2, n // batch
    near, rest = order.split([steps * half, n - steps * half])
    rest = rest[torch.randperm(len(rest), generator=generator)]
    rest, left = rest.split([steps * (batch - half), n - steps * batch])
    return torch.cat([torch.cat([near.view(steps, half), rest.view(steps, batch - half)], dim=1).flatten(), left])
