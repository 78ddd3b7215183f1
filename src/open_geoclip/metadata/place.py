"""Where a photo says itself that it was taken, when, and how sure: EXIF, XMP within the file, and sidecars.

What the file says is never used by an estimate; it is there to be held against one. EXIF GPS: CIPA DC-008 (Exif 3.0),
4.6.6. XMP: ISO 16684-2, "Exif schema for GPS".
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image

from open_geoclip.errors import ImageError
from open_geoclip.images import MAX_FILE_BYTES, ImageSource, SupportsRead, image_name, read_exif
from open_geoclip.metadata import gps
from open_geoclip.metadata.blocks import Blocks, exif_of, split
from open_geoclip.metadata.tiff import Tiff, TiffError, text
from open_geoclip.metadata.xmp import ESTIMATE_NS, EXIF_NS, Property, XmpError, decoded, properties

__all__ = ["PhotoFacts", "PhotoPlace", "Source", "find_sidecars", "read_bytes", "read_facts", "read_place"]

Source = Literal["exif", "xmp", "sidecar"]
ESTIMATED = "ESTIMATED"
"""How the processing method of a place begins that is an estimate of this package."""

_HEAD = 1 << 18  # EXIF data are 64 kB at most and stand before the pixels of a JPEG


@dataclass(frozen=True)
class PhotoPlace:
    """A place that a photo's metadata name.

    Attributes:
        lat: degrees north, as written.
        lon: degrees east, as written.
        source: where it is written: ``exif``, ``xmp`` (both in the file) or ``sidecar``.
        accuracy_m: the positioning error that is written with it (GPSHPositioningError), or None.
        dop: the dilution of precision (GPSDOP), or None.
        altitude_m: above the sea, or None.
        direction_deg: where the camera looked, clockwise from north, or None.
        time: when it was taken: the camera's time if it is there, else that of the fix; with a zone where one is known.
        fix_time: when the satellites say that the place was measured, in UTC, or None.
        datum: of the coordinates, as written, or None.
        method: how it was found, as written: GPS, CELLID, WLAN, MANUAL, or None.
        estimated: it is an estimate that was written into the file by this package, not a measurement.
        no_fix: the receiver says that it had none.
    """

    lat: float
    lon: float
    source: Source
    accuracy_m: float | None = None
    dop: float | None = None
    altitude_m: float | None = None
    direction_deg: float | None = None
    time: datetime | None = None
    fix_time: datetime | None = None
    datum: str | None = None
    method: str | None = None
    estimated: bool = False
    no_fix: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; times are ISO 8601."""
        told = {**vars(self)}
        for name in ("time", "fix_time"):
            told[name] = told[name] and told[name].isoformat()
        return told


@dataclass(frozen=True)
class PhotoFacts:
    """What a photo's metadata say of where and when it was taken, and by what.

    Attributes:
        places: all places, those of EXIF first, then of XMP, then of sidecars.
        taken: the camera's time, with its zone where that is written.
        camera: maker and model, or None.
        software: all programs that say they have written the file.
        faults: what is damaged, in words.
    """

    places: tuple[PhotoPlace, ...] = ()
    taken: datetime | None = None
    camera: str | None = None
    software: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def place(self) -> PhotoPlace | None:
        """The first place that is no estimate of this package; None where there is none."""
        return next((place for place in self.places if not place.estimated), None)


def read_place(source: ImageSource, *, name: str | None = None) -> PhotoPlace | None:
    """Where a photo says itself that it was taken; None where it does not, or only holds an estimate of this package.

    Args:
        source: The picture. Of a path, sidecars beside it are read as well.
        name: What errors call it.

    Raises:
        ImageError: it cannot be read or is no picture. Damaged metadata are not an error: they hold no place.
    """
    return read_facts(source, name=name).place


def read_facts(source: ImageSource, *, name: str | None = None, sidecars: bool = True) -> PhotoFacts:
    """All that a photo says of where and when it was taken, without decoding its pixels; see :func:`read_place`."""
    label = image_name(source) if name is None else name
    exif, packets, faults = _metadata(source, label)
    facts = _Facts(faults)
    for number, payload in enumerate(exif):
        facts.exif(payload, first=number == 0)
    for packet in packets:
        facts.xmp(packet, "xmp")
    if sidecars and isinstance(source, (str, Path)):
        for path in find_sidecars(Path(source)):
            try:
                facts.xmp(path.read_bytes(), "sidecar")
            except OSError as error:
                facts.faults.append(f"{path.name} cannot be read: {error.strerror or error}")
    return facts.told()


