"""Clocks of cameras: offsets, zones, and tracks of another time."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from open_geoclip.data import clocks
from open_geoclip.data.clocks import TripPhoto, find_anchors
from open_geoclip.data.tracks import Fix, Track
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.metadata.read import PhotoMetadata, PhotoPlace

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
ROME, TOKYO = (41.9, 12.5), (35.7, 139.7)
TRACK = Track.from_fixes([Fix(NOON.timestamp() + minute * 60, *ROME, 5, "walk.gpx") for minute in range(-60, 61)])


def shown(time: datetime, hours: float = 0, seconds: float = 0) -> datetime:
    """Return what a clock shows that is ahead of UTC, without a zone."""
    return (time + timedelta(hours=hours, seconds=seconds)).replace(tzinfo=None)


def seconds(*photos: TripPhoto, **options: Any) -> list[float]:
    anchors = find_anchors(photos, [TRACK], **options)
    return [round(time - NOON.timestamp(), 3) for time in anchors.times_s]


def test_the_offset_of_a_clock_follows_from_photos_with_both_times() -> None:
    both = [
        TripPhoto(f"{n}", shown(NOON + timedelta(minutes=n), 2, 97), "Maker X1", ROME, 8, NOON + timedelta(minutes=n))
        for n in range(7)
    ]
    stale = TripPhoto("stale", shown(NOON, 2, 97), "Maker X1", ROME, 8, NOON - timedelta(hours=5))
    lone = TripPhoto("lone", shown(NOON, 2, 97), "Maker X1")
    other = TripPhoto("other", NOON.astimezone(timezone(timedelta(hours=9))), "Phone")
    assert seconds(lone, *both, stale, other)[::8] == [0, 0]
    assert seconds(lone, *both, stale, other)[-1] == 0
    notes = find_anchors([lone, *both], [TRACK]).notes
    assert notes == ("Maker X1: its clock is 2:01:37 ahead of UTC, by 7 photos with GPS time",)
    # A GPS time that is a little older than the photo does not overrule a clock with a zone.
    phone = TripPhoto("phone", NOON, "Phone", ROME, 8, NOON - timedelta(seconds=20))
    assert seconds(phone) == [0]


def test_an_offset_that_is_given_counts_and_names_a_camera() -> None:
    x1, x2 = TripPhoto("a", shown(NOON), "Maker X1", ROME), TripPhoto("b", NOON, "Maker X2")
    assert seconds(x2, clock_offsets={"": timedelta(seconds=30)}) == [30]
    assert seconds(x1, x2, clock_offsets={"x1": timedelta(hours=2, seconds=5), "": timedelta(0)})[1] == 0
    with pytest.raises(SettingsError, match="no photo is of a camera 'D50'; there are: Maker X1, Maker X2"):
        seconds(x1, x2, clock_offsets={"D50": timedelta(0)})


def test_a_clock_without_a_zone_shows_the_time_of_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timezonefinder")
    assert seconds(TripPhoto("a", shown(NOON, 2))) == [0]  # summer time in Rome
    assert seconds(TripPhoto("a", shown(NOON, 9), place=TOKYO)) == [0]
    monkeypatch.setattr(clocks, "_finder", lambda: None)
    monkeypatch.setattr(clocks, "_zone_name", clocks._zone_name.__wrapped__)
    assert seconds(TripPhoto("a", shown(NOON, 1))) == [0]  # the longitude knows no summer time
    assert find_anchors([TripPhoto("a", shown(NOON, 1))], [TRACK]).notes == (
        "unknown camera: its clock is taken to be UTC+1",
    )


def test_photos_with_a_place_are_anchors_of_the_others_if_wanted() -> None:
    placed = TripPhoto.from_metadata(
        "placed", PhotoMetadata((PhotoPlace(*ROME, accuracy_m=7),), NOON + timedelta(minutes=5), "Maker X1")
    )
    assert TripPhoto.from_dict(placed.to_dict()) == placed
    lone = TripPhoto("lone", NOON)
    [_, (before, after)] = find_anchors([placed, lone], use_gps=True).brackets
    assert before is None
    assert after == Fix(NOON.timestamp() + 300, *ROME, 7, "placed")
    for photos, use_gps in (([placed, lone], False), ([lone], True)):
        with pytest.raises(DataError, match="has a place by GPS: give a track"):
            find_anchors(photos, use_gps=use_gps)
    nowhere = PhotoMetadata((PhotoPlace(0, 0), PhotoPlace(*ROME, no_fix=True)), NOON)
    assert TripPhoto.from_metadata("a", nowhere).place is None


def test_a_track_of_another_time_and_photos_without_time_are_refused() -> None:
    with pytest.raises(DataError) as error:
        seconds(TripPhoto("a", NOON - timedelta(days=365)))
    assert "from 2025-05-01 12:00 to 2025-05-01 12:00 UTC" in str(error.value)
    assert "(walk.gpx from 2026-05-01 11:00 to 2026-05-01 13:00 UTC)" in str(error.value)
    with pytest.raises(DataError, match="b and 1 more: a photo of a trip needs the time"):
        seconds(TripPhoto("a", NOON), TripPhoto("b"), TripPhoto("c"))


def test_notes_say_what_was_left_out_and_that_a_clock_may_be_wrong() -> None:
    late = TripPhoto("late", NOON + timedelta(hours=7), "X1")
    [missed] = find_anchors([late], [TRACK]).notes
    assert missed.startswith("no photo was taken while a track was recorded (walk.gpx from 2026-05-01 11:00 to")
    assert find_anchors([late, TripPhoto("on time", NOON, "X1")], [TRACK]).notes == ()
    [left_out] = find_anchors([TripPhoto("a", NOON, "X1")], [replace(TRACK, left_out=3)]).notes
    assert left_out == "walk.gpx: 3 places without a time or not on Earth are left out"
