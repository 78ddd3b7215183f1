"""What an image can be handed over as: paths, folders, bytes, open files; and what messages call it."""

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from open_geoclip.errors import ImageError

__all__ = [
    "MAX_FILE_BYTES",
    "SUFFIXES",
    "Encoded",
    "ImageSource",
    "SupportsRead",
    "find_images",
    "image_name",
    "in_words",
    "read_bytes",
]

MAX_FILE_BYTES = 2**30
"""The largest file that is read. An uncompressed 16-bit TIFF of `MAX_PIXELS` is half as large."""

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jpe", ".jpeg", ".jpg"}
    | {".mpo", ".png", ".tif", ".tiff", ".webp"}
)
"""What `find_images` takes for an image in a folder, in lower case."""


@runtime_checkable
class SupportsRead(Protocol):
    """An open binary file, or anything else that gives bytes. It need not be seekable."""

    def read(self, size: int = -1, /) -> bytes:
        """Give at most ``size`` bytes, none at the end."""
        ...


Encoded: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | SupportsRead

ImageSource: TypeAlias = Encoded | Image.Image | npt.NDArray[Any]
"""A path, the bytes of a file, an open binary file, a Pillow image, or a uint8 array of (height, width) or
(height, width, 1 | 3 | 4) in the order red, green, blue, alpha."""


def image_name(source: ImageSource, index: int | None = None) -> str:
    """Say what answers and errors call an image: its path, or its kind and ``#index`` where it has none.

    Args:
        source: The image.
        index: Its position, from 0, among the images that were handed over together.
    """
    path: object = source
    if isinstance(source, Image.Image):
        path = getattr(source, "filename", None)
    elif hasattr(source, "read"):
        path = getattr(source, "name", None)
    if isinstance(path, (str, os.PathLike)) and (text := os.fsdecode(path)):
        # A name that is not valid Unicode could not be printed, and one as long as a file is no path.
        return text[:4096].encode(errors="backslashreplace").decode()
    if isinstance(source, (bytes, bytearray, memoryview)):
        kind = "bytes"
    elif isinstance(source, np.ndarray):
        kind = "array"
    elif isinstance(source, Image.Image):
        kind = "image"
    else:
        kind = "empty path" if isinstance(source, str) else "stream"
    return kind if index is None else f"{kind} #{index}"


_SKIPPED = frozenset(
    {"@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "$recycle.bin", "__macosx", "_thumbs"}
    | {"thumbs", "thumbnails", "lost+found", "system volume information"}
)
"""Folders, in lower case, in which programs and network drives keep thumbnails and what was deleted."""


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the images among files and folders.

    A file is kept whatever its suffix. A folder gives, sorted, the files below it that have one of
    `SUFFIXES`, but not hidden ones nor those in folders of thumbnails (`@eaDir`).
    Links to folders are followed, once each, unless they lead back up.

    Args:
        paths: Files and folders, or a single one.

    Returns:
        The files, in the order of ``paths``.

    Raises:
        ImageError: A path that does not exist, or a folder that cannot be read or holds no image.
    """
    found: list[Path] = []
    for given in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        path, name = Path(given), image_name(given)
        try:
            if not os.fspath(given):
                raise FileNotFoundError
            inside = _walk(path) if stat.S_ISDIR(path.stat().st_mode) else [path]
        except (OSError, ValueError) as error:
            inner = error.filename if isinstance(error, OSError) else None
            raise ImageError(str(inner or name), _why_unread(given, error)) from error
        if not inside:
            suffixes = " ".join(sorted(SUFFIXES))
            raise ImageError(name, f"the folder holds no images (files ending in {suffixes})")
        found += inside
    return found


def _walk(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen: set[Path] = set()
    for name, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        here = Path(name)
        real = here.resolve()
        # A link to a folder above would be walked for ever, or bring in everything beside the folder given.
        if real in seen or (seen and here.parent.resolve().is_relative_to(real)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(child for child in folders if not child.startswith(".") and child.lower() not in _SKIPPED)
        images = [here / file for file in files if not file.startswith(".")]
        images = [path for path in images if path.suffix.lower() in SUFFIXES]
        # A broken link is kept, so that decoding it says what is wrong; a pipe would block for ever.
        found += [path for path in images if path.is_file() or not path.exists()]
    return sorted(found)


def read_bytes(source: Encoded, name: str) -> bytes:
    """The whole file of an image; an ImageError if it cannot be read, is empty or larger than `MAX_FILE_BYTES`."""
    try:
        if isinstance(source, (bytes, bytearray, memoryview)):
            data = bytes(source)
        elif isinstance(source, (str, os.PathLike)):
            with FileIO(source) as file:
                data = _read_stream(file, name)
        elif callable(getattr(source, "read", None)):
            data = _read_stream(source, name)
        else:
            what = f"an image cannot be read from an object of type {type(source).__name__}"
            raise ImageError(name, f"{what}; hand over a path, bytes, a binary file, a Pillow image or an array")
    except ImageError:
        raise
    except Exception as error:  # a stream may be anybody's class
        raise ImageError(name, _why_unread(source, error)) from error
    if not data:
        raise ImageError(name, "is empty (0 bytes)")
    return data


def _read_stream(stream: SupportsRead, name: str) -> bytes:
    seek = getattr(stream, "seek", None)
    if seek is not None:
        with suppress(OSError):  # a pipe is read from where it stands
            seek(0)  # a file that was just written stands at its end
    chunks: list[bytes] = []
    total = 0
    while chunk := stream.read(2**24):  # nearly every photo is one chunk, which join() gives back uncopied
        chunks.append(chunk)
        total += len(chunk)
        if total > MAX_FILE_BYTES:
            raise ImageError(name, f"is larger than {MAX_FILE_BYTES / 2**30:g} GiB, too large for an image")
    return b"".join(chunks)


def _why_unread(source: object, error: Exception) -> str:
    path = os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else ""
    if re.match(r"(?i)[a-z][a-z0-9+.-]+:/|data:", path):
        return "URLs are not fetched: save the image first and hand over its path"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, TypeError):
        return f"does not give bytes; open the file in binary mode, 'rb' ({error})"
    return f"cannot be read: {in_words(error)}"


def in_words(error: Exception) -> str:
    """An error in words."""
    # "KeyError: 7" says more than "7"; for the usual kinds the sentence is enough.
    if isinstance(error, OSError):
        return error.strerror or str(error)  # without the number and the path, which is the image's name
    return str(error) if isinstance(error, SyntaxError) else f"{type(error).__name__}: {error}"
