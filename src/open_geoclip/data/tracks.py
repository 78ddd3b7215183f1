"""Tracks: where somebody was, and when. GPX, Google Timeline and Takeout, tables.

Google has published four layouts: ``Records.json`` (``locations``), the months of Semantic Location History
(``timelineObjects``), ``Timeline.json`` of Android (``semanticSegments``, ``rawSignals``) and of iOS (a list). A table
has columns for time, latitude and longitude, and may have one for accuracy.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
from jaxtyping import Float64, Int64

from open_geoclip.data.columns import COORDINATES, Column
from open_geoclip.data.tables import TABLE_SUFFIXES, read_table
from open_geoclip.errors import DataError, MetadataError
from open_geoclip.metadata.sidecars import read_takeout

__all__ = ["DEFAULT_ACCURACY_M", "Fix", "Track", "parse_time", "read_track"]

DEFAULT_ACCURACY_M = 10.0
"""Of fixes that do not say how accurate they are: that of a phone under an open sky."""

_HDOP_M = 5.0  # metres of error per unit of dilution
_VISIT_STEP_S = 600.0  # a visit becomes a fix so often
_MAX_VISIT_FIXES = 1000
_CANDIDATES = 32  # fixes on either side that are compared
_WALK_M_PER_S = 1.5
_COLUMNS = {
    "time": Column(("time", "timestamp", "datetime", "date_time", "utc", "time_utc", "tst", "date")),
    **COORDINATES,
    "accuracy": Column(
        ("accuracy_m", "accuracy", "acc", "hacc", "horizontal_accuracy", "radius_m"), "number", required=False
    ),
}


@dataclass(frozen=True)
class Fix:
    """A known place in time.

    Attributes:
        time_s: seconds since 1970-01-01 UTC.
        lat: degrees north.
        lon: degrees east.
        accuracy_m: radius that contains the true place with a probability of 68 %.
        source: name of the file that it is from.
    """

    time_s: float
    lat: float
    lon: float
    accuracy_m: float = DEFAULT_ACCURACY_M
    source: str = ""


@dataclass(frozen=True, eq=False)
class Track:
    """Fixes in the order of their times. Make one with :meth:`from_fixes` or :func:`read_track`.

    Attributes:
        names: of the files that the fixes are from.
        sources: the file of each, as a number from 0.
        times_s: seconds since 1970-01-01 UTC, ascending.
        coordinates: (lat, lon) in degrees.
        accuracy_m: of each; see :class:`Fix`.
        left_out: how many places of the file have no time or are not on Earth.
    """

    names: tuple[str, ...]
    sources: Int64[np.ndarray, " n"]
    times_s: Float64[np.ndarray, " n"]
    coordinates: Float64[np.ndarray, "n 2"]
    accuracy_m: Float64[np.ndarray, " n"]
    left_out: int = 0

    @classmethod
    def from_fixes(cls, fixes: Iterable[Fix]) -> "Track":
        """Sort fixes. Those that are not on Earth or at no time are left out."""
        kept = [fix for fix in fixes if math.isfinite(fix.time_s) and abs(fix.lat) <= 90 and abs(fix.lon) <= 180]
        kept.sort(key=lambda fix: fix.time_s)
        number: dict[str, int] = {}
        sources = [number.setdefault(fix.source, len(number)) for fix in kept]
        accuracy = [fix.accuracy_m if 0 < fix.accuracy_m < math.inf else DEFAULT_ACCURACY_M for fix in kept]
        return cls(
            tuple(number),
            np.array(sources, np.int64),
            np.array([fix.time_s for fix in kept], np.float64),
            np.array([(fix.lat, fix.lon) for fix in kept], np.float64).reshape(-1, 2),
            np.array(accuracy, np.float64),
        )

    @classmethod
    def concatenate(cls, tracks: Sequence["Track"]) -> "Track":
        """Return the fixes of several tracks as one."""
        names = tuple(name for track in tracks for name in track.names)
        first = np.cumsum([0] + [len(track.names) for track in tracks])
        order = np.argsort(np.concatenate([track.times_s for track in tracks] or [np.empty(0)]), kind="stable")
        sources = [track.sources + start for track, start in zip(tracks, first[:-1], strict=True)]
        return cls(
            names,
            np.concatenate([*sources, np.empty(0, np.int64)])[order].astype(np.int64),
            np.concatenate([*(track.times_s for track in tracks), np.empty(0)])[order],
            np.concatenate([*(track.coordinates for track in tracks), np.empty((0, 2))])[order],
            np.concatenate([*(track.accuracy_m for track in tracks), np.empty(0)])[order],
        )

    def __len__(self) -> int:
        return len(self.times_s)

    def __getitem__(self, row: int) -> Fix:
        lat, lon = self.coordinates[row].tolist()
        return Fix(float(self.times_s[row]), lat, lon, float(self.accuracy_m[row]), self.names[int(self.sources[row])])

    @property
    def span(self) -> str:
        """First and last day, for messages."""
        first, last = (f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M}" for time in self.times_s[[0, -1]])
        return f"{first} to {last} UTC"

    def bracket(self, time_s: float) -> tuple[Fix | None, Fix | None]:
        """Return the fix before a moment and the one after it; both are the same where one is of that very moment.

        Of the nearest 32 on either side, the one that says most counts: a cell tower's fix of 2 km a second ago says
        less than a GPS fix of a minute ago.
        """
        before = int(np.searchsorted(self.times_s, time_s, side="right"))
        after = int(np.searchsorted(self.times_s, time_s, side="left"))
        return (
            self._best(max(0, before - _CANDIDATES), before, time_s),
            self._best(after, min(len(self), after + _CANDIDATES), time_s),
        )

    def _best(self, start: int, stop: int, time_s: float) -> Fix | None:
        if start >= stop:
            return None
        gap_s = np.abs(self.times_s[start:stop] - time_s)
        return self[start + int(np.argmin(self.accuracy_m[start:stop] + _WALK_M_PER_S * gap_s))]


def read_track(path: str | Path, *, name: str | None = None) -> Track:
    """Read a track; its content, not its name, says whether it is GPX, JSON or a table.

    Args:
        path: the file.
        name: how errors name it, and fixes without its folder. Default: the path.

    Raises:
        DataError: it cannot be read, is damaged, or has no place with a time.
    """
    path, name = Path(path), str(path) if name is None else name
    try:
        with path.open("rb") as file:
            head = file.read(256).decode("latin-1").lstrip("\ufeff\xef\xbb\xbf\xff\xfe\0 \t\r\n")
            file.seek(0)
            content = file.read() if head[:1] in ("<", "{", "[") else b""
        if head.startswith("<"):
            found, total = _read_gpx(content)
        elif content and '"FeatureCollection"' not in head:
            found, total = _read_google(content)
        elif not head or "\0" in head:
            raise DataError("it is empty" if not head else "it is neither GPX nor JSON nor a table")
        else:
            found, total = _read_rows(path, Path(name).suffix.lower())
    except OSError as error:
        raise DataError(f"{name}: it cannot be read: {error.strerror or error}") from error
    except (DataError, MetadataError, OverflowError) as error:
        raise DataError(f"{name}: {str(error).removeprefix(str(path)).lstrip(':, ')}") from error
    track = Track.from_fixes(replace(fix, source=Path(name).name) for fix in found)
    if len(track) == 0:
        what = "no place with a time"
        if found:
            what = f"{len(found):,} places, none of which is on Earth"
        elif total:
            what = f"{total:,} places without a time: it is a route, not a track that was recorded"
        raise DataError(f"{name}: it has {what}")
    return replace(track, left_out=total - len(track))


def parse_time(text: str) -> datetime:
    """Read a time: ISO 8601, EXIF's ``2026:05:01 14:03:00``, or seconds or milliseconds since 1970.

    Raises:
        ValueError: it is none of these.
    """
    text = text.strip()
    if re.fullmatch(r"-?\d{9,13}(\.\d+)?", text):
        number = float(text)
        return datetime.fromtimestamp(number / 1000 if abs(number) > 1e11 else number, UTC)
    return datetime.fromisoformat(re.sub(r"^(\d{4}):(\d\d):(\d\d)\b", r"\1-\2-\3", text))


def _seconds(text: Any) -> float | None:
    """Return a time of a track, which is UTC unless it names another zone; None for anything else."""
    try:
        time = parse_time(str(text))
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


# --- GPX ------------------------------------------------------------------------------------------


def _read_gpx(content: bytes) -> tuple[list[Fix], int]:
    """Return the points with a time, and the number of all points. Entities are refused: anyone may have written it."""
    fixes: list[Fix] = []
    total, point, texts, text = 0, None, {}, []  # type: int, dict[str, str] | None, dict[str, str], list[str]

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal point, texts
        text.clear()
        if name.rpartition(" ")[2] in ("trkpt", "rtept", "wpt"):
            point, texts = attributes, {}

    def end(name: str) -> None:
        nonlocal point, total
        kind = name.rpartition(" ")[2]
        if point is None:
            return
        texts.setdefault(kind, "".join(text).strip())
        text.clear()
        if kind in ("trkpt", "rtept", "wpt"):
            total += 1
            time_s = _seconds(texts.get("time", ""))
            try:
                lat, lon, hdop = float(point["lat"]), float(point["lon"]), float(texts.get("hdop") or "nan")
            except (KeyError, ValueError) as error:
                raise DataError(f"line {parser.CurrentLineNumber}: a point without latitude or longitude") from error
            if time_s is not None:
                fixes.append(Fix(time_s, lat, lon, _HDOP_M * hdop if hdop > 0 else DEFAULT_ACCURACY_M))
            point = None

    def refuse(*_: Any) -> None:
        raise DataError("it has a document type, which may hold entities: remove it")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text.append, refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise DataError(f"it is damaged: {error}: export or copy it again") from error
    return fixes, total


# --- Google ---------------------------------------------------------------------------------------


def _read_google(content: bytes) -> tuple[list[Fix], int]:
    """Return the fixes of any of Google's layouts, and the number of all places."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is damaged: {error}: export or copy it again") from error
    if isinstance(record, dict) and "photoTakenTime" in record:
        photo = read_takeout(content)
        if "lat" not in photo:
            raise DataError("this photo's record has no place")
        return [Fix(photo["time"].timestamp(), photo["lat"], photo["lon"])] if "time" in photo else [], 1
    parts: list[tuple[Any, Callable[[dict[str, Any]], _Found]]]
    if isinstance(record, list):
        parts = [(record, _read_segment)]
    else:
        found = record if isinstance(record, dict) else {}
        parts = [(found[key], read) for key, read in _LAYOUTS.items() if isinstance(found.get(key), list)]
    if not parts:
        known = ", ".join(["photoTakenTime", *_LAYOUTS])
        raise DataError(f"it is JSON, but no layout that is known: it has none of {known}")
    fixes, total = [], 0
    for entries, read in parts:
        for entry in entries:
            for place, time, accuracy in read(entry) if isinstance(entry, dict) else ():
                if place is None:
                    continue
                total += 1
                time_s = _seconds(time)
                if time_s is not None:
                    accuracy_m = float(accuracy) if isinstance(accuracy, (int, float)) else DEFAULT_ACCURACY_M
                    fixes.append(Fix(time_s, *place, accuracy_m))
    return fixes, total


