"""Folders of photos with coordinates in their metadata."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from open_geoclip.data.photos import Entry, IndexedPhotos, Photo, SkipKind, SkippedRecord, photo_or_skipped
from open_geoclip.errors import DataError, ImageError
from open_geoclip.images import ImageSource, find_images
from open_geoclip.metadata.read import read_metadata

__all__ = ["ExifPhotos", "NoPositionError", "read_position"]


class NoPositionError(DataError):
    """A photo without coordinates; ``kind`` and ``reason`` are those of the skipped record."""

    def __init__(self, name: str, kind: SkipKind, reason: str) -> None:
        self.kind: SkipKind = kind
        self.reason = reason
        super().__init__(f"{name}: {reason}")


def read_position(image: ImageSource, *, name: str | None = None) -> tuple[float, float]:
    """Read (lat, lon) in degrees from a photo's EXIF or XMP, without decoding its pixels.

    Estimates by this package are not read, so that no model learns from another's answers. Numbers are not checked.

    Raises:
        NoPositionError: it has no coordinates, or they are damaged.
        ImageError: it is no image.
    """
    facts = read_metadata(image, name=name, with_sidecars=False)
    label, place = name or "the photo", facts.place
    if place is None:
        if facts.places:
            raise NoPositionError(label, "no coordinates", "its place is an estimate by open-geoclip, no measurement")
        raise NoPositionError(label, "no coordinates", facts.faults[-1] if facts.faults else "it has no GPS record")
    if place.no_fix and place.lat == 0 and place.lon == 0:
        raise NoPositionError(label, "zero", "its GPS record says that there was no fix")
    return place.lat, place.lon


@dataclass(frozen=True, eq=False)
class ExifPhotos(IndexedPhotos):
    """A folder of photos with coordinates in their metadata. The fingerprint covers names, sizes and times of change.

    Attributes:
        folder: the folder; folders below it are searched too. A photo's group is the folder it lies in.
        paths: the images, sorted.
        places: whether their coordinates are read; otherwise all are NaN.
    """

    folder: Path
    paths: tuple[Path, ...]
    places: bool = True

    @staticmethod
    def opened(folder: Path, *, places: bool = True) -> "ExifPhotos":
        """List a folder.

        Raises:
            DataError: the folder cannot be read or holds no image.
        """
        try:
            paths = tuple(find_images(folder))
        except ImageError as error:
            raise DataError(str(error)) from error
        digest = hashlib.sha256()
        for path in paths:
            stat = path.stat() if path.exists() else None
            line = f"{path.relative_to(folder)}\0{stat and (stat.st_size, stat.st_mtime_ns)}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return ExifPhotos(str(folder), digest.hexdigest(), np.arange(len(paths)), folder, paths, places)

    def entry(self, row: int) -> Entry:
        """Return the photo of a row, or why it cannot be used."""
        path = self.paths[row]
        key = path.relative_to(self.folder).as_posix()
        if not self.places:
            return Photo(key, path, math.nan, math.nan)
        try:
            lat, lon = read_position(path)
        except NoPositionError as error:
            return SkippedRecord(key, error.kind, error.reason)
        except ImageError as error:
            return SkippedRecord(key, "broken" if path.exists() else "missing", error.reason)
        parent = path.parent.relative_to(self.folder).as_posix()
        return photo_or_skipped(key, path, lat, lon, None if parent == "." else parent)
