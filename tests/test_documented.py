"""Every command and every public name is documented, and what the documents point at exists."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import open_geoclip
from docs import tour
from open_geoclip.cli import app, main

ROOT = Path(__file__).resolve().parents[1]
PYTHON = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "open_geoclip"
CORE = (
    "model/geoclip.py",
    "model/location_encoder.py",
    "model/image_encoder.py",
    "training/loss.py",
    "training/loop.py",
    "search/gallery.py",
    "search/index.py",
    "search/posterior.py",
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", [name for name in open_geoclip.__all__ if name != "__version__"])
def test_public_names_have_docstrings_and_stand_in_the_reference(name: str) -> None:
    thing = getattr(open_geoclip, name)
    assert inspect.getdoc(thing), f"{name} has no docstring"
    assert f"`{name}`" in PYTHON, f"{name} is not in docs/python.md"
    if inspect.isclass(thing):
        own = {key: value for key, value in vars(thing).items() if not key.startswith("_") and inspect.isroutine(value)}
        for method, value in own.items():
            assert inspect.getdoc(value), f"{name}.{method} has no docstring"


def test_all_is_what_can_be_imported() -> None:
    own = {name for name in vars(open_geoclip) if inspect.isclass(vars(open_geoclip)[name])}  # errors
    assert sorted(open_geoclip.__all__) == sorted({*open_geoclip._HOME, *own, "__version__"})
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        open_geoclip.nothing  # noqa: B018


COMMAND_NAMES = [name for name in app if not name.startswith("-")]


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_commands_have_help_and_stand_in_the_docs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"## `geoclip {name}" in COMMANDS, f"docs/commands.md has no section on geoclip {name}"
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) > 5
    assert not re.search(r"\bpictures?\b", printed), "images have pixels, photos a place"


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_help_is_the_docstring(name: str) -> None:
    listed = app[name].help
    module = importlib.import_module(f"open_geoclip.cli.{name.replace('-', '_')}")
    if name in ("data", "gallery", "index"):
        assert listed == module.app.help
    else:
        assert listed == (inspect.getdoc(getattr(module, name.replace("-", "_"))) or "").split("\n\nArgs:")[0]


def test_the_docs_know_no_command_that_is_not_there() -> None:
    named = set(re.findall(r"^## `geoclip ([\w-]+)", COMMANDS, flags=re.MULTILINE))
    assert named == set(COMMAND_NAMES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} points at {target}, which is not there"


def test_the_changelog_has_this_version_or_what_comes_after_it() -> None:
    assert re.search(r"^## (Unreleased|\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)


def test_the_tour_leads_to_the_lines_of_definitions() -> None:
    """Run `python docs/tour.py` to set the line numbers after code has moved."""
    links = tour.links((ROOT / "docs" / "tour.md").read_text(encoding="utf-8"))
    assert len(links) > 20
    for name, path, line in links:
        assert line == tour.line_of(name, ROOT / "docs" / path), f"{name} in {path}: run `python docs/tour.py`"


def test_dir_lists_the_public_names() -> None:
    assert set(dir(open_geoclip)) == set(open_geoclip.__all__)


def test_the_core_is_read_in_an_hour() -> None:
    assert sum(len((SOURCE / file).read_text(encoding="utf-8").splitlines()) for file in CORE) <= 2000


def test_each_file_is_read_in_one_sitting() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py")}
    assert not {str(path.relative_to(SOURCE)): n for path, n in lines.items() if n > 420}
