"""What people do on the map of the page: zoom, draw, frame, turn the globe, show tiles."""

import base64
import io
import json
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from tests.page.actions import KEEP_FORMS, add, done, settle, view

pytestmark = pytest.mark.slow


PNG_OF_ONE_PIXEL = base64.b64decode(  # red
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)


def test_zooming_during_a_flight_ends_at_its_goal(
    opened: Callable[..., Any], server: str, views: dict[str, Path]
) -> None:
    page = opened(server + "/", reduced_motion="no-preference")
    add(page, views["cairo"])
    done(page, 1)
    page.locator("#map[data-still=true]").wait_for()
    page.get_by_role("button", name="Show all of the answer").click()
    page.locator("#map[data-still=true]").wait_for()
    zoom = view(page)[2]
    page.locator(".candidate").nth(1).click()
    page.locator("#map[data-still=false]").wait_for()
    for _ in range(2):
        page.get_by_role("button", name="Zoom in").click()
    page.locator("#map[data-still=true]").wait_for()
    after = view(page)
    page.locator(".candidate").nth(0).click()
    page.locator("#map[data-still=true]").wait_for()
    page.locator(".candidate").nth(1).click()
    page.locator("#map[data-still=true]").wait_for()
    goal = view(page)
    assert after[:2] == pytest.approx(goal[:2], abs=0.01)
    assert after[2] == pytest.approx(goal[2] + 2, abs=0.02)
    assert zoom != goal[2]


@pytest.mark.parametrize("width", [360, 900])
def test_a_place_in_exif_on_the_other_side_of_the_earth_is_framed(
    opened: Callable[..., Any], server: str, views: dict[str, Path], tmp_path: Path, width: int
) -> None:
    exif = Image.Exif()
    exif[0x8825] = {1: "S", 2: (33.0, 51.0, 36.0), 3: "E", 4: (151.0, 12.0, 36.0)}
    path = tmp_path / "sydney.jpg"
    Image.open(views["cairo"]).save(path, exif=exif)
    page = opened(server + "/", viewport={"width": width, "height": 740})
    add(page, path)
    done(page, 1)
    settle(page)
    assert re.search(r"EXIF 14,\d\d\d km away", page.locator(".row").inner_text())
    assert "does not fit" in page.locator(".answer .warnings").inner_text()
    area = page.locator("#map").bounding_box()
    for selector in (".marker.first", ".marker-exif", ".marker-name"):
        box = page.locator(selector).bounding_box()
        assert area["x"] <= box["x"], selector
        assert box["x"] + box["width"] <= area["x"] + area["width"], selector
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        topmost = page.evaluate("([x, y]) => document.elementFromPoint(x, y).closest('.marker, .marker-exif')", [x, y])
        assert topmost is not None, f"{selector} is covered"


def test_a_box_is_drawn_by_mouse_and_a_polygon_by_keyboard(page: Any, views: dict[str, Path]) -> None:
    page.get_by_text("What you know already").click()
    page.get_by_role("button", name="Draw a box").click()
    area = page.locator("#map").bounding_box()
    x, y = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y - 50, steps=3)
    page.mouse.up()
    assert re.fullmatch(r"in Box [-\d.]+, [-\d.]+, [-\d.]+, [-\d.]+", page.locator(".chip").inner_text())

    page.get_by_role("button", name="Draw a polygon").click()
    for key in ("+", "+", "Enter", "ArrowRight", "Enter", "ArrowDown", "Enter", "c"):
        page.keyboard.press(key)
    assert page.locator(".chip").nth(1).inner_text() == "in Polygon of 3 corners"
    page.get_by_role("button", name="Draw a polygon").click()
    page.keyboard.press("Escape")
    assert page.locator(".map-hint").is_hidden()
    assert page.locator(".chip").count() == 2

    page.evaluate(KEEP_FORMS)
    add(page, views["rome"])
    page.locator(".row:is([data-status=done], [data-status=failed])").wait_for()
    assert page.locator(".row-error").all_inner_texts() == []
    within = [value for name, value in page.evaluate("sent") if name == "within"]
    assert len(within) == 2
    assert json.loads(within[1])["type"] == "Polygon"


def test_the_globe_shows_the_answer_too(page: Any, views: dict[str, Path], accessible: Callable[[Any], None]) -> None:
    add(page, views["fiji"])
    done(page, 1)
    page.get_by_role("button", name="Show a globe").click()
    assert page.locator(".marker.first").is_visible()
    lat, lon, _ = view(page)
    assert abs(lat + 17.8) < 12
    assert abs(abs(lon) - 178.5) < 40
    accessible(page)
    page.get_by_role("button", name="Show a flat map").click()


def test_tiles_of_a_configured_server_are_shown_with_their_attribution(
    opened: Callable[..., Any], serve: Callable[..., AbstractContextManager[str]], built: Path, tmp_path: Path
) -> None:
    class Tiles(BaseHTTPRequestHandler):
        paths: ClassVar[list[str]] = []

        def do_GET(self) -> None:
            self.paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(PNG_OF_ONE_PIXEL)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Tiles) as tiles:
        threading.Thread(target=tiles.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{tiles.server_port}"
        options = ("--tile-url", f"http://{host}/{{z}}/{{x}}/{{y}}.png", "--tile-attribution", "© Example & partners")
        with serve(tmp_path, *options) as address:
            page = opened(address, other_hosts=(host,))
            page.wait_for_function(
                "() => performance.getEntriesByType('resource').some(({name}) => name.endsWith('.png'))"
            )
            assert page.locator(".map-attribution").inner_text() == "© Example & partners"
            assert host in page.locator(".legend").inner_text()
            area = page.locator("#map").bounding_box()
            clip = {"x": area["x"] + 5, "y": area["y"] + 300, "width": 1, "height": 1}

            def is_red() -> bool:  # the canvas is tainted: its pixels cannot be read by scripts
                pixel = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB").getpixel((0, 0))
                return bool(pixel == (255, 0, 0))

            settle(page)
            assert is_red()
            page.get_by_label(re.compile("tiles from")).uncheck()
            settle(page)
            assert not is_red()
            assert page.locator(".map-attribution").is_hidden()
        tiles.shutdown()
    assert all(re.fullmatch(r"/\d+/\d+/\d+\.png", path) for path in Tiles.paths)
