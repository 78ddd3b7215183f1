"""The paper's augmentations: their distributions, their pixels, and that they can be repeated."""

import colorsys
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from open_geoclip.data.augmentation import Augmentation, _adjust_colors, _shift_hue
from open_geoclip.errors import SettingsError

PLAIN: dict[str, Any] = {"flip": 0.0, "jitter": 0.0, "grey": 0.0}
WHOLE: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}


def one_colour(*rgb: int) -> Image.Image:
    return Image.new("RGB", (16, 16), rgb)


def test_a_view_is_the_same_whoever_makes_it(picture: Any) -> None:
    image = picture(0, (90, 60))
    view = Augmentation(size=32)(image, "a", 3)
    assert view.tobytes() == Augmentation(size=32)(image.copy(), "a", 3).tobytes()
    assert view.tobytes() == Augmentation(size=32).array(np.asarray(image), "a", 3).tobytes()
    for other in (
        Augmentation(size=32)(image, "a", 4),
        Augmentation(size=32)(image, "b", 3),
        Augmentation(size=32, seed=1)(image, "a", 3),
    ):
        assert view.tobytes() != other.tobytes()
    assert view.size == (32, 32)


def test_the_random_numbers_are_these_on_each_machine() -> None:
    found = [Augmentation().crop((640, 480), Augmentation().generator(f"photo {i}", i)) for i in range(3)]
    assert found == GOLDEN


GOLDEN = [(11, 16, 522, 462), (142, 113, 314, 314), (236, 126, 381, 312)]


@settings(max_examples=60)
@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 2**31))
def test_a_crop_lies_in_the_image_with_the_area_and_shape_asked_for(width: int, height: int, seed: int) -> None:
    augment = Augmentation()
    left, top, w, h = augment.crop((width, height), np.random.default_rng(seed))
    assert 0 <= left <= width - w
    assert 0 <= top <= height - h
    assert w >= 1
    assert h >= 1
    if min(width, height) > 100 and 3 / 4 < width / height < 4 / 3:
        assert 0.07 < w * h / (width * height) <= 1.01
        assert 0.70 < w / h < 1.43


def test_crops_are_drawn_as_the_reference_draws_them() -> None:
    augment, rng = Augmentation(), np.random.default_rng(0)
    crops = np.array([augment.crop((1000, 1000), rng) for _ in range(4000)], np.float64)
    area, shape = crops[:, 2] * crops[:, 3] / 1e6, np.log(crops[:, 2] / crops[:, 3])
    # The shape's logarithm is even between log 3/4 and log 4/3, for areas that fit whatever the shape.
    inner = shape[area < 0.7]
    assert abs(inner.mean()) < 0.015
    assert inner.std() == pytest.approx(math.log(16 / 9) / math.sqrt(12), rel=0.03)
    # The area's share is even from 0.08 on: a quarter of the way to 0.7 comes as often as the next.
    counts = np.histogram(area, bins=[0.08, 0.235, 0.39, 0.545, 0.70])[0]
    assert counts.std() < 3 * math.sqrt(counts.mean())
    assert area.min() == pytest.approx(0.08, abs=0.005)
    # And it lies anywhere it can.
    free = crops[:, 2] < 900
    assert (crops[free, 0] / (1000 - crops[free, 2])).mean() == pytest.approx(0.5, abs=0.02)


def test_images_too_long_are_cut_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    whole = Augmentation(scale=(1.0, 1.0))
    assert whole.crop((400, 40), rng) == (173, 0, 53, 40)
    assert whole.crop((40, 400), rng) == (0, 173, 40, 53)
    assert whole.crop((1, 1), rng) == (0, 0, 1, 1)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_pixels_are_those_of_a_crop_that_is_resized(picture: Any, resample: str) -> None:
    image = picture(1, (120, 80))
    augment = Augmentation(size=24, resample=resample, **PLAIN)
    left, top, width, height = augment.crop(image.size, augment.generator("a", 0))
    cut = Image.fromarray(np.asarray(image)[top : top + height, left : left + width])
    expected = cut.resize((24, 24), Image.Resampling[resample.upper()])
    assert augment(image, "a").tobytes() == expected.tobytes()
    mirrored = Augmentation(size=24, resample=resample, flip=1.0, jitter=0.0, grey=0.0)(image, "a")
    np.testing.assert_array_equal(np.asarray(mirrored), np.asarray(expected)[:, ::-1])


def test_flip_jitter_and_grey_come_as_often_as_asked() -> None:
    image = Image.fromarray(
        np.tile(np.arange(0, 240, 15, dtype=np.uint8)[None, :, None], (16, 1, 3)) // np.array([1, 2, 3], np.uint8)
    )
    flipped = coloured = grey = 0
    for i in range(800):
        plain = np.asarray(Augmentation(size=16, **WHOLE)(image, str(i))).astype(int)
        flipped += plain[0, 0].sum() > plain[0, -1].sum()
        is_grey = np.ptp(plain, axis=2).max() == 0
        grey += is_grey
        middle = plain if plain[0, 0].sum() <= plain[0, -1].sum() else plain[:, ::-1]
        coloured += not is_grey and np.abs(middle - np.asarray(image)).max() > 1
    assert flipped / 800 == pytest.approx(0.5, abs=0.06)
    assert grey / 800 == pytest.approx(0.2, abs=0.05)
    assert coloured / (800 - grey) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_each_change_of_colour_by_hand(factor: float, picture: Any) -> None:
    image = picture(2, (16, 16))
    pixels = np.asarray(image).astype(np.float64)
    grey = np.asarray(image.convert("L")).astype(np.float64)[..., None]
    by_hand = {
        "brightness": factor * pixels,
        "contrast": factor * pixels + (1 - factor) * int(grey.mean() + 0.5),
        "saturation": factor * pixels + (1 - factor) * grey,
    }

    for at, (name, expected) in enumerate(by_hand.items()):
        found = np.asarray(_adjust_colors(image, factor, factor, factor, 0.0, order=[at])).astype(np.float64)
        assert np.abs(found - expected.clip(0, 255)).max() <= 1 + 1e-9, (
            name
        )  # one, because Pillow cuts where we do not round
    orders = {_adjust_colors(image, 0.6, 1.4, 0.6, 0.1, order).tobytes() for order in ([0, 1, 2, 3], [3, 2, 1, 0])}
    assert len(orders) == 2


@pytest.mark.parametrize("turns", [-0.1, -0.03, 0.0, 0.05, 0.1])
@pytest.mark.parametrize("rgb", [(200, 40, 40), (30, 180, 90), (70, 60, 220), (128, 128, 128)])
def test_hue_turns_by_what_is_asked(turns: float, rgb: tuple[int, int, int]) -> None:
    found = np.asarray(_shift_hue(one_colour(*rgb), turns))[0, 0] / 255
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    expected = colorsys.hsv_to_rgb((hue + int(turns * 255) / 255) % 1, saturation, value)
    assert found == pytest.approx(expected, abs=0.03)


def test_grey_is_luminance() -> None:
    view = Augmentation(size=8, jitter=0.0, grey=1.0)(one_colour(200, 100, 50), "a")
    assert np.asarray(view)[0, 0].tolist() == [124, 124, 124]  # 0.299 r + 0.587 g + 0.114 b


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 1.5)},
        {"ratio": (2.0, 1.0)},
        {"flip": 1.5},
        {"hue": 0.6},
        {"resample": "lanczos"},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Augmentation(**wrong)
