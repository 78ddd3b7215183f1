"""Where and when a photo's own metadata say it was taken: EXIF, XMP in the file, and sidecars.

An estimate never uses what is read here; it can be compared with it afterwards. Pillow reads EXIF; nothing is decoded.
"""

import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from PIL.ExifTags import GPSTAGS

from open_geoclip.errors import ImageError, MetadataError
from open_geoclip.images import ImageSource, image_name, open_header, quiet_pillow, read_bytes
from open_geoclip.metadata import gps, sidecars, xmp

__all__ = ["ESTIMATED", "PhotoMetadata", "PhotoPlace", "Remark", "Source", "read_metadata", "read_place"]

Source = Literal["exif", "xmp", "sidecar"]
_TAIL = 4096
ESTIMATED = "ESTIMATED"
"""How GPSProcessingMethod begins in a place that this package estimated."""


@dataclass(frozen=True)
class PhotoPlace:
    """A place in a photo's metadata.

    Attributes:
        lat: degrees north, as written.
        lon: degrees east, as written.
        source: ``exif``, ``xmp`` (both in the file) or ``sidecar``.
        accuracy_m: the positioning error in metres (GPSHPositioningError), or None.
        dop: the dilution of precision (GPSDOP), or None.
        altitude_m: metres above the sea, or None.
        direction_deg: where the camera pointed, clockwise from north, or None.
        time: when the photo was taken: the camera's time if there is one, else the time of the GPS fix.
        fix_time: when the position was measured, in UTC, or None.
        datum: the datum of the coordinates, as written, or None.
        method: how the position was found, as written: GPS, CELLID, WLAN, MANUAL, or None.
        estimated: whether this package estimated and wrote it.
        no_fix: whether the receiver says that it had no fix.
    """

    lat: float
    lon: float
    source: Source = "exif"
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

    @property
    def is_on_earth(self) -> bool:
        """Whether the coordinates are in range: metadata may hold any number."""
        return abs(self.lat) <= 90 and abs(self.lon) <= 180

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: times are ISO 8601, and numbers that are not finite are None."""
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }
        for name in ("time", "fix_time"):
            moment: datetime | None = getattr(self, name)
            values[name] = moment and moment.isoformat()
        return values


@dataclass(frozen=True)
class PhotoMetadata:
    """What a photo's metadata say about where, when and by what it was taken.

    Attributes:
        places: all places: those of EXIF first, then of XMP, then of sidecars.
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
        """The first place that this package did not estimate; None where there is none."""
        return next((place for place in self.places if not place.estimated), None)


@dataclass(frozen=True)
class Remark:
    """An oddity of a photo's metadata; see :func:`open_geoclip.metadata.checks.find_remarks`."""

    check: Annotated[str, "The check that found it."]
    text: Annotated[str, "What it found."]


def read_place(source: ImageSource, *, name: str | None = None) -> PhotoPlace | None:
    """Read where a photo says it was taken; None where it does not, or only holds an estimate of this package.

    Args:
        source: the photo. Of a path, sidecars are read as well.
        name: how errors name it.

    Raises:
        ImageError: it cannot be read or is not an image. Damaged metadata are not an error: they hold no place.
    """
    return read_metadata(source, name=name).place


def read_metadata(source: ImageSource, *, name: str | None = None, with_sidecars: bool = True) -> PhotoMetadata:
    """Read what a photo says about where and when it was taken, without decoding it; see :func:`read_place`."""
    if isinstance(source, np.ndarray):
        return PhotoMetadata()
    found = _Collector()
    with _open(source, image_name(source) if name is None else name) as image:
        if image is not source and _lacks_end_marker(image):
            found.faults.append("the JPEG lacks its end marker")
        with quiet_pillow(), warnings.catch_warnings(record=True, action="always") as caught:
            found.add_exif(image)
        found.faults += dict.fromkeys(f"its EXIF data are damaged: {one.message}" for one in caught)
        for packet in _packets(image):
            found.add_xmp(packet, "xmp")
    if with_sidecars and isinstance(source, (str, os.PathLike)):
        for sidecar in sidecars.sidecars_beside(Path(source)):
            if sidecar.is_own:
                found.add_sidecar(sidecar)
    return found.result()


