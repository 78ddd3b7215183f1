"""Images decoded ahead: in order, with faults named, by threads or processes."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_geoclip.data.augmentation import Augmentation
from open_geoclip.data.decoding import available_cores, decode_photos, map_ahead, map_photos
from open_geoclip.data.photos import Photo, SkippedRecord
from open_geoclip.data.sources import open_source
from open_geoclip.errors import SettingsError

Make = Callable[..., Path]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_is_kept_and_a_broken_photo_is_named(make_table: Make, make_shards: Make, workers: int) -> None:
    path, folder = make_table(12), make_shards(2, 6)
    (path.parent / "005.jpg").write_bytes(b"nothing")
    (path.parent / "007.jpg").unlink()
    (path.parent / "009.jpg").write_bytes((path.parent / "009.jpg").read_bytes()[:300])
    faults: list[SkippedRecord] = []
    done = decode_photos(
        open_source(path), lambda image, key: (key, image.size), workers=workers, on_skip=faults.append
    )
    assert [(photo.key, value) for photo, value in done] == [
        (f"{i:03d}.jpg", (f"{i:03d}.jpg", (40, 30))) for i in range(12) if i not in (5, 7, 9)
    ]
    assert [(fault.key, fault.kind) for fault in faults] == [
        ("005.jpg", "broken"),
        ("007.jpg", "missing"),
        ("009.jpg", "broken"),
    ]
    stream = [photo for photo, _ in decode_photos(open_source(folder), Augmentation(size=8), workers=workers)]
    assert [photo.key for photo in stream] == [f"p{i:03d}" for i in range(12)]
    assert all(photo.image == b"" for photo in stream), "bytes are not kept"


@pytest.mark.slow
def test_processes_give_what_threads_give(make_table: Make) -> None:
    source = open_source(make_table(6)).shuffled(3)
    views = {
        processes: [
            (photo.key, view.tobytes())
            for photo, view in decode_photos(source, Augmentation(size=16), workers=2, processes=processes)
        ]
        for processes in (False, True)
    }
    assert views[True] == views[False]
    assert len(views[True]) == 6


def test_there_is_one_worker_per_core_and_each_process_of_torchrun_has_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert available_cores() == 6
    started = threading.Barrier(6, timeout=20)
    assert list(map_ahead(lambda item: started.wait() * 0 + item, range(6))) == list(range(6)), "six at a time"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_cores() == 1


def test_as_many_are_decoded_ahead_as_a_batch_needs() -> None:
    items = iter(range(50))
    results = map_ahead(lambda item: item, items, workers=1, ahead=30)
    assert next(results) == 0
    results.close()
    assert next(items) == 30


def test_no_more_is_decoded_than_is_soon_taken(make_table: Make) -> None:
    source = open_source(make_table(40))
    count = 0
    lock = threading.Lock()

    def work(photo: Photo) -> str:
        nonlocal count
        with lock:
            count += 1
        return photo.key

    results = map_photos(source, work, workers=2)
    next(results)
    results.close()
    assert count <= 9
    assert [
        result[0].key for result in map_photos(source, work, start=38) if not isinstance(result, SkippedRecord)
    ] == [
        "038.jpg",
        "039.jpg",
    ]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_mistake_of_the_transform_is_not_a_fault_of_the_photo(make_table: Make) -> None:
    def transform(image: Image.Image, key: str) -> np.ndarray:
        return np.asarray(image)[99]

    with pytest.raises(IndexError):
        list(decode_photos(open_source(make_table(3)), transform))
    with pytest.raises(SettingsError, match="workers"):
        list(decode_photos(open_source(make_table(3)), transform, workers=-1))
