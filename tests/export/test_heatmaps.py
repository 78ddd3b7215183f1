"""The heat map: its numbers add up, and the image shows what it should."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from open_geoclip.errors import SettingsError
from open_geoclip.export.heatmaps import draw_posterior, near_density, world_density
from open_geoclip.geo.sphere import even_points, haversine_km
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.mixture import Mixture
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.regions import REGION_LEVELS


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    ground = GalleryCells.from_gallery(Gallery.from_coordinates(even_points(8000)))
    km = haversine_km(ground.coordinates.astype(np.float64), np.array([[-20.0, 179.5]]))
    log_mass = torch.from_numpy(-((km / 300) ** 2) / 2)[None]
    return Posterior.from_log_mass(log_mass, ground, Calibration(1.0, 0.0, 10.0, "a test", 1))


def test_cells_of_the_world_add_up(posterior: Posterior) -> None:
    density = world_density(posterior, 0, width=700)
    inside = np.isfinite(density)
    area_km2 = 4 * np.pi * 6371.0088**2 / inside.sum()  # the gallery covers the whole Earth
    assert density[inside].sum() * area_km2 == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("lat", [-90.0, -75.0, 0.0, 85.0, 90.0])
def test_a_single_small_cell_has_a_pixel(lat: float) -> None:
    cells = GalleryCells.from_gallery(Gallery.from_coordinates(np.array([[lat, 180.0]])))
    posterior = Posterior(replace(cells, area_km2=np.array([0.5])), torch.ones(1, 1), Calibration())
    assert np.nanmax(world_density(posterior, 0)) == 2.0


def test_the_surroundings_add_up_across_the_180th_meridian(posterior: Posterior) -> None:
    density = near_density(posterior, 0, np.array([-20.0, 179.5]), 1500.0)
    area_km2 = (3000 / len(density)) ** 2
    assert density.sum() * area_km2 == pytest.approx(1, abs=0.02)
    half, most = Mixture.from_posterior(posterior).hpd_density(REGION_LEVELS)
    assert half > most > 0
    for level, share in ((half, 0.5), (most, 0.9)):
        assert density[density >= level].sum() * area_km2 == pytest.approx(share, abs=0.02)


def test_it_is_drawn_with_and_without_image_and_truth(posterior: Posterior, tmp_path: Path) -> None:
    draw_posterior(tmp_path / "text.png", posterior, name="an island")
    draw_posterior(
        tmp_path / "picture.png",
        posterior,
        name="a picture",
        candidates=np.array([[-20.0, 179.5], [10.0, 10.0]]),
        truth=(-21.0, -179.0),
        image=Image.new("RGB", (300, 200), "navy"),
        lines=("sure",),
    )
    for file in ("text.png", "picture.png"):
        with Image.open(tmp_path / file) as picture:
            assert picture.width > 1500
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        red = (pixels[..., 0] > 150) & (pixels[..., 1] < 60)
        assert red.mean() > 0.005
    with pytest.raises(SettingsError, match=r"\.png"):
        draw_posterior(tmp_path / "map.jpg", posterior)
    with pytest.raises(SettingsError, match="row"):
        draw_posterior(tmp_path / "map.png", posterior, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["picture.png", "text.png"]
