"""Coordinates as arguments: southern and western ones are taken by every command that takes any."""

import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.cli import app
from open_geoclip.cli._options import parse_coordinate
from open_geoclip.errors import CoordinateError

pytestmark = pytest.mark.usefixtures("command")  # for it loads a model once

PLACES = ["-33.9,18.6", "-0.5,-78.25", "40.7,-74", "-.5,.5", "-90,-180", "-1e1,-2e1"]


def run(*words: str) -> None:
    app(list(words), result_action="return_value")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def by_where(place: str, folder: Path) -> tuple[float, float]:
    run("where", place, "-o", str(folder / "a.json"))
    [found] = read_json(folder / "a.json")
    return found["lat"], found["lon"]


def by_where_second(place: str, folder: Path) -> tuple[float, float]:
    run("where", "0,0", place, "-o", str(folder / "a.json"))
    return read_json(folder / "a.json")[1]["lat"], read_json(folder / "a.json")[1]["lon"]


def by_embed(place: str, folder: Path) -> tuple[float, float]:
    run("embed", place, "--model", "earth", "-o", str(folder / "a.npz"))
    lat, lon = np.load(folder / "a.npz")["coordinates"][0].tolist()
    return lat, lon


def by_similar(place: str, folder: Path) -> tuple[float, float]:
    run("similar", place, "--model", "earth", "-o", str(folder / "a.json"))
    return read_json(folder / "a.json")["lat"], read_json(folder / "a.json")["lon"]


def by_similar_to(place: str, folder: Path) -> tuple[float, float]:
    run("similar", "0,0", "--to", place, "--model", "earth", "-o", str(folder / "a.json"))
    lat, lon = read_json(folder / "a.json")["to"]
    return lat, lon


def by_render(place: str, folder: Path) -> tuple[float, float]:
    run("render", place, "--size", "8", "-o", str(folder / "a.png"))
    with Image.open(folder / "a.png") as view:
        assert view.size == (8, 8)
    return parse_coordinate(place)


def by_explain(place: str, folder: Path) -> tuple[float, float]:
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    words = ["explain", str(folder / "a.png"), "--grid", "0", "--model", "earth", "-o", str(folder / "a.json")]
    run(*words, "--place", place)
    lat, lon = read_json(folder / "a.json")["place"]
    return lat, lon


OTHERS: list[Callable[[str, Path], tuple[float, float]]] = [
    by_where_second,
    by_embed,
    by_similar,
    by_similar_to,
    by_render,
    by_explain,
]
AREAS = {
    "box": "-35,-79,1,20",
    "circle": "-33.9,18.6,500km",
    "western circle": "-0.5,-78.25,300km",
}


@pytest.mark.parametrize(
    ("by", "place"),
    [*((by_where, place) for place in PLACES), *product(OTHERS, ("-33.9,18.6", "-.5,.5"))],
)
def test_every_command_takes_southern_and_western_coordinates(
    by: Callable[[str, Path], tuple[float, float]], place: str, tmp_path: Path
) -> None:
    lat, lon = (float(number) for number in place.split(","))
    assert by(place, tmp_path) == pytest.approx((lat, lon))


@pytest.mark.parametrize(
    ("option", "area", "equals"),
    [
        *product(["--within"], AREAS, [False]),
        *product(["--not-within"], ["box", "western circle"], [False]),
        ("--within", "western circle", True),
        ("--not-within", "circle", True),
    ],
)
def test_southern_areas(option: str, area: str, equals: bool, tmp_path: Path) -> None:
    from open_geoclip.geo.areas import Area

    Image.new("RGB", (64, 64), "green").save(tmp_path / "view.png")
    words = [f"{option}={AREAS[area]}"] if equals else [option, AREAS[area]]
    run("locate", str(tmp_path / "view.png"), *words, "-o", str(tmp_path / "a.json"))
    [answer] = read_json(tmp_path / "a.json")
    inside = Area.parse(AREAS[area]).contains(np.array([(one["lat"], one["lon"]) for one in answer["candidates"]]))
    assert (inside if option == "--within" else ~inside).all()


def test_no_command_with_coordinates_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    run("--help")
    names = re.findall(r"^│ ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert "where" in names
    taking = set()
    for name in names:
        run(name, "--help")
        if re.search(r"LAT,LON|south,west", capsys.readouterr().out):
            taking.add(name)
    assert taking == {"where", "embed", "similar", "render", "locate", "explain"}


@pytest.mark.parametrize("text", ["\N{MINUS SIGN}33.9,18.6", " -33.9 , 18.6 "])
def test_a_coordinate_as_it_is_pasted(text: str) -> None:
    assert parse_coordinate(text) == (-33.9, 18.6)


@pytest.mark.parametrize("text", ["-33.9", "-33,9,18,6", "33.9S,18.6E", "", ",", "-33.9;18.6"])
def test_what_is_no_coordinate(text: str) -> None:
    with pytest.raises(CoordinateError, match="a comma and no space between"):
        parse_coordinate(text)


@pytest.mark.parametrize(("text", "rule"), [("91,200", "a latitude is"), ("nan,12", "finite"), ("12,600", "longitude")])
def test_a_place_that_is_not_on_earth_is_named_as_it_was_given(text: str, rule: str) -> None:
    with pytest.raises(CoordinateError, match=f"^--to '{text}' is not a place on Earth: .*{rule}"):
        parse_coordinate(text, "--to")
