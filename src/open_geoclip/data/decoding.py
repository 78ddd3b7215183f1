"""Pictures decoded ahead, by several workers, in order and in bounded memory."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from PIL import Image

from open_geoclip.data.photos import Entry, Fault, FaultLog, IndexedPhotos, OnFault, Photo, PhotoSource
from open_geoclip.errors import ImageError, SettingsError
from open_geoclip.images import load_image

__all__ = ["decoded"]

T = TypeVar("T")
_AHEAD = 4  # pictures a worker that are decoded or wait to be taken


def decoded(
    source: PhotoSource,
    transform: Callable[[Image.Image, str], T],
    *,
    workers: int = 2,
    processes: bool = False,
    on_fault: OnFault | None = None,
) -> Iterator[tuple[Photo, T]]:
    """Decode and transform the photos of a source, in its order.

    Pillow lets threads run while it decodes and resizes, so threads are enough for most; processes are for
    transforms that compute in Python, and cost the sending of each result.

    Args:
        source: the photos.
        transform: makes of an upright RGB picture and its key what is wanted; with ``processes`` it is a function of a
            module, not a lambda.
        workers: how many; 0 does the work in the caller.
        processes: use processes instead of threads.
        on_fault: called with each entry that could not be used; the log tells them when not given.

    Yields:
        The photo, without its bytes, and what the transform made.

    Raises:
        SettingsError: fewer than 0 workers.
    """
    if workers < 0:
        raise SettingsError(f"workers: 0 or more, not {workers}")
    log = FaultLog(source.name)
    report = log if on_fault is None else on_fault
    try:
        for result in _results(source, transform, workers, processes):
            if isinstance(result, Fault):
                report(result)
            else:
                yield result
    finally:
        log.close()


def _results(
    source: PhotoSource, transform: Callable[[Image.Image, str], T], workers: int, processes: bool
) -> Iterator[Fault | tuple[Photo, T]]:
    # Where any entry can be had at any time, finding it is the workers' task too: EXIF is read, views rendered there.
    if isinstance(source, IndexedPhotos):
        work: Callable[..., Fault | tuple[Photo, T]] = partial(_row_done, source, transform)
        items: Iterator[Entry] | Iterator[int] = iter(range(len(source)))
    else:
        work, items = partial(_done, transform), source.entries()
    if workers == 0:
        yield from map(work, items)
        return
    pool: Executor
    if processes:
        # Forking a process that runs threads, as torch does, can leave a lock held for ever.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_keep, initargs=(work,))
        work = _kept
    else:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Fault | tuple[Photo, T]]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: list[Callable[..., Any]] = []  # of this process, sent once: a table of millions of rows is not sent a photo


def _keep(work: Callable[..., Any]) -> None:
    _work.append(work)


def _kept(item: object) -> Any:
    return _work[-1](item)


def _row_done(source: IndexedPhotos, transform: Callable[[Image.Image, str], T], index: int) -> Fault | tuple[Photo, T]:
    return _done(transform, source[index])


def _done(transform: Callable[[Image.Image, str], T], entry: Entry) -> Fault | tuple[Photo, T]:
    if isinstance(entry, Fault):
        return entry
    try:
        picture = load_image(entry.image, name=entry.key)
    except ImageError as error:
        return Fault(entry.key, "missing" if error.reason == "there is no such file" else "broken", error.reason)
    light = entry if not isinstance(entry.image, bytes) else replace(entry, image=b"")
    return light, transform(picture, entry.key)
