"""The page frozen as one file: opened from disk, it asks nothing of anybody."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

RECORDS: list[dict[str, Any]] = [
    {
        "image": "</script><b>x.jpg",
        "model": "earth 1",
        "gallery": "g.csv, 9 places",
        "version": "0.1.0",
        "candidates": [
            {
                "lat": 41.9,
                "lon": 12.5,
                "score": 0.7,
                "probability": 0.9,
                "radius_km": 40.0,
                "country": "IT",
                "place": None,
            },
            {
                "lat": -17.8,
                "lon": 178.5,
                "score": 0.5,
                "probability": 0.1,
                "radius_km": 90.0,
                "country": "FJ",
                "place": None,
            },
        ],
        "credible_radius_km": {"50": 20.0, "90": 60.0},
        "within_km": {"1": 0.0, "25": 0.4, "200": 0.9, "750": 0.9, "2500": 0.9},
        "countries": {"IT": 0.9, "FJ": 0.1},
        "sure": True,
        "regions": {
            "50": {"type": "MultiPolygon", "coordinates": [[[[12, 41], [13, 41], [13, 42], [12, 42], [12, 41]]]]},
            "90": {"type": "MultiPolygon", "coordinates": [[[[11, 40], [14, 40], [14, 43], [11, 43], [11, 40]]]]},
        },
        "heat": {"cell_km": 30.0, "cells": [[41.9, 12.5, 0.9], [-17.8, 178.5, 0.1]]},
        "exif": {"lat": 41.5, "lon": 12.5, "accuracy_m": 8.0, "time": "2026-05-01T14:03:00"},
    },
    {"text": "a hot desert", "candidates": [], "sure": None},
    {"image": "broken.jpg", "error": "this is no picture"},
]


@pytest.fixture
def report(built: Path, tmp_path: Path) -> str:
    """Return the address of a report on disk."""
    template = (built / "report.html").read_text(encoding="utf-8")
    assert template.count("__RECORDS__") == 1
    content = json.dumps({"records": RECORDS, "about": {"made": "2026-05-02"}}).replace("<", "\\u003c")
    path = tmp_path / "report.html"
    path.write_text(template.replace("__RECORDS__", content), encoding="utf-8")
    return path.as_uri()


def test_it_opens_from_disk_and_asks_for_nothing(
    opened: Callable[..., Any], report: str, accessible: Callable[[Any], None]
) -> None:
    page = opened(report, offline=True)
    loaded = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 60))")
    assert [each for each in loaded if not each.startswith(("data:", "blob:"))] == []
    assert page.locator(".row").count() == 3
    assert page.locator(".answer-name").inner_text() == "</script><b>x.jpg"
    assert page.locator("input[type=file]").count() == 0
    assert "inside the 50 % region" in page.locator(".exif").inner_text()
    assert page.locator(".candidate-place").all_text_contents() == ["Candidate 1: Italy", "Candidate 2: Fiji"]
    assert "2026-05-02" in page.locator(".report-about").inner_text()
    assert "An estimate, not evidence." in page.locator(".foot").inner_text()
    accessible(page)
    page.locator(".row-main").nth(2).click()
    assert page.locator(".answer [role=alert]").inner_text() == "this is no picture"
    page.locator(".menu summary").click()
    with page.expect_download() as download:
        page.locator("[data-format=json]").click()
    records = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert records[0]["candidates"] == RECORDS[0]["candidates"]
    assert records[0]["heat"] == RECORDS[0]["heat"]


def test_its_policy_lets_nothing_in(built: Path) -> None:
    template = (built / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', template)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "connect-src" not in policy[1]
    assert "unsafe" not in policy[1]
    assert len(template) < 1_500_000


def test_the_page_loads_nothing_from_elsewhere(built: Path) -> None:
    index = (built / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:|assets/)([^"]*)"', index) == []
    for path in built.glob("assets/*.css"):
        assert not re.search(r"url\(\"?https?:", path.read_text(encoding="utf-8"))


def test_names_of_countries_stand_inside_them(built: Path) -> None:
    (path,) = built.glob("assets/world-*.gz")
    labels = {code: (lat, lon) for code, lat, lon, _ in json.loads(gzip.decompress(path.read_bytes()))["labels"]}
    boxes = {"RU": (50, 72, 60, 140), "FJ": (-19, -16, 177, 179.9), "US": (30, 49, -120, -75), "FR": (43, 51, -4, 8)}
    for code, (south, north, west, east) in boxes.items():
        lat, lon = labels[code]
        assert south < lat < north, code
        assert west < lon < east, code
