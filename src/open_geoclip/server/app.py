"""The application: routes, page and middleware around a service; and the HTTP server that runs it."""

import asyncio
import math
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import h11
import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from open_geoclip._version import __version__
from open_geoclip.errors import SettingsError
from open_geoclip.server.guard import Authorization, Guard, problem_response
from open_geoclip.server.openapi import openapi
from open_geoclip.server.problems import Problem
from open_geoclip.server.processes import ProcessWorker, ThreadWorker, Worker
from open_geoclip.server.routes import router
from open_geoclip.server.service import Service
from open_geoclip.server.settings import ServerSettings

if TYPE_CHECKING:
    from open_geoclip.search.locator import Locator

__all__ = ["bind_sockets", "create_app", "create_server", "model_workers", "page_folder", "utility_workers"]

_NOT_BUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>OpenGeoCLIP</title>
<p>The page is not built: run <code>make web</code> in the checkout, or install a wheel, which contains it.
The API works without it: <a href="openapi.json">openapi.json</a>.</p></html>"""


def create_app(
    settings: ServerSettings,
    models: "Mapping[str, Locator | Sequence[Worker]]",
    *,
    utilities: Sequence[Worker] = (),
    page: Path | None = None,
) -> FastAPI:
    """The HTTP API, as an ASGI application.

    Args:
        settings: how it listens and what it accepts.
        models: by name; the first is that of requests that name none. A locator runs in a thread of this process; see
            :func:`model_workers` for processes.
        utilities: workers that decode images and write files; a thread of this process when not given.
        page: folder of the built page; that of this package when not given.

    Raises:
        SettingsError: the settings would let anybody in, or the token file cannot be read.
    """
    tokens = settings.all_tokens()
    workers = {name: [_in_thread(m)] if not isinstance(m, Sequence) else m for name, m in models.items()}
    if not utilities:
        from open_geoclip.server.utility import handle

        utilities = [ThreadWorker(handle), ThreadWorker(handle)]
    service = Service(settings, workers, utilities)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="OpenGeoCLIP",
        version=__version__,
        description="Estimates where on Earth a photo was taken. Answers are estimates, not evidence.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings, app.state.service = settings, service
    app.include_router(router)
    _add_page(app, page or page_folder())
    app.add_exception_handler(HTTPException, _http_problem)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]
    # The last one is the outermost. CORS is outside of authorization, so that its headers are on refusals too.
    app.add_middleware(Authorization, metrics=service.metrics, tokens=tokens, origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    tiles = urlsplit(settings.tile_url or "")
    app.add_middleware(
        Guard,
        metrics=service.metrics,
        host=settings.host,
        allowed_hosts=settings.allowed_hosts,
        tile_origin=f"{tiles.scheme}://{tiles.netloc}".replace("{s}", "*") if tiles.netloc else "",
    )
    return app


def _in_thread(locator: "Locator") -> Worker:
    from open_geoclip.server.engine import Engine

    engine = Engine(locator)
    return ThreadWorker(engine.handle, engine.info)


def model_workers(settings: ServerSettings, name: str, **load: Any) -> list[Worker]:
    """Processes for a model; ``load`` are further arguments of :meth:`Locator.from_pretrained`, JSON-ready."""
    first = {"role": "model", "name": name, "batch_size": settings.batch_size, "max_pixels": settings.max_pixels}
    return [ProcessWorker(first | load) for _ in range(settings.workers)]


def utility_workers(settings: ServerSettings) -> list[Worker]:
    """Processes that decode images and write files: at least three, so that slow ones do not hold up the others.

    Each may take memory for the largest image (24 bytes per pixel: any mode, upright, resized) or for a request as
    Python values (four times its size), whichever is more.
    """
    memory_mb = 512 + max(24 * settings.max_pixels // 2**20, 4 * settings.max_request_mb)
    count = max(3, (os.cpu_count() or 1) // 2 + 1)
    return [ProcessWorker({"role": "utility", "memory_mb": memory_mb}) for _ in range(count)]


async def _http_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = error.headers or {}
    known = {
        404: ("not_found", "nothing is served at this path: /openapi.json lists the routes"),
        405: ("method_not_allowed", f"this path takes {headers.get('Allow')}, not this method"),
    }
    code, message = known.get(error.status_code, ("invalid_request", str(error.detail)))
    return problem_response(Problem(error.status_code, code, message, headers))


def page_folder() -> Path:
    """The folder of the built page."""
    return Path(str(files("open_geoclip").joinpath("export", "page")))


class _Assets(StaticFiles):
    """Files that have a hash of their content in their name: they never change."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def _add_page(app: FastAPI, folder: Path) -> None:
    async def index(_: Request) -> Response:
        path = folder / "index.html"
        if not path.is_file():
            return HTMLResponse(_NOT_BUILT, 404)
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    app.router.routes += [
        Route("/", index, methods=["GET"]),
        Mount("/assets", _Assets(directory=folder / "assets", check_dir=False)),
    ]


class _Protocol(H11Protocol):
    """HTTP/1.1 whose clients have to send their headers and to read answers: uvicorn itself would wait for ever."""

    timeout_s: float
    _headers_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_headers()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._headers_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _watch_reader(self, before: float = math.inf) -> None:
        """Cut the client off when it has read nothing since the last look."""
        unread = self.transport.get_write_buffer_size()
        if unread >= before:
            self.transport.abort()
        else:
            self._write_timer = self.loop.call_later(self.timeout_s, self._watch_reader, unread)

    def _watch_headers(self) -> None:
        is_waiting = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if self._headers_timer is not None and not is_waiting:
            self._headers_timer.cancel()
            self._headers_timer = None
        elif self._headers_timer is None and is_waiting:
            self._headers_timer = self.loop.call_later(self.timeout_s, self.transport.close)


async def bind_sockets(settings: ServerSettings) -> list[socket.socket]:
    """Sockets at the address of the server, which refuse connections until it serves them.

    Raises:
        SettingsError: the address does not exist, or its port is in use.
    """
    host, port = settings.host, settings.port
    try:
        bound = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    except OSError as error:
        why = str(error.strerror).rpartition(": ")[2]
        raise SettingsError(f"{host}:{port}: {why}: choose another address with --host or --port") from error
    sockets = [one.dup() for one in bound.sockets]
    bound.close()
    return sockets


def create_server(app: FastAPI, settings: ServerSettings) -> uvicorn.Server:
    """An HTTP server for an application."""

    class Protocol(_Protocol):
        timeout_s = settings.read_timeout_s

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Protocol,
        access_log=False,  # it would contain addresses; the log line of a request is ours
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.timeout_s) + 5,
        h11_max_incomplete_event_size=2**16,
    )
    return uvicorn.Server(config)
