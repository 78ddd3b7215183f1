"""``geoclip serve``: the HTTP API and the page."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from open_geoclip.cli._options import Backbone, Dtype, Engine, MergeTokens
from open_geoclip.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.server.settings import ServerSettings

__all__ = ["serve"]


def serve(
    *,
    model: list[str] | None = None,
    index: list[Path] | None = None,
    backbone: Backbone = None,
    engine: Engine = "auto",
    dtype: Dtype = "auto",
    merge_tokens: MergeTokens = 0,
    host: str | None = None,
    port: int | None = None,
    token_file: Path | None = None,
    no_token: Annotated[bool | None, Parameter(negative="")] = None,
    allowed_hosts: Annotated[list[str] | None, Parameter(name="--allowed-host")] = None,
    cors_origins: Annotated[list[str] | None, Parameter(name="--cors-origin")] = None,
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

    The options from --host on can also be set in the environment, such as OPEN_GEOCLIP_SERVE_PORT; the option has
    precedence. Tokens are never options, which other users of the machine could read: write them into a file, or into
    the variable OPEN_GEOCLIP_SERVE_TOKENS.

    Args:
        model: Models to serve, the first for requests that name none: earth, geoclip, hub:org/repo@revision or
            dir:/folder; default: OPEN_GEOCLIP_MODEL, else geoclip where it has been pulled, else earth.
        index: Folder of geoclip index build, searched by the first model for photos that look alike; can be given
            several times.
        host: Address to listen on; default: 127.0.0.1. Others need a token or --no-token.
        port: Port to listen on; default: 8000.
        token_file: File of tokens, one per line; clients have to send one of them.
        no_token: Allow requests without a token from other machines too.
        allowed_hosts: Name that clients may use for this server, besides localhost and the names of this machine.
        cors_origins: Origin of a page of another server that may use the API, such as https://example.org.
        tile_url: Raster tiles (imagery or streets) for the page's map, with {z}, {x}, {y} and optionally {s}.
        tile_attribution: Attribution that the licence of the tiles requires.
        workers: Processes per model, each with a copy of it; default: 1.
        max_file_mb: Largest image file.
        max_request_mb: Largest request.
        max_pixels: Larger images are refused before they are decoded (JPEGs may have four times as many).
        max_images: Images per request.
        queue: Images and texts that may wait; more are refused (429).
        memory_mb: Memory for all requests together.
        batch_size: Images that the model processes at once.
        batch_wait_ms: How long an image waits for others to fill a batch.
        timeout_s: A request that takes longer fails (504).
        image_timeout_s: An image that takes longer to decode has an error.
        read_timeout_s: Longest pause of a client while it sends a request.
    """
    options = {name: value for name, value in locals().items() if value is not None}
    indexes = [str(folder) for folder in options.pop("index", ())]  # opened by the worker: this process stays small
    load = {name: options.pop(name, None) for name in ("model", "backbone", "engine", "dtype", "merge_tokens")}
    try:
        from pydantic import ValidationError

        from open_geoclip.server.settings import ServerSettings
    except ImportError as error:
        raise MissingExtraError("geoclip serve", "server") from error

    try:
        settings = ServerSettings(**options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        parts = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise SettingsError(": ".join(part for part in ("serve", *parts) if part)) from error
    from open_geoclip.weights.folders import default_model

    names = load.pop("model") or [default_model()]
    models: dict[str, dict[str, Any]] = {name: dict(load) for name in names}
    if indexes:
        models[names[0]]["index"] = indexes
    if "earth" in models:
        models["earth"] |= {"backbone": None, "merge_tokens": 0}  # it is part of the model, and no CLIP
    asyncio.run(_serve(settings, models))


async def _serve(settings: "ServerSettings", models: dict[str, dict[str, Any]]) -> None:
    from open_geoclip.server.app import bind_sockets, create_app, create_server, model_workers, utility_workers
    from open_geoclip.server.monitoring import log_as_json

    log_as_json()
    sockets = await bind_sockets(settings)  # before models are loaded, which takes seconds
    workers = {name: model_workers(settings, name, **load) for name, load in models.items()}
    app = create_app(settings, workers, utilities=utility_workers(settings))
    server = create_server(app, settings)
    try:
        await app.state.service.start()  # before connections are accepted: an error of it is the command's own
        print(f"geoclip: http://{settings.host}:{sockets[0].getsockname()[1]}", file=sys.stderr)
        await server.serve(sockets)
    finally:
        await app.state.service.stop()
