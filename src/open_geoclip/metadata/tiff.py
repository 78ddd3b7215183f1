"""The structure of EXIF data, which is that of a TIFF file: directories of tags, read and changed in place.

TIFF 6.0 (1992), section 2; CIPA DC-008 (Exif 3.0), 4.5 and 4.6. Nothing here believes what the bytes say: an offset may
lead outside, into itself or round in a circle, and a count may be anything. What is wrong is noted in ``faults`` and
left out; nothing is raised but :class:`TiffError`, for data that are no TIFF at all.

Changes never move a byte: a tag is removed by overwriting it and its value, and added by appending a new directory at
the end. So maker notes and thumbnails, whose offsets count from the beginning, stay what they were.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from open_geoclip.errors import DataError

__all__ = ["EXIF", "GPS", "Directory", "Entry", "Field", "Tiff", "TiffError", "numbers", "text", "with_directory"]

EXIF, GPS, INTEROP, SUB_IFDS = 0x8769, 0x8825, 0xA005, 0x014A
_POINTERS = {EXIF: "Exif", GPS: "GPS", INTEROP: "Interop", SUB_IFDS: "Sub"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8, 129: 1}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MOST_DIRECTORIES = 256
_MOST_TAGS = 1024  # of one directory, and eight times as many in all: no camera writes a tenth of it
_MOST_VALUES = 4096  # of one tag, when it is read as numbers


class TiffError(DataError):
    """Bytes that are no TIFF structure."""


@dataclass(frozen=True)
class Entry:
    """One tag.

    Attributes:
        tag: its number.
        kind: its type's number.
        count: how many values.
        at: where its own bytes begin.
        value_at: where its value begins.
        size: bytes of the value.
    """

    tag: int
    kind: int
    count: int
    at: int
    value_at: int
    size: int


@dataclass(frozen=True)
class Directory:
    """One directory (IFD).

    Attributes:
        name: ``IFD0``, ``IFD1``, ..., ``Exif``, ``GPS``, ``Interop``, ``Sub``.
        at: where it begins.
        entries: those whose value lies inside the data.
        next_at: where the offset of the next directory stands.
        parent: the tag that points at it; None where it is of the main chain.
    """

    name: str
    at: int
    entries: tuple[Entry, ...]
    next_at: int
    parent: Entry | None = None

    def get(self, tag: int) -> Entry | None:
        """The first entry of a tag."""
        return next((entry for entry in self.entries if entry.tag == tag), None)


@dataclass
class Tiff:
    """The directories of EXIF data or of a TIFF file.

    Attributes:
        data: all bytes; changed by :meth:`remove` and :meth:`point_to` when they are a bytearray.
        order: ``<`` or ``>``.
        big: BigTIFF, with offsets of eight bytes.
        directories: all that can be reached.
        faults: what is wrong, in words.
    """

    data: bytes | bytearray
    order: str = "<"
    big: bool = False
    directories: list[Directory] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, data: bytes | bytearray) -> "Tiff":
        """Read all directories.

        Raises:
            TiffError: the data do not begin as a TIFF does, or end before its first directory.
        """
        order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
        if order is None or len(data) < 8:
            raise TiffError("no TIFF structure (it begins with neither II nor MM)")
        (version,) = struct.unpack_from(f"{order}H", data, 2)
        if version not in (42, 43):
            raise TiffError(f"no TIFF structure (version {version})")
        found = cls(data, order, version == 43)
        if found.big and len(data) < 16:
            raise TiffError("a BigTIFF that ends in its header")
        at = found._offset(8 if found.big else 4)
        if at + 2 > len(data) or at == 0:
            raise TiffError("its first directory lies outside the data")
        found._walk(at)
        return found

    @property
    def main(self) -> Iterator[Directory]:
        """The directories of the main chain: the picture, its thumbnail, further pages."""
        return (directory for directory in self.directories if directory.parent is None)

    def named(self, name: str) -> list[Directory]:
        """All directories of a name."""
        return [directory for directory in self.directories if directory.name == name]

    def find(self, name: str, tag: int) -> Entry | None:
        """The first entry of a tag in the directories of a name."""
        return next((entry for d in self.named(name) if (entry := d.get(tag)) is not None), None)

    def value(self, entry: Entry) -> bytes:
        """The bytes of an entry's value."""
        return bytes(self.data[entry.value_at : entry.value_at + entry.size])

    # --- reading ----------------------------------------------------------------------------------

    def _offset(self, at: int) -> int:
        return int(struct.unpack_from(f"{self.order}{'Q' if self.big else 'I'}", self.data, at)[0])

    def _walk(self, first: int) -> None:
        seen: set[int] = set()
        waiting: list[tuple[str, int, Entry | None]] = [("IFD0", first, None)]
        pages = 0
        while waiting:
            name, at, parent = waiting.pop()
            if at in seen:
                self.faults.append(f"{name}: a directory that was read before (offset {at})")
                continue
            seen.add(at)
            if len(self.directories) >= _MOST_DIRECTORIES:
                self.faults.append(f"more than {_MOST_DIRECTORIES} directories")
                return
            directory = self._directory(name, at, parent)
            if directory is None:
                continue
            self.directories.append(directory)
            if parent is None and directory.next_at + (8 if self.big else 4) <= len(self.data):
                following = self._offset(directory.next_at)
                if following:
                    pages += 1
                    waiting.append((f"IFD{pages}", following, None))
            for entry in directory.entries:
                if entry.tag in _POINTERS:
                    # Only as many as fit the bound are followed, whatever the count says.
                    targets = numbers(self, entry)[:_MOST_DIRECTORIES]
                    waiting += [(_POINTERS[entry.tag], int(target), entry) for target in targets if target > 0]

    def _directory(self, name: str, at: int, parent: Entry | None) -> Directory | None:
        head, each, code = (8, 20, "Q") if self.big else (2, 12, "H")
        if at + head > len(self.data):
            self.faults.append(f"{name}: lies outside the data (offset {at})")
            return None
        (count,) = struct.unpack_from(f"{self.order}{code}", self.data, at)
        fits = (len(self.data) - at - head) // each
        room = min(fits, _MOST_TAGS, 8 * _MOST_TAGS - sum(len(known.entries) for known in self.directories))
        if count > room:
            self.faults.append(f"{name}: is cut off after {room} of {count} tags")
        entries = []
        inline, layout = (8, "HHQ") if self.big else (4, "HHI")
        for number in range(min(count, room)):
            where = at + head + number * each
            tag, kind, values = struct.unpack_from(self.order + layout, self.data, where)
            if kind not in _SIZES:
                self.faults.append(f"{name}: tag {tag:#06x} has the unknown type {kind}")
                continue
            size, value_at = _SIZES[kind] * values, where + each - inline
            if size > inline:
                value_at = self._offset(value_at)
            if value_at + size > len(self.data):
                self.faults.append(f"{name}: the value of tag {tag:#06x} lies outside the data")
                continue
            entries.append(Entry(tag, kind, values, where, value_at, size))
        return Directory(name, at, tuple(entries), at + head + count * each, parent)

    # --- changing ---------------------------------------------------------------------------------

    def blank(self, start: int, size: int) -> None:
        """Overwrite bytes with zeros."""
        assert isinstance(self.data, bytearray)
        self.data[start : start + size] = bytes(size)

    def remove(self, directory: Directory, tags: set[int]) -> list[int]:
        """Take tags out of a directory and overwrite their values; gives the tags that were there.

        The entries behind them move up, and the offset of the next directory with them. Read again afterwards.
        """
        assert isinstance(self.data, bytearray)
        gone = [entry for entry in directory.entries if entry.tag in tags]
        head, each, inline, code = (8, 20, 8, "Q") if self.big else (2, 12, 4, "H")
        for entry in gone:
            if entry.size > inline and self._is_shared(entry, gone):
                self.faults.append(
                    f"{directory.name}: the value of tag {entry.tag:#06x} is kept, other tags use it too"
                )
            elif entry.size > inline:
                self.blank(entry.value_at, entry.size)
        (count,) = struct.unpack_from(f"{self.order}{code}", self.data, directory.at)
        start = directory.at + head
        end = min(start + count * each, start + (len(self.data) - start) // each * each)
        width = 8 if self.big else 4
        following = bytes(self.data[directory.next_at : directory.next_at + width])
        cut = {entry.at for entry in gone}
        kept = b"".join(bytes(self.data[at : at + each]) for at in range(start, end, each) if at not in cut)
        if gone:
            room = end + len(following) - start
            self.data[start : start + room] = (kept + following).ljust(room, b"\0")
            struct.pack_into(f"{self.order}{code}", self.data, directory.at, count - len(gone))
        return [entry.tag for entry in gone]

    def _is_shared(self, entry: Entry, gone: list[Entry]) -> bool:
        """Whether a value's bytes belong to a tag that stays or to a directory as well, as hostile data say."""
        start, end = entry.value_at, entry.value_at + entry.size
        if start < 8:
            return True
        tail = 8 if self.big else 4
        if any(start < known.next_at + tail and known.at < end for known in self.directories):
            return True
        going = {one.at for one in gone}
        others = (one for known in self.directories for one in known.entries if one.at not in going)
        return any(one.size and start < one.value_at + one.size and one.value_at < end for one in others)

    def erase(self, directory: Directory) -> None:
        """Overwrite a directory and all its values; the tag that points at it is not touched."""
        tail = 8 if self.big else 4
        self.remove(directory, {entry.tag for entry in directory.entries})
        left = directory.next_at + tail - directory.at
        self.blank(directory.at, min(left, len(self.data) - directory.at))


def numbers(tiff: Tiff, entry: Entry) -> tuple[float, ...]:
    """An entry's values as numbers: whole ones are int; a rational with nothing below the line is NaN."""
    count = min(entry.count, _MOST_VALUES)
    if entry.kind in (5, 10):
        code = "I" if entry.kind == 5 else "i"
        parts = struct.unpack_from(f"{tiff.order}{2 * count}{code}", tiff.data, entry.value_at)
        return tuple(a / b if b else math.nan for a, b in zip(parts[::2], parts[1::2], strict=True))
    if entry.kind not in _CODES:
        return ()
    return tuple(struct.unpack_from(f"{tiff.order}{count}{_CODES[entry.kind]}", tiff.data, entry.value_at))


def text(tiff: Tiff, entry: Entry | None) -> str | None:
    """An entry's value as text: ASCII, UTF-8 (Exif 3.0), or with a character code before it (DC-008, 4.6.6)."""
    if entry is None or entry.kind not in (1, 2, 7, 129):
        return None
    raw = tiff.value(entry)[:4096]
    if entry.kind == 7:
        head, raw = raw[:8], raw[8:]
        if head.startswith(b"UNICODE"):
            return raw.decode("utf-16-le" if tiff.order == "<" else "utf-16-be", "replace").strip("\0 ") or None
        if not head.startswith((b"ASCII", bytes(8))):
            raw = head + raw  # some cameras leave the code away
    return raw.split(b"\0")[0].decode("utf-8", "replace").strip() or None


@dataclass(frozen=True)
class Field:
    """A tag that is to be written.

    Attributes:
        tag: its number.
        kind: its type's number.
        count: how many values.
        value: as bytes, in the order of the data that it goes into.
    """

    tag: int
    kind: int
    count: int
    value: bytes


def directory_bytes(order: str, fields: Sequence[Field], at: int) -> bytes:
    """A directory that stands at an even offset ``at``, its values behind it, and none to follow."""
    head = struct.pack(f"{order}H", len(fields))
    values_at = at + 2 + 12 * len(fields) + 4
    values = b""
    for one in sorted(fields, key=lambda one: one.tag):
        value = one.value.ljust(4, b"\0")
        if len(value) > 4:
            value, values = struct.pack(f"{order}I", values_at + len(values)), values + value + bytes(len(value) % 2)
        head += struct.pack(f"{order}HHI", one.tag, one.kind, one.count) + value
    return head + bytes(4) + values


def with_directory(data: bytes, pointer: int, fields: Sequence[Field]) -> bytes:
    """EXIF data or a TIFF file with a new directory that a tag of the first one points at; nothing else is moved.

    Both are appended: the new directory, and a copy of the first one with the tag in it, unless it is there already;
    then what it pointed at is overwritten.

    Raises:
        TiffError: the data are damaged, a BigTIFF, or would be too long for their offsets.
    """
    changed = bytearray(data)
    changed += bytes(len(changed) % 2)
    tiff = Tiff.read(changed)
    [first] = tiff.named("IFD0")
    if tiff.big:
        raise TiffError("a BigTIFF, which is not written to")
    if any(fault.startswith("IFD0") for fault in tiff.faults):
        raise TiffError(f"damaged: {tiff.faults[0]}")
    entry = first.get(pointer)
    if entry is not None:
        for directory in tiff.directories:
            if directory.parent == entry:
                tiff.erase(directory)
        struct.pack_into(f"{tiff.order}HHII", changed, entry.at, pointer, 4, 1, len(changed))
    at = len(changed)
    changed += directory_bytes(tiff.order, fields, at)
    if entry is None:
        (count,) = struct.unpack_from(f"{tiff.order}H", changed, first.at)
        rows = [bytes(changed[start : start + 12]) for start in range(first.at + 2, first.next_at, 12)]
        rows.append(struct.pack(f"{tiff.order}HHII", pointer, 4, 1, at))
        rows.sort(key=lambda row: struct.unpack_from(f"{tiff.order}H", row)[0])
        following = bytes(changed[first.next_at : first.next_at + 4]).ljust(4, b"\0")
        struct.pack_into(f"{tiff.order}I", changed, 4, len(changed))
        changed += struct.pack(f"{tiff.order}H", count + 1) + b"".join(rows) + following
    if len(changed) > 0xFFFFFFFF:
        raise TiffError("too long for the offsets of a TIFF")
    return bytes(changed)
