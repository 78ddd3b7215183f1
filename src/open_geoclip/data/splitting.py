"""Split photos into training, validation and test sets without a place or a group on two sides.

By default whole clusters are assigned: photos of one group, or within the buffer of each other, are connected. No photo
is lost, but in a dense region one cluster may have half of the photos. With ``leave_out`` squares of the Earth are
assigned, and photos are left out that are near to, or share a group with, a photo of a smaller side.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from open_geoclip.data.photos import OnSkip, PhotoSource, SkippedRecord
from open_geoclip.data.shards import TarPhotos
from open_geoclip.data.tables import format_csv
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, unit_vectors

__all__ = ["SplitReport", "SplitSettings", "clusters", "split", "write_splits"]

_LEAST_BUFFER_KM = 0.02  # so that a cell's three numbers fit into 63 bits


def _default_shares() -> dict[str, float]:
    return {"train": 0.8, "validation": 0.1, "test": 0.1}


@dataclass(frozen=True)
class SplitSettings:
    """How photos are split.

    Attributes:
        shares: of each side, by name; they need not add up to 1.
        buffer_km: least distance of photos on two sides; 0 keeps only equal coordinates together.
        groups: keep the photos of a group on one side.
        leave_out: split by squares; see the top of this module.
        square_km: approximate side of the squares.
        seed: of random numbers.

    Raises:
        SettingsError: a value is out of range.
    """

    shares: Mapping[str, float] = field(default_factory=_default_shares)
    buffer_km: float = 1.0
    groups: bool = True
    leave_out: bool = False
    square_km: float = 50.0
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.shares) < 2 or not all(share > 0 for share in self.shares.values()):
            raise SettingsError(f"shares: two sides or more, each above 0, not {dict(self.shares)}")
        if self.buffer_km != 0 and not _LEAST_BUFFER_KM <= self.buffer_km <= 1000:
            raise SettingsError(f"buffer_km: 0, or {_LEAST_BUFFER_KM} to 1000 km, not {self.buffer_km}")
        if not 1 <= self.square_km <= 5000:
            raise SettingsError(f"square_km: 1 to 5000 km, not {self.square_km}")


def split(
    coordinates: Float64[np.ndarray, "n 2"], groups: Sequence[str | None], settings: SplitSettings
) -> Int64[np.ndarray, " n"]:
    """Return the side of each photo: 0, 1, 2... in the order of the shares, -1 if it is left out.

    Args:
        coordinates: (lat, lon) in degrees.
        groups: of each photo, or None.
        settings: of the split.

    Raises:
        DataError: a side is empty.
    """
    groups = groups if settings.groups else [None] * len(coordinates)
    if settings.leave_out:
        units = _squares(coordinates, settings.square_km)
    else:
        units = clusters(coordinates, groups, settings.buffer_km)
    sides = _assign(units, settings)
    if settings.leave_out:
        _leave_out(sides, coordinates, _group_codes(groups), settings)
    empty = [name for side, name in enumerate(settings.shares) if not np.any(sides == side)]
    if empty:
        largest = int(np.bincount(units).max()) if len(units) else 0
        raise DataError(
            f"no photo is left for {' and '.join(empty)}: {len(coordinates):,} photos hang together in "
            f"{len(np.unique(units)):,} clusters, the largest of {largest:,}; take a smaller buffer, ignore the "
            "groups, or leave out what lies between (--leave-out)"
        )
    return sides


def _group_codes(groups: Sequence[str | None]) -> Int64[np.ndarray, " n"]:
    """A number for each group, -1 for none."""
    numbers: dict[str, int] = {}
    return np.array([-1 if group is None else numbers.setdefault(group, len(numbers)) for group in groups], np.int64)


# --- clusters -------------------------------------------------------------------------------------


class _Union:
    """Disjoint sets with path halving."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def find(self, a: int) -> int:
        parent = self.parent
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        return a

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parent[max(a, b)] = min(a, b)


