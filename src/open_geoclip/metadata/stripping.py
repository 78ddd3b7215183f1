"""Taking a photo's place out of its file: EXIF GPS, XMP and IPTC fields, texts; pixels and all else stay.

Bytes are overwritten where they are, so nothing that counts from a beginning moves: the file keeps its length but for
IPTC records and texts of a PNG. What may hold a place and cannot be looked into is told, never passed over.
"""

import hashlib
from dataclasses import dataclass

from open_geoclip.errors import ImageError
from open_geoclip.metadata import xmp
from open_geoclip.metadata.blocks import Block, Blocks, exif_of, split
from open_geoclip.metadata.iptc import without_places
from open_geoclip.metadata.tiff import GPS, Directory, Tiff, TiffError, numbers

__all__ = ["Stripped", "strip", "strip_packet"]

_MAKER_NOTE = 0x927C
_XMP, _IPTC, _PHOTOSHOP = 700, 33723, 34377
_GEOTIFF = {33550, 33922, 34264, 34735, 34736, 34737}  # GeoTIFF 1.1 (OGC 19-008), annex A
_WORDS = {0x010E: "its description", 0x9286: "its comment", 0x9C9B: "its title", 0x9C9C: "its comment (Windows)"}
_WORDS |= {0x9C9E: "its keywords (Windows)", 0x9C9F: "its subject (Windows)", 42112: "its GDAL metadata"}


@dataclass(frozen=True)
class Stripped:
    """A file without its place.

    Attributes:
        data: the file.
        removed: what was taken out, in words; empty when there was nothing and the data are what they were.
        unsure: what is still there and may tell a place, in words.
    """

    data: bytes
    removed: tuple[str, ...]
    unsure: tuple[str, ...]


def strip(data: bytes, name: str, *, maker_notes: bool = False) -> Stripped:
    """Take out all that says where a photo was taken.

    Args:
        data: the file.
        name: what errors call it.
        maker_notes: take the camera maker's notes out as well, which no one but the maker can read for certain.

    Raises:
        ImageError: it is no picture, of a kind that cannot be written, or a place is still found afterwards.
    """
    found = split(data, name)
    if found.format == "GIF":
        raise ImageError(name, "places in a GIF cannot be removed: save it as PNG")
    work = _Work(found, maker_notes)
    try:
        work.run()
    except TiffError as error:
        raise ImageError(name, f"the TIFF is damaged: {error}") from error
    changed = found.replaced(work.changes) if work.changes else data
    if changed != data and (left := _Work(split(changed, name), maker_notes)).would_remove():
        raise ImageError(name, f"not all could be removed ({', '.join(left.removed)}): its metadata are damaged")
    if found.format == "TIFF" and _pixel_bytes(data) != _pixel_bytes(changed):
        raise ImageError(
            name, "its metadata and its pixels share bytes, as only a damaged file has: nothing was changed"
        )
    return Stripped(changed, tuple(dict.fromkeys(work.removed)), tuple(dict.fromkeys(work.unsure)))


def strip_packet(packet: bytes) -> tuple[bytes, list[str]]:
    """An XMP packet without its places, and what was taken out.

    Raises:
        XmpError: it cannot be understood.
    """
    changed, gone = xmp.without(packet, xmp.is_location)
    return changed, [f"XMP {one.name}" for one in gone]


