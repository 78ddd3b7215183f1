"""Takes requests for models, within bounds of memory, number and time, and gives their answers."""

import asyncio
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request

from open_geoclip.server.batching import Batcher
from open_geoclip.server.jobs import Job
from open_geoclip.server.metrics import Metrics
from open_geoclip.server.problems import Problem
from open_geoclip.server.runners import Runner
from open_geoclip.server.settings import ServerSettings

__all__ = ["Service"]

_Result = TypeVar("_Result")


class Service:
    """Models by name, and who runs them.

    Args:
        settings: how much is taken.
        runners: of the models; the first is that of requests that name none.
    """

    def __init__(self, settings: ServerSettings, runners: Mapping[str, Runner]) -> None:
        self.metrics = Metrics()
        self._settings = settings
        self._free = settings.memory_mb * 2**20
        self._batchers = {
            name: Batcher(
                name,
                runner,
                queue=settings.queue,
                batch_size=settings.batch_size,
                wait_s=settings.batch_wait_ms / 1000,
                patience_s=1.5 * settings.timeout_s,
                metrics=self.metrics,
            )
            for name, runner in runners.items()
        }

    @property
    def models(self) -> list[str]:
        """Their names."""
        return list(self._batchers)

    @property
    def ready(self) -> bool:
        """Whether all of them can answer now."""
        return all(batcher.runner.ready for batcher in self._batchers.values())

    async def start(self) -> None:
        """Load the models.

        Raises:
            OpenGeoCLIPError: one cannot be loaded.
        """
        for batcher in self._batchers.values():
            await batcher.start()

    async def stop(self) -> None:
        """End the workers."""
        for batcher in self._batchers.values():
            await batcher.stop()

    def named(self, model: str | None) -> str:
        """The name of the model that a request means.

        Raises:
            Problem: 404, there is no such model.
        """
        if model is None:
            return self.models[0]
        if model not in self._batchers:
            raise Problem(404, "model_not_found", f"there is no such model here: {', '.join(self.models)}")
        return model

    @contextmanager
    def held(self, request: Request, most: int) -> Iterator[None]:
        """Memory for a request's body, kept until it is answered.

        Args:
            request: its Content-Length is what is kept; ``most`` where it says none.
            most: bytes that a body may have.

        Raises:
            Problem: 413 the body is too large, 429 there is no room for it.
        """
        told = request.headers.get("content-length", "")
        size = int(told) if told.isascii() and told.isdigit() else most
        if size > most:
            raise Problem(413, "too_large", f"the request is larger than {most / 2**20:.4g} MiB")
        if size > self._free or all(batcher.full for batcher in self._batchers.values()):
            raise Problem(429, "queue_full", "too much is waiting: come again later", {"Retry-After": "2"})
        self._free -= size
        self.metrics.held.inc(size)
        try:
            yield
        finally:
            self._free += size
            self.metrics.held.dec(size)

    async def answer(self, request: Request, model: str, job: Job) -> list[dict[str, Any]]:
        """What a model says.

        Raises:
            Problem: what was asked for cannot be done, takes too long, or nobody waits for it any more.
        """
        most = self._settings.batch_size
        jobs = [job]  # in parts, so that others come in between
        if job.kind == "locate" and not job.options.together and len(job.pictures) > most:
            starts = range(0, len(job.pictures), most)
            jobs = [replace(job, pictures=job.pictures[start : start + most]) for start in starts]
        elif job.kind == "embed" and len(job.inputs) > most:
            starts = range(0, len(job.inputs), most)
            jobs = [replace(job, inputs=job.inputs[start : start + most]) for start in starts]
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await _while_connected(request, self._batchers[model].answer(jobs))
        except TimeoutError as error:
            took = f"it was not done within {self._settings.timeout_s:g} s, and is given up"
            raise Problem(504, "timeout", took) from error


async def _while_connected(request: Request, work: Awaitable[_Result]) -> _Result:
    """Work for a client, dropped when the client is gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Problem(499, "client_gone", "the client did not wait")
        return await task
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
