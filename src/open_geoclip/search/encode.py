"""Images as embeddings: decoded ahead, cropped, and encoded batch by batch."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from open_geoclip.data.decoding import map_ahead
from open_geoclip.errors import ImageError, SettingsError
from open_geoclip.images import MAX_PIXELS, ImageSource, image_name, load_image, read_bytes
from open_geoclip.model.backbones.runtime import copy_to_device
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.preprocessing import Preprocessing

__all__ = ["EncodeSettings", "EncodedBatch", "encode_batches", "encode_images", "perceptual_hash"]

_CENTRE = 4  # of ten crops


@dataclass(frozen=True)
class EncodeSettings:
    """How images are encoded.

    Attributes:
        batch_size: images that the model encodes at once; the next ones are decoded meanwhile.
        max_pixels: larger images are refused before they are decoded.
        crops: 1, or 10: corners and centre, mirrored too.
        fast_decode: decode JPEGs at a reduced scale, of at least twice the size that the model needs. Embeddings
            differ slightly; docs/guides/jobs.md has by how much.

    Raises:
        SettingsError: a number is out of range.
    """

    batch_size: int = 8
    max_pixels: int = MAX_PIXELS
    crops: int = 1
    fast_decode: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SettingsError(f"batch_size: 1 or more, not {self.batch_size}")
        if self.crops not in (1, 10):
            raise SettingsError(f"crops: 1 or 10, not {self.crops}")


@dataclass(frozen=True)
class EncodedBatch:
    """Images that were encoded together.

    Attributes:
        names: of all of them.
        errors: why an image could not be read, or None; one per image.
        sha256: of the bytes of each file; None for arrays, PIL images and what could not be read.
        embeddings: of those that could be read, in order; float32, of length 1, or the mean of ten such.
        features: of the same images, as the backbone gives them and the head reads them, or the mean of ten such;
            float32. None where embeddings came without them.
        perceptual_hashes: of the same images, see :func:`perceptual_hash`; None like features.
        distances: of the features from the subspace of training images, or the mean of ten such; None where the model
            has none. See :class:`open_geoclip.model.subspace.PrincipalSubspace`.
    """

    names: list[str]
    errors: list[ImageError | None]
    sha256: list[str | None]
    embeddings: Float[Tensor, "n k"]
    features: Float[Tensor, "n d"] | None = None
    perceptual_hashes: UInt8[np.ndarray, "n 32"] | None = None
    distances: Float[Tensor, " n"] | None = None

    @classmethod
    def from_embeddings(cls, embeddings: Float[Tensor, "n k"]) -> "EncodedBatch":
        """Return a batch without names, of texts or of images that were encoded before."""
        n = len(embeddings)
        return cls([""] * n, [None] * n, [None] * n, embeddings)

    def split(self) -> "list[EncodedBatch]":
        """Return a batch without names for each image that could be read; :meth:`concatenate` is the reverse."""
        hashes = self.perceptual_hashes
        return [
            replace(
                EncodedBatch.from_embeddings(self.embeddings[[row]]),
                features=None if self.features is None else self.features[[row]],
                perceptual_hashes=None if hashes is None else hashes[[row]],
                distances=None if self.distances is None else self.distances[[row]],
            )
            for row in range(len(self.embeddings))
        ]

    @classmethod
    def concatenate(cls, batches: "Sequence[EncodedBatch]") -> "EncodedBatch":
        """Return the images of one or more batches, which have the same attributes, as one."""
        features = [batch.features for batch in batches if batch.features is not None]
        hashes = [batch.perceptual_hashes for batch in batches if batch.perceptual_hashes is not None]
        distances = [batch.distances for batch in batches if batch.distances is not None]
        return cls(
            [name for batch in batches for name in batch.names],
            [error for batch in batches for error in batch.errors],
            [sha256 for batch in batches for sha256 in batch.sha256],
            torch.cat([batch.embeddings for batch in batches]),
            torch.cat(features) if features else None,
            np.concatenate(hashes) if hashes else None,
            torch.cat(distances) if distances else None,
        )


def encode_batches(
    model: GeoCLIP, images: ImageSource | Iterable[ImageSource], settings: EncodeSettings | None = None
) -> Iterator[EncodedBatch]:
    """Encode images batch by batch. Threads, one per processor core, decode those ahead while the model runs.

    Args:
        model: with an image encoder.
        images: one or any number; an image that cannot be read is reported in its batch.
        settings: how.
    """
    settings = settings or EncodeSettings()
    single = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray)
    several = [images] if single or hasattr(images, "read") else images
    numbered = enumerate(cast(Iterable[ImageSource], several))
    decode = partial(_decode, model.image_encoder.preprocessing, settings)
    with closing(map_ahead(decode, numbered, ahead=2 * settings.batch_size)) as decoded:
        batches = iter(lambda: list(itertools.islice(decoded, settings.batch_size)), [])
        # A GPU encodes the next batches while the caller uses this one; a CPU would do both at half the speed.
        workers = int(model.logit_scale.device.type == "cuda")
        with closing(map_ahead(partial(_encode, model, settings), batches, workers=workers)) as encoded:
            yield from encoded


def encode_images(
    model: GeoCLIP, images: Iterable[ImageSource], settings: EncodeSettings | None = None
) -> EncodedBatch:
    """Encode images as one batch.

    Raises:
        ImageError: an image cannot be read.
    """
    batches = list(encode_batches(model, images, settings))
    for error in itertools.chain.from_iterable(batch.errors for batch in batches):
        if error is not None:
            raise error
    if not batches:
        return EncodedBatch.from_embeddings(torch.empty(0, model.location_encoder.settings.output))
    return EncodedBatch.concatenate(batches)


def perceptual_hash(pixels: Float[Tensor, "n 3 h w"]) -> UInt8[np.ndarray, "n 32"]:
    """Return a difference hash of 256 bits: whether each of 16 x 16 blocks is darker than the one to its right.

    Compression, resizing and changes of brightness alter few bits; different photos differ in about half of them.
    """
    grey = F.adaptive_avg_pool2d(pixels.mean(dim=1, keepdim=True), (16, 17))[:, 0]
    return np.packbits((grey.diff(dim=2) > 0).flatten(1).cpu().numpy(), axis=1)


class _Decoded(NamedTuple):
    name: str
    error: ImageError | None
    sha256: str | None = None
    pixels: UInt8[np.ndarray, "crops h w 3"] | None = None


def _decode(preprocessing: Preprocessing, settings: EncodeSettings, numbered: tuple[int, ImageSource]) -> _Decoded:
    """Decode an image; its file is read once for hash and pixels."""
    number, source = numbered
    name, sha256 = image_name(source, number), None
    try:
        if not isinstance(source, Image.Image | np.ndarray):
            source = read_bytes(source, name)
            sha256 = hashlib.sha256(source).hexdigest()
        edge = 2 * preprocessing.shortest_edge(settings.crops) if settings.fast_decode else 0
        image = load_image(source, name=name, max_pixels=settings.max_pixels, shortest_edge=edge)
    except ImageError as error:
        return _Decoded(name, error)
    return _Decoded(name, None, sha256, preprocessing.resize_and_crop(image, settings.crops))


@torch.inference_mode()
def _encode(model: GeoCLIP, settings: EncodeSettings, batch: list[_Decoded]) -> EncodedBatch:
    """Encode a batch; embeddings, features and distances of ten crops are means, as their logits are."""
    names, errors, hashes, decoded = (list(field) for field in zip(*batch, strict=True))
    encoder, images = model.image_encoder, [pixels for pixels in decoded if pixels is not None]
    subspace = encoder.subspace
    if not images:
        embeddings, features = torch.empty(0, encoder.settings.widths[-1]), torch.empty(0, encoder.settings.feature_dim)
        distances = None if subspace is None else torch.empty(0)
        return EncodedBatch(names, errors, hashes, embeddings, features, np.empty((0, 32), np.uint8), distances)
    normalize, crops = encoder.preprocessing.normalize, (len(images), settings.crops)
    pixels = copy_to_device(torch.from_numpy(np.concatenate(images)), model.logit_scale.device)
    normalized = [normalize(part) for part in pixels.split(settings.batch_size)]
    parts = [encoder.forward_backbone(part) for part in normalized]
    hashed = normalized if settings.crops == 1 else [normalize(pixels[_CENTRE :: settings.crops])]
    embeddings = torch.cat([model.encode_features(part) for part in parts]).cpu()
    features = torch.cat(parts).float().cpu()
    return EncodedBatch(
        names,
        errors,
        hashes,
        embeddings.view(*crops, -1).mean(dim=1),
        features.view(*crops, -1).mean(dim=1),
        np.concatenate([perceptual_hash(part) for part in hashed]),
        None if subspace is None else subspace.distance(features).view(crops).mean(dim=1),
    )
