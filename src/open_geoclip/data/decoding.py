"""Decoding images ahead of the caller, on several workers, in order and in bounded memory."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from PIL import Image

from open_geoclip.data.photos import Entry, IndexedPhotos, OnSkip, Photo, PhotoSource, SkipLog, SkippedRecord
from open_geoclip.errors import ImageError, SettingsError
from open_geoclip.images import load_image

__all__ = ["apply_to_entry", "available_cores", "decode_photos", "map_ahead", "map_photos", "skipped_record"]

Item = TypeVar("Item")
T = TypeVar("T")
_AHEAD = 4  # images per worker that are done or waiting


def available_cores() -> int:
    """Return how many processor cores this process may use; under ``torchrun``, its share of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def decode_photos(
    source: PhotoSource,
    transform: Callable[[Image.Image, str], T],
    *,
    workers: int | None = None,
    processes: bool = False,
    on_skip: OnSkip | None = None,
) -> Generator[tuple[Photo, T], None, None]:
    """Decode and transform the photos of a source, in its order.

    Pillow releases the GIL, so threads are usually enough; processes are for transforms that compute in Python.

    Args:
        source: the photos.
        transform: called with an upright RGB image and its key; with ``processes`` a function of a module.
        workers: their number; 0 does the work in the caller; default: one per processor core.
        processes: use processes instead of threads.
        on_skip: called with each entry that cannot be used; default: they are logged.

    Yields:
        The photo, its image emptied if it was bytes, and the transform's result.

    Raises:
        SettingsError: fewer than 0 workers.
    """
    log = SkipLog(source.name)
    report = log if on_skip is None else on_skip
    try:
        for result in map_photos(source, partial(_load_and_transform, transform), workers=workers, processes=processes):
            if isinstance(result, SkippedRecord):
                report(result)
            else:
                yield result
    finally:
        log.close()


def map_photos(
    source: PhotoSource,
    work: Callable[[Photo], T],
    *,
    workers: int | None = None,
    processes: bool = False,
    start: int = 0,
) -> Generator[SkippedRecord | tuple[Photo, T], None, None]:
    """Call a function with each photo of a source, ahead of the caller, and yield the results in order.

    Args:
        source: the photos.
        work: called in a worker; an `ImageError` that it raises becomes a skipped record.
        workers: their number; 0 does the work in the caller; default: one per processor core.
        processes: use processes instead of threads.
        start: the first entry, to resume.

    Yields:
        One result per entry: the skipped record, or the photo and the function's result. ``close`` stops the workers.

    Raises:
        SettingsError: fewer than 0 workers.
    """
    # Workers also look up the entries of an indexed source: EXIF is read and views are rendered there.
    if isinstance(source, IndexedPhotos):
        rows = range(start, len(source))
        yield from map_ahead(partial(_work_on_row, source, work), rows, workers=workers, processes=processes)
    else:
        entries = islice(source.entries(), start, None)
        yield from map_ahead(partial(apply_to_entry, work), entries, workers=workers, processes=processes)


def map_ahead(
    work: Callable[[Item], T],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    processes: bool = False,
    ahead: int = 0,
) -> Generator[T, None, None]:
    """Call a function with each item, ahead of the caller, and yield the results in order.

    Args:
        work: called in a worker.
        items: are read in the caller's thread, as many as are ahead.
        workers: their number; 0 does the work in the caller; default: one per processor core.
        processes: use processes instead of threads.
        ahead: least number of items that are done or waiting; at least four per worker are.

    Yields:
        One result per item; an error of ``work`` is raised in its place. ``close`` stops the workers.

    Raises:
        SettingsError: fewer than 0 workers.
    """
    workers = available_cores() if workers is None else workers
    if workers < 0:
        raise SettingsError(f"workers: 0 or more, not {workers}")
    if workers == 0:
        yield from map(work, items)
        return
    pool: Executor
    task: Callable[[Item], T] = work
    if processes:
        # Forking a process that runs threads, as torch does, can leave a lock held forever.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_set_task, initargs=(work,))
        task = _run_task
    else:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(task, item))
            if len(waiting) >= max(ahead, _AHEAD * workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_task: list[Callable[..., Any]] = []  # of this process, sent once and not with each photo


def _set_task(task: Callable[..., Any]) -> None:
    _task.append(task)


def _run_task(item: Any) -> Any:
    return _task[-1](item)


def _work_on_row(source: IndexedPhotos, work: Callable[[Photo], T], index: int) -> SkippedRecord | tuple[Photo, T]:
    return apply_to_entry(work, source[index])


def apply_to_entry(work: Callable[[Photo], T], entry: Entry) -> SkippedRecord | tuple[Photo, T]:
    """Call a function with a photo, and return both; see `map_photos`."""
    if isinstance(entry, SkippedRecord):
        return entry
    try:
        result = work(entry)
    except ImageError as error:
        return skipped_record(entry.key, error)
    return (replace(entry, image=b"") if isinstance(entry.image, bytes) else entry), result


def skipped_record(key: str, error: ImageError) -> SkippedRecord:
    """Return the skipped record of an image that cannot be read."""
    return SkippedRecord(key, "missing" if error.reason == "there is no such file" else "broken", error.reason)


def _load_and_transform(transform: Callable[[Image.Image, str], T], photo: Photo) -> T:
    return transform(load_image(photo.image, name=photo.key), photo.key)
