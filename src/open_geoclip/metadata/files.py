"""Replacing photos by changed ones: the original is kept, and a photo is never half a file."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from open_geoclip.errors import DataError
from open_geoclip.files import atomic_file, atomic_write

__all__ = ["keep_original", "read_file", "unique_files", "write_bytes"]

_SUFFIX = ".original"


def unique_files(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Files, each once however often and by whatever links it was named; and the repeated names."""
    known: set[Path] = set()
    unique: list[Path] = []
    repeated: list[Path] = []
    for path in paths:
        real = path.resolve()
        (repeated if real in known else unique).append(path)
        known.add(real)
    return unique, repeated


def read_file(path: Path) -> bytes:
    """A sidecar's bytes.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def keep_original(path: Path) -> Path:
    """Keep a file beside itself, as ``photo.jpg.original``; where that is another one, as ``photo.jpg.original2``.

    A kept file is never overwritten. It takes no space: it is the file itself under a second name, and the new file
    gets the photo's name afterwards.

    Raises:
        DataError: the folder cannot be written to.
    """
    for number in range(1, 1000):
        kept = path.with_name(path.name + _SUFFIX + (str(number) if number > 1 else ""))
        try:
            os.link(path, kept)
        except FileExistsError:
            with suppress(OSError):
                if kept.samefile(path) or _same_bytes(kept, path):
                    return kept
            continue
        except OSError as error:
            if not os.access(path.parent, os.W_OK):
                raise DataError(f"{path}: its folder cannot be written to, so the original cannot be kept") from error
            return _copied(path, kept)  # a file system without links
        return kept
    raise DataError(f"{path}: there are a thousand kept originals already; move them away first")


def _copied(path: Path, kept: Path) -> Path:
    if kept.exists():
        raise DataError(f"{kept} exists already and is not written over")
    try:
        with atomic_file(kept, like=path, new=True) as temporary:
            shutil.copyfile(path, temporary)
            shutil.copystat(path, temporary)
    except OSError as error:
        raise DataError(f"{path}: the original cannot be kept: {error.strerror or error}") from error
    return kept


def _same_bytes(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def write_bytes(
    path: Path, data: bytes, *, like: Path | None = None, times: Path | None = None, new: bool = False
) -> None:
    """Write a photo or a sidecar; see :func:`open_geoclip.files.atomic_file`.

    Args:
        path: the file to write.
        data: its content.
        like: a file whose permissions it gets; those of a new file when not given.
        times: a file whose times of access and change it gets.
        new: refuse to overwrite a file.

    Raises:
        DataError: it cannot be written; an existing file is unchanged.
    """
    try:
        stat = None if times is None else times.stat()
        atomic_write(path, data, like=like, new=new)
        if stat is not None:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    except FileExistsError as error:
        raise DataError(f"{path} exists already and is not written over") from error
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
