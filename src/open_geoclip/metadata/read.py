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
        ImageError: it cannot be read or is not a picture. Damaged metadata are not an error: they hold no place.
    """
    return read_metadata(source, name=name).place


def read_metadata(source: ImageSource, *, name: str | None = None, with_sidecars: bool = True) -> PhotoMetadata:
    """Read what a photo says about where and when it was taken, without decoding it; see :func:`read_place`."""
    if isinstance(source, np.ndarray):
        return PhotoMetadata()
    found = _Collector()
    with _open(source, image_name(source) if name is None else name) as picture:
        if picture is not source and _lacks_end_marker(picture):
            found.faults.append("the JPEG lacks its end marker")
        with quiet_pillow(), warnings.catch_warnings(record=True, action="always") as caught:
            found.add_exif(picture)
        found.faults += dict.fromkeys(f"its EXIF data are damaged: {one.message}" for one in caught)
        for packet in _packets(picture):
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


def _lacks_end_marker(picture: Image.Image) -> bool:
    """Whether a JPEG that was just opened is cut off; the end of its file alone is read where the marker is there."""
    file = getattr(picture, "fp", None)
    if picture.format != "JPEG" or file is None:
        return False
    scan = file.tell()
    file.seek(max(scan, file.seek(0, os.SEEK_END) - _TAIL))
    if b"\xff\xd9" in file.read():
        return False
    file.seek(scan)
    return b"\xff\xd9" not in file.read()


def _packets(picture: Image.Image) -> list[bytes]:
    """The XMP packets that Pillow finds."""
    raw = [picture.info.get(key) for key in ("xmp", "XML:com.adobe.xmp", "Raw profile type xmp")]
    if getattr(picture, "tag_v2", None) is not None:
        raw.append(picture.tag_v2.get(700))  # type: ignore[attr-defined]
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

    def add_exif(self, picture: Image.Image) -> None:
        try:
            exif = picture.getexif()
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
        if not record:
            return
        try:
            self.places.append(_exif_place(record))
        except MetadataError as error:
            self.faults.append(str(error))

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
        try:
            place = _xmp_place({name: value for (space, name), value in values.items() if space == xmp.EXIF_NS}, source)
        except gps.GpsError as error:
            self.faults.append(str(error))
            return
        if place is not None:
            has_estimate = any(one.namespace == xmp.ESTIMATE_NS for one in found)
            self.places.append(replace(place, estimated=place.estimated or has_estimate))

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


def _exif_place(record: Mapping[int, Any]) -> PhotoPlace:
    if record.get(2) is None or record.get(4) is None:
        raise MetadataError("its GPS record has no place")

    def number(tag: int, most: float = math.inf) -> float | None:
        values = _numbers(record.get(tag))
        return values[0] if values and math.isfinite(values[0]) and 0 <= values[0] <= most else None

    altitude, method = number(6), _text(record.get(27))
    is_below = next(iter(_numbers(record.get(5))), 0) in (1, 3)
    return PhotoPlace(
        gps.signed_degrees(_numbers(record[2]), _text(record.get(1)), "N", "S"),
        gps.signed_degrees(_numbers(record[4]), _text(record.get(3)), "E", "W"),
        "exif",
        accuracy_m=number(31),
        dop=number(11),
        altitude_m=-altitude if altitude is not None and is_below else altitude,
        direction_deg=number(17, 360),
        fix_time=_fix_time(_text(record.get(29)), _numbers(record.get(7))),
        datum=_text(record.get(18)),
        method=method,
        estimated=(method or "").upper().startswith(ESTIMATED),
        no_fix=(_text(record.get(9)) or "A").upper() == "V",
    )


def _xmp_place(values: Mapping[str, str], source: Source) -> PhotoPlace | None:
    lat, lon = values.get("GPSLatitude"), values.get("GPSLongitude")
    if not lat or not lon:
        return None
    altitude = gps.parse_number(values.get("GPSAltitude"))
    fix_time = None
    with suppress(ValueError):
        fix_time = datetime.fromisoformat(values.get("GPSTimeStamp", ""))
        fix_time = fix_time.replace(tzinfo=UTC) if fix_time.tzinfo is None else fix_time.astimezone(UTC)
    method = values.get("GPSProcessingMethod")
    return PhotoPlace(
        gps.parse_angle(lat, values.get("GPSLatitudeRef"), "N", "S"),
        gps.parse_angle(lon, values.get("GPSLongitudeRef"), "E", "W"),
        source,
        accuracy_m=gps.parse_number(values.get("GPSHPositioningError")),
        dop=gps.parse_number(values.get("GPSDOP")),
        altitude_m=-altitude if altitude is not None and values.get("GPSAltitudeRef") == "1" else altitude,
        direction_deg=gps.parse_number(values.get("GPSImgDirection")),
        fix_time=fix_time,
        datum=values.get("GPSMapDatum"),
        method=method,
        estimated=(method or "").upper().startswith(ESTIMATED),
        no_fix=values.get("GPSStatus") == "V",
    )


def _numbers(value: Any) -> tuple[float, ...]:
    """A tag's value as numbers; a rational with the denominator 0 is NaN."""
    if isinstance(value, (bytes, str)):
        return tuple(value) if isinstance(value, bytes) else ()
    try:
        return tuple(
            float(part) for part in (value if isinstance(value, Sequence) else [value] if value is not None else [])
        )
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


def _fix_time(date: str | None, clock: tuple[float, ...]) -> datetime | None:
    if date is None or len(clock) != 3:
        return None
    with suppress(ValueError, OverflowError):
        day = datetime.strptime(date.replace("-", ":"), "%Y:%m:%d").replace(tzinfo=UTC)
        if all(0 <= part <= 61 for part in clock):
            return day + timedelta(hours=clock[0], minutes=clock[1], seconds=clock[2])
    return None


def _parse_time(text: str | None, zone: str | None) -> datetime | None:
    """A time in EXIF's notation; None for anything else."""
    with suppress(ValueError):
        time = datetime.strptime((text or "").strip(), "%Y:%m:%d %H:%M:%S")
        if zone and (match := re.fullmatch(r"([+-])(\d\d):?(\d\d)", zone.strip())):
            offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
            return datetime.fromisoformat(f"{time.isoformat()}{match[0]}") if offset < timedelta(hours=24) else time
        return time
    return None
