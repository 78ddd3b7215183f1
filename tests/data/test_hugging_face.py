"""Hugging Face datasets on this machine, whole and as a stream."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from open_geoclip.data.decoding import decode_photos
from open_geoclip.data.photos import SkippedRecord
from open_geoclip.data.sources import open_source
from open_geoclip.errors import DataError

pytest.importorskip("datasets")
pytestmark = pytest.mark.slow  # its import alone takes seconds


@pytest.fixture
def saved(tmp_path: Path, jpeg: Callable[..., bytes]) -> Path:
    import datasets

    rows: dict[str, list[Any]] = {
        "image": [{"bytes": jpeg(i), "path": None} for i in range(9)],
        "id": [f"x{i}" for i in range(9)],
        "latitude": [*(float(i + 1) for i in range(7)), 120.0, None],
        "longitude": [2.0] * 9,
        "creator_username": ["ann"] * 9,
    }
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("scheme", ["hf", "hf-stream"])
def test_a_dataset_is_a_source(saved: Path, scheme: str) -> None:
    source = open_source(f"{scheme}:{saved}")
    faults: list[SkippedRecord] = []
    found = list(decode_photos(source, lambda image, key: image.size, on_skip=faults.append))
    assert [(p.key, p.lat, p.lon, p.group, size) for p, size in found] == [
        (f"x{i}", i + 1.0, 2.0, "ann", (40, 30)) for i in range(7)
    ]
    assert [(fault.key, fault.kind) for fault in faults] == [("x7", "out of range"), ("x8", "no coordinates")]
    for start in (source, source.shuffled(4, 1)):
        parts = [[p.key for p in start.shard(rank, 3)] for rank in range(3)]
        assert sorted(key for part in parts for key in part) == [f"x{i}" for i in range(7)]
    order = [p.key for p in source.shuffled(4, 1)]
    assert order == [p.key for p in source.shuffled(4, 1)] != [p.key for p in source]
    assert open_source(f"{scheme}:{saved}").fingerprint == source.fingerprint


def test_coordinates_that_are_no_numbers_are_skipped(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    import datasets

    rows = {"image": [{"bytes": jpeg(0), "path": None}] * 2, "lat": ["1.5", "n/a"], "lon": ["2", "3"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    good, bad = open_source(f"hf:{tmp_path / 'saved'}").entries()
    assert (good.key, bad.key) == ("0", "1")
    assert isinstance(bad, SkippedRecord)
    assert bad.reason == "its coordinates are no numbers"


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded"):
        open_source(f"hf:{tmp_path / 'nothing'}")
