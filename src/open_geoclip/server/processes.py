"""Workers: a handler of messages in a thread of this process, or in a child process that is replaced when it dies.

A child reads messages from stdin and writes replies to stdout: JSON and bytes, nothing is unpickled. It ends when its
stdin is closed, so that it never outlives the server.
"""

import asyncio
import contextlib
import json
import logging
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Protocol, runtime_checkable

from open_geoclip.errors import OpenGeoCLIPError
from open_geoclip.server.jobs import Message

__all__ = ["Handler", "ProcessWorker", "ThreadWorker", "Worker", "WorkerDiedError", "serve_messages"]

logger = logging.getLogger(__name__)

Handler = Callable[[Message], Message]
"""Answers a message. It never raises for what a client may have sent."""

_HEADER = struct.Struct("<QI")  # bytes of JSON, number of blobs; the size of each blob follows
_PIPE_BYTES = 2**20  # written to or read from a pipe at once: the event loop copies what is still to come
_PING: Message = (None, [])
_PING_INTERVAL_S, _PING_TIMEOUT_S = 5.0, 5.0
_STUCK_S = 10.0  # a worker that is busy for longer does not count as ready
_MAX_BACKOFF_S = 30.0


class WorkerDiedError(OpenGeoCLIPError):
    """A worker ended while it had work; it is being replaced."""


@runtime_checkable
class Worker(Protocol):
    """Answers messages, one at a time."""

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What it says about itself once it is started."""

    async def start(self, on_restart: Callable[[], None]) -> None:
        """Load what it needs; ``on_restart`` is called whenever it is replaced later."""

    async def run(self, message: Message, timeout_s: float) -> Message:
        """The reply to a message, or TimeoutError."""

    async def stop(self) -> None:
        """End it."""


class ThreadWorker:
    """A handler in a thread of this process, which a time-out does not interrupt: for tests and other applications."""

    ready = True

    def __init__(self, handler: Handler, info: Mapping[str, Any] | None = None) -> None:
        self.info: Mapping[str, Any] = info or {}
        self._handler = handler
        self._thread = ThreadPoolExecutor(1, "worker")

    async def start(self, on_restart: Callable[[], None]) -> None:
        """Do nothing: it is loaded already."""

    async def run(self, message: Message, timeout_s: float) -> Message:
        """The reply to a message, or TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._handler, message)

    async def stop(self) -> None:
        """End the thread after its current message."""
        self._thread.shutdown(wait=False)


