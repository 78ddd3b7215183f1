"""Training straight from pixels: each epoch sees a new view of each photo, and nothing is kept on disk."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float64
from torch import Tensor

from open_geoclip.data.photos import Fault, Photo, PhotoSource
from open_geoclip.errors import DataError
from open_geoclip.training.backbone import PhotoBackbone
from open_geoclip.training.batches import Batch, Part

__all__ = ["PixelData"]


class PixelData:
    """A source of photos as training data.

    Args:
        source: the photos.
        backbone: makes their features, with the augmentation.
        workers: threads that decode.
        count: photos, where the source does not know it: the length of an epoch for the schedule.
        on_fault: called with each entry that cannot be used.

    Raises:
        DataError: nobody knows how many photos there are.
    """

    def __init__(
        self,
        source: PhotoSource,
        backbone: PhotoBackbone,
        *,
        workers: int = 2,
        count: int | None = None,
        on_fault: Callable[[Fault], None] | None = None,
    ) -> None:
        known = source.count if count is None else count
        if known is None:  # a stream: it is gone through once, without decoding
            known = sum(isinstance(entry, Photo) for entry in source.entries())
        if not known:
            raise DataError(f"{source.name}: there is no photo to train on")
        self.source, self.backbone, self.workers, self._count = source, backbone, workers, known
        self._on_fault = on_fault

    @property
    def fingerprint(self) -> str:
        """Of the source, the weights, preprocessing and augmentation."""
        return hashlib.sha256(f"{self.source.fingerprint}{self.backbone.fingerprint}".encode()).hexdigest()

    def __len__(self) -> int:
        return self._count

    def some_coordinates(self, n: int, seed: int) -> Float64[Tensor, "m 2"]:
        """Coordinates of the first photos of an order drawn by chance; their pictures are not decoded."""
        found: list[tuple[float, float]] = []
        if n:
            for entry in self.source.shuffled(seed).entries():
                if isinstance(entry, Photo):
                    found.append((entry.lat, entry.lon))
                if len(found) == n:
                    break
        return torch.tensor(found, dtype=torch.float64).view(-1, 2)

    def batches(self, part: Part) -> Iterator[Batch]:
        """Batches in the source's own shuffled order; the position is the number of entries gone through."""
        mine = self.source.shuffled(part.seed, part.epoch).shard(part.rank, part.world)
        views = range(part.epoch, part.epoch + 1)
        seen = self.backbone.features(mine, part.own_size, views=views, workers=self.workers, start=part.position)
        for one in seen:
            for fault in one.faults if self._on_fault is not None else ():
                assert self._on_fault is not None
                self._on_fault(fault)
            if len(one.photos) == part.own_size:
                coordinates = torch.tensor([(photo.lat, photo.lon) for photo in one.photos], dtype=torch.float64)
                yield Batch(one.features[:, 0], coordinates, one.position, partial(_keys, one.photos))


def _keys(photos: list[Photo]) -> Sequence[str]:
    return [photo.key for photo in photos]
