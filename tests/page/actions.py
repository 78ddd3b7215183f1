"""What tests of the page do again and again."""

from pathlib import Path
from typing import Any

# Keeps the words of each form that is sent in `sent`.
KEEP_FORMS = """() => {
    const before = window.fetch;
    window.sent = [];
    window.fetch = (path, init) => {
        if (init?.body instanceof FormData)
            window.sent.push(...[...init.body].filter(([, value]) => typeof value === "string"));
        return before(path, init);
    };
}"""


def add(page: Any, *files: Path) -> None:
    page.locator("input[type=file]").first.set_input_files([str(file) for file in files])


def done(page: Any, count: int) -> None:
    """Wait until so many rows are answered and nothing is under way."""
    page.locator(".row[data-status=done]").nth(count - 1).wait_for()
    page.locator(".progress").wait_for(state="hidden")


def settle(page: Any) -> None:
    """Wait until the map is drawn."""
    page.evaluate("() => new Promise(done => setTimeout(() => requestAnimationFrame(done), 300))")


def row(page: Any, name: str) -> Any:
    return page.locator(".row", has_text=name)


def view(page: Any) -> tuple[float, ...]:
    """Latitude, longitude and zoom of the map."""
    return tuple(float(each) for each in page.locator("#map").get_attribute("data-view").split(","))
