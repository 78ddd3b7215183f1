"""XMP packets (ISO 16684-1): properties read, removed and added, everything else left letter for letter.

The XML is parsed, so a namespace may have any prefix and a property may be an attribute or an element. A packet is
changed by cutting its text at the positions that the parser reports.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from open_geoclip.errors import MetadataError
from open_geoclip.metadata.locations import is_coordinate_name, is_location_name

__all__ = [
    "ESTIMATE_NS",
    "EXIF_NS",
    "PHOTOSHOP_NS",
    "XMP_NS",
    "Filter",
    "Property",
    "XmpError",
    "add_properties",
    "blank_properties",
    "decode",
    "find_packets",
    "is_coordinate",
    "is_location",
    "properties",
    "remove_properties",
]

EXIF_NS = "http://ns.adobe.com/exif/1.0/"
XMP_NS = "http://ns.adobe.com/xap/1.0/"
PHOTOSHOP_NS = "http://ns.adobe.com/photoshop/1.0/"
ESTIMATE_NS = "urn:open-geoclip:estimate/1.0/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_LOCATION_SPACES = (
    ESTIMATE_NS,
    "http://www.w3.org/2003/01/geo/wgs84_pos#",
    "http://developer.sonyericsson.com/cell/1.0/",
)
_MAX_BYTES = 2**24
_MAX_DEPTH = 100
_MAX_PACKETS = 1000
_PACKET = re.compile(rb"<((?:[\w.-]{1,40}:)?(?:xmpmeta|xapmeta|RDF))[\s>]")
_TAG = re.compile(rb"""<(?:[^"'>]|"[^"]*"|'[^']*')*>""")  # a > within quotes ends no tag
_ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")
_EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    f' <rdf:RDF xmlns:rdf="{_RDF}">\n </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>\n'
).encode()


class XmpError(MetadataError):
    """XMP that cannot be understood."""


@dataclass(frozen=True)
class Property:
    """One property of a packet.

    Attributes:
        namespace: its namespace.
        name: its name in it.
        value: its text; of a list or structure all the texts, one after the other.
        start: where it begins in the packet's UTF-8 text, as an element or an attribute.
        end: where it ends.
        inner: the local names within it.
    """

    namespace: str
    name: str
    value: str
    start: int
    end: int
    inner: frozenset[str] = frozenset()


Filter: TypeAlias = Callable[[Property], bool]
"""Chooses properties."""


def is_coordinate(found: Property) -> bool:
    """Whether a property holds coordinates, or belongs to them."""
    return found.namespace in _LOCATION_SPACES or any(map(is_coordinate_name, (found.name, *found.inner)))


def is_location(found: Property) -> bool:
    """Whether a property holds coordinates or the name of a place."""
    return found.namespace in _LOCATION_SPACES or any(map(is_location_name, (found.name, *found.inner)))


def decode(packet: bytes) -> tuple[str, str]:
    """The text of a packet and its encoding. UTF-8 is tried before the encoding that the XML declares.

    Raises:
        XmpError: it is too long, or in no known encoding.
    """
    if len(packet) > _MAX_BYTES:
        raise XmpError(f"XMP of more than {_MAX_BYTES >> 20} MiB")
    declared = re.match(rb"""[^<]{0,16}<\?xml[^>]{0,80}encoding=["']([\w.-]{1,20})["']""", packet)
    plain = "utf-8-sig" if packet.startswith(b"\xef\xbb\xbf") else "utf-8"
    encodings = [plain, declared[1].decode() if declared else "cp1252", "cp1252", "latin-1"]
    if packet[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    elif b"\0" in packet[:2]:
        encodings = ["utf-16-le" if packet[1:2] == b"\0" else "utf-16-be"]
    for encoding in encodings:
        with suppress(UnicodeDecodeError, LookupError):
            text = packet.decode(encoding).rstrip("\0")
            if "\0" not in text:
                return text, encoding
    raise XmpError(f"XMP that is not in {encodings[0]}")


def properties(text: str) -> list[Property]:
    """All properties of a packet, the outermost of each structure.

    Raises:
        XmpError: it is not XML, or has entities, a document type or too many levels.
    """
    return _Reader(text.encode()).found


class _Reader:
    """Collects properties and their positions; expat counts the bytes of the UTF-8 text."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.found: list[Property] = []
        self.stack: list[tuple[str, str]] = []
        self.open: tuple[int, int, int] | None = None  # depth, start and end of first tag of the property being read
        self.values: list[str] = []
        self.inner: set[str] = set()
        self.parser = expat.ParserCreate("utf-8", "\n")  # whatever encoding the XML declares
        self.parser.namespace_prefixes = True
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = lambda text: self.values.append(text)
        self.parser.StartDoctypeDeclHandler = self.parser.EntityDeclHandler = self._refuse
        try:
            self.parser.Parse(text, True)
        except expat.ExpatError as error:
            raise XmpError(f"XMP that is not XML: {error}") from error

    def _refuse(self, *_: object) -> None:
        raise XmpError("XMP with a document type or entities, which can expand without end")

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        if len(self.stack) >= _MAX_DEPTH:
            raise XmpError(f"XMP of more than {_MAX_DEPTH} levels")
        start, names = self.parser.CurrentByteIndex, [_split(key) for key in attributes]
        element = _split(name)[:2]
        if self.open is not None:
            self.values += attributes.values()
            self.inner.update([element[1], *(local for _, local, _ in names)])
        elif self.stack and self.stack[-1] == (_RDF, "Description"):
            self.open, self.values = (len(self.stack), start, self._tag_end(start)), list(attributes.values())
            self.inner = {local for _, local, _ in names}
        elif element == (_RDF, "Description"):
            written = {match[1]: match.span() for match in _ATTRIBUTE.finditer(self.text, start, self._tag_end(start))}
            for (namespace, local, prefix), value in zip(names, attributes.values(), strict=True):
                if namespace not in ("", _RDF):
                    self.found.append(Property(namespace, local, value, *written[f"{prefix}:{local}".encode()]))
        self.stack.append(element)

    def _end(self, name: str) -> None:
        self.stack.pop()
        if self.open is None or len(self.stack) != self.open[0]:
            return
        namespace, local, _ = _split(name)
        _, start, end = self.open
        if self.text[end - 2 : end] != b"/>":  # of an empty element, expat reports the start or the end
            end = self._tag_end(self.parser.CurrentByteIndex)
        value = " ".join(" ".join(self.values).split())
        self.found.append(Property(namespace, local, value, start, end, frozenset(self.inner)))
        self.open = None

    def _tag_end(self, start: int) -> int:
        match = _TAG.match(self.text, start)
        assert match is not None
        return match.end()


def _split(name: str) -> tuple[str, str, str]:
    """Namespace, local name and prefix of a name as expat gives it."""
    namespace, local, prefix = (*("\n" * ("\n" not in name) + name).split("\n"), "")[:3]
    return namespace, local, prefix


def remove_properties(packet: bytes, unwanted: Filter) -> tuple[bytes, list[Property]]:
    """A packet without some properties, and these; the packet itself when there are none of them.

    Raises:
        XmpError: it cannot be understood.
    """
    text, encoding = decode(packet)
    removed = [found for found in properties(text) if unwanted(found)]
    if not removed:
        return packet, []
    raw, at, pieces = text.encode(), 0, []
    for found in sorted(removed, key=lambda found: found.start):
        pieces.append(raw[at : found.start])
        at = found.end
    return b"".join([*pieces, raw[at:]]).decode().encode(encoding), removed


def find_packets(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where packets begin and end in a part of a file; they are found by their text, as ISO 16684-1 intends."""
    for _ in range(_MAX_PACKETS):
        match = _PACKET.search(data, start, end)
        if match is None:
            return
        closing = re.compile(rb"</" + re.escape(match[1]) + rb"\s*>").search(data, match.end(), end)
        first, start = match.start(), match.end() if closing is None else closing.end()
        if closing is not None and b"\0" not in data[first:start]:
            yield first, start


def blank_properties(data: bytearray, start: int, end: int, unwanted: Filter) -> list[str]:
    """Remove properties from all packets in a part of a file; what that makes shorter is filled with spaces.

    A packet that cannot be understood is replaced by spaces as a whole.

    Returns:
        What was removed as a whole, in words.
    """
    lost = []
    for first, last in list(find_packets(data, start, end)):
        packet = bytes(data[first:last])
        try:
            changed, _ = remove_properties(packet, unwanted)
        except XmpError as error:
            changed = b""
            lost.append(f"all XMP, which could not be understood ({error})")
        if len(changed) <= len(packet):
            data[first:last] = changed.ljust(len(packet))
    return lost


def add_properties(packet: bytes | None, groups: Sequence[tuple[str, str, Mapping[str, str]]]) -> bytes:
    """A packet with more properties, in a description of their own.

    Args:
        packet: XMP; None stands for an empty packet.
        groups: of prefix, namespace, and values by name.

    Raises:
        XmpError: it is none.
    """
    text, encoding = decode(_EMPTY if packet is None else packet)
    properties(text)
    ends = list(re.finditer(r"</([\w.-]+):RDF\s*>", text))
    if not ends:
        raise XmpError("XMP without rdf:RDF")
    about = re.search(r"""[\w.-]+:about\s*=\s*("[^"]*"|'[^']*')""", text)
    at, rdf = ends[-1].start(), ends[-1][1]
    spaces = "".join(f"\n    xmlns:{prefix}={quoteattr(namespace)}" for prefix, namespace, _ in groups)
    values = "".join(
        f"   <{prefix}:{name}>{escape(value)}</{prefix}:{name}>\n"
        for prefix, _, group in groups
        for name, value in group.items()
    )
    subject = about[1] if about else '""'
    description = f"  <{rdf}:Description {rdf}:about={subject}{spaces}>\n{values}  </{rdf}:Description>\n"
    return (text[:at] + description + text[at:]).encode(encoding, "xmlcharrefreplace")
