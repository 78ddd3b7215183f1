"""Shards that are written: complete, the same to the byte after an interruption, and read back as they went in."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_geoclip.data.packing import PackSettings, pack
from open_geoclip.data.photo_tables import TablePhotos
from open_geoclip.data.photos import Entry, SkippedRecord
from open_geoclip.data.sources import EarthViewPhotos, open_source
from open_geoclip.errors import DataError, SettingsError

Make = Callable[..., Path]
SMALL = PackSettings(shard_mb=0.009)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def test_what_is_packed_is_what_is_read(tmp_path: Path, make_table: Make) -> None:
    path = make_table(12)
    (path.parent / "004.jpg").write_bytes(b"broken")
    source = open_source(path)
    told: list[tuple[int, int]] = []
    done = pack(source, tmp_path / "out", SMALL, progress=lambda n, of: told.append((n, of)))
    packed = open_source(tmp_path / "out")
    expected = [photo for photo in source if photo.key != "004.jpg"]
    assert [(p.key, p.lat, p.lon, p.group) for p in packed] == [(p.key, p.lat, p.lon, p.group) for p in expected]
    assert [p.image for p in packed] == [Path(str(p.image)).read_bytes() for p in expected]
    assert packed.count == done.photos == 11
    assert done.shards == len(hashes(tmp_path / "out")) > 2
    assert (done.left_out, done.resumed_at, told[-1]) == ({"broken": 1}, 0, (12, 12))
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert {shard["name"]: shard["sha256"] for shard in index["shards"]} == hashes(tmp_path / "out")
    assert [fault[0] for shard in index["shards"] for fault in shard["left_out"]] == ["004.jpg"]
    again = pack(open_source(path), tmp_path / "out", SMALL)
    assert (again.photos, again.resumed_at) == (11, 12)


class Interrupted(TablePhotos):
    """Fails at a row, as Ctrl-C, or a kill, does."""

    def entry(self, row: int) -> Entry:
        if row == 7:
            raise KeyboardInterrupt
        return super().entry(row)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_interrupted_call_is_taken_up_and_the_shards_are_the_same_to_the_byte(
    tmp_path: Path, make_table: Make, make_shards: Make, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(make_shards(3, 4) if streamed else make_table(12))
    pack(source, tmp_path / "whole", SMALL)
    if streamed:
        entries = type(source).entries

        def broken(self: object) -> Iterator[Entry]:
            for number, entry in enumerate(entries(self)):  # type: ignore[arg-type]
                if number == 7:
                    raise KeyboardInterrupt
                yield entry

        with monkeypatch.context() as patch:
            patch.setattr(type(source), "entries", broken)
            with pytest.raises(KeyboardInterrupt):
                pack(source, tmp_path / "out", SMALL, workers=0)
    else:
        assert isinstance(source, TablePhotos)
        stopped = Interrupted(source.name, source.whole_fingerprint, source.rows, source.table, source.folder)
        with pytest.raises(KeyboardInterrupt):
            pack(stopped, tmp_path / "out", SMALL, workers=0)
    assert 0 < len(hashes(tmp_path / "out")) < len(hashes(tmp_path / "whole"))
    assert not list((tmp_path / "out").glob(".*.part"))
    (tmp_path / "out" / ".000001.tar.0123456789abcdef.part").write_bytes(b"what a kill -9 leaves")
    done = pack(source, tmp_path / "out", SMALL)
    assert done.resumed_at > 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert (tmp_path / "out" / "index.json").read_bytes() == (tmp_path / "whole" / "index.json").read_bytes()
    assert not list((tmp_path / "out").glob(".*.part"))


def test_large_photos_are_reduced_and_small_ones_left_alone(
    tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    picture(0, (90, 60)).save(tmp_path / "large.png")
    picture(1, (30, 20)).save(tmp_path / "small.png")
    (tmp_path / "t.csv").write_text("file,lat,lon\nlarge.png,1,2\nsmall.png,1,2\n")
    pack(open_source(tmp_path / "t.csv"), tmp_path / "out", PackSettings(resize=24))
    large, small = (photo.image for photo in open_source(tmp_path / "out"))
    assert isinstance(large, bytes)
    with Image.open(io.BytesIO(large)) as image:
        assert (image.format, image.size) == ("JPEG", (36, 24))
    assert small == (tmp_path / "small.png").read_bytes()


def test_rendered_views_are_kept_to_the_last_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    from open_geoclip.images import load_image

    source = EarthViewPhotos.opened("test", 2)
    pack(source, tmp_path / "out")
    for view, photo in zip(source, open_source(tmp_path / "out"), strict=True):
        assert (photo.key, photo.lat, photo.lon) == (view.key, view.lat, view.lon)
        np.testing.assert_array_equal(np.asarray(load_image(photo.image)), np.asarray(view.image))


def test_folders_that_cannot_be_packed_into(tmp_path: Path, make_table: Make, make_shards: Make) -> None:
    source = open_source(make_table(3))
    assert isinstance(source, TablePhotos)
    pack(source, tmp_path / "out")
    with pytest.raises(DataError, match="another settings"):
        pack(source, tmp_path / "out", PackSettings(resize=10))
    with pytest.raises(DataError, match="another fingerprint"):
        pack(source.select(np.array([1, 0, 2])), tmp_path / "out")
    with pytest.raises(DataError, match=r"shards without an index\.json"):
        pack(source, make_shards())
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written: File exists"):
        pack(source, tmp_path / "file")
    table = make_table(3)
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "photos.csv"
    copy.write_bytes(table.read_bytes())
    with pytest.raises(DataError, match=r"none of its photos.*the first is 000\.jpg: there is no such file"):
        pack(open_source(copy), tmp_path / "later")
    # Nothing is left that would be taken for a finished run.
    assert pack(open_source(copy, images=table.parent), tmp_path / "later").photos == 3
    with pytest.raises(SettingsError, match="shard_mb"):
        PackSettings(shard_mb=0)


def test_a_full_disk_keeps_what_is_whole(tmp_path: Path, make_table: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(make_table(12))
    pack(source, tmp_path / "whole", SMALL)
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 5:  # the third shard: each is followed by the index
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device; what is whole is kept"):
            pack(source, tmp_path / "out", SMALL)
    assert len(hashes(tmp_path / "out")) == 2
    pack(source, tmp_path / "out", SMALL)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert not [entry for entry in open_source(tmp_path / "out").entries() if isinstance(entry, SkippedRecord)]
