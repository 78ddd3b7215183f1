"""From photos to features: what a cache and training straight from pixels have in common."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial

import torch
from jaxtyping import Float, Float16
from torch import Tensor, nn

from open_geoclip.data.augmentation import Augmentation
from open_geoclip.data.decoding import mapped
from open_geoclip.data.photos import Fault, Photo, PhotoSource
from open_geoclip.images import load_image
from open_geoclip.model.backbones.runtime import DType, prepare_backbone
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.weights.backbones import load_image_backbone

__all__ = ["PhotoBackbone", "Seen"]

_BATCH = 16  # pictures at a time: what is in flight stays in the processor's cache


@dataclass(frozen=True)
class Seen:
    """What became of some entries of a source.

    Attributes:
        photos: those that could be used.
        features: of these, each from ``views`` sides.
        faults: those that could not.
        position: entries that were gone through, from the source's beginning.
    """

    photos: list[Photo]
    features: Float16[Tensor, "n views d"]
    faults: list[Fault]
    position: int


@dataclass(frozen=True)
class PhotoBackbone:
    """A frozen backbone with what goes before it.

    Attributes:
        name: by the grammar of names: ``earth``, ``dir:/clip``, ``hub:org/repo``.
        weights: sha256 over its weights.
        preprocessing: what the weights were trained with.
        runner: the backbone, ready to run.
        device: where it runs.
        augmentation: of the pictures; none shows each as it is.
    """

    name: str
    weights: str
    preprocessing: Preprocessing
    runner: nn.Module
    device: str = "cpu"
    augmentation: Augmentation | None = None

    @staticmethod
    def load(
        name: str,
        preprocessing: Preprocessing | None = None,
        *,
        dtype: DType = "auto",
        device: str = "cpu",
        augmentation: Augmentation | None = None,
    ) -> "PhotoBackbone":
        """Read weights; see :func:`~open_geoclip.model.image_encoder.load_image_backbone`."""
        module, preprocessing = load_image_backbone(name, preprocessing)
        module = module.requires_grad_(False).eval()
        digest = hashlib.sha256()
        for key, tensor in sorted(module.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
        runner = prepare_backbone(module, "auto", dtype, device)
        return PhotoBackbone(name, digest.hexdigest(), preprocessing, runner, device, augmentation)

    @cached_property
    def fingerprint(self) -> str:
        """Of weights, preprocessing and augmentation."""
        record = [
            self.weights,
            asdict(self.preprocessing),
            None if self.augmentation is None else asdict(self.augmentation),
        ]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def features(
        self, source: PhotoSource, size: int, *, views: range = range(1), workers: int = 2, start: int = 0
    ) -> Iterator[Seen]:
        """Features of the photos of a source, ``size`` photos at a time, the last time fewer.

        Args:
            source: the photos.
            size: photos at a time.
            views: numbers of the views of each; without augmentation they are all the same.
            workers: threads that decode.
            start: the first entry, for taking up work again.
        """
        photos: list[Photo] = []
        pixels: list[Tensor] = []
        done: list[Tensor] = []
        faults: list[Fault] = []
        position = start

        def seen() -> Seen:
            parts = [*done, *([self._run(torch.cat(pixels))] if pixels else [])]
            found = torch.cat(parts) if parts else torch.empty(0, 0, dtype=torch.float16)
            return Seen(
                list(photos), found.view(len(photos), len(views), -1 if len(found) else 0), list(faults), position
            )

        for result in mapped(source, partial(self._pixels, views), workers=workers, start=start):
            position += 1
            if isinstance(result, Fault):
                faults.append(result)
                continue
            photo, tensor = result
            photos.append(photo)
            pixels.append(tensor)
            if len(pixels) * len(views) >= _BATCH:
                done.append(self._run(torch.cat(pixels)))
                pixels.clear()
            if len(photos) == size:
                yield seen()
                photos, pixels, done, faults = [], [], [], []
        if photos or faults:
            yield seen()

    def _pixels(self, views: range, photo: Photo) -> Float[Tensor, "views 3 h w"]:
        image = load_image(photo.image, name=photo.key)
        if self.augmentation is None:
            return self.preprocessing(image).expand(len(views), -1, -1, -1)
        return torch.stack([self._normalised(self.augmentation(image, photo.key, view)) for view in views])

    @cached_property
    def _normalised(self) -> Callable[..., Tensor]:
        # A view has the size that the backbone wants already: it is not resized again.
        side = self.augmentation.size if self.augmentation is not None else self.preprocessing.resize
        return replace(self.preprocessing, resize=side, crop=side)

    @torch.inference_mode()
    def _run(self, pixels: Float[Tensor, "n 3 h w"]) -> Float16[Tensor, "n d"]:
        parts = [self.runner(part.to(self.device)) for part in pixels.split(_BATCH)]
        return torch.cat(parts).half().cpu()
