"""Galleries: the candidate places of answers.

A gallery is a table of coordinates, read from a file that anybody can make. The same place written twice is
one place with the weight of two, so that nothing is searched twice and nothing is lost.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from open_geoclip.data.columns import COORDINATES, Column
from open_geoclip.data.tables import read_table
from open_geoclip.errors import CoordinateError, DataError, GalleryError
from open_geoclip.files import cache_dir, cached_array, sha256
from open_geoclip.geo.sphere import check_coordinates

__all__ = ["Gallery"]


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

    def _table(self) -> Float32[np.ndarray, "n 3"]:
        return np.column_stack((self.coordinates, self.weights))

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
            weights: one a row, from 1e-30 to 1e30, whose sums float32 can hold; 1 each when not given.
            name: what an answer calls it.

        Raises:
            CoordinateError: a coordinate is not on Earth.
            GalleryError: there is no row, or a weight is out of range.
        """
        points = np.asarray(check_coordinates(np.asarray(coordinates)), np.float32)
        if len(points) == 0:
            raise GalleryError("a gallery needs at least one coordinate; this one holds none")
        mass = None if weights is None else np.asarray(weights, np.float64)
        if mass is not None and (mass.shape != (len(points),) or not np.all((mass >= 1e-30) & (mass <= 1e30))):
            raise GalleryError(f"weights are one number above 0, from 1e-30 to 1e30, for each of {len(points):,} rows")
        keys = np.ascontiguousarray(points + np.float32(0)).view(np.int64).ravel()  # + 0 makes -0.0 and 0.0 one
        order = np.argsort(keys, kind="stable")  # np.unique would take twice the memory
        keys = keys[order]
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        del keys
        total = np.diff(starts, append=len(points)) if mass is None else np.add.reduceat(mass[order], starts)
        total, first = total.astype(np.float32), order[starts]
        del order, starts
        by_first = np.argsort(first)
        return cls(name, points[first[by_first]], total[by_first])

    @classmethod
    def from_file(cls, path: str | Path, *, name: str | None = None, keep: bool = False) -> "Gallery":
        """Read a gallery from CSV, GeoJSON points or Parquet; see `open_geoclip.data.tables.read_table`.

        A column (or property) ``weight`` or ``count`` is used when it is there.

        Args:
            path: the file; its suffix tells the format.
            name: what an answer calls the gallery; default: the file's name.
            keep: keep what was read in the cache folder, by the hash of the file: 50,000 rows of CSV take 0.3 s.

        Raises:
            GalleryError: the file cannot be used; says which row and why.
            MissingExtraError: a Parquet file without the extra ``parquet``.
        """
        path = Path(path)
        if keep and path.is_file():
            file = cache_dir() / "galleries" / f"{sha256(path)[:32]}.places.npy"
            kept = cached_array(file, lambda: cls.from_file(path)._table())
            return cls(path.name if name is None else name, kept[:, :2].copy(), kept[:, 2].copy())
        columns = COORDINATES | {"weight": Column(("weight", "count"), "number", required=False)}
        try:
            table = read_table(path, columns)
            points, weights = table.coordinates(), table.numbers.get("weight")
            if table.unit == "feature" and weights is not None:
                weights = np.where(np.isnan(weights), 1.0, weights)  # not every feature needs the property
            absent = np.flatnonzero(np.isnan(points).any(axis=1))
            if len(absent):
                raise DataError(f"{path}, {table.where(int(absent[0]))}: it has no coordinates")
            name = table.path.name if name is None else name
            del table  # what is read takes more memory than the gallery
            points = check_coordinates(points).astype(np.float32)
            return cls.from_coordinates(points, weights, name=name)
        except DataError as error:
            raise GalleryError(f"gallery {error}") from error
        except (CoordinateError, GalleryError) as error:
            raise GalleryError(f"gallery {path}: {error}") from error
