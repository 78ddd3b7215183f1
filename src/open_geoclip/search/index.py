"""Location vectors of a gallery: computed once, kept on disk, searched exactly.

The released package encodes its 100,000 coordinates anew for each photo. Here they are encoded once for a set of
weights and a gallery, and written as float16 to the user's cache folder. A later run maps the file into memory
and reads it chunk by chunk, so neither building nor searching takes memory that grows with the gallery.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Bool, Float, Float32, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from open_geoclip.files import atomic_file, cache_dir
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.search.gallery import Gallery

__all__ = ["Found", "GalleryIndex", "Progress", "index_key"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with how many places are done, and of how many."""

_CHUNK = 8192
_FEW = 65_536  # places whose vectors are kept as float32 once they are asked for: 134 MB at 512 numbers
# Float16 keeps 11 bits: by Cauchy-Schwarz it moves the cosine of two unit vectors by at most this. Places that so
# little separates from the k-th are encoded again in full precision, up to _EXTRA of them.
_ROUNDING = 2.0**-11
_EXTRA = 256


def index_key(encoder: LocationEncoder, gallery: Gallery) -> str:
    """A fingerprint of what the vectors depend on: weights, settings, precision and coordinates."""
    digest = hashlib.sha256(json.dumps([1, asdict(encoder.settings), str(encoder.dtype)]).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(np.ascontiguousarray(gallery.coordinates).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Found:
    """The best places for each of n pictures, best first.

    Attributes:
        rows: rows of the gallery.
        logits: temperature times cosine of each, in float32.
        log_total: logarithm of the sum of weight times exp(logit) over the whole gallery, so that
            ``exp(logits - log_total)`` is the released package's probability of one copy of a place.
    """

    rows: Int64[Tensor, "n k"]
    logits: Float32[Tensor, "n k"]
    log_total: Float32[Tensor, " n"]


class GalleryIndex:
    """Unit vectors of a gallery's places. Make one with :meth:`build`.

    Args:
        encoder: what made the vectors.
        gallery: the places.
        vectors: one a place, of length 1, float16.
        path: the file they are kept in, when there is one.
    """

    def __init__(
        self,
        encoder: LocationEncoder,
        gallery: Gallery,
        vectors: Float[Tensor, "n k"],
        path: Path | None = None,
    ) -> None:
        assert len(vectors) == len(gallery)
        self.encoder = encoder
        self.gallery = gallery
        self.vectors = vectors
        self.path = path
        self._log_weights = torch.from_numpy(gallery.weights).log()

    def __len__(self) -> int:
        return len(self.gallery)

    @classmethod
    def build(
        cls,
        encoder: LocationEncoder,
        gallery: Gallery,
        *,
        folder: Path | None = None,
        progress: Progress | None = None,
        keep: bool = True,
    ) -> "GalleryIndex":
        """Open the vectors from the cache, or compute and keep them first.

        Safe with several processes: one computes, the others wait for it and read. A file that is cut short or
        damaged is computed again.

        Args:
            encoder: the location encoder, in evaluation mode.
            gallery: the places.
            folder: the cache; default: :func:`open_geoclip.files.cache_dir`. When it cannot be written, the vectors
                are kept in memory and a warning is logged.
            progress: called while vectors are computed.
            keep: write a file; else the vectors stay in memory when the cache does not have them.
        """
        path = cls.cached_path(encoder, gallery, folder)
        vectors = _opened(path, len(gallery), encoder.settings.output)
        if vectors is not None:
            return cls(encoder, gallery, vectors, path)
        if not keep:
            return cls(encoder, gallery, torch.cat(list(_encoded(encoder, gallery, progress))))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                vectors = _opened(path, len(gallery), encoder.settings.output)  # another process may have made it
                if vectors is None:
                    _write(path, encoder, gallery, progress)
                    vectors = _opened(path, len(gallery), encoder.settings.output)
                    assert vectors is not None
        except OSError as error:
            logger.warning("the cache %s cannot be used (%s): location vectors are kept in memory", path.parent, error)
            parts = list(_encoded(encoder, gallery, progress))
            return cls(encoder, gallery, torch.cat(parts))
        return cls(encoder, gallery, vectors, path)

    def subset(self, rows: Int64[np.ndarray, " m"]) -> "GalleryIndex":
        """The index of some of the places, of which it keeps the vectors in memory."""
        part = Gallery(self.gallery.name, self.gallery.coordinates[rows], self.gallery.weights[rows])
        return GalleryIndex(self.encoder, part, self.vectors[torch.from_numpy(rows)])

    @staticmethod
    def cached_path(encoder: LocationEncoder, gallery: Gallery, folder: Path | None = None) -> Path:
        """The file that the vectors are kept in, whether it exists or not."""
        folder = cache_dir() / "galleries" if folder is None else folder
        return folder / f"{index_key(encoder, gallery)[:32]}.safetensors"

    @torch.inference_mode()
    def search(self, queries: Float[Tensor, "n d"], scale: float, top_k: int) -> Found:
        """The exact best places for each query.

        The whole gallery is compared in float16-rounded vectors; then the best few are encoded again in the
        encoder's own precision and ordered by that, so that rounding on disk does not show in an answer.

        Args:
            queries: vectors of pictures; those of several pictures in one may be longer than 1.
            scale: the temperature: logits are scale times cosine.
            top_k: places a query, at most the gallery's size.
        """
        n, k = len(queries), min(top_k + _EXTRA, len(self))
        queries = queries.float()
        best = torch.full((n, 0), 0.0)
        rows = torch.empty((n, 0), dtype=torch.int64)
        log_total = torch.full((n,), -torch.inf)
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            logits = scale * (queries @ self.vectors[start:stop].float().T)
            log_total = torch.logaddexp(log_total, torch.logsumexp(logits + self._log_weights[start:stop], dim=1))
            here, at = logits.topk(min(k, stop - start), dim=1)
            best, rows = torch.cat([best, here], dim=1), torch.cat([rows, at + start], dim=1)
            if best.shape[1] > k:
                best, order = best.topk(k, dim=1)
                rows = rows.gather(1, order)
        close = _close(best, top_k, scale, queries.norm(dim=1, keepdim=True))
        best[close] = scale * self._exact_cosines(queries, rows, close)
        exact, order = best.sort(dim=1, descending=True, stable=True)
        rows = rows.gather(1, order)
        return Found(rows[:, :top_k], exact[:, :top_k], log_total)

    @cached_property
    def _ready(self) -> Tensor:
        """The vectors, as float32 in memory when there are few: turning them anew takes longer than the product."""
        return self.vectors.float() if len(self) <= _FEW else self.vectors

    @torch.inference_mode()
    def logits(self, queries: Float[Tensor, "n d"], scale: float, exact: int = 1) -> Float32[Tensor, "n m"]:
        """All logits of each query, in one table of n times the gallery's size.

        They are computed from the rounded vectors, and those that decide about the best ``exact`` places again in full
        precision, as in :meth:`search`.

        Args:
            queries: vectors of pictures, of any length.
            scale: the temperature: logits are scale times cosine.
            exact: places a query.
        """
        queries = queries.float()
        logits = torch.empty(len(queries), len(self))
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            torch.mm(queries, self._ready[start:stop].float().T, out=logits[:, start:stop])
        logits *= scale
        best, rows = logits.topk(min(exact + _EXTRA, len(self)), dim=1)
        close = _close(best, exact, scale, queries.norm(dim=1, keepdim=True))
        best[close] = scale * self._exact_cosines(queries, rows, close)
        return logits.scatter_(1, rows, best)

    def _exact_cosines(
        self, queries: Float[Tensor, "n d"], rows: Int64[Tensor, "n k"], chosen: Bool[Tensor, "n k"]
    ) -> Float[Tensor, " m"]:
        """Cosines of chosen pairs with vectors encoded afresh, each place once."""
        unique, inverse = rows[chosen].unique(return_inverse=True)
        device = next(self.encoder.parameters()).device
        vectors = self.encoder.encode(torch.from_numpy(self.gallery.coordinates)[unique].to(device)).cpu()
        return (queries[chosen.nonzero()[:, 0]] * vectors[inverse]).sum(dim=1)


def _close(
    best: Float32[Tensor, "n k"], top_k: int, scale: float, lengths: Float[Tensor, "n 1"]
) -> Bool[Tensor, "n k"]:
    """Which of the best logits, in order, rounding may have put on the wrong side of the best top_k."""
    last = best[:, min(top_k, best.shape[1]) - 1 :][:, :1]
    return best >= last - 2 * abs(scale) * _ROUNDING * lengths


def _encoded(encoder: LocationEncoder, gallery: Gallery, progress: Progress | None) -> Iterator[Float[Tensor, "n k"]]:
    """Vectors of a gallery, chunk by chunk, as float16."""
    coordinates = torch.from_numpy(gallery.coordinates)
    device = next(encoder.parameters()).device
    for start in range(0, len(gallery), _CHUNK):
        part = coordinates[start : start + _CHUNK].to(device)
        yield encoder.encode(part).cpu().half()
        if progress is not None:
            progress(start + len(part), len(gallery))


def _write(path: Path, encoder: LocationEncoder, gallery: Gallery, progress: Progress | None) -> None:
    """Write a safetensors file of one tensor as it is computed: its header is known beforehand."""
    shape = [len(gallery), encoder.settings.output]
    header = json.dumps(
        {
            "__metadata__": {"gallery": gallery.name, "gallery_sha256": gallery.fingerprint},
            "vectors": {"dtype": "F16", "shape": shape, "data_offsets": [0, 2 * shape[0] * shape[1]]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for part in _encoded(encoder, gallery, progress):
            file.write(part.numpy().tobytes())


def _opened(path: Path, rows: int, width: int) -> Tensor | None:
    """The vectors in a cache file, mapped into memory; None when there is no such file or it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            vectors = file.get_tensor("vectors")
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s) and is made again", path, error)
        return None
    if vectors.shape != (rows, width) or vectors.dtype != torch.float16:
        logger.warning("%s holds %s %s and is made again", path, vectors.dtype, tuple(vectors.shape))
        return None
    return vectors
