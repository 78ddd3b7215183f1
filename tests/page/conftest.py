"""The page in Debian's Chromium, before a real `geoclip serve` on loopback with the embedded model."""

import json
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

PLACES = {"rome": (41.9, 12.5), "cairo": (30.0, 31.2), "fiji": (-17.8, 178.5), "hokkaido": (43.3, 142.5)}
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def built() -> Path:
    """Return the folder of the built page."""
    folder = ROOT / "src/open_geoclip/export/page"
    if not (folder / "index.html").is_file():
        pytest.skip("the page is not built: make web")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Return a Chromium that all tests share, each in a context of its own."""
    api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return rendered views of the Earth by name; Rome's carries a GPS place in its EXIF."""
    import numpy as np
    from PIL import Image

    from open_geoclip.data.earth import Earth

    folder = tmp_path_factory.mktemp("views")
    coordinates = np.array(list(PLACES.values()))
    n = len(PLACES)
    pictures = Earth("bluemarble").render(coordinates, np.full(n, 900.0), np.zeros(n), size=224)
    found = {}
    for name, pixels in zip(PLACES, pictures, strict=True):
        exif = Image.Exif()
        if name == "rome":  # 43 N, 12 E: some 130 km to the north
            exif[0x8825] = {1: "N", 2: (43.0, 0.0, 0.0), 3: "E", 4: (12.0, 0.0, 0.0)}
        found[name] = folder / f"{name}.jpg"
        Image.fromarray(pixels).save(found[name], quality=92, exif=exif)
    return found


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[str]]:
    """Return a function that runs `geoclip serve` with options; its value is the address."""
    return _run_server


@pytest.fixture(scope="session")
def server(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a running `geoclip serve`."""
    with _run_server(tmp_path_factory.mktemp("serve")) as address:
        yield address


@contextmanager
def _run_server(folder: Path, *options: str) -> Iterator[str]:
    """Run `geoclip serve` with options on a free port; the log goes into a folder."""
    pytest.importorskip("open_geoclip.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "log.txt"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "open_geoclip.cli", "serve", "--port", str(port), *options]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, address, log)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    for _ in range(600):
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            pass
        else:
            pytest.fail(f"geoclip serve ended: {log.read_text()}")
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            continue
    pytest.fail(f"geoclip serve was not ready: {log.read_text()}")


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a page and sees to it that nothing but its own server or file is asked."""
    contexts: list[Any] = []
    faults: list[str] = []

    def open_page(url: str, *, other_hosts: tuple[str, ...] = (), wait: bool = True, **settings: Any) -> Any:
        settings = {"viewport": {"width": 1360, "height": 860}, "reduced_motion": "reduce", **settings}
        context = browser.new_context(accept_downloads=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(40_000)
        hosts = (url.split("/", 3)[2], *other_hosts)

        def asked(request: Any) -> None:
            scheme, _, rest = request.url.partition("://")
            if scheme in ("http", "https") and rest.split("/")[0] not in hosts:
                faults.append(f"asked {request.url}")

        page.on("request", asked)
        page.on("pageerror", lambda error: faults.append(f"error {error}"))
        page.goto(url)
        if wait:
            page.locator("body[data-ready]").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def page(opened: Callable[..., Any], server: str) -> Any:
    """Return the live page on a desk's width."""
    return opened(server + "/")


@pytest.fixture(scope="session")
def accessible() -> Callable[[Any], None]:
    """Return a function that runs axe on a page as it is."""
    path = ROOT / "web/node_modules/axe-core/axe.min.js"
    if not path.is_file():
        pytest.skip("axe is not installed: make web")
    script = path.read_text(encoding="utf-8")

    def check(page: Any) -> None:
        page.evaluate(script)  # a script of the test's, which the page's policy would not let in as an element
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations)")
        told = [(fault["id"], [node["html"][:160] for node in fault["nodes"][:3]]) for fault in found]
        assert told == [], json.dumps(told, indent=1)

    return check
