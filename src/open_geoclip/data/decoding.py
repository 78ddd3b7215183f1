"""Pictures decoded ahead, by several workers, in order and in bounded memory."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from PIL import Image

from open_geoclip.data.photos import Entry, Fault, FaultLog, IndexedPhotos, OnFault, Photo, PhotoSource
from open_geoclip.errors import ImageError, SettingsError
from open_geoclip.images import load_image

__all__ = ["decoded", "fault_of", "mapped"]

T = TypeVar("T")
_AHEAD = 4  # pictures a worker that are done or wait to be


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
        The photo, its image emptied if it was bytes, and what the transform made.

    Raises:
        SettingsError: fewer than 0 workers.
    """
    log = FaultLog(source.name)
    report = log if on_fault is None else on_fault
    try:
        for result in mapped(source, partial(_decoded, transform), workers=workers, processes=processes):
            if isinstance(result, Fault):
                report(result)
            else:
                yield result
    finally:
        log.close()


def mapped(
    source: PhotoSource,
    work: Callable[[Photo], T],
    *,
    workers: int = 2,
    processes: bool = False,
    start: int = 0,
) -> Iterator[Fault | tuple[Photo, T]]:
    """Do some work on each photo of a source, ahead of the caller, and give the results in order.

    Args:
        source: the photos.
        work: is called in a worker; an `ImageError` that it raises becomes a fault.
        workers: how many; 0 does the work in the caller.
        processes: use processes instead of threads.
        start: the first entry, for taking up work again.

    Yields:
        One result an entry: the fault, or the photo and what the work made of it.

    Raises:
        SettingsError: fewer than 0 workers.
    """
    if workers < 0:
        raise SettingsError(f"workers: 0 or more, not {workers}")
    # Where any entry can be had at any time, finding it is the workers' task too: EXIF is read, views rendered there.
    if isinstance(source, IndexedPhotos):
        task: Callable[..., Any] = partial(_row_done, source, work)
        items: Iterator[Any] = iter(range(start, len(source)))
    else:
        task, items = partial(_done, work), islice(source.entries(), start, None)
    if workers == 0:
        yield from map(task, items)
        return
    pool: Executor
    if processes:
        # Forking a process that runs threads, as torch does, can leave a lock held for ever.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_keep, initargs=(task,))
        task = _kept
    else:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(task, item))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_task: list[Callable[..., Any]] = []  # of this process, sent once: a table of millions of rows is not sent a photo


def _keep(task: Callable[..., Any]) -> None:
    _task.append(task)


def _kept(item: Any) -> Any:
    return _task[-1](item)


def _row_done(source: IndexedPhotos, work: Callable[[Photo], T], index: int) -> Fault | tuple[Photo, T]:
    return _done(work, source[index])


def _done(work: Callable[[Photo], T], entry: Entry) -> Fault | tuple[Photo, T]:
    if isinstance(entry, Fault):
        return entry
    try:
        result = work(entry)
    except ImageError as error:
        return fault_of(entry.key, error)
    return (replace(entry, image=b"") if isinstance(entry.image, bytes) else entry), result


def fault_of(key: str, error: ImageError) -> Fault:
    """What a picture that cannot be read is called."""
    return Fault(key, "missing" if error.reason == "there is no such file" else "broken", error.reason)


def _decoded(transform: Callable[[Image.Image, str], T], photo: Photo) -> T:
    return transform(load_image(photo.image, name=photo.key), photo.key)
