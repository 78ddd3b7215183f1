"""What the tools answer: types, of which clients get a JSON schema each, compact records, and short texts."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from mcp.types import CallToolResult, TextContent
from pydantic import BaseModel, Field, WithJsonSchema

from open_geoclip.schema import record_schema
from open_geoclip.search.answer import Answer
from open_geoclip.verification import Findings

__all__ = [
    "MAX_CHARACTERS",
    "EmbeddingsResult",
    "LocatedResult",
    "ModelsResult",
    "VerifiedResult",
    "WhereResult",
    "records_result",
    "result",
]

MAX_CHARACTERS = 50_000
"""Of the JSON of a result: clients cut results at 25,000 tokens, and a token of JSON is two characters or more."""

_NOTE = "An estimate, not evidence."
_VERDICT_NOTE = (
    "A verdict is a reason to look closer, not a proof: of many true places, one in twenty is unlikely by chance."
)
_MAX_LINES = 20  # of the text beside a result
_ONCE = ("model", "gallery")  # the same in all answers of a result
_FULL_ONLY = {*_ONCE, "version", "within_km", "in_distribution", "sha256"}

_Record = Annotated[dict[str, Any], WithJsonSchema(record_schema("Answer", Answer))]
_Verified = Annotated[dict[str, Any], WithJsonSchema(record_schema("Verification", Answer, Findings))]


class _Records(BaseModel):
    note: str = Field(description="What the answers are and are not.")
    model: str = Field(description="Name and version of the weights.")
    gallery: str = Field(description="Name, size and hash of the gallery, and the area that it was limited to.")
    left_out: int = Field(0, description="Answers at the end that did not fit in a compact result: ask for them again.")


class LocatedResult(_Records):
    """Answers in the order of the inputs."""

    answers: list[_Record]


class VerifiedResult(_Records):
    """Verdicts in the order of the photos."""

    photos: list[_Verified]


class _Place(BaseModel):
    lat: float
    lon: float
    country: str = Field(description="ISO 3166 code; empty at sea.")
    country_name: str
    place: str = Field(description="In words, such as '12 km south-west of Lyon, France'.")


class WhereResult(BaseModel):
    """Names in the order of the coordinates."""

    places: list[_Place]


class _Embedding(BaseModel):
    input: str = Field(description="'lat,lon', the name of the image, or the text.")
    embedding: list[float] | None = Field(description="Of length 1; null when there is an error.")
    error: str | None = Field(None, description="Why the image could not be read.")


class EmbeddingsResult(BaseModel):
    """Embeddings in one space: the better two inputs match, the nearer their dot product is to 1."""

    model: str
    dimensions: int
    embeddings: list[_Embedding] = Field(description="Coordinates, then images, then texts, each in their order.")


class ModelsResult(BaseModel):
    """The weights that have a name."""

    in_use: str = Field(description="The model that this server answers with.")
    models: list[dict[str, Any]]


def result(content: dict[str, Any], lines: Sequence[str], *notes: str) -> CallToolResult:
    """A result: its content, and a text for a model or a person to read."""
    more = [f"and {len(lines) - _MAX_LINES:,} more in the structured content"] if len(lines) > _MAX_LINES else []
    text = "\n".join([*lines[:_MAX_LINES], *more, *notes])
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=content)


def records_result(records: list[dict[str, Any]], *, full: bool, key: str = "answers") -> CallToolResult:
    """A result of answers or verifications.

    Args:
        records: JSON-ready.
        full: with all fields of all records. Otherwise with those that a reader needs, rounded; if that is still more
            than :data:`MAX_CHARACTERS`, with one candidate each, and then without the last records.
        key: of the records in the result.
    """
    note = _NOTE if key == "answers" else _VERDICT_NOTE
    first: dict[str, Any] = next((one for one in records if one.get("error") is None), {})
    lines = [_line(record) for record in records]
    kept, left_out = records, 0
    if not full:
        kept = [_compact(record, len(record.get("candidates", ()))) for record in records]
        if _size(kept) > MAX_CHARACTERS:
            kept = [_compact(record, 1) for record in records]
        while _size(kept) > MAX_CHARACTERS:
            kept = kept[: len(kept) * 9 // 10]
        left_out = len(records) - len(kept)
    if left_out:
        note += f" The last {left_out} are left out: ask for fewer at once, or for all with full."
    once = {name: first.get(name, "") for name in _ONCE}
    return result({"note": note, **once, "left_out": left_out, key: kept}, lines, note)


def _compact(record: Mapping[str, Any], candidates: int) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if name not in _FULL_ONLY}
    kept = {name: value for name, value in kept.items() if name == "sure" or value not in (None, [], {})}
    if "candidates" in kept:
        kept["candidates"] = kept["candidates"][:candidates]
    if "countries" in kept:
        kept["countries"] = dict(list(kept["countries"].items())[:5])
    return {name: _rounded(value) for name, value in kept.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def _size(records: Sequence[Mapping[str, Any]]) -> int:
    return len(json.dumps(records, ensure_ascii=False))


def _line(record: Mapping[str, Any]) -> str:
    """An answer as one line of text."""
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
    measured = (record.get("reliability") or {}).get("text")
    parts: tuple[str | None, ...] = (f"probability {best['probability']:.1%}", radii, countries, sure, measured)
    if record.get("warning"):
        parts = (record["warning"],)
    rest = "; ".join(part for part in parts if part)
    estimate = f"{best['lat']:.4f}, {best['lon']:.4f}{place}; {rest}; by {record['model']}"
    if not record.get("verdict"):
        return f"{name}: {estimate}"
    own = record["exif"]
    says = "" if own is None else f"; it says {own['lat']:.4f}, {own['lon']:.4f} ({own['source']})"
    remarks = "".join(f"; note: {remark['text']}" for remark in record["remarks"])
    return f"{name}: {record['verdict'].upper()}, {record['reason']}{says}{remarks}; it looks like {estimate}"