def find_sidecars(photo: Path) -> list[Path]:
    """The XMP files that belong to a photo: ``photo.jpg.xmp`` and, as other programs name it, ``photo.xmp``."""
    names = dict.fromkeys([photo.name + ".xmp", photo.name + ".XMP", photo.stem + ".xmp", photo.stem + ".XMP"])
    found: list[Path] = []
    for path in (photo.with_name(name) for name in names):
        with suppress(OSError):
            if path.is_file() and not any(path.samefile(other) for other in found):
                found.append(path)
    return found


def read_bytes(path: Path, *, head: bool = False) -> bytes:
    """A photo's bytes; of a JPEG, the beginning when that is asked for.

    Raises:
        ImageError: it cannot be read.
    """
    name = image_name(path)
    try:
        with path.open("rb") as file:
            data = file.read(_HEAD)
            if not (head and data.startswith(b"\xff\xd8")):
                data += file.read(MAX_FILE_BYTES + 1 - len(data))
    except FileNotFoundError:
        raise ImageError(name, "there is no such file") from None
    except OSError as error:
        raise ImageError(name, f"cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(name, f"is larger than {MAX_FILE_BYTES / 2**30:g} GiB, too large for a picture")
    if not data:
        raise ImageError(name, "is empty (0 bytes)")
    return data


def _metadata(source: ImageSource, label: str) -> tuple[list[bytes], list[bytes], list[str]]:
    """EXIF data, XMP packets and faults."""
    if isinstance(source, np.ndarray):
        return [], [], []
    if isinstance(source, Image.Image):
        tags = read_exif(source, name=label)
        xmp = source.info.get("xmp") or source.info.get("XML:com.adobe.xmp") or b""
        written = [tags.tobytes()] if len(tags) or tags.get_ifd(0x8825) else []
        return [exif_of(one) for one in written], [xmp.encode() if isinstance(xmp, str) else xmp] if xmp else [], []
    if isinstance(source, (str, Path)):
        data = read_bytes(Path(source), head=True)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        data = _streamed(cast(SupportsRead, source), label)
    if not data:
        raise ImageError(label, "is empty (0 bytes)")
    whole = not (isinstance(source, (str, Path)) and len(data) == _HEAD and data.startswith(b"\xff\xd8"))
    found: Blocks | None = None
    with suppress(ImageError):
        found = split(data, label)
    if found is None or (not whole and not _has_header(data)):
        found = split(data if whole else read_bytes(Path(cast(str, source))), label)
    exif = [exif_of(block.payload) for block in found.of("exif") if "picture" not in block.name]
    packets = [block.payload for block in found.of("xmp") if block.name in ("XMP", "profile 'xmp'", "profile 'APP1'")]
    if found.format == "TIFF":
        with suppress(TiffError):
            tiff = Tiff.read(found.data)
            packets += [tiff.value(entry) for d in tiff.main if (entry := d.get(700)) is not None]
    return exif, packets, [note for note in found.notes if "does not fit" in note and whole]


def _has_header(head: bytes) -> bool:
    """Whether the pixels of a JPEG begin within its head; metadata stand before them."""
    at = 2
    while at + 4 <= len(head) and head[at] == 0xFF:
        if head[at + 1] == 0xDA:
            return True
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return False


def _streamed(source: Any, label: str) -> bytes:
    if not callable(getattr(source, "read", None)):
        raise ImageError(label, f"a picture cannot be read from an object of type {type(source).__name__}")
    with suppress(OSError, AttributeError):
        source.seek(0)
    try:
        data = source.read()
    except Exception as error:  # a stream may be anybody's class
        raise ImageError(label, f"cannot be read: {error}") from error
    return bytes(data)


class _Facts:
    """Collects what is found, the first of each kind."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        self.places: list[PhotoPlace] = []
        self.taken: datetime | None = None
        self.camera: str | None = None
        self.software: dict[str, None] = {}

    def told(self) -> PhotoFacts:
        places = tuple(replace(place, time=self.taken or place.time or place.fix_time) for place in self.places)
        return PhotoFacts(places, self.taken, self.camera, tuple(self.software), tuple(self.faults))

    def exif(self, payload: bytes, *, first: bool) -> None:
        try:
            tiff = Tiff.read(payload)
        except TiffError as error:
            self.faults.append(f"its EXIF data are damaged: {error}")
            return
        self.faults += [f"its EXIF data are damaged: {fault}" for fault in tiff.faults[:5]]
        if first:
            maker, model = text(tiff, tiff.find("IFD0", 0x010F)), text(tiff, tiff.find("IFD0", 0x0110))
            whole = model if maker and model and model.startswith(maker) else f"{maker or ''} {model or ''}".strip()
            self.camera = whole or None
            self.taken = _when(text(tiff, tiff.find("Exif", 0x9003)), text(tiff, tiff.find("Exif", 0x9011)))
        for tag in (0x0131, 0x000B):
            self._program(text(tiff, tiff.find("IFD0", tag)))
        try:
            told = gps.read(tiff)
        except gps.GpsError as error:
            self.faults.append(str(error))
            return
        if told is not None:
            estimated = (told.get("method") or "").upper().startswith(ESTIMATED)
            self.places.append(PhotoPlace(source="exif", estimated=estimated, **told))

    def xmp(self, packet: bytes, source: Source) -> None:
        try:
            content = decoded(packet)
            found = properties(content)
        except XmpError as error:
            self.faults.append(f"its {'sidecar' if source == 'sidecar' else 'XMP'} cannot be understood: {error}")
            return
        values = {(one.namespace, one.name): one.value for one in found}
        self._program(values.get(("http://ns.adobe.com/xap/1.0/", "CreatorTool")))
        if match := re.search(r"""\bxmptk\s*=\s*["']([^"']{1,200})""", content):
            self._program(match[1])
        if self.taken is None:
            with suppress(ValueError):
                self.taken = datetime.fromisoformat(values.get((EXIF_NS, "DateTimeOriginal"), ""))
        try:
            place = _xmp_place(lambda name: values.get((EXIF_NS, name)), source)
        except gps.GpsError as error:
            self.faults.append(str(error))
            return
        if place is not None:
            self.places.append(replace(place, estimated=place.estimated or _is_estimate(found)))

    def _program(self, name: str | None) -> None:
        if name:
            self.software.setdefault(name)


def _is_estimate(found: list[Property]) -> bool:
    return any(one.namespace == ESTIMATE_NS for one in found)


def _xmp_place(value: Callable[[str], str | None], source: Source) -> PhotoPlace | None:
    lat, lon = value("GPSLatitude"), value("GPSLongitude")
    if not lat or not lon:
        return None
    height, below = gps.fraction(value("GPSAltitude")), value("GPSAltitudeRef") == "1"
    fix = None
    with suppress(ValueError):
        fix = datetime.fromisoformat(value("GPSTimeStamp") or "")
        fix = fix.replace(tzinfo=UTC) if fix.tzinfo is None else fix.astimezone(UTC)
    method = value("GPSProcessingMethod")
    return PhotoPlace(
        gps.xmp_degrees(lat, "N", "S"),
        gps.xmp_degrees(lon, "E", "W"),
        source,
        gps.fraction(value("GPSHPositioningError")),
        gps.fraction(value("GPSDOP")),
        -height if height is not None and below else height,
        gps.fraction(value("GPSImgDirection")),
        fix_time=fix,
        datum=value("GPSMapDatum"),
        method=method,
        estimated=(method or "").upper().startswith(ESTIMATED),
        no_fix=value("GPSStatus") == "V",
    )


def _when(told: str | None, zone: str | None) -> datetime | None:
    """EXIF's way to write a time; what is no time is none."""
    with suppress(ValueError):
        found = datetime.strptime((told or "").strip(), "%Y:%m:%d %H:%M:%S")
        if zone and (match := re.fullmatch(r"([+-])(\d\d):?(\d\d)", zone.strip())):
            offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
            return datetime.fromisoformat(f"{found.isoformat()}{match[0]}") if offset < timedelta(hours=24) else found
        return found
    return None
