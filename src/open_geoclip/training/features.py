"""Features of photos, computed by the frozen backbone."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Float16, Float64, UInt8
from torch import Tensor, nn

from open_geoclip.data.augmentation import Augmentation
from open_geoclip.data.decoding import map_photos
from open_geoclip.data.photos import Photo, PhotoSource, SkipLog, SkippedRecord
from open_geoclip.errors import DataError
from open_geoclip.images import load_image
from open_geoclip.model.adapter import BackboneAdapter, backbone_sha256
from open_geoclip.model.backbones.runtime import DType, Engine, copy_to_device, precision_of, prepare_backbone
from open_geoclip.model.backbones.self_check import Progress
from open_geoclip.model.backbones.transformers import Feature
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.training.batches import Batch, BatchRequest, FeatureSet
from open_geoclip.weights.backbones import load_image_backbone

__all__ = ["DecodedEntry", "EncodedPhotos", "FeatureExtractor", "PixelData"]

DecodedEntry: TypeAlias = SkippedRecord | tuple[Photo, UInt8[np.ndarray, "views h w 3"]]
"""What cannot be used, or a photo (its image emptied) and the pixels of its views."""


@dataclass
class EncodedPhotos:
    """Consecutive entries of a source, after encoding.

    Attributes:
        position: number of entries from the source's beginning to the end of these.
        photos: those that could be used.
        features: of these, of each view.
        faults: entries that could not be used.
    """

    position: int
    photos: list[Photo] = field(default_factory=list)
    features: list[Float16[Tensor, "_ views d"] | UInt8[Tensor, "_ views h w 3"]] = field(default_factory=list)
    faults: list[SkippedRecord] = field(default_factory=list)

    def extend(self, following: "EncodedPhotos") -> None:
        """Append the entries that follow."""
        self.position = following.position
        self.photos += following.photos
        self.features += following.features
        self.faults += following.faults


@dataclass(frozen=True)
class FeatureExtractor:
    """A frozen backbone with its preprocessing.

    Attributes:
        name: of the backbone: ``earth``, ``dir:/clip``, ``hub:org/repo``.
        weights: sha256 over its weights.
        preprocessing: what the weights were trained with.
        backbone: the module.
        dim: length of a feature.
        device: where it runs.
        augmentation: of the images; None encodes each as it is.
        decode_only: give the pixels of the views instead of features, for a backbone that is trained.
        batch_size: images at a time. 16 keep intermediate results in a processor's cache; a GPU wants more.
        adapter: what earlier fine-tuning changed of the backbone; it is merged.
    """

    name: str
    weights: str
    preprocessing: Preprocessing
    backbone: nn.Module
    dim: int
    device: str | torch.device = "cpu"
    augmentation: Augmentation | None = None
    batch_size: int = 16
    decode_only: bool = False
    adapter: BackboneAdapter | None = None

    @staticmethod
    def load(
        name: str,
        preprocessing: Preprocessing | None = None,
        *,
        feature: Feature = "",
        dtype: DType = "auto",
        engine: Engine = "auto",
        device: str | torch.device = "cpu",
        batch_size: int = 0,
        adapter: BackboneAdapter | None = None,
        progress: Progress | None = None,
    ) -> "FeatureExtractor":
        """Load a backbone by name; see :func:`~open_geoclip.weights.backbones.load_image_backbone`.

        Args:
            name: of the backbone.
            preprocessing: for a backbone whose own folder does not say.
            feature: which feature of a vision model; see :class:`~open_geoclip.model.image_encoder.ImageSettings`.
            dtype: what it computes in.
            engine: what runs it; a backbone that is to be trained runs in ``torch``.
            device: where it runs.
            batch_size: images at a time; 0 is 16 on a CPU and 128 on a GPU.
            adapter: what earlier fine-tuning changed of the backbone.
            progress: called while the backbone is checked, once per machine.
        """
        module, preprocessing = load_image_backbone(name, preprocessing, feature)
        module = module.requires_grad_(False).eval()
        if adapter is not None:
            adapter.merge(module, name)
        dim, weights = cast(int, module.dim), backbone_sha256(module)
        backbone = prepare_backbone(module, engine, dtype, device, side=preprocessing.crop, progress=progress)
        batch_size = batch_size or (16 if torch.device(device).type == "cpu" else 128)
        return FeatureExtractor(
            name, weights, preprocessing, backbone, dim, device, batch_size=batch_size, adapter=adapter
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, preprocessing, augmentation and, where it is not float32, precision."""
        augmentation = None if self.augmentation is None else asdict(self.augmentation)
        # Without what is off, so that caches from before there was squash stay valid.
        preprocessing = {name: value for name, value in asdict(self.preprocessing).items() if value is not False}
        record = [self.weights, preprocessing, augmentation]
        if (precision := precision_of(self.backbone)) != "float32":
            record.append(precision)
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def encode(
        self, source: PhotoSource, size: int, *, views: range = range(1), workers: int | None = None, start: int = 0
    ) -> Iterator[EncodedPhotos]:
        """Yield the features of a source's photos, ``size`` photos at a time, the last time fewer.

        Args:
            source: the photos.
            size: photos at a time.
            views: numbers of the views of each; without augmentation all views are the same.
            workers: threads that decode; default: one per processor core.
            start: the first entry.
        """
        decoded: list[DecodedEntry] = []
        n_photos = 0
        for result in map_photos(source, partial(self.decode, views), workers=workers, start=start):
            decoded.append(result)
            n_photos += not isinstance(result, SkippedRecord)
            if n_photos == size:
                start += len(decoded)
                yield self.encode_decoded(decoded, start)
                decoded, n_photos = [], 0
        if decoded:
            yield self.encode_decoded(decoded, start + len(decoded))

    def encode_all(self, source: PhotoSource, *, workers: int | None = None, most: int | None = None) -> FeatureSet:
        """Return features and places of the photos of a source that can be used, in memory.

        Args:
            source: the photos.
            workers: threads that decode; default: one per processor core.
            most: take only the first so many.

        Raises:
            DataError: not one photo can be used.
        """
        encoded = self.encode(source, most or 512, workers=workers)
        found = list(encoded if most is None else islice(encoded, 1))
        parts = [part for part in found if part.photos]
        if not parts:
            faults = [fault for part in found for fault in part.faults]
            reason = f"; the first of {len(faults):,} that cannot be: {faults[0]}" if faults else ""
            raise DataError(f"{source.name}: not one photo can be used{reason}")
        places = [(photo.lat, photo.lon) for part in parts for photo in part.photos]
        features = torch.cat([features for part in parts for features in part.features])[:, 0]
        return FeatureSet(features, torch.tensor(places, dtype=torch.float64))

    def decode(self, views: range, photo: Photo) -> UInt8[np.ndarray, "views h w 3"]:
        """Return views of a photo, of the backbone's size; raises `ImageError`."""
        image = load_image(photo.image, name=photo.key)
        if self.augmentation is None:
            return np.repeat(self.preprocessing.resize_and_crop(image), len(views), axis=0)
        # An augmented view has the backbone's size already.
        return np.stack([np.asarray(self.augmentation(image, photo.key, view)) for view in views])

    def encode_decoded(self, decoded: Sequence[DecodedEntry], position: int) -> EncodedPhotos:
        """Return the features of consecutive entries that are decoded; ``position`` is the end of the last one."""
        encoded, pixels = EncodedPhotos(position), []
        for result in decoded:
            if isinstance(result, SkippedRecord):
                encoded.faults.append(result)
            else:
                encoded.photos.append(result[0])
                pixels.append(result[1])
        if pixels:
            encoded.features.append(self._run(pixels))
        return encoded

    @torch.inference_mode()
    def _run(
        self, images: list[UInt8[np.ndarray, "views h w 3"]]
    ) -> Float16[Tensor, "n views d"] | UInt8[Tensor, "n views h w 3"]:
        if self.decode_only:
            return torch.from_numpy(np.stack(images))
        pixels = copy_to_device(torch.from_numpy(np.concatenate(images)), self.device)
        features = [self.backbone(self.preprocessing.normalize(part)) for part in pixels.split(self.batch_size)]
        return torch.cat(features).half().cpu().view(len(images), len(images[0]), -1)


