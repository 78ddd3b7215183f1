"""The paper's augmentations, without torchvision: crop, flip, colour jitter, grey.

The released training transform is ``RandomResizedCrop(224)``, ``RandomHorizontalFlip``, ``ColorJitter(.4, .4, .4, .1)``
with probability .8 and ``RandomGrayscale(.2)``. Distributions and pixels are those of torchvision on Pillow images. The
random numbers depend on the seed, the photo's key and the view, so that a view is the same on each worker.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from open_geoclip.errors import SettingsError

__all__ = ["Augmentation"]

_TRIES = 10  # to find a crop of the area and shape that were drawn
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Augmentation:
    """Random views of an image; the defaults are the released ones.

    Attributes:
        size: side of a view in pixels.
        scale: smallest and largest share of the image's area in the crop.
        ratio: smallest and largest aspect ratio (width over height) of the crop.
        resample: ``bilinear``, as released, or ``bicubic``, as CLIP itself resizes.
        flip: probability of a horizontal flip.
        brightness: factors are between 1 - x and 1 + x.
        contrast: the same.
        saturation: the same.
        hue: shift in turns, between -x and x.
        jitter: probability of the four changes of colour, in random order.
        grey: probability of a greyscale view.
        seed: of all random numbers.

    Raises:
        SettingsError: a value is out of range.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    resample: str = "bilinear"
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    grey: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SettingsError(f"size: 1 pixel or more, not {self.size}")
        if self.resample not in _FILTERS:
            raise SettingsError(f"resample: one of {', '.join(_FILTERS)}, not {self.resample!r}")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise SettingsError(f"{name}: two numbers above 0, the smaller one first, not {low}, {high}")
        for name in ("flip", "brightness", "contrast", "saturation", "jitter", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name}: from 0 to 1, not {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise SettingsError(f"hue: from 0 to 0.5, not {self.hue}")

    def __call__(self, image: Image.Image, key: str, view: int = 0) -> Image.Image:
        """Return one view of an upright RGB image.

        Args:
            image: the image.
            key: its name; another name gives another view.
            view: number of the view, such as the epoch.
        """
        rng = self.generator(key, view)
        left, top, width, height = self.crop(image.size, rng)
        # Crop first: with Pillow's box the filter would read pixels outside.
        part = image.crop((left, top, left + width, top + height))
        part = part.resize((self.size, self.size), _FILTERS[self.resample])
        if rng.random() < self.flip:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < self.jitter:
            part = self._jittered(part, rng)
        if rng.random() < self.grey:
            part = part.convert("L").convert("RGB")
        return part

    def array(
        self, pixels: UInt8[np.ndarray, "h w 3"], key: str, view: int = 0
    ) -> UInt8[np.ndarray, "{self.size} {self.size} 3"]:
        """Return one view of an array."""
        return np.asarray(self(Image.fromarray(np.ascontiguousarray(pixels)), key, view))

    def generator(self, key: str, view: int) -> np.random.Generator:
        """Return the random numbers of a view, the same on each machine."""
        digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).digest()
        return np.random.Generator(np.random.PCG64([self.seed, view, int.from_bytes(digest, "little")]))

    def crop(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Return a random crop: left, top, width, height in pixels (Szegedy et al., 2015).

        The share of the area is uniform, the aspect ratio uniform in its logarithm. If ten draws do not fit, the crop
        is the largest central one of an allowed ratio.

        Args:
            size: width and height of the image.
            rng: the random numbers.
        """
        full_width, full_height = size
        low, high = (math.log(value) for value in self.ratio)
        for _ in range(_TRIES):
            area = full_width * full_height * rng.uniform(*self.scale)
            shape = math.exp(rng.uniform(low, high))
            width, height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < width <= full_width and 0 < height <= full_height:
                left = int(rng.integers(full_width - width + 1))
                top = int(rng.integers(full_height - height + 1))
                return left, top, width, height
        shape = full_width / full_height
        width, height = full_width, full_height
        if shape < self.ratio[0]:
            height = min(full_height, max(1, round(full_width / self.ratio[0])))
        elif shape > self.ratio[1]:
            width = min(full_width, max(1, round(full_height * self.ratio[1])))
        return (full_width - width) // 2, (full_height - height) // 2, width, height

    def _jittered(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        brightness, contrast, saturation = (
            float(rng.uniform(1 - x, 1 + x)) for x in (self.brightness, self.contrast, self.saturation)
        )
        turns = float(rng.uniform(-self.hue, self.hue))
        return _adjust_colors(image, brightness, contrast, saturation, turns, order=rng.permutation(4).tolist())


def _adjust_colors(
    image: Image.Image, brightness: float, contrast: float, saturation: float, turns: float, order: Sequence[int]
) -> Image.Image:
    """Apply brightness, contrast, saturation and hue in an order, in which 0 is brightness."""
    for step in order:
        match step:
            case 0:
                image = ImageEnhance.Brightness(image).enhance(brightness)
            case 1:
                image = ImageEnhance.Contrast(image).enhance(contrast)
            case 2:
                image = ImageEnhance.Color(image).enhance(saturation)
            case _:
                image = _shift_hue(image, turns)
    return image


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """Shift the hue by turns, in steps of 1/255, as Pillow's HSV holds it."""
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(turns * 255) % 256)  # wraps around
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
