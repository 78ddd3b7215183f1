"""The child processes of the server: ``python -m open_geoclip.server.worker``.

Two kinds, so that files from strangers are never opened where a model is: a ``model`` process holds a model and sees
pixels, texts and areas; a ``utility`` process decodes image files, reads their metadata and writes answers as files,
within a memory bound. A file that crashes or stalls a decoder costs a small process that starts in half a second.
"""

import resource
from typing import Any

from open_geoclip.server.monitoring import log_as_json
from open_geoclip.server.processes import Handler, serve_messages

__all__ = ["main"]


def _load(settings: dict[str, Any]) -> tuple[Handler, dict[str, Any]]:
    if settings.pop("role") == "utility":
        memory = settings["memory_mb"] * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        from open_geoclip.server.utility import handle

        return handle, {}
    from open_geoclip.server.engine import Engine

    engine = Engine.load(**settings)
    return engine.handle, engine.info


def main() -> None:
    """Answer messages until stdin ends."""
    log_as_json()
    serve_messages(_load)


if __name__ == "__main__":
    main()
