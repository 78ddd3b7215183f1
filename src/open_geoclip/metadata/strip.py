"""Removing what says where a photo was taken: ExifTool edits the standard blocks, the rest is edited in place.

ExifTool also is the judge: a photo counts as done only when it finds no place, in the file or in any file within it.
Then the result is decoded and its pixels are compared with those of the original.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from open_geoclip.errors import ImageError, MetadataError
from open_geoclip.images import open_image, orientation, quiet_pillow, sniff
from open_geoclip.metadata import containers, xmp
from open_geoclip.metadata.containers import Span
from open_geoclip.metadata.exiftool import ExifTool
from open_geoclip.metadata.inspection import SUFFIXES, Inspection, inspect, unique
from open_geoclip.metadata.locations import has_value, is_coordinate_name, is_location_name, label

__all__ = ["Stripped", "check_pixels", "remove_locations", "strip", "strip_sidecar"]

_EXIF = b"Exif\0\0"
_EXTENDED = b"http://ns.adobe.com/xmp/extension/\0"
_PAGES = 16  # of a TIFF
_WHOLE_GROUPS = {"FlashPix", "MIE", "AFCP", "CanonVRD", "FotoStation", "PhotoMechanic"}


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
        ImageError: it is not a picture, a place is still found afterwards, or its pixels would change.
    """
    before = inspect(data, name, exiftool)
    has_notes = maker_notes and any("maker's notes" in note for note in before.notes)
    if not before.places and not has_notes:
        return Stripped(data, (), before.notes, before.unreadable)
    changed, lost = remove_locations(data, name, exiftool, before, maker_notes=maker_notes)
    after = inspect(changed, name, exiftool)
    if after.places:
        hint = "; --maker-notes removes them" if any(tag.family == "MakerNotes" for tag in after.tags) else ""
        raise ImageError(name, f"not all could be removed: {', '.join(after.places)}{hint}")
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
) -> tuple[bytes, list[str]]:
    """A file without places, as far as they can be removed; :func:`inspect` tells what is left.

    Args:
        data: the file.
        name: how errors name it.
        exiftool: a running ExifTool.
        found: what the file holds.
        names: remove names of places too, not coordinates alone.
        maker_notes: remove the camera maker's notes.

    Returns:
        The file, and what was removed as a whole because it could not be edited.

    Raises:
        ImageError: ExifTool cannot write it.
    """
    kind = sniff(data, name)
    has_credentials = any(tag.family == "JUMBF" for tag in found.tags)
    changed, lost = _edited_in_place(data, kind, exiftool, names, credentials=not has_credentials)
    if changed != data and not maker_notes and not inspect(changed, name, exiftool, names=names).places:
        return changed, lost
    arguments = ["-GPS:all=", *(["-MakerNotes:all="] if maker_notes else [])]
    for tag in found.tags:
        if re.fullmatch(r"[\w-]+", tag.name):
            is_page = kind == "TIFF" and re.fullmatch(r"IFD\d+", tag.group)  # ExifTool lists a tag of one page only
            groups = [f"IFD{number}" for number in range(_PAGES)] if is_page else [tag.group]
            arguments += [f"-{group}:{tag.name}=" for group in groups]
    arguments += unique(f"-{tag.family}:all=" for tag in found.tags if tag.family in _WHOLE_GROUPS)
    try:
        if kind == "WEBP":
            chunks = containers.webp_chunks(changed)
            exif = next((body for kind_, body in chunks if kind_ == b"EXIF"), b"")
            try:
                exif = _edit_exif(exif.removeprefix(_EXIF), exiftool, *arguments) if exif else b""
            except MetadataError as error:
                exif = b""
                lost.append(f"all EXIF data, which could not be understood ({error})")
            return containers.write_webp(changed, containers.replace_exif(chunks, exif)), lost
        end = containers.picture_end(changed, kind) if kind in ("HEIF", "AVIF") else len(changed)
        written = exiftool.write(changed[:end], SUFFIXES[kind], *arguments) + changed[end:]
    except MetadataError as error:
        raise ImageError(name, str(error)) from error
    return containers.with_moved_pictures(data, written) if kind == "JPEG" else written, lost


