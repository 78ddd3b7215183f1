"""A reader of tar archives that reports where an archive breaks.

``tarfile`` takes a damaged or cut header in the middle of an archive for its end: a shard that lost half its photos
would look like a short one. Here it is an error.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from open_geoclip.errors import DataError

__all__ = ["CutOffError", "Member", "members"]

_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_NAMES = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_MAX_NAME = 1 << 20  # bytes of a long name


class CutOffError(DataError):
    """An archive that ends early or is damaged. ``path`` and ``offset`` (bytes) say where, ``reason`` how."""

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        self.path, self.offset, self.reason = path, offset, reason
        super().__init__(f"{path}: {reason} at byte {offset:,}; what comes before it was used")


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    data: bytes
    offset: int  # of its header


class _DamagedError(tarfile.ReadError):
    """A header that is no header."""


class _EndMarkError(tarfile.HeaderError):
    """A block of zeros: the mark of the end."""


class _Header(tarfile.TarInfo):
    """A header that raises an error wherever it is damaged or cut."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        if len(buf) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("a cut header")
        if not any(buf):
            raise _EndMarkError("the mark of the end")
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _NAMES and header.size > _MAX_NAME):
            raise _DamagedError(f"a size of {header.size:,}")
        return header

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":
        try:
            header = super().fromtarfile(tarfile_)
        except _EndMarkError:
            raise
        except (tarfile.HeaderError, ValueError) as error:
            raise _DamagedError(str(error)) from error
        if header.size < 0:
            raise _DamagedError(f"a size of {header.size:,}")
        return header


def members(path: Path, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[Member]:
    """Yield the files of an archive, plain or gzipped, in order.

    Args:
        path: the archive.
        wanted: by name, whether to read a file; others are skipped.

    Raises:
        CutOffError: after everything that is whole before the break.
        OSError: the file cannot be opened or read.
    """
    with path.open("rb") as plain, gzip.open(plain) if plain.peek(2)[:2] == b"\x1f\x8b" else plain as file:
        archive, name = None, ""
        try:
            archive = tarfile.TarFile(fileobj=file, tarinfo=_Header, encoding="utf-8", errors="surrogateescape")
            while (header := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # what TarFile(stream=True) does since Python 3.13
                name = header.name
                if header.type in _FILES and header.sparse is None and wanted(name):
                    content = archive.extractfile(header)
                    assert content is not None
                    yield Member(name, content.read(), header.offset)
        except _EndMarkError:
            return
        except _DamagedError as error:
            raise CutOffError(path, file.tell() - tarfile.BLOCKSIZE, f"the archive is damaged: {error}") from error
        except tarfile.ReadError as error:
            end = file.seek(0, 2)
            in_file = archive is not None and end < archive.offset
            what = name if in_file else "a header, or before the mark of the end"
            raise CutOffError(path, end, f"the file ends in {what}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CutOffError(
                path, file.tell(), f"the gzip stream breaks after {name or 'its start'} ({error})"
            ) from error
