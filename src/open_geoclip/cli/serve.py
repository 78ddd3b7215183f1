"""``geoclip serve``: the HTTP API and the page."""

import sys

__all__ = ["serve"]


def serve(*, model: list[str] | None = None, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Answer over HTTP, and show a page for people.

    Args:
        model: Models to serve, the first for requests that name none: earth, geoclip, hub:org/repo@revision or
            dir:/folder.
        host: The address to listen on.
        port: The port to listen on.
    """
    import uvicorn

    from open_geoclip.search.locator import Locator
    from open_geoclip.server.app import create_app
    from open_geoclip.server.settings import ServerSettings

    settings = ServerSettings(host=host, port=port)
    locators = {
        name: Locator.from_pretrained(name, max_pixels=settings.max_pixels, batch_size=settings.batch_size)
        for name in model or ["earth"]
    }
    print(f"geoclip: http://{host}:{port}", file=sys.stderr)
    uvicorn.run(create_app(settings, locators), host=host, port=port, access_log=False, server_header=False)
