"""The documentation site builds without a warning, has every command and name, and loads nothing from elsewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import open_geoclip
from open_geoclip.cli import app

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    goal = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "site.py"), str(goal)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return goal


class Loads(HTMLParser):
    """Collects what a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.found.append(values.get("src") or "")
        elif tag == "link" and values.get("rel") not in ("canonical", "author", "license"):
            self.found.append(values.get("href") or "")


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found
        for target in loads.found:
            assert not re.match(r"(https?:)?//", target), f"{page.name} loads {target}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", style.read_text(encoding="utf-8")), style.name
    assert (site / "searchindex.js").stat().st_size > 10_000


@pytest.mark.slow
def test_the_references_have_every_command_option_and_name(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in app:
        if name.startswith("-"):
            continue
        assert f'id="geoclip-{name}"' in commands
    for option in ("--within", "--top-k", "--refine", "--folder", "--max-images"):
        assert option in commands
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in open_geoclip.__all__:
        if name != "__version__":
            assert f'id="open_geoclip.{name}"' in python, name
    for name in ("geo.areas.Area", "search.posterior.Posterior", "evaluation.metrics", "training.settings"):
        assert f'id="open_geoclip.{name}' in python or f'id="module-open_geoclip.{name}' in python, name


@pytest.mark.slow
def test_each_page_is_in_the_contents(site: Path) -> None:
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "guides").glob("*.md")]:
        name = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert name.name == "index.html" or f'href="{name}"' in index, f"{name} is not in docs/index.md"