@contextmanager
def _open(source: Any, label: str) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, (str, os.PathLike)) and Path(source).is_file():
        try:
            with Path(source).open("rb") as file:
                yield open_header(file, label)
        except OSError as error:
            raise ImageError(label, f"cannot be read: {error.strerror or error}") from error
    else:
        yield open_header(BytesIO(read_bytes(source, label)), label)


def _lacks_end_marker(image: Image.Image) -> bool:
    """Whether a JPEG that was just opened is cut off; the end of its file alone is read where the marker is there."""
    file = getattr(image, "fp", None)
    if image.format != "JPEG" or file is None:
        return False
    scan = file.tell()
    file.seek(max(scan, file.seek(0, os.SEEK_END) - _TAIL))
    if b"\xff\xd9" in file.read():
        return False
    file.seek(scan)
    return b"\xff\xd9" not in file.read()


def _packets(image: Image.Image) -> list[bytes]:
    """The XMP packets that Pillow finds."""
    raw = [image.info.get(key) for key in ("xmp", "XML:com.adobe.xmp", "Raw profile type xmp")]
    found = []
    for packet in raw:
        if isinstance(packet, str) and packet.lstrip().startswith("xmp"):  # ImageMagick's profile, in hexadecimal
            with suppress(ValueError):
                packet = bytes.fromhex("".join(packet.split("\n")[3:]))
        data = packet.encode("utf-8", "surrogateescape") if isinstance(packet, str) else packet
        if isinstance(data, (bytes, tuple)) and bytes(data).strip(b"\0 \r\n\t") and bytes(data) not in found:
            found.append(bytes(data))
    return found


