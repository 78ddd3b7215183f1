"""The files that a client may name: those inside the allowed folders, with all links followed first."""

import base64
import binascii
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from open_geoclip.errors import ImageError, SettingsError
from open_geoclip.images import SUFFIXES
from open_geoclip.metadata.sidecars import find_sidecars

__all__ = ["Folders", "ImageFile"]

_DATA = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)
_MAX_PATH = 4096


@dataclass(frozen=True)
class ImageFile:
    """An image that a client named: its file with all links followed, or its bytes, or why it cannot be read."""

    name: str
    source: Path | bytes | None = None
    error: str | None = None


class Folders:
    """The folders that a client may read from.

    What counts is where links lead. Nothing is said about files outside, not even whether they exist.

    Args:
        folders: the folders, which must exist.
        max_bytes: larger images are refused before they are read.
        max_images: images per call.

    Raises:
        SettingsError: a folder does not exist.
    """

    def __init__(self, folders: Sequence[Path], *, max_bytes: int, max_images: int) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise SettingsError(f"--folder {folder}: there is no such folder")
        self.roots = tuple(dict.fromkeys(folder.resolve(strict=True) for folder in folders))
        self.max_bytes = max_bytes
        self.max_images = max_images

    def resolve(self, text: str) -> Path:
        """The file or folder that a path means, all links followed; it need not exist.

        Args:
            text: an absolute path, one relative to any of the folders, one with ``~``, or a ``file://`` URL. Composed
                and decomposed accents (NFC, NFD) are the same.

        Raises:
            ImageError: it is not a path, or leads outside of the folders.
        """
        if len(text) > _MAX_PATH or "\0" in text or not text:
            how = "neither a path nor a data URI (data:image/jpeg;base64,...)"
            raise ImageError(f"{text[:40]}..." if len(text) > 40 else repr(text), how)
        path = Path(unquote(urlsplit(text).path) if text.lower().startswith("file://") else text)
        inside, outside = [], False
        for root in self.roots:
            try:
                real = (root / path.expanduser()).resolve()
            except (OSError, RuntimeError) as error:  # links in a circle, no home
                raise ImageError(text, f"cannot be followed: {error}") from error
            if any(real.is_relative_to(allowed) for allowed in self.roots):
                inside.append(self._normalized(real))
            else:
                outside = True
        for real in inside:
            if real.exists():
                return real
        if outside:
            allowed = ", ".join(map(str, self.roots))
            raise ImageError(
                text, f"is outside of the folders that may be read ({allowed}); others: geoclip mcp --folder FOLDER"
            )
        return inside[0]

    def _normalized(self, path: Path) -> Path:
        """The path of a file whose name is the same but for the Unicode form of its accents, if there is one."""
        root = max((root for root in self.roots if path.is_relative_to(root)), key=lambda root: len(root.parts))
        found = root
        for part in path.relative_to(root).parts:
            exact = found / part
            if not exact.exists() and found.is_dir() and not part.isascii():
                same = unicodedata.normalize("NFC", part)
                names = (one.name for one in found.iterdir() if unicodedata.normalize("NFC", one.name) == same)
                exact = found / next(names, part)
            if exact.is_symlink() and exact != path:
                return path  # its target has not been checked
            found = exact
        return found

    def find_images(self, texts: Iterable[str]) -> list[ImageFile]:
        """All images of paths, folders and data URIs, in order; SettingsError if there is none, or too many."""
        found: list[ImageFile] = []
        for number, text in enumerate(texts, 1):
            match = _DATA.match(text)
            for one in [self._from_data(text, match.end(), f"image {number}")] if match else self._from_path(text):
                if len(found) == self.max_images:
                    raise SettingsError(
                        f"more than {self.max_images:,} images at once: ask for them in parts, or start the server "
                        "with a larger --max-images"
                    )
                found.append(one)
        if not found:
            raise SettingsError("at least one image: a path, a folder or a data URI (data:image/jpeg;base64,...)")
        return found

    def check_sidecars(self, image: ImageFile) -> ImageFile:
        """The image, or an error if one of its sidecars may not be read: links may lead anywhere."""
        if not isinstance(image.source, Path):
            return image
        for sidecar in find_sidecars(image.source):
            checked = self._checked(sidecar.name, sidecar)
            if checked.error is not None:
                return ImageFile(image.name, error=f"its sidecar {sidecar.name} {checked.error}")
        return image

    def _from_data(self, text: str, start: int, name: str) -> ImageFile:
        if (len(text) - start) * 3 // 4 > self.max_bytes + 2:  # known before it is decoded
            return ImageFile(name, error=self._too_large)
        try:
            data = base64.b64decode("".join(text[start:].split()), validate=True)
        except (binascii.Error, ValueError) as error:
            return ImageFile(name, error=f"is not base64: {error}")
        return ImageFile(name, data) if len(data) <= self.max_bytes else ImageFile(name, error=self._too_large)

    def _from_path(self, text: str) -> Iterator[ImageFile]:
        try:
            real = self.resolve(text)
        except ImageError as error:
            yield ImageFile(error.name, error=error.reason)
            return
        if real.is_dir():
            yield from self._below(real, text)
        elif real.exists():
            yield self._checked(text, real)
        else:
            yield ImageFile(text, error="there is no such file")

    def _below(self, folder: Path, text: str) -> Iterator[ImageFile]:
        """The images below a folder. Links to folders are named but not followed: they may lead outside."""
        empty = True
        for here, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            prefix = Path(text) / Path(here).relative_to(folder)
            for name in folders:
                if (Path(here) / name).is_symlink():
                    empty = False
                    yield ImageFile(str(prefix / name), error="is a link to a folder: ask for it by its own path")
            for name in sorted(files):
                if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                    empty = False
                    yield self._checked(str(prefix / name), Path(here) / name)
        if empty:
            yield ImageFile(text, error=f"the folder holds no images (files ending in {' '.join(sorted(SUFFIXES))})")

    def _checked(self, name: str, file: Path) -> ImageFile:
        try:
            real = self.resolve(str(file))  # a link below the folder may lead outside
            status = real.stat()
        except ImageError as error:
            return ImageFile(name, error=error.reason)
        except OSError as error:
            return ImageFile(name, error=f"cannot be read: {error.strerror or error}")
        if not stat.S_ISREG(status.st_mode):
            return ImageFile(name, error="is not a regular file")
        if status.st_size > self.max_bytes:
            return ImageFile(name, error=self._too_large)
        return ImageFile(name, real)

    @property
    def _too_large(self) -> str:
        return f"is larger than {self.max_bytes / 1e6:g} MB, the most that this server reads (--max-mb)"
