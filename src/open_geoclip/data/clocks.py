"""Clocks of cameras: when photos of a trip were taken in UTC, and the known places around each.

Cameras write what their clock shows, most without a zone. In this order: an offset that the user gives; the clock of
the camera compared with the GPS time of its photos; the zone that a photo names; the zone of its place, or of where the
track was; UTC.
"""

import atexit
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

from open_geoclip.data.tracks import DEFAULT_ACCURACY_M, Fix, Track, parse_time
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.metadata.read import PhotoMetadata

__all__ = ["Anchors", "TripPhoto", "find_anchors"]

_NEAREST = 5  # photos with both times, whose median is the offset of a clock
_SAME_CLOCK_S = 60.0  # a GPS time may be that of an older fix
_NEAR_S = 1800.0  # photos so long before or after a track are of its trip
_FAR_S = 86_400.0  # a track that ends so long before the first photo is another trip's


@dataclass(frozen=True)
class TripPhoto:
    """What a photo of a trip says about time and place.

    Attributes:
        name: of the photo.
        taken: what the clock of the camera showed, with a zone where the photo names one.
        camera: maker and model.
        place: measured by GPS, (lat, lon) in degrees.
        accuracy_m: of the place.
        fix_time: when it was measured, in UTC.
    """

    name: str
    taken: datetime | None = None
    camera: str = ""
    place: tuple[float, float] | None = None
    accuracy_m: float | None = None
    fix_time: datetime | None = None

    @classmethod
    def from_metadata(cls, name: str, metadata: PhotoMetadata) -> "TripPhoto":
        """Take what is needed of a photo's metadata; estimates of this package and places without a fix are none."""
        photo, place = cls(name, metadata.taken, metadata.camera or ""), metadata.place
        if place is None or not place.is_on_earth or place.no_fix or (place.lat, place.lon) == (0, 0):
            return photo
        taken = photo.taken or place.time
        return replace(
            photo,
            taken=taken,
            place=(place.lat, place.lon),
            accuracy_m=place.accuracy_m,
            fix_time=place.fix_time,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        times = {name: time and time.isoformat() for name, time in (("taken", self.taken), ("fix_time", self.fix_time))}
        return vars(self) | times

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TripPhoto":
        """Read what :meth:`to_dict` wrote."""
        times = {name: None if values[name] is None else parse_time(values[name]) for name in ("taken", "fix_time")}
        place = None if values["place"] is None else (values["place"][0], values["place"][1])
        return cls(**{**values, **times, "place": place})


@dataclass(frozen=True)
class Anchors:
    """Known places around the photos of a trip.

    Attributes:
        times_s: when each photo was taken, in seconds since 1970-01-01 UTC.
        brackets: the fix before each photo and the one after it; one of them may be missing.
        notes: how clocks and zones were found, in words.
    """

    times_s: tuple[float, ...]
    brackets: tuple[tuple[Fix | None, Fix | None], ...]
    notes: tuple[str, ...] = ()


def find_anchors(
    photos: Sequence[TripPhoto],
    tracks: Sequence[Track] = (),
    *,
    use_gps: bool = False,
    clock_offsets: Mapping[str, timedelta] | None = None,
) -> Anchors:
    """Find the known places around each photo.

    Args:
        photos: of one trip, each with a time.
        tracks: where the photographer was.
        use_gps: whether places that photos have are anchors for the others.
        clock_offsets: by camera, or part of its name: what is added to its times; ``""`` for all cameras.

    Raises:
        DataError: there is no known place, or no photo was taken while a track was recorded.
        SettingsError: no photo is of a camera that an offset is given for.
    """
    times_s, notes = _times(photos, Track.concatenate(tracks), clock_offsets or {})
    notes += _check_spans(times_s, tracks)
    known = [
        Fix(time_s, *photo.place, photo.accuracy_m or DEFAULT_ACCURACY_M, photo.name)
        for photo, time_s in zip(photos, times_s, strict=True)
        if use_gps and photo.place is not None
    ]
    track = Track.concatenate([*tracks, Track.from_fixes(known)])
    if len(track) == 0:
        raise DataError(f"no photo of {len(photos):,} has a place by GPS: give a track")
    return Anchors(tuple(times_s), tuple(map(track.bracket, times_s)), tuple(notes))


def _times(photos: Sequence[TripPhoto], track: Track, given: Mapping[str, timedelta]) -> tuple[list[float], list[str]]:
    """Return the time of each photo, and notes."""
    missing = [photo.name for photo in photos if photo.taken is None]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}{more}: a photo of a trip needs the time when it was taken")
    compared = _compare_clocks(photos)
    unused, notes, times_s = set(given), dict[str, None](), []
    for photo in photos:
        assert photo.taken is not None
        keys = [key for key in given if key.casefold() in photo.camera.casefold()]
        unused -= set(keys)
        camera = photo.camera or "unknown camera"
        pairs = compared.get(photo.camera)
        if pairs and not keys:
            shown = _as_utc(photo.taken).timestamp()
            offset_s = median(offset for _, offset in sorted(pairs, key=lambda pair: abs(pair[0] - shown))[:_NEAREST])
            time_s = shown - offset_s
            if photo.taken.tzinfo is not None and abs(photo.taken.timestamp() - time_s) <= _SAME_CLOCK_S:
                time_s = photo.taken.timestamp()
            notes.setdefault(
                f"{camera}: its clock is {_describe(median(offset for _, offset in pairs))} of UTC, by {len(pairs):,} "
                "photos with GPS time"
            )
        elif photo.taken.tzinfo is not None:
            time_s = photo.taken.timestamp()
        else:
            time_s, zone = _in_zone(photo, track)
            notes.setdefault(f"{camera}: its clock is taken to be {zone}")
        if keys:
            time_s += given[max(keys, key=len)].total_seconds()
        times_s.append(time_s)
    if unused:
        cameras = ", ".join(sorted({photo.camera or "unknown" for photo in photos}))
        raise SettingsError(f"no photo is of a camera {sorted(unused)[0]!r}; there are: {cameras}")
    return times_s, list(notes)


