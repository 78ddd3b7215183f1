"""The page at any width, on a phone and by keyboard alone."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.page.actions import add, done, settle, view

pytestmark = pytest.mark.slow


FOCUSED = (
    "(at => [at.id, at.className, at.textContent, at.getAttribute('aria-label')].join(' '))(document.activeElement)"
)


@pytest.mark.parametrize("width", [360, 900, 1360, 1920])
def test_no_words_are_cut_off(opened: Callable[..., Any], server: str, views: dict[str, Path], width: int) -> None:
    page = opened(server + "/", viewport={"width": width, "height": 860})
    assert "from orbit" in page.locator(".scope").inner_text()
    add(page, views["rome"])
    done(page, 1)
    assert re.search(r"EXIF 1\d\d km away", page.locator(".row").inner_text())
    first = page.locator(".answer > *:not(.answer-name)").first
    assert "Sure" in first.inner_text()
    cut_off = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(element => {
            const {overflowX, textOverflow} = getComputedStyle(element);
            return (textOverflow === "ellipsis" || overflowX === "hidden") && element.checkVisibility()
                && element.scrollWidth > element.clientWidth + 1 && element.textContent.trim() !== ""
                && !element.matches(".visually-hidden, .markers, .map");
        }).map(({className}) => className)"""
    )
    assert cut_off == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_all_of_it_by_keyboard(page: Any, views: dict[str, Path]) -> None:
    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if name in page.evaluate(FOCUSED):
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", "focus is seen"
                return
        pytest.fail(f"{name} is not reached by Tab")

    tab_to("Choose photos")
    page.evaluate(
        """() => document.querySelector("input[type=file]").addEventListener("click", event => {
            event.preventDefault();
            window.asked = true;
        })"""
    )
    page.keyboard.press("Enter")
    page.wait_for_function("window.asked")  # the system's own window would open now
    add(page, views["rome"], views["fiji"])
    done(page, 2)
    tab_to("row-main")
    page.keyboard.press("ArrowDown")
    assert "fiji.jpg" in page.locator(".answer-name").inner_text()
    tab_to("Map of the Earth")
    before = view(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    page.wait_for_function(
        "before => document.getElementById('map').dataset.view !== before", arg=",".join(map(str, before))
    )
    assert view(page)[2] > before[2]
    tab_to("candidate")
    tab_to("Candidate 2")
    page.keyboard.press("Enter")
    assert page.locator("[data-candidate='1']").get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.dataset.candidate") == "1", "the focus stays where it was"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(
    opened: Callable[..., Any],
    server: str,
    views: dict[str, Path],
    scheme: str,
    accessible: Callable[[Any], None],
    tmp_path: Path,
) -> None:
    page = opened(server + "/", viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    add(page, views["rome"])
    done(page, 1)
    assert page.locator(".list").bounding_box()["y"] < page.locator(".answer").bounding_box()["y"] < 740
    add(page, views["fiji"])
    done(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".head").bounding_box()["height"] < 64, "one line"
    assert page.locator("#map").bounding_box()["height"] >= 250
    accessible(page)
    fields = "select:visible, textarea:visible, input[type=text]:visible, .row-check:visible"
    for target in page.locator(f"button:visible, summary:visible, {fields}").all():
        if "marker" not in (target.get_attribute("class") or ""):  # a marker's target is wider than what is seen
            assert target.bounding_box()["height"] >= 43.5, target.inner_html()
    page.locator(".row-main").nth(1).tap()
    page.wait_for_function("() => Math.abs(document.querySelector('.answer').getBoundingClientRect().top) < 5")
    page.evaluate("() => scrollTo(0, 0)")
    page.get_by_role("button", name=re.compile("Colours as the system")).click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    (tmp_path / "other.geoclip").write_text("something else")
    add(page, tmp_path / "other.geoclip")
    notice = page.get_by_text("other.geoclip is not a project file")
    notice.wait_for()
    assert 0 < notice.bounding_box()["y"] < 740, "in sight, wherever the page was scrolled to"


def test_the_menu_of_a_phone_lies_above_the_map(
    opened: Callable[..., Any], server: str, views: dict[str, Path]
) -> None:
    page = opened(server + "/", viewport={"width": 360, "height": 740}, has_touch=True)
    add(page, views["rome"])
    done(page, 1)
    settle(page)
    page.locator(".menu summary").tap()
    box = page.locator(".menu-body").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    markers = [each.bounding_box() for each in page.locator(".marker:visible").all()]
    centers = [(each["x"] + each["width"] / 2, each["y"] + each["height"] / 2) for each in markers]
    below = [
        (x, y) for x, y in centers if box["x"] < x < box["x"] + box["width"] and box["y"] < y < box["y"] + box["height"]
    ]
    assert below != []
    for center in below:
        assert page.evaluate("([x, y]) => document.elementFromPoint(x, y).closest('.menu-body') !== null", center)
