"""Where a picture's file keeps what is written beside its pixels, and putting other bytes there.

A file is cut into parts: blocks of metadata, and everything else, which is carried over byte for byte. So pixels,
colour profiles, maker notes and whatever else there is cannot change; only a block's own bytes can, and what a
container demands of them: lengths, checksums, and where a JPEG's further pictures begin.

JPEG: ISO 10918-1, annex B, and CIPA DC-007 for several pictures; PNG: third edition, 2025; WebP: RFC 9649.
HEIC and AVIF are in :mod:`open_geoclip.metadata.heif`; a TIFF is one block.
"""

import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from open_geoclip.errors import ImageError
from open_geoclip.images import sniff
from open_geoclip.metadata.heif import heif_blocks

__all__ = ["WRITABLE", "Block", "BlockKind", "Blocks", "exif_of", "split"]

BlockKind = Literal["exif", "xmp", "iptc", "text", "other"]

WRITABLE = ("JPEG", "PNG", "WEBP", "TIFF")
"""Kinds of files whose blocks may change their length, so that new ones can be put in."""

_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_IRB = b"Photoshop 3.0\0"
_PROFILE = b"Raw profile type "
_MOST_TEXT = 2**24  # of a compressed text in a PNG


@dataclass(frozen=True)
class Block:
    """One block of metadata.

    Attributes:
        kind: ``exif`` is a TIFF structure, ``xmp`` a packet, ``iptc`` Photoshop's resources, ``text`` a PNG's text
            (``key`` is its name), ``other`` anything else, told for what it is.
        start: where its payload begins in the file.
        end: where it ends.
        payload: its bytes, decompressed.
        name: what it is called.
        key: the name of a text.
        wrap: makes of a payload what stands in the file, with all that must stand around it.
        outer: what :attr:`wrap` replaces; the payload alone when not given.
    """

    kind: BlockKind
    start: int
    end: int
    payload: bytes
    name: str
    key: str = ""
    wrap: Callable[[bytes], bytes] = bytes
    outer: tuple[int, int] | None = None

    @property
    def span(self) -> tuple[int, int]:
        """The part of the file that is replaced."""
        return self.outer or (self.start, self.end)


@dataclass(frozen=True)
class Blocks:
    """The blocks of a file.

    Attributes:
        format: as :func:`open_geoclip.images.sniff` says.
        data: all bytes.
        blocks: in order.
        notes: what else may hold a place and was not looked into.
        new: for each kind that can be added, where it would go and how it is wrapped.
    """

    format: str
    data: bytes
    blocks: tuple[Block, ...] = ()
    notes: tuple[str, ...] = ()
    new: Mapping[str, tuple[int, Callable[[bytes], bytes]]] = field(default_factory=dict)

    def of(self, kind: BlockKind) -> list[Block]:
        """All blocks of a kind."""
        return [block for block in self.blocks if block.kind == kind]

    def replaced(self, changes: Mapping[Block, bytes | None]) -> bytes:
        """The file with other payloads, or without some blocks (None)."""
        pieces, at = [], 0
        for block in sorted(changes, key=lambda block: block.span):
            payload = changes[block]
            start, end = block.span
            pieces += [self.data[at:start], b"" if payload is None else block.wrap(payload)]
            at = end
        return _mended(self.format, self.data, b"".join([*pieces, self.data[at:]]))

    def added(self, kind: str, payload: bytes) -> bytes:
        """The file with one block more."""
        at, wrap = self.new[kind]
        data = _with_vp8x(self.data) if self.format == "WEBP" else self.data
        at = len(data) if self.format == "WEBP" else at
        return _mended(self.format, data, data[:at] + wrap(payload) + data[at:])


def split(data: bytes, name: str) -> Blocks:
    """Find the blocks of a picture.

    Raises:
        ImageError: it is no picture, or too damaged to tell where its metadata are.
    """
    kind = sniff(data, name)
    try:
        if kind == "JPEG":
            return _jpeg(data, name)
        if kind == "PNG":
            return _png(data, name)
        if kind == "WEBP":
            return _webp(data, name)
        if kind == "TIFF":
            return Blocks(kind, data, (Block("exif", 0, len(data), data, "TIFF"),))
        if kind in ("HEIF", "AVIF"):
            spans, unread = heif_blocks(data)
            found = [Block(k, start, end, data[start:end], label) for k, start, end, label in spans]
            return Blocks(kind, data, tuple(found), tuple(unread))
    except struct.error as error:
        raise ImageError(name, f"the {kind} is damaged or cut off: {error}") from error
    notes = ("a comment or an extension of the GIF may name a place",) if kind == "GIF" else ()
    return Blocks(kind, data, (), notes)


