"""What the routes ask for: images are prepared, jobs are queued, and records made, within bounds of memory and time."""

import asyncio
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from open_geoclip.errors import OpenGeoCLIPError
from open_geoclip.server.batching import ModelQueue, queue_full
from open_geoclip.server.jobs import Job, Message, Options, Pixels, PreparedImage, Upload, image_records
from open_geoclip.server.monitoring import Metrics
from open_geoclip.server.problems import Problem
from open_geoclip.server.processes import Worker, WorkerDiedError
from open_geoclip.server.settings import ServerSettings

__all__ = ["EmbeddingInput", "MemoryHold", "Service"]

_T = TypeVar("_T")

EmbeddingInput = Upload | tuple[float, float] | str
"""An image, a coordinate (lat, lon) in degrees, or a text."""


class MemoryHold:
    """Memory that a request takes while it arrives, waits and is worked on.

    Where there is none left, the incomplete request that has held most for longest is given up for the new one: whoever
    stops sending in the middle of large bodies cannot keep it from others.
    """

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._size = 0
        self._timeout: asyncio.Timeout | None = None
        self._start = time.monotonic()

    @property
    def is_dropped(self) -> bool:
        """Whether the request was given up while it arrived."""
        return self._timeout is not None and self._timeout.when() == 0

    @contextmanager
    def receiving(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """While the next part of the body is awaited; ``timeout`` ends when the request is given up."""
        self._timeout = timeout
        self._service.arriving.add(self)
        try:
            yield
        finally:
            self._service.arriving.discard(self)

    def take(self, size: int) -> None:
        """Take more, or 429."""
        while size > self._service.free_bytes:
            others = self._service.arriving - {self}
            largest = max(others, key=MemoryHold._weight, default=self)
            if largest._weight() <= self._weight():
                raise queue_full()
            largest._drop()
        self._size += size
        self._service.free_bytes -= size
        self._service.metrics.held.inc(size)

    def release(self) -> None:
        """Give all of it back."""
        self._service.arriving.discard(self)
        self.take(-self._size)

    def _weight(self) -> float:
        return self._size * (time.monotonic() - self._start)

    def _drop(self) -> None:
        assert self._timeout is not None
        self._timeout.reschedule(0)
        self.release()


class Service:
    """Models by name, each with its workers, and utility workers for images and files that all models share."""

    def __init__(
        self, settings: ServerSettings, models: Mapping[str, Sequence[Worker]], utilities: Sequence[Worker]
    ) -> None:
        self.metrics = Metrics()
        self.free_bytes = settings.memory_mb * 2**20
        self.arriving: set[MemoryHold] = set()
        self._settings = settings
        self._queues = {name: ModelQueue(name, workers, settings, self.metrics) for name, workers in models.items()}
        self._utilities = list(utilities)
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Message]] = set()

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(self._queues)

    @property
    def ready(self) -> bool:
        """Whether every model can answer now."""
        return any(worker.ready for worker in self._utilities) and all(q.ready for q in self._queues.values())

    async def start(self) -> None:
        """Start all workers; OpenGeoCLIPError if a model cannot be loaded."""
        self._idle = asyncio.Queue()
        for worker in self._utilities:
            await worker.start(self.metrics.restarts.labels("utility").inc)
            self._idle.put_nowait(worker)
        for queue in self._queues.values():
            await queue.start()

    async def stop(self) -> None:
        """End all workers."""
        for queue in self._queues.values():
            await queue.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._utilities:
            await worker.stop()

    def model_name(self, model: str | None) -> str:
        """The name of the model that a request means, or 404."""
        if model is None:
            return self.models[0]
        if model not in self._queues:
            known = ", ".join(self.models)
            raise Problem(404, "model_not_found", f"the model {model[:200]!r} does not exist here; there is: {known}")
        return model

    def info(self, model: str) -> Mapping[str, Any]:
        """About a model; see :attr:`open_geoclip.server.engine.Engine.info`."""
        return self._queues[model].workers[0].info

    @contextmanager
    def hold_memory(self) -> Iterator[MemoryHold]:
        """Memory for a request, taken as its body arrives and kept until it is answered; 429 if nothing may wait."""
        if all(queue.full for queue in self._queues.values()):
            raise queue_full()
        hold = MemoryHold(self)
        try:
            yield hold
        finally:
            hold.release()

    async def locate(
        self, model: str, uploads: Sequence[Upload], options: Options, *, exif: bool = False, thumbnail: bool = False
    ) -> list[dict[str, Any]]:
        """Records of images; see :func:`~open_geoclip.server.jobs.image_records`."""
        queue = self._queues[model]
        slots = self._slots()

        async def part(part_of: Sequence[Upload]) -> list[dict[str, Any]]:
            images = await _gather(self._prepare(model, one, slots, exif=exif, thumbnail=thumbnail) for one in part_of)
            readable = tuple(image.pixels for image in images if image.pixels is not None)
            self._count(model, "unreadable", len(images) - len(readable))
            is_possible = len(readable) == len(images) if options.together else bool(readable)
            answers = await queue.answer(Job("locate", options, readable)) if is_possible else []
            self._count(model, "answered", len(readable) if is_possible else 0)
            names = [upload.name for upload in part_of]
            return image_records(names, images, answers, together=options.together, exif=exif)

        # In parts, so that requests of others come in between, and images are prepared while others are located.
        size = len(uploads) if options.together else self._settings.batch_size
        with queue.reserve(len(uploads)):
            return [record for records in await _gather(map(part, _split(uploads, size))) for record in records]

    async def trip(
        self,
        model: str,
        uploads: Sequence[Upload],
        tracks: Sequence[Upload],
        options: Options,
        settings: Mapping[str, Any],
        *,
        exif: bool = False,
        thumbnail: bool = False,
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Records of the images of a trip, and how clocks were found.

        Args:
            model: the name of the model.
            uploads: the images; one that cannot be read or has no time gets an error.
            tracks: where the photographer was.
            options: of the answers.
            settings: ``use_gps``, ``clock_offset_s`` and ``speed_kmh`` of a :class:`~.schemas.TripForm`.
            exif: include the place in the metadata of each.
            thumbnail: include a small image of each.
        """
        queue, slots = self._queues[model], self._slots()
        extras = {"exif": exif, "thumbnail": thumbnail, "trip": True}
        with queue.reserve(len(uploads)):
            images = list(await _gather(self._prepare(model, one, slots, **extras) for one in uploads))
            for n, image in enumerate(images):
                if image.trip is not None and image.trip["taken"] is None:
                    images[n] = replace(image, pixels=None, error="a photo of a trip needs the time when it was taken")
            readable = [image for image in images if image.pixels is not None]
            self._count(model, "unreadable", len(images) - len(readable))
            answers: list[dict[str, Any]] = []
            found: Mapping[str, Any] = {}
            if readable:
                task = {"task": "anchors", "photos": [one.trip for one in readable], **settings}
                message = (task | {"tracks": [one.name for one in tracks]}, [one.data for one in tracks])
                found, _ = await self._run_utility(message, self._settings.image_timeout_s)
                trip = {"times_s": found["times_s"], "brackets": found["brackets"], "speed_kmh": settings["speed_kmh"]}
                pixels = tuple(image.pixels for image in readable if image.pixels is not None)
                answers = await queue.answer(Job("trip", options, pixels, trip=trip))
        self._count(model, "answered", len(readable))
        names = [upload.name for upload in uploads]
        return image_records(names, images, answers, exif=exif), found.get("notes", [])

    async def explain(self, model: str, upload: Upload, options: Options) -> dict[str, Any]:
        """The explanation of one image; 422 if it cannot be read."""
        queue = self._queues[model]
        with queue.reserve(min(1 + options.grid**2, self._settings.queue)):
            image = await self._prepare(model, upload, self._slots())
            if image.pixels is None:
                raise Problem(422, "invalid_image", f"{upload.name}: {image.error}")
            [found] = await queue.answer(Job("explain", options, (image.pixels,)))
        self._count(model, "answered", 1)
        explained: dict[str, Any] = found
        return explained | {"image": upload.name, "sha256": {"image": str(image.sha256)} | explained["sha256"]}

    async def locate_text(self, model: str, texts: Sequence[str], options: Options) -> list[dict[str, Any]]:
        """One record per text, in order."""
        queue = self._queues[model]
        with queue.reserve(len(texts)):
            answers = await queue.answer(Job("text", options, texts=tuple(texts)))
        self._count(model, "answered", len(answers))
        return answers

    async def embed(self, model: str, inputs: Sequence[EmbeddingInput]) -> list[list[float]]:
        """One embedding of unit length per input, in order; 422 if an image cannot be read."""
        queue = self._queues[model]
        slots = self._slots()

        async def part(part_of: Sequence[EmbeddingInput]) -> list[list[float]]:
            uploads = [one for one in part_of if isinstance(one, Upload)]
            images = await _gather(self._prepare(model, one, slots) for one in uploads)
            pixels: list[Pixels] = []
            for upload, image in zip(uploads, images, strict=True):
                if image.pixels is None:
                    raise Problem(422, "invalid_image", f"{upload.name}: {image.error}")
                pixels.append(image.pixels)
            coordinates = tuple(one for one in part_of if isinstance(one, tuple))
            texts = tuple(one for one in part_of if isinstance(one, str))
            found = await queue.answer(Job("embed", images=tuple(pixels), texts=texts, coordinates=coordinates))
            order = sorted(range(len(part_of)), key=lambda n: (Upload, tuple, str).index(type(part_of[n])))
            embeddings = dict(zip(order, found, strict=True))
            return [embeddings[n] for n in range(len(part_of))]

        with queue.reserve(len(inputs)):
            parts = await _gather(map(part, _split(inputs, self._settings.batch_size)))
        self._count(model, "answered", len(inputs))
        return [embedding for part_of in parts for embedding in part_of]

    async def export(self, body: bytes | bytearray) -> tuple[bytes | bytearray, str, str]:
        """A file of answers (bytes, media type, suffix) from an unchecked body of JSON, an ``ExportRequest``."""
        content, blobs = await self._run_utility(({"task": "export"}, [body]), self._settings.timeout_s / 2)
        return blobs[0], content["media_type"], content["suffix"]

    def _slots(self) -> asyncio.Semaphore:
        """How many utility workers one request may use at a time: one is left to the others."""
        return asyncio.Semaphore(max(1, len(self._utilities) - 1))

    async def _prepare(self, model: str, upload: Upload, slots: asyncio.Semaphore, **extras: bool) -> PreparedImage:
        options = self.info(model)["image_options"] | extras
        message: Message = ({"task": "prepare", "name": upload.name, "options": options}, [upload.data])
        async with slots:
            try:
                content, blobs = await self._run_utility(message, self._settings.image_timeout_s)
            except Problem as problem:
                if problem.code not in ("too_much_work", "worker_died", "too_large"):
                    raise
                return PreparedImage(None, f"cannot be decoded: {problem.message}")
        size = content.pop("pixels")
        return PreparedImage(None if size is None else Pixels(size[0], size[1], blobs[0]), **content)

    async def _run_utility(self, message: Message, timeout_s: float) -> Message:
        worker = await self._idle.get()  # first come, first served

        async def run() -> Message:
            try:
                return await worker.run(message, timeout_s)
            finally:
                self._idle.put_nowait(worker)

        task = asyncio.create_task(run())  # ends by itself when the client is gone
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            content, blobs = await asyncio.shield(task)
        except TimeoutError as error:
            raise Problem(422, "too_much_work", f"this took longer than {timeout_s:g} s") from error
        except WorkerDiedError as error:
            raise Problem(422, "worker_died", "the process that worked on it crashed or ran out of memory") from error
        except OpenGeoCLIPError as error:  # it died before, over another message
            raise Problem(503, "no_worker", "a worker cannot be started again", {"Retry-After": "30"}) from error
        if "problem" in content:
            raise Problem(*content["problem"])
        return content, blobs

    def _count(self, model: str, outcome: str, number: int) -> None:
        self.metrics.inputs.labels(model, outcome).inc(number)


def _split(inputs: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (inputs[start : start + size] for start in range(0, len(inputs), size))


async def _gather(awaitables: Iterable[Awaitable[_T]]) -> list[_T]:
    """Results in order; at the first failure the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in awaitables]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
