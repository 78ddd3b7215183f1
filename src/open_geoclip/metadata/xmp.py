"""XMP packets: properties read, removed and added, everything else left letter for letter.

ISO 16684-1. The XML is parsed, never searched: a namespace may have any prefix, and a property may be an attribute or
an element. A packet is changed by cutting its text at the positions that the parser reports, so what other programs
wrote stays as it is. Entities and document types are refused: no XMP has them, and they can grow without end.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from open_geoclip.errors import MetadataError
from open_geoclip.metadata.locations import is_coordinate_name, is_location_name

__all__ = [
    "ESTIMATE_NS",
    "EXIF_NS",
    "Property",
    "XmpError",
    "add_properties",
    "blank_properties",
    "decode",
    "find_packets",
    "is_coordinate",
    "is_location",
    "new_packet",
    "properties",
    "remove_properties",
]

EXIF_NS = "http://ns.adobe.com/exif/1.0/"
XMP_NS = "http://ns.adobe.com/xap/1.0/"
PHOTOSHOP_NS = "http://ns.adobe.com/photoshop/1.0/"
ESTIMATE_NS = "urn:open-geoclip:estimate/1.0/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_GEO_NS = "http://www.w3.org/2003/01/geo/wgs84_pos#"
_MAX_BYTES = 2**24
_MAX_DEPTH = 100


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


def is_coordinate(found: Property) -> bool:
    """Whether a property holds coordinates, or belongs to them."""
    own = found.namespace in (ESTIMATE_NS, _GEO_NS) or is_coordinate_name(found.name)
    return own or any(map(is_coordinate_name, found.inner))


def is_location(found: Property) -> bool:
    """Whether a property holds coordinates or the name of a place."""
    return is_coordinate(found) or is_location_name(found.name)


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
            return packet.decode(encoding).rstrip("\0"), encoding
    raise XmpError(f"XMP that is not in {encodings[0]}")


def properties(text: str) -> list[Property]:
    """All properties of a packet, the outermost of each structure.

    Raises:
        XmpError: it is no XML, or none that XMP may be.
    """
    return _Reader(text).found


class _Reader:
    """Collects properties with their places; expat counts bytes, so the text is given to it in one known encoding."""

    def __init__(self, text: str) -> None:
        self.bytes = re.sub(r"""(<\?xml[^>]*?)\s+encoding=["'][^"']*["']""", r"\1", text, count=1).encode()
        self.skipped = len(text.encode()) - len(self.bytes)
        self.text = text.encode()
        self.found: list[Property] = []
        self.stack: list[tuple[str, str]] = []
        self.open: tuple[int, int] | None = None  # depth and start of the property that is being read
        self.words: list[str] = []
        self.inner: set[str] = set()
        parser = expat.ParserCreate(namespace_separator="\n")
        self.parser = parser
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._words
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        try:
            parser.Parse(self.bytes, True)
        except expat.ExpatError as error:
            raise XmpError(f"XMP that is no XML: {error}") from error

    def _refuse(self, *_: object) -> None:
        raise XmpError("XMP with a document type or entities, which may be made to do harm")

    def _at(self) -> int:
        return self.parser.CurrentByteIndex + self.skipped

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        namespace, _, local = name.rpartition("\n")
        if len(self.stack) >= _MAX_DEPTH:
            raise XmpError("XMP that is nested deeper than any")
        description = (namespace, local) == (_RDF, "Description")
        if self.open is None and self.stack and self.stack[-1] == (_RDF, "Description"):
            self.open, self.words, self.inner = (len(self.stack), self._at()), list(attributes.values()), set()
            self.inner.update(key.rpartition("\n")[2] for key in attributes)
        elif self.open is not None:
            self.words += attributes.values()
            self.inner.update([local, *(key.rpartition("\n")[2] for key in attributes)])
        elif description:
            self._attributes(attributes)
        self.stack.append((namespace, local))

    def _attributes(self, attributes: Mapping[str, str]) -> None:
        start = self._at()
        end = _tag_end(self.text, start)
        prefixes = None
        for key, value in attributes.items():
            namespace, _, local = key.rpartition("\n")
            if not namespace or namespace == _RDF:
                continue
            prefixes = prefixes or re.compile(rb"""\s+([\w.-]+):([\w.-]+)\s*=\s*("[^"]*"|'[^']*')""")
            for match in prefixes.finditer(self.text, start, end):
                if match[2].decode() == local and match[1] != b"xmlns" and _unescaped(match[3][1:-1]) == value:
                    self.found.append(Property(namespace, local, value, match.start(), match.end()))
                    break
            else:
                raise XmpError(f"XMP with an attribute that cannot be told apart ({local})")

    def _words(self, words: str) -> None:
        if self.open is not None:
            self.words.append(words)

    def _end(self, name: str) -> None:
        self.stack.pop()
        if self.open is not None and len(self.stack) == self.open[0]:
            namespace, _, local = name.rpartition("\n")
            start = self.open[1]
            at = self._at()
            end = at if self.text[at - 2 : at] == b"/>" else _tag_end(self.text, at)
            if self.text[at : at + 2] != b"</":  # an empty element, <a/>: both events have its start
                end = _tag_end(self.text, start)
            value = " ".join(filter(None, (" ".join(word.split()) for word in self.words)))
            self.found.append(Property(namespace, local, value, start, end, frozenset(self.inner)))
            self.open = None


