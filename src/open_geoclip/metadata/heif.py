"""Where a HEIC or AVIF file keeps its EXIF data and XMP: ISO 14496-12 (boxes, items) and ISO 23008-12, annex A.

Items lie at offsets from the beginning of the file. So what is read here can be overwritten in place by as many bytes,
but nothing can be made longer without moving the pixels.
"""

import struct
from collections.abc import Iterator
from typing import Literal

from open_geoclip.metadata.tiff import Tiff, TiffError

__all__ = ["heif_blocks"]

Span = tuple[Literal["exif", "xmp"], int, int, str]  # kind, start, end, name

_MOST_ITEMS = 4096


def heif_blocks(data: bytes) -> tuple[list[Span], list[str]]:
    """The EXIF and XMP items of a file, and what was not understood."""
    notes: list[str] = []
    meta = next(((start, end) for kind, start, end in _boxes(data, 0, len(data)) if kind == b"meta"), None)
    if meta is None:
        return [], notes
    inside = {kind: (start, end) for kind, start, end in _boxes(data, meta[0] + 4, meta[1])}
    try:
        names = dict(_items(data, *inside[b"iinf"])) if b"iinf" in inside else {}
        places = dict(_places(data, inside)) if b"iloc" in inside else {}
    except (struct.error, IndexError, ValueError):
        return [], ["the list of items of the HEIC or AVIF is damaged"]
    found: list[Span] = []
    for item, (kind, mime) in names.items():
        what: Literal["exif", "xmp"] | None
        what = "exif" if kind == b"Exif" else "xmp" if kind == b"mime" and mime == b"application/rdf+xml" else None
        if what is None:
            continue
        extents = places.get(item, [])
        if len(extents) != 1:
            notes.append(f"an item with {what.upper()} data lies in {len(extents)} parts and was not looked into")
            continue
        [(start, end)] = extents
        if not 0 <= start <= end <= len(data):
            notes.append(f"an item with {what.upper()} data lies outside the file")
            continue
        others = [part for other, parts in places.items() if other != item for part in parts]
        if any(start < stop and begin < end for begin, stop in others):
            notes.append(f"an item with {what.upper()} data shares bytes with another and was not looked into")
            continue
        if what == "exif":
            start = _tiff_start(data, start, end)
        found.append((what, start, end, what.upper()))
    return found, notes


def _tiff_start(data: bytes, start: int, end: int) -> int:
    """Behind the offset that stands before EXIF data, and the offset itself."""
    if end - start < 4:
        return end
    told = start + 4 + struct.unpack_from(">I", data, start)[0]
    for at in (told, start + 4, start + 10, start):
        if at < end:
            try:
                Tiff.read(data[at:end])
            except TiffError:
                continue
            return at
    return min(start + 4, end)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box."""
    for _ in range(_MOST_ITEMS):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        elif size == 0:
            size = end - at
        if size < head or at + size > end:
            return
        yield kind, at + head, at + size
        at += size


def _items(data: bytes, at: int, end: int) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Number, kind and content type of each item (iinf)."""
    version = data[at]
    start = at + 4 + (2 if version == 0 else 4)
    for kind, begin, stop in _boxes(data, start, end):
        if kind != b"infe" or data[begin] < 2:
            continue
        wide = data[begin] > 2
        number, _, item = struct.unpack_from(">IH4s" if wide else ">HH4s", data, begin + 4)
        rest = data[begin + (14 if wide else 12) : stop].split(b"\0")
        yield number, (item, rest[1] if len(rest) > 1 else b"")


def _places(data: bytes, inside: dict[bytes, tuple[int, int]]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Where the parts of each item lie (iloc)."""
    at, end = inside[b"iloc"]
    version, sizes = data[at], struct.unpack_from(">H", data, at + 4)[0]
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    at += 6
    wide = version == 2

    def number(size: int) -> int:
        nonlocal at
        if at + size > end or size not in (0, 2, 4, 8):
            raise ValueError
        at += size
        return int.from_bytes(data[at - size : at], "big")

    for _ in range(min(number(4 if wide else 2), _MOST_ITEMS)):
        item = number(4 if wide else 2)
        method = number(2) & 15 if version in (1, 2) else 0
        number(2)
        base = number(base_size)
        parts = []
        for _ in range(number(2)):
            number(index_size)
            start = base + number(offset_size)
            length = number(length_size)
            if method == 1:  # within the box idat
                start += inside.get(b"idat", (len(data), 0))[0]
            parts.append((start, start + length if length else len(data)))
        if method < 2:
            yield item, parts
