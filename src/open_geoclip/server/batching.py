"""Jobs of one model: a bounded queue, and batches of what waits in it."""

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

from open_geoclip.errors import OpenGeoCLIPError
from open_geoclip.server.jobs import Job, Outcome
from open_geoclip.server.metrics import Metrics
from open_geoclip.server.problems import Problem
from open_geoclip.server.runners import Runner, WorkerDiedError

__all__ = ["Batcher"]

logger = logging.getLogger(__name__)

_AHEAD = 4  # batches of the image tower that a worker is given at once: it decodes one while it sees another
_DIED = "the model's worker died over this twice, and is replaced"


@dataclass(eq=False)
class _Waiting:
    """A job and whom its answer is for. ``alone``: a worker has died over it and others, so it is tried by itself."""

    job: Job
    future: asyncio.Future[list[dict[str, Any]]]
    alone: bool = False


class Batcher:
    """The queue of one model.

    Args:
        name: of the model.
        runner: runs batches.
        queue: pictures and texts that may wait or be worked on.
        batch_size: pictures the model sees at once.
        wait_s: how long a job waits for others.
        patience_s: a batch that takes longer is given up, and its worker replaced.
        metrics: where it counts.
    """

    def __init__(
        self,
        name: str,
        runner: Runner,
        *,
        queue: int,
        batch_size: int,
        wait_s: float,
        patience_s: float,
        metrics: Metrics,
    ) -> None:
        self.runner = runner
        self._name = name
        self._room, self._most = queue, _AHEAD * batch_size
        self._batch_size, self._wait_s, self._patience_s = batch_size, wait_s, patience_s
        self._metrics = metrics
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether nothing more may wait."""
        return self._room <= 0

    async def start(self) -> None:
        """Make the runner ready and begin.

        Raises:
            OpenGeoCLIPError: the model cannot be loaded.
        """
        await self.runner.start()
        if self._task is None:
            self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End; whoever still waits is told."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        for waiting in self._queue:
            _fail(waiting, Problem(503, "stopping", "the server is stopping", {"Retry-After": "5"}))
        self._queue.clear()
        await self.runner.stop()

    async def answer(self, jobs: list[Job]) -> list[dict[str, Any]]:
        """The answers of a request's jobs, in order. All of them are taken, or none.

        Raises:
            Problem: the queue is full, or what was asked for cannot be done.
        """
        size = sum(job.size for job in jobs)
        if size > self._room:
            raise Problem(429, "queue_full", "too much is waiting: come again later", {"Retry-After": "2"})
        self._room -= size
        self._metrics.waiting.labels(self._name).inc(size)
        loop = asyncio.get_running_loop()
        mine = [_Waiting(job, loop.create_future()) for job in jobs]
        self._queue.extend(mine)
        self._arrived.set()
        try:
            return [one for waiting in mine for one in await waiting.future]
        finally:  # also when the client is gone or the time is over: what has not begun is not done
            for waiting in mine:
                waiting.future.cancel()
                if waiting.future.done() and not waiting.future.cancelled():
                    waiting.future.exception()  # seen: one problem of a request is told, the others are the same
            self._room += size
            self._metrics.waiting.labels(self._name).dec(size)

    async def _work(self) -> None:
        while True:
            batch = await self._gathered()
            if batch:
                await self._run(batch)

    async def _gathered(self) -> list[_Waiting]:
        """What is worked on next: as much as the model sees well at once, or one job that is tried alone."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        if sum(waiting.job.size for waiting in self._queue) < self._batch_size:
            await asyncio.sleep(self._wait_s)
        batch: list[_Waiting] = []
        size = 0
        while self._queue and size < self._most:
            if self._queue[0].future.done():  # cancelled
                self._queue.popleft()
                continue
            if batch and (self._queue[0].alone or batch[-1].alone):
                break
            batch.append(self._queue.popleft())
            size += batch[-1].job.size
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        self._metrics.batches.labels(self._name).observe(sum(waiting.job.size for waiting in batch))
        try:
            async with asyncio.timeout(self._patience_s):
                outcomes = await self.runner.run([waiting.job for waiting in batch])
        except WorkerDiedError:
            self._metrics.restarts.labels(self._name).inc()
            self._again(batch)
            return
        except TimeoutError:
            self._metrics.restarts.labels(self._name).inc()
            for waiting in batch:
                _fail(waiting, Problem(504, "timeout", "the model took too long"))
            return
        except OpenGeoCLIPError as error:  # the worker that was to replace a dead one cannot load the model
            logger.error("a model's worker cannot be replaced: %s", error)
            for waiting in batch:
                _fail(waiting, Problem(503, "no_worker", "the model cannot be loaded again", {"Retry-After": "30"}))
            await asyncio.sleep(1)  # no faster than that, however many ask
            return
        for waiting, outcome in zip(batch, outcomes, strict=True):
            self._settle(waiting, outcome)

    def _again(self, batch: list[_Waiting]) -> None:
        """One of these brought a worker down, perhaps: each is tried once more, by itself."""
        for waiting in reversed(batch):
            if waiting.alone:
                _fail(waiting, Problem(503, "worker_died", _DIED, {"Retry-After": "5"}))
            else:
                waiting.alone = True
                self._queue.appendleft(waiting)

    def _settle(self, waiting: _Waiting, outcome: Outcome) -> None:
        if outcome.answers is None:
            _fail(waiting, Problem(outcome.status, outcome.code, outcome.message))
            return
        bad = sum("error" in answer for answer in outcome.answers)
        self._metrics.pictures.labels(self._name, "unreadable").inc(bad)
        self._metrics.pictures.labels(self._name, "answered").inc(len(outcome.answers) - bad)
        if not waiting.future.done():
            waiting.future.set_result(outcome.answers)


def _fail(waiting: _Waiting, problem: Problem) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(problem)
