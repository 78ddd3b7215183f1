"""Removing what says where a photo was taken: ExifTool edits the standard blocks, the rest is edited in place.

ExifTool also is the judge: a photo counts as done only when it finds no place, in the file or in any file within it.
Then the result is decoded and its pixels are compared with those of the original.
"""

import hashlib
import re
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from open_geoclip.errors import ImageError, MetadataError
from open_geoclip.images import open_image, orientation, quiet_pillow, sniff
from open_geoclip.metadata import containers, xmp
from open_geoclip.metadata.exiftool import ExifTool, Tag
from open_geoclip.metadata.inspection import SUFFIXES, Inspection, inspect, unique
from open_geoclip.metadata.locations import has_value, is_coordinate_name, is_location_name, label

__all__ = ["Stripped", "check_pixels", "remove_locations", "strip", "strip_sidecar", "write_tags"]

_EXTENDED = b"http://ns.adobe.com/xmp/extension/\0"
_PAGES = 16  # of a TIFF
_WHOLE = {  # by family or group: what ExifTool can only delete as a whole, and by which name
    **{group: group for group in ("FlashPix", "MIE", "AFCP", "CanonVRD", "FotoStation", "PhotoMechanic", "Trailer")},
    **{"GoPro": "APP6", "MediaJukebox": "APP9", "JUMBF": "APP11", "IPTC2": "IFD0:IPTC-NAA"},
}
_IN_PLACE = {"XMP", "QuickTime"}


@dataclass(frozen=True)
class Stripped:
    """A file without its place.

    Attributes:
        data: the file.
        removed: what was removed, in words; empty when there was nothing, and the data are unchanged.
        unsure: what is still there and may name a place, in words.
        unreadable: what is still there, may hold a place, and could be neither read nor removed.
    """

    data: bytes
    removed: tuple[str, ...]
    unsure: tuple[str, ...]
    unreadable: tuple[str, ...]


def strip(data: bytes, name: str, exiftool: ExifTool, *, maker_notes: bool = False) -> Stripped:
    """Remove all that says where a photo was taken.

    Args:
        data: the file.
        name: how errors name it.
        exiftool: a running ExifTool.
        maker_notes: remove the camera maker's notes as well, which only the maker can read for certain.

    Raises:
        ImageError: it is not an image, a place is still found afterwards, or its pixels would change.
    """
    before = inspect(data, name, exiftool)
    has_notes = maker_notes and any("maker's notes" in note for note in before.notes)
    if not before.places and not has_notes:
        return Stripped(data, (), before.notes, before.unreadable)
    changed, after, lost = remove_locations(data, name, exiftool, before, maker_notes=has_notes)
    check_pixels(data, changed, name)
    removed = (*before.places, *lost, *(["the camera maker's notes"] if has_notes else []))
    return Stripped(changed, unique(removed), after.notes, after.unreadable)


def strip_sidecar(packet: bytes, exiftool: ExifTool) -> tuple[bytes, list[str]]:
    """An XMP sidecar without its places, and what was removed.

    Raises:
        MetadataError: it cannot be understood, or ExifTool still finds a place in it.
    """
    changed, removed = xmp.remove_properties(packet, xmp.is_location)
    left = [tag for tag in exiftool.read(changed, ".xmp") if is_location_name(tag.name) and has_value(tag.value)]
    if left:
        raise MetadataError(f"not all could be removed: {', '.join(unique(map(label, left)))}")
    return changed, [f"XMP {one.name}" for one in removed]


