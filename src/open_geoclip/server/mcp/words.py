"""Answers as short text, for a model or a person to read beside the structured ones."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["said"]

_MOST = 20  # a longer text costs a reader more than it tells


def said(found: Sequence[Mapping[str, Any] | str]) -> str:
    """A line or a few for each answer; of very many the first, and how many more there are.

    Args:
        found: answers as dicts, or lines.
    """
    lines = [one if isinstance(one, str) else _answer(one) for one in found[:_MOST]]
    if len(found) > _MOST:
        lines.append(f"and {len(found) - _MOST:,} more in the structured content")
    return "\n".join(lines)


def _answer(record: Mapping[str, Any]) -> str:
    name = record.get("image") or record.get("text")
    if record.get("error") is not None:
        return f"{name}: error: {record['error']}"
    if not record["candidates"]:
        return f"{name}: no candidate"
    best = record["candidates"][0]
    place = f" ({best['place']})" if best.get("place") else ""
    radii = ", ".join(f"{share} % within {km:,.0f} km" for share, km in record["credible_radius_km"].items())
    countries = ", ".join(f"{code} {share:.0%}" for code, share in list((record["countries"] or {}).items())[:3])
    sure = {True: "sure", False: "not sure", None: "not calibrated: probabilities compare places"}[record["sure"]]
    rest = "; ".join(part for part in (f"probability {best['probability']:.1%}", radii, countries, sure) if part)
    looks = f"{best['lat']:.4f}, {best['lon']:.4f}{place}; {rest}; by {record['model']}"
    if record.get("verdict"):
        return f"{name}: {_judged(record)}; it looks like {looks}"
    return f"{name}: {looks}"


def _judged(record: Mapping[str, Any]) -> str:
    """The verdict, what the file says, and what is odd about that."""
    own = record["exif"]
    says = "" if own is None else f"; it says {own['lat']:.4f}, {own['lon']:.4f} ({own['source']})"
    remarks = "".join(f"; note: {remark['text']}" for remark in record["remarks"])
    return f"{record['verdict'].upper()}, {record['reason']}{says}{remarks}"
