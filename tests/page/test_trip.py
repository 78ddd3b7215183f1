"""A trip on the live page: a track is dropped, places are reviewed and set on the map, and the plan is downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_geoclip.cli._plan import read_plan
from tests.page.actions import add, done, row, settle

pytestmark = pytest.mark.slow


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Return a folder of three photos of the ground, ten minutes apart, and a track."""
    for n, name in enumerate(("a", "b", "c")):
        exif = Image.Exif()
        exif.get_ifd(0x8769).update({0x9003: f"2026:05:01 10:{10 * n:02}:00", 0x9011: "+00:00"})
        pixels = np.random.default_rng(n).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg", exif=exif)
    points = "".join(
        f'<trkpt lat="{46 + 0.001 * n}" lon="7"><time>2026-05-01T10:{n:02}:00Z</time></trkpt>' for n in range(0, 20, 5)
    )
    (tmp_path / "walk.gpx").write_text(f"<gpx>{points}</gpx>")
    (tmp_path / "cut.gpx").write_text("<gpx><trkpt")
    return tmp_path


def test_a_trip_is_located_reviewed_and_planned(page: Any, album: Path, accessible: Callable[[Any], None]) -> None:
    add(page, *(album / f"{name}.jpg" for name in "abc"))
    done(page, 3)
    add(page, album / "cut.gpx")
    page.get_by_role("button", name="Locate as one trip").click()
    page.locator(".trip .error", has_text="cut.gpx: it is damaged").wait_for()
    page.get_by_role("button", name="Remove cut.gpx").click()
    add(page, album / "walk.gpx")
    page.get_by_role("button", name="Locate as one trip").click()
    page.locator(".stop").nth(2).wait_for()
    page.get_by_role("button", name="b.jpg, 2026-05-01 10:10 UTC").click()
    assert page.locator(".answer-name").inner_text() == "b.jpg"
    assert "walk.gpx, within a minute: 46.0100° N, 7.0000° E" in page.locator(".answer").inner_text()
    accessible(page)

    page.locator(".review .accepted").click()
    row(page, "a.jpg").locator(".row-main").click()
    page.locator(".review .rejected").click()
    row(page, "c.jpg").locator(".row-main").click()
    settle(page)
    page.get_by_role("button", name="Set the place").click()
    box = page.locator("#map").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4)
    page.locator(".review-place p").wait_for()
    assert page.locator(".stop.accepted").count() == 2

    page.locator(".menu summary").click()
    with page.expect_download() as download:
        page.locator("[data-format=plan]").click()
    download.value.save_as(album / "plan.csv")
    a, b, c = read_plan(album / "plan.csv")
    assert [one.write for one in (a, b, c)] == [False, True, True]
    assert (b.estimate.lat, b.estimate.lon) == pytest.approx((46.01, 7.0), abs=1e-3)
    assert b.estimate.anchors == "walk.gpx"
    assert (b.estimate.is_corrected, c.estimate.is_corrected) == (False, True)

    # The place that was set is a known place for the others.
    page.get_by_role("button", name="Locate as one trip").click()
    page.locator(".answer", has_text="places set on the map.csv").wait_for()
