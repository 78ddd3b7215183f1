"""Features of photos, computed once and cached on disk.

The cache consists of safetensors files (shards) with the features of some thousand photos as float16, several augmented
views each, and with coordinates, names and skipped entries. Interrupted work resumes behind the last photos that were
saved. Training reads shards memory-mapped, so a cache may be larger than memory.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float16, Float64, Int64
from safetensors import safe_open
from torch import Tensor

from open_geoclip.data.decoding import map_photos
from open_geoclip.data.photos import Photo, PhotoSource, SkippedRecord
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.training.batches import Batch, BatchRequest, FeatureSet, batch_order
from open_geoclip.training.checkpoint import read_tensors, write_tensors
from open_geoclip.training.distributed import Ranks
from open_geoclip.training.features import EncodedPhotos, FeatureExtractor

__all__ = ["CachedFeatures", "Encode", "cache_features"]

Encode: TypeAlias = Callable[[FeatureExtractor, PhotoSource, int, int, int], Iterator[EncodedPhotos]]
"""Called with the extractor, the photos, the number of views, how many entries are encoded at a time, and the first
entry. A backbone's rounding depends on what it encodes together, so these are the same entries wherever it runs."""

SHARD_PHOTOS = 2048
WINDOW = 16  # shards that are shuffled together, so that reads stay in one part of the disk
_SAVE_SECONDS = 60.0  # work on an unfinished shard is saved this often
_VERSION = 1  # raise it when shards change


