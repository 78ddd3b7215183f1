"""Line numbers in the links of tour.md: `python docs/tour.py` sets them after code has moved."""

import re
from pathlib import Path

DOCS = Path(__file__).parent
LINK = re.compile(r"\[`(\w+)`\]\((\.\./src/[\w/]+\.py)(?:#L(\d+))?\)")


def line_of(name: str, path: Path) -> int:
    """Return the line on which a file defines a name."""
    definition = re.compile(rf"\s*(class|def) {name}\b|{name}\b\s*[:=]")
    return next(n for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if definition.match(line))


def links(text: str) -> list[tuple[str, str, int]]:
    """Return name, path and line of each link into the code."""
    return [(name, path, int(line or 0)) for name, path, line in LINK.findall(text)]


if __name__ == "__main__":
    page = DOCS / "tour.md"
    page.write_text(
        LINK.sub(lambda m: f"[`{m[1]}`]({m[2]}#L{line_of(m[1], DOCS / m[2])})", page.read_text(encoding="utf-8")),
        encoding="utf-8",
    )
