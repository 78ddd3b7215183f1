"""``geoclip mcp``: the tools of the Model Context Protocol, over standard input and output."""

import os
from dataclasses import asdict
from pathlib import Path

from open_geoclip.cli._options import MaxPixels, ModelOptions
from open_geoclip.errors import MissingExtraError, SettingsError

__all__ = ["mcp"]


def mcp(
    *,
    folder: list[Path] | None = None,
    options: ModelOptions = ModelOptions(),
    max_images: int = 500,
    max_mb: float = 64,
    max_pixels: MaxPixels = None,
) -> None:
    """Run a server of the Model Context Protocol over standard input and output.

    The tools are locate, verify, text, embed, where and models. The client starts this command; only the protocol is
    printed. Images are read from the allowed folders only, and nothing leaves this machine.

    Args:
        folder: Folder whose images may be read; may be given several times. Default: the current folder.
        max_images: Images per call.
        max_mb: Larger files are refused before they are read.
    """
    if not folder and Path.cwd() == Path(Path.cwd().anchor):
        raise SettingsError("the current folder is the root of the file system: say what may be read, --folder FOLDER")
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")  # no links in messages about arguments
    try:
        from open_geoclip.server.mcp.tools import McpSettings, make_server
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("anyio", "mcp", "mcp_types", "pydantic"):
            raise
        raise MissingExtraError("geoclip mcp", "mcp") from error
    from open_geoclip.images import MAX_PIXELS

    make_server(
        McpSettings(
            folders=tuple(folder or [Path.cwd()]),
            **(asdict(options) | {"model": options.name}),
            max_images=max_images,
            max_bytes=int(max_mb * 1e6),
            max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
        )
    ).run("stdio")