def clusters(
    coordinates: Float64[np.ndarray, "n 2"], groups: Sequence[str | None], buffer_km: float
) -> Int64[np.ndarray, " n"]:
    """Return the connected components of photos that are of one group or within the buffer of each other, from 0.

    Points are put into cubes whose diagonal is the buffer, so that those of one cube are connected without comparing
    them; cubes are compared if they are in reach of each other and not connected yet.

    Args:
        coordinates: (lat, lon) in degrees.
        groups: of each photo, or None.
        buffer_km: largest distance of connected photos.
    """
    union, codes = _Union(len(coordinates)), _group_codes(groups)
    cells = _Cells(coordinates, buffer_km)
    for rows in cells.rows:
        for row in rows[1:].tolist():
            union.join(int(rows[0]), row)
    order = np.argsort(codes, kind="stable")
    same = (codes[order][1:] == codes[order][:-1]) & (codes[order][1:] >= 0)
    for a, b in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
        union.join(a, b)
    for a, b in cells.neighbours():
        first, second = cells.rows[a], cells.rows[b]
        if union.find(int(first[0])) != union.find(int(second[0])) and cells.near(first, second).any():
            union.join(int(first[0]), int(second[0]))
    roots = np.array([union.find(row) for row in range(len(coordinates))], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


class _Cells:
    """Points in cubes whose diagonal is a distance."""

    def __init__(self, coordinates: Float64[np.ndarray, "n 2"], distance_km: float) -> None:
        self.points = unit_vectors(np.ascontiguousarray(coordinates))
        # A little more than the distance, so that rounding errs towards the safe side.
        self.chord = 2 * np.sin(min(distance_km / EARTH_RADIUS_KM / 2, np.pi / 2)) * (1 + 1e-9) + 1e-12
        if distance_km == 0:
            # Rounded to 6 micrometres, so that -180 and 180 degrees, and all longitudes of a pole, are one.
            keys = np.unique(self.points.round(12) + 0.0, axis=0, return_inverse=True)[1].ravel()
            self.corners: Int64[np.ndarray, "m 3"] | None = None
        else:
            side = self.chord / np.sqrt(3)
            self.width = int(2.1 / side) + 6
            corners = np.floor(self.points / side).astype(np.int64) + self.width // 2
            keys = self._key(corners)
        order = np.argsort(keys, kind="stable")
        self.keys, starts = np.unique(keys[order], return_index=True)
        self.rows = np.split(order, starts[1:])
        if distance_km > 0:
            self.corners = corners[order[starts]]

    def _key(self, corners: Int64[np.ndarray, "m 3"]) -> Int64[np.ndarray, " m"]:
        return (corners[:, 0] * self.width + corners[:, 1]) * self.width + corners[:, 2]

    def neighbours(self) -> Iterator[tuple[int, int]]:
        """Yield each pair of cells that may have points in reach of each other."""
        if self.corners is None:
            return
        steps = [(x, y, z) for x in range(-2, 3) for y in range(-2, 3) for z in range(-2, 3)]
        for step in steps[: len(steps) // 2]:  # the other half are the same pairs the other way around
            keys = self._key(self.corners + np.array(step, np.int64))
            at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
            found = np.flatnonzero(self.keys[at] == keys)
            yield from zip(found.tolist(), at[found].tolist(), strict=True)

    def near(self, first: Int64[np.ndarray, " a"], second: Int64[np.ndarray, " b"]) -> np.ndarray:
        """Return which of the first points have one of the second in reach."""
        out = np.zeros(len(first), bool)
        step = max(1, 2**20 // len(second))
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            gaps = self.points[first[part], None] - self.points[None, second]
            out[part] = ((gaps**2).sum(axis=2) <= self.chord**2).any(axis=1)
        return out


# --- sides ----------------------------------------------------------------------------------------


def _squares(coordinates: Float64[np.ndarray, "n 2"], square_km: float) -> Int64[np.ndarray, " n"]:
    """Number the squares that photos lie in: rows of latitude, cut into parts of about equal width."""
    height = np.rad2deg(square_km / EARTH_RADIUS_KM)
    row = np.floor((coordinates[:, 0] + 90) / height).astype(np.int64)
    middle = np.deg2rad((row + 0.5) * height - 90)
    across = np.maximum(1, np.round(360 * np.cos(middle).clip(0) / height)).astype(np.int64)
    column = np.floor((coordinates[:, 1] + 180) % 360 / 360 * across).astype(np.int64)
    return np.unique(np.stack([row, column]), axis=1, return_inverse=True)[1].ravel().astype(np.int64)


def _assign(units: Int64[np.ndarray, " n"], settings: SplitSettings) -> Int64[np.ndarray, " n"]:
    """Assign units to sides in random order, each to a side with room, drawn by how much it lacks."""
    rng = np.random.default_rng(settings.seed)
    shares = np.array(list(settings.shares.values()), np.float64)
    lacking = shares / shares.sum() * len(units)
    sizes = np.bincount(units) if len(units) else np.empty(0, np.int64)
    side_of = np.empty(len(sizes), np.int64)
    for unit in rng.permutation(len(sizes)):
        size = sizes[unit]
        room = np.where(lacking >= size - 0.5, lacking.clip(0), 0)
        side = int(rng.choice(len(room), p=room / room.sum())) if room.sum() > 0 else int(lacking.argmax())
        side_of[unit] = side
        lacking[side] -= size
    return side_of[units] if len(units) else units


def _leave_out(
    sides: Int64[np.ndarray, " n"],
    coordinates: Float64[np.ndarray, "n 2"],
    codes: Int64[np.ndarray, " n"],
    settings: SplitSettings,
) -> None:
    """Set photos of larger sides to -1 that are near to, or share a group with, one of a smaller side."""
    by_share = sorted(range(len(settings.shares)), key=lambda side: -list(settings.shares.values())[side])
    cells = _Cells(coordinates, settings.buffer_km)
    pairs = [(cell, cell) for cell in range(len(cells.rows))] + list(cells.neighbours())
    for number, side in enumerate(by_share):
        smaller = np.isin(sides, by_share[number + 1 :])
        shared = np.isin(codes, codes[smaller & (codes >= 0)])
        sides[(sides == side) & shared & (codes >= 0)] = -1
        mine = sides == side
        for one, other in pairs:
            for a, b in ((one, other), (other, one)) if one != other else ((one, one),):
                rows, others = cells.rows[a], cells.rows[b]
                rows, others = rows[mine[rows]], others[smaller[others]]
                if len(rows) and len(others):
                    near = cells.near(rows, others) if cells.corners is not None else np.ones(len(rows), bool)
                    sides[rows[near]] = -1


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitReport:
    """What was written: table and number of photos of each side, photos between the sides, unusable entries."""

    files: dict[str, Path]
    counts: dict[str, int]
    left_out: int
    unusable: int


def write_splits(
    source: PhotoSource, folder: Path, settings: SplitSettings, *, on_skip: OnSkip | None = None
) -> SplitReport:
    """Write a table (IMG_ID, IMG_FILE, LAT, LON, GROUP) of each side: ``train.csv``, ``validation.csv``...

    File names are relative to ``folder``. Photos in shards are named by their key; the table is then opened with
    ``images=`` the shards.

    Args:
        source: photos in files or in shards.
        folder: is created.
        settings: of the split.
        on_skip: called with each entry that cannot be used.

    Raises:
        DataError: no photo is usable, a side is empty, the photos are neither in files nor in shards, or the folder
            cannot be written.
    """
    rows: list[tuple[str, str, float, float, str | None]] = []
    unusable = 0
    for entry in source.entries():
        if isinstance(entry, SkippedRecord):
            unusable += 1
            if on_skip is not None:
                on_skip(entry)
            continue
        if isinstance(entry.image, (str, Path)):
            remote = "://" in str(entry.image)
            file = str(entry.image) if remote else Path(os.path.relpath(entry.image, folder)).as_posix()
        elif isinstance(source, TarPhotos):
            file = entry.key
        else:
            raise DataError(f"{source.name}: its photos are no files that a table could name; pack them first")
        rows.append((entry.key, file, entry.lat, entry.lon, entry.group))
    if not rows:
        raise DataError(f"{source.name}: it holds no photo that can be used")
    places = np.array([(lat, lon) for _, _, lat, lon, _ in rows], np.float64)
    sides = split(places, [group for *_, group in rows], settings)
    files, counts = {}, {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for side, name in enumerate(settings.shares):
            chosen = np.flatnonzero(sides == side).tolist()
            files[name], counts[name] = folder / f"{name}.csv", len(chosen)
            text = format_csv(("IMG_ID", "IMG_FILE", "LAT", "LON", "GROUP"), (rows[row] for row in chosen))
            atomic_write(files[name], text)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}") from error
    return SplitReport(files, counts, int((sides < 0).sum()), unusable)
