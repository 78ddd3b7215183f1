"""Answers go to JSON and come back the same, and what is not an answer is refused by name."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_geoclip import Answer, Candidate
from open_geoclip.errors import DataError

SHARES = st.floats(0, 1)
KM = st.floats(0, 20_016)
LATS, LONS = st.floats(-90, 90), st.floats(-180, 180)
NAMES = st.none() | st.text(max_size=20)


@st.composite
def regions(draw: st.DrawFn) -> dict[str, Any]:
    def ring() -> list[list[float]]:
        points = [[draw(LONS), draw(LATS)] for _ in range(draw(st.integers(3, 5)))]
        return [*points, points[0]]

    def region() -> dict[str, Any]:
        polygons = [[ring() for _ in range(draw(st.integers(1, 2)))] for _ in range(draw(st.integers(0, 2)))]
        return {"type": "MultiPolygon", "coordinates": polygons}

    return {"50": region(), "90": region()}


CANDIDATES = st.builds(Candidate, LATS, LONS, st.floats(-2, 2), SHARES, KM, NAMES, NAMES)
CELLS = st.lists(st.tuples(LATS, LONS, SHARES).map(lambda cell: list(cell)), max_size=3)
# Answers are made in the test: what checks their types draws random numbers, which a strategy may not.
FOUND = st.fixed_dictionaries(
    {
        "image": st.text(min_size=1),
        "model": st.text(),
        "gallery": st.text(),
        "version": st.text(),
        "candidates": st.lists(CANDIDATES, max_size=3).map(lambda found: tuple(found)),
        "text": st.none() | st.text(min_size=1),
        "credible_radius_km": st.fixed_dictionaries({"50": KM, "90": KM}),
        "within_km": st.fixed_dictionaries({"1": SHARES, "2500": SHARES}),
        "countries": st.none() | st.dictionaries(st.text(max_size=2), SHARES, max_size=2),
        "sure": st.none() | st.booleans(),
        "in_distribution": st.none() | st.booleans(),
        "sha256": st.dictionaries(st.text(max_size=4), st.text()),
        "regions": st.none() | regions(),
        "heat": st.none() | st.fixed_dictionaries({"cell_km": KM, "cells": CELLS}),
    }
)
FAILED = st.fixed_dictionaries(
    {"image": st.text(min_size=1), **dict.fromkeys(("model", "gallery", "version"), st.just("")), "error": st.text()}
)


@given(FOUND | FAILED)
def test_an_answer_comes_back_from_json_as_it_was(about: dict[str, Any]) -> None:
    answer = Answer(**about)
    assert Answer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer


def record() -> dict[str, Any]:
    one = Candidate(41.9, 12.5, 0.5, 0.75, 30.0, "IT", "Rome, Italy")
    square = [[[[12.0, 41.0], [13.0, 41.0], [13.0, 42.0], [12.0, 41.0]]]]
    heat: Any = {"cell_km": 10.0, "cells": [[41.9, 12.5, 1.0]]}
    region: Any = {"type": "MultiPolygon", "coordinates": square}
    return Answer(
        *("rome.png", "earth 2", "places", "1.0", (one,)),
        credible_radius_km={"50": 20.0, "90": 60.0},
        within_km={"25": 0.5},
        regions={"50": region, "90": region},
        heat=heat,
    ).to_dict()


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("model",), None, "answer: model must be a text, not None"),
        (("candidates", 0, "lat"), 91.0, r"answer: candidates\[0\].lat must be a number from -90 to 90, not 91.0"),
        (("candidates", 0, "lon"), float("nan"), r"candidates\[0\].lon"),
        (("candidates", 0, "probability"), "0.5", "probability must be a finite number, not '0.5'"),
        (("candidates", 0, "score"), float("inf"), "score must be a finite number, not inf"),
        (("candidates", 0, "radius_km"), True, "radius_km must be a finite number, not True"),
        (("candidates", 0, "place"), 3, "place must be a text"),
        (("candidates", 0, "html"), "<b>", r"candidates\[0\]: unknown key html"),
        (("candidates",), {"lat": 1}, "candidates must be a list"),
        (("sure",), 1, "sure must be true or false"),
        (("countries",), {"IT": 2}, "countries.IT must be a number from 0 to 1"),
        (("note",), "", "answer: unknown key note"),
        (("regions", "50", "type"), "Point", "type: one of MultiPolygon"),
        (("regions", "50", "coordinates"), [[]], "a polygon without a ring"),
        (("regions", "50", "coordinates", 0, 0, 3), [1.0, 1.0], "a ring has four positions or more"),
        (
            ("regions", "50", "coordinates", 0, 0, 1),
            [200.0, 1.0],
            r"coordinates\[0\]\[0\]\[1\]\[0\] must be a number from -180 to 180, not 200.0",
        ),
        (("heat", "cells"), [[1.0, 2.0]], r"cells\[0\] must be a list of 3"),
        (("heat", "cell_km"), -1, "cell_km must be a number from 0"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[str | int, ...], value: object, says: str) -> None:
    broken: Any = copy.deepcopy(record())
    inner = broken
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(DataError, match=says):
        Answer.from_dict(broken)


@pytest.mark.parametrize("value", [None, [], "answer", 1, {1: 2}, {"image": "a.jpg"}, {"error": "lost"}])
def test_what_is_no_answer_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"^answer"):
        Answer.from_dict(value)


def test_an_answer_is_about_something() -> None:
    nothing = record()
    del nothing["image"]
    with pytest.raises(DataError, match="neither image nor text"):
        Answer.from_dict(nothing)
