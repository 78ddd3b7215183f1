"""Images that are no views of the Earth: answers for them should not be sure."""

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["out_of_distribution_images"]

_SIZE = 300
_COLOURS = ((10, 30, 80), (20, 90, 30), (200, 180, 120), (200, 30, 30), (250, 240, 230), (90, 70, 50))
_TEXT = "The quick brown fox jumps over the lazy dog, 1234567890 times."


def out_of_distribution_images() -> dict[str, list[Image.Image]]:
    """Return images by kind, the same ones at each call; with scikit-learn, two photos are among them."""
    rng = np.random.default_rng(0)
    found = {
        "uniform grey": [_plain((level, level, level)) for level in range(0, 256, 51)],
        "uniform colour": [_plain(colour) for colour in _COLOURS],
        "noise": [Image.fromarray(rng.integers(0, 256, (_SIZE, _SIZE, 3), dtype=np.uint8)) for _ in range(12)],
        "colour patches": [_patches(rng, 4 * 2 ** (number % 4)) for number in range(12)],
        "drawn pattern": [_stripes(), _squares(), _rings()],
        "page of text": [_page()],
        "drawn face": [_face()],
        "drawn mountain": [_mountain()],
    }
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        return found
    # A temple and a flower, each as a whole and in quarters.
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    return found | {"photo taken on the ground": [part for whole in photographs for part in _parts(whole)]}


def _plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (_SIZE, _SIZE), colour)


def _patches(rng: np.random.Generator, cells: int) -> Image.Image:
    values = rng.normal(size=(cells, cells, 3))
    values = 255 * (values - values.min()) / np.ptp(values)
    return Image.fromarray(values.astype(np.uint8)).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)


def _stripes() -> Image.Image:
    image = _plain((255, 255, 255))
    for x in range(0, _SIZE, 20):
        ImageDraw.Draw(image).line([(x, 0), (x, _SIZE)], fill=(0, 0, 0), width=3)
    return image


def _squares() -> Image.Image:
    cells = (np.indices((_SIZE, _SIZE)) // 40).sum(axis=0) % 2
    return Image.fromarray((255 * cells).astype(np.uint8)).convert("RGB")


def _rings() -> Image.Image:
    image, middle = _plain((255, 255, 255)), _SIZE // 2
    for radius in range(140, 0, -20):
        corners = [middle - radius, middle - radius, middle + radius, middle + radius]
        ImageDraw.Draw(image).ellipse(corners, fill=(200, 0, 0) if radius // 20 % 2 else (255, 255, 255))
    return image


def _page() -> Image.Image:
    image = _plain((255, 255, 255))
    for y in range(10, _SIZE, 14):
        ImageDraw.Draw(image).text((8, y), _TEXT, fill=(0, 0, 0))
    return image


def _face() -> Image.Image:
    image = _plain((90, 120, 160))
    pen = ImageDraw.Draw(image)
    pen.ellipse([70, 40, 230, 260], fill=(224, 172, 140))
    for left in (110, 170):
        pen.ellipse([left, 110, left + 20, 130], fill=(0, 0, 0))
    pen.arc([110, 170, 190, 220], 0, 180, fill=(130, 60, 50), width=5)
    return image


def _mountain() -> Image.Image:
    image = _plain((60, 120, 220))
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, 180, _SIZE, _SIZE], fill=(60, 140, 50))
    pen.polygon([(60, 180), (130, 60), (200, 180)], fill=(110, 100, 90))
    return image


def _parts(whole: Image.Image) -> list[Image.Image]:
    width, height = whole.width // 2, whole.height // 2
    corners = [(x, y) for x in (0, width) for y in (0, height)]
    return [whole, *(whole.crop((x, y, x + width, y + height)) for x, y in corners)]
