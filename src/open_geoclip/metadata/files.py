"""Replacing photos by changed ones: the original is kept, and a photo is never half a file."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from open_geoclip.errors import DataError
from open_geoclip.files import atomic_file, atomic_write

__all__ = ["create_file", "read_file", "replace_file", "unique_files"]


def unique_files(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Files, each once however often and by whatever links it was named; and the repeated names."""
    known: set[Path] = set()
    unique: list[Path] = []
    repeated: list[Path] = []
    for path in paths:
        real = Path(os.path.realpath(path))  # resolve() fails on a link to itself before Python 3.13
        (repeated if real in known else unique).append(path)
        known.add(real)
    return unique, repeated


def read_file(path: Path) -> bytes:
    """The content of a sidecar; a DataError when it cannot be read."""
    with _data_errors(path, "read"):
        return path.read_bytes()


def create_file(path: Path, data: bytes, *, times: Path | None = None) -> None:
    """Write a new file.

    Args:
        path: the file.
        data: its content.
        times: a file whose times of access and change it gets.

    Raises:
        DataError: it cannot be written, or exists already.
    """
    with _data_errors(path, "written"):
        atomic_write(path, data, new=True)
        if times is not None:
            _copy_times(times.stat(), path)


def replace_file(path: Path, data: bytes, *, keep_times: bool = True) -> Path:
    """Overwrite a file, or what a link leads to, and keep the original beside it as ``photo.jpg.original``.

    A kept original is never overwritten: another one becomes ``photo.jpg.original2``. It takes no time to keep: it is
    the file itself under a second name, and the new file gets the photo's name afterwards.

    Args:
        path: the file.
        data: its new content.
        keep_times: give it the times of access and change that the original has.

    Returns:
        Where the original is.

    Raises:
        DataError: it cannot be written or the original cannot be kept; the file is unchanged.
    """
    path = path.resolve()
    with _data_errors(path, "written"):
        stat, kept = path.stat(), _keep_original(path)
        atomic_write(path, data, like=path)
        if keep_times:
            _copy_times(stat, path)
    return kept


def _keep_original(path: Path) -> Path:
    for number in range(1, 1000):
        kept = path.with_name(f"{path.name}.original{number if number > 1 else ''}")
        try:
            os.link(path, kept)
        except FileExistsError:
            with suppress(OSError):
                if kept.samefile(path) or _has_same_content(kept, path):
                    return kept
            continue
        except OSError as error:
            if not os.access(path.parent, os.W_OK):
                raise DataError(f"{path}: its folder cannot be written to, so the original cannot be kept") from error
            with atomic_file(kept, like=path, new=True) as temporary:  # a file system without links
                shutil.copyfile(path, temporary)
                shutil.copystat(path, temporary)
        return kept
    raise DataError(f"{path}: there are a thousand kept originals already; move them away first")


def _has_same_content(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def _copy_times(stat: os.stat_result, path: Path) -> None:
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@contextmanager
def _data_errors(path: Path, verb: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise DataError(f"{path} exists already and is not written over") from error
    except OSError as error:
        raise DataError(f"{path} cannot be {verb}: {error.strerror or error}") from error
