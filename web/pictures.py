"""Take screenshots of the page with Chromium and a running `geoclip serve`: `make page-pictures page-screenshots`.

python web/pictures.py http://127.0.0.1:8000 docs                    # those of docs/page.md
python web/pictures.py http://127.0.0.1:8000 build/screenshots --all # every case at every width, dark and light
"""

import csv
import itertools
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from open_geoclip.data.earth import Earth
from open_geoclip.data.earth_views import view_centres

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
PLACES = {"Delta": (30.4, 31.2), "Hokkaido": (43.3, 142.5), "Italy": (41.9, 12.5), "Fiji": (-17.8, 178.5)}
SYDNEY = {1: "S", 2: (33.0, 51.0, 36.0), 3: "E", 4: (151.0, 12.0, 36.0)}
WIDTHS = {360: 740, 900: 700, 1360: 860, 1920: 1080}
N_MANY = 300
N_INDEXED = 160
INDEX_PORT = 8918


def main() -> None:
    """Render views, locate them on the page, and take screenshots."""
    address, goal, *options = sys.argv[1:]
    Path(goal).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        take = take_all if options == ["--all"] else take_documented
        take(browser, address, Path(goal), Path(folder))
        browser.close()


def take_documented(browser: Browser, address: str, goal: Path, folder: Path) -> None:
    """The pictures of docs/page.md."""
    views = render(PLACES, folder)
    page = open_page(browser, address, 1440, 900)
    add(page, views)
    page.screenshot(path=goal / "page-photo.png")

    page = open_page(browser, address, 1440, 900)
    describe(page)
    page.screenshot(path=goal / "page-text.png")

    page = open_page(browser, address, 360, 740)
    add(page, views[:1])
    page.screenshot(path=goal / "page-phone.png")

    page = open_page(browser, address, 1440, 900, "dark")
    add(page, views)
    page.locator(".row-main").nth(1).click()
    page.get_by_role("button", name="Show a globe").click()
    settle(page, len(views))
    page.screenshot(path=goal / "page-dark.png")

    page = open_page(browser, address, 1440, 900)
    add(page, [locate_many(browser, address, folder)], N_MANY)
    review(page)
    page.screenshot(path=goal / "page-many.png")

    with serve_index(folder) as address:
        page = open_page(browser, address, 1440, 900)
        add(page, [folder / "Italy.jpg"])
        page.get_by_role("heading", name="Photos with known places").scroll_into_view_if_needed()
        page.evaluate("document.querySelector('.look-alikes').scrollIntoView({block: 'end'})")
        page.screenshot(path=goal / "page-look-alikes.png")


@contextmanager
def serve_index(folder: Path) -> Iterator[str]:
    """Run `geoclip serve` with an index of views around the Mediterranean."""
    rng = np.random.default_rng(0)
    places = np.stack([rng.uniform(33, 47, N_INDEXED), rng.uniform(-5, 35, N_INDEXED)], axis=1)
    named = {f"view-{n:03}": (lat, lon) for n, (lat, lon) in enumerate(places.round(3).tolist())}
    paths = render(named, folder)
    with (folder / "views.csv").open("w", newline="") as file:
        rows = [(path.name, *place) for path, place in zip(paths, named.values(), strict=True)]
        csv.writer(file).writerows([("file", "lat", "lon"), *rows])
    command = [sys.executable, "-m", "open_geoclip.cli"]
    build = ["index", "build", folder / "views.csv", "--images", folder, "-o", folder / "index", "--thumbnails", "160"]
    subprocess.run([*command, *build], check=True)
    address = f"http://127.0.0.1:{INDEX_PORT}"
    server = subprocess.Popen([*command, "serve", "--port", str(INDEX_PORT), "--index", folder / "index"])
    try:
        while server.poll() is None:
            try:
                with urllib.request.urlopen(f"{address}/readyz"):
                    break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def take_all(browser: Browser, address: str, goal: Path, folder: Path) -> None:
    """Each case at each width, dark and light."""
    views = render(PLACES, folder)
    [conflict] = render({"Rome": (41.9, 12.5)}, folder, SYDNEY)
    [null_island] = render({"Cairo": (30.0, 31.2)}, folder, {1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)})
    project = locate_many(browser, address, folder)

    def limits(page: Page) -> None:
        page.get_by_text("What you know already").click()
        box = page.get_by_role("combobox", name="Country, box")
        for text in ("Italy", "35,-10,60,30"):
            box.fill(text)
            box.press("Enter")
        page.get_by_role("radio", name="Not inside").check()
        box.fill("41.9,12.5,100km")
        box.press("Enter")
        add(page, [views[2]])

    def many(page: Page) -> None:
        add(page, [project], N_MANY)
        review(page)

    cases: dict[str, Callable[[Page], None]] = {
        "empty": lambda page: None,
        "photo": lambda page: add(page, views[:1]),
        "many": many,
        "text": describe,
        "limits": limits,
        "conflict": lambda page: add(page, [conflict, null_island]),
    }
    for (case, prepare), (width, height), scheme in itertools.product(cases.items(), WIDTHS.items(), ("light", "dark")):
        page = open_page(browser, address, width, height, scheme)
        prepare(page)
        page.screenshot(path=goal / f"{case}-{width}-{scheme}.png")
        if width == min(WIDTHS):
            page.screenshot(path=goal / f"{case}-{width}-{scheme}-whole.png", full_page=True)
        page.context.close()


