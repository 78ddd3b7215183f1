"""From a picture to the numbers a backbone was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.images import RESAMPLE, resize_image

__all__ = ["CLIP_PREPROCESSING", "Preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture is resized, cropped and normalised. It belongs to the weights and is stored with them.

    Bit for bit what the Pillow-based processors of ``transformers``, and timm's transforms, compute. Workers that
    decode call :meth:`resize_and_crop`; batches of its pixels, a quarter of the size of floats, go to the device and
    are normalised there.

    Attributes:
        resize: length of the shortest edge after resizing, pixels; with ``squash`` of both.
        crop: side of the square cut out of the middle, pixels; what is smaller is padded with black.
        resample: Pillow's filter by name, such as ``bicubic``.
        mean: of each channel, on a scale from 0 to 1.
        std: of each channel, on a scale from 0 to 1.
        squash: whether a picture is resized to a square, whatever its shape.
        round_half_even: whether half of an odd margin around the crop is rounded to an even number, as torchvision and
            timm do, and not down.

    Raises:
        SettingsError: a value is out of range.
    """

    resize: int
    crop: int
    resample: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False
    round_half_even: bool = False

    def __post_init__(self) -> None:
        if self.resample not in RESAMPLE:
            raise SettingsError(f"resample: one of {', '.join(RESAMPLE)}, not {self.resample!r}")
        if self.resize < 1 or self.crop < 1:
            raise SettingsError("resize and crop: 1 pixel or more")
        if min(self.std) <= 0:
            raise SettingsError(f"std: three numbers above 0, not {self.std}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Read a ``preprocessor_config.json``; the defaults are those of CLIP.

        Raises:
            SettingsError: it does more than resize, cut a square out of the middle and normalise.
        """
        for step in ("do_resize", "do_rescale"):
            if not config.get(step, True):
                raise SettingsError(f"preprocessor_config.json: {step} is off; it must be on")
        if abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
            raise SettingsError("preprocessor_config.json: rescale_factor is not 1/255")
        size, squash = config.get("size", 224), False
        if isinstance(size, Mapping):
            squash = "height" in size
            size = _square(size) if squash else size.get("shortest_edge")
            if size is None or "longest_edge" in config["size"]:
                raise SettingsError(
                    f"preprocessor_config.json: size {dict(config['size'])} gives neither the shortest edge alone nor "
                    "a square"
                )
        if config.get("do_center_crop", True):
            crop = config.get("crop_size", 224)
            crop = _square(crop) if isinstance(crop, Mapping) else crop
        elif squash or config.get("crop_pct"):  # the latter is ConvNeXt's
            crop = size
            if not squash:
                size, squash = (int(size / config["crop_pct"]), False) if size < 384 else (size, True)
        else:
            raise SettingsError("preprocessor_config.json: do_center_crop is off, so that images keep their shape")
        normal = config.get("do_normalize", True)
        names = {int(number): name for name, number in RESAMPLE.items()}
        return cls(
            resize=int(size),
            crop=int(crop),
            resample=names[config.get("resample", 3)],
            mean=_three(config.get("image_mean", CLIP_PREPROCESSING.mean)) if normal else (0.0, 0.0, 0.0),
            std=_three(config.get("image_std", CLIP_PREPROCESSING.std)) if normal else (1.0, 1.0, 1.0),
            squash=squash,
        )

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 crop crop"]:
        """The tensor of an upright RGB picture."""
        return self.normalize(torch.from_numpy(self.resize_and_crop(image)))[0]

    def ten_crops(self, image: Image.Image) -> Float[Tensor, "10 3 crop crop"]:
        """The tensors of ten crops of an upright RGB picture; see :meth:`resize_and_crop`."""
        return self.normalize(torch.from_numpy(self.resize_and_crop(image, 10)))

    def resize_and_crop(self, image: Image.Image, crops: int = 1) -> UInt8[np.ndarray, "crops crop crop 3"]:
        """The middle of an upright RGB picture, or ten crops: corners and middle, and the same mirrored.

        Ten crops are the published evaluation's: the shortest edge becomes 256 pixels for crops of 224 (as much larger
        for other crops), by the filter that the weights were trained with.
        """
        squash = self.squash and crops == 1
        pixels = np.asarray(resize_image(image, self.shortest_edge(crops), self.resample, squash=squash))
        height, width, _ = pixels.shape
        crop = self.crop
        if crops == 1:
            if height < crop or width < crop:
                above, left = -(-max(crop - height, 0) // 2), -(-max(crop - width, 0) // 2)
                below, right = max(crop - height, 0) - above, max(crop - width, 0) - left
                pixels = np.pad(pixels, ((above, below), (left, right), (0, 0)))
                height, width, _ = pixels.shape
            top, start = (height - crop) // 2, (width - crop) // 2
            if self.round_half_even:
                top, start = round((height - crop) / 2), round((width - crop) / 2)
            return pixels[None, top : top + crop, start : start + crop].copy()
        corners = [(y, x) for y in (0, height - crop) for x in (0, width - crop)]
        # To an even number where there is no middle, as torchvision's TenCrop has it.
        corners.append((round((height - crop) / 2), round((width - crop) / 2)))
        sides = (pixels, pixels[:, ::-1])
        return np.stack([side[y : y + crop, x : x + crop] for side in sides for y, x in corners])

    def crop_box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of the crop in shares of a picture's width and height.

        Args:
            size: width and height of the picture, pixels.
        """
        starts, ends = [], []
        for side in size:
            resized = self.resize if self.squash else int(self.resize * side / min(size))
            margin = resized - self.crop
            start = round(margin / 2) if self.round_half_even else margin // 2
            starts.append(start / resized)
            ends.append((start + self.crop) / resized)
        return starts[0], starts[1], ends[0], ends[1]

    def shortest_edge(self, crops: int = 1) -> int:
        """Length of the shortest edge after resizing for one crop or ten, pixels."""
        return self.resize if crops == 1 else round(self.crop * 256 / 224)

    def normalize(self, pixels: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
        """The tensors of pixels, on the same device.

        Each of the 256 values of a channel becomes the float32 of the reference, which multiplies by 1/255 in float64.
        """
        white, mean, std = _constants(self, pixels.device)
        return pixels.permute(0, 3, 1, 2).contiguous().float().div_(white).sub_(mean).div_(std)


CLIP_PREPROCESSING = Preprocessing(
    resize=224,
    crop=224,
    resample="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
"""Preprocessing of CLIP ViT-L/14."""


@lru_cache(maxsize=16)
def _constants(preprocessing: Preprocessing, device: torch.device) -> Float[Tensor, "3 3 1 1"]:
    """255, mean and standard deviation of each channel; as tensors, since a GPU divides by a number less exactly."""
    values = [(255.0, 255.0, 255.0), preprocessing.mean, preprocessing.std]
    return torch.tensor(values, dtype=torch.float32, device=device)[..., None, None]


def _square(size: Mapping[str, int]) -> int:
    if size["height"] != size["width"]:
        raise SettingsError(f"preprocessor_config.json: {dict(size)} is not square")
    return size["height"]


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise SettingsError(f"mean and std: a number for each of three channels, not {values}")
    return float(values[0]), float(values[1]), float(values[2])
