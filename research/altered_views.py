"""Earth views that differ as the world does from what a model was trained on: other seasons, cameras and files.

A calibration that is fitted on views like those of training claims too much where the world differs. These views are to
fit it on, never to train on: effects that training does not have (:mod:`research.weather` has others) are drawn at
random for each view, on places and with cameras of the split, as image corruptions are drawn to test robustness
(Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", 2019).
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from open_geoclip.data.earth import Basemap, Earth, Effect
from open_geoclip.data.earth_views import SEEDS, Split, ViewBatch, sample_cameras, view_centres
from research.weather import Weather, apply_weather, smooth_noise

__all__ = ["Alteration", "altered_views", "apply_alteration", "sample_alterations"]

_SHARE = 0.4  # of the views that have each effect
_FINEST_KM, _COARSEST_KM = 10.0, 30.0  # on the ground, a pixel of a coarse map
_SEASON = 0.12  # deviation of what the land's colours are multiplied with
_HAZE = (0.85, 0.87, 0.9)


@dataclass(frozen=True)
class Alteration:
    """The effects on one view; the defaults change nothing.

    Attributes:
        season: matrices that the colours of the land are multiplied with in two kinds of places.
        contrast: factor of the differences from the mean of the view.
        haze: share of white, from the first row of the image to the last.
        noise: standard deviation of the noise of each pixel, of 255.
        quality: of the JPEG file that the view is kept in; 0: none.
        seed: of season and noise.
    """

    season: Float[np.ndarray, "2 3 3"] | None = None
    contrast: float = 1.0
    haze: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0
    quality: int = 0
    seed: int = 0

    @staticmethod
    def sample(generator: np.random.Generator) -> "Alteration":
        """Draw the effects on a view: each happens to a share of the views."""
        season = np.eye(3) + generator.normal(0, _SEASON, (2, 3, 3))
        low, high = generator.uniform(0, 0.35, 2)
        contrast = float(np.exp(generator.uniform(-0.5, 0.5)))
        noise, quality = generator.uniform(1, 4), generator.integers(30, 80)
        happens = generator.random(5) < _SHARE
        return Alteration(
            season=season.astype(np.float32) if happens[0] else None,
            contrast=contrast if happens[1] else 1.0,
            haze=(float(low), float(high)) if happens[2] else (0.0, 0.0),
            noise=float(noise) if happens[3] else 0.0,
            quality=int(quality) if happens[4] else 0,
            seed=int(generator.integers(2**31)),
        )


def apply_season(
    colours: Float[Tensor, "3 h w"], land: Float[Tensor, "h w"], alteration: Alteration
) -> Float[Tensor, "3 h w"]:
    """Recolour the land of one view, by places that differ smoothly. Colours are from 0 to 255."""
    if alteration.season is None:
        return colours
    height, width = land.shape
    place = torch.sigmoid(2 * smooth_noise(height, width, torch.Generator().manual_seed(alteration.seed)))
    first, second = torch.einsum("kij,jhw->kihw", torch.from_numpy(alteration.season), colours).clamp_(0, 255)
    return torch.lerp(colours, torch.lerp(first, second, place), land)


def apply_alteration(image: UInt8[np.ndarray, "h w 3"], alteration: Alteration) -> UInt8[np.ndarray, "h w 3"]:
    """Apply contrast, haze, noise and JPEG to one view, in this order."""
    x = image.astype(np.float32)
    mean = x.mean(axis=(0, 1))
    x = mean + alteration.contrast * (x - mean)
    haze = np.linspace(*alteration.haze, len(x), dtype=np.float32)[:, None, None]
    x += haze * (255 * np.array(_HAZE, np.float32) - x)
    x += alteration.noise * np.random.default_rng(alteration.seed).standard_normal(x.shape, np.float32)
    pixels = x.round().clip(0, 255).astype(np.uint8)
    if alteration.quality == 0:
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=alteration.quality)
    with Image.open(file) as kept:
        return np.asarray(kept.convert("RGB"))


def altered_views(
    split: Split, n: int, *, basemap: Basemap = "bluemarble", batch_size: int = 256, start: int = 0
) -> Iterator[ViewBatch]:
    """Render views as :func:`~open_geoclip.data.earth_views.views` does, altered.

    Args:
        split: ``train``, ``validation`` or ``test``.
        n: where to stop.
        basemap: what is rendered.
        batch_size: views per batch.
        start: the first view.
    """
    earth, centres = Earth(basemap), view_centres(split, n)
    for first in range(start, n, batch_size):
        last = min(first + batch_size, n)
        width, turn, light = sample_cameras(split, first, last)
        weather, alterations = sample_alterations(split, first, last)
        effect = _effect(weather, width, alterations)
        images = earth.render(centres[first:last], width, turn, light, effect=effect)
        altered = np.stack([apply_alteration(*one) for one in zip(images, alterations, strict=True)])
        yield ViewBatch(altered, centres[first:last], width)


def sample_alterations(split: Split, first: int, last: int) -> tuple[Weather, list[Alteration]]:
    """Return what happens to the altered views from ``first`` to before ``last``: the same for each basemap."""
    generators = [np.random.default_rng([SEEDS[split], 3, row]) for row in range(first, last)]
    weather = Weather.concatenate([Weather.sample(1, generator) for generator in generators])
    coarse = [float(g.uniform(_FINEST_KM, _COARSEST_KM) * (g.random() < _SHARE)) for g in generators]
    weather = replace(weather, coarse_km=np.array(coarse, np.float32))
    return weather, [Alteration.sample(generator) for generator in generators]


def _effect(weather: Weather, width_km: Float[np.ndarray, " n"], alterations: list[Alteration]) -> Effect:
    """Return the effect that applies season and weather."""

    def effect(
        colours: Float[Tensor, "n 3 h w"], land: Float[Tensor, "n h w"], lat_deg: Float[Tensor, "n h w"], rows: slice
    ) -> Float[Tensor, "n 3 h w"]:
        changed = [apply_season(*one) for one in zip(colours, land, alterations[rows], strict=True)]
        return apply_weather(torch.stack(changed), land, lat_deg, width_km[rows], weather[rows])

    return effect
