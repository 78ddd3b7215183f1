"""Pack photos into tar shards in WebDataset's format."""

import hashlib
import io
import itertools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from PIL import Image

from open_geoclip.data.decoding import map_photos
from open_geoclip.data.photos import Photo, PhotoSource, SkippedRecord
from open_geoclip.data.shards import INDEX
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.files import atomic_file, atomic_write
from open_geoclip.images import load_image, read_bytes, sniff

__all__ = ["PackSettings", "Packed", "pack"]

_VERSION = 1
_Result = SkippedRecord | tuple[Photo, tuple[str, bytes]]
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "HEIF": "heic"}


@dataclass(frozen=True)
class PackSettings:
    """How photos are packed.

    Attributes:
        shard_mb: a shard is closed when it is this large, in MB of 10^6 bytes.
        resize: length of the shorter side that larger photos are reduced to, in pixels, saved as JPEG; files are packed
            byte for byte when not given.
        quality: of those JPEGs.
        verify: decode each photo, so that only readable ones are packed; with ``resize`` they are decoded anyway.

    Raises:
        SettingsError: a value is out of range.
    """

    shard_mb: float = 256.0
    resize: int | None = None
    quality: int = 92
    verify: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.shard_mb <= 100_000:
            raise SettingsError(f"shard_mb: above 0 and at most 100,000, not {self.shard_mb}")
        if self.resize is not None and self.resize < 1:
            raise SettingsError(f"resize: 1 pixel or more, not {self.resize}")
        if not 1 <= self.quality <= 95:
            raise SettingsError(f"quality: 1 to 95, not {self.quality}")


@dataclass(frozen=True)
class Packed:
    """The result of :func:`pack`.

    Attributes:
        folder: of the shards.
        shards: number of shards.
        photos: number of photos in them.
        bytes: size of the shards.
        left_out: number of entries by kind of skipped record; ``index.json`` names them.
        resumed_at: number of entries that an earlier call had packed.
    """

    folder: Path
    shards: int
    photos: int
    bytes: int
    left_out: dict[str, int]
    resumed_at: int


