"""``/v1/trip``: photos between known places, and what is no trip."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

Serve = Callable[..., TestClient]
GPX = (
    b'<gpx><trkpt lat="46" lon="7"><time>2026-05-01T10:00:00Z</time></trkpt>'
    b'<trkpt lat="46.02" lon="7"><time>2026-05-01T10:20:00Z</time></trkpt></gpx>'
)
TABLE = b"time,lat,lon,accuracy\n2026-05-01T10:00:00Z,46,7,10\n2026-05-01T10:20:00Z,46.02,7,10\n"


def photo(minute: int | None, lat: float | None = None) -> bytes:
    exif = Image.Exif()
    if minute is not None:
        exif.get_ifd(0x8769).update({0x9003: f"2026:05:01 10:{minute:02}:00", 0x9011: "+00:00"})
    if lat is not None:
        exif.get_ifd(0x8825).update({1: "N", 2: (lat, 0.0, 0.0), 3: "E", 4: (7.0, 0.0, 0.0)})
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def post(client: TestClient, photos: list[bytes], tracks: dict[str, bytes], **fields: str) -> Any:
    files = [("images", (f"{n}.jpg", data)) for n, data in enumerate(photos)]
    return client.post("/v1/trip", files=[*files, *(("tracks", track) for track in tracks.items())], data=fields)


@pytest.mark.parametrize("track", [{"walk.gpx": GPX}, {"log.csv": TABLE}])
def test_photos_are_located_along_a_track(track: dict[str, bytes], serving: Serve) -> None:
    photos = [photo(10), b"no image", photo(None), photo(5)]
    answer = post(serving(), photos, track, exif="true", speed_kmh="30", clock_offset_s="60").json()
    placed, broken, timeless, other = answer["data"]
    assert placed["time"] == "2026-05-01T10:11:00+00:00"
    assert placed["candidates"][0]["lat"] == pytest.approx(46.011, abs=0.005)
    assert {anchor["source"] for anchor in placed["anchors"]} == set(track)
    assert "not an image" in broken["error"]
    assert timeless["error"] == "a photo of a trip needs the time when it was taken"
    assert other["time"] == "2026-05-01T10:06:00+00:00"
    assert answer["notes"] == []


def test_photos_with_gps_are_known_places_and_a_trip_needs_none(serving: Serve) -> None:
    client = serving()
    photos = [photo(0, 46.0), photo(30), photo(50, 46.0)]
    assert post(client, photos, {}, use_gps="true").json()["data"][1]["anchors"][0]["source"] == "0.jpg"
    plain = post(client, photos, {}, speed_kmh="1e6").json()["data"]
    assert ["anchors" in record for record in plain] == [False] * 3
    assert post(client, photos, {}, use_gps="true", format="geojson").json()["type"] == "FeatureCollection"


@pytest.mark.parametrize(
    ("tracks", "fields", "message"),
    [
        ({"cut.gpx": GPX[:-9]}, {}, "cut.gpx: it is damaged"),
        ({"bomb.gpx": b'<!DOCTYPE g [<!ENTITY a "b">]><gpx/>'}, {}, "bomb.gpx: it has a document type"),
        ({"old.csv": TABLE.replace(b"2026", b"2024")}, {}, "but the track is of another time (old.csv from 2024-05-01"),
        ({}, {"use_gps": "true"}, "no photo of 1 has a place by GPS"),
        ({}, {"speed_kmh": "-1"}, "speed_kmh"),
        ({}, {"together": "true"}, "together"),
    ],
)
def test_what_is_no_trip_is_refused(
    tracks: dict[str, bytes], fields: dict[str, str], message: str, serving: Serve
) -> None:
    answer = post(serving(), [photo(10)], tracks, **fields)
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]
    files = [("images", ("a.jpg", photo(1))), ("tracks", ("a.gpx", GPX))]
    assert serving().post("/v1/locate", files=files).status_code == 422