def remove_locations(
    data: bytes, name: str, exiftool: ExifTool, found: Inspection, *, names: bool = True, maker_notes: bool = False
) -> tuple[bytes, Inspection, list[str]]:
    """A file without places.

    Args:
        data: the file.
        name: how errors name it.
        exiftool: a running ExifTool.
        found: what the file holds.
        names: remove names of places too, not coordinates alone.
        maker_notes: remove the camera maker's notes.

    Returns:
        The file, what else it holds, and what was removed as a whole because it could not be edited.

    Raises:
        ImageError: a place cannot be removed.
    """
    kind, reason = sniff(data, name), ""
    unwanted = xmp.is_location if names else xmp.is_coordinate
    changed, lost = _edit_in_place(data, kind, exiftool, found, names=names)
    is_edited = changed != data and not maker_notes and {tag.family for tag in found.tags} <= _IN_PLACE
    after = inspect(changed, name, exiftool, names=names) if is_edited else found
    if after.places or maker_notes:
        arguments = ["-MakerNotes:all="] * maker_notes + _deletions(found.tags, kind)
        try:
            for is_second in (False, True):  # which is for names and encodings that ExifTool does not edit
                has_xmp = any(place.startswith("XMP") for place in after.places)
                if is_second and not has_xmp:
                    break
                is_replaced = has_xmp and (is_second or kind == "PNG")  # whose XMP has not been edited in place
                packet = _read_edited_xmp(changed, kind, exiftool, unwanted) if is_replaced else b""
                changed = write_tags(changed, kind, exiftool, *arguments, packet=packet)
                after = inspect(changed, name, exiftool, names=names)
        except MetadataError as error:
            after, reason = inspect(changed, name, exiftool, names=names), f" ({error})"
    if after.places:
        hint = "; --maker-notes removes them" if any(tag.family == "MakerNotes" for tag in after.tags) else ""
        raise ImageError(name, f"not all could be removed: {', '.join(after.places)}{hint}{reason}")
    return containers.with_moved_images(data, changed) if kind == "JPEG" else changed, after, lost


def write_tags(data: bytes, kind: str, exiftool: ExifTool, *arguments: str, packet: bytes = b"") -> bytes:
    """A file that ExifTool has written, with what stands behind the image; see :meth:`ExifTool.write`."""
    end = containers.image_end(data, kind) if kind in ("WEBP", "HEIF", "AVIF") else len(data)
    return exiftool.write(data[:end], SUFFIXES[kind], *arguments, xmp=packet) + data[end:]


def _read_edited_xmp(data: bytes, kind: str, exiftool: ExifTool, unwanted: xmp.Filter) -> bytes:
    """The XMP packet of a file without places; empty when there is none that can be understood."""
    with suppress(xmp.XmpError):
        return xmp.remove_properties(exiftool.read_xmp(data, SUFFIXES[kind]), unwanted)[0]
    return b""


def _deletions(tags: Iterable[Tag], kind: str) -> list[str]:
    """The arguments of ExifTool that delete tags, or the groups that it can only delete as a whole."""
    found = ["-GPS:all="]
    for tag in tags:
        whole = _WHOLE.get(tag.family) or _WHOLE.get(tag.group)
        if whole:
            found.append(f"-{whole}=" if ":" in whole else f"-{whole}:all=")
        elif kind == "TIFF" and re.fullmatch(r"IFD\d+", tag.group):  # ExifTool lists a tag of one page only
            found += [f"-IFD{page}:{tag.name}=" for page in range(_PAGES)]
        elif re.fullmatch(r"[\w-]+", tag.name):
            found.append(f"-{tag.group}:{tag.name}=")
    return list(unique(found))


def _edit_in_place(
    data: bytes, kind: str, exiftool: ExifTool, found: Inspection, *, names: bool
) -> tuple[bytes, list[str]]:
    """What ExifTool does not write: XMP with names that it does not know, boxes, texts, files within the file."""
    unwanted = xmp.is_location if names else xmp.is_coordinate
    wholes = unique(group for tag in found.tags for group in (tag.family, tag.group) if group in _WHOLE)
    lost = ["content credentials (C2PA)" if group == "JUMBF" else f"all {group} metadata" for group in wholes]
    if kind == "JPEG":
        data = containers.normalized_jpeg(data)
    if kind == "PNG":
        matches = is_location_name if names else is_coordinate_name
        dropped = []
        for chunk in containers.png_chunks(data):
            key = containers.png_keyword(data, chunk)
            if (chunk.kind == b"caBX" and "JUMBF" in wholes) or (key and matches(key.rpartition(":")[2])):
                dropped.append(chunk)
        data = containers.without_spans(data, dropped)
    changed = bytearray(data)
    for start, end in containers.xmp_regions(data, kind):
        lost += xmp.blank_properties(changed, start, end, unwanted)
    if kind == "JPEG":
        _edit_extended_xmp(changed, unwanted)
    for start, end in containers.other_exif(bytes(changed), kind):
        with suppress(MetadataError):
            _put_back(changed, start, end, _edit_exif(bytes(changed[start:end]), exiftool))
    containers.blank_locations(changed, kind)
    for span in containers.embedded_files(data, kind):
        part = bytes(changed[span.start : span.end])
        with suppress(ImageError):
            if span.kind == b".jpg":
                inside = inspect(part, "", exiftool, names=names)
                edited, *_ = remove_locations(part, "", exiftool, inside, names=names)
                check_pixels(part, edited, "")
                _put_back(changed, span.start, span.end, edited)
    return bytes(changed), lost


