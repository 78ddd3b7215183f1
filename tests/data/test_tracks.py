"""Tracks in every layout, and what is wrong with damaged ones."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_geoclip.data.tracks import Fix, Track, read_track
from open_geoclip.errors import DataError

START = datetime(2026, 5, 1, 12, 0, tzinfo=UTC).timestamp()


def gpx(body: str) -> str:
    return f'<?xml version="1.0"?><gpx xmlns="http://www.topografix.com/GPX/1/1" version="1.1">{body}</gpx>'


POINTS = "".join(
    f'<trkpt lat="{48 + n / 100}" lon="-2.5"><ele>3</ele><time>2026-05-01T12:0{n}:00.5Z</time><hdop>2</hdop></trkpt>'
    for n in range(3)
)
LAYOUTS: dict[str, Any] = {
    "Records.json": {
        "locations": [
            {"latitudeE7": 480000000, "longitudeE7": 4269967296, "accuracy": 13, "timestamp": "2026-05-01T12:00:00Z"},
            {"latitudeE7": 480000000, "longitudeE7": -25000000, "timestampMs": "1777636860000"},
            {"deviceTag": 1},
        ]
    },
    "2026_MAY.json": {
        "timelineObjects": [
            {
                "placeVisit": {
                    "location": {"latitudeE7": 480000000, "longitudeE7": -25000000},
                    "duration": {"startTimestamp": "2026-05-01T12:00:00Z", "endTimestamp": "2026-05-01T12:01:00Z"},
                }
            },
            {
                "activitySegment": {
                    "startLocation": {"latitudeE7": 480000000, "longitudeE7": -25000000},
                    "endLocation": {"latitudeE7": 490000000, "longitudeE7": -25000000},
                    "duration": {"startTimestamp": "2026-05-01T12:01:00Z", "endTimestamp": "2026-05-01T13:00:00Z"},
                    "simplifiedRawPath": {
                        "points": [
                            {
                                "latE7": 485000000,
                                "lngE7": -25000000,
                                "accuracyMeters": 20,
                                "timestamp": "2026-05-01T12:30:00Z",
                            }
                        ]
                    },
                }
            },
        ]
    },
    "Timeline.json": {
        "semanticSegments": [
            {
                "startTime": "2026-05-01T14:00:00.000+02:00",
                "endTime": "2026-05-01T14:05:00.000+02:00",
                "timelinePath": [{"point": "48.0°, -2.5°", "time": "2026-05-01T14:00:00.000+02:00"}],
            },
            {
                "startTime": "2026-05-01T14:05:00.000+02:00",
                "endTime": "2026-05-01T14:35:00.000+02:00",
                "visit": {"topCandidate": {"placeLocation": {"latLng": "48.1°, -2.5°"}}},
            },
        ],
        "rawSignals": [
            {"position": {"LatLng": "48.2°, -2.5°", "accuracyMeters": 9, "timestamp": "2026-05-01T14:40:00+02:00"}},
            {"wifiScan": {}},
        ],
    },
    "location-history.json": [
        {
            "startTime": "2026-05-01T12:00:00Z",
            "endTime": "2026-05-01T12:30:00Z",
            "timelinePath": [{"point": "geo:48.0,-2.5", "durationMinutesOffsetFromStartTime": "0"}],
        },
        {
            "startTime": "2026-05-01T12:30:00Z",
            "endTime": "2026-05-01T12:40:00Z",
            "activity": {"start": "geo:48.1,-2.5", "end": "geo:48.2,-2.5"},
        },
    ],
    "IMG_1.jpg.json": {
        "photoTakenTime": {"timestamp": "1777636800"},
        "geoData": {"latitude": 48.0, "longitude": -2.5, "altitude": 0.0},
    },
}


@pytest.mark.parametrize(("name", "count"), list(zip(LAYOUTS, (2, 5, 7, 3, 1), strict=True)))
def test_every_layout_of_google_is_read(name: str, count: int, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(LAYOUTS[name]))
    track = read_track(tmp_path / name, name=name)
    assert len(track) == count
    assert track.names == (name,)
    assert track.times_s[0] == START
    np.testing.assert_allclose(track.coordinates[0], [48, -2.5])
    assert track.coordinates[:, 1] == pytest.approx(-2.5)


def test_gpx_and_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "walk.gpx").write_text(gpx(f"<trk><trkseg>{POINTS}</trkseg></trk><wpt lat='1' lon='2'/>"))
    track = read_track(tmp_path / "walk.gpx")
    assert (track.times_s - START).tolist() == [0.5, 60.5, 120.5]
    assert track.accuracy_m.tolist() == [10, 10, 10]
    for text in (
        "time,lat,lon,accuracy\n2026-05-01T12:01:00Z,48.1,-2.5,30\n2026-05-01 12:00:00,48,-2.5,\n",
        "Timestamp;Latitude;Longitude\n1777636860;48,1;-2,5\n1777636800000;48,0;-2,5\n",
        "tst\tlat\tlon\tacc\n2026:05:01 14:01:00+02:00\t48.1\t-2.5\t30\n1777636800\t48\t-2.5\t\n",
    ):
        (tmp_path / "log.csv").write_text(text)
        table = read_track(tmp_path / "log.csv")
        assert (table.times_s - START).tolist() == [0, 60]
        np.testing.assert_allclose(table.coordinates, [[48, -2.5], [48.1, -2.5]])
        assert table.accuracy_m[0] == 10
    feature = {"type": "Feature", "properties": {"time": "2026-05-01T12:00:00Z"}}
    feature["geometry"] = {"type": "Point", "coordinates": [-2.5, 48]}
    (tmp_path / "log.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    assert read_track(tmp_path / "log.geojson")[0] == Fix(START, 48, -2.5, 10, "log.geojson")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gpx(POINTS)[:-40], ": export or copy it again"),
        ("PK\x00\x01", "it is neither GPX nor JSON nor a table"),
        (gpx('<trkpt lat="48" lon="2"/>' * 2), "it has 2 places without a time: it is a route, not a track"),
        (gpx(POINTS.replace('lat="48', 'lat="148')), "it has 3 places, none of which is on Earth"),
        (gpx('<trkpt lat="48"><time>2026-05-01T12:00:00Z</time></trkpt>'), "a point without latitude or longitude"),
        (gpx(""), "it has no place with a time"),
        ('<!DOCTYPE g [<!ENTITY a "b">]><gpx>&a;</gpx>', "it has a document type"),
        ('{"locations": [', "it is damaged: "),
        ("[" * 100_000, "it is damaged: "),
        ('{"a": 1}', "no layout that is known"),
        ('{"photoTakenTime": {"timestamp": "1"}}', "this photo's record has no place"),
        ("", "it is empty"),
        ("time,lat\n1,2\n", "it has no column lon"),
        ("time,lat,lon\nyesterday,2,3\n", "line 2: 'yesterday' is not a time"),
        ("time,lat,lon\n2026-05-01T12:00:00Z,a,3\n", "line 2: lat is 'a', not a number"),
    ],
)
def test_a_damaged_track_is_refused_with_its_name(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "walk"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_track(path, name="walk")
    assert str(error.value).startswith("walk: ")
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_track(tmp_path / "none.gpx")


def test_the_fixes_around_a_moment_are_those_that_say_most() -> None:
    walk = Track.from_fixes([Fix(100, 48, 2, 5, "a"), Fix(0, 47, 2, 5, "a"), Fix(np.nan, 0, 0), Fix(1, 95, 0)])
    towers = Track.from_fixes([Fix(109, 49, 3, 2000, "b"), Fix(400, 49, 3, -1, "b")])
    both = Track.concatenate([walk, towers])
    assert both.names == ("a", "b")
    before, after = both.bracket(110)
    assert before == Fix(100, 48, 2, 5, "a")
    assert after == Fix(400, 49, 3, 10, "b")
    assert both.bracket(100) == (Fix(100, 48, 2, 5, "a"),) * 2
    assert both.bracket(-1) == (None, Fix(0, 47, 2, 5, "a"))
    assert len(Track.concatenate([])) == 0
    assert walk.span == "1970-01-01 00:00 to 1970-01-01 00:01 UTC"


def mutations(value: Any) -> Iterator[Any]:
    """Yield copies of a record in which one value is of another kind."""
    yield from (None, 1e400, "x", [1], {"a": 1})
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        for changed in mutations(part):
            copy = value.copy()
            copy[key] = changed
            yield copy


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_value_of_another_kind_is_left_out_or_an_error_of_the_file(name: str, tmp_path: Path) -> None:
    outcomes = []
    for changed in mutations(LAYOUTS[name]):
        (tmp_path / name).write_text(json.dumps(changed))
        try:
            outcomes.append(str(len(read_track(tmp_path / name))))
        except DataError as error:
            outcomes.append(str(error))
    assert all(outcome.isdigit() or name in outcome for outcome in outcomes)
    assert any(outcome.isdigit() for outcome in outcomes)
