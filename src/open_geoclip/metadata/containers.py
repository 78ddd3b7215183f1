"""The parts of an image file that ExifTool does not write: found by their position, changed without moving others.

JPEG: ISO 10918-1, annex B, and CIPA DC-007 for several images in one file. PNG: third edition. WebP: RFC 9649.
HEIC, AVIF and videos: ISO 14496-12.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from open_geoclip.metadata.locations import is_location_name

__all__ = [
    "Span",
    "blank_locations",
    "compressed_pixels",
    "embedded_files",
    "image_end",
    "jpeg_segments",
    "normalized_jpeg",
    "other_exif",
    "png_chunks",
    "png_keyword",
    "with_moved_images",
    "without_spans",
    "xmp_regions",
]


class Span(NamedTuple):
    """A segment, chunk, box or file: its kind, and where it, its content and what follows begin."""

    kind: bytes
    start: int
    body: int
    end: int


# --- JPEG -----------------------------------------------------------------------------------------

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_ODD_EXIF = re.compile(rb"(?is)(.{0,64}?)((?:Exif\0[\0\xff])+)(?=II|MM)")
_EXIF = b"Exif\0\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_MAX_SEGMENT = 65_533
_TIFF = re.compile(rb"II\*\0|MM\0\*")
_EXIF_RESOURCE = re.compile(rb"(?s)8BIM\x04[\x22\x23](?:\0\0|\x04EXIF\0)(.{4})")


@lru_cache(maxsize=4)  # one file is asked for several times in a row
def jpeg_segments(data: bytes, start: int = 0) -> tuple[tuple[Span, ...], int]:
    """All segments of the JPEG at a position, also those between and behind its scans, and its end."""
    found: list[Span] = []
    at = start + 2
    while match := _MARKER.search(data, at):
        marker, at = match.group()[1:], match.end()
        if marker == b"\xd9":
            return tuple(found), at
        if marker in b"\x01\xd8" or at + 2 > len(data):
            continue
        end = at + int.from_bytes(data[at : at + 2], "big")
        if at + 2 <= end <= len(data):
            found.append(Span(marker, match.start(), at + 2, end))
            at = end
    return tuple(found), len(data)


def normalized_jpeg(data: bytes) -> bytes:
    """A JPEG as the standards say: readers take more than ExifTool writes.

    EXIF segments get their usual beginning, and Photoshop's resources are joined in one segment if they fit.
    """
    changes, resources = [], []
    for span in jpeg_segments(data)[0]:
        body = data[span.body : span.end]
        match = _ODD_EXIF.match(body) if span.kind == b"\xe1" else None
        if match and match.group() != _EXIF:
            changes.append((span, _segment(span.kind, _EXIF + body[match.end() :])))
        elif span.kind == b"\xed" and body.startswith(_PHOTOSHOP):
            resources.append((span, body[len(_PHOTOSHOP) :]))
    joined = _PHOTOSHOP + b"".join(body for _, body in resources)
    if len(resources) > 1 and len(joined) <= _MAX_SEGMENT:
        changes.append((resources[0][0], _segment(b"\xed", joined)))
        changes += [(span, b"") for span, _ in resources[1:]]
    return _replaced(data, sorted(changes))


def _segment(marker: bytes, body: bytes) -> bytes:
    return b"\xff" + marker + struct.pack(">H", len(body) + 2) + body


def _replaced(data: bytes, changes: Iterable[tuple[Span, bytes]]) -> bytes:
    pieces, at = [], 0
    for span, content in changes:
        pieces += [data[at : span.start], content]
        at = span.end
    return b"".join([*pieces, data[at:]])


def without_spans(data: bytes, spans: Iterable[Span]) -> bytes:
    """A file without some segments or chunks, which are in order."""
    return _replaced(data, ((span, b"") for span in spans))


def compressed_pixels(data: bytes) -> bytes:
    """What the pixels of a JPEG depend on: all but application segments and comments; the color transform of Adobe."""
    segments, end = jpeg_segments(data)
    is_metadata = re.compile(rb"[\xe1-\xed\xef\xfe]").match
    return without_spans(data[:end], (span for span in segments if is_metadata(span.kind)))


def with_moved_images(before: bytes, after: bytes) -> bytes:
    """A changed JPEG whose list of further images (CIPA DC-007, 5.2.3.3) counts with its new lengths."""
    at, was = after.find(b"MPF\0", 0, 2**18) + 4, before.find(b"MPF\0", 0, 2**18) + 4
    order = {b"II": "<", b"MM": ">"}.get(before[was : was + 2])
    if at < 4 or was < 4 or order is None or len(before) == len(after):
        return after
    grown, changed = len(after) - len(before), bytearray(after)
    try:
        (first,) = struct.unpack_from(f"{order}I", before, was + 4)
        (count,) = struct.unpack_from(f"{order}H", before, was + first)
        for row in range(min(count, 64)):
            tag, _, size, value = struct.unpack_from(f"{order}HHII", before, was + first + 2 + 12 * row)
            for entry in range(value, value + size, 16) if tag == 0xB002 else ():
                length, offset = struct.unpack_from(f"{order}II", before, was + entry + 4)
                if offset == 0:  # the first image, within which all the change was
                    struct.pack_into(f"{order}I", changed, at + entry + 4, length + grown)
                else:  # counted from the list, which may have moved itself
                    struct.pack_into(f"{order}I", changed, at + entry + 8, offset + grown - (at - was))
    except struct.error:
        return after
    return bytes(changed)


def other_exif(data: bytes, kind: str) -> Iterator[tuple[int, int]]:
    """EXIF data where ExifTool writes none: outside of APP1 in a JPEG, in Photoshop's resources in a TIFF."""
    for found in _EXIF_RESOURCE.finditer(data) if kind == "TIFF" else ():
        yield found.end(), min(len(data), found.end() + int.from_bytes(found[1], "big"))
    is_behind = False
    for span in jpeg_segments(data)[0] if kind == "JPEG" else ():
        is_behind |= span.kind == b"\xda"
        is_app = b"\xe0" <= span.kind <= b"\xef" and data[span.body : span.body + 4] != b"MPF\0"
        match = _TIFF.search(data, span.body, span.end) if is_app and (is_behind or span.kind != b"\xe1") else None
        if match is None:
            continue
        end = span.end
        if resource := _EXIF_RESOURCE.search(data, span.body, match.start()):
            end = min(end, resource.end() + int.from_bytes(resource[1], "big"))
        yield match.start(), end


