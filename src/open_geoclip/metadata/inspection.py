"""Finding what says where a photo was taken, as ExifTool and the readers of this package see it."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise

from open_geoclip.errors import ImageError, MetadataError
from open_geoclip.images import sniff
from open_geoclip.metadata import containers, xmp
from open_geoclip.metadata.containers import Span
from open_geoclip.metadata.exiftool import ExifTool, Tag
from open_geoclip.metadata.locations import has_coordinates, has_value, is_coordinate_name, is_location_name, label
from open_geoclip.metadata.read import read_metadata

__all__ = ["SUFFIXES", "Inspection", "inspect", "unique"]

SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "HEIF": ".heic",
    "AVIF": ".avif",
    "GIF": ".gif",
    "BMP": ".bmp",
}
_WORDS = {
    "ImageDescription": "its description is kept",
    "UserComment": "its comment is kept",
    "XPTitle": "its title is kept",
    "XPComment": "its comment (Windows) is kept",
    "XPKeywords": "its keywords (Windows) are kept",
    "XPSubject": "its subject (Windows) is kept",
    "GDALMetadata": "its GDAL metadata are kept",
    "ThumbnailImage": "the preview image is kept",
    "PreviewImage": "the preview image is kept",
}
_FAMILIES = {
    "IPTC": "captions and keywords (IPTC) are kept",
    "JUMBF": "content credentials (C2PA) are kept",
}
_TEXTS = {"Title", "Description", "Subject", "HierarchicalSubject", "Headline"}
_TECHNICAL_TEXTS = ("software", "date:create", "date:modify", "date:timestamp", "creation time", "xml:com.adobe.xmp")
_TRAILERS = {"Samsung", "CanonVRD", "MIE", "AFCP", "FotoStation", "PhotoMechanic", "Vivo", "Insta360"}
_DAMAGE = re.compile(r"(?i)(?!.*minor\]).*\b(bad|corrupt\w*|truncated|error)\b")
_KNOWN_SEGMENTS = re.compile(
    rb"JFIF|JFXX|Exif\0|http://ns.adobe.com/x|ICC_PROFILE|MPF|Photoshop 3|Adobe|JP|urn:iso:std:iso:ts:21496|FPXR|FLIR"
)
_HARMLESS_BYTES = 16  # behind an image: too few for a place


@dataclass(frozen=True)
class Inspection:
    """What a file says about where it was taken.

    Attributes:
        places: what holds a place, in words.
        notes: what may hold a place in words, such as a caption.
        unreadable: what may hold a place and cannot be read by any program here.
        tags: the tags behind ``places``.
    """

    places: tuple[str, ...]
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]
    tags: tuple[Tag, ...] = ()


def inspect(data: bytes, name: str, exiftool: ExifTool, *, names: bool = True) -> Inspection:
    """Find all that says where a photo was taken, in the file and in the files within it.

    Args:
        data: the file.
        name: how errors name it.
        exiftool: a running ExifTool.
        names: look for names of places too, not for coordinates alone.

    Raises:
        ImageError: it is not an image, or ExifTool cannot read it.
    """
    kind = sniff(data, name)
    matches = is_location_name if names else is_coordinate_name
    embedded = sorted(containers.embedded_files(data, kind), key=lambda span: span.start)
    end = containers.image_end(data, kind)
    parts = [(span.start, span.end, span.kind.decode()) for span in embedded]
    parts += [(start, stop, ".exif") for start, stop in containers.other_exif(data, kind)]
    whole = containers.normalized_jpeg(data) if kind == "JPEG" else data
    if kind in ("WEBP", "HEIF", "AVIF"):  # of which ExifTool reads no further
        whole = data[:end]
    try:
        tags = exiftool.read(whole, SUFFIXES[kind])
        for start, stop, suffix in parts:
            tags += exiftool.read(data[start:stop], suffix)
    except MetadataError as error:
        raise ImageError(name, str(error)) from error
    found = [tag for tag in tags if not _is_png_text(tag) and matches(tag.name) and has_value(tag.value)]
    places, notes = [label(tag) for tag in found], list(_notes(tags))
    for chunk in containers.png_chunks(data) if kind == "PNG" else ():
        key = containers.png_keyword(data, chunk)
        if key is not None and matches(key.rpartition(":")[2]):
            places.append(f"text {key!r}")
        elif key is not None and key.lower() not in _TECHNICAL_TEXTS and not key.startswith("Raw profile type"):
            notes.append(f"text {key!r} is kept")
    places += _unknown_places(data, name, kind, xmp.is_location if names else xmp.is_coordinate, places)
    blanked = bytearray(data)
    containers.blank_locations(blanked, kind)
    if blanked != data and not any(tag.family in ("QuickTime", "MakerNotes") for tag in found):
        places.append("a place in the boxes of a video")
    unreadable = [
        f"metadata that are damaged ({tag.value})"
        for tag in tags
        if tag.name in ("Warning", "Error") and _DAMAGE.match(str(tag.value))
    ]
    unreadable += [
        f"{label(tag)} that holds coordinates: {str(tag.value)[:60]!r}"
        for tag in tags
        if isinstance(tag.value, (str, list)) and tag not in found and has_coordinates(str(tag.value))
    ]
    if kind == "JPEG":
        notes += _unknown_segments(data)
    behind = [span for span in embedded if span.start >= end]
    if size := sum(span.end - span.start for span in behind):
        notes.append(f"{size:,} bytes behind the image (a video or preview?) are kept")
    edges = pairwise([Span(b"", 0, 0, end), *behind, Span(b"", len(data), 0, 0)])
    rest = sum(len(data[one.end : two.start].strip(b"\0 \r\n\t")) for one, two in edges)
    if rest > _HARMLESS_BYTES and not _TRAILERS & {group for tag in tags for group in (tag.family, tag.group)}:
        unreadable.append(f"{rest:,} bytes behind the image that are no image or video")
    return Inspection(unique(places), unique(notes), unique(unreadable), tuple(found))


def _unknown_places(data: bytes, name: str, kind: str, unwanted: xmp.Filter, known: list[str]) -> Iterator[str]:
    """The places that ExifTool does not report: XMP of unknown names, damaged metadata."""
    for start, stop in containers.xmp_regions(data, kind):
        for first, last in xmp.find_packets(data, start, stop):
            with suppress(xmp.XmpError):
                for one in xmp.properties(xmp.decode(data[first:last])[0]):
                    is_known = any(place.lower().startswith(f"xmp {one.name}".lower()) for place in known)
                    if unwanted(one) and has_value(one.value) and not is_known:
                        yield f"XMP {one.name}"
    with suppress(ImageError):
        for found in read_metadata(BytesIO(data), name=name).places:
            if not any(place.startswith(found.source.upper()) for place in known):
                yield f"{found.source.upper()} GPS, in damaged metadata"


def _is_png_text(tag: Tag) -> bool:
    """Whether it is judged by its keyword as written, which ExifTool changes."""
    return (tag.family, tag.group) == ("PNG", "PNG")


def _unknown_segments(data: bytes) -> Iterator[str]:
    for span in containers.jpeg_segments(data)[0]:
        if b"\xe0" <= span.kind <= b"\xef" and not _KNOWN_SEGMENTS.match(data, span.body, span.end):
            yield f"an APP{span.kind[0] - 0xE0} segment of {span.end - span.body:,} bytes is kept"


def unique(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts in order, each once."""
    return tuple(dict.fromkeys(texts))


def _notes(tags: list[Tag]) -> Iterator[str]:
    """What is no place by its name, and may name one in words."""
    for tag in tags:
        if tag.name in _WORDS and has_value(tag.value):
            yield _WORDS[tag.name]
        elif tag.family == "MakerNotes" or "MakerNote" in f"{tag.name}{tag.value}"[:80]:
            yield "the camera maker's notes are kept (--maker-notes removes them)"
        elif tag.family == "XMP" and tag.name in _TEXTS:
            yield "title, description and keywords (XMP) are kept"
        elif (tag.family, tag.name) == ("File", "Comment"):
            yield f"a comment of {len(str(tag.value)):,} bytes is kept"
        elif tag.family in _FAMILIES:
            yield _FAMILIES[tag.family]
