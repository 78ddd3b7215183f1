"""Which files a client may name: those inside the folders that were allowed, links followed before it is decided."""

import base64
import binascii
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from open_geoclip.errors import ImageError, SettingsError
from open_geoclip.images import SUFFIXES
from open_geoclip.metadata.sidecars import find_sidecars

__all__ = ["Asked", "Folders"]

_DATA = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)
_LONGEST_PATH = 4096


@dataclass(frozen=True)
class Asked:
    """A picture that was asked for.

    Attributes:
        name: what answers call it.
        source: its file with all links followed, or its bytes; None when it may not or cannot be read.
        error: why not, or None.
    """

    name: str
    source: Path | bytes | None = None
    error: str | None = None


class Folders:
    """The folders that a client may read from.

    A link is followed first, and what counts is where it leads. Of what lies outside nothing is told, not even whether
    it is there.

    Args:
        folders: the folders, each of which must be there.
        max_bytes: larger pictures are refused before they are read.
        max_pictures: the most that may be asked for at once.

    Raises:
        SettingsError: there is no such folder.
    """

    def __init__(self, folders: Sequence[Path], *, max_bytes: int, max_pictures: int) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise SettingsError(f"--folder {folder}: there is no such folder")
        self.roots = tuple(dict.fromkeys(folder.resolve(strict=True) for folder in folders))
        self.max_bytes = max_bytes
        self.max_pictures = max_pictures

    def find(self, asked: str) -> Path:
        """The file or folder that a path means, all links followed; it need not be there.

        Args:
            asked: an absolute path, or one from any of the folders.

        Raises:
            ImageError: it is no path, or leads outside of the folders.
        """
        if len(asked) > _LONGEST_PATH or "\0" in asked or not asked:
            how = "neither a path nor a data URI (data:image/jpeg;base64,...)"
            raise ImageError(f"{asked[:40]}..." if len(asked) > 40 else repr(asked), how)
        found, outside = [], False
        for root in self.roots:
            try:
                real = (root / asked).resolve()
            except (OSError, RuntimeError) as error:  # links in a circle
                raise ImageError(asked, f"cannot be followed: {error}") from error
            if any(real.is_relative_to(allowed) for allowed in self.roots):
                found.append(real)
            else:
                outside = True
        for real in found:
            if real.exists():
                return real
        if outside:
            allowed = ", ".join(map(str, self.roots))
            raise ImageError(
                asked, f"is outside of the folders that may be read ({allowed}); others: geoclip mcp --folder FOLDER"
            )
        return found[0]

    def pictures(self, asked: Iterable[str]) -> list[Asked]:
        """Each picture that was asked for, in order; folders give the pictures below them.

        Args:
            asked: paths of pictures and folders, and data URIs.

        Raises:
            SettingsError: there is none, or there are too many.
        """
        found: list[Asked] = []
        for number, text in enumerate(asked, 1):
            match = _DATA.match(text)
            for one in [self._from_data(text, match.end(), f"picture {number}")] if match else self._from_path(text):
                if len(found) == self.max_pictures:
                    raise SettingsError(
                        f"more than {self.max_pictures:,} pictures at once: ask for them in parts, or start the server "
                        "with a larger --max-pictures"
                    )
                found.append(one)
        if not found:
            raise SettingsError("at least one picture: a path, a folder or a data URI (data:image/jpeg;base64,...)")
        return found

    def with_sidecars(self, asked: Asked) -> Asked:
        """A picture whose sidecars are read too: an error if one of them may not be, for links lead anywhere."""
        if not isinstance(asked.source, Path):
            return asked
        for sidecar in find_sidecars(asked.source):
            found = self._checked(sidecar.name, sidecar)
            if found.error is not None:
                return Asked(asked.name, error=f"its sidecar {sidecar.name} {found.error}")
        return asked

    def _from_data(self, text: str, start: int, name: str) -> Asked:
        if (len(text) - start) * 3 // 4 > self.max_bytes + 2:  # told before it is decoded
            return Asked(name, error=self._too_large)
        try:
            data = base64.b64decode(text[start:], validate=True)
        except (binascii.Error, ValueError) as error:
            return Asked(name, error=f"is not base64: {error}")
        return Asked(name, data) if len(data) <= self.max_bytes else Asked(name, error=self._too_large)

    def _from_path(self, asked: str) -> Iterator[Asked]:
        try:
            real = self.find(asked)
        except ImageError as error:
            yield Asked(error.name, error=error.reason)
            return
        if real.is_dir():
            yield from self._below(real, asked)
        elif real.exists():
            yield self._checked(asked, real)
        else:
            yield Asked(asked, error="there is no such file")

    def _below(self, folder: Path, asked: str) -> Iterator[Asked]:
        """The pictures below a folder. Links to folders are told and not followed: who walks them walks outside."""
        empty = True
        for here, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            name_of = Path(asked) / Path(here).relative_to(folder)
            for name in folders:
                if (Path(here) / name).is_symlink():
                    empty = False
                    yield Asked(str(name_of / name), error="is a link to a folder: ask for it by its own path")
            for name in sorted(files):
                if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                    empty = False
                    yield self._checked(str(name_of / name), Path(here) / name)
        if empty:
            yield Asked(asked, error=f"the folder holds no pictures (files ending in {' '.join(sorted(SUFFIXES))})")

    def _checked(self, name: str, file: Path) -> Asked:
        try:
            real = self.find(str(file))  # a link below the folder may lead outside
            about = real.stat()
        except ImageError as error:
            return Asked(name, error=error.reason)
        except OSError as error:
            return Asked(name, error=f"cannot be read: {error.strerror or error}")
        if not stat.S_ISREG(about.st_mode):
            return Asked(name, error="is not a regular file")
        if about.st_size > self.max_bytes:
            return Asked(name, error=self._too_large)
        return Asked(name, real)

    @property
    def _too_large(self) -> str:
        return f"is larger than {self.max_bytes / 1e6:g} MB, the most that this server reads (--max-mb)"
