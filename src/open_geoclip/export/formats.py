"""Answers as files: one call for the command line, the HTTP API and the page.

What goes in are records: answers as JSON-ready values (:meth:`open_geoclip.search.answer.Answer.to_dict`), to which
may be added ``thumbnail``, a picture as a data URI, ``exif``, where the photo itself says it was taken, and how that
was judged (:meth:`open_geoclip.verification.Verification.to_dict`). What made an answer stands in every format
beside the words that it is an estimate.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from open_geoclip._version import __version__
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.export import geojson, html, kml, tables
from open_geoclip.search.answer import Answer
from open_geoclip.verification import VERDICTS

_BESIDE = ("thumbnail", "exif", "verdict", "reason", "comparison", "remarks", "camera", "software")

__all__ = ["CAUTION", "FORMATS", "About", "Format", "Record", "render"]

Record = Mapping[str, Any]

CAUTION = "an estimate, not evidence"


@dataclass(frozen=True)
class About:
    """What is said of all answers of a file; each answer names its model, gallery and version itself.

    Attributes:
        created: when, ISO 8601 in UTC.
        software: what wrote the file.
        caution: that these are estimates.
    """

    created: str
    software: str = f"open-geoclip {__version__}"
    caution: str = CAUTION

    @classmethod
    def now(cls) -> "About":
        """Of a file that is written now."""
        return cls(datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its name.
        media_type: as HTTP calls it.
        binary: not to be printed on a terminal.
        write: records and :class:`About` as a dict, to bytes.
    """

    suffix: str
    media_type: str
    binary: bool
    write: Callable[[Sequence[Record], dict[str, str]], bytes]


def _json(records: Sequence[Record], about: dict[str, str]) -> bytes:
    """The bare list, which programs have read since the first version: what made it stands in each answer."""
    bare = [{key: value for key, value in record.items() if key != "thumbnail"} for record in records]
    return (json.dumps(bare, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


FORMATS: dict[str, Format] = {
    "json": Format(".json", "application/json", False, _json),
    "csv": Format(".csv", "text/csv; charset=utf-8", False, tables.to_csv),
    "geojson": Format(".geojson", "application/geo+json", False, geojson.to_geojson),
    "kml": Format(".kml", "application/vnd.google-earth.kml+xml", False, kml.to_kml),
    "kmz": Format(".kmz", "application/vnd.google-earth.kmz", True, kml.to_kmz),
    "parquet": Format(".parquet", "application/vnd.apache.parquet", True, tables.to_parquet),
    "html": Format(".html", "text/html; charset=utf-8", False, html.to_html),
}
"""By the name that ``--format`` takes."""


def render(records: Sequence[Record], format_: str, *, about: About | None = None) -> bytes:
    """A file of answers.

    Args:
        records: answers, in order; those with an ``error`` are kept in each format that has a place for them.
        format_: one of :data:`FORMATS`.
        about: what is said of all; that it is written now when not given.

    Raises:
        SettingsError: there is no such format.
        DataError: a record is not an answer, or its thumbnail or exif is not what it must be; says which.
        MissingExtraError: Parquet, and the extra ``parquet`` is not installed.
    """
    if format_ not in FORMATS:
        raise SettingsError(f"format: one of {', '.join(FORMATS)}, not {format_!r}")
    for number, record in enumerate(records):
        _check(number, record)
    return FORMATS[format_].write(records, asdict(about or About.now()))


def _check(number: int, record: Record) -> None:
    """Each record is looked at: a page sends back what it shows, and anybody may write such a request."""
    try:
        Answer.from_dict({key: value for key, value in record.items() if key not in _BESIDE})
        kml.checked_thumbnail(record.get("thumbnail"))
        _check_exif(record.get("exif"))
        _check_verdict(record)
    except DataError as error:
        raise DataError(f"record {number}: {error}") from error


def _check_exif(exif: object) -> None:
    if exif is None:
        return
    if not isinstance(exif, Mapping):
        raise DataError("exif: an object or null")
    for name, most in (("lat", 90.0), ("lon", 180.0)):
        value = exif.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= most:
            raise DataError(f"exif.{name}: a number from -{most:g} to {most:g}")


def _check_verdict(record: Record) -> None:
    """What :meth:`open_geoclip.verification.Verification.to_dict` adds, as far as it is shown."""
    if record.get("verdict") not in (None, *VERDICTS):
        raise DataError(f"verdict: one of {', '.join(VERDICTS)}, or null")
    if not isinstance(record.get("reason"), str | None):
        raise DataError("reason: a text or null")
    compared = record.get("comparison")
    if not isinstance(compared, Mapping | None):
        raise DataError("comparison: an object or null")
    for name in ("p_value", "distance_km"):
        value = (compared or {}).get(name)
        if isinstance(value, bool) or not isinstance(value, int | float | None) or not 0 <= (value or 0) < math.inf:
            raise DataError(f"comparison.{name}: a number from 0, or null")
    remarks = record.get("remarks") or ()
    if not isinstance(remarks, Sequence) or not all(
        isinstance(one, Mapping) and isinstance(one.get("text"), str) for one in remarks
    ):
        raise DataError('remarks: a list of objects with a "text"')
