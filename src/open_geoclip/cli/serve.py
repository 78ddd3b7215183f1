"""``geoclip serve``: the HTTP API and the page."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from open_geoclip.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.server.settings import ServerSettings

__all__ = ["serve"]


def serve(
    *,
    model: list[str] | None = None,
    backbone: str | None = None,
    engine: Literal["auto", "torch", "openvino"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    host: str | None = None,
    port: int | None = None,
    token_file: Path | None = None,
    no_token: bool = False,
    allowed_host: list[str] | None = None,
    cors_origin: list[str] | None = None,
    tile_url: str | None = None,
    tile_attribution: str | None = None,
    max_file_mb: int | None = None,
    max_request_mb: int | None = None,
    max_pixels: int | None = None,
    max_images: int | None = None,
    queue: int | None = None,
    memory_mb: int | None = None,
    batch_size: int | None = None,
    batch_wait_ms: float | None = None,
    timeout_s: float | None = None,
) -> None:
    """Answer over HTTP, and show a page for people.

    Each option can also be set in the environment, such as OPEN_GEOCLIP_SERVE_PORT; an option goes before it. Tokens
    are never options, which other users of the machine could read: they stand in a file, or in the variable
    OPEN_GEOCLIP_SERVE_TOKENS.

    Args:
        model: Models to serve, the first for requests that name none: earth, geoclip, hub:org/repo@revision or
            dir:/folder.
        backbone: Where the image backbone is, such as dir:/clip, of models that need one.
        engine: What runs the image backbone; auto is openvino where the extra fast is installed.
        dtype: What the backbone computes in; auto is bfloat16 where the processor has it.
        host: The address to listen on; 127.0.0.1 when not given. Others need a token or --no-token.
        port: The port to listen on; 8000 when not given.
        token_file: A file of tokens, one a line, of which a client has to send one.
        no_token: Let anybody ask, from other machines too.
        allowed_host: A name that clients may call this server by, beside localhost.
        cors_origin: A page of another server that may ask, such as https://example.org.
        tile_url: Raster tiles (imagery or streets) for the page's map, with {z}, {x}, {y} and optionally {s}.
        tile_attribution: The attribution that the tiles' licence asks for.
        max_file_mb: The largest picture file.
        max_request_mb: The largest request.
        max_pixels: Larger pictures are refused before they are decoded (JPEGs may have four times as many).
        max_images: Pictures a request.
        queue: Pictures and texts that may wait; beyond, clients are told to come again later (429).
        memory_mb: What requests may take together while they are read and wait.
        batch_size: Pictures the model sees at once.
        batch_wait_ms: How long a picture waits for others.
        timeout_s: A request that takes longer is given up (504).
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
        "max_file_mb": max_file_mb,
        "max_request_mb": max_request_mb,
        "max_pixels": max_pixels,
        "max_images": max_images,
        "queue": queue,
        "memory_mb": memory_mb,
        "batch_size": batch_size,
        "batch_wait_ms": batch_wait_ms,
        "timeout_s": timeout_s,
    }
    try:
        settings = ServerSettings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise SettingsError(f"serve: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    shared = {
        "engine": engine,
        "dtype": dtype,
        "batch_size": settings.batch_size,
        "max_pixels": settings.max_pixels,
    }
    names = model or ["earth"]
    # The embedded model's backbone is part of it.
    asyncio.run(
        _serve(settings, {name: {**shared, "backbone": None if name == "earth" else backbone} for name in names})
    )


async def _serve(settings: "ServerSettings", models: dict[str, dict[str, Any]]) -> None:
    import uvicorn

    from open_geoclip.server.app import create_app
    from open_geoclip.server.logs import log_as_json
    from open_geoclip.server.runners import ProcessRunner

    log_as_json()
    runners = {name: ProcessRunner({"name": name, **options}) for name, options in models.items()}
    app = create_app(settings, runners)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,  # it would tell addresses; the log line of a request is ours
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.timeout_s) + 5,
        h11_max_incomplete_event_size=2**16,
    )
    server = uvicorn.Server(config)
    try:
        await app.state.service.start()  # before a port is opened, and an error of it is the command's own
        print(f"geoclip: http://{settings.host}:{settings.port}", file=sys.stderr)
        await server.serve()
    finally:
        await app.state.service.stop()
