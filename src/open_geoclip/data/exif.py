"""Where a photo says it was taken: its EXIF GPS record, and folders of such photos."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from open_geoclip.data.photos import Entry, Fault, FaultKind, IndexedPhotos, photo_or_fault
from open_geoclip.errors import DataError, ImageError
from open_geoclip.images import ImageSource, find_images, read_exif

__all__ = ["ExifPhotos", "NoPositionError", "read_position"]

_GPS = 0x8825
_LAT_REF, _LAT, _LON_REF, _LON = 1, 2, 3, 4
_STATUS = 9  # "A" a fix, "V" none
_HEAD = 1 << 18  # EXIF data are 64 kB at most and stand before the pixels of a JPEG


class NoPositionError(DataError):
    """A photo that does not say where it was taken. ``kind`` is the fault's, ``reason`` a sentence."""

    def __init__(self, name: str, kind: FaultKind, reason: str) -> None:
        self.kind: FaultKind = kind
        self.reason = reason
        super().__init__(f"{name}: {reason}")


def read_position(image: ImageSource, *, name: str | None = None) -> tuple[float, float]:
    """Read (lat, lon) in degrees from a photo's EXIF GPS record (CIPA DC-008, 4.6.6), without decoding its pixels.

    Whether the numbers are on Earth is not looked at.

    Raises:
        NoPositionError: it has no such record, or one that is damaged or says neither north nor south.
        ImageError: it is no picture.
    """
    gps = read_exif(image, name=name).get_ifd(_GPS)
    label = name or "the photo"
    if _LAT not in gps or _LON not in gps:
        raise NoPositionError(
            label, "no coordinates", "it has no GPS record" if not gps else "its GPS record has no place"
        )
    lat = _signed(gps, _LAT, _LAT_REF, ("N", "S"), label)
    lon = _signed(gps, _LON, _LON_REF, ("E", "W"), label)
    if str(gps.get(_STATUS, "A")).strip("\0 ").upper() == "V" and lat == 0 and lon == 0:
        raise NoPositionError(label, "zero", "its GPS record says that there was no fix")
    return lat, lon


def _signed(gps: dict[int, Any], tag: int, ref_tag: int, refs: tuple[str, str], label: str) -> float:
    value, ref = gps[tag], gps.get(ref_tag)
    parts = value if isinstance(value, tuple) else (value,)
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise NoPositionError(label, "no coordinates", f"its GPS record is damaged: {value!r}") from error
    if not 1 <= len(numbers) <= 3 or not all(math.isfinite(number) for number in numbers):
        raise NoPositionError(
            label, "no coordinates", f"its GPS record is damaged (0/0 or not three numbers): {value!r}"
        )
    degrees = sum(number / 60**power for power, number in enumerate(numbers))
    letter = (ref.decode("latin1") if isinstance(ref, bytes) else str(ref or "")).strip("\0 ").upper()[:1]
    if letter not in refs:
        told = f"says {ref!r}" if letter else "does not say"
        if degrees == 0:
            return 0.0
        raise NoPositionError(label, "no coordinates", f"its GPS record {told} whether it is {' or '.join(refs)}")
    return -degrees if letter == refs[1] else degrees


@dataclass(frozen=True, eq=False)
class ExifPhotos(IndexedPhotos):
    """A folder of photos that carry their own coordinates; each is looked into when its turn comes.

    The fingerprint covers names, sizes and times of change.

    Attributes:
        folder: the folder; folders below it are searched too. A photo's group is the folder it lies in.
        paths: the pictures, sorted.
    """

    folder: Path
    paths: tuple[Path, ...]

    @staticmethod
    def opened(folder: Path) -> "ExifPhotos":
        """List a folder.

        Raises:
            DataError: the folder cannot be read or holds no picture.
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
        return ExifPhotos(str(folder), digest.hexdigest(), np.arange(len(paths)), folder, paths)

    def entry(self, row: int) -> Entry:
        """The photo of a row, or why it cannot be used."""
        path = self.paths[row]
        key = path.relative_to(self.folder).as_posix()
        try:
            lat, lon = _position_of_file(path)
        except NoPositionError as error:
            return Fault(key, error.kind, error.reason)
        except ImageError as error:
            return Fault(key, "broken" if path.exists() else "missing", error.reason)
        parent = path.parent.relative_to(self.folder).as_posix()
        return photo_or_fault(key, path, lat, lon, None if parent == "." else parent)


def _position_of_file(path: Path) -> tuple[float, float]:
    """Read as little of a file as will do: of a JPEG the beginning, if its header ends there."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if head.startswith(b"\xff\xd8") and len(head) == _HEAD:
                return read_position(head)
    except (OSError, ImageError):
        pass  # the whole file is read below, and what is wrong with it told
    return read_position(path)
