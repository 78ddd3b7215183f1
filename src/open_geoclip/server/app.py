"""The application: routes around a service."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from open_geoclip._version import __version__
from open_geoclip.server.guard import Guard, is_loopback, problem_response
from open_geoclip.server.pages import add_page, page_folder
from open_geoclip.server.problems import Problem
from open_geoclip.server.routes import BODIES, router
from open_geoclip.server.runners import Runner, ThreadRunner
from open_geoclip.server.service import Service
from open_geoclip.server.settings import ServerSettings

if TYPE_CHECKING:
    from open_geoclip.search.locator import Locator

__all__ = ["create_app"]


def create_app(
    settings: ServerSettings, models: "Mapping[str, Locator | Runner]", *, page: Path | None = None
) -> FastAPI:
    """The HTTP API, as an ASGI application.

    Args:
        settings: how it listens and what it takes.
        models: by name; the first is that of requests that name none. A locator runs in a thread of this process; a
            :class:`~open_geoclip.server.runners.ProcessRunner` in a process of its own, which is replaced when it dies.
        page: folder of the built page; that of this package when not given.

    Raises:
        SettingsError: the settings would let anybody in, or the file of tokens cannot be read.
    """
    tokens = settings.checked_tokens()
    service = Service(settings, {name: _runner(model) for name, model in models.items()})

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
        description="Says where on Earth a photo was taken. Answers are estimates, not evidence.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings, app.state.service = settings, service
    app.include_router(router)
    add_page(app, page or page_folder())
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(Exception, _failed)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    hosts = None
    if "*" not in settings.allowed_hosts and (settings.allowed_hosts or is_loopback(settings.host)):
        hosts = {*settings.allowed_hosts, *({"localhost", "127.0.0.1", "::1"} if is_loopback(settings.host) else ())}
    tiles = urlsplit(settings.tile_url or "")
    app.add_middleware(
        Guard,
        tokens=tokens,
        metrics=service.metrics,
        hosts=hosts,
        origins=settings.cors_origins,
        tile_origin=f"{tiles.scheme}://{tiles.netloc}".replace("{s}", "*") if tiles.netloc else "",
    )
    return app


def _runner(model: "Locator | Runner") -> Runner:
    if isinstance(model, Runner):
        return model
    from open_geoclip.server.engine import Engine

    return ThreadRunner(Engine(model))


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error)


async def _failed(_: Request, __: Exception) -> Response:
    return problem_response(Problem(500, "internal", "the server failed at this; what failed is in its log"))


async def _http_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    return problem_response(Problem(error.status_code, code, str(error.detail), error.headers or {}))


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description, with the bodies that routes read themselves."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, bodies = models_json_schema(
            [(body, "validation") for body in BODIES], ref_template="#/components/schemas/{model}"
        )
        schema.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
        app.openapi_schema = schema
    return app.openapi_schema
