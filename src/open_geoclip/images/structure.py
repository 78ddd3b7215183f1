"""Bounds on the parts of a file before it is decoded.

Pillow and readers of metadata walk over segments and chunks one by one, in Python: a file that has millions of them
keeps a processor busy for minutes, in an image of a few pixels. No camera or program writes as many as these bounds.
"""

import re
from collections.abc import Callable
from io import BufferedIOBase

from open_geoclip.errors import ImageError

__all__ = ["check_structure"]

_MAX_PARTS = 4096
_MAX_PIXEL_PARTS = 200_000  # chunks with pixels: usually of 8 kB or more
_MAX_FILL = 65_536  # bytes between segments of a JPEG
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_STANDALONE = {0x01, *range(0xD0, 0xDA)}  # JPEG markers without a length


def check_structure(stream: BufferedIOBase, kind: str, name: str) -> None:
    """Refuse a file with far too many parts; what is damaged otherwise is left to its decoder.

    Args:
        stream: the file, at its start; it is moved.
        kind: its format, as :func:`~open_geoclip.images.sniff` says.
        name: what the error calls the image.

    Raises:
        ImageError: it has more segments, chunks or blocks than any program writes.
    """
    if kind in _EXCESSIVE and _EXCESSIVE[kind](stream):
        raise ImageError(name, f"has more than {_MAX_PARTS:,} parts besides its pixels, as only a malicious file has")


def _is_excessive_jpeg(stream: BufferedIOBase) -> bool:
    at, fill = 2, 0
    for _ in range(_MAX_PARTS):
        stream.seek(at)
        match = _MARKER.search(stream.read(16))
        if match is None:  # fill bytes, or what is no segment
            stream.seek(at)
            window = stream.read(_MAX_FILL)
            match = _MARKER.search(window)
            if match is None:
                return len(window) == _MAX_FILL
        marker = match[0][1]
        fill += match.start()
        if marker == 0xDA or fill > _MAX_FILL:  # the pixels begin
            return fill > _MAX_FILL
        at += match.end()
        if marker not in _STANDALONE:
            stream.seek(at)
            at += int.from_bytes(stream.read(2), "big")
    return True


def _is_excessive_png(stream: BufferedIOBase) -> bool:
    stream.seek(8)
    others = pixels = 0
    while len(head := stream.read(8)) == 8 and others <= _MAX_PARTS and pixels <= _MAX_PIXEL_PARTS:
        if head[4:] in (b"IDAT", b"fdAT"):
            pixels += 1
        else:
            others += 1
        stream.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return others > _MAX_PARTS or pixels > _MAX_PIXEL_PARTS


def _is_excessive_gif(stream: BufferedIOBase) -> bool:
    head = stream.read(13)
    if len(head) == 13 and head[10] & 0x80:
        stream.seek(3 << (head[10] & 7) + 1, 1)
    parts = 0
    while stream.read(1) == b"!" and parts <= _MAX_PARTS:  # extensions before the first frame
        stream.seek(1, 1)
        while (size := stream.read(1)) not in (b"", b"\0") and parts <= _MAX_PARTS:
            stream.seek(size[0], 1)
            parts += 1
        parts += 1
    return parts > _MAX_PARTS


_EXCESSIVE: dict[str, Callable[[BufferedIOBase], bool]] = {
    "JPEG": _is_excessive_jpeg,
    "PNG": _is_excessive_png,
    "GIF": _is_excessive_gif,
}
