"""Build the documentation site, with warnings as errors and without a network: ``python docs/site.py build/site``.

The pages of ``docs/`` are copied to a folder next to the site, the references of commands and Python names are
generated from the code, and Sphinx builds them.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MODULES = [
    "open_geoclip.geo.areas",
    "open_geoclip.search.posterior",
    "open_geoclip.search.calibration",
    "open_geoclip.search.trips",
    "open_geoclip.search.refine",
    "open_geoclip.evaluation.metrics",
    "open_geoclip.evaluation.compare",
    "open_geoclip.evaluation.calibration",
    "open_geoclip.evaluation.reliability",
    "open_geoclip.export.heatmaps",
    "open_geoclip.export.maps",
    "open_geoclip.features.transformer",
    "open_geoclip.features.onnx",
    "open_geoclip.geo.countries",
    "open_geoclip.geo.geocode",
    "open_geoclip.data.sources",
    "open_geoclip.training.settings",
    "open_geoclip.training.batches",
    "open_geoclip.training.loop",
    "open_geoclip.training.loss",
    "open_geoclip.training.run",
]
"""Modules whose public names are in the reference, besides those of the package itself."""


def command_reference() -> str:
    """Return each command with its arguments, options and defaults, generated from the code."""
    from open_geoclip.cli import app

    text = app.generate_docs(output_format="markdown")
    head, _, rest = text.partition("## Table of Contents")
    commands = rest[rest.index("\n## ") :]
    return head.replace("# geoclip", "# Commands: reference", 1) + commands.lstrip("\n")


def python_reference() -> str:
    """Return the public names, then the key modules, from their docstrings (reStructuredText)."""
    import open_geoclip

    title = "Python: reference"
    lines = [title, "=" * len(title), "", "From the docstrings. ``from open_geoclip import NAME``:", ""]
    for name in open_geoclip.__all__:
        thing = getattr(open_geoclip, name)
        if name == "__version__":
            continue
        kind = "autoclass" if isinstance(thing, type) else "autofunction"
        lines += [f".. {kind}:: open_geoclip.{name}", ""]
    for module in MODULES:
        lines += [module, "-" * len(module), "", f".. automodule:: {module}", "   :ignore-module-all: False", ""]
    return "\n".join(line for line in lines if ":ignore-module-all:" not in line)


def copy_pages(source: Path) -> None:
    """Copy the pages; links that leave ``docs/`` become text, since their targets are not part of the site."""
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("site.py", "__pycache__"))
    (source / "changelog.md").write_text((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), encoding="utf-8")
    for page in source.rglob("*.md"):
        text = page.read_text(encoding="utf-8")

        def mended(match: re.Match[str], page: Path = page) -> str:
            label, target = match[1], match[2].partition("#")[0]
            if target.startswith(("http", "mailto:")) or not target:
                return match[0]
            if target.endswith("CHANGELOG.md"):
                return f"[{label}](/changelog.md)"
            inside = (page.parent / target).resolve()
            return match[0] if inside.is_file() and inside.is_relative_to(source.resolve()) else label

        page.write_text(re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", mended, text), encoding="utf-8")


def build(goal: Path) -> int:
    """Build the site into a folder, which is replaced.

    Returns:
        The exit status of Sphinx: 0 without warnings.
    """
    source = goal.with_name(f"{goal.name}-source")
    for folder in (source, goal):
        shutil.rmtree(folder, ignore_errors=True)
    copy_pages(source)
    (source / "reference").mkdir()
    (source / "reference" / "commands.md").write_text(command_reference(), encoding="utf-8")
    (source / "reference" / "python.rst").write_text(python_reference(), encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    return subprocess.run([*command, str(source), str(goal)], check=False).returncode


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site").resolve()))
