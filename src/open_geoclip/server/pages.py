"""The page's files."""

from importlib.resources import files
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

__all__ = ["add_page", "page_folder"]

_NOT_BUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>OpenGeoCLIP</title>
<p>The page is not built: run <code>make web</code> in the checkout, or install a wheel, which brings it along.
The API is there all the same: <a href="/docs">/docs</a>.</p></html>"""


def page_folder() -> Path:
    """Where the built page lies."""
    return Path(str(files("open_geoclip").joinpath("export", "page")))


class _Assets(StaticFiles):
    """Files whose names hold a hash of what is in them: they never change."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def add_page(app: Starlette, folder: Path) -> None:
    """Serve ``/`` and ``/assets/`` from a folder; where it is empty, ``/`` says what to do."""

    async def index(_: Request) -> Response:
        path = folder / "index.html"
        if not path.is_file():
            return HTMLResponse(_NOT_BUILT, 404)
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    app.router.routes += [
        Route("/", index, methods=["GET"]),
        Mount("/assets", _Assets(directory=folder / "assets", check_dir=False)),
    ]
