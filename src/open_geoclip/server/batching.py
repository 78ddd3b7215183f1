"""The queue of one model: bounded, and worked on in batches by one or several workers."""

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from open_geoclip.errors import OpenGeoCLIPError
from open_geoclip.server.jobs import Job, encode_jobs
from open_geoclip.server.monitoring import Metrics
from open_geoclip.server.problems import Problem
from open_geoclip.server.processes import Worker, WorkerDiedError
from open_geoclip.server.settings import ServerSettings

__all__ = ["ModelQueue", "queue_full"]

logger = logging.getLogger(__name__)

_BATCHES_AHEAD = 4  # batches of the image encoder that a worker is given at once


def queue_full() -> Problem:
    """The answer where nothing more may wait."""
    return Problem(429, "queue_full", "too many requests are waiting: try again later", {"Retry-After": "2"})


@dataclass(eq=False)
class _Entry:
    """A job and who waits for it. ``alone``: a worker failed over it and others, so it is tried by itself."""

    job: Job
    future: asyncio.Future[list[Any]]
    alone: bool = False

    def fail(self, problem: Problem) -> None:
        if not self.future.done():
            self.future.set_exception(problem)


class ModelQueue:
    """Jobs of one model, which several workers may have."""

    def __init__(self, name: str, workers: Sequence[Worker], settings: ServerSettings, metrics: Metrics) -> None:
        self._name, self.workers, self._metrics = name, list(workers), metrics
        self._room, self._batch_size = settings.queue, settings.batch_size
        self._wait_s, self._deadline_s = settings.batch_wait_ms / 1000, settings.timeout_s / 3
        self._entries: deque[_Entry] = deque()
        self._arrived = asyncio.Event()
        self._gathering = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        """Whether a worker can answer now."""
        return any(worker.ready for worker in self.workers)

    @property
    def full(self) -> bool:
        """Whether nothing more may wait."""
        return self._room <= 0

    async def start(self) -> None:
        """Start the workers, one after the other: the first one fills the caches on disk.

        Raises:
            OpenGeoCLIPError: the model cannot be loaded.
        """
        for worker in self.workers:
            await worker.start(self._metrics.restarts.labels(self._name).inc)
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._work(worker)) for worker in self.workers]

    async def stop(self) -> None:
        """End the workers; whoever still waits is told."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for entry in self._entries:
            entry.fail(Problem(503, "stopping", "the server is stopping", {"Retry-After": "5"}))
        self._entries.clear()
        for worker in self.workers:
            await worker.stop()

    @contextlib.contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Room for a whole request of so many inputs, or 429."""
        if size > self._room:
            raise queue_full()
        self._room -= size
        self._metrics.waiting.labels(self._name).inc(size)
        try:
            yield
        finally:
            self._room += size
            self._metrics.waiting.labels(self._name).dec(size)

    async def answer(self, job: Job) -> list[Any]:
        """The answers of a job, or the problem with it."""
        entry = _Entry(job, asyncio.get_running_loop().create_future())
        self._entries.append(entry)
        self._arrived.set()
        return await entry.future  # cancelled with whoever waits: what has not begun then is not done

    async def _work(self, worker: Worker) -> None:
        while True:
            async with self._gathering:  # one worker at a time fills its batch
                batch = await self._gather()
            if batch:
                await self._run(worker, batch)

    async def _gather(self) -> list[_Entry]:
        """The next batch: as much as the model handles well at once, of one area, or one job that is tried alone."""
        while not self._entries:
            self._arrived.clear()
            await self._arrived.wait()
        if sum(entry.job.size for entry in self._entries) < self._batch_size:
            await asyncio.sleep(self._wait_s)
        batch: list[_Entry] = []
        size = 0
        while self._entries and size < _BATCHES_AHEAD * self._batch_size:
            entry = self._entries[0]
            if entry.future.done():  # cancelled
                self._entries.popleft()
                continue
            if batch and (entry.alone or batch[-1].alone or entry.job.options.area != batch[-1].job.options.area):
                break
            batch.append(self._entries.popleft())
            size += entry.job.size
        return batch

    async def _run(self, worker: Worker, batch: list[_Entry]) -> None:
        self._metrics.batches.labels(self._name).observe(sum(entry.job.size for entry in batch))
        try:
            content, _ = await worker.run(encode_jobs(entry.job for entry in batch), self._deadline_s)
        except TimeoutError:
            much = f"this took longer than {self._deadline_s:g} s: use simpler areas or fewer inputs"
            self._retry(batch, Problem(422, "too_much_work", much))
        except WorkerDiedError:
            died = "the worker died over this twice, and is replaced"
            self._retry(batch, Problem(503, "worker_died", died, {"Retry-After": "5"}))
        except OpenGeoCLIPError as error:
            logger.error("the model %s cannot be loaded again: %s", json.dumps(self._name), error)
            for entry in batch:
                entry.fail(Problem(503, "no_worker", "the model cannot be loaded again", {"Retry-After": "30"}))
            await asyncio.sleep(1)  # no faster than that, however many requests come
        else:
            for entry, outcome in zip(batch, content, strict=True):
                if outcome["answers"] is None:
                    entry.fail(Problem(outcome["status"], outcome["code"], outcome["message"]))
                elif not entry.future.done():
                    entry.future.set_result(outcome["answers"])

    def _retry(self, batch: list[_Entry], problem: Problem) -> None:
        """Try each job of a batch once more, by itself: only the one that fails again has no answer."""
        for entry in reversed(batch):
            if entry.alone or (len(batch) == 1 and problem.status == 422):
                entry.fail(problem)
            else:
                entry.alone = True
                self._entries.appendleft(entry)
        self._arrived.set()
