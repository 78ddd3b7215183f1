"""Embeddings of a gallery: computed once, cached on disk, searched exactly.

The released package encodes its 100,000 coordinates again for each photo. Here they are encoded once per set of weights
and gallery, and written as float16 to the user's cache folder. Later runs map the file into memory and read it in
chunks, so neither building nor searching takes memory that grows with the gallery.
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
from jaxtyping import Float, Float16, Float32, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from open_geoclip.files import atomic_file, cache_dir
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.search.gallery import Gallery

__all__ = ["GalleryIndex", "Progress", "SearchResult", "index_key"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with how many places are done, and of how many."""

_CHUNK = 8192
_FLOAT32_LIMIT = 65_536  # places whose embeddings are kept as float32 once they are used: 134 MB at 512 dimensions
# float16 keeps 11 bits: by Cauchy-Schwarz it moves the cosine of two unit vectors by at most this. Places that are
# separated by less from the k-th are encoded again in full precision, up to _EXTRA of them.
_ROUNDING = 2.0**-11
_EXTRA = 256


def index_key(encoder: LocationEncoder, gallery: Gallery) -> str:
    """Return a fingerprint of what the embeddings depend on: weights, settings, precision and coordinates."""
    digest = hashlib.sha256(json.dumps([1, asdict(encoder.settings), str(encoder.dtype)]).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(np.ascontiguousarray(gallery.coordinates).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class SearchResult:
    """The best places for each of n queries, best first.

    Attributes:
        rows: of the gallery.
        logits: scale times cosine of each place.
        log_normalizer: log of the sum of weight times exp(logit) over the whole gallery: ``exp(logits -
            log_normalizer)`` is the released package's probability of one copy of a place.
    """

    rows: Int64[Tensor, "n k"]
    logits: Float32[Tensor, "n k"]
    log_normalizer: Float32[Tensor, " n"]


class GalleryIndex:
    """Embeddings of the places of a gallery. Make one with :meth:`build`.

    Args:
        encoder: that computed them.
        gallery: the places.
        embeddings: one a place, of length 1.
        path: the file that they are cached in, if any.
    """

    def __init__(
        self,
        encoder: LocationEncoder,
        gallery: Gallery,
        embeddings: Float16[Tensor, "m d"],
        path: Path | None = None,
    ) -> None:
        assert len(embeddings) == len(gallery)
        self.encoder = encoder
        self.gallery = gallery
        self.embeddings = embeddings
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
        """Read the embeddings from the cache, or compute and cache them.

        Safe with several processes: one computes, the others wait for it and read. A file that is truncated or
        damaged is computed again.

        Args:
            encoder: the location encoder, in evaluation mode.
            gallery: the places.
            folder: the cache; default: ``galleries`` in :func:`open_geoclip.files.cache_dir`. When it cannot be
                written, the embeddings are kept in memory and a warning is logged.
            progress: called while embeddings are computed.
            keep: whether to write a file when the cache does not have them.
        """
        path = cls.cached_path(encoder, gallery, folder)
        shape = len(gallery), encoder.settings.output
        if (cached := _read(path, shape)) is not None:
            return cls(encoder, gallery, cached, path)
        if keep:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(path.with_suffix(".lock")):
                    if (cached := _read(path, shape)) is None:  # another process may have written it meanwhile
                        _write(path, encoder, gallery, progress)
                        cached = _read(path, shape)
                        assert cached is not None
                return cls(encoder, gallery, cached, path)
            except OSError as error:
                logger.warning("the cache %s cannot be used (%s): embeddings are kept in memory", path.parent, error)
        return cls(encoder, gallery, torch.cat(list(_encode(encoder, gallery, progress))))

    def subset(self, rows: Int64[np.ndarray, " k"]) -> "GalleryIndex":
        """Return the index of some of the places, with their embeddings in memory."""
        gallery = Gallery(self.gallery.name, self.gallery.coordinates[rows], self.gallery.weights[rows])
        return GalleryIndex(self.encoder, gallery, self.embeddings[torch.from_numpy(rows)])

    @staticmethod
    def cached_path(encoder: LocationEncoder, gallery: Gallery, folder: Path | None = None) -> Path:
        """Return the file that the embeddings are cached in, whether it exists or not."""
        folder = cache_dir() / "galleries" if folder is None else folder
        return folder / f"{index_key(encoder, gallery)[:32]}.safetensors"

    @torch.inference_mode()
    def search(self, queries: Float[Tensor, "n d"], scale: float, top_k: int) -> SearchResult:
        """Return the exact best places for each query, in memory that does not grow with the gallery.

        The gallery is searched with the rounded embeddings; the best few are encoded again in the encoder's own
        precision and sorted by that, so that rounding on disk does not show in an answer.

        Args:
            queries: embeddings of images or texts, of any length.
            scale: logits are scale times cosine.
            top_k: places a query, at most the size of the gallery.
        """
        n, k = len(queries), min(top_k + _EXTRA, len(self))
        queries = queries.float()
        best, rows = torch.full((n, 0), 0.0), torch.empty((n, 0), dtype=torch.int64)
        log_normalizer = torch.full((n,), -torch.inf)
        for start in range(0, len(self), _CHUNK):
            logits = scale * (queries @ self.embeddings[start : start + _CHUNK].float().T)
            weighted = logits + self._log_weights[start : start + _CHUNK]
            log_normalizer = torch.logaddexp(log_normalizer, torch.logsumexp(weighted, dim=1))
            here, at = logits.topk(min(k, logits.shape[1]), dim=1)
            best, rows = torch.cat([best, here], dim=1), torch.cat([rows, at + start], dim=1)
            if best.shape[1] > k:
                best, order = best.topk(k, dim=1)
                rows = rows.gather(1, order)
        exact, order = self._rescore(queries, scale, best, rows, top_k).sort(dim=1, descending=True, stable=True)
        return SearchResult(rows.gather(1, order)[:, :top_k], exact[:, :top_k], log_normalizer)

    @torch.inference_mode()
    def logits(self, queries: Float[Tensor, "n d"], scale: float, exact: int = 1) -> Float32[Tensor, "n m"]:
        """Return the logits of all places for each query.

        They are computed from the rounded embeddings, on the device of the encoder; those that decide about the best
        ``exact`` places are computed again in full precision, as in :meth:`search`.

        Args:
            queries: embeddings of images or texts, of any length.
            scale: logits are scale times cosine.
            exact: places a query.

        Returns:
            float32 on the CPU.
        """
        queries = queries.float().to(self._fast_embeddings.device)
        logits = torch.empty(len(queries), len(self), device=queries.device)
        for start in range(0, len(self), _CHUNK):
            part = self._fast_embeddings[start : start + _CHUNK].float()
            torch.mm(queries, part.T, out=logits[:, start : start + _CHUNK])
        logits *= scale
        best, rows = (part.cpu() for part in logits.topk(min(exact + _EXTRA, len(self)), dim=1))
        return logits.cpu().scatter_(1, rows, self._rescore(queries.cpu(), scale, best, rows, exact))

    @cached_property
    def _fast_embeddings(self) -> Float[Tensor, "m d"]:
        """The embeddings where the encoder is, as float32 if there are few: converting takes longer than a product."""
        device = next(self.encoder.parameters(), self.embeddings).device
        return (self.embeddings.float() if len(self) <= _FLOAT32_LIMIT else self.embeddings).to(device)

    def _rescore(
        self,
        queries: Float32[Tensor, "n d"],
        scale: float,
        best: Float32[Tensor, "n k"],
        rows: Int64[Tensor, "n k"],
        top_k: int,
    ) -> Float32[Tensor, "n k"]:
        """Return the best logits, sorted, with those exact that rounding may have put among the top_k or out of it."""
        last = best[:, min(top_k, best.shape[1]) - 1 :][:, :1]
        close = best >= last - 2 * abs(scale) * _ROUNDING * queries.norm(dim=1, keepdim=True)
        unique, inverse = rows[close].unique(return_inverse=True)  # each place is encoded once
        located = self.encoder.encode(torch.from_numpy(self.gallery.coordinates)[unique])
        best = best.clone()
        best[close] = scale * (queries[close.nonzero()[:, 0]] * located[inverse]).sum(dim=1)
        return best


def _encode(encoder: LocationEncoder, gallery: Gallery, progress: Progress | None) -> Iterator[Float16[Tensor, "n d"]]:
    """Yield embeddings of a gallery in chunks."""
    coordinates = torch.from_numpy(gallery.coordinates)
    for start in range(0, len(gallery), _CHUNK):
        part = coordinates[start : start + _CHUNK]
        yield encoder.encode(part).half()
        if progress is not None:
            progress(start + len(part), len(gallery))


def _write(path: Path, encoder: LocationEncoder, gallery: Gallery, progress: Progress | None) -> None:
    """Write a safetensors file of one tensor while it is computed: its header is known beforehand."""
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
        for part in _encode(encoder, gallery, progress):
            file.write(part.numpy().tobytes())


def _read(path: Path, shape: tuple[int, int]) -> Float16[Tensor, "m d"] | None:
    """Map the embeddings in a cache file into memory; None when there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            embeddings = file.get_tensor("vectors")
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s) and is computed again", path, error)
        return None
    if embeddings.shape != shape or embeddings.dtype != torch.float16:
        logger.warning("%s holds %s %s and is computed again", path, embeddings.dtype, tuple(embeddings.shape))
        return None
    return embeddings