class PixelData:
    """A source of photos as training data that encodes a new view of each photo in each epoch.

    Args:
        source: the photos.
        extractor: computes their features, with the augmentation.
        workers: threads that decode; default: one per processor core.
        on_skip: called with each entry that cannot be used; the log tells the first ones when not given.

    Raises:
        DataError: there is no photo.
    """

    def __init__(
        self,
        source: PhotoSource,
        extractor: FeatureExtractor,
        *,
        workers: int | None = None,
        on_skip: Callable[[SkippedRecord], None] | None = None,
    ) -> None:
        count = source.count
        if count is None:  # a stream: read once, without decoding, for the length of an epoch
            count = sum(isinstance(entry, Photo) for entry in source.entries())
        if not count:
            raise DataError(f"{source.name}: there is no photo to train on")
        self.source, self.extractor, self.workers, self._count = source, extractor, workers, count
        self._report = on_skip or SkipLog(source.name)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the source, the weights, preprocessing and augmentation."""
        return hashlib.sha256(f"{self.source.fingerprint}{self.extractor.fingerprint}".encode()).hexdigest()

    def __len__(self) -> int:
        return self._count

    def sample_coordinates(self, n: int, seed: int) -> Float64[Tensor, "m 2"]:
        """Return coordinates of the first photos of a random order; their images are not decoded."""
        photos = (entry for entry in self.source.shuffled(seed).entries() if isinstance(entry, Photo))
        places = [(photo.lat, photo.lon) for _, photo in zip(range(n), photos, strict=False)]
        return torch.tensor(places, dtype=torch.float64).view(-1, 2)

    def batches(self, request: BatchRequest) -> Iterator[Batch]:
        """Yield batches in the source's own shuffled order; the position is the number of entries before."""
        mine = self.source.shuffled(request.seed, request.epoch).shard(request.rank, request.world)
        views, size = range(request.epoch, request.epoch + 1), request.rank_size
        for encoded in self.extractor.encode(mine, size, views=views, workers=self.workers, start=request.position):
            for fault in encoded.faults:
                self._report(fault)
            if len(encoded.photos) == size:
                coordinates = torch.tensor([(p.lat, p.lon) for p in encoded.photos], dtype=torch.float64)
                keys = [photo.key for photo in encoded.photos]
                yield Batch(torch.cat(encoded.features)[:, 0], coordinates, encoded.position, partial(list, keys))
