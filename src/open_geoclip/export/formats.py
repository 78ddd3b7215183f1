"""Answers as files: one call for the command line, the HTTP API and the page.

Records are answers as JSON-ready values (:meth:`open_geoclip.search.answer.Answer.to_dict`), with or without the
findings of :func:`open_geoclip.verification.verify` and a thumbnail. Every format names what made an answer and
says that it is an estimate.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Annotated, Any, Literal

from open_geoclip._version import __version__
from open_geoclip.errors import DataError, OpenGeoCLIPError, SettingsError
from open_geoclip.export import kml, tables
from open_geoclip.export.geopackage import to_geopackage
from open_geoclip.export.tables import CAUTION
from open_geoclip.export.thumbnails import decode_thumbnail
from open_geoclip.metadata.read import PhotoPlace
from open_geoclip.schema import from_dict, type_hints
from open_geoclip.search.answer import Answer
from open_geoclip.search.explanation import Explanation
from open_geoclip.verification import Findings

__all__ = ["CAUTION", "FORMATS", "About", "Additions", "Format", "Record", "check_records", "render", "report_page"]

Record = Mapping[str, Any]


def _check_thumbnail(data_uri: str | None, where: str) -> None:
    if data_uri is not None:
        decode_thumbnail(data_uri, where)


def _check_exif(place: PhotoPlace | None, where: str) -> None:
    if place is not None and not place.is_on_earth:
        raise SettingsError(f"{where}: lat is from -90 to 90, lon from -180 to 180, not {place.lat}, {place.lon}")


@dataclass(frozen=True, kw_only=True)
class Additions(Findings):
    """What a record may have beside its answer."""

    exif: Annotated[PhotoPlace | None, _check_exif, "The place in the metadata; null where there is none."] = None
    thumbnail: Annotated[str | None, _check_thumbnail, "A JPEG as a data URI."] = None
    explanation: Annotated[Explanation | None, "What in the photo speaks for a candidate."] = None
    decision: Annotated[Literal["accepted", "rejected"] | None, "What a person decided about the answer."] = None
    note: Annotated[str | None, "What a person wrote about it."] = None


@dataclass(frozen=True)
class About:
    """What a file says of all its answers; each answer names its model, gallery and version itself.

    Attributes:
        created: ISO 8601 in UTC; now by default.
        software: what wrote the file.
        caution: that these are estimates.
    """

    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    software: str = f"open-geoclip {__version__}"
    caution: str = CAUTION


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: of its name.
        media_type: as HTTP calls it.
        write: records and :class:`About` as a dict, to bytes.
    """

    suffix: str
    media_type: str
    write: Callable[[Sequence[Record], dict[str, str]], bytes]


def render(records: Sequence[Record], format_: str, *, about: About | None = None) -> bytes:
    """Write records as a file.

    Args:
        records: in order; those with an ``error`` are kept. Not checked: see :func:`check_records` for those of others.
        format_: one of :data:`FORMATS`.
        about: default: written now.

    Raises:
        SettingsError: there is no such format.
        OpenGeoCLIPError: the page of the HTML report was not built.
        MissingExtraError: the format needs an extra that is not installed.
    """
    if format_ not in FORMATS:
        raise SettingsError(f"format: one of {', '.join(FORMATS)}, not {format_!r}")
    return FORMATS[format_].write(records, asdict(about or About()))


def check_records(records: Sequence[Record]) -> None:
    """Check records that come from outside, every value of them.

    Raises:
        DataError: a value is not what it must be; the message names the record and the key.
    """
    names = type_hints(Additions)
    for number, record in enumerate(records):
        try:
            Answer.from_dict({key: value for key, value in record.items() if key not in names})
            from_dict(Additions, {k: v for k, v in record.items() if k in names and v is not None}, "record")
        except (DataError, SettingsError) as error:
            raise DataError(f"record {number}: {str(error).removeprefix('record: ')}") from error


