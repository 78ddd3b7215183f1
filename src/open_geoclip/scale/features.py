"""Features of photos to train on, computed on a cluster of Ray: the cache is that of one machine, to the last bit.

The tasks and actors of :mod:`open_geoclip.scale.ray` decode and encode chunks of entries; the command alone writes the
cache, in the order of the photos. So a run may be started on one machine and continued on a cluster, or the other way
round.
"""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from torch import nn

from open_geoclip._version import __version__
from open_geoclip.data.decoding import apply_to_entry
from open_geoclip.data.photos import Entry, IndexedPhotos, PhotoSource
from open_geoclip.model.backbones.transformers import Feature
from open_geoclip.scale.ray import (
    NO_PROGRESS_S,
    TASK,
    RaySettings,
    actor_pool,
    check_node,
    connect,
    failures,
    fetch,
    import_ray,
)
from open_geoclip.training.features import EncodedPhotos, FeatureExtractor

if TYPE_CHECKING:
    import pyarrow as pa
    from ray import ObjectRef

__all__ = ["encode_on_ray"]

_CHUNKS_PER_TASK = 8


def encode_on_ray(
    extractor: FeatureExtractor,
    source: PhotoSource,
    views: int,
    size: int,
    start: int,
    *,
    address: str,
    actors: tuple[int, int | None] = (1, None),
    num_gpus: float = 0,
) -> Iterator[EncodedPhotos]:
    """Yield the features of a source; give it to :func:`~open_geoclip.training.cache.cache_features` as ``encode``.

    Args:
        extractor: its backbone is loaded by name in each actor, so it must lie on all nodes.
        source: the photos. Shards are read by one task, and decoded by all.
        views: of each photo.
        size: entries that are encoded at a time.
        start: the first entry.
        address: ``auto`` or HOST:PORT; see :func:`~open_geoclip.scale.ray.connect`.
        actors: see :class:`~open_geoclip.scale.ray.RaySettings`.
        num_gpus: of an actor.

    Raises:
        RayError: the cluster cannot be reached or has failed, or a node has another version or other weights.
        MissingExtraError: the extra ``ray`` is not installed.
    """
    feature: Feature = getattr(extractor.backbone, "feature", "")
    load = partial(FeatureExtractor.load, extractor.name, extractor.preprocessing, feature=feature)
    ray = RaySettings(partial(load, batch_size=extractor.batch_size, adapter=extractor.adapter), actors, num_gpus)
    n_chunks = -(-(len(source) - start) // size) if isinstance(source, IndexedPhotos) else 1
    if n_chunks <= 0:
        return
    with connect(address), failures(ray):
        module = import_ray()
        job = module.put(
            _Job(__version__, source, replace(extractor, backbone=nn.Identity(), device="cpu"), views, size, start)
        )
        chunks = module.data.range(n_chunks, override_num_blocks=-(-n_chunks // _CHUNKS_PER_TASK))
        if not isinstance(source, IndexedPhotos):  # resources of its own, so that Ray does not decode in the same task
            chunks = chunks.map_batches(partial(_read, job), batch_format="pyarrow", num_cpus=0)
        decoded = chunks.map_batches(partial(_decode, job), batch_size=None, batch_format="pyarrow", **TASK)
        encoded = decoded.map_batches(
            _Encoder, fn_constructor_args=(ray, job), batch_size=None, batch_format="pyarrow", **actor_pool(ray)
        )
        encoded.context.execution_no_progress_timeout_s = NO_PROGRESS_S
        yield from _in_order(encoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))


def _in_order(tables: Iterable["pa.Table"]) -> Iterator[Any]:
    """Yield the contents of chunks in the order of their numbers, from 0."""
    waiting: dict[int, bytes] = {}
    number = 0
    for table in tables:
        waiting |= zip(table["id"].to_pylist(), table["content"].to_pylist(), strict=True)
        while number in waiting:
            yield _unpack(waiting.pop(number))
            number += 1


# --- what runs on the nodes -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What each task needs; the extractor has no backbone."""

    version: str
    source: PhotoSource
    extractor: FeatureExtractor
    views: int
    size: int
    start: int


def _read(job: "ObjectRef[_Job]", _: "pa.Table") -> Iterator["pa.Table"]:
    """Read a stream: the files of a chunk at a time."""
    found: _Job = fetch(job)
    entries = islice(found.source.entries(), found.start, None)
    for number in count():
        if not (chunk := list(islice(entries, found.size))):
            return
        yield _pack(number, chunk)


def _decode(job: "ObjectRef[_Job]", chunks: "pa.Table") -> Iterator["pa.Table"]:
    """Decode the photos of chunks."""
    found: _Job = fetch(job)
    work = partial(found.extractor.decode, range(found.views))
    entries: Iterable[Entry]
    for chunk in chunks.to_pylist():
        if isinstance(found.source, IndexedPhotos):
            first = found.start + chunk["id"] * found.size
            entries = map(found.source.__getitem__, range(first, min(first + found.size, len(found.source))))
        else:
            entries = _unpack(chunk["content"])
        yield _pack(chunk["id"], [apply_to_entry(work, entry) for entry in entries])


class _Encoder:
    """Holds the backbone."""

    def __init__(self, ray: RaySettings[FeatureExtractor], job: "ObjectRef[_Job]") -> None:
        self._job: _Job = fetch(job)
        self._extractor = ray.load_model()
        expected = {"version": self._job.version, "weights": self._job.extractor.weights}
        check_node({"version": __version__, "weights": self._extractor.weights}, expected)

    def __call__(self, chunks: "pa.Table") -> Iterator["pa.Table"]:
        """Yield the features of chunks."""
        for chunk in chunks.to_pylist():
            decoded = _unpack(chunk["content"])
            position = self._job.start + chunk["id"] * self._job.size + len(decoded)
            yield _pack(chunk["id"], self._extractor.encode_decoded(decoded, position))


def _pack(number: int, content: object) -> "pa.Table":
    """Return a chunk as a row."""
    import pyarrow as pa

    return pa.table({"id": [number], "content": pa.array([pickle.dumps(content)], pa.large_binary())})


def _unpack(content: bytes) -> Any:
    return pickle.loads(content)  # noqa: S301 - another process of this run has packed it