class _Work:
    def __init__(self, found: Blocks, maker_notes: bool) -> None:
        self.found = found
        self.maker_notes = maker_notes
        self.removed: list[str] = []
        self.unsure: list[str] = list(found.notes)
        self.changes: dict[Block, bytes | None] = {}

    def would_remove(self) -> bool:
        self.run()
        return bool(self.removed)

    def run(self) -> None:
        extended = [block for block in self.found.of("xmp") if block.name.startswith("extended")]
        for block in self.found.blocks:
            if block.kind == "exif":
                self._change(block, self._tiff(block.payload))
            elif block.kind == "xmp" and block not in extended:
                self._change(block, self._packet(block.payload))
            elif block.kind == "iptc":
                self._change(block, self._iptc(block.payload))
            elif block.kind == "text":
                self._text(block)
            else:
                if block not in extended:
                    self.unsure.append(f"{block.name} is kept")
        if extended:  # one packet in pieces, which keep their lengths
            whole = b"".join(block.payload for block in extended)
            changed, at = self._packet(whole), 0
            for block in extended:
                self._change(block, changed[at : at + len(block.payload)])
                at += len(block.payload)

    def _change(self, block: Block, payload: bytes) -> None:
        if payload != block.payload:
            self.changes[block] = payload

    def _packet(self, packet: bytes) -> bytes:
        try:
            changed, gone = strip_packet(packet)
            if any(
                one.name in ("subject", "title", "description", "hierarchicalSubject", "Headline")
                for one in xmp.properties(xmp.decoded(changed))
            ):
                self.unsure.append("title, description and keywords (XMP) are kept")
        except xmp.XmpError:
            if not packet.strip(b"\0 \r\n\t"):
                return packet
            self.removed.append("all XMP, which could not be understood")
            return b" " * len(packet)
        self.removed += gone
        if not gone:
            return packet
        if len(changed) > len(packet):  # it was in another encoding
            changed = b"".join(line.strip() for line in changed.splitlines())
            if len(changed) > len(packet):
                self.removed.append("all XMP, which did not fit in its place")
                return b" " * len(packet)
        return xmp.padded(changed, len(packet))

    def _iptc(self, block: bytes) -> bytes:
        changed, gone, fault = without_places(block)
        self.removed += gone
        if fault is not None:
            self.unsure.append(f"{fault}: they are kept")
        elif block:
            self.unsure.append("captions and keywords (IPTC) are kept")
        return changed

    def _text(self, block: Block) -> None:
        if xmp.is_location(xmp.Property("", block.key.split(":")[-1], "", 0, 0)):
            self.changes[block] = None
            self.removed.append(block.name)
        elif block.key.lower() not in ("software", "date:create", "date:modify", "date:timestamp", "creation time"):
            self.unsure.append(f"{block.name} is kept")

    def _tiff(self, payload: bytes) -> bytes:
        prefix = payload[: len(payload) - len(exif_of(payload))]
        data = bytearray(payload[len(prefix) :])
        try:
            tiff = Tiff.read(data)
        except TiffError as error:
            if self.found.format == "TIFF":
                raise
            if payload.strip(b"\0"):
                self.removed.append(f"all EXIF data, which could not be understood ({error})")
            return bytes(len(payload))
        damaged = list(tiff.faults)
        for directory in tiff.named("GPS"):
            self.removed += ["EXIF GPS"] if directory.entries or _points_at(directory) else []
            tiff.erase(directory)
        for tag in (GPS, *([_MAKER_NOTE] if self.maker_notes else ())):
            self._pointers(data, tag)
        self._tags(data)
        if damaged:
            self.unsure.append(f"its EXIF data are damaged and were read as far as they go ({damaged[0]})")
        return prefix + bytes(data)

    def _pointers(self, data: bytearray, tag: int) -> None:
        """Remove a tag wherever it is; directories are read again after each change, as tags have moved."""
        for _ in range(256):
            tiff = Tiff.read(data)
            holder = next((d for d in tiff.directories if d.get(tag) is not None), None)
            if holder is None:
                return
            for _ in tiff.remove(holder, {tag}):
                self.removed.append("EXIF GPS" if tag == GPS else "the camera maker's notes")
            self.unsure += [fault for fault in tiff.faults if "is kept" in fault]

    def _tags(self, data: bytearray) -> None:
        tiff = Tiff.read(data)
        for directory in tiff.directories:
            for tag, words in _WORDS.items():
                if (entry := directory.get(tag)) is not None and tiff.value(entry).strip(b"\0 "):
                    self.unsure.append(f"{words} is kept")
            if directory.name == "Exif" and directory.get(_MAKER_NOTE) is not None:
                self.unsure.append("the camera maker's notes are kept (--maker-notes removes them)")
            if directory.get(0x0201) is not None:
                self.unsure.append("the preview picture is kept")
        if self.found.format != "TIFF":
            return
        for directory in tiff.directories:
            if (entry := directory.get(_XMP)) is not None:
                packet = tiff.value(entry)
                data[entry.value_at : entry.value_at + entry.size] = self._packet(packet)
            for tag in (_IPTC, _PHOTOSHOP):
                if (entry := directory.get(tag)) is not None:
                    records = self._iptc(tiff.value(entry)).ljust(entry.size, b"\0")
                    data[entry.value_at : entry.value_at + entry.size] = records
        for number in range(len(tiff.directories)):
            tiff = Tiff.read(data)
            gone = tiff.remove(tiff.directories[number], _GEOTIFF)
            self.removed += ["GeoTIFF georeferencing"] if gone else []


def _pixel_bytes(data: bytes) -> list[bytes]:
    """The strips and tiles of a TIFF."""
    tiff = Tiff.read(data)
    found = []
    for directory in tiff.directories:
        for offsets, counts in ((273, 279), (324, 325)):
            starts, sizes = directory.get(offsets), directory.get(counts)
            if starts is not None and sizes is not None:
                spans = zip(numbers(tiff, starts), numbers(tiff, sizes), strict=False)
                found += [hashlib.sha256(data[int(at) : int(at + size)]).digest() for at, size in spans]
    return found


def _points_at(directory: Directory) -> bool:
    return directory.parent is not None and directory.parent.tag == GPS
