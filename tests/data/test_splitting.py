"""Splits: nobody's photos and no place on both sides, whatever the photos."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_geoclip.data.photos import SkippedRecord
from open_geoclip.data.sources import open_source
from open_geoclip.data.splitting import SplitSettings, clusters, split, write_splits
from open_geoclip.errors import DataError, SettingsError
from open_geoclip.geo.sphere import haversine_km

Make = Callable[..., Path]


def drawn(seed: int, n: int, spread: float) -> tuple[np.ndarray, list[str | None]]:
    """Photos around a few towns, at the poles and the 180th meridian too."""
    rng = np.random.default_rng(seed)
    towns = np.array([[48.8, 2.3], [89.99, 10.0], [-17.0, 179.99], [-17.0, -179.99], [0.0, 0.1]])
    places = towns[rng.integers(len(towns), size=n)] + rng.normal(0, spread, (n, 2))
    places[:, 0] = places[:, 0].clip(-90, 90)
    places[:, 1] = (places[:, 1] + 180) % 360 - 180
    return places, [None if group > 40 else f"g{group}" for group in rng.integers(60, size=n).tolist()]


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    buffer_km=st.sampled_from([0.0, 0.02, 0.5, 3.0, 40.0]),
    spread=st.sampled_from([0.001, 0.05, 1.0, 20.0]),
    leave_out=st.booleans(),
)
def test_no_pair_of_two_sides_is_nearer_than_the_buffer_or_of_one_group(
    seed: int, buffer_km: float, spread: float, leave_out: bool
) -> None:
    places, groups = drawn(seed, 120, spread)
    places[60:70] = places[:10]  # the same place again
    chosen = SplitSettings({"a": 0.6, "b": 0.2, "c": 0.2}, buffer_km, leave_out=leave_out, seed=seed, square_km=20)
    try:
        sides = split(places, groups, chosen)
    except DataError as error:
        assert "hang together" in str(error)  # noqa: PT017
        return
    np.testing.assert_array_equal(split(places, groups, chosen), sides)
    apart = (sides[:, None] != sides[None]) & (sides[:, None] >= 0) & (sides[None] >= 0)
    distances = haversine_km(places[:, None], places[None])
    assert not (apart & (distances < buffer_km)).any()
    assert not (apart & (distances == 0)).any()
    names = np.array([group or f"only {i}" for i, group in enumerate(groups)])
    assert not (apart & (names[:, None] == names[None])).any()
    assert set(sides.tolist()) - {-1} == {0, 1, 2}
    if not leave_out:
        assert (sides >= 0).all()


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), buffer_km=st.sampled_from([0.0, 0.3, 5.0, 300.0]))
def test_clusters_are_what_hangs_together_pair_by_pair(seed: int, buffer_km: float) -> None:
    places, groups = drawn(seed, 80, 0.03)
    numbers = {name: i for i, name in enumerate(sorted({group for group in groups if group}))}
    codes = np.array([-1 if group is None else numbers[group] for group in groups], np.int64)
    near = haversine_km(places[:, None], places[None]) <= buffer_km + 1e-9
    near |= (codes[:, None] == codes[None]) & (codes[None] >= 0)
    for _ in range(7):  # paths of up to 2^7 steps
        near = near @ near
    expected = np.unique(near.argmax(axis=1), return_inverse=True)[1]
    np.testing.assert_array_equal(clusters(places, groups, buffer_km), expected)


def test_shares_are_kept_and_the_seed_decides() -> None:
    rng = np.random.default_rng(1)
    places = np.stack([rng.uniform(-80, 80, 5000), rng.uniform(-180, 180, 5000)], axis=1)
    nobody: list[str | None] = [None] * 5000
    sides = split(places, nobody, SplitSettings())
    np.testing.assert_allclose(np.bincount(sides) / 5000, [0.8, 0.1, 0.1], atol=0.002)
    assert (split(places, nobody, SplitSettings(seed=1)) != sides).mean() > 0.2
    left = split(places, nobody, SplitSettings(leave_out=True))
    np.testing.assert_allclose(np.bincount(left[left >= 0]) / (left >= 0).sum(), [0.8, 0.1, 0.1], atol=0.02)
    assert (left < 0).mean() < 0.02


def test_a_crowd_at_one_spot_is_no_trouble() -> None:
    rng = np.random.default_rng(2)
    places = np.array([48.8, 2.3]) + rng.normal(0, 1e-4, (3_000, 2))
    with pytest.raises(DataError, match=r"3,001 photos hang together in 2 clusters, the largest of 3,000"):
        split(np.concatenate([places, [[0.0, 50.0]]]), [None] * 3_001, SplitSettings())


def test_tables_are_written_and_open_again(tmp_path: Path, make_table: Make, make_shards: Make) -> None:
    source = open_source(make_table(12))
    done = write_splits(source, tmp_path / "splits", SplitSettings({"train": 2, "test": 1}))
    assert done.counts == {"train": 8, "test": 4}
    photos = {name: list(open_source(path)) for name, path in done.files.items()}
    assert {p.group for p in photos["train"]} & {p.group for p in photos["test"]} == set()
    assert sorted(p.key for found in photos.values() for p in found) == [photo.key for photo in source]
    assert all(Path(str(p.image)).is_file() for found in photos.values() for p in found)
    folder = make_shards(3, 5)
    done = write_splits(open_source(folder), tmp_path / "sharded", SplitSettings(groups=False))
    again = {name: list(open_source(path, images=folder)) for name, path in done.files.items()}
    assert {name: len(found) for name, found in again.items()} == done.counts
    assert sum(done.counts.values()) == 15
    with pytest.raises(DataError, match="pack them first"):
        write_splits(open_source("earth-views:test:3"), tmp_path / "views", SplitSettings())


def test_photos_on_an_object_store_keep_their_names(tmp_path: Path) -> None:
    rows = [f"s3://bucket/{i}.jpg,{5 * i},{7 * i}" for i in range(1, 9)]
    (tmp_path / "t.csv").write_text("\n".join(["IMG_FILE,LAT,LON", *rows]))
    source = open_source(tmp_path / "t.csv")
    done = write_splits(source, tmp_path / "deep" / "splits", SplitSettings({"train": 1, "test": 1}))
    again = [photo for path in done.files.values() for photo in open_source(path)]
    assert sorted(str(photo.image) for photo in again) == sorted(str(photo.image) for photo in source)


def test_what_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,lat,lon\na.jpg,120,2\nb.jpg,0,0\n")
    faults: list[SkippedRecord] = []
    with pytest.raises(DataError, match="no photo that can be used"):
        write_splits(open_source(tmp_path / "t.csv"), tmp_path / "s", SplitSettings(), on_skip=faults.append)
    assert [fault.kind for fault in faults] == ["out of range", "zero"]
    assert not (tmp_path / "s").exists()
    for wrong in ({"shares": {"a": 1.0}}, {"shares": {"a": 1.0, "b": 0.0}}, {"buffer_km": 0.001}, {"square_km": 0.0}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            SplitSettings(**wrong)