def _unescaped(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    for entity, letter in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'")):
        text = text.replace(entity, letter)
    text = re.sub(r"&#(\d{1,7});", lambda m: chr(min(int(m[1]), 0x10FFFF)), text)
    text = re.sub(r"&#x([0-9a-fA-F]{1,6});", lambda m: chr(min(int(m[1], 16), 0x10FFFF)), text)
    return re.sub(r"[\t\r\n]", " ", text.replace("&amp;", "&"))


def _tag_end(text: bytes, start: int) -> int:
    """Where a tag ends that is known to be whole; a > within quotes ends none."""
    match = re.compile(rb"""<(?:[^"'>]|"[^"]*"|'[^']*')*>""").match(text, start)
    if match is None:
        raise XmpError("XMP with a tag that does not end")
    return match.end()


def remove_properties(packet: bytes, unwanted: Callable[[Property], bool]) -> tuple[bytes, list[Property]]:
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


_PACKET = re.compile(rb"<((?:[\w.-]{1,40}:)?(?:xmpmeta|xapmeta|RDF))[\s>]")
_MAX_PACKETS = 1000


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


def blank_properties(data: bytearray, start: int, end: int, unwanted: Callable[[Property], bool]) -> list[str]:
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
        if changed != packet and len(changed) <= len(packet):
            data[first:last] = changed.ljust(len(packet))
    return lost


def add_properties(packet: bytes, groups: Sequence[tuple[str, str, Mapping[str, str]]]) -> bytes:
    """A packet with more properties, in a description of their own.

    Args:
        packet: XMP.
        groups: of prefix, namespace, and values by name.

    Raises:
        XmpError: it is none.
    """
    text, encoding = decode(packet)
    properties(text)
    ends = list(re.finditer(r"</([\w.-]+):RDF\s*>", text))
    if not ends:
        raise XmpError("XMP without rdf:RDF")
    about = re.search(r"""[\w.-]+:about\s*=\s*("[^"]*"|'[^']*')""", text)
    description = _description(groups, ends[-1][1], about[1] if about else '""')
    at = ends[-1].start()
    return (text[:at] + description + text[at:]).encode(encoding, "xmlcharrefreplace")


def new_packet(groups: Sequence[tuple[str, str, Mapping[str, str]]]) -> bytes:
    """A sidecar's text with these properties alone."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        f' <rdf:RDF xmlns:rdf="{_RDF}">\n'
        + _description(groups, "rdf", '""')
        + ' </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>\n'
    ).encode()


def _description(groups: Sequence[tuple[str, str, Mapping[str, str]]], rdf: str, about: str) -> str:
    spaces = "".join(f"\n    xmlns:{prefix}={quoteattr(namespace)}" for prefix, namespace, _ in groups)
    values = "".join(
        f"   <{prefix}:{name}>{escape(value)}</{prefix}:{name}>\n"
        for prefix, _, group in groups
        for name, value in group.items()
    )
    return f"  <{rdf}:Description {rdf}:about={about}{spaces}>\n{values}  </{rdf}:Description>\n"
