"""``geoclip tag --plan`` and ``--apply``: a person decides, and only what was decided is written."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from open_geoclip.metadata.read import read_metadata

Command = Callable[..., Any]
Placed = Callable[..., bytes]
Rows = list[dict[str, str]]


@pytest.fixture
def plan(command: Command, placed: Placed, tmp_path: Path) -> Path:
    """A plan of three photos; one has a place already."""
    (tmp_path / "album").mkdir()
    for name, place in (("a.jpg", None), ("b.png", None), ("c.jpg", (41.9, 12.5))):
        (tmp_path / "album" / name).write_bytes(placed(name[2:], place))
    command("tag", "album", "--plan", "plan.csv")
    assert [path.name for path in sorted((tmp_path / "album").iterdir())] == ["a.jpg", "b.png", "c.jpg"]
    return tmp_path / "plan.csv"


def edit(plan: Path, change: Callable[[Rows], object], delimiter: str = ",") -> None:
    with plan.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with plan.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def test_a_plan_says_what_would_be_written_and_why_not(plan: Path) -> None:
    with plan.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["write"]) for row in rows] == [
        ("album/a.jpg", "yes"),
        ("album/b.png", "yes"),
        ("album/c.jpg", "no"),
    ]
    assert "it has a place already" in rows[2]["reason"]
    assert all(len(row["sha256"]) == 64 for row in rows)


def test_a_person_accepts_rejects_and_corrects(command: Command, plan: Path, tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        rows[0]["write"] = "NO"
        rows[1]["lat"], rows[1]["lon"] = "48.5", "2,25"  # a decimal comma, as a spreadsheet saves it
        rows[1]["lat"] = "48,5"
        for row in rows:
            for name in ("radius_km", "probability", "estimated_lat", "estimated_lon"):
                row[name] = row[name].replace(".", ",")
        rows[0]["lat"], rows[0]["lon"] = (rows[0][name].replace(".", ",") for name in ("lat", "lon"))
        rows[2]["lat"], rows[2]["lon"] = (rows[2][name].replace(".", ",") for name in ("lat", "lon"))

    edit(plan, change, delimiter=";")
    assert "plan.csv: photos to write: 1 of 3" in command("tag", "--apply", "plan.csv").err
    assert [path.name for path in (tmp_path / "album").glob("*.xmp")] == ["b.png.xmp"]
    [place] = read_metadata(tmp_path / "album" / "b.png").places
    assert (place.lat, place.lon) == pytest.approx((48.5, 2.25))
    assert (place.estimated, place.accuracy_m) == (False, None)
    assert place.method is not None
    assert place.method.startswith("MANUAL: a person corrected the estimate")


def test_what_is_accepted_as_it_is_stays_an_estimate(command: Command, plan: Path, tmp_path: Path) -> None:
    before = (tmp_path / "album" / "a.jpg").read_bytes()
    command("tag", "--apply", "plan.csv")
    [place] = read_metadata(tmp_path / "album" / "a.jpg").places
    assert place.estimated
    assert place.accuracy_m is not None
    assert (tmp_path / "album" / "a.jpg").read_bytes() == before


def test_photos_that_were_changed_are_refused_and_the_others_written(
    command: Command, plan: Path, tmp_path: Path
) -> None:
    with (tmp_path / "album" / "a.jpg").open("ab") as file:
        file.write(b"more")
    done = command("tag", "--apply", "plan.csv", status=1)
    assert "a.jpg: it was changed since the plan was made" in done.err
    assert [path.name for path in (tmp_path / "album").glob("*.xmp")] == ["b.png.xmp"]


def test_a_place_that_came_meanwhile_is_kept(command: Command, plan: Path, tmp_path: Path) -> None:
    command("tag", "--apply", "plan.csv")
    before = {path.name: path.read_bytes() for path in (tmp_path / "album").iterdir()}
    assert "--overwrite" in command("tag", "--apply", "plan.csv").out
    assert {path.name: path.read_bytes() for path in (tmp_path / "album").iterdir()} == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("write", "maybe", "line 2: write is yes or no, not 'maybe'"),
        ("lat", "95", "line 2: 95"),
        ("lat", "", "line 2: lat and lon are needed: fill them in, or remove the row"),
        ("lon", "12E", "line 2"),
        ("sha256", "", "line 2: image and sha256 must stay as they were"),
        ("image", "album/b.png", "line 3: album/b.png is named twice"),
        ("sure", "very", "line 2: sure is true, false or empty"),
    ],
)
def test_nothing_is_written_of_a_plan_with_a_wrong_row(
    name: str, value: str, message: str, command: Command, plan: Path, tmp_path: Path
) -> None:
    edit(plan, lambda rows: rows[0].update({name: value}))
    assert message in command("tag", "--apply", "plan.csv", status=1).err
    assert not list((tmp_path / "album").glob("*.xmp"))


@pytest.mark.parametrize("words", [[], ["album", "--apply", "plan.csv"], ["--apply", "plan.csv", "--plan", "b.csv"]])
def test_photos_or_a_plan(words: list[str], command: Command, plan: Path) -> None:
    assert "give photos" in command("tag", *words, status=2).err


def test_a_plan_that_cannot_be_written_is_an_error_before_any_work(command: Command, tmp_path: Path) -> None:
    assert "there is no folder none" in command("tag", ".", "--plan", "none/plan.csv", status=2).err


def test_a_table_that_is_no_plan(command: Command, tmp_path: Path) -> None:
    (tmp_path / "places.csv").write_text("lat,lon\n1,2\n")
    assert "write" in command("tag", "--apply", "places.csv", status=1).err
