"""Search for the features most like a query: among all, or among candidates of an inverted file.

An inverted file with product quantisation (Jégou et al., "Product Quantization for Nearest Neighbor Search", IEEE TPAMI
2011) by FAISS, read memory-mapped: features are clustered, a query is compared with the 64-byte codes of the clusters
nearest to it, and then with the features of the best of these. Either way similarities are exact.
"""

import logging
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from open_geoclip.errors import DataError, MissingExtraError
from open_geoclip.files import atomic_file

__all__ = ["MAX_CANDIDATES", "FeatureSearch", "write_inverted_file"]

logger = logging.getLogger(__name__)

MAX_CANDIDATES = 1024
"""Features that a query is compared with where there is an inverted file."""

_BLOCK = 65_536  # features that are compared at once
_CODE_BYTES = 64
_PROBES = 128  # clusters that a query searches
_SAMPLE = 40  # features per cluster that the clustering is fitted on, one more than FAISS asks for
_ITERATIONS = 10


class FeatureSearch:
    """Search in features that are stored in parts; rows are counted over all parts.

    Args:
        parts: features of length 1, by name.
        inverted_file: path of an inverted file, or None.
        covered: names and lengths of the parts that it was written of, in order; some may be gone.
    """

    def __init__(
        self,
        parts: Mapping[str, Float[Tensor, "_ k"]],
        inverted_file: Path | None = None,
        covered: Mapping[str, int] | None = None,
    ) -> None:
        self._parts, self._path, self._covered = parts, inverted_file, covered or {}
        self._starts = dict(zip(parts, np.cumsum([0, *map(len, parts.values())]).tolist(), strict=False))

    @torch.inference_mode()
    def most_similar(
        self, queries: Float32[Tensor, "n k"], count: int
    ) -> tuple[Float32[Tensor, "n c"], Int64[Tensor, "n c"]]:
        """Return the cosines and rows of the features most like each query, the best first; -inf where there are none.

        Args:
            queries: of length 1.
            count: per query; from ``MAX_CANDIDATES`` on, all features are compared.

        Raises:
            DataError: the inverted file is missing or damaged.
        """
        best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        is_exact = count >= MAX_CANDIDATES or self._inverted_file is None
        if not is_exact:
            best, rows = self._compare_candidates(queries)
        for name, features in self._parts.items():
            if not is_exact and name in self._covered:
                continue
            for number, block in enumerate(features.split(_BLOCK)):
                scores, at = (queries @ block.float().T).topk(min(count, len(block)), dim=1)
                best = torch.cat([best, scores], dim=1)
                rows = torch.cat([rows, at + (self._starts[name] + number * _BLOCK)], dim=1)
                best, order = best.topk(min(count, best.shape[1]), dim=1)
                rows = rows.gather(1, order)
        best, order = best.topk(min(count, best.shape[1]), dim=1)
        return best, rows.gather(1, order)

    def _compare_candidates(
        self, queries: Float32[Tensor, "n k"]
    ) -> tuple[Float32[Tensor, "n c"], Int64[Tensor, "n c"]]:
        """Return cosines of the candidates of the inverted file that are still there, and their rows."""
        found = torch.from_numpy(self._inverted_file.search(queries.numpy(), MAX_CANDIDATES)[1])
        ends = torch.tensor([*self._covered.values()]).cumsum(0)
        scores, rows = torch.full(found.shape, -torch.inf), torch.zeros_like(found)
        part_of = torch.bucketize(found, ends, right=True)
        for part, (name, length) in enumerate(self._covered.items()):
            here = (part_of == part) & (found >= 0)  # FAISS writes -1 where there are no more
            if name in self._parts and bool(here.any()):
                at = found[here] - (ends[part] - length)
                features, of = self._parts[name][at].float(), here.nonzero()[:, 0]
                scores[here], rows[here] = (features * queries[of]).sum(dim=1), at + self._starts[name]
        return scores, rows

    @cached_property
    def _inverted_file(self) -> Any:
        if self._path is None:
            return None
        try:
            faiss = _import_faiss()
            index = faiss.read_index(str(self._path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
            index.nprobe = min(_PROBES, index.nlist)
        except MissingExtraError as error:
            logger.warning("%s: every photo is compared. %s", self._path.parent, error)
            return None
        except (AttributeError, RuntimeError) as error:
            raise DataError(f"{self._path} cannot be read, it is missing or damaged: {error}") from error
        if index.ntotal != sum(self._covered.values()):
            raise DataError(f"{self._path}: damaged: it has {index.ntotal:,} photos")
        return index


def write_inverted_file(path: Path, parts: Mapping[str, Float[Tensor, "_ k"]]) -> None:
    """Write the inverted file of features of length 1, with twice as many clusters as the root of their number.

    Raises:
        MissingExtraError: the extra ``faiss`` is not installed.
    """
    faiss = _import_faiss()
    n, dim = sum(map(len, parts.values())), next(iter(parts.values())).shape[1]
    clusters = max(1, min(round(2 * math.sqrt(n)), n // _SAMPLE))
    index = faiss.index_factory(dim, f"IVF{clusters},PQ{math.gcd(dim, _CODE_BYTES)}", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.do_polysemous_training = _ITERATIONS, False  # such codes would be for Hamming distances
    generator, share = np.random.default_rng(0), _SAMPLE * max(clusters, 256) / n  # 256: centroids of a code
    sample = [part[np.flatnonzero(generator.random(len(part)) < share)].float() for part in parts.values()]
    index.train(torch.cat(sample).numpy())
    for part in parts.values():
        for block in part.split(_BLOCK):
            index.add(block.float().numpy())
    with atomic_file(path) as temporary:
        faiss.write_index(index, str(temporary))


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("Fast search in a large index of photos", "faiss") from error
    return faiss
