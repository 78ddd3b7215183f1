"""Pictures as vectors: decoded ahead, cropped, and seen by the image tower batch by batch."""

import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_geoclip.errors import ImageError, SettingsError
from open_geoclip.images import ImageSource, image_name, load_image
from open_geoclip.model.geoclip import GeoCLIP

__all__ = ["PictureBatch", "Pictures", "listed"]


@dataclass(frozen=True)
class PictureBatch:
    """Pictures that went through the model together.

    Attributes:
        names: of all of them.
        errors: why a picture could not be read, or None; one a picture.
        vectors: of those that could be read, in order.
    """

    names: list[str]
    errors: list[str | None]
    vectors: Float[Tensor, "n k"]


@dataclass(frozen=True)
class Pictures:
    """How pictures become vectors.

    Attributes:
        model: two trained towers.
        batch_size: pictures that the model sees at once; the next ones are decoded meanwhile.
        max_pixels: larger pictures are refused before they are decoded.
        crops: 1, or 10: corners and middle, mirrored too.

    Raises:
        SettingsError: a number is out of range.
    """

    model: GeoCLIP
    batch_size: int
    max_pixels: int
    crops: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SettingsError(f"batch_size: 1 or more, not {self.batch_size}")
        if self.crops not in (1, 10):
            raise SettingsError(f"crops: 1 or 10, not {self.crops}")

    def encode(self, images: Iterable[ImageSource]) -> Float[Tensor, "n k"]:
        """Vectors of pictures, float32: of length 1, or the mean of ten such.

        Raises:
            ImageError: a picture cannot be read.
        """
        pixels = [self._prepared(source, image_name(source, number)) for number, source in enumerate(images)]
        parts = [self._vectors(pixels[i : i + self.batch_size]) for i in range(0, len(pixels), self.batch_size)]
        return torch.cat(parts) if parts else self._none()

    def batches(self, sources: Iterable[ImageSource]) -> Iterator[PictureBatch]:
        """Vectors batch by batch; a batch is decoded ahead while the model runs on the one before."""
        numbered = enumerate(sources)
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool:

            def submit() -> list[tuple[str, Future[Float[Tensor, "crops 3 h w"]]]]:
                batch = []
                for number, source in itertools.islice(numbered, self.batch_size):
                    name = image_name(source, number)
                    batch.append((name, pool.submit(self._prepared, source, name)))
                return batch

            batch, ahead = submit(), submit()
            while batch:
                errors: list[str | None] = []
                pixels = []
                for _, future in batch:
                    try:
                        pixels.append(future.result())
                        errors.append(None)
                    except ImageError as error:
                        errors.append(error.reason)
                vectors = self._vectors(pixels) if pixels else self._none()
                yield PictureBatch([name for name, _ in batch], errors, vectors)
                batch, ahead = ahead, submit()

    def _none(self) -> Float[Tensor, "0 k"]:
        return torch.empty(0, self.model.location_encoder.settings.output)

    def _prepared(self, source: ImageSource, name: str) -> Float[Tensor, "crops 3 h w"]:
        preprocessing = self.model.image_encoder.preprocessing
        image = load_image(source, name=name, max_pixels=self.max_pixels)
        return preprocessing(image)[None] if self.crops == 1 else preprocessing.ten_crops(image)

    @torch.inference_mode()
    def _vectors(self, pixels: list[Float[Tensor, "crops 3 h w"]]) -> Float[Tensor, "n k"]:
        """One vector a picture. The logits are linear in it, so the mean vector's are the mean of the crops' logits."""
        device = self.model.logit_scale.device
        vectors = [self.model.image_encoder(part.to(device)) for part in torch.cat(pixels).split(self.batch_size)]
        unit = F.normalize(torch.cat(vectors).float(), dim=1).cpu()
        return unit if self.crops == 1 else unit.view(len(pixels), self.crops, -1).mean(dim=1)


def listed(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """One picture alone as a list of one."""
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray):
        return [images]
    if hasattr(images, "read"):
        return [cast(ImageSource, images)]
    return images