def _to_json(records: Sequence[Record], about: dict[str, str]) -> bytes:
    bare = [{key: value for key, value in record.items() if key != "thumbnail"} for record in records]
    return (json.dumps(bare, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def report_page() -> str:
    """Return the page that a report is made of, with a mark where its records belong.

    Raises:
        OpenGeoCLIPError: it was not built.
    """
    try:
        return files("open_geoclip").joinpath("export", "page", "report.html").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise OpenGeoCLIPError(
            "the page of the report was not built: run `make web` in a checkout, or install a built wheel"
        ) from error


def _to_html(records: Sequence[Record], about: dict[str, str]) -> bytes:
    """Write a self-contained report, which works from disk: the web page with the records in it."""
    before, found, after = report_page().partition("__RECORDS__")
    assert found, "the template has a place for records"
    return (before + _embedded({"records": list(records), "about": about}) + after).encode()


def _embedded(content: object) -> str:
    """Return JSON that neither ends the element it stands in nor begins a comment, whatever a file is called."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _to_geojson(records: Sequence[Record], about: dict[str, str]) -> bytes:
    """Write a FeatureCollection (RFC 7946); ``about`` and images that could not be read are members beside it."""
    features = [feature for number, record in enumerate(records) for feature in _features(record, number)]
    collection: dict[str, Any] = {"type": "FeatureCollection", "about": about, "features": features}
    errors = [{"image": record["image"], "error": record["error"]} for record in records if "error" in record]
    if errors:
        collection["errors"] = errors
    return (json.dumps(collection, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def _features(record: Record, number: int) -> Iterator[dict[str, Any]]:
    """Yield regions first, the widest at the bottom, then candidates, the best on top."""
    if "error" in record:
        return
    names = ("warning", "image", "text", "decision", "note")
    common = {"answer": number, **{name: record[name] for name in names if record.get(name)}}
    made = {key: record[key] for key in ("model", "gallery", "version", "sha256") if key in record}
    for share, region in sorted(record.get("regions", {}).items(), key=lambda item: -float(item[0])):
        if region["coordinates"]:
            properties = {**common, "kind": "credible region", "percent": float(share), **made}
            yield {"type": "Feature", "geometry": region, "properties": properties}
    exif, verdict = record.get("exif"), kml.verdict_values(record)
    if exif:
        yield tables.point_feature(exif, {**common, "kind": "where the photo itself says it was taken", **verdict})
    whole = {key: record.get(key) for key in ("credible_radius_km", "within_km", "reliability")} | verdict
    sure = {key: record.get(key) for key in ("sure", "in_distribution")}
    for rank, candidate in reversed(list(enumerate(record["candidates"], 1))):
        own = {key: value for key, value in candidate.items() if key not in ("lat", "lon")}
        first = whole if rank == 1 else {}
        properties = {**common, "kind": "candidate", "rank": rank, **own, **first, **sure, **made}
        yield {"id": f"{number}-{rank}"} | tables.point_feature(candidate, properties)


FORMATS: dict[str, Format] = {
    "json": Format(".json", "application/json", _to_json),
    "csv": Format(".csv", "text/csv; charset=utf-8", tables.to_csv),
    "csv-bom": Format(".csv", "text/csv; charset=utf-8", tables.to_csv_with_bom),
    "geojson": Format(".geojson", "application/geo+json", _to_geojson),
    "kml": Format(".kml", "application/vnd.google-earth.kml+xml", kml.to_kml),
    "kmz": Format(".kmz", "application/vnd.google-earth.kmz", kml.to_kmz),
    "parquet": Format(".parquet", "application/vnd.apache.parquet", tables.to_parquet),
    "gpkg": Format(".gpkg", "application/geopackage+sqlite3", to_geopackage),
    "html": Format(".html", "text/html; charset=utf-8", _to_html),
}
"""By the name that ``--format`` takes."""