def _edited_in_place(
    data: bytes, kind: str, exiftool: ExifTool, names: bool, *, credentials: bool
) -> tuple[bytes, list[str]]:
    """What ExifTool does not write: XMP with names that it does not know, boxes, texts, files within the file."""
    unwanted = xmp.is_location if names else xmp.is_coordinate
    lost: list[str] = []
    if kind == "JPEG":
        data = containers.normalized_jpeg(data, credentials=credentials)
    if kind == "PNG":
        matches = is_location_name if names else is_coordinate_name
        data, lost = _edited_png(data, unwanted, matches, credentials=credentials)
    if not credentials:
        lost.append("content credentials (C2PA)")
    changed = bytearray(data)
    for start, end in containers.xmp_regions(data, kind):
        lost += xmp.blank_properties(changed, start, end, unwanted)
    if kind == "JPEG":
        _edit_extended_xmp(changed, unwanted)
    for start, end in containers.other_exif(bytes(changed), kind):
        with suppress(MetadataError):
            edited = _edit_exif(bytes(changed[start:end]), exiftool, "-GPS:all=")
            if len(edited) <= end - start:
                changed[start:end] = edited.ljust(end - start, b"\0")
    containers.blank_locations(changed, kind)
    for span in containers.embedded_files(data, kind):
        if span.kind != b".jpg":
            continue
        part = bytes(changed[span.start : span.end])
        with suppress(ImageError):
            edited, _ = remove_locations(part, "", exiftool, inspect(part, "", exiftool, names=names), names=names)
            check_pixels(part, edited, "")
            if len(edited) <= len(part):
                changed[span.start : span.end] = edited.ljust(len(part), b"\0")
    return bytes(changed), lost


def _edited_png(
    data: bytes, unwanted: Callable[[xmp.Property], bool], matches: Callable[[str], bool], *, credentials: bool
) -> tuple[bytes, list[str]]:
    contents: dict[Span, bytes | None] = {}
    lost, has_exif = [], False
    for chunk in containers.png_chunks(data):
        key = containers.png_text(data, chunk)
        if chunk.kind == b"eXIf" and has_exif:  # ExifTool writes one
            contents[chunk] = None
            lost.append("a second block of EXIF data")
        elif (key is not None and matches(key.rpartition(":")[2])) or (chunk.kind == b"caBX" and not credentials):
            contents[chunk] = None
        elif key == "XML:com.adobe.xmp":
            body = data[chunk.body : chunk.end - 4]
            try:
                contents[chunk] = _edited_text(chunk.kind, body, unwanted)
            except (MetadataError, zlib.error, ValueError) as error:
                contents[chunk] = None
                lost.append(f"all XMP, which could not be understood ({error})")
        has_exif |= chunk.kind == b"eXIf"
    return containers.write_png(data, contents), lost


def _edited_text(kind: bytes, body: bytes, unwanted: Callable[[xmp.Property], bool]) -> bytes:
    """The content of a text chunk with an edited packet of XMP."""
    key, _, rest = body.partition(b"\0")
    head, packet, is_packed = key + b"\0", rest, kind == b"zTXt"
    if kind == b"zTXt":
        head, packet = head + rest[:1], rest[1:]
    elif kind == b"iTXt":
        language, translated, packet = rest[2:].split(b"\0", 2)
        head, is_packed = head + rest[:2] + language + b"\0" + translated + b"\0", rest[:1] == b"\1"
    if not is_packed:
        return head + xmp.remove_properties(packet, unwanted)[0]
    inflater = zlib.decompressobj()
    packet = inflater.decompress(packet, 2**24)
    if inflater.unconsumed_tail:
        raise MetadataError("XMP of more than 16 MiB")
    return head + zlib.compress(xmp.remove_properties(packet, unwanted)[0])


def _edit_extended_xmp(data: bytearray, unwanted: Callable[[xmp.Property], bool]) -> None:
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
        if changed == packet or len(changed) > len(packet):
            continue
        for _, start, end in sorted(spans):
            data[start:end], changed_rest = changed[: end - start], changed[end - start :]
            changed = changed_rest
        whole = b"".join(bytes(data[start:end]) for _, start, end in sorted(spans))
        data[:] = data.replace(digest, hashlib.md5(whole, usedforsecurity=False).hexdigest().upper().encode())


def _edit_exif(exif: bytes, exiftool: ExifTool, *arguments: str) -> bytes:
    """EXIF data that stand alone; nothing when nothing but the place was in them."""
    try:
        return exiftool.write(exif, ".exif", *arguments)
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
    picture, found = open_image(data, name), []
    picture.draft(None, (picture.width // scale or 1, picture.height // scale or 1))
    try:
        with quiet_pillow():
            for number in range(getattr(picture, "n_frames", 1)):
                picture.seek(number)
                picture.load()
                found.append((picture.mode, picture.size, hashlib.sha256(picture.tobytes()).digest()))
    except Exception as error:  # decoders fail on damaged bytes in many ways
        raise ImageError(name, f"its pixels cannot be decoded, so a change cannot be checked: {error}") from error
    return found