def pack(
    source: PhotoSource,
    folder: Path,
    settings: PackSettings | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write a source as shards ``000000.tar``, ``000001.tar``..., and ``index.json``.

    Each shard, and then the index, is written atomically. The same call resumes an interrupted one; the shards are the
    same to the byte as without an interruption.

    Args:
        source: the photos, in the order in which they are packed.
        folder: is created.
        settings: of the shards and images.
        workers: threads that read and decode; default: one per processor core.
        progress: called with (done, total) entries, if the total is known.

    Raises:
        DataError: the folder cannot be written, holds shards of another source or other settings; no photo is usable.
    """
    settings = PackSettings() if settings is None else settings
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            for left in folder.glob(".*.tar.*part"):  # by a call that was killed
                left.unlink()
            index = _opened_index(folder, source, settings)
            resumed_at = index["shards"][-1]["entries_until"] if index["shards"] else 0
            if not index["finished"]:
                _write_shards(source, folder, settings, index, workers, progress)
            shards = index["shards"]
            left_out = [fault for shard in shards for fault in shard["left_out"]]
            if not any(shard["count"] for shard in shards):
                for name in (*(shard["name"] for shard in shards), INDEX):  # or the next call would find it finished
                    (folder / name).unlink(missing_ok=True)
                first = "; the first is {0}: {2}".format(*left_out[0]) if left_out else ""
                raise DataError(f"{source.name}: none of its photos can be used, so there is nothing to pack{first}")
    except Timeout as error:
        raise DataError(f"{folder}: another process is packing into it") from error
    except OSError as error:
        what = f"the shards in {folder} cannot be written: {error.strerror or error}"
        raise DataError(f"{what}; what is whole is kept, and the same command goes on from there") from error
    kinds = Counter(kind for _, kind, _ in left_out)
    sizes = sum(shard["bytes"] for shard in shards)
    return Packed(folder, len(shards), sum(s["count"] for s in shards), sizes, dict(kinds), resumed_at)


def _opened_index(folder: Path, source: PhotoSource, settings: PackSettings) -> dict[str, Any]:
    fresh = {
        "version": _VERSION,
        "source": source.name,
        "fingerprint": source.fingerprint,
        "settings": asdict(settings),
        "finished": False,
        "shards": [],
    }
    path = folder / INDEX
    if not path.exists():
        if any(folder.glob("*.tar")):
            raise DataError(f"{folder}: it holds shards without an {INDEX}; choose an empty folder")
        return fresh
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in ("version", "fingerprint", "settings") if index[key] != fresh[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: it is no index of shards ({error}); choose an empty folder") from error
    if different:
        of = f"of {index['source']}"
        raise DataError(f"{folder}: it holds shards {of} with another {' and '.join(different)}; choose another folder")
    return index


def _write_shards(
    source: PhotoSource,
    folder: Path,
    settings: PackSettings,
    index: dict[str, Any],
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    done = index["shards"][-1]["entries_until"] if index["shards"] else 0

    def counted(results: Iterator[_Result]) -> Iterator[tuple[int, _Result]]:
        for number, result in enumerate(results, done + 1):
            if progress is not None and source.count is not None:
                progress(number, source.count)
            yield number, result

    with closing(map_photos(source, _Packing(settings), workers=workers, start=done)) as results:
        remaining = counted(results)
        for first in remaining:
            path = folder / f"{len(index['shards']):06d}.tar"
            with atomic_file(path) as temporary:
                shard = _write_shard(temporary, itertools.chain([first], remaining), settings.shard_mb * 1e6)
            index["shards"].append({"name": path.name, **shard})
            _write_index(folder, index)
    index["finished"] = True
    _write_index(folder, index)


class _Packing:
    """Returns the suffix and the bytes of a photo in the shard; called in workers."""

    def __init__(self, settings: PackSettings) -> None:
        self.settings = settings

    def __call__(self, photo: Photo) -> tuple[str, bytes]:
        settings = self.settings
        if isinstance(photo.image, (str, os.PathLike, bytes)):
            data = read_bytes(photo.image, photo.key)
            kind = sniff(data, photo.key)
            if settings.resize is None and not settings.verify:
                return _SUFFIXES.get(kind, kind.lower()), data
            image = load_image(data, name=photo.key)
            if settings.resize is None or min(image.size) <= settings.resize:
                return _SUFFIXES.get(kind, kind.lower()), data
        else:
            image = load_image(photo.image, name=photo.key)
        out = io.BytesIO()
        if settings.resize is None:
            image.save(out, "PNG", compress_level=1)  # an image that was rendered is kept to the last bit
            return "png", out.getvalue()
        factor = min(1.0, settings.resize / min(image.size))
        width, height = (max(settings.resize, round(side * factor)) for side in image.size)
        if factor < 1:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        image.save(out, "JPEG", quality=settings.quality, subsampling=0)
        return "jpg", out.getvalue()


class _Hashing:
    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        if self.file.closed:  # a shard that was given up; its tar still writes an end when it is collected
            return len(data)
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


def _write_shard(path: Path, results: Iterable[tuple[int, _Result]], max_bytes: float) -> dict[str, Any]:
    """Write one shard until it has ``max_bytes`` or the results end; return its entry in the index."""
    size = count = entries_until = 0
    left_out: list[tuple[str, str, str]] = []
    # mypy asks for a whole file; "w|" is documented to need no more than write().
    with (
        path.open("wb") as file,
        tarfile.open(fileobj=(hashing := _Hashing(file)), mode="w|", format=tarfile.USTAR_FORMAT) as tar,  # type: ignore[call-overload]
    ):
        for entries_until, result in results:
            if isinstance(result, SkippedRecord):
                left_out.append((result.key, result.kind, result.reason))
                continue
            photo, (suffix, image) = result
            facts: dict[str, Any] = {"key": photo.key, "lat": photo.lat, "lon": photo.lon}
            if photo.group is not None:
                facts["group"] = photo.group
            for kind, data in ((suffix, image), ("json", json.dumps(facts).encode())):
                info = tarfile.TarInfo(f"{entries_until:09d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                size += 512 + len(data) + -len(data) % 512
            count += 1
            if size >= max_bytes:
                break
    return {
        "count": count,
        "bytes": hashing.size,
        "sha256": hashing.digest.hexdigest(),
        "entries_until": entries_until,
        "left_out": left_out,
    }


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    atomic_write(folder / INDEX, json.dumps(index, indent=1) + "\n")