_Found = Iterator[tuple[tuple[float, float] | None, Any, Any]]
_NUMBERS = re.compile(r"\s*(?:geo:)?\s*(-?\d+(?:\.\d+)?)\s*°?\s*,\s*(-?\d+(?:\.\d+)?)\s*°?\s*(?:;.*)?")


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    """Return a number, which Google also writes as text; None for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _e7(entry: Any) -> tuple[float, float] | None:
    """Return the place of a record in units of 1e-7 degrees, some of which have overflown 32 bits."""
    if not isinstance(entry, dict):
        return None
    for lat_name, lon_name in (("latitudeE7", "longitudeE7"), ("latE7", "lngE7")):
        lat, lon = entry.get(lat_name), entry.get(lon_name)
        if isinstance(lat, (int, float)) and isinstance(lon, (int, float)):
            lat = lat - 2**32 if lat > 900_000_000 else lat
            lon = lon - 2**32 if lon > 1_800_000_000 else lon
            return lat / 1e7, lon / 1e7
    return None


def _place(text: Any) -> tuple[float, float] | None:
    """Return a place that is written as ``48.85°, 2.35°`` or ``geo:48.85,2.35``."""
    text = text.get("latLng", text.get("LatLng")) if isinstance(text, dict) else text
    match = _NUMBERS.fullmatch(text) if isinstance(text, str) else None
    return (float(match[1]), float(match[2])) if match else None


def _stay(place: tuple[float, float] | None, start: Any, end: Any, accuracy: Any = None) -> _Found:
    """Yield fixes from start to end of a visit."""
    first, last = _seconds(start), _seconds(end)
    if first is None or last is None or last < first:
        yield place, start, accuracy
        return
    count = int(min((last - first) // _VISIT_STEP_S + 2, _MAX_VISIT_FIXES))
    for time in np.linspace(first, last, count):
        yield place, datetime.fromtimestamp(time, UTC).isoformat(), accuracy


def _read_location(entry: dict[str, Any]) -> _Found:
    yield _e7(entry), entry.get("timestamp", entry.get("timestampMs")), entry.get("accuracy")


def _read_object(entry: dict[str, Any]) -> _Found:
    """A visit or an activity of Semantic Location History."""
    for kind in ("placeVisit", "activitySegment"):
        part = entry.get(kind)
        if not isinstance(part, dict):
            continue
        span = _dict(part.get("duration"))
        start, end = (span.get(f"{at}Timestamp", span.get(f"{at}TimestampMs")) for at in ("start", "end"))
        if kind == "placeVisit":
            location = _e7(part.get("location"))
            yield from _stay(location, start, end, 50.0)
            continue
        yield _e7(part.get("startLocation")), start, 50.0
        yield _e7(part.get("endLocation")), end, 50.0
        for point in _dicts(_dict(part.get("simplifiedRawPath")).get("points")):
            yield _e7(point), point.get("timestamp", point.get("timestampMs")), point.get("accuracyMeters")


def _read_segment(entry: dict[str, Any]) -> _Found:
    """A visit, an activity or a path of Timeline.json."""
    start, end = entry.get("startTime"), entry.get("endTime")
    visit, activity = entry.get("visit"), entry.get("activity")
    if isinstance(visit, dict):
        yield from _stay(_place(_dict(visit.get("topCandidate")).get("placeLocation")), start, end, 50.0)
    if isinstance(activity, dict):
        yield _place(activity.get("start")), start, 50.0
        yield _place(activity.get("end")), end, 50.0
    first = _seconds(start)
    for point in _dicts(entry.get("timelinePath")):
        time, minutes = point.get("time"), _number(point.get("durationMinutesOffsetFromStartTime"))
        if time is None and minutes is not None and first is not None:
            time = (datetime.fromtimestamp(first, UTC) + timedelta(minutes=minutes)).isoformat()
        yield _place(point.get("point")), time, 50.0


def _read_signal(entry: dict[str, Any]) -> _Found:
    position = entry.get("position")
    if isinstance(position, dict):
        yield _place(position), position.get("timestamp"), position.get("accuracyMeters")


_LAYOUTS: dict[str, Callable[[dict[str, Any]], _Found]] = {
    "locations": _read_location,
    "timelineObjects": _read_object,
    "semanticSegments": _read_segment,
    "rawSignals": _read_signal,
}


# --- tables ---------------------------------------------------------------------------------------


def _read_rows(path: Path, suffix: str) -> tuple[list[Fix], int]:
    table = read_table(path, _COLUMNS, kind=TABLE_SUFFIXES.get(suffix, "csv"))
    accuracies = table.numbers.get("accuracy", np.full(len(table), np.nan)).tolist()
    rows = zip(table.texts["time"], table.coordinates().tolist(), accuracies, strict=True)
    fixes = []
    for row, (text, (lat, lon), accuracy) in enumerate(rows):
        time_s = _seconds(text)
        if time_s is None and text:
            raise DataError(f"{table.where(row)}: {text!r} is not a time such as 2026-05-01T14:03:00Z")
        if time_s is not None:
            fixes.append(Fix(time_s, lat, lon, accuracy))
    return fixes, len(table)