def exif_of(payload: bytes) -> bytes:
    """The TIFF structure of an EXIF payload, without the prefix that some programs write where none belongs."""
    while payload.startswith(_EXIF):
        payload = payload[len(_EXIF) :]
    return payload


# --- JPEG -----------------------------------------------------------------------------------------

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


def _jpeg(data: bytes, name: str) -> Blocks:
    """All segments of all pictures: a phone's file holds several, one behind the other, each with EXIF of its own."""
    blocks: list[Block] = []
    notes: list[str] = []
    at, picture, new_at = 2, 0, 2
    while at < len(data):
        if data[at] != 0xFF:  # what stands between segments is skipped, and pixels are
            found = _MARKER.search(data, at)
            at = found.start() if found else len(data)
            continue
        while at < len(data) and data[at] == 0xFF:
            at += 1
        marker = data[at] if at < len(data) else 0xD9
        start, at = at - 1, at + 1
        if marker == 0xD9:
            following = data.find(b"\xff\xd8\xff", at, at + 65536)
            if following < 0 or data[at:following].strip(b"\0"):
                if at < len(data):
                    notes.append(f"{len(data) - at:,} bytes behind the picture (a video or preview?) are kept")
                break
            at, picture = following + 2, picture + 1
            continue
        if marker in (0x00, 0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            continue
        if at + 2 > len(data):
            break
        end = at + struct.unpack_from(">H", data, at)[0]
        if end > len(data) or end < at + 2:
            if picture == 0 and not any(block.kind != "other" for block in blocks) and marker != 0xDA:
                raise ImageError(name, "the JPEG is damaged or cut off: a segment does not fit")
            notes.append("a segment of the JPEG does not fit and what follows was not looked into")
            break
        if marker == 0xE0 and picture == 0:
            new_at = end
        block = _segment(data, marker, start, at + 2, end, f", picture {picture + 1}" if picture else "")
        if block is not None:
            blocks.append(block)
        at = end
        if marker == 0xDA:  # pixels follow, in which 0xFF is followed by 0x00 or a restart marker
            found = _MARKER.search(data, at)
            at = found.start() if found else len(data)

    def wrap(payload: bytes) -> bytes:
        return _app(0xE1, _EXIF + payload)

    return Blocks("JPEG", data, tuple(blocks), tuple(notes), {"exif": (new_at, wrap)})


def _segment(data: bytes, marker: int, start: int, begin: int, end: int, which: str) -> Block | None:
    body = data[begin : min(end, begin + 40)]
    heads: tuple[tuple[int, bytes, BlockKind, str], ...] = (
        (0xE1, _EXIF, "exif", "EXIF"),
        (0xE1, _XMP, "xmp", "XMP"),
        (0xE1, _MORE_XMP, "xmp", "extended XMP"),
        (0xED, _IRB, "iptc", "IPTC"),
    )
    for of, head, kind, name in heads:
        if marker == of and body.startswith(head):
            skip = len(head) + (40 if head == _MORE_XMP else 0)  # a digest, the whole length and an offset
            if begin + skip > end:
                break
            prefix = data[begin : begin + skip]

            def wrap(payload: bytes, marker: int = marker, prefix: bytes = prefix) -> bytes:
                return _app(marker, prefix + payload)

            payload = data[begin + skip : end]
            return Block(kind, begin + skip, end, payload, f"{name}{which}", wrap=wrap, outer=(start, end))
    if marker == 0xFE:
        return Block("other", begin, end, data[begin:end], f"a comment of {end - begin:,} bytes{which}")
    if marker == 0xEB and b"jumb" in data[begin : begin + 64]:
        return Block("other", begin, end, b"", f"content credentials (C2PA){which}")
    known = (b"JFIF\0", b"JFXX\0", b"ICC_PROFILE\0", b"MPF\0", b"Adobe", b"urn:iso:std:iso:ts:21496")
    if 0xE0 <= marker <= 0xEF and not body.startswith(known):
        return Block("other", begin, end, b"", f"an APP{marker - 0xE0} segment of {end - begin:,} bytes{which}")
    return None


def _app(marker: int, body: bytes) -> bytes:
    if len(body) > 65533:
        raise ImageError("the photo", "a JPEG holds at most 64 kB of EXIF data, and this would be more")
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def _moved_pictures(before: bytes, after: bytes) -> bytes:
    """A JPEG whose list of further pictures (CIPA DC-007, 5.2.3.3) counts with its new lengths."""
    at = after.find(b"MPF\0", 0, 2**18)
    was = before.find(b"MPF\0", 0, 2**18)
    if at < 0 or was < 0 or len(before) == len(after):
        return after
    base, old = at + 4, was + 4
    shifted = (len(after) - base) - (len(before) - old)  # what came or went behind the list
    order = {b"II": "<", b"MM": ">"}.get(after[base : base + 2])
    if order is None:
        return after
    changed = bytearray(after)
    try:
        (first,) = struct.unpack_from(f"{order}I", after, base + 4)
        (count,) = struct.unpack_from(f"{order}H", after, base + first)
        for row in range(min(count, 64)):
            tag, _, size, value = struct.unpack_from(f"{order}HHII", after, base + first + 2 + 12 * row)
            if tag != 0xB002:
                continue
            for entry in range(base + value, min(base + value + size, len(after) - 15), 16):
                length, offset = struct.unpack_from(f"{order}II", after, entry + 4)
                if offset == 0:  # the first picture, within which all the change was
                    struct.pack_into(f"{order}I", changed, entry + 4, length + len(after) - len(before))
                elif shifted:
                    struct.pack_into(f"{order}I", changed, entry + 8, offset + shifted)
    except struct.error:
        return after
    return bytes(changed)


# --- PNG ------------------------------------------------------------------------------------------


def _png(data: bytes, name: str) -> Blocks:
    blocks: list[Block] = []
    notes: list[str] = []
    at, new_at = 8, 0
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            notes.append(f"a chunk of the PNG ({kind.decode('latin1')}) is cut off")
            break
        if kind == b"IDAT" and not new_at:
            new_at = at
        body = data[at + 8 : end - 4]
        if (block := _chunk(kind, body, at, end)) is not None:
            blocks.append(block)
        at = end
        if kind == b"IEND":
            break
    if at < len(data):
        notes.append(f"{len(data) - at:,} bytes behind the picture are kept")
    if not new_at:
        raise ImageError(name, "the PNG is damaged or cut off: it has no pixels")
    return Blocks("PNG", data, tuple(blocks), tuple(notes), {"exif": (new_at, lambda p: _png_chunk(b"eXIf", p))})


def _chunk(kind: bytes, body: bytes, start: int, end: int) -> Block | None:
    place = (start + 8, end - 4)
    if kind == b"eXIf":
        return Block("exif", *place, body, "EXIF", wrap=lambda p: _png_chunk(kind, p), outer=(start, end))
    if kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return None
    key, _, rest = body.partition(b"\0")
    label = key.decode("latin1")
    try:
        if kind == b"tEXt":
            content, head = rest, b""
        elif kind == b"zTXt":
            content, head = _inflated(rest[1:]), b""
        else:
            packed = rest[:1] == b"\1"
            language, _, tail = rest[2:].partition(b"\0")
            translated, _, content = tail.partition(b"\0")
            content = _inflated(content) if packed else content
            head = rest[:2] + language + b"\0" + translated + b"\0"
    except zlib.error:
        return Block("other", *place, b"", f"a compressed text {label!r} that cannot be read", outer=(start, end))

    def wrap(payload: bytes) -> bytes:
        if kind == b"tEXt":
            told = payload
        elif kind == b"zTXt":
            told = b"\0" + zlib.compress(payload)
        else:
            told = head + (zlib.compress(payload) if head[:1] == b"\1" else payload)
        return _png_chunk(kind, key + b"\0" + told)

    if key == b"XML:com.adobe.xmp":
        return Block("xmp", *place, content, "XMP", wrap=wrap, outer=(start, end))
    if key.startswith(_PROFILE):
        return _profile(label, content, place, (start, end), wrap)
    return Block("text", *place, content, f"text {label!r}", key=label, wrap=wrap, outer=(start, end))


def _profile(
    label: str, content: bytes, place: tuple[int, int], outer: tuple[int, int], wrap: Callable[[bytes], bytes]
) -> Block | None:
    """Metadata as ImageMagick writes them into a PNG: a name, a length, and hexadecimal digits."""
    kinds: dict[str, BlockKind] = {"exif": "exif", "APP1": "exif", "xmp": "xmp", "iptc": "iptc", "8bim": "iptc"}
    profile = label.removeprefix(_PROFILE.decode())
    if profile not in kinds:
        return None if profile.startswith("ic") else Block("other", *place, b"", f"profile {profile!r}", outer=outer)
    try:
        raw = bytes.fromhex(b"".join(content.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return Block("other", *place, b"", f"a profile {profile!r} that cannot be read", outer=outer)
    kind = kinds[profile]
    prefix = _EXIF if kind == "exif" and raw.startswith(_EXIF) else b""
    if profile == "APP1" and raw.startswith(_XMP):
        kind, prefix = "xmp", _XMP

    def hexed(payload: bytes) -> bytes:
        digits = (prefix + payload).hex().encode()
        lines = b"\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
        return wrap(b"\n%s\n%8d\n%s\n" % (profile.encode(), len(prefix + payload), lines))

    return Block(kind, *place, raw[len(prefix) :], f"profile {profile!r}", wrap=hexed, outer=outer)


def _inflated(data: bytes) -> bytes:
    engine = zlib.decompressobj()
    found = engine.decompress(data, _MOST_TEXT)
    if engine.unconsumed_tail:
        raise zlib.error("longer than any text")
    return found


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# --- WebP -----------------------------------------------------------------------------------------


def _webp(data: bytes, name: str) -> Blocks:
    blocks: list[Block] = []
    notes: list[str] = []
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length
        if end > len(data):
            notes.append(f"a chunk of the WebP ({kind.decode('latin1')}) is cut off")
            break
        padded = min(end + length % 2, len(data))
        if kind in (b"EXIF", b"XMP "):
            body = data[at + 8 : end]
            prefix = body[: len(body) - len(exif_of(body))] if kind == b"EXIF" else b""

            def wrap(payload: bytes, kind: bytes = kind, prefix: bytes = prefix) -> bytes:
                return _webp_chunk(kind, prefix + payload)

            which: BlockKind = "exif" if kind == b"EXIF" else "xmp"
            label = kind.decode().strip()
            start = at + 8 + len(prefix)
            blocks.append(Block(which, start, end, body[len(prefix) :], label, wrap=wrap, outer=(at, padded)))
        at = padded
    if not data[12:16].startswith(b"VP8"):
        raise ImageError(name, "the WebP is damaged: it does not begin with a picture")
    return Blocks("WEBP", data, tuple(blocks), tuple(notes), {"exif": (len(data), lambda p: _webp_chunk(b"EXIF", p))})


def _webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def _with_vp8x(data: bytes) -> bytes:
    """A WebP with the header that one with metadata needs; the pixels' own chunk stays what it is."""
    if data[12:16] == b"VP8X":
        changed = bytearray(data)
        changed[20] |= 8  # there is EXIF
        return bytes(changed)
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height, alpha = bits & 0x3FFF, bits >> 14 & 0x3FFF, bits >> 28 & 1
    else:
        width, height = ((side & 0x3FFF) - 1 for side in struct.unpack_from("<HH", data, 26))
        alpha = 0
    body = bytes((8 | alpha << 4, 0, 0, 0)) + width.to_bytes(3, "little") + height.to_bytes(3, "little")
    return data[:12] + _webp_chunk(b"VP8X", body) + data[12:]


def _mended(kind: str, before: bytes, after: bytes) -> bytes:
    if kind == "WEBP":
        after = after[:4] + struct.pack("<I", len(after) - 8) + after[8:]
    return _moved_pictures(before, after) if kind == "JPEG" else after