def locate_many(browser: Browser, address: str, folder: Path) -> Path:
    """Locate 300 views; return a project file."""
    places = {f"IMG_{n:04}": (lat, lon) for n, (lat, lon) in enumerate(view_centres("test", N_MANY).tolist())}
    page = open_page(browser, address, 1440, 900)
    add(page, render(places, folder))
    with page.expect_download() as download:
        page.get_by_role("button", name="Save project").click()
    path = folder / "many.geoclip"
    download.value.save_as(path)
    page.context.close()
    return path


def review(page: Page) -> None:
    """Sort the list, accept and reject answers, write a note, and show all photos on the map."""
    page.get_by_label("Sort by").select_option("sure")
    rows = page.locator(".row-main")
    for row, key in ((0, "a"), (1, "a"), (2, "r")):
        rows.nth(row).click()
        rows.nth(row).press(key)
    page.get_by_label("Note").fill("Check the coast again")
    page.get_by_role("button", name="Show all photos").click()
    page.evaluate("scrollTo(0, 0)")
    settle(page, 3)


def describe(page: Page) -> None:
    """Locate a text."""
    page.get_by_label("or describe a place").fill("a hot desert")
    page.get_by_role("button", name="Find").click()
    settle(page, 1)


def render(places: dict[str, tuple[float, float]], folder: Path, gps: dict[int, object] | None = None) -> list[Path]:
    """Render views of the Earth from orbit, 900 km wide."""
    n = len(places)
    images = Earth("bluemarble").render(np.array(list(places.values())), np.full(n, 900.0), np.zeros(n), size=384)
    paths = [folder / f"{name}.jpg" for name in places]
    for path, pixels in zip(paths, images, strict=True):
        exif = Image.Exif()
        if gps is not None:
            exif[0x8825] = gps
        Image.fromarray(pixels).save(path, quality=90, exif=exif)
    return paths


def open_page(browser: Browser, address: str, width: int, height: int, scheme: str = "light") -> Page:
    """Open the page without animations."""
    size = {"width": width, "height": height}
    context = browser.new_context(
        viewport=size, color_scheme=scheme, reduced_motion="reduce", has_touch=width < 760, accept_downloads=True
    )
    page = context.new_page()
    page.goto(address)
    page.locator("body[data-ready]").wait_for()
    return page


def add(page: Page, files: list[Path], count: int | None = None) -> None:
    """Add photos or a project and wait for the answers."""
    page.locator("input[type=file]").first.set_input_files([str(path) for path in files])
    settle(page, count or len(files))


def settle(page: Page, count: int) -> None:
    """Wait for a number of answers, for fonts, and for the map."""
    page.locator(".row[data-status=done]").nth(count - 1).wait_for(timeout=600_000, state="attached")
    page.locator(".progress").wait_for(state="hidden", timeout=600_000)
    page.evaluate("document.fonts.ready")
    page.wait_for_timeout(500)


if __name__ == "__main__":
    main()
