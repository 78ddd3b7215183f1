"""Features of photos, computed once and kept on disk.

The backbone is frozen, so what it makes of a picture never changes. Each shard is a safetensors file with the features
of some thousand photos, several views each, as float16, their coordinates, names, and the entries that could not be
used. Work that was interrupted goes on behind the last whole shard. Training reads shards memory-mapped: what it needs
comes from the disk or from the system's page cache, so that a cache may be larger than memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float16, Float64, Int64
from safetensors import safe_open
from torch import Tensor

from open_geoclip.data.photos import Fault, PhotoSource
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.training.backbone import PhotoBackbone, Seen
from open_geoclip.training.batches import Batch, Part
from open_geoclip.training.checkpoint import write_tensors
from open_geoclip.training.distributed import Ranks
from open_geoclip.training.features import FeatureSet

__all__ = ["CachedFeatures", "cache_features"]

SHARD = 2048  # photos: what a kill costs is the work on one
WINDOW = 16  # shards that are shuffled together, so that what is read lies in one part of the disk
_VERSION = 1  # raise it when shards change


def cache_features(
    source: PhotoSource,
    backbone: PhotoBackbone,
    folder: Path,
    *,
    views: int = 1,
    workers: int = 2,
    shard: int = SHARD,
    ranks: Ranks | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    on_fault: Callable[[Fault], None] | None = None,
) -> "CachedFeatures":
    """Features of all photos of a source, from the cache as far as they are there.

    The folder within ``folder`` is named by weights, preprocessing, augmentation, views and the source's fingerprint:
    when one of these changes, features are computed anew and old ones are left alone.

    Args:
        source: the photos. With several processes each does its part.
        backbone: makes the features.
        folder: where caches are kept: two bytes a number, so 1.5 kB a view of CLIP ViT-L/14.
        views: augmented views a photo.
        workers: threads that decode.
        shard: photos a file.
        ranks: this process among several that share the work and the folder.
        progress: called with how many entries are done, and of how many if that is known.
        on_fault: called with each entry that cannot be used, also with those found when the cache was made.

    Raises:
        DataError: not one photo can be used.
        SettingsError: several views without augmentation.
        TrainingError: a shard cannot be written; what was written before is unharmed.
    """
    if views > 1 and backbone.augmentation is None:
        raise SettingsError(f"views: {views} views of a photo are all the same without augmentation")
    ranks = ranks or Ranks.current()
    record = [_VERSION, backbone.fingerprint, views, source.fingerprint, ranks.world]
    home = folder / hashlib.sha256(json.dumps(record).encode()).hexdigest()[:20]
    part = home / f"{ranks.rank:04d}"
    part.mkdir(parents=True, exist_ok=True)
    mine = source.shard(ranks.rank, ranks.world)
    kept = _whole_shards(part)
    position = 0
    for one in kept:
        position = one.end
        for fault in one.faults if on_fault is not None else ():
            assert on_fault is not None
            on_fault(fault)
    total = mine.count
    if not (kept and kept[-1].is_last):
        if progress is not None:
            progress(position, total)
        waiting: Seen | None = None
        for seen in backbone.features(mine, shard, views=range(views), workers=workers, start=position):
            if waiting is not None:
                _write_shard(part, position, waiting, last=False)
                position = waiting.position
            waiting = seen
            for fault in seen.faults if on_fault is not None else ():
                assert on_fault is not None
                on_fault(fault)
            if progress is not None:
                progress(seen.position, total)
        if waiting is not None:
            _write_shard(part, position, waiting, last=True)
    ranks.agree(True, False)  # all have written
    return CachedFeatures.opened(home, source.name)


def _write_shard(folder: Path, start: int, seen: Seen, *, last: bool) -> None:
    coordinates = torch.tensor([(p.lat, p.lon) for p in seen.photos], dtype=torch.float64).view(-1, 2)
    told = {
        "end": seen.position,
        "last": last,
        "keys": [photo.key for photo in seen.photos],
        "faults": [[fault.key, fault.kind, fault.reason] for fault in seen.faults],
    }
    path = folder / f"{start:010d}.safetensors"
    write_tensors(path, {"features": seen.features, "coordinates": coordinates}, told)


@dataclass(frozen=True)
class _Shard:
    path: Path
    end: int
    is_last: bool
    count: int
    faults: list[Fault]

    @staticmethod
    def read(path: Path) -> "_Shard":
        with safe_open(path, framework="pt") as file:
            told = {key: json.loads(value) for key, value in file.metadata().items()}
            count = len(told["keys"])
        return _Shard(path, told["end"], told["last"], count, [Fault(*fault) for fault in told["faults"]])


def _whole_shards(folder: Path) -> list[_Shard]:
    """The shards that follow one another from the beginning."""
    found: list[_Shard] = []
    while (path := folder / f"{found[-1].end if found else 0:010d}.safetensors").exists():
        found.append(_Shard.read(path))
        if found[-1].is_last:
            break
    return found


@dataclass(frozen=True, eq=False)
class CachedFeatures:
    """A cache as training data; features stay on the disk until they are asked for.

    Each process reads its own shards. An epoch shuffles shards, and photos within windows of some shards; of each
    photo it shows one view, another one in the next epoch, or some at once.

    Attributes:
        name: what messages call it.
        features: of each shard, memory-mapped.
        coordinates: (lat, lon) in degrees of all photos, shard by shard.
        fingerprint: of what it was made from.
        paths: of the shards.
        faults: entries that could not be used.
        together: views of a photo that a batch shows at once; they need ``positive_km`` or ``mask_km``.
    """

    name: str
    features: list[Float16[Tensor, "m views d"]]
    coordinates: Float64[Tensor, "n 2"]
    fingerprint: str
    paths: list[Path]
    faults: list[Fault]
    together: int = 1

    @staticmethod
    def opened(home: Path, name: str) -> "CachedFeatures":
        """Open the shards of all processes.

        Raises:
            DataError: there is no photo.
        """
        shards = [shard for part in sorted(home.iterdir()) for shard in _whole_shards(part)]
        faults = [fault for shard in shards for fault in shard.faults]
        features, coordinates, paths = [], [], []
        for shard in shards:
            if shard.count:
                with safe_open(shard.path, framework="pt") as file:
                    features.append(file.get_tensor("features"))
                    coordinates.append(file.get_tensor("coordinates").clone())
                paths.append(shard.path)
        if not features:
            told = f"; the first of {len(faults):,} that cannot be used: {faults[0]}" if faults else ""
            raise DataError(f"{name}: there is no photo to train on{told}")
        places = torch.cat(coordinates)
        digest = hashlib.sha256(home.name.encode())
        digest.update(places.numpy().tobytes())
        return CachedFeatures(name, features, places, digest.hexdigest(), paths, faults)

    def __len__(self) -> int:
        return len(self.coordinates) * self.together

    @property
    def width(self) -> int:
        """Length of a feature."""
        return int(self.features[0].shape[2])

    @property
    def views(self) -> int:
        """Views that are kept of each photo."""
        return int(self.features[0].shape[1])

    def first_view(self, most: int | None = None) -> FeatureSet:
        """The first view of the photos, or of some thousand spread over all, in memory."""
        step = 1 if most is None else max(1, len(self.coordinates) // most)
        starts = self._starts.tolist()
        parts = [shard[(-start) % step :: step, 0] for shard, start in zip(self.features, starts, strict=False)]
        return FeatureSet(torch.cat(parts), self.coordinates[::step])

    def some_coordinates(self, n: int, seed: int) -> Float64[Tensor, "m 2"]:
        """Coordinates of photos drawn by chance."""
        generator = torch.Generator().manual_seed(seed)
        return self.coordinates[torch.randperm(len(self.coordinates), generator=generator)[:n]]

    @property
    def _starts(self) -> Int64[Tensor, " shards_and_one"]:
        counts = torch.tensor([0, *(len(shard) for shard in self.features)])
        return counts.cumsum(0)

    def _rows(self, part: Part) -> list[Int64[Tensor, " m"]]:
        """Rows of each shard that a process reads: whole shards where there are enough for all."""
        starts = self._starts.tolist()
        rows = [torch.arange(start, end) for start, end in pairwise(starts)]
        if len(rows) >= part.world:
            return rows[part.rank :: part.world]
        return [shard[part.rank :: part.world] for shard in rows]

    def batches(self, part: Part) -> Iterator[Batch]:
        """Batches of this process's shards; the position is the number of batches before.

        Raises:
            SettingsError: a batch cannot hold whole photos.
        """
        if part.own_size % self.together:
            raise SettingsError(f"batch_size: {part.own_size} is no multiple of {self.together} views a photo")
        photos = part.own_size // self.together
        generator = part.generator()
        rows = self._rows(part)
        shuffled = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        windows = [torch.cat(shuffled[i : i + WINDOW]) for i in range(0, len(shuffled), WINDOW)]
        order = torch.cat([window[torch.randperm(len(window), generator=generator)] for window in windows])
        for step in range(part.position, len(order) // photos):
            chosen = order[step * photos :][:photos]
            yield Batch(
                self._gathered(chosen, part.epoch),
                self.coordinates[chosen].repeat_interleave(self.together, dim=0),
                step + 1,
                partial(self._keys, chosen),
            )

    def _gathered(self, rows: Int64[Tensor, " m"], epoch: int) -> Float16[Tensor, "n d"]:
        """Features of photos: the views whose turn it is, in the photos' order."""
        starts = self._starts
        shard_of = torch.bucketize(rows, starts, right=True) - 1
        # Each photo begins with a view of its own, so that an epoch sees all kinds.
        view = (rows + epoch * self.together)[:, None] + torch.arange(self.together)
        found = torch.empty(len(rows), self.together, self.width, dtype=torch.float16)
        for shard in shard_of.unique().tolist():
            here = shard_of == shard
            inside = (rows[here] - starts[shard])[:, None].expand(-1, self.together)
            found[here] = self.features[shard][inside, view[here] % self.views]
        return found.view(-1, self.width)

    def _keys(self, rows: Int64[Tensor, " m"]) -> Sequence[str]:
        """Names of photos, read only for messages."""
        starts, names = self._starts, []
        known: dict[int, Any] = {}
        for row in rows.tolist():
            shard = int(torch.bucketize(torch.tensor(row), starts, right=True)) - 1
            if shard not in known:
                with safe_open(self.paths[shard], framework="pt") as file:
                    known[shard] = json.loads(file.metadata()["keys"])
            names.append(known[shard][row - int(starts[shard])])
        return names
