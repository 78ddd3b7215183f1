"""EXIF's GPS record as numbers, and back: CIPA DC-008 (Exif 3.0), 4.6.6, and how XMP writes the same."""

import math
import re
import struct
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from open_geoclip.errors import DataError
from open_geoclip.metadata.tiff import Field, Tiff, numbers, text

__all__ = ["GpsError", "fields", "fraction", "read", "xmp_degrees", "xmp_text"]

_LAT, _LON = (1, 2, "N", "S"), (3, 4, "E", "W")
_SECOND = 10_000  # parts of a second of arc that are written: 3 mm


class GpsError(DataError):
    """A GPS record that names no place: damaged, or without one. ``damaged`` tells which."""

    def __init__(self, reason: str, *, damaged: bool = True) -> None:
        self.damaged = damaged
        super().__init__(reason)


def read(tiff: Tiff) -> dict[str, Any] | None:
    """What the first GPS record says, by the names of ``metadata.place.PhotoPlace``; None without a record.

    Raises:
        GpsError: it has no coordinates, or damaged ones.
    """
    records = [directory for directory in tiff.named("GPS") if directory.entries]
    if not records:
        return None
    record = records[0]

    def values(tag: int) -> tuple[float, ...]:
        entry = record.get(tag)
        return () if entry is None else numbers(tiff, entry)

    def word(tag: int) -> str | None:
        return text(tiff, record.get(tag))

    def number(tag: int, least: float = 0.0, most: float = math.inf) -> float | None:
        found = values(tag)
        return found[0] if found and math.isfinite(found[0]) and least <= found[0] <= most else None

    if record.get(_LAT[1]) is None or record.get(_LON[1]) is None:
        raise GpsError("its GPS record has no place", damaged=False)
    no_fix = (word(9) or "A").upper() == "V"
    lat, lon = (_degrees(values(tag), word(ref), plus, minus) for ref, tag, plus, minus in (_LAT, _LON))
    altitude = number(6)
    below = next(iter(values(5)), 0) in (1, 3)
    return {
        "lat": lat,
        "lon": lon,
        "accuracy_m": number(31),
        "dop": number(11),
        "altitude_m": -altitude if altitude is not None and below else altitude,
        "direction_deg": number(17, 0, 360),
        "fix_time": _fix_time(word(29), values(7)),
        "datum": word(18),
        "method": word(27),
        "no_fix": no_fix,
    }


def _degrees(parts: tuple[float, ...], ref: str | None, plus: str, minus: str) -> float:
    if not 1 <= len(parts) <= 3 or not all(math.isfinite(part) for part in parts):
        raise GpsError(f"its GPS record is damaged (0/0 or not three numbers): {parts}")
    degrees = sum(part / 60**power for power, part in enumerate(parts))
    letter = (ref or "").upper()[:1]
    if letter not in (plus, minus):
        if degrees == 0:
            return 0.0
        told = f"says {ref!r}" if letter else "does not say"
        raise GpsError(f"its GPS record {told} whether it is {plus} or {minus}")
    return -degrees if letter == minus else degrees


def _fix_time(date: str | None, clock: tuple[float, ...]) -> datetime | None:
    if date is None or len(clock) != 3:
        return None
    with suppress(ValueError, OverflowError):
        day = datetime.strptime(date.replace("-", ":"), "%Y:%m:%d").replace(tzinfo=UTC)
        if all(0 <= part <= 61 for part in clock):
            return day + timedelta(hours=clock[0], minutes=clock[1], seconds=clock[2])
    return None


def fields(order: str, lat: float, lon: float, *, method: str, accuracy_m: float | None = None) -> list[Field]:
    """A GPS record for a place: version 2.3, WGS84, how it was found and how sure it is."""

    def word(tag: int, told: str) -> Field:
        return Field(tag, 2, len(told) + 1, told.encode("ascii") + b"\0")

    def angle(tag: int, degrees: float) -> Field:
        parts = round(abs(degrees) * 3600 * _SECOND)
        whole, rest = divmod(parts, 3600 * _SECOND)
        minutes, seconds = divmod(rest, 60 * _SECOND)
        return Field(tag, 5, 3, struct.pack(f"{order}6I", whole, 1, minutes, 1, seconds, _SECOND))

    coded = b"ASCII\0\0\0" + method.encode("ascii", "replace")
    found = [
        Field(0, 1, 4, bytes((2, 3, 0, 0))),
        word(1, "S" if lat < 0 else "N"),
        angle(2, lat),
        word(3, "W" if lon < 0 else "E"),
        angle(4, lon),
        word(18, "WGS-84"),
        Field(27, 7, len(coded), coded),
    ]
    if accuracy_m is not None:
        found.append(Field(31, 5, 1, struct.pack(f"{order}2I", min(round(accuracy_m), 2**32 - 1), 1)))
    return found


def fraction(told: str | None) -> float | None:
    """A number as XMP writes it, such as 35/10; None for what is none."""
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)(?:/(\d+))?\s*", told or "")
    if match is None or (match[2] is not None and int(match[2]) == 0):
        return None
    found = float(match[1]) / float(match[2] or 1)
    return found if math.isfinite(found) else None


def xmp_degrees(told: str, plus: str, minus: str) -> float:
    """An angle as XMP writes it: ``48,51.5N``, ``48,51,30N``; plain degrees are understood too.

    Raises:
        GpsError: it is none of these.
    """
    number = r"(\d{1,3}(?:\.\d+)?)"
    match = re.fullmatch(rf"\s*([+-]?){number}(?:,{number})?(?:,{number})?\s*([{plus}{minus}]?)\s*", told.upper())
    if match is None or (match[3] and not match[5] and not match[1]):
        raise GpsError(f"its XMP names no angle that can be read: {told[:40]!r}")
    degrees = sum(float(part or 0) / 60**power for power, part in enumerate(match.group(2, 3, 4)))
    return -degrees if (match[5] == minus) != (match[1] == "-") else degrees


def xmp_text(degrees: float, plus: str, minus: str) -> str:
    """An angle for XMP, in degrees and minutes."""
    whole, rest = divmod(round(abs(degrees) * 60_000_000), 60_000_000)
    return f"{whole},{rest / 1_000_000:.6f}{minus if degrees < 0 else plus}"
