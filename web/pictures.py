"""Take the screenshots of docs/page.md (`make page-pictures`) with Chromium and a running `geoclip serve`.

python web/pictures.py http://127.0.0.1:8000 docs
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
PLACES = {"Delta": "30.4,31.2", "Hokkaido": "43.3,142.5", "Italy": "41.9,12.5", "Fiji": "-17.8,178.5"}


def main() -> None:
    """Render views, locate them on the page, and take screenshots."""
    address, goal = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        views = [render(name, place, Path(folder)) for name, place in PLACES.items()]
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = open_page(browser, address, 1440, 900)
        add(page, views)
        page.screenshot(path=goal / "page-photo.png")

        page = open_page(browser, address, 1440, 900)
        page.get_by_label("or describe a place").fill("a hot desert")
        page.get_by_role("button", name="Find").click()
        settle(page, 1)
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
        browser.close()


def render(name: str, place: str, folder: Path) -> Path:
    """Render a view of the Earth from orbit with `geoclip render`."""
    path = folder / f"{name}.png"
    command = [
        sys.executable,
        "-m",
        "open_geoclip.cli",
        "render",
        "--width-km",
        "900",
        "--output",
        str(path),
        "--",
        place,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def open_page(browser: Browser, address: str, width: int, height: int, scheme: str = "light") -> Page:
    """Open the page without animations."""
    size = {"width": width, "height": height}
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(address)
    page.locator("body[data-ready]").wait_for()
    return page


def add(page: Page, views: list[Path]) -> None:
    """Add photos and wait for their answers."""
    page.locator("input[type=file]").first.set_input_files([str(view) for view in views])
    settle(page, len(views))


def settle(page: Page, count: int) -> None:
    """Wait for a number of answers, for fonts, and for the map."""
    page.locator(".row[data-status=done]").nth(count - 1).wait_for()
    page.locator(".progress").wait_for(state="hidden")
    page.evaluate(
        "document.fonts.ready.then(() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r))))"
    )


if __name__ == "__main__":
    main()