def _put_back(data: bytearray, start: int, end: int, edited: bytes) -> None:
    """Put a part back into its place, if it is no longer than it was."""
    if len(edited) <= end - start:
        data[start:end] = edited.ljust(end - start, b"\0")


def _edit_extended_xmp(data: bytearray, unwanted: xmp.Filter) -> None:
    """XMP that is longer than a segment lies in several, under a digest of all (XMP specification, part 3)."""
    parts: dict[bytes, list[tuple[int, int, int]]] = {}
    for span in containers.jpeg_segments(bytes(data))[0]:
        body = span.body + len(_EXTENDED)
        if span.kind == b"\xe1" and data[span.body : body] == _EXTENDED and body + 40 <= span.end:
            (offset,) = struct.unpack_from(">I", data, body + 36)
            parts.setdefault(bytes(data[body : body + 32]), []).append((offset, body + 40, span.end))
    for digest, spans in parts.items():
        packet = b"".join(bytes(data[start:end]) for _, start, end in sorted(spans))
        try:
            changed = xmp.remove_properties(packet, unwanted)[0].ljust(len(packet))
        except xmp.XmpError:
            changed = b" " * len(packet)
        if len(changed) == len(packet) and changed != packet:
            for _, start, end in sorted(spans):
                data[start:end], changed = changed[: end - start], changed[end - start :]
            whole = b"".join(bytes(data[start:end]) for _, start, end in sorted(spans))
            data[:] = data.replace(digest, hashlib.md5(whole, usedforsecurity=False).hexdigest().upper().encode())


def _edit_exif(exif: bytes, exiftool: ExifTool) -> bytes:
    """EXIF data that stand alone without coordinates; nothing when nothing else was in them."""
    try:
        return exiftool.write(exif, ".exif", "-GPS:all=")
    except MetadataError as error:
        if "delete all meta" in str(error):
            return b""
        raise


def check_pixels(before: bytes, after: bytes, name: str) -> None:
    """Decode a changed file and compare it with the original, frame by frame.

    Of a JPEG whose compressed pixels and their tables are the same bytes, only the new one is decoded, at an eighth.

    Raises:
        ImageError: they differ, or one cannot be decoded.
    """
    if before == after:
        return
    is_jpeg = sniff(before, name) == "JPEG"
    if is_jpeg and containers.compressed_pixels(before) == containers.compressed_pixels(after):
        _frames(after, name, scale=8)
    elif _frames(before, name) != _frames(after, name):
        raise ImageError(name, "its pixels would change: nothing was written")
    if orientation(open_image(before, name)) != orientation(open_image(after, name)):
        raise ImageError(name, "its orientation would change: nothing was written")


def _frames(data: bytes, name: str, *, scale: int = 1) -> list[tuple[Any, ...]]:
    image, found = open_image(data, name), []
    image.draft(None, (image.width // scale or 1, image.height // scale or 1))
    try:
        with quiet_pillow():
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                image.load()
                found.append((image.mode, image.size, hashlib.sha256(image.tobytes()).digest()))
    except Exception as error:  # decoders fail on damaged bytes in many ways
        raise ImageError(name, f"its pixels cannot be decoded, so a change cannot be checked: {error}") from error
    return found
