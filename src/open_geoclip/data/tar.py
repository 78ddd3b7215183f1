"""A reader of tar archives that says where an archive breaks.

``tarfile`` ends in silence at a damaged or cut header in the middle of an archive; a shard that lost half its photos
would look like a short one. Here the archive is read forwards, block by block (POSIX.1-1988 ustar, GNU and pax long
names, by ``tarfile``'s own header parser), from a plain or a gzip file.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from open_geoclip.errors import DataError

__all__ = ["CutOffError", "Member", "members"]

_BLOCK = 512
_TEXTS = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_WITHOUT_DATA = {tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE}
_MOST_TEXT = 1 << 20  # of a long name
_CHUNK = 1 << 20


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


def members(path: Path, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[Member]:
    """The files of an archive, in order.

    Args:
        path: a tar, or a gzipped one.
        wanted: by name, whether to read a file's data; others come with none.

    Raises:
        CutOffError: after everything that is whole before the break.
        OSError: the file cannot be opened or read.
    """
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        if not zipped:
            yield from _Archive(path, plain).members(wanted)
            return
        with gzip.open(plain) as file:
            yield from _Archive(path, file).members(wanted)


class _Archive:
    def __init__(self, path: Path, file: BufferedIOBase) -> None:
        self.path, self.file, self.offset = path, file, 0

    def members(self, wanted: Callable[[str], bool]) -> Iterator[Member]:
        start, long_name, long_size = 0, None, None
        while True:
            here = self.offset
            block = self.read(_BLOCK, "a header, or before the mark of the end")
            if not any(block):
                return
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise CutOffError(self.path, here, f"the archive is damaged: {error}") from error
            if info.size < 0:
                raise CutOffError(self.path, here, f"the archive is damaged: a size of {info.size}")
            if info.type in _TEXTS:
                text = self.text(info.size, here)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = _decoded(text.rstrip(b"\0"))
                elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                    records = _pax_records(text)
                    long_name = records.get("path", long_name)
                    long_size = int(records["size"]) if records.get("size", "").isdecimal() else long_size
                continue
            name = info.name if long_name is None else long_name
            size = info.size if long_size is None else long_size
            if info.type in _FILES and wanted(name):
                data = self.read(size, name)
                yield Member(name, data, start)
                self.skip(-size % _BLOCK, name)
            elif info.type not in _WITHOUT_DATA:
                self.skip(size + -size % _BLOCK, name)
            start, long_name, long_size = self.offset, None, None

    def read(self, count: int, what: str) -> bytes:
        pieces, missing = [], count
        try:
            while missing and (piece := self.file.read(min(missing, _CHUNK))):
                pieces.append(piece)
                missing -= len(piece)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CutOffError(self.path, self.offset, f"the gzip stream breaks in {what} ({error})") from error
        self.offset += count - missing
        if missing:
            raise CutOffError(self.path, self.offset, f"the file ends in {what}")
        return b"".join(pieces)

    def skip(self, count: int, what: str) -> None:
        if count > 1:
            try:
                self.file.seek(count - 1, 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise CutOffError(self.path, self.offset, f"the gzip stream breaks in {what} ({error})") from error
            self.offset += count - 1
        if count and not self.file.read(1):  # a seek goes beyond the end without a word
            raise CutOffError(self.path, self.file.seek(0, 2), f"the file ends in {what}")
        self.offset += min(count, 1)

    def text(self, size: int, here: int) -> bytes:
        if size > _MOST_TEXT:
            raise CutOffError(self.path, here, f"the archive is damaged: a name of {size:,} bytes")
        text = self.read(size, "a long name")
        self.skip(-size % _BLOCK, "a long name")
        return text


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _pax_records(text: bytes) -> dict[str, str]:
    """Records of a pax header, each ``length key=value`` and a line feed."""
    records = {}
    while text:
        length, _, rest = text.partition(b" ")
        if not length.isdigit() or int(length) <= len(length) + 1:
            break  # padding, or damage that the next header will show
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        records[_decoded(key)] = _decoded(value)
        text = text[int(length) :]
    return records