class _Collector:
    """Collects what is found, the first of each kind."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.places: list[PhotoPlace] = []
        self.taken: datetime | None = None
        self.camera: str | None = None
        self.software: dict[str, None] = {}

    def result(self) -> PhotoMetadata:
        places = tuple(replace(place, time=self.taken or place.time or place.fix_time) for place in self.places)
        return PhotoMetadata(places, self.taken, self.camera, tuple(self.software), tuple(self.faults))

    def add_exif(self, image: Image.Image) -> None:
        try:
            exif = image.getexif()
            camera, record = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
        except Exception as error:  # noqa: BLE001  # Pillow fails on damaged data in many ways
            self.faults.append(f"its EXIF data are damaged: {error}")
            return
        maker, model = _text(exif.get(0x010F)), _text(exif.get(0x0110))
        name = model if maker and model and model.startswith(maker) else f"{maker or ''} {model or ''}".strip()
        self.camera = name or None
        self.taken = _parse_time(_text(camera.get(0x9003)), _text(camera.get(0x9011)))
        for tag in (0x0131, 0x000B):
            self._add_program(_text(exif.get(tag)))
        if record and not self._add_place({GPSTAGS.get(tag, ""): value for tag, value in record.items()}, "exif"):
            self.faults.append("its GPS record has no place")

    def add_xmp(self, packet: bytes, source: Source) -> None:
        try:
            content, _ = xmp.decode(packet)
            found = xmp.properties(content)
        except xmp.XmpError as error:
            self.faults.append(f"its {'sidecar' if source == 'sidecar' else 'XMP'} cannot be understood: {error}")
            return
        values = {(one.namespace, one.name): one.value for one in found}
        self._add_program(values.get((xmp.XMP_NS, "CreatorTool")))
        if match := re.search(r"""\bxmptk\s*=\s*["']([^"']{1,200})""", content):
            self._add_program(match[1])
        if self.taken is None:
            with suppress(ValueError):
                self.taken = datetime.fromisoformat(values.get((xmp.EXIF_NS, "DateTimeOriginal"), ""))
        gps_values = {name: value for (space, name), value in values.items() if space == xmp.EXIF_NS}
        self._add_place(gps_values, source, estimated=any(one.namespace == xmp.ESTIMATE_NS for one in found))

    def _add_place(self, values: Mapping[str, Any], source: Source, *, estimated: bool = False) -> bool:
        """Add the place of a GPS record, or what is wrong with it; False where it has no coordinates."""
        if any(values.get(name) in (None, "") for name in ("GPSLatitude", "GPSLongitude")):
            return False
        try:
            place = _place(values, source)
        except gps.GpsError as error:
            self.faults.append(str(error))
        else:
            self.places.append(replace(place, estimated=estimated or place.estimated))
        return True

    def add_sidecar(self, sidecar: sidecars.Sidecar) -> None:
        try:
            if sidecar.kind == "xmp":
                self.add_xmp(sidecar.path.read_bytes(), "sidecar")
            elif "lat" in (found := sidecars.read_takeout(sidecar.path.read_bytes())):
                self.places.append(PhotoPlace(source="sidecar", **found))
        except OSError as error:
            self.faults.append(f"{sidecar.path.name} cannot be read: {error.strerror or error}")
        except MetadataError as error:
            self.faults.append(f"{sidecar.path.name}: {error}")

    def _add_program(self, name: str | None) -> None:
        if name:
            self.software.setdefault(name)


def _place(values: Mapping[str, Any], source: Source) -> PhotoPlace:
    """The place of a GPS record, by the names of EXIF, which XMP shares."""
    altitude, method = _number(values.get("GPSAltitude")), _text(values.get("GPSProcessingMethod"))
    return PhotoPlace(
        _degrees(values["GPSLatitude"], values.get("GPSLatitudeRef"), "N", "S"),
        _degrees(values["GPSLongitude"], values.get("GPSLongitudeRef"), "E", "W"),
        source,
        accuracy_m=_number(values.get("GPSHPositioningError")),
        dop=_number(values.get("GPSDOP")),
        altitude_m=-altitude if altitude is not None and _number(values.get("GPSAltitudeRef")) in (1, 3) else altitude,
        direction_deg=_number(values.get("GPSImgDirection"), 360),
        fix_time=_fix_time(_text(values.get("GPSDateStamp")), values.get("GPSTimeStamp")),
        datum=_text(values.get("GPSMapDatum")),
        method=method,
        estimated=(method or "").upper().startswith(ESTIMATED),
        no_fix=(_text(values.get("GPSStatus")) or "A").upper() == "V",
    )


def _degrees(value: Any, ref: Any, plus: str, minus: str) -> float:
    if isinstance(value, str):
        return gps.parse_angle(value, _text(ref), plus, minus)
    return gps.signed_degrees(_numbers(value), _text(ref), plus, minus)


def _number(value: Any, most: float = math.inf) -> float | None:
    """The first number of a value, if it is from 0 to ``most``."""
    number = gps.parse_number(value) if isinstance(value, str) else next(iter(_numbers(value)), None)
    return number if number is not None and math.isfinite(number) and 0 <= number <= most else None


def _numbers(value: Any) -> tuple[float, ...]:
    """A tag of EXIF as numbers; a rational with the denominator 0 is NaN."""
    values = value if isinstance(value, (bytes, Sequence)) else () if value is None else (value,)
    try:
        return tuple(map(float, values))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return (math.nan,)


def _text(value: Any) -> str | None:
    """A tag's value as text: ASCII, UTF-8 (Exif 3.0), or with a character code before it (DC-008, 4.6.6)."""
    if isinstance(value, bytes):
        if value.startswith(b"UNICODE\0"):
            wide = value[8:4096]
            order = "utf-16-be" if wide[:1] == b"\0" else "utf-16-le"
            return wide.decode(order, "replace").strip("\0 ") or None
        value = value.removeprefix(b"ASCII\0\0\0").removeprefix(bytes(8)).decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    with suppress(UnicodeError):  # Pillow reads ASCII as Latin-1
        value = value.encode("latin-1").decode("utf-8")
    return value[:4096].split("\0")[0].strip() or None


def _fix_time(date: str | None, clock: Any) -> datetime | None:
    """The time of a fix in UTC: date and clock of EXIF, or one text of XMP."""
    with suppress(ValueError, OverflowError):
        if isinstance(clock, str):
            time = datetime.fromisoformat(clock)
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        parts = _numbers(clock)
        if date and len(parts) == 3 and all(0 <= part <= 61 for part in parts):
            day = datetime.strptime(date.replace("-", ":"), "%Y:%m:%d").replace(tzinfo=UTC)
            return day + timedelta(hours=parts[0], minutes=parts[1], seconds=parts[2])
    return None


def _parse_time(text: str | None, zone: str | None) -> datetime | None:
    """A time in EXIF's notation, with its zone where that is valid; None for anything else."""
    for suffix, pattern in (((zone, "%z"),) if zone else ()) + (("", ""),):
        with suppress(ValueError):
            return datetime.strptime(f"{text}{suffix}", f"%Y:%m:%d %H:%M:%S{pattern}")
    return None
