"""``geoclip locate --trip`` and ``geoclip tag --trip`` with tracks, photos with GPS, and clocks."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.metadata.read import read_metadata

Command = Callable[..., Any]
START, STEP = (46.0, 7.0), 0.001  # degrees north in a minute


def save_photo(
    path: Path, minute: float, *, zone: str = "+00:00", north: float | None = None, gps_minute: int = 0
) -> None:
    """Save a photo of the ground that was taken so long after ten."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "X1"
    camera = exif.get_ifd(0x8769)
    camera[0x9003] = f"2026:05:01 10:{int(minute):02}:{round(60 * (minute % 1)):02}"
    if zone:
        camera[0x9011] = zone
    if north is not None:
        record = {1: "N", 2: (46.0, 0, 0), 3: "E", 4: (7.0, 0, 0), 7: (10, gps_minute, 0), 29: "2026:05:01"}
        exif.get_ifd(0x8825).update(record | {2: (46.0, 60 * north, 0)})
    pixels = np.random.default_rng(round(minute)).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    save_photo(folder / "a.jpg", 10)
    save_photo(folder / "b.jpg", 20.5)
    points = "".join(
        f'<trkpt lat="{START[0] + STEP * minute:.4f}" lon="7"><time>2026-05-01T10:{minute:02}:00Z</time></trkpt>'
        for minute in range(60)
    )
    (tmp_path / "walk.gpx").write_text(f"<gpx><trk><trkseg>{points}</trkseg></trk></gpx>")
    return folder


def test_photos_of_the_ground_are_located_along_a_track(command: Command, album: Path) -> None:
    done = command("locate", album, "--trip", "--track", "walk.gpx", "--format", "json")
    answers = json.loads(done.out)
    for answer, minute in zip(answers, (10, 20.5), strict=True):
        best = answer["candidates"][0]
        assert (best["lat"], best["lon"]) == pytest.approx((START[0] + STEP * minute, START[1]), abs=2e-4)
        assert answer["credible_radius_km"]["90"] < 0.4
        assert {anchor["source"] for anchor in answer["anchors"]} == {"walk.gpx"}
    assert answers[1]["time"] == "2026-05-01T10:20:30+00:00"
    table = command("locate", album, "--trip", "--track", "walk.gpx", "--clock-offset", "-0:05:30").out
    assert "estimated from known places: walk.gpx, 0:00:30 before; walk.gpx, 0:00:30 after" in table
    assert "sure; 50 % within 50 m, 90 % within" in table


def test_the_clock_of_a_camera_is_set_by_its_photos_with_gps(command: Command, album: Path) -> None:
    for minute in (31, 33):  # its clock is two hours and a minute ahead of UTC, and names no zone
        save_photo(album / f"{minute}.jpg", minute, zone="", north=STEP * (minute - 1), gps_minute=minute - 1)
    save_photo(album / "z.jpg", 32, zone="")
    done = command("locate", album, "--trip", "--use-gps", "--format", "json")
    assert "Maker X1: its clock is 0:01:00 ahead of UTC, by 2 photos with GPS time" in done.err
    *_, last = json.loads(done.out)
    assert last["time"] == "2026-05-01T10:31:00+00:00"
    assert [anchor["source"] for anchor in last["anchors"]] == ["31.jpg", "33.jpg"]
    assert last["candidates"][0]["lat"] == pytest.approx(START[0] + STEP * 31, abs=3e-4)
    left = command("tag", album, "--trip", "--use-gps", "--dry-run").out
    assert "31.jpg: unchanged; it has a place already" in left


def test_places_between_fixes_are_written_as_estimates(command: Command, album: Path, tmp_path: Path) -> None:
    command("tag", album, "--trip", "--track", "walk.gpx", "--plan", "plan.csv")
    with (tmp_path / "plan.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["write"], row["anchors"], row["sure"]) for row in rows] == [("yes", "walk.gpx", "true")] * 2
    command("tag", "--apply", "plan.csv")
    for name, minute in (("a.jpg", 10), ("b.jpg", 20.5)):
        [place] = read_metadata(album / name).places
        assert place.estimated
        assert place.lat == pytest.approx(START[0] + STEP * minute, abs=2e-4)
        assert place.method is not None
        assert place.method.startswith("ESTIMATED from known places in time (walk.gpx) and the picture by open-geoclip")
    # An estimate is no known place for the next trip.
    command("locate", album, "--trip", "--use-gps", status=1)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--track", "cut.gpx"], 1, "cut.gpx: it is damaged: "),
        (
            ["--track", "old.csv"],
            1,
            "the photos were taken from 2026-05-01 10:10 to 2026-05-01 10:20 UTC, but the track is",
        ),
        (["--track", "none.gpx"], 1, "none.gpx: it cannot be read: No such file"),
        (["--use-gps"], 1, "no photo of 2 has a place by GPS: give a track"),
        (["--track", "walk.gpx", "--clock-offset", "soon"], 2, "--clock-offset: [CAMERA=]H:MM:SS or seconds"),
        (["--track", "walk.gpx", "--clock-offset", "D50=60"], 2, "no photo is of a camera 'D50'; there are: Maker X1"),
        (["--track", "walk.gpx", "--clock-offset", "99999999999:00"], 2, "--clock-offset: at most a century"),
        (["--clock-offset", "60"], 2, "--clock-offset is for --track and --use-gps"),
    ],
)
def test_what_is_no_trip_is_refused(
    words: list[str], status: int, message: str, command: Command, album: Path, tmp_path: Path
) -> None:
    (tmp_path / "cut.gpx").write_text((tmp_path / "walk.gpx").read_text()[:-60])
    (tmp_path / "old.csv").write_text("time,lat,lon\n2024-05-01T10:00:00Z,46,7\n")
    before = sorted(tmp_path.rglob("*"))
    assert message in command("tag", album, "--trip", *words, status=status).err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_photo_without_time_and_a_plan(command: Command, album: Path) -> None:
    Image.new("RGB", (8, 8)).save(album / "c.png")
    words = (album, "--trip", "--track", "walk.gpx")
    assert "c.png without a time in EXIF: give --times" in command("locate", *words, status=2).err
    assert "--track is for --trip" in command("locate", album, "--track", "walk.gpx", status=2).err
    assert "--trip is for photos, not for --apply" in command("tag", "--trip", "--apply", "plan.csv", status=2).err
