"""``geoclip explain``: a table, JSON or a picture, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_geoclip.export.formats import check_records
from open_geoclip.schema import from_dict
from open_geoclip.search.explanation import Explanation
from tests.cli.conftest import Command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, save_text_release: Callable[..., Path]) -> str:
    return f"dir:{save_text_release(tmp_path_factory.mktemp('model') / 'release')}"


@pytest.fixture
def run(model: str, command: Command) -> Command:
    """Return a function that explains a photo, wider than high."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)).save("photo.png")
    words = ("explain", "photo.png", "--model", model, "--engine", "torch", "--grid", "2")
    return lambda *more, **options: command(*words, *more, **options)


def test_the_table_and_json(run: Command) -> None:
    record = json.loads(run("--place", "-33.9,18.6", "--versus", "0,-30", "--format", "json").out)
    found = from_dict(Explanation, record, "explanation")
    assert found.place == (-33.9, 18.6)
    assert found.versus == (0.0, -30.0)
    assert len(found.regions) == 4
    printed = run("--versus", "0,-30", "--within", "-60,0,-30,180").out
    assert printed.startswith("photo.png\n  for      -")
    assert "against  0.00000, -30.00000, at sea" in printed
    assert "km that the answer moves" in printed
    assert len(printed.splitlines()) == 3 + 1 + 14 + 2 * (1 + 2) + 1


def test_the_picture(run: Command) -> None:
    run("-o", "why.png")
    with Image.open("why.png") as picture:
        assert picture.width > 1200
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 1000


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--place", "91,12"], 1, "--place '91,12' is not a place on Earth: a latitude is within"),
        (["--versus", "north"], 1, "--versus 'north' is not LAT,LON"),
        (["--place", "1,2", "--versus", "1,2"], 2, "the same place"),
        (["--within", "Atlantis"], 2, "Atlantis"),
        (["-o", "why.gif"], 2, ".png"),
        (["--format", "png"], 2, "-o why.png"),
        (["-o", "missing/folder/why.png"], 1, "cannot be written"),
    ],
)
def test_what_is_refused(run: Command, words: list[str], status: int, message: str) -> None:
    assert message in run(*words, status=status).err
    assert [path.name for path in Path().iterdir()] == ["photo.png"]


def test_an_image_that_the_model_is_not_for(run: Command, command: Command) -> None:
    run("--place", "1,2")  # writes the photo, which is noise
    words = ("explain", "photo.png", "--model", "earth", "--grid", "0")
    assert command(*words).out.startswith("The model earth is for views of the Earth from orbit.")
    assert json.loads(command(*words, "--format", "json").out)["warning"].startswith("The model earth")
    assert "its candidates mean nothing" in command(*words, "-o", "why.png").err


def test_a_report_without_its_page_is_refused_before_any_work(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("open_geoclip.export.formats.files", lambda _: tmp_path)
    assert "make web" in command("locate", "absent.png", "-o", "report.html", status=1).err


def test_a_photo_that_cannot_be_read(run: Command) -> None:
    Path("photo.png").write_text("no image")
    assert "photo.png" in run("-o", "why.png", status=1).err
    assert not Path("why.png").exists()


def test_a_report_explains_each_photo(run: Command, command: Command, model: str) -> None:
    Path("bad.png").write_text("no image")
    words = ("locate", "photo.png", "bad.png", "--model", model, "--engine", "torch", "--explain")
    [record, bad] = json.loads(command(*words, "--format", "json", status=1).out)
    best = record["candidates"][0]
    assert record["explanation"]["place"] == [best["lat"], best["lon"]]
    assert len(record["explanation"]["regions"]) == 49
    assert set(bad) == {"image", "error"}
    check_records([record])
    assert "-o report.html" in command(*words, "-o", "answers.csv", status=2).err
