"""Galleries: the candidate places of answers.

A gallery is a table of coordinates, read from a file that anybody can make. The same place written twice is
one place with the weight of two, so that nothing is searched twice and nothing is lost.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from open_geoclip.data.columns import LAT_NAMES, LON_NAMES, find_column
from open_geoclip.errors import CoordinateError, GalleryError, MissingExtraError
from open_geoclip.geo.sphere import check_coordinates

__all__ = ["Gallery"]

_WEIGHT_NAMES = ("weight", "count")


@dataclass(frozen=True, eq=False)
class Gallery:
    """Places, each once, with their weights. Make one with :meth:`from_file` or :meth:`from_coordinates`.

    Attributes:
        name: what an answer calls it.
        coordinates: (lat, lon) in degrees, float32, each row different; in the order they first came.
        weights: how often each place stood in the source, or the weights that it gave.
    """

    name: str
    coordinates: Float32[np.ndarray, "n 2"]
    weights: Float32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.coordinates)

    def __repr__(self) -> str:
        return f"Gallery({self.name!r}, {len(self):,} places, fingerprint {self.fingerprint[:12]})"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over coordinates and weights: galleries with the same fingerprint are the same."""
        digest = hashlib.sha256(np.ascontiguousarray(self.coordinates).tobytes())
        digest.update(np.ascontiguousarray(self.weights).tobytes())
        return digest.hexdigest()

    @classmethod
    def from_coordinates(
        cls,
        coordinates: Float[np.ndarray, "n 2"],
        weights: Float[np.ndarray, " n"] | None = None,
        *,
        name: str = "coordinates",
    ) -> "Gallery":
        """A gallery of an array.

        Args:
            coordinates: (lat, lon) in degrees.
            weights: one a row, more than 0; 1 each when not given.
            name: what an answer calls it.

        Raises:
            CoordinateError: a coordinate is not on Earth.
            GalleryError: there is no row, or a weight is not above 0.
        """
        points = np.asarray(check_coordinates(np.asarray(coordinates)), np.float32)
        if len(points) == 0:
            raise GalleryError("a gallery needs at least one coordinate; this one holds none")
        mass = np.ones(len(points)) if weights is None else np.asarray(weights, np.float64)
        if mass.shape != (len(points),) or not np.all(np.isfinite(mass)) or not np.all(mass > 0):
            raise GalleryError(f"weights are one finite number above 0 for each of {len(points):,} rows")
        keys = np.ascontiguousarray(points + np.float32(0)).view(np.int64).ravel()  # + 0 makes -0.0 and 0.0 one
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        total = np.bincount(inverse, weights=mass)
        order = np.argsort(first, kind="stable")
        return cls(name, points[first[order]], total[order].astype(np.float32))

    @classmethod
    def from_file(cls, path: str | Path, *, name: str | None = None) -> "Gallery":
        """Read CSV (columns LAT and LON, or lat/lon, latitude/longitude), GeoJSON points or Parquet.

        A column (or property) ``weight`` or ``count`` is used when it is there.

        Args:
            path: ends in .csv, .geojson, .json or .parquet.
            name: what an answer calls the gallery; the file's name when not given.

        Raises:
            GalleryError: the file cannot be used; says which row and why.
            MissingExtraError: a Parquet file without the extra ``parquet``.
        """
        path = Path(path)
        readers = {
            ".csv": _read_csv,
            ".geojson": _read_geojson,
            ".json": _read_geojson,
            ".parquet": _read_parquet,
        }
        if path.suffix.lower() not in readers:
            raise GalleryError(f"gallery {path}: a file name that ends in {', '.join(readers)} is needed")
        try:
            points, weights = readers[path.suffix.lower()](path)
        except FileNotFoundError as error:
            raise GalleryError(f"gallery {path}: there is no such file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise GalleryError(f"gallery {path}: it cannot be read: {error}") from error
        try:
            return cls.from_coordinates(points, weights, name=path.name if name is None else name)
        except (CoordinateError, GalleryError) as error:
            raise GalleryError(f"gallery {path}: {error}") from error


_Table = tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"] | None]


def _columns(names: Iterable[str], path: Path) -> tuple[str, str, str | None]:
    """The columns that hold latitude, longitude and, perhaps, weight."""
    known = list(names)
    lat, lon = find_column(known, LAT_NAMES), find_column(known, LON_NAMES)
    if not known:
        raise GalleryError(f"gallery {path}: it is empty; a first line that names the columns lat and lon is needed")
    if lat is None or lon is None:
        raise GalleryError(
            f"gallery {path}: no columns for latitude and longitude among {', '.join(known)}; name them lat and lon"
        )
    return lat, lon, find_column(known, _WEIGHT_NAMES)


def _read_csv(path: Path) -> _Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        lat, lon, weight = _columns(reader.fieldnames or (), path)
        rows: list[tuple[float, float, float]] = []
        for row in reader:
            try:
                rows.append((float(row[lat]), float(row[lon]), float(row[weight]) if weight else 1.0))
            except (TypeError, ValueError) as error:
                raise GalleryError(
                    f"gallery {path}, line {reader.line_num}: {row[lat]!r}, {row[lon]!r} are not numbers"
                ) from error
    table = np.array(rows, np.float64).reshape(-1, 3)
    return table[:, :2], table[:, 2] if weight else None


def _points(geometry: Mapping[str, Any], where: str) -> Iterator[list[float]]:
    """The points of a GeoJSON geometry, as (lat, lon); GeoJSON itself writes lon, lat (RFC 7946, 3.1.1)."""
    kind = geometry.get("type")
    if kind not in ("Point", "MultiPoint"):
        raise GalleryError(f"{where}: a gallery is made of points, not of {kind}")
    positions = geometry.get("coordinates")
    for position in [positions] if kind == "Point" else positions or []:
        match position:
            case [int() | float() as lon, int() | float() as lat, *_]:
                yield [lat, lon]
            case _:
                raise GalleryError(f"{where}: {position!r} is not a position [lon, lat]")


def _read_geojson(path: Path) -> _Table:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GalleryError(f"gallery {path}: it is not JSON: {error}") from error
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection":
        features = content.get("features", [])
    else:
        features = [content] if kind == "Feature" else [{"geometry": content, "properties": None}]
    if not isinstance(content, dict) or not isinstance(features, list):
        raise GalleryError(f"gallery {path}: it is JSON, but not GeoJSON")
    points: list[list[float]] = []
    weights: list[float] = []
    for number, feature in enumerate(features):
        where = f"gallery {path}, feature {number}"
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict):
            raise GalleryError(f"{where}: it has no geometry")
        properties = feature.get("properties") or {}
        weight = next((properties[name] for name in _WEIGHT_NAMES if name in properties), 1.0)
        if not isinstance(weight, int | float):
            raise GalleryError(f"{where}: the weight {weight!r} is not a number")
        for point in _points(geometry, where):
            points.append(point)
            weights.append(float(weight))
    return np.array(points, np.float64).reshape(-1, 2), np.array(weights, np.float64)


def _read_parquet(path: Path) -> _Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"Reading {path.name}", "parquet") from error
    try:
        lat, lon, weight = _columns(parquet.read_schema(path).names, path)
        table = parquet.read_table(path, columns=[name for name in (lat, lon, weight) if name])
        arrays = {name: table[name].to_numpy().astype(np.float64) for name in table.column_names}
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, GalleryError):
            raise
        raise GalleryError(f"gallery {path}: it cannot be read as Parquet: {error}") from error
    return np.stack([arrays[lat], arrays[lon]], axis=1), arrays[weight] if weight else None