# --- PNG ------------------------------------------------------------------------------------------


def png_chunks(data: bytes) -> list[Span]:
    """The chunks of a PNG, to its end or to where it is cut off."""
    found: list[Span] = []
    at = 8
    while at + 12 <= len(data) and (not found or found[-1].kind != b"IEND"):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            break
        found.append(Span(kind, at, at + 8, at + 12 + length))
        at += 12 + length
    return found


def png_keyword(data: bytes, chunk: Span) -> str | None:
    """The keyword of a text chunk; None for other chunks."""
    if chunk.kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return None
    return data[chunk.body : chunk.end - 4].partition(b"\0")[0].decode("latin1")


# --- HEIC, AVIF and videos ------------------------------------------------------------------------

_DEPTH = 12
_HOLDERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"udta", b"mpvd", b"meta", b"ilst"})
_PLACES = frozenset({b"\xa9xyz", b"loci", b"@xyz", b"gps ", b"gps0", b"GPS ", b"udat", b"\xa9gps", b"\xa9GPS"})
_NAMED = {b"----": rb"(?s)name.{4}([^\0]+)", b"Xtra": rb"(?:WM/|System\.\w+\.|\0)(\w+)\0\0\0"}  # Apple's, Microsoft's


def boxes(data: bytes | bytearray, start: int, end: int) -> Iterator[Span]:
    """The boxes between two positions, as far as they are whole."""
    at = start
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if size == 1 and at + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            body = at + 16
        elif size == 0 and kind.isalnum():
            size = end - at
        if at + size > end or at + size < body:
            return
        yield Span(bytes(kind), at, body, at + size)
        at += size


def _blank_boxes(data: bytearray, start: int, end: int, places: frozenset[bytes] = _PLACES, depth: int = 0) -> None:
    """Turn the boxes that hold a place into free space, so that no other byte moves."""
    here = list(boxes(data, start, end))
    for span in here:
        if span.kind == b"keys":  # Apple's items are named by their position in this list
            for number, key in enumerate(boxes(data, span.body + 8, span.end), 1):
                name = data[key.body : key.end].decode("latin1").rpartition("quicktime.")[2]
                if is_location_name(name) or name.startswith("direction."):
                    places |= {struct.pack(">I", number)}
    for span in here:
        names = re.findall(_NAMED[span.kind], data[span.body : span.end]) if span.kind in _NAMED else ()
        if span.kind in places or any(is_location_name(name.decode("latin1")) for name in names):
            data[span.start + 4 : span.start + 8] = b"free"
            data[span.body : span.end] = bytes(span.end - span.body)
        elif span.kind in _HOLDERS and depth < _DEPTH:
            has_version = span.kind == b"meta" and data[span.body + 4 : span.body + 8] != b"hdlr"
            _blank_boxes(data, span.body + 4 * has_version, span.end, places, depth + 1)


