"""Weather, seasons and other cameras for Earth views: changes of an image that keep the place.

A model that is trained on one image of the Earth learns its colours and fails on another one. Here the sea and the
land change colour, snow and clouds are added, and resolution is reduced. Shorelines, relief and the pattern of dry and
green land stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from open_geoclip.data.earth import BASEMAPS, Basemap, Earth, Effect
from open_geoclip.data.earth_views import SEEDS, Split, ViewBatch, sample_cameras, view_centres

__all__ = ["Weather", "apply_weather", "smooth_noise", "varied_basemaps", "varied_views"]

_BASEMAP_SHARES = (0.7, 0.15, 0.15)  # of BASEMAPS
_FAIR = 0.5  # share of the views of the Blue Marble that stay as they are

_SNOW = (0.93, 0.95, 0.98)
_CLOUD = (0.95, 0.95, 0.96)
_SNOW_EDGE_DEG = 4.0  # over which snow sets in
_FINEST_KM, _COARSEST_KM = 8.0, 28.0  # on the ground, a pixel of the poorer cameras


@dataclass(frozen=True)
class Weather:
    """Weather of n views: one row per view, 0 where nothing changes."""

    sea: Float[np.ndarray, "n 4"]  # a colour for the sea, and its share
    land: Float[np.ndarray, "n 3 3"]  # what the land's colours are multiplied with
    snow: Float[np.ndarray, "n 2"]  # latitude in degrees (south: negative) from which it lies, and how thick
    cloud: Float[np.ndarray, "n 2"]  # share of the sky, and how thick
    coarse_km: Float[np.ndarray, " n"]  # size of a pixel on the ground
    seed: Float[np.ndarray, " n"]  # of the shapes of clouds and snow

    @staticmethod
    def sample(n: int, generator: np.random.Generator) -> "Weather":
        """Draw the weather of n views; each effect is applied to some of them."""

        def uniform(low: float, high: float, *shape: int) -> Float[np.ndarray, "..."]:
            return generator.uniform(low, high, shape)

        def happens(share: float) -> Float[np.ndarray, " n"]:
            return (generator.random(n) < share).astype(np.float64)

        dark = uniform(0, 0.25, n, 1)
        water = dark + uniform(0, 1, n, 1) * np.stack(
            [uniform(0, 0.45, n), uniform(0.05, 0.65, n), uniform(0.2, 0.85, n)], axis=1
        )
        turned = np.eye(3) + generator.normal(0, 0.1, (n, 3, 3)) * happens(0.6)[:, None, None]
        grey = happens(0.1)[:, None, None]
        north = np.where(happens(0.75), 1, -1)
        return Weather(
            sea=np.concatenate([water, (happens(0.5) * uniform(0.5, 1, n))[:, None]], axis=1).astype(np.float32),
            land=((1 - grey) * turned + grey * np.array([0.3, 0.59, 0.11])).astype(np.float32),
            snow=np.stack([north * uniform(25, 75, n), happens(0.3) * uniform(0.5, 0.95, n)], axis=1).astype(
                np.float32
            ),
            cloud=np.stack([uniform(0.05, 0.35, n), happens(0.15) * uniform(0.3, 0.9, n)], axis=1).astype(np.float32),
            coarse_km=(happens(0.4) * uniform(_FINEST_KM, _COARSEST_KM, n)).astype(np.float32),
            seed=generator.integers(0, 2**31, n).astype(np.float64),
        )

    @staticmethod
    def concatenate(parts: "list[Weather]") -> "Weather":
        """Concatenate along the views."""
        names = [field.name for field in fields(Weather)]
        return Weather(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __getitem__(self, rows: "slice | np.ndarray") -> "Weather":
        return Weather(*(getattr(self, field.name)[rows] for field in fields(self)))


def apply_weather(
    colours: Float[Tensor, "n 3 h w"],
    land: Float[Tensor, "n h w"],
    lat_deg: Float[Tensor, "n h w"],
    width_km: Float[np.ndarray, " n"],
    weather: Weather,
) -> Float[Tensor, "n 3 h w"]:
    """Apply weather to views.

    Args:
        colours: from 0 to 255.
        land: how much of each pixel is land, from 0 to 1.
        lat_deg: latitude of each pixel.
        width_km: width of each view on the ground.
        weather: see :class:`Weather`.
    """
    n, _, height, width = colours.shape

    def row(values: Float[np.ndarray, "..."], *shape: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).view(*shape)

    dry = land[:, None]
    turned = torch.einsum("nij,njhw->nihw", row(weather.land, n, 3, 3), colours).clamp_(0, 255)
    water = torch.lerp(colours, 255 * row(weather.sea[:, :3], n, 3, 1, 1), row(weather.sea[:, 3], n, 1, 1, 1))
    x = torch.lerp(water, turned, dry)
    for i in range(n):
        generator = torch.Generator().manual_seed(int(weather.seed[i]))
        line, thick = weather.snow[i]
        if thick > 0:
            beyond = (lat_deg[i] - line) if line > 0 else (line - lat_deg[i])
            cover = torch.sigmoid((beyond + 8 * smooth_noise(height, width, generator)) / _SNOW_EDGE_DEG)
            x[i] = torch.lerp(x[i], _colour(_SNOW), thick * cover * land[i])
        share, thick = weather.cloud[i]
        if thick > 0:
            field = smooth_noise(height, width, generator)
            edge = torch.quantile(field[::8, ::8], 1 - float(share))
            x[i] = torch.lerp(x[i], _colour(_CLOUD), thick * torch.sigmoid(6 * (field - edge)))
        if weather.coarse_km[i] > 0:
            side = max(8, round(float(width_km[i] / weather.coarse_km[i])))
            if side < width:
                small = F.interpolate(x[i : i + 1], (side, side), mode="area")
                x[i : i + 1] = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
    return x


def _colour(values: tuple[float, float, float]) -> Float[Tensor, "3 1 1"]:
    return 255 * torch.tensor(values).view(3, 1, 1)


def smooth_noise(height: int, width: int, generator: torch.Generator) -> Float[Tensor, "h w"]:
    """A smooth random field of mean about 0 and deviation about 1, half as strong at each finer scale."""
    total = torch.zeros(1, 1, height, width)
    for octave in range(5):
        grid = torch.randn(1, 1, 3 * 2**octave, 3 * 2**octave, generator=generator)
        total += 0.6**octave * F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
    return total[0, 0] / 1.1


def varied_views(split: Split, n: int, *, batch_size: int = 256, start: int = 0) -> Iterator[ViewBatch]:
    """Render views as :func:`~open_geoclip.data.earth_views.views` does, each of a random basemap, most with weather.

    Args:
        split: ``train``, ``validation`` or ``test``.
        n: where to stop.
        batch_size: views per batch.
        start: the first view.
    """
    earths = [Earth(basemap) for basemap in BASEMAPS]
    centres = view_centres(split, n)
    for first in range(start, n, batch_size):
        last = min(first + batch_size, n)
        width, turn, light = sample_cameras(split, first, last)
        generators = [np.random.default_rng([SEEDS[split], 2, row]) for row in range(first, last)]
        basemap = np.array([_draw_basemap(generator) for generator in generators])
        fair = np.array([generator.random() < _FAIR for generator in generators]) & (basemap == 0)
        weather = Weather.concatenate([Weather.sample(1, generator) for generator in generators])
        images = np.empty((last - first, 224, 224, 3), np.uint8)
        for number, earth in enumerate(earths):
            for rows in (np.flatnonzero((basemap == number) & fair), np.flatnonzero((basemap == number) & ~fair)):
                if len(rows):
                    effect = None if fair[rows[0]] else _effect(weather[rows], width[rows])
                    camera = (centres[first:last][rows], width[rows], turn[rows], light[rows])
                    images[rows] = earth.render(*camera, effect=effect)
        yield ViewBatch(images, centres[first:last], width)


def varied_basemaps(split: Split, n: int) -> list[Basemap]:
    """Return which basemap each of the first n varied views is of."""
    return [BASEMAPS[_draw_basemap(np.random.default_rng([SEEDS[split], 2, row]))] for row in range(n)]


def _draw_basemap(generator: np.random.Generator) -> int:
    """Draw the number of the basemap of a view: the first draw of its generator."""
    return int(generator.choice(len(BASEMAPS), p=_BASEMAP_SHARES))


def _effect(weather: Weather, width_km: Float[np.ndarray, " n"]) -> Effect:
    """Return the effect that applies the weather of some views."""
    return lambda colours, land, lat_deg, rows: apply_weather(colours, land, lat_deg, width_km[rows], weather[rows])
