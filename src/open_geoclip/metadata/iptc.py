"""IPTC records within Photoshop's resources: which name a place, and a copy without these.

IPTC IIM 4.2, chapter 6; Adobe Photoshop File Formats, "Image Resource Blocks". Resources other than the records are
carried over byte for byte.
"""

import struct

__all__ = ["PLACES", "without_places"]

PLACES = {
    26: "content location code",
    27: "content location name",
    90: "city",
    92: "sublocation",
    95: "province or state",
    100: "country code",
    101: "country",
}
"""Data sets of record 2 that name a place."""

_RECORDS = 0x0404


def without_places(block: bytes) -> tuple[bytes, list[str], str | None]:
    """Resources without the data sets that name a place, what these were called, and what could not be read.

    Bare records, as a TIFF or an ImageMagick profile may hold them, are read as well.
    """
    if block.startswith(b"\x1c"):
        kept, gone, fault = _records(block)
        return kept, gone, fault
    at, pieces, gone = 0, [], []
    while at + 12 <= len(block) and block[at : at + 4] in (b"8BIM", b"PHUT", b"AgHg", b"DCSR", b"MeSa"):
        (number,) = struct.unpack_from(">H", block, at + 4)
        name = block[at + 6]
        start = at + 6 + 1 + name
        start += start - at & 1
        if start + 4 > len(block):
            break
        (size,) = struct.unpack_from(">I", block, start)
        begin, end = start + 4, start + 4 + size
        if end > len(block):
            break
        body = block[begin:end]
        after = min(end + (size & 1), len(block))
        if number == _RECORDS:
            body, names, fault = _records(body)
            if fault is not None:
                return block, gone, fault
            gone += names
            if names:
                pieces.append(block[at:start] + struct.pack(">I", len(body)) + body + bytes(len(body) & 1))
                at = after
                continue
        pieces.append(block[at:after])
        at = after
    rest = block[at:]
    fault = "Photoshop's resources are damaged" if rest.strip(b"\0 ") else None
    return (b"".join([*pieces, rest]) if gone else block), gone, fault


def _records(data: bytes) -> tuple[bytes, list[str], str | None]:
    at, kept, gone = 0, [], []
    while at + 5 <= len(data) and data[at] == 0x1C:
        record, number = data[at + 1], data[at + 2]
        (size,) = struct.unpack_from(">H", data, at + 3)
        begin = at + 5
        if size & 0x8000:  # the length's own length follows
            width = size & 0x7FFF
            if width > 8 or begin + width > len(data):
                return data, [], "IPTC records are damaged"
            size = int.from_bytes(data[begin : begin + width], "big")
            begin += width
        if begin + size > len(data):
            return data, [], "IPTC records are cut off"
        if record == 2 and number in PLACES:
            gone.append(f"IPTC {PLACES[number]}")
        else:
            kept.append(data[at : begin + size])
        at = begin + size
    fault = "IPTC records are damaged" if data[at:].strip(b"\0 ") else None
    return (b"".join([*kept, data[at:]]) if gone else data), gone, fault