def _compare_clocks(photos: Sequence[TripPhoto]) -> dict[str, list[tuple[float, float]]]:
    """Return what the clock of each camera showed and how many seconds it was ahead of GPS time, photo by photo."""
    pairs = defaultdict(list)
    for photo in photos:
        if photo.taken is not None and photo.fix_time is not None and photo.taken != photo.fix_time:
            shown = _as_utc(photo.taken).timestamp()
            pairs[photo.camera].append((shown, shown - photo.fix_time.timestamp()))
    return pairs


def _as_utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC)


def _describe(seconds: float) -> str:
    sign, whole = "ahead" if seconds >= 0 else "behind", abs(round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02} {sign}"


def _in_zone(photo: TripPhoto, track: Track) -> tuple[float, str]:
    """Return the time of a photo that names no zone, by the zone of its place or of the track; and the zone."""
    assert photo.taken is not None
    time_s, name = _as_utc(photo.taken).timestamp(), "UTC"
    for _ in range(2):  # where the track was at that time depends on the zone
        place = photo.place
        if place is None and len(track):
            nearest = min(filter(None, track.bracket(time_s)), key=lambda fix: abs(fix.time_s - time_s))
            place = nearest.lat, nearest.lon
        if place is None:
            break
        # Half a degree: the search for a zone takes a while, and tracks are long.
        name = _zone_name(*(round(2 * degrees) / 2 for degrees in place) if photo.place is None else place)
        zone = ZoneInfo(name) if "/" in name else timezone(timedelta(hours=int(name.removeprefix("UTC") or 0)))
        time_s = photo.taken.replace(tzinfo=zone).timestamp()
    return time_s, name


@cache
def _finder() -> Any:
    try:
        from timezonefinder import TimezoneFinder
    except ImportError:
        return None
    finder = TimezoneFinder()
    atexit.register(finder.cleanup)
    return finder


@cache
def _zone_name(lat: float, lon: float) -> str:
    """Return the name of the zone at a place, such as Europe/Rome; without timezonefinder that at sea, UTC+1."""
    finder = _finder()
    name = None if finder is None else finder.timezone_at(lat=lat, lng=lon)
    return name if name and not name.startswith("Etc/") else f"UTC{round(lon / 15):+d}"


def _check_spans(times_s: Sequence[float], tracks: Sequence[Track]) -> list[str]:
    """Refuse tracks of another time than the photos; return notes: what was left out, clocks that may be wrong."""
    if not tracks or not times_s:
        return []
    notes = [
        f"{track.names[0]}: {track.left_out:,} places without a time or not on Earth are left out"
        for track in tracks
        if track.left_out
    ]
    spans = ", ".join(f"{track.names[0]} from {track.span}" for track in tracks[:3])
    taken = Track.from_fixes(Fix(time_s, 0, 0) for time_s in times_s)
    first, last = taken.times_s[0] - _FAR_S, taken.times_s[-1] + _FAR_S
    if all(track.times_s[-1] < first or track.times_s[0] > last for track in tracks):
        raise DataError(
            f"the photos were taken from {taken.span}, but the track is of another time ({spans}): is it another trip, "
            "or is the clock of the camera wrong?"
        )
    if any(
        ((taken.times_s >= track.times_s[0] - _NEAR_S) & (taken.times_s <= track.times_s[-1] + _NEAR_S)).any()
        for track in tracks
    ):
        return notes
    return [
        *notes,
        f"no photo was taken while a track was recorded ({spans}; photos from {taken.span}): is the clock of the "
        "camera wrong? A clock offset sets it",
    ]