class ProcessWorker:
    """A child process that answers messages.

    It is killed and replaced when it exceeds a deadline or does not answer a ping, and replaced at once when it dies,
    whether it has work or not. ``settings`` is the first message to it; see :mod:`open_geoclip.server.worker`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.info: Mapping[str, Any] = {}
        self._settings = dict(settings)
        self._process: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._busy_since: float | None = None
        self._on_restart: Callable[[], None] = lambda: None

    @property
    def ready(self) -> bool:
        """Whether the child is loaded, lives, and is not stuck."""
        if self._starting is None or not self._starting.done() or self._starting.cancelled():
            return False
        lives = self._starting.exception() is None and self._process is not None and self._process.returncode is None
        return lives and (self._busy_since is None or time.monotonic() - self._busy_since < _STUCK_S)

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return None if self._process is None else self._process.pid

    async def start(self, on_restart: Callable[[], None] = lambda: None) -> None:
        """Start the child and wait until it is loaded; ``on_restart`` is called whenever it is replaced afterwards.

        Raises:
            OpenGeoCLIPError: it cannot be loaded; the message is the child's.
        """
        if self._supervisor is not None:
            return
        self._on_restart = on_restart
        self._starting = asyncio.create_task(self._spawn())
        try:
            await self._starting
        except BaseException:
            await self.stop()
            raise
        self._supervisor = asyncio.create_task(self._supervise())

    async def run(self, message: Message, timeout_s: float) -> Message:
        """The reply to a message; while the child is being replaced, this waits for the new one.

        Raises:
            TimeoutError: it took longer than ``timeout_s``; the child is killed and replaced.
            WorkerDiedError: the child died over this message; it is replaced.
            OpenGeoCLIPError: the child died before and cannot be loaded again.
        """
        async with self._turn:
            assert self._starting is not None, "start() comes first"
            await asyncio.shield(self._starting)
            process, start = self._process, time.monotonic()
            self._busy_since = start
            assert process is not None
            try:
                async with asyncio.timeout(timeout_s):
                    return await _exchange(process, message)
            except BaseException as error:  # whatever it would still answer belongs to nobody
                what = "ping" if message is _PING else "message"
                self._replace(process, f"{type(error).__name__} at a {what} after {time.monotonic() - start:.1f} s")
                raise
            finally:
                self._busy_since = None

    async def stop(self) -> None:
        """Kill the child."""
        for task in (self._supervisor, self._starting):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OpenGeoCLIPError):
                    await task
        self._supervisor = None
        await self._kill()

    async def _supervise(self) -> None:
        backoff_s = 0.0
        while True:
            assert self._starting is not None
            try:
                await asyncio.shield(self._starting)
                backoff_s = 0.0
            except OpenGeoCLIPError as error:
                logger.error("a worker cannot be replaced: %s", error)
                backoff_s = min(_MAX_BACKOFF_S, 2 * backoff_s + 1)
                await asyncio.sleep(backoff_s)
                self._starting = asyncio.create_task(self._spawn())
                continue
            process = self._process
            assert process is not None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_INTERVAL_S):
                    await process.wait()
            if process.returncode is not None:
                self._replace(process, "it ended")
            elif not self._turn.locked():  # a busy worker has a deadline already
                with contextlib.suppress(TimeoutError, OpenGeoCLIPError):
                    await self.run(_PING, _PING_TIMEOUT_S)

    def _replace(self, process: asyncio.subprocess.Process, why: str) -> None:
        """Begin to replace a child, unless that has begun."""
        assert self._starting is not None
        if process is self._process and self._starting.done():
            self._on_restart()
            logger.warning("a %s worker is replaced: %s", self._settings["role"], why)
            self._starting = asyncio.create_task(self._spawn())

    async def _spawn(self) -> None:
        await self._kill()
        # A session of its own: Ctrl-C is for the server, which then finishes what it accepted. Threads that wait for
        # each other do so without keeping a core busy, which the server and its clients need.
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "open_geoclip.server.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            )
        except OSError as error:  # no more processes or memory: tried again later
            raise OpenGeoCLIPError(f"a worker cannot be started: {error.strerror or error}") from error
        reply, _ = await _exchange(self._process, (self._settings, []))
        if "error" in reply:
            raise OpenGeoCLIPError(reply["error"])
        self.info = reply

    async def _kill(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.stdin is not None:
            process.stdin.close()


async def _exchange(process: asyncio.subprocess.Process, message: Message) -> Message:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for part in _pack(message):
            for start in range(0, len(part), _PIPE_BYTES):
                process.stdin.write(memoryview(part)[start : start + _PIPE_BYTES])
                await process.stdin.drain()
        size, count = _HEADER.unpack(await process.stdout.readexactly(_HEADER.size))
        sizes = struct.unpack(f"<{count}Q", await process.stdout.readexactly(8 * count))
        content = json.loads(await process.stdout.readexactly(size))
        return content, [await _read_blob(process.stdout, size) for size in sizes]
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        raise WorkerDiedError("a worker has died") from error


async def _read_blob(reader: asyncio.StreamReader, size: int) -> bytearray:
    blob = bytearray()
    while len(blob) < size:
        blob += await reader.readexactly(min(_PIPE_BYTES, size - len(blob)))
    return blob


def _pack(message: Message) -> list[bytes | bytearray]:
    content, blobs = message
    text = json.dumps(content, allow_nan=False).encode()
    return [_HEADER.pack(len(text), len(blobs)), struct.pack(f"<{len(blobs)}Q", *map(len, blobs)), text, *blobs]


def _read(file: BinaryIO) -> Message | None:
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    size, count = _HEADER.unpack(header)
    sizes = struct.unpack(f"<{count}Q", file.read(8 * count))
    return json.loads(file.read(size)), [file.read(size) for size in sizes]


def serve_messages(load: Callable[[dict[str, Any]], tuple[Handler, dict[str, Any]]]) -> None:
    """Be a child: make a handler, and information about it, of the first message; answer others until stdin ends."""
    # What a library prints must not meet the replies: stdout is kept aside, and is stderr from now on. A reply that
    # nobody reads any more is the end too.
    with (
        contextlib.suppress(BrokenPipeError),
        os.fdopen(os.dup(1), "wb") as output,
        os.fdopen(os.dup(0), "rb") as source,
    ):
        os.dup2(2, 1)

        def write(message: Message) -> None:
            output.writelines(_pack(message))
            output.flush()

        first = _read(source)
        if first is None:
            return
        try:
            handler, info = load(first[0])
        except OpenGeoCLIPError as error:
            write(({"error": str(error)}, []))
            return
        write((info, []))
        while (message := _read(source)) is not None:
            write(_PING if message[0] is None else handler(message))