def cache_features(
    source: PhotoSource,
    extractor: FeatureExtractor,
    folder: Path,
    *,
    views: int = 1,
    encode: Encode | None = None,
    workers: int | None = None,
    shard: int = SHARD_PHOTOS,
    progress: Callable[[int, int | None], None] = lambda *_: None,
) -> "CachedFeatures":
    """Return the features of all photos of a source; those that the cache does not have are computed.

    The folder within ``folder`` is named by weights, preprocessing, augmentation, views and the source's fingerprint:
    when one of these changes, features are computed anew. With several processes each encodes its share.

    Args:
        source: the photos.
        extractor: computes the features.
        folder: where caches are kept: two bytes per number, 1.5 kB per view of CLIP ViT-L/14.
        views: augmented views per photo.
        encode: computes the features elsewhere, such as :func:`open_geoclip.scale.features.encode_on_ray`; default:
            in this process.
        workers: threads of this process that decode; default: one per processor core.
        shard: photos per file, or a few more.
        progress: called with how many entries are done, and of how many if that is known.

    Raises:
        DataError: not one photo can be used.
        SettingsError: several views without augmentation.
        TrainingError: a shard cannot be written; what was written before is unharmed.
    """
    if views > 1 and extractor.augmentation is None:
        raise SettingsError(f"views: {views} views of a photo are all the same without augmentation")
    ranks = Ranks.current()
    record = [_VERSION, extractor.fingerprint, views, source.fingerprint, ranks.world]
    home = folder / hashlib.sha256(json.dumps(record).encode()).hexdigest()[:20]
    part = home / f"{ranks.rank:04d}"
    part.mkdir(parents=True, exist_ok=True)
    mine = source.shard(ranks.rank, ranks.world)
    shards = _read_shards(part)
    if not (shards and shards[-1].is_last):
        start = shards[-1].end if shards else 0
        buffer = _read_unfinished(part, start)
        progress(buffer.position, mine.count)
        chunk, saved = max(1, extractor.batch_size // views), time.monotonic()
        encode = encode or partial(_encode, workers)
        try:
            for encoded in encode(extractor, mine, views, chunk, buffer.position):
                buffer.extend(encoded)
                if len(buffer.photos) >= shard:
                    _write_shard(part, start, buffer)
                    start = buffer.position
                    buffer = EncodedPhotos(start)
                elif time.monotonic() - saved > _SAVE_SECONDS:
                    _write_shard(part, start, buffer, unfinished=True)
                    saved = time.monotonic()
                progress(encoded.position, mine.count)
        except KeyboardInterrupt:
            _write_shard(part, start, buffer, unfinished=True)
            raise
        _write_shard(part, start, buffer, last=True)
    ranks.synchronize(True, False)  # all have written
    return CachedFeatures.open(home, source.name)


def _encode(
    workers: int | None, extractor: FeatureExtractor, source: PhotoSource, views: int, size: int, start: int
) -> Iterator[EncodedPhotos]:
    decoded = map_photos(source, partial(extractor.decode, range(views)), workers=workers, start=start)
    while chunk := list(islice(decoded, size)):
        start += len(chunk)
        yield extractor.encode_decoded(chunk, start)


def _write_shard(
    part: Path, start: int, encoded: EncodedPhotos, *, last: bool = False, unfinished: bool = False
) -> None:
    features = torch.cat(encoded.features) if encoded.features else torch.empty(0, 0, 0, dtype=torch.float16)
    coordinates = torch.tensor([(p.lat, p.lon) for p in encoded.photos], dtype=torch.float64).view(-1, 2)
    about = {
        "end": encoded.position,
        "last": last,
        "keys": [photo.key for photo in encoded.photos],
        "faults": [[fault.key, fault.kind, fault.reason] for fault in encoded.faults],
    }
    path = part / f"{start:010d}"
    tensors = {"features": features, "coordinates": coordinates}
    write_tensors(path.with_suffix(".unfinished" if unfinished else ".safetensors"), tensors, about)
    if not unfinished:
        path.with_suffix(".unfinished").unlink(missing_ok=True)


def _read_unfinished(part: Path, start: int) -> EncodedPhotos:
    """Read what an interrupted process saved of a shard."""
    path = part / f"{start:010d}.unfinished"
    if not path.exists():
        return EncodedPhotos(start)
    tensors, about = read_tensors(path)
    photos = [Photo(k, b"", *c) for k, c in zip(about["keys"], tensors["coordinates"].tolist(), strict=True)]
    features = [tensors["features"]] if photos else []
    return EncodedPhotos(about["end"], photos, features, [SkippedRecord(*fault) for fault in about["faults"]])


@dataclass(frozen=True)
class _Shard:
    path: Path
    end: int
    is_last: bool
    keys: list[str]
    faults: list[SkippedRecord]


def _read_shards(part: Path) -> list[_Shard]:
    """Return the shards that follow one another from the beginning."""
    shards: list[_Shard] = []
    while (path := part / f"{shards[-1].end if shards else 0:010d}.safetensors").exists():
        with safe_open(path, framework="pt") as file:
            about = {key: json.loads(value) for key, value in file.metadata().items()}
        faults = [SkippedRecord(*fault) for fault in about["faults"]]
        shards.append(_Shard(path, about["end"], about["last"], about["keys"], faults))
        if shards[-1].is_last:
            break
    return shards


@dataclass(frozen=True, eq=False)
class CachedFeatures:
    """A cache as training data; features stay on disk until they are needed.

    Each process reads shards that follow each other, as many photos as any other process. An epoch shuffles shards, and
    photos within windows of shards; of each photo it shows one view, another one in the next epoch, or several at once.

    Attributes:
        features: of each shard, memory-mapped.
        coordinates: (lat, lon) in degrees of all photos, shard by shard.
        fingerprint: of what it was made from.
        paths: of the shards.
        faults: entries that could not be used.
        together: views of a photo that a batch shows at once; they need ``mask_km``, ``positive_km`` or
            ``smooth_km``.
        neighborhood: half of each batch consists of groups of about this many photos from one area; 0 for none.
    """

    features: list[Float16[Tensor, "_ views d"]]
    coordinates: Float64[Tensor, "n 2"]
    fingerprint: str
    paths: list[Path]
    faults: list[SkippedRecord]
    together: int = 1
    neighborhood: int = 0

    @staticmethod
    def open(home: Path, name: str) -> "CachedFeatures":
        """Open the shards of all processes.

        Raises:
            DataError: there is no photo.
        """
        shards = [shard for part in sorted(home.iterdir()) for shard in _read_shards(part)]
        faults = [fault for shard in shards for fault in shard.faults]
        features, coordinates, paths = [], [], []
        for shard in shards:
            if shard.keys:
                with safe_open(shard.path, framework="pt") as file:
                    features.append(file.get_tensor("features"))
                    coordinates.append(file.get_tensor("coordinates").clone())
                paths.append(shard.path)
        if not features:
            reason = f"; the first of {len(faults):,} that cannot be used: {faults[0]}" if faults else ""
            raise DataError(f"{name}: there is no photo to train on{reason}")
        places = torch.cat(coordinates)
        digest = hashlib.sha256(home.name.encode())
        digest.update(places.numpy().tobytes())
        return CachedFeatures(features, places, digest.hexdigest(), paths, faults)

    def __len__(self) -> int:
        return len(self.coordinates) * self.together

    @property
    def views(self) -> int:
        """Views per photo."""
        return int(self.features[0].shape[1])

    @cached_property
    def _starts(self) -> Int64[Tensor, " shards_and_one"]:
        return torch.tensor([0, *(len(shard) for shard in self.features)]).cumsum(0)

    def first_view(self, most: int | None = None) -> FeatureSet:
        """Return the first view of the photos, or of some thousand spread over all, in memory."""
        step = 1 if most is None else max(1, len(self.coordinates) // most)
        starts = self._starts.tolist()
        parts = [shard[(-start) % step :: step, 0] for shard, start in zip(self.features, starts, strict=False)]
        return FeatureSet(torch.cat(parts), self.coordinates[::step])

    def sample_coordinates(self, n: int, seed: int) -> Float64[Tensor, "m 2"]:
        """Return coordinates of n random photos."""
        generator = torch.Generator().manual_seed(seed)
        return self.coordinates[torch.randperm(len(self.coordinates), generator=generator)[:n]]

    def batches(self, request: BatchRequest) -> Iterator[Batch]:
        """Yield batches of this process's share; the position is the number of batches before.

        Raises:
            SettingsError: a batch cannot hold whole photos.
        """
        if request.rank_size % self.together:
            raise SettingsError(f"batch_size: {request.rank_size} is no multiple of {self.together} views per photo")
        photos = request.rank_size // self.together
        generator = request.generator()
        # An even share of the photos: the epoch of all processes ends with that of the one that has fewest.
        first, last = (len(self.coordinates) * rank // request.world for rank in (request.rank, request.rank + 1))
        edges = [first, *(start for start in self._starts.tolist() if first < start < last), last]
        mine = [torch.arange(start, end) for start, end in pairwise(edges)]
        shuffled = [mine[i] for i in torch.randperm(len(mine), generator=generator).tolist()]
        windows = [torch.cat(shuffled[i : i + WINDOW]) for i in range(0, len(shuffled), WINDOW)]
        parts = [batch_order(self.coordinates[w], photos, self.neighborhood, generator) for w in windows]
        order = torch.cat([window[part] for window, part in zip(windows, parts, strict=True)])
        for step in range(request.position, len(order) // photos):
            rows = order[step * photos :][:photos]
            coordinates = self.coordinates[rows].repeat_interleave(self.together, dim=0)
            yield Batch(self._read(rows, request.epoch), coordinates, step + 1, partial(self._keys, rows))

    def _read(self, rows: Int64[Tensor, " m"], epoch: int) -> Float16[Tensor, "n d"]:
        """Return the features of photos, of the views whose turn it is."""
        shard_of = torch.bucketize(rows, self._starts, right=True) - 1
        # Each photo begins with a view of its own, so that an epoch shows all kinds.
        view = (rows + epoch * self.together)[:, None] + torch.arange(self.together)
        features = torch.empty(len(rows), self.together, self.features[0].shape[2], dtype=torch.float16)
        for shard in shard_of.unique().tolist():
            here = shard_of == shard
            inside = (rows[here] - self._starts[shard])[:, None].expand(-1, self.together)
            features[here] = self.features[shard][inside, view[here] % self.views]
        return features.flatten(0, 1)

    def _keys(self, rows: Int64[Tensor, " m"]) -> Sequence[str]:
        """Read the names of photos."""
        names: list[str] = []
        for row in rows.tolist():
            shard = int(torch.bucketize(row, self._starts, right=True)) - 1
            with safe_open(self.paths[shard], framework="pt") as file:
                names.append(json.loads(file.metadata()["keys"])[row - int(self._starts[shard])])
        return names
