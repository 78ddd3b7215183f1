"""The button "Why?": a map over the photo on the live page, and again in a report that is exported from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.page.actions import add, done, row

pytestmark = pytest.mark.slow

# The share of pixels of the canvas over the photo that are not empty.
PAINTED = """() => {
    const canvas = document.querySelector(".why canvas");
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((_, index) => index % 4 === 3).filter(alpha => alpha > 0).length / (data.length / 4);
}"""


def test_a_candidate_is_explained_on_the_page_and_in_its_report(
    page: Any,
    opened: Callable[..., Any],
    views: dict[str, Path],
    tmp_path: Path,
    accessible: Callable[[Any], None],
) -> None:
    add(page, views["rome"], views["cairo"])
    done(page, 2)
    row(page, "rome.jpg").locator(".row-main").click()
    why = page.locator(".why-button")
    assert why.get_attribute("aria-pressed") == "false"
    why.click()
    page.locator(".why canvas").wait_for()
    assert page.evaluate(PAINTED) == 1
    assert "LayerCAM" in page.locator(".why figcaption").inner_text()
    assert "What raises the score most is at the" in page.locator(".why canvas").get_attribute("aria-label")
    photo, canvas = (page.locator(f".why {what}").bounding_box() for what in ("img", "canvas"))
    assert photo == canvas
    page.locator("[data-layer=parts]").click()
    assert page.locator(".why li").count() == 3
    assert "% become" in page.locator(".why li").first.inner_text()
    assert page.evaluate("document.activeElement.dataset.layer") == "parts"
    accessible(page)

    page.locator(".candidate").nth(1).click()
    assert page.locator(".why").count() == 0, "it was of another candidate"
    page.locator(".candidate").first.click()
    assert page.locator(".why").count() == 1
    page.locator(".why-button").click()
    assert page.locator(".why").count() == 0

    page.locator(".menu summary").click()
    with page.expect_download() as download:
        page.locator("[data-format=html]").click()
    path = tmp_path / "report.html"
    download.value.save_as(path)
    report = opened(path.as_uri(), offline=True)
    report.locator(".why-button").click()
    assert report.evaluate(PAINTED) == 1
    row(report, "cairo.jpg").locator(".row-main").click()
    assert report.locator(".why-button").count() == 0, "nobody asked why"


def test_why_not_is_said(page: Any, views: dict[str, Path]) -> None:
    add(page, views["fiji"])
    done(page, 1)
    problem = {"error": {"message": "too many requests are waiting", "type": "", "code": ""}}
    page.route("**/v1/explain", lambda route: route.fulfill(status=429, json=problem))
    page.locator(".why-button").click()
    assert "too many requests" in page.locator(".why-ask [role=alert]").inner_text()
    assert page.locator(".why").count() == 0
