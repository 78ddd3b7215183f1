"""The process in which a model runs: jobs come in on stdin, answers go out on stdout.

A picture that brings down a decoder brings down this process and no other. It ends when its stdin does, so it never
outlives the server.
"""

import json
import os
import sys
from typing import Any, BinaryIO

from open_geoclip.server.logs import log_as_json
from open_geoclip.server.wire import HEAD, jobs_from, packed_message, parts_of

__all__ = ["main"]


def main() -> None:
    """Load the model that the first message names, then answer until stdin ends."""
    # What a library prints must not meet the answers: stdout is kept aside, and is stderr from now on.
    with os.fdopen(os.dup(1), "wb") as out, os.fdopen(os.dup(0), "rb") as into:
        os.dup2(2, 1)
        log_as_json()
        first = _read(into)
        if first is None:
            return
        from open_geoclip.errors import OpenGeoCLIPError
        from open_geoclip.server.engine import Engine

        try:
            engine = Engine.load(**json.loads(first[0]))
        except OpenGeoCLIPError as error:
            _write(out, {"error": str(error)})
            return
        _write(out, {"ready": True, "pid": os.getpid()})
        while (message := _read(into)) is not None:
            _write(out, [outcome.to_dict() for outcome in engine.run_all(jobs_from(*message))])


def _read(file: BinaryIO) -> tuple[bytes, bytes] | None:
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    text, blobs = parts_of(head)
    return file.read(text), file.read(blobs)


def _write(file: BinaryIO, content: Any) -> None:
    for part in packed_message(content):
        file.write(part)
    file.flush()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
