"""Sources: the same photos each time, parts that are disjoint and complete, and names."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_geoclip.data.columns import Texts
from open_geoclip.data.photos import IndexedPhotos, Photo, PhotoSource, SkippedRecord, photo_or_skipped
from open_geoclip.data.shards import TarPhotos
from open_geoclip.data.sources import EarthViewPhotos, open_source
from open_geoclip.errors import DataError, SettingsError

Make = Callable[..., Path]


class Numbers(IndexedPhotos):
    """Photos that are only numbers."""

    def entry(self, row: int) -> Photo:
        return Photo(str(row), b"", row % 80, row % 170)


def numbers(n: int) -> Numbers:
    return Numbers("numbers", "n", np.arange(n))


def keys(source: PhotoSource) -> list[str]:
    return [entry.key for entry in source.entries()]


@settings(max_examples=25)
@given(n=st.integers(0, 60), world=st.integers(1, 5), workers=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_parts_are_disjoint_and_complete_whenever_they_are_shuffled(
    n: int, world: int, workers: int, seed: int
) -> None:
    source = numbers(n)
    ways: tuple[Callable[[int, int], PhotoSource], ...] = (
        lambda r, w: source.shuffled(seed, 3).shard(r, world).shard(w, workers),
        lambda r, w: source.shard(r, world).shuffled(seed, 3).shard(w, workers),
        lambda r, w: source.shard(r, world).shard(w, workers).shuffled(seed, 3),
    )
    for way in ways:
        found = [key for r in range(world) for w in range(workers) for key in keys(way(r, w))]
        assert sorted(found, key=int) == keys(source)
    sizes = [len(source.shard(r, world)) for r in range(world)]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=25)
@given(n=st.integers(0, 60), seed=st.integers(0, 2**32), epoch=st.integers(0, 50))
def test_a_shuffle_is_a_permutation_that_the_seed_and_the_epoch_decide(n: int, seed: int, epoch: int) -> None:
    source = numbers(n)
    once = source.shuffled(seed, epoch)
    assert sorted(keys(once), key=int) == keys(source)
    assert keys(source.shuffled(seed, epoch)) == keys(once) == keys(pickle.loads(pickle.dumps(once)))
    assert once.fingerprint == source.shuffled(seed, epoch).fingerprint
    if n > 20:
        assert keys(source.shuffled(seed, epoch + 1)) != keys(once)
        assert once.fingerprint not in (source.fingerprint, source.shuffled(seed, epoch + 1).fingerprint)


@pytest.mark.parametrize(("rank", "world"), [(0, 0), (3, 3), (-1, 2)])
def test_a_part_that_is_not_there(rank: int, world: int, make_shards: Make) -> None:
    for source in (numbers(5), TarPhotos.opened(make_shards())):
        with pytest.raises(SettingsError, match=f"part {rank} of {world}"):
            source.shard(rank, world)


@pytest.mark.parametrize(
    ("lat", "lon", "kind", "message"),
    [
        (120.0, 40.0, "out of range", "look exchanged"),
        (-90.5, 140.0, "out of range", "latitude -90.5"),
        (float("inf"), 0.0, "out of range", "latitude inf"),
        (10.0, 999.0, "out of range", "longitude 999"),
        (0.0, -0.0, "zero", "0, 0"),
        (float("nan"), 4.0, "no coordinates", "no coordinates"),
    ],
)
def test_coordinates_that_cannot_be_used(lat: float, lon: float, kind: str, message: str) -> None:
    fault = photo_or_skipped("a", b"", lat, lon)
    assert isinstance(fault, SkippedRecord)
    assert fault.kind == kind
    assert message in fault.reason
    assert str(fault).startswith("a: ")


@given(lat=st.floats(-90, 90), lon=st.floats(-540, 540))
def test_what_is_on_earth_is_kept_and_longitudes_are_wrapped(lat: float, lon: float) -> None:
    entry = photo_or_skipped("a", b"", lat, lon)
    if isinstance(entry, Photo):
        assert entry.lat == lat
        assert -180 <= entry.lon <= 180
        assert (entry.lon - lon) % 360 == pytest.approx(0, abs=1e-9) or abs(entry.lon - lon) % 360 > 359.9
    else:
        assert lat == lon == 0


@settings(max_examples=25)
@given(st.lists(st.text()))
def test_texts_are_a_list_of_texts(texts: list[str]) -> None:
    texts = [text.encode(errors="ignore").decode() for text in texts]
    assert list(pickle.loads(pickle.dumps(Texts(texts)))) == texts


def test_names_lead_to_sources(tmp_path: Path, make_table: Make, make_shards: Make, jpeg: Any, gps: Any) -> None:
    table, shards = make_table(4), make_shards(2, 3)
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "a.jpg").write_bytes(jpeg(0, gps(10, 20)))
    names: dict[str | Path, int] = {
        table: 4,
        str(table): 4,
        shards: 6,
        f"{shards}/{{000..001}}.tar": 6,
        f"{shards}/{{000,001}}.tar": 6,
        f"{shards}/*.tar": 6,
        f"{shards}/001.tar": 3,
        tmp_path / "album": 1,
    }
    for name, photos in names.items():
        source = open_source(name)
        assert isinstance(source, PhotoSource)
        assert len(list(source)) == photos
        assert list(map(str, source.entries())) == list(map(str, source.entries()))


def test_the_images_of_another_folder_are_other_photos(tmp_path: Path) -> None:
    for home in (tmp_path, tmp_path / "moved"):
        for folder in ("small", "large"):
            (home / folder).mkdir(parents=True)
        (home / "t.csv").write_text("IMG_FILE,LAT,LON\na.jpg,1,2\n")

    def fingerprint(home: Path, images: Path | None) -> str:
        return open_source(home / "t.csv", images=images).fingerprint

    small = fingerprint(tmp_path, tmp_path / "small")
    assert len({small, fingerprint(tmp_path, tmp_path / "large"), fingerprint(tmp_path, None)}) == 3
    assert fingerprint(tmp_path / "moved", tmp_path / "moved" / "small") == small
    assert fingerprint(tmp_path, None) == fingerprint(tmp_path, tmp_path)


def test_an_archive_among_photos_does_not_make_them_shards(
    tmp_path: Path, make_table: Make, make_shards: Make, jpeg: Any, gps: Any
) -> None:
    table = make_table(4)
    shard = next(make_shards(1, 3).glob("*.tar")).read_bytes()
    for name in ("x.tgz", "backup.tar"):
        (table.parent / name).write_bytes(shard)
    source = open_source(table, images=table.parent)
    assert [photo.image for photo in source] == [table.parent / f"{i:03d}.jpg" for i in range(4)]
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "a.jpg").write_bytes(jpeg(0, gps(10, 20)))
    (tmp_path / "album" / "x.tar").write_bytes(shard)
    assert [photo.key for photo in open_source(tmp_path / "album")] == ["a.jpg"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none.csv", DataError, "no such file"),
        ("none/", DataError, "no such file or folder"),
        ("none/{00..02}.tar", DataError, "00.tar: there is no such shard"),
        ("none.tar", DataError, "no such shard"),
        ("*.tar", DataError, "there is no shard"),
        ("{0..9999999}.tar", DataError, "more than a million"),
        ("earth-views:night:3", SettingsError, "train, validation, test"),
        ("earth-views:test:many", SettingsError, "SPLIT"),
        ("earth-views:test:0", SettingsError, "1 view or more"),
        ("earth-views:test:9999", SettingsError, "4096"),
        ("earth-views:test:9:mars", SettingsError, "bluemarble"),
        ("hf:", SettingsError, "hf:NAME"),
    ],
)
def test_names_that_lead_nowhere(
    name: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        open_source(name)


def test_a_file_of_another_kind_and_an_empty_folder(tmp_path: Path, jpeg: Any) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    with pytest.raises(SettingsError, match="a CSV, Parquet or GeoJSON table"):
        open_source(tmp_path / "a.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        open_source(tmp_path / "empty")
    with pytest.raises(SettingsError, match="only a table"):
        open_source("earth-views:test:3", images=tmp_path)


def test_earth_views_are_the_views_of_the_split_in_any_order() -> None:
    from open_geoclip.data.earth_views import views

    (batch,) = views("test", 5)
    source = EarthViewPhotos.opened("test", 5).select(np.array([4, 0]))
    for photo, row in zip(source, (4, 0), strict=True):
        assert (photo.lat, photo.lon) == tuple(batch.coordinates[row])
        np.testing.assert_array_equal(np.asarray(photo.image), batch.images[row])
