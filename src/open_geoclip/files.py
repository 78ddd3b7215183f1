"""Write files and folders atomically, hash them, and keep arrays in the cache folder."""

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["atomic_file", "atomic_folder", "atomic_write", "cache_dir", "cached_array", "sha256"]

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return ``$OPEN_GEOCLIP_CACHE`` with ``~`` expanded; default: the user's cache folder of this system."""
    if chosen := os.environ.get("OPEN_GEOCLIP_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("open-geoclip", appauthor=False))


def cached_array(
    path: Path | None, compute: Callable[[], "np.ndarray"], length: int | None = None, *, mapped: bool = False
) -> "np.ndarray":
    """Return an array from a ``.npy`` file of the cache, or compute and cache it.

    A damaged file is computed again. When the cache cannot be written, a warning is logged.

    Args:
        path: The file; None: Nothing is cached.
        compute: Returns the array.
        length: Of the array, where it is known.
        mapped: Map the file into memory instead of reading it.
    """
    import numpy as np

    if path is None:
        return compute()
    try:
        cached: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if length is not None and cached.shape[:1] != (length,):
            raise ValueError(f"shape {cached.shape} instead of {length} rows")
        return cached
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is damaged (%s) and is computed again", path, error)
    array = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
    except OSError as error:
        logger.warning("the cache %s cannot be used (%s): it is computed each time", path, error)
    return array


def sha256(content: Path | bytes) -> str:
    """Return the SHA-256 of a file or of bytes, in hexadecimal."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path, *, like: Path | None = None, new: bool = False) -> Iterator[Path]:
    """Yield an empty temporary file in the same folder; it replaces ``path`` at the end of the block.

    The temporary file is synchronised to disk before it is renamed, so after a crash ``path`` holds either the old
    content or the new. If the block raises, the temporary file is removed and ``path`` is unchanged. Of a symbolic
    link, the file that it leads to is written. A device, a pipe or ``/dev/stdout`` is not replaced: the content is
    written to it at the end.

    Args:
        path: The file to write.
        like: A file whose permissions are copied; default: the permissions of a new file.
        new: Fail if ``path`` exists.

    Raises:
        FileExistsError: ``new`` is set and ``path`` exists.
        OSError: The file cannot be written.
    """
    if not new:
        if _is_stream(path):
            with TemporaryDirectory() as folder:
                (content := Path(folder) / "content").touch()
                yield content
                with content.open("rb") as source, path.open("ab", buffering=0) as stream:
                    shutil.copyfileobj(source, stream)
            return
        path = Path(os.path.realpath(path))
    # Part of the name, so that users can attribute a leftover; all of it could exceed the limit of the file system.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    # Set at creation: a private file is never readable by others, not even while it is written.
    mode = 0o666 if like is None else like.stat().st_mode & 0o777
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode | 0o600))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if like is not None:
            shutil.copymode(like, temporary)
        if new:
            _rename_new(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes | str, *, like: Path | None = None, new: bool = False) -> None:
    """Write a whole file atomically; text is UTF-8. Arguments and errors are those of :func:`atomic_file`."""
    with atomic_file(path, like=like, new=new) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it replaces ``path``, with all that it held, at the end of the block.

    If the block raises, the temporary folder is removed and ``path`` is unchanged. Of a symbolic link, the folder that
    it leads to is replaced.

    Raises:
        NotADirectoryError: ``path`` is a file.
        OSError: The folder cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(20, "is not a folder", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    fresh, old = (path.with_name(f".{path.name}-{mark}-{what}") for what in ("new", "old"))
    fresh.mkdir()
    try:
        yield fresh
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    finally:
        if old.exists() and not path.exists():  # interrupted in between
            old.rename(path)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe, or a file that this process has open as ``/dev/stdout``."""
    is_open = path.parent == Path("/dev/fd") or path in (Path("/dev/stdout"), Path("/dev/stderr"))
    return is_open or (path.exists() and not path.is_file() and not path.is_dir())


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename a file; fail if the new name exists."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(17, "exists already") from None
        temporary.replace(path)
