"""What is odd about a photo's own statements, without any model: a remark is a reason to look closer, no proof."""

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from open_geoclip.geo.sphere import haversine_km
from open_geoclip.metadata.read import PhotoMetadata, PhotoPlace, Remark

__all__ = ["find_remarks"]

_GPS_BEGAN = datetime(1980, 1, 6, tzinfo=UTC)
_APART_KM = 0.1
_ZONE_H = 4.0  # clocks on land keep within about 3.5 hours of the sun, summer time included
_CLOCK = timedelta(minutes=5)
_STALE = timedelta(hours=1)
_EDITORS = re.compile(
    r"(?i)photoshop|lightroom|gimp|exiftool|exiv2|affinity|pixelmator|snapseed|darktable|rawtherapee|digikam|imagemagick"
    r"|picasa|capture one|acdsee|geosetter|geotag|paint|canva|facetune|luminar|vsco|stable diffusion|midjourney|firefly"
)


def find_remarks(facts: PhotoMetadata, now: datetime | None = None) -> Iterator[Remark]:
    """All oddities.

    Args:
        facts: what the metadata say.
        now: what is in the future is after this; the present when not given.
    """
    now = now or datetime.now(UTC)
    for fault in facts.faults:
        yield Remark("damaged", fault)
    if facts.taken is not None and _utc(facts.taken) > now + timedelta(days=1):
        yield Remark("future", f"the camera's clock says {facts.taken.isoformat(' ')}, which is still to come")
    for program in facts.software:
        if _EDITORS.search(program):
            yield Remark("edited", f"{program} has written the file")
    if any(place.estimated for place in facts.places):
        yield Remark("estimated", "an estimate by open-geoclip is written in it, which is no measurement")
    yield from _disagreeing([place for place in facts.places if not place.estimated])
    if facts.place is not None:
        yield from _of_place(facts.place, now)
        yield from _of_clock(facts.place, facts.taken)


def _disagreeing(places: list[PhotoPlace]) -> Iterator[Remark]:
    import numpy as np

    sound = [place for place in places if place.is_on_earth]
    for other in sound[1:]:
        one = sound[0]
        km = float(haversine_km(np.array([[one.lat, one.lon]]), np.array([[other.lat, other.lon]]))[0])
        if km > _APART_KM:
            yield Remark("disagree", f"{one.source} and {other.source} name places {km:,.1f} km apart")


def _of_place(place: PhotoPlace, now: datetime) -> Iterator[Remark]:
    if not place.is_on_earth:
        yield Remark("not on Earth", f"{place.lat:g}, {place.lon:g} is not on Earth")
        return
    if place.lat == 0 and place.lon == 0:
        yield Remark("zero", "0, 0 is what programs write that do not know the place")
    elif place.lat == round(place.lat, 1) and place.lon == round(place.lon, 1):
        yield Remark("rounded", "the coordinates are round: a receiver gives more digits")
    if place.no_fix:
        yield Remark("no fix", "the receiver says that it had no fix")
    if place.accuracy_m is not None and place.accuracy_m > 1000:
        yield Remark("imprecise", f"its own accuracy is {place.accuracy_m / 1000:,.0f} km")
    if place.dop is not None and place.dop > 20:
        yield Remark("imprecise", f"the dilution of precision is {place.dop:g}, more than 20 is poor")
    if place.datum and not re.search(r"(?i)wgs.?84|^unknown", place.datum):
        yield Remark(
            "datum", f"coordinates are in {place.datum}, not in WGS-84: they may be off by some hundred metres"
        )
    if place.method and re.search(r"(?i)manual|cell|network|wlan|wifi", place.method):
        yield Remark("method", f"the place was found by {place.method}, not by satellites")
    if place.altitude_m is not None and not -450 <= place.altitude_m <= 13_000:
        yield Remark("altitude", f"an altitude of {place.altitude_m:,.0f} m")
    if place.fix_time is not None and place.fix_time > now + timedelta(days=1):
        yield Remark("future", f"the fix is of {place.fix_time.isoformat(' ')}, which is still to come")
    if place.fix_time is not None and place.fix_time < _GPS_BEGAN:
        yield Remark("past", f"the fix is of {place.fix_time.isoformat(' ')}, before there were satellites for it")


def _of_clock(place: PhotoPlace, taken: datetime | None) -> Iterator[Remark]:
    """The camera's clock against the satellites', and its zone against the sun's at the place."""
    if taken is None or abs(place.lon) > 180:
        return
    sun_h = place.lon / 15
    if place.fix_time is not None and taken.tzinfo is not None:
        apart = taken - place.fix_time
        if abs(apart) > _STALE:
            hours = apart.total_seconds() / 3600
            yield Remark(
                "stale", f"the fix is {abs(hours):,.1f} h {'older' if hours > 0 else 'younger'} than the photo"
            )
    zone_h, how = None, ""
    if taken.tzinfo is not None and (offset := taken.utcoffset()) is not None:
        zone_h, how = offset.total_seconds() / 3600, "says"
    elif place.fix_time is not None:
        apart = taken.replace(tzinfo=UTC) - place.fix_time
        if abs(apart) > timedelta(hours=26):
            yield Remark(
                "stale", f"the fix and the camera's clock are {abs(apart.total_seconds()) / 86400:,.1f} days apart"
            )
        else:
            quarter = round(apart / timedelta(minutes=15)) * timedelta(minutes=15)
            if abs(apart - quarter) > _CLOCK:
                minutes = (apart - quarter).total_seconds() / 60
                yield Remark("clock", f"the camera's clock is {abs(minutes):.0f} min off the satellites'")
            zone_h, how = quarter.total_seconds() / 3600, "was set for"
    if zone_h is not None:
        off = math.remainder(zone_h - sun_h, 24)
        if abs(off) > _ZONE_H:
            yield Remark(
                "zone", f"the camera's clock {how} UTC{zone_h:+g}, and at this longitude it is about UTC{sun_h:+.0f}"
            )


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time
