"""What a photo index holds and is asked: records, queries, neighbours; the projection of features."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from open_geoclip.errors import DataError
from open_geoclip.geo.sphere import check_coordinates
from open_geoclip.model.image_encoder import ImageEncoder

__all__ = ["HASH_BYTES", "IndexRecords", "Neighbours", "QueryPhotos", "fit_projection", "probe_feature", "read_tensors"]

DIM = 512
"""Length of a projected feature."""

HASH_BYTES = 32
"""Length of a perceptual hash and of a SHA-256."""


@dataclass(frozen=True)
class IndexRecords:
    """What an index holds of n photos.

    Attributes:
        ids: names, unique within an index.
        coordinates: (lat, lon) in degrees.
        features: of the image backbone, before any projection.
        groups: such as the photographer; None where there is none.
        sha256: of the file or the pixels of each photo; zeros where it is not known.
        hashes: perceptual hashes, see :func:`open_geoclip.search.encode.perceptual_hash`; zeros where not known.
        thumbnails: JPEG files, or empty.
    """

    ids: Sequence[str]
    coordinates: Float64[np.ndarray, "n 2"]
    features: Float[Tensor, "n d"]
    groups: Sequence[str | None]
    sha256: UInt8[np.ndarray, "n 32"]
    hashes: UInt8[np.ndarray, "n 32"]
    thumbnails: Sequence[bytes] = ()

    @classmethod
    def from_features(
        cls,
        features: Float[Tensor, "n d"],
        coordinates: Float[np.ndarray, "n 2"],
        ids: Sequence[str] | None = None,
        groups: Sequence[str | None] | None = None,
    ) -> "IndexRecords":
        """Return records of features that were computed elsewhere, by the backbone of the model to be used.

        Raises:
            CoordinateError: a coordinate is not on Earth.
            DataError: numbers of rows differ, or a feature is not finite.
        """
        n = len(features)
        places = check_coordinates(np.asarray(coordinates, np.float64))
        ids = [f"{row:07d}" for row in range(n)] if ids is None else ids
        groups = [None] * n if groups is None else groups
        if not n == len(places) == len(ids) == len(groups):
            raise DataError(f"{n:,} features, {len(places):,} coordinates, {len(ids):,} ids, {len(groups):,} groups")
        if not bool(features.isfinite().all()):
            raise DataError("features: one is not finite")
        unknown = np.zeros((n, HASH_BYTES), np.uint8)
        return cls(list(ids), places, features, list(groups), unknown, unknown.copy())

    @classmethod
    def from_file(cls, path: Path) -> "IndexRecords":
        """Read ``features`` (n, d) and ``coordinates`` (n, 2) from a safetensors file, named ``STEM-ROW``.

        Metadata ``ids`` and ``groups``, JSON lists, may give names and groups. Errors are those of
        :meth:`from_features`; a file that cannot be read is a DataError.
        """
        tensors, names = read_tensors(path)
        if not {"features", "coordinates"} <= tensors.keys() or tensors["features"].ndim != 2:
            raise DataError(f"{path}: it has no features (n, d) and coordinates (n, 2)")
        ids = names.get("ids") or [f"{path.stem}-{row:07d}" for row in range(len(tensors["features"]))]
        return cls.from_features(tensors["features"], tensors["coordinates"].numpy(), ids, names.get("groups"))

    def concatenate(self, other: "IndexRecords") -> "IndexRecords":
        """Return these photos, then the others."""
        return IndexRecords(
            [*self.ids, *other.ids],
            np.concatenate([self.coordinates, other.coordinates]),
            torch.cat([self.features, other.features.to(self.features.dtype)]),
            [*self.groups, *other.groups],
            np.concatenate([self.sha256, other.sha256]),
            np.concatenate([self.hashes, other.hashes]),
            [*(self.thumbnails or [b""] * len(self)), *(other.thumbnails or [b""] * len(other))],
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class QueryPhotos:
    """Photos to search for, and what is known of them so that they do not find themselves.

    Attributes:
        features: of the image backbone.
        sha256: hexadecimal; None where it is not known.
        hashes: perceptual hashes; None: not known.
        groups: no photo of these groups is found.
    """

    features: Float[Tensor, "n d"]
    sha256: Sequence[str | None] | None = None
    hashes: UInt8[np.ndarray, "n 32"] | None = None
    groups: Collection[str] = ()


@dataclass(frozen=True)
class Neighbours:
    """The photos of an index that look most like one photo, best first.

    Attributes:
        ids: their names.
        similarity: cosines of the projected features.
        coordinates: (lat, lon) in degrees.
        rows: of the index.
        thumbnails: of the first ones, JPEG or None; empty where they were not read.
    """

    ids: list[str]
    similarity: Float64[np.ndarray, " k"]
    coordinates: Float64[np.ndarray, "k 2"]
    rows: Int64[np.ndarray, " k"]
    thumbnails: Sequence[bytes | None] = ()

    def subset(self, rows: Int64[np.ndarray, " j"]) -> "Neighbours":
        """Return some of them, in the order given."""
        pictures = [self.thumbnails[row] for row in rows] if self.thumbnails else ()
        names = [self.ids[row] for row in rows]
        return Neighbours(names, self.similarity[rows], self.coordinates[rows], self.rows[rows], pictures)

    def __len__(self) -> int:
        return len(self.ids)


def fit_projection(features: Float[Tensor, "n d"]) -> dict[str, Tensor]:
    """Return ``mean`` and ``components`` (d, k): principal components, whitened."""
    features = features.float()
    mean = features.mean(dim=0)
    k = min(DIM, features.shape[1], len(features) - 1)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # svd_lowrank begins with random directions
        _, values, vectors = torch.svd_lowrank(features - mean, q=k, niter=3)
    return {"mean": mean, "components": (vectors / (values / values[0].clamp(min=1e-12)).clamp(min=1e-4)).contiguous()}


@torch.inference_mode()
def probe_feature(encoder: ImageEncoder) -> Float32[Tensor, " d"]:
    """Return the feature of a fixed image, which tells backbones and preprocessings apart."""
    y, x = np.mgrid[:256, :256].astype(np.float32) / 256
    waves = [np.sin(12 * x + 3 * y) + y, np.cos(9 * y * x) + x, np.sin(30 * (x - 0.5) ** 2 + 20 * y * y)]
    pixels = np.stack([255 * (wave - wave.min()) / np.ptp(wave) for wave in waves], axis=-1).astype(np.uint8)
    device = next(encoder.mlp.parameters()).device
    return encoder.backbone(encoder.preprocessing(Image.fromarray(pixels))[None].to(device))[0].float().cpu()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file, memory-mapped, and the JSON in its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            return load_file(path), {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path} cannot be read, it is missing or damaged: {error}") from error
