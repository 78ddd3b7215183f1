"""Earth views: a data set of rendered images of the Earth from orbit, without a download.

A view has a random centre on land, width, turn and light, and is rendered by :class:`~open_geoclip.data.earth.Earth`.
Views of a split are the same on each machine.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.spatial import cKDTree

from open_geoclip.data.earth import Earth, Light, is_land
from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, even_points, unit_vectors

__all__ = [
    "SEEDS",
    "SPLITS",
    "Split",
    "ViewBatch",
    "even_land",
    "near_any",
    "sample_cameras",
    "view_centres",
    "views",
]

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_BLOCK = 1024  # views are drawn in blocks: view i of a split is the same however many are asked for
_WIDTH_KM = (300.0, 1500.0)
_TURN_DEG = 10.0
_LAT_RANGE = (-60.0, 75.0)
_HELD_OUT = 4096  # the size of the validation and of the test split
_APART_KM = 10.0  # no centre of one split is nearer than this to a centre of another
SEEDS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class ViewBatch:
    """Views and where they are."""

    images: UInt8[np.ndarray, "n size size 3"]
    coordinates: Float[np.ndarray, "n 2"]
    width_km: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.coordinates)


def _drawn_centres(generator: np.random.Generator) -> Iterator[Float[np.ndarray, "m 2"]]:
    """Yield centres on land, even over the sphere, without end."""
    low, high = np.sin(np.deg2rad(_LAT_RANGE))
    while True:
        lat = np.rad2deg(np.arcsin(generator.uniform(low, high, _BLOCK)))
        points = np.stack([lat, generator.uniform(-180, 180, _BLOCK)], axis=1)
        yield points[is_land(points)]


def near_any(points: Float[np.ndarray, "n 2"], others: Float[np.ndarray, "m 2"]) -> Bool[np.ndarray, " n"]:
    """Return which points lie within 10 km of any of the others, too near for another side of a split."""
    if len(others) == 0:
        return np.zeros(len(points), bool)
    chord, _ = cKDTree(unit_vectors(others)).query(unit_vectors(points))
    return np.asarray(chord < 2 * np.sin(_APART_KM / EARTH_RADIUS_KM / 2))


def view_centres(split: Split, n: int | None = None) -> Float[np.ndarray, "n 2"]:
    """Return the centres of the first n views of a split, (lat, lon) in degrees.

    They are on land (no lakes, no Antarctica), even over the sphere between 60 S and 75 N, and at least 10 km from each
    centre of the splits before it in the order test, validation, train.

    Args:
        split: ``train``, ``validation`` or ``test``.
        n: at most 4,096 for validation and test, which is their default; default of train: 64,000.

    Raises:
        SettingsError: the split does not exist or is smaller than n.
    """
    if split not in SPLITS:
        raise SettingsError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    n = (64_000 if split == "train" else _HELD_OUT) if n is None else n
    if split != "train" and n > _HELD_OUT:
        raise SettingsError(f"the {split} split has {_HELD_OUT} views, not {n}")
    taken = [view_centres("test")] if split != "test" else []
    if split == "train":
        taken.append(view_centres("validation"))
    others = np.concatenate([*taken, np.empty((0, 2))])
    found: list[Float[np.ndarray, "m 2"]] = []
    count = 0
    for points in _drawn_centres(np.random.default_rng([SEEDS[split], 0])):
        if count >= n:
            break
        found.append(points[~near_any(points, others)])
        count += len(found[-1])
    return np.concatenate([*found, np.empty((0, 2))])[:n]


def even_land(spacing_km: float, lat_range: tuple[float, float] = _LAT_RANGE) -> Float[np.ndarray, "n 2"]:
    """Return points on land, even over the sphere, about ``spacing_km`` apart: a gallery for Earth views.

    Raises:
        MissingExtraError: the extra ``earth`` is not installed.
    """
    low, high = np.sin(np.deg2rad(lat_range))
    area = 2 * np.pi * EARTH_RADIUS_KM**2 * (high - low)
    points = even_points(round(area / spacing_km**2), *lat_range)
    return points[is_land(points)]


def views(
    split: Split,
    n: int | None = None,
    *,
    earth: Earth | None = None,
    batch_size: int = 256,
    start: int = 0,
) -> Iterator[ViewBatch]:
    """Yield the views of a split in batches.

    Args:
        split: ``train``, ``validation`` or ``test``.
        n: see :func:`view_centres`.
        earth: default: NASA's Blue Marble.
        batch_size: views per batch.
        start: the first view, to resume; a multiple of the batch size.

    Raises:
        SettingsError: see :func:`view_centres`.
        MissingExtraError: the extra ``earth`` is not installed.
    """
    earth = Earth() if earth is None else earth
    centres = view_centres(split, n)
    for first in range(start, len(centres), batch_size):
        last = min(first + batch_size, len(centres))
        width, turn, light = sample_cameras(split, first, last)
        images = earth.render(centres[first:last], width, turn, light)
        yield ViewBatch(images, centres[first:last], width)


def sample_cameras(
    split: Split, first: int, last: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Light]:
    """Return width in km, turn in degrees and light of the views from ``first`` to before ``last``."""
    widths, turns, lights = [], [], []
    for block in range(first // _BLOCK, (last - 1) // _BLOCK + 1):
        generator = np.random.default_rng([SEEDS[split], 1, block])
        widths.append(generator.uniform(*_WIDTH_KM, _BLOCK))
        turns.append(generator.uniform(-_TURN_DEG, _TURN_DEG, _BLOCK))
        lights.append(Light.sample(_BLOCK, generator))
    rows = slice(first % _BLOCK, first % _BLOCK + last - first)
    light = Light(*(np.concatenate(parts)[rows] for parts in zip(*map(astuple, lights), strict=True)))
    return np.concatenate(widths)[rows], np.concatenate(turns)[rows], light