# --- what stands behind an image ------------------------------------------------------------------

_FILE = re.compile(rb"(?s)\xff\xd8\xff[\xc0-\xfe]|....ftyp[\w ]{4}")
_SAMSUNG_COUNTRY = re.compile(rb"(MCC_Data)\d{3}")  # the mobile network's


def image_end(data: bytes, kind: str) -> int:
    """Where an image ends; what follows belongs to it by no standard."""
    if kind == "JPEG":
        return jpeg_segments(data)[1]
    if kind == "PNG":
        chunks = png_chunks(data)
        return chunks[-1].end if chunks else len(data)
    if kind == "WEBP":
        size = struct.unpack_from("<I", data, 4)[0] + 8
        return min(size + size % 2, len(data))
    if kind in ("HEIF", "AVIF"):
        return max((span.end for span in boxes(data, 0, len(data))), default=len(data))
    if kind == "BMP":
        return max(26, min(struct.unpack_from("<I", data, 2)[0], len(data)))
    return len(data)


def embedded_files(data: bytes, kind: str) -> list[Span]:
    """JPEGs and videos in an image (kind ``.jpg`` or ``.mp4``): behind it, in boxes, and previews with metadata."""
    found: list[Span] = []
    for span in jpeg_segments(data)[0] if kind == "JPEG" else ():
        if span.kind == b"\xe1" and (start := data.find(b"\xff\xd8\xff", span.body, span.end)) > 0:
            preview = data[start : span.end]  # which most cameras write without metadata
            if any(sign in preview for sign in (_EXIF, b"ns.adobe.com", b"8BIM")):
                found.append(Span(b".jpg", start, start, min(jpeg_segments(data, start)[1], span.end)))
    if kind in ("HEIF", "AVIF"):
        top = list(boxes(data, 0, len(data)))
        starts = [span.start for span in top[1:] if span.kind == b"ftyp"]
        ends = [*starts[1:], len(data)]
        found += [Span(b".mp4", start, start, end) for start, end in zip(starts, ends, strict=False)]
        inner = [span for span in top if span.kind == b"mpvd" and data[span.body + 4 : span.body + 8] == b"ftyp"]
        found += [Span(b".mp4", span.body, span.body, span.end) for span in inner]
    at = 13 if kind == "GIF" else image_end(data, kind)
    while match := _FILE.search(data, at):
        start = match.start()
        if match.group()[:2] == b"\xff\xd8":
            found.append(Span(b".jpg", start, start, jpeg_segments(data, start)[1]))
        else:
            end = max((span.end for span in boxes(data, start, len(data))), default=start + 8)
            found.append(Span(b".mp4", start, start, end))
        at = max(found[-1].end, start + 4)
    return found


def blank_locations(data: bytearray, kind: str) -> None:
    """Blank what holds a place in the boxes of a HEIC or AVIF, and in the videos in or behind any image."""
    if kind in ("HEIF", "AVIF"):
        _blank_boxes(data, 0, len(data))
    for span in embedded_files(bytes(data), kind):
        if span.kind == b".mp4":
            _blank_boxes(data, span.start, span.end)
    if data.endswith(b"SEFT"):
        data[:] = _SAMSUNG_COUNTRY.sub(rb"\g<1>000", data)


def xmp_regions(data: bytes, kind: str) -> list[tuple[int, int]]:
    """The parts of a file in which packets of XMP are edited in place: whole segments, and no checksum over them."""
    if kind == "JPEG":
        embedded = embedded_files(data, kind)
        jpegs = [0, *(span.start for span in embedded if span.kind == b".jpg")]
        segments = [(span.body, span.end) for start in jpegs for span in jpeg_segments(data, start)[0]]
        return segments + [(span.start, span.end) for span in embedded if span.kind != b".jpg"]
    return [(image_end(data, kind) if kind == "PNG" else 0, len(data))]
