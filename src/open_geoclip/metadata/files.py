"""Photos written back, the original kept: at no moment is a photo half a file, or none."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from open_geoclip.errors import DataError
from open_geoclip.files import atomic_file, atomic_write

__all__ = ["KEPT", "keep_original", "once", "write_bytes"]

KEPT = ".original"
"""What is added to the name of a photo that is kept as it was."""


def once(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Files, each once however often and by whatever links it was named; and the names that were left out."""
    seen: set[Path] = set()
    kept: list[Path] = []
    double: list[Path] = []
    for path in paths:
        real = path.resolve()
        (double if real in seen else kept).append(path)
        seen.add(real)
    return kept, double


def keep_original(path: Path) -> Path:
    """Keep a file beside itself, as ``photo.jpg.original``; where that is another one, as ``photo.jpg.original2``.

    What is kept is never written over. It costs no room: it is the file itself under a second name, and the photo's
    name is given to the new one afterwards.

    Raises:
        DataError: the folder cannot be written to.
    """
    for number in range(1, 1000):
        kept = path.with_name(path.name + KEPT + (str(number) if number > 1 else ""))
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
    raise DataError(f"{path}: there are a thousand kept originals already; put them away first")


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


def write_bytes(path: Path, data: bytes, *, like: Path | None = None, new: bool = False) -> None:
    """Write a photo or a sidecar; see :func:`open_geoclip.files.atomic_file`.

    Args:
        path: the goal.
        data: all of it.
        like: a file whose permissions it gets; those of a new file when not given.
        new: refuse to write over anything.

    Raises:
        DataError: it cannot be written; the goal is what it was.
    """
    try:
        atomic_write(path, data, like=like, new=new)
    except FileExistsError as error:
        raise DataError(f"{path} exists already and is not written over") from error
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
