"""Hundreds of photos on the page: sorted, filtered, selected, reviewed, kept; and sent as smaller copies."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.page.actions import add, done, row, view

pytestmark = pytest.mark.slow

COUNT = 300
# Answers that the server would need a minute for.
FAKE_ANSWERS = """answers => {
    window.fetch = async (_, {body}) => Response.json({data: body.getAll("images").map(({name}) => answers[name])});
    const transfer = new DataTransfer();
    for (const name in answers) transfer.items.add(new File([new Uint8Array(9)], name, {type: "image/jpeg"}));
    window.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


def answer(number: int) -> dict[str, Any]:
    """Return an answer: in Italy, every third in Fiji; every fifth is sure; the EXIF of every tenth is elsewhere."""
    lat, lon, country = (-17.8, 178.0, "FJ") if number % 3 == 0 else (42.0, 12.0, "IT")
    place = {"lat": lat + 0.004 * (number % 25), "lon": lon + 0.004 * (number % 23), "country": country, "place": None}
    return {
        "candidates": [{**place, "score": 0.5, "probability": 0.5 + number / 1000, "radius_km": 20.0}],
        "credible_radius_km": {"50": 20.0, "90": 60.0},
        "within_km": {"200": 0.5 + number / 1000},
        "sure": number % 5 == 0,
        "exif": {"lat": 48.0, "lon": 2.0} if number % 10 == 0 else None,
        "model": "earth",
        "gallery": "gallery",
        "version": "1",
    }


def names(page: Any) -> list[str]:
    return [str(name) for name in page.locator(".row-name").all_text_contents()]


@pytest.fixture
def many(page: Any) -> Any:
    """Return the page with 300 photos."""
    page.evaluate(FAKE_ANSWERS, {f"{n}.jpg": answer(n) for n in range(COUNT)})
    page.locator(".row[data-status=done]").nth(COUNT - 1).wait_for(state="attached")
    page.locator(".progress").wait_for(state="hidden")
    return page


def test_the_list_is_sorted_and_filtered(many: Any, accessible: Callable[[Any], None]) -> None:
    many.get_by_label("Sort by").select_option("sure")
    assert names(many)[:3] == ["295.jpg", "290.jpg", "285.jpg"]
    many.get_by_label("Sort by").select_option("exif")
    assert "16,6" in many.locator(".row-conflict").first.inner_text()
    assert names(many)[0] in {f"{n}.jpg" for n in range(0, COUNT, 30)}, "Fiji is farther from Paris than Italy"
    many.get_by_label("Show", exact=True).select_option("conflict")
    many.locator(".row").nth(29).wait_for()
    assert many.locator(".row").count() == many.locator(".row-conflict").count() == 30
    many.get_by_label("Show", exact=True).select_option(label="Fiji")
    many.get_by_label("Search the list").fill("9.jpg")
    assert set(names(many)) == {f"{n}.jpg" for n in range(9, COUNT, 30)}
    assert "10 of 300 shown" in many.locator(".choose-all").inner_text()
    many.locator(".choose-all input").check()
    many.get_by_role("button", name="Reject", exact=True).first.click()
    many.get_by_label("Show", exact=True).select_option("rejected")
    many.get_by_label("Search the list").fill("")
    assert many.locator(".row").count() == 10
    accessible(many)
    many.get_by_role("button", name="Undo: 10 answers rejected").click()
    many.locator(".row").first.wait_for(state="detached")


def test_photos_close_together_are_a_cluster_that_is_zoomed_into(many: Any) -> None:
    many.get_by_role("button", name="Show all photos").click()
    many.wait_for_timeout(300)
    clusters = [[float(part) for part in one.split(",")] for one in clusters_of(many)]
    assert sorted(count for _, _, count in clusters) == [99, 200], "all but the selected one"
    zoom = view(many)[2]
    area = many.locator("#map").bounding_box()
    x, y, _ = max(clusters, key=lambda one: one[2])
    many.mouse.click(area["x"] + x, area["y"] + y)
    many.wait_for_function("zoom => document.getElementById('map').dataset.view.split(',')[2] > zoom + 3", arg=zoom)
    assert abs(view(many)[0] - 42) < 0.2
    assert len(clusters_of(many)) > 5


def clusters_of(page: Any) -> list[str]:
    return str(page.locator("#map").get_attribute("data-clusters")).split(";")


def test_photos_in_a_box_and_in_a_range_are_selected(many: Any) -> None:
    many.get_by_role("button", name="Show all photos").click()
    many.wait_for_timeout(300)
    x, y, _ = max(([float(part) for part in one.split(",")] for one in clusters_of(many)), key=lambda one: one[2])
    area = many.locator("#map").bounding_box()
    many.get_by_role("button", name="Select photos in a box").click()
    many.mouse.move(area["x"] + x - 40, area["y"] + y - 40)
    many.mouse.down()
    many.mouse.move(area["x"] + x + 40, area["y"] + y + 40, steps=3)
    many.mouse.up()
    assert "200 of 300 selected" in many.locator(".choose-all").inner_text()
    many.locator(".choose-all input").check()
    many.locator(".choose-all input").uncheck()
    boxes = many.locator(".row-check input")
    boxes.nth(1).check()
    boxes.nth(5).click(modifiers=["Shift"])
    assert "5 of 300 selected" in many.locator(".choose-all").inner_text()


def test_decisions_and_notes_are_kept_and_exported(page: Any, views: dict[str, Path], tmp_path: Path) -> None:
    add(page, views["rome"], views["cairo"])
    done(page, 2)
    row(page, "cairo.jpg").locator(".row-main").click()
    page.get_by_role("button", name="Reject", exact=True).click()
    assert page.get_by_role("button", name="Reject", exact=True).get_attribute("aria-pressed") == "true"
    assert "Reject" in page.evaluate("document.activeElement.textContent"), "the focus stays where it was"
    page.get_by_label("Note").fill("not the Nile")
    row(page, "rome.jpg").locator(".row-main").click()
    page.keyboard.press("a")
    assert "Rejected: not the Nile" in row(page, "cairo.jpg").inner_text()
    page.wait_for_timeout(700)
    page.reload()
    page.locator("body[data-ready]").wait_for()
    done(page, 2)
    assert "Accepted" in row(page, "rome.jpg").inner_text()

    def exported(name: str) -> str:
        page.locator(".menu summary").click()
        with page.expect_download() as download:
            page.locator(f"[data-format={name}]").click()
        path = tmp_path / name
        download.value.save_as(path)
        return path.read_text(encoding="utf-8")

    wanted = [("accepted", None), ("rejected", "not the Nile")]
    assert [(one["decision"], one.get("note")) for one in json.loads(exported("json"))] == wanted
    rows = [one for one in csv.DictReader(io.StringIO(exported("csv"))) if one["rank"] == "1"]
    assert [(one["decision"], one["note"] or None) for one in rows] == wanted
    exported("html")
    (tmp_path / "report.html").write_bytes((tmp_path / "html").read_bytes())
    report = page.context.new_page()
    report.goto((tmp_path / "report.html").as_uri())
    report.locator("body[data-ready]").wait_for()
    assert "Rejected: not the Nile" in row(report, "cairo.jpg").inner_text()
    report.locator(".row-main").nth(1).click()
    assert report.locator(".answer .review-words").inner_text() == "Rejected: not the Nile"
    assert report.locator("textarea, .review").count() == 0


def test_work_survives_going_back(page: Any, views: dict[str, Path], server: str) -> None:
    add(page, views["rome"])
    done(page, 1)
    page.get_by_label("Note").fill("typed just before")
    page.goto(server + "/healthz")
    page.go_back()
    page.locator("body[data-ready]").wait_for()
    done(page, 1)
    assert page.get_by_label("Note").input_value() == "typed just before"


def test_each_tab_has_its_own_work(page: Any, views: dict[str, Path], server: str) -> None:
    def other_tab() -> Any:
        tab = page.context.new_page()
        tab.goto(server)
        tab.locator("body[data-ready]").wait_for()
        return tab

    add(page, views["rome"])
    done(page, 1)
    second = other_tab()
    assert second.locator(".row").count() == 0
    add(second, views["cairo"])
    done(second, 1)
    second.wait_for_timeout(700)
    for tab, name in ((page, "rome.jpg"), (second, "cairo.jpg")):
        tab.reload()
        tab.locator("body[data-ready]").wait_for()
        assert names(tab) == [name]
    second.close()
    assert names(other_tab()) == ["cairo.jpg"], "the work of a closed tab is found again"


def test_a_copy_of_a_tab_has_its_own_work(page: Any, views: dict[str, Path]) -> None:
    add(page, views["rome"])
    done(page, 1)
    with page.context.expect_page() as opened:
        page.evaluate("window.open(location.href)")
    copy = opened.value
    copy.locator("body[data-ready]").wait_for()
    assert page.evaluate("sessionStorage.getItem('geoclip-session')") == "1"
    assert copy.evaluate("sessionStorage.getItem('geoclip-session')") == "2"
    assert names(copy) == []


def test_without_locks_the_last_tab_saves_and_the_other_says_so(
    opened: Callable[..., Any], server: str, views: dict[str, Path]
) -> None:
    page = opened(server + "/")
    page.context.add_init_script("Object.defineProperty(Navigator.prototype, 'locks', {value: undefined})")
    page.reload()
    page.locator("body[data-ready]").wait_for()
    add(page, views["rome"])
    done(page, 1)
    page.wait_for_timeout(700)
    second = page.context.new_page()
    second.goto(server)
    second.locator("body[data-ready]").wait_for()
    assert names(second) == ["rome.jpg"]
    page.get_by_label("Note").fill("lost")
    page.get_by_text("This work was opened in another tab").wait_for()
    second.get_by_label("Note").fill("kept")
    second.wait_for_timeout(700)
    page.reload()
    page.locator("body[data-ready]").wait_for()
    assert page.get_by_label("Note").input_value() == "kept"


def test_a_token_that_is_no_longer_valid_is_asked_for_again(page: Any) -> None:
    body = json.dumps({"error": {"message": "no", "type": "unauthorized", "code": "unauthorized"}})
    page.route(
        "**/v1/text", lambda route: route.fulfill(status=401, content_type="application/json", body=body), times=1
    )
    page.get_by_label("or describe a place").fill("ice")
    page.get_by_role("button", name="Find").click()
    page.locator("#token").fill("another")
    with page.expect_request("**/v1/text") as request:
        page.get_by_role("button", name="Continue").click()
    assert request.value.headers["authorization"] == "Bearer another"
    done(page, 1)


def test_smaller_copies_are_sent_with_their_metadata(page: Any, views: dict[str, Path], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    exif[0x8825] = {1: "S", 2: (33.0, 30.0, 0.0), 3: "E", 4: (151.0, 0.0, 0.0)}
    upright = Image.open(views["rome"]).resize((2240, 2240))
    noise = np.random.default_rng(0).integers(0, 24, (2240, 2240, 3), dtype=np.uint8)  # large when compressed
    pixels = Image.fromarray((np.asarray(upright) // 2 + noise).astype(np.uint8)).transpose(Image.Transpose.ROTATE_90)
    path = tmp_path / "large.jpg"
    pixels.save(path, quality=95, exif=exif)
    page.get_by_text("What you know already").click()
    page.get_by_label(re.compile("Send smaller copies")).check()
    sent = "window.sizes.push(...(init?.body?.getAll?.('images') ?? []).map(({size}) => size));"
    page.evaluate(
        "() => { const before = fetch; window.sizes = []; window.fetch = (path, init) => { "
        + sent
        + " return before(path, init); }; }"
    )
    add(page, path)
    done(page, 1)
    [size] = page.evaluate("sizes")
    assert size < path.stat().st_size / 5
    assert "Italy" in page.locator(".row").inner_text(), "upright: turned once, not twice"
    assert "33.5000° S, 151.0000° E" in page.locator(".exif").inner_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in str(page.locator(".about").text_content())
