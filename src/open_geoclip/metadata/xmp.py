"""XMP packets: properties read, taken out and put in, everything else left letter for letter.

ISO 16684-1. The XML is parsed, never searched: a namespace may have any prefix, and a property may be an attribute or
an element. It is changed by cutting pieces out of the text at the places that the parser names, so that what other
programs wrote stays as it is. Entities and document types are refused: no XMP has them, and they can grow without end.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from open_geoclip.errors import DataError

__all__ = [
    "ESTIMATE_NS",
    "EXIF_NS",
    "Property",
    "XmpError",
    "is_location",
    "new_packet",
    "properties",
    "with_properties",
]

EXIF_NS = "http://ns.adobe.com/exif/1.0/"
ESTIMATE_NS = "urn:open-geoclip:estimate/1.0/"
PHOTOSHOP_NS = "http://ns.adobe.com/photoshop/1.0/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_MOST_BYTES = 2**24
_DEPTH = 100
_PLACE_NAMES = {
    (PHOTOSHOP_NS, "City"),
    (PHOTOSHOP_NS, "State"),
    (PHOTOSHOP_NS, "Country"),
    ("http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", "Location"),
    ("http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", "CountryCode"),
    ("http://purl.org/dc/elements/1.1/", "coverage"),
    ("http://www.w3.org/2003/01/geo/wgs84_pos#", "lat"),
    ("http://www.w3.org/2003/01/geo/wgs84_pos#", "long"),
    ("http://www.w3.org/2003/01/geo/wgs84_pos#", "alt"),
}
_PLACE_WORDS = re.compile(r"(?i)gps|latitude|long?titude|geotag|georss|geohash|location(created|shown)|^location$")


class XmpError(DataError):
    """XMP that cannot be understood."""


@dataclass(frozen=True)
class Property:
    """One property of a packet.

    Attributes:
        namespace: its namespace.
        name: its name in it.
        value: its text; of a list or structure all the texts, one after the other.
        start: where it begins in the packet's text, as an element or an attribute.
        end: where it ends.
    """

    namespace: str
    name: str
    value: str
    start: int
    end: int


def is_location(found: Property) -> bool:
    """Whether a property says where a picture was taken, or what that place is called."""
    if (found.namespace, found.name) in _PLACE_NAMES or found.namespace == ESTIMATE_NS:
        return True
    return _PLACE_WORDS.search(found.name) is not None


def decoded(packet: bytes) -> str:
    """A packet's text.

    Raises:
        XmpError: it is longer than any, or in no encoding that XMP has.
    """
    if len(packet) > _MOST_BYTES:
        raise XmpError("XMP of more than 16 MB")
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    plain = "utf-16-le" if packet[1:2] == b"\0" else "utf-16-be" if packet[:1] == b"\0" else "utf-8-sig"
    encoding = marks.get(packet[:2], plain)
    try:
        return packet.decode(encoding).rstrip("\0")
    except UnicodeDecodeError as error:
        raise XmpError(f"XMP that is no text: {error}") from error


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
        if len(self.stack) >= _DEPTH:
            raise XmpError("XMP that is nested deeper than any")
        description = (namespace, local) == (_RDF, "Description")
        if self.open is None and self.stack and self.stack[-1] == (_RDF, "Description"):
            self.open, self.words = (len(self.stack), self._at()), list(attributes.values())
        elif self.open is not None:
            self.words += attributes.values()
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
            self.found.append(Property(namespace, local, value, start, end))
            self.open = None


def _unescaped(raw: bytes) -> str:
    told = raw.decode("utf-8", "replace")
    for entity, letter in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'")):
        told = told.replace(entity, letter)
    told = re.sub(r"&#(\d{1,7});", lambda m: chr(min(int(m[1]), 0x10FFFF)), told)
    told = re.sub(r"&#x([0-9a-fA-F]{1,6});", lambda m: chr(min(int(m[1], 16), 0x10FFFF)), told)
    return re.sub(r"[\t\r\n]", " ", told.replace("&amp;", "&"))


def _tag_end(text: bytes, start: int) -> int:
    """Where a tag ends that is known to be whole; a > within quotes ends none."""
    match = re.compile(rb"""<(?:[^"'>]|"[^"]*"|'[^']*')*>""").match(text, start)
    if match is None:
        raise XmpError("XMP with a tag that does not end")
    return match.end()


def without(packet: bytes, unwanted: Callable[[Property], bool]) -> tuple[bytes, list[Property]]:
    """A packet without some properties, and these; the packet itself when there are none of them.

    Raises:
        XmpError: it cannot be understood.
    """
    text = decoded(packet)
    gone = [found for found in properties(text) if unwanted(found)]
    if not gone:
        return packet, []
    raw, at, pieces = text.encode(), 0, []
    for found in sorted(gone, key=lambda found: found.start):
        pieces.append(raw[at : found.start])
        at = found.end
    return b"".join([*pieces, raw[at:]]), gone


def padded(packet: bytes, size: int) -> bytes:
    """A packet made as long as it was with spaces before its end, as XMP means it to be."""
    room = size - len(packet)
    at = packet.rfind(b"<?xpacket")
    at = len(packet) if at <= 0 else at
    return packet[:at] + b" " * room + packet[at:]


def with_properties(packet: bytes, groups: Sequence[tuple[str, str, Mapping[str, str]]]) -> bytes:
    """A packet with properties more, in a description of their own.

    Args:
        packet: XMP.
        groups: of prefix, namespace, and values by name.

    Raises:
        XmpError: it is none.
    """
    text = decoded(packet)
    properties(text)
    ends = list(re.finditer(r"</([\w.-]+):RDF\s*>", text))
    if not ends:
        raise XmpError("XMP without rdf:RDF")
    about = re.search(r"""[\w.-]+:about\s*=\s*("[^"]*"|'[^']*')""", text)
    description = _description(groups, ends[-1][1], about[1] if about else '""')
    at = ends[-1].start()
    return (text[:at] + description + text[at:]).encode()


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
        for prefix, _, told in groups
        for name, value in told.items()
    )
    return f"  <{rdf}:Description {rdf}:about={about}{spaces}>\n{values}  </{rdf}:Description>\n"
