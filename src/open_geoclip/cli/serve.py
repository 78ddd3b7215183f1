"""``geoclip serve``: the HTTP API and the page."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_geoclip.cli._options import Backbone, Dtype, Engine
from open_geoclip.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.server.settings import ServerSettings

__all__ = ["serve"]


def serve(
    *,
    model: list[str] | None = None,
    backbone: Backbone = None,
    engine: Engine = "auto",
    dtype: Dtype = "auto",
    host: str | None = None,
    port: int | None = None,
    token_file: Path | None = None,
    no_token: bool = False,
    allowed_host: list[str] | None = None,
    cors_origin: list[str] | None = None,
    tile_url: str | None = None,
    tile_attribution: str | None = None,
    workers: int | None = None,
    max_file_mb: int | None = None,
    max_request_mb: int | None = None,
    max_pixels: int | None = None,
    max_images: int | None = None,
    queue: int | None = None,
    memory_mb: int | None = None,
    batch_size: int | None = None,
    batch_wait_ms: float | None = None,
    timeout_s: float | None = None,
    image_timeout_s: float | None = None,
    read_timeout_s: float | None = None,
) -> None:
    """Serve the HTTP API and the page.

    Each option can also be set in the environment, such as OPEN_GEOCLIP_SERVE_PORT; the option has precedence. Tokens
    are never options, which other users of the machine could read: write them into a file, or into the variable
    OPEN_GEOCLIP_SERVE_TOKENS.

    Args:
        model: Models to serve, the first for requests that name none: earth, geoclip, hub:org/repo@revision or
            dir:/folder.
        host: Address to listen on; default: 127.0.0.1. Others need a token or --no-token.
        port: Port to listen on; default: 8000.
        token_file: File of tokens, one per line; clients have to send one of them.
        no_token: Allow requests without a token from other machines too.
        allowed_host: Name that clients may use for this server, besides localhost and the names of this machine.
        cors_origin: Origin of a page of another server that may use the API, such as https://example.org.
        tile_url: Raster tiles (imagery or streets) for the page's map, with {z}, {x}, {y} and optionally {s}.
        tile_attribution: Attribution that the tiles' licence asks for.
        workers: Processes per model, each with a copy of it; default: 1.
        max_file_mb: Largest image file.
        max_request_mb: Largest request.
        max_pixels: Larger images are refused before they are decoded (JPEGs may have four times as many).
        max_images: Images per request.
        queue: Images and texts that may wait; beyond, clients are told to try again later (429).
        memory_mb: Memory for requests that arrive, wait or are worked on.
        batch_size: Images that the model processes at once.
        batch_wait_ms: How long an image waits for others to fill a batch.
        timeout_s: A request that takes longer is given up (504).
        image_timeout_s: An image that takes longer to decode has an error.
        read_timeout_s: Longest pause of a client while it sends a request.
    """
    try:
        from pydantic import ValidationError

        from open_geoclip.server.settings import ServerSettings
    except ImportError as error:
        raise MissingExtraError("geoclip serve", "server") from error

    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "token_file": token_file,
        "no_token": no_token or None,
        "allowed_hosts": allowed_host,
        "cors_origins": cors_origin,
        "tile_url": tile_url,
        "tile_attribution": tile_attribution,
        "workers": workers,
        "max_file_mb": max_file_mb,
        "max_request_mb": max_request_mb,
        "max_pixels": max_pixels,
        "max_images": max_images,
        "queue": queue,
        "memory_mb": memory_mb,
        "batch_size": batch_size,
        "batch_wait_ms": batch_wait_ms,
        "timeout_s": timeout_s,
        "image_timeout_s": image_timeout_s,
        "read_timeout_s": read_timeout_s,
    }
    try:
        settings = ServerSettings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise SettingsError(f"serve: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    models = {}
    for name in model or ["earth"]:  # the backbone of the embedded model is part of it
        models[name] = {"engine": engine, "dtype": dtype, "backbone": None if name == "earth" else backbone}
    asyncio.run(_serve(settings, models))


async def _serve(settings: "ServerSettings", models: dict[str, dict[str, Any]]) -> None:
    from open_geoclip.server.app import create_app, create_server, model_workers, utility_workers
    from open_geoclip.server.monitoring import log_as_json

    log_as_json()
    workers = {name: model_workers(settings, name, **load) for name, load in models.items()}
    app = create_app(settings, workers, utilities=utility_workers(settings))
    server = create_server(app, settings)
    try:
        await app.state.service.start()  # before a port is opened: an error of it is the command's own
        print(f"geoclip: http://{settings.host}:{settings.port}", file=sys.stderr)
        await server.serve()
    finally:
        await app.state.service.stop()
