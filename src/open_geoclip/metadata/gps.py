"""Angles as EXIF and XMP write them: CIPA DC-008 (Exif 3.0), 4.6.6, and ISO 16684-2, "Exif schema for GPS"."""

import math
import re
from collections.abc import Sequence

from open_geoclip.errors import MetadataError

__all__ = ["GpsError", "format_angle", "parse_angle", "parse_number", "signed_degrees"]


class GpsError(MetadataError):
    """A GPS record that names no place."""


def signed_degrees(parts: Sequence[float], ref: str | None, plus: str, minus: str) -> float:
    """Degrees from up to three parts and a reference.

    A sign in the numbers counts once: it must agree with the reference.

    Args:
        parts: degrees, minutes and seconds.
        ref: ``N``, ``S``, ``E`` or ``W``, or a word that begins with it.
        plus: the reference of positive degrees.
        minus: the reference of negative degrees.

    Raises:
        GpsError: the numbers are none, or the reference is missing or disagrees with their sign.
    """
    if not 1 <= len(parts) <= 3 or not all(math.isfinite(part) for part in parts):
        raise GpsError(f"its GPS record is damaged (0/0 or not three numbers): {tuple(parts)}")
    degrees = sum(abs(part) / 60**power for power, part in enumerate(parts))
    is_negative = any(part < 0 for part in parts)
    letter = (ref or "").strip().upper()[:1]
    if degrees == 0:
        return 0.0
    if letter not in (plus, minus):
        reference = f"says {ref!r}" if letter else "does not say"
        raise GpsError(f"its GPS record {reference} whether it is {plus} or {minus}")
    if is_negative and letter == plus:
        raise GpsError(f"its GPS record contradicts itself: {-degrees:g} degrees {letter}")
    return -degrees if letter == minus else degrees


_WORDS = {"NORTH": "N", "SOUTH": "S", "EAST": "E", "WEST": "W"}
_NUMBER = r"(\d{1,9}(?:\.\d+)?(?:/\d{1,9})?)"
_ANGLE = re.compile(
    rf"([A-Z]*)\s*([+-]?)\s*{_NUMBER}\s*(?:[°º]|DEGREES|DEG\.?|D)?"
    rf"(?:\s*(?:,|(?<=[°º.GDS])\s)\s*{_NUMBER}\s*(?:['′´’]|MIN(?:UTES)?\.?|M)?)?"
    rf"(?:\s*(?:,|(?<=['′´’.NSM])\s)\s*{_NUMBER}\s*(?:[\"″”]|''|SEC(?:ONDS)?\.?|S(?=\s))?)?\s*([A-Z]*)"
)


def parse_angle(text: str, ref: str | None, plus: str, minus: str) -> float:
    """An angle in XMP: ``48,51.5N``, ``48,51,30N``, ``43 deg 4' 35" N``, or plain degrees with or without a reference.

    Args:
        text: the property.
        ref: the reference that another property holds (Apple Photos), or None.
        plus: the reference of positive degrees.
        minus: the reference of negative degrees.

    Raises:
        GpsError: it is none of these.
    """
    upper = re.sub(r"(?<=[°º'′´’])(?=\d)", " ", text.strip().upper())
    if match := _ANGLE.fullmatch(upper):
        parts = [parse_number(part) for part in match.group(3, 4, 5) if part]
        numbers = [part for part in parts if part is not None]
        letters = {_WORDS.get(word, word) for word in (match[1], match[6], (ref or "").strip().upper()) if word}
        is_negative = match[2] == "-"
        is_angle = len(numbers) == len(parts) and all(part <= 60 for part in numbers[1:])
        if is_angle and len(letters) <= 1 and letters <= {plus, minus} and (len(parts) == 1 or letters or match[2]):
            letter = letters.pop() if letters else minus if is_negative else plus
            return signed_degrees([-part if is_negative else part for part in numbers], letter, plus, minus)
    raise GpsError(f"its XMP holds no angle that can be read: {text[:40]!r}")


def parse_number(text: str | None) -> float | None:
    """A number as XMP writes it, such as ``35/10``; None for anything else."""
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)(?:/(\d+))?\s*", text or "")
    if match is None or (match[2] is not None and int(match[2]) == 0):
        return None
    number = float(match[1]) / float(match[2] or 1)
    return number if math.isfinite(number) else None


def format_angle(degrees: float, plus: str, minus: str) -> str:
    """An angle for XMP, in degrees and minutes."""
    whole, rest = divmod(round(abs(degrees) * 60_000_000), 60_000_000)
    return f"{whole},{rest / 1_000_000:.6f}{minus if degrees < 0 else plus}"
