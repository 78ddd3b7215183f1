"""Who runs a model: a thread of this process, or a process of its own that is replaced when it dies."""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from open_geoclip.errors import OpenGeoCLIPError
from open_geoclip.server.jobs import Job, Outcome
from open_geoclip.server.wire import HEAD, packed_jobs, packed_message, parts_of

if TYPE_CHECKING:
    from open_geoclip.server.engine import Engine

__all__ = ["ProcessRunner", "Runner", "ThreadRunner", "WorkerDiedError"]

logger = logging.getLogger(__name__)


class WorkerDiedError(OpenGeoCLIPError):
    """A worker ended while it had work; another one takes its place."""


@runtime_checkable
class Runner(Protocol):
    """Runs the jobs of one model, a list of them at a time."""

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""
        ...

    async def start(self) -> None:
        """Make it ready."""
        ...

    async def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What became of each job, in order."""
        ...

    async def stop(self) -> None:
        """End it."""
        ...


class ThreadRunner:
    """A model in a thread of this process: for tests, and inside other applications.

    Args:
        engine: what answers.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, "model")

    @property
    def ready(self) -> bool:
        """Always."""
        return True

    async def start(self) -> None:
        """Nothing is to be done."""

    async def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What became of each job, in order."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.run_all, list(jobs))

    async def stop(self) -> None:
        """End the thread when it has done its work."""
        self._thread.shutdown(wait=False)


class ProcessRunner:
    """A model in a process of its own.

    Args:
        model: what :meth:`open_geoclip.server.engine.Engine.load` takes, as JSON-ready values.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._model = dict(model)
        self._process: asyncio.subprocess.Process | None = None
        self._ready = False
        self.restarts = 0

    @property
    def ready(self) -> bool:
        """Whether its process has loaded the model and lives."""
        return self._ready and self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Of its process."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start a process and wait until its model is loaded.

        Raises:
            OpenGeoCLIPError: the model cannot be loaded; what the worker said.
            WorkerDiedError: it ended before it was ready.
        """
        if self.ready:
            return
        # A session of its own: Ctrl-C is for the server, which then finishes what it took. Threads that wait for each
        # other do so without keeping a core busy, which the server and its clients need.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "open_geoclip.server.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
        try:
            answer = await self._exchange(packed_message(self._model))
        except BaseException:
            await self.stop()
            raise
        if "error" in answer:
            await self.stop()
            raise OpenGeoCLIPError(answer["error"])
        self._ready = True

    async def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What became of each job, in order; a worker that has died is replaced first.

        Raises:
            WorkerDiedError: it died over these jobs.
        """
        if not self.ready:
            self.restarts += 1
            logger.warning("the worker of a model has died and is replaced")
            await self.stop()
            await self.start()
        try:
            found = await self._exchange(packed_jobs(jobs))
        except BaseException:  # died, or was given up while it worked: what it would say belongs to nobody
            await self.stop()
            raise
        return [Outcome(**one) for one in found]

    async def stop(self) -> None:
        """End its process."""
        self._ready = False
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def _exchange(self, parts: Sequence[bytes]) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.writelines(parts)
            await process.stdin.drain()
            size, _ = parts_of(await process.stdout.readexactly(HEAD.size))
            return json.loads(await process.stdout.readexactly(size))
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise WorkerDiedError("the worker of a model has died") from error
