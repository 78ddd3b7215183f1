"""Tar shards: what they hold, how they are shared out, and what happens when they break."""

import gzip
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from open_geoclip.data import shards as shards_module
from open_geoclip.data.decoding import decode_photos
from open_geoclip.data.photos import Photo, SkippedRecord
from open_geoclip.data.shards import TarPhotos, expand_braces
from open_geoclip.data.sources import open_source
from open_geoclip.data.tar import CutOffError, Member, members
from open_geoclip.errors import DataError

Make = Callable[..., Path]


def keys(source: TarPhotos) -> list[str]:
    return [photo.key for photo in source]


def test_records_are_images_and_places(make_shards: Make, jpeg: Any) -> None:
    photos = list(TarPhotos.opened(make_shards()))
    assert [photo.key for photo in photos] == [f"p{i:03d}" for i in range(15)]
    assert (photos[3].lat, photos[3].lon, photos[3].group) == (3.5, -3.25, "a1")
    assert photos[3].image == jpeg(3)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_layout_of_tar_with_long_names(tmp_path: Path, layout: Any, add: Any) -> None:
    names = ["short.txt", "ü" * 40 + ".txt", "/".join(["folder" * 8] * 4) + "/file.txt"]
    modes: list[Any] = ["w:", "w:gz"]
    for mode in modes:
        path = tmp_path / f"a.{mode[2:]}"
        with tarfile.open(path, mode, format=layout) as tar:
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for i, name in enumerate(names):
                add(tar, name, bytes([65 + i]) * (i * 700))
        found = list(members(path))
        assert [(member.name, member.data) for member in found] == [
            (name, bytes([65 + i]) * (i * 700)) for i, name in enumerate(names)
        ]
        assert [member.name for member in members(path, lambda name: "short" in name)] == ["short.txt"]


def test_wherever_a_tar_is_cut_what_is_whole_before_is_given(make_shards: Make) -> None:
    path = make_shards(1, 3) / "000.tar"
    data = path.read_bytes()
    whole = list(members(path))
    ends = [member.offset + 512 + len(member.data) for member in whole]
    for cut in sorted({0, 1, 511, 512, 600, *ends, *(end + 1 for end in ends), *(m.offset for m in whole)}):
        path.write_bytes(data[:cut])
        found: list[Member] = []
        with pytest.raises(CutOffError, match=r"000\.tar: the file ends in") as caught:
            found.extend(members(path))
        # list.extend takes each one as it comes
        assert found == whole[: sum(end <= cut for end in ends)]
        assert caught.value.offset == cut
    path.write_bytes(data[: whole[4].offset] + b"x" * 512 + data[whole[4].offset + 512 :])
    with pytest.raises(CutOffError, match=f"damaged.*at byte {whole[4].offset:,}"):
        list(members(path))


def test_a_cut_shard_is_used_up_to_the_cut_and_reported(make_shards: Make) -> None:
    folder = make_shards()
    path = folder / "001.tar"
    data = path.read_bytes()
    (third,) = (member.offset for member in members(path) if member.name == "p007.jpg")
    for at, photos in ((third + 600, 12), (0, 10)):
        path.write_bytes(data[:at])
        entries = list(TarPhotos.opened(folder).entries())
        assert sum(isinstance(entry, Photo) for entry in entries) == photos
        (fault,) = (entry for entry in entries if isinstance(entry, SkippedRecord))
        assert (fault.key, fault.kind) == (str(path), "cut off")
        assert f"at byte {at:,}" in fault.reason
    zipped = gzip.compress(data)
    path.write_bytes(zipped[: len(zipped) // 2])
    entries = list(TarPhotos.opened(folder).entries())
    assert [entry.kind for entry in entries if isinstance(entry, SkippedRecord)] == ["cut off"]
    assert 10 < len(entries) < 16


def test_a_photo_whose_json_was_cut_off_does_not_get_a_place_from_elsewhere(
    tmp_path: Path, add: Any, jpeg: Any, gps: Any
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.jpg", jpeg(0, gps(1, 2)))
    path = tmp_path / "a.tar"
    assert [(p.lat, p.lon) for p in TarPhotos.opened(path)] == [pytest.approx((1, 2))]
    (picture,) = members(path)
    path.write_bytes(path.read_bytes()[: picture.offset + 512 + len(picture.data) + 100])
    assert keys(TarPhotos.opened(path)) == []


def test_records_that_cannot_be_used_are_named(tmp_path: Path, add: Any, jpeg: Any) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, picture, facts in (
            ("a", jpeg(0), b'{"lat": 120, "lon": 30}'),
            ("b", jpeg(1), b"{"),
            ("c", jpeg(2), None),
            ("d", b"no picture", b'{"latitude": 1, "longitude": 2, "id": "named"}'),
            ("e", None, b'{"lat": 1, "lon": 2}'),
            ("f", jpeg(3), b'{"lat": "north", "lon": 2}'),
            ("g", jpeg(4), b'{"lat": 7, "lon": 8}'),
        ):
            if picture is not None:
                add(tar, f"{name}.jpg", picture)
            if facts is not None:
                add(tar, f"{name}.json", facts)
    faults: list[SkippedRecord] = []
    done = [
        photo.key
        for photo, _ in decode_photos(open_source(tmp_path / "a.tar"), lambda image, key: key, on_skip=faults.append)
    ]
    assert done == ["g"]
    assert {fault.key: fault.kind for fault in faults} == {
        "a": "out of range",
        "b": "no coordinates",
        "c": "no coordinates",
        "named": "broken",
        "e": "missing",
        "f": "no coordinates",
    }
    assert "a.tar/a (byte 0)" in faults[0].reason


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 1), (3, 2), (2, 3), (7, 1), (4, 3)])
def test_parts_are_disjoint_and_complete(make_shards: Make, world: int, workers: int) -> None:
    source = TarPhotos.opened(make_shards(shards=4, each=6))
    for start in (source, source.shuffled(5, 2)):
        parts = [start.shard(r, world).shard(w, workers) for r in range(world) for w in range(workers)]
        assert sorted(key for part in parts for key in keys(part)) == keys(source)
        assert len({part.fingerprint for part in parts}) == len(parts)
    later = [source.shard(r, world).shuffled(5, 2).shard(w, workers) for r in range(world) for w in range(workers)]
    assert sorted(key for part in later for key in keys(part)) == keys(source)


def test_a_break_is_told_by_one_part_alone(make_shards: Make) -> None:
    folder = make_shards(1, 6)
    path = folder / "000.tar"
    path.write_bytes(path.read_bytes()[:-20_000])
    source = TarPhotos.opened(folder)
    faults = [entry for r in range(4) for entry in source.shard(r, 4).entries() if isinstance(entry, SkippedRecord)]
    assert [fault.kind for fault in faults] == ["cut off"]


def test_a_shuffle_is_a_permutation_through_a_buffer(make_shards: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TarPhotos.opened(make_shards(shards=4, each=10))
    for buffer in (1, 7, 2048):
        monkeypatch.setattr(shards_module, "BUFFER", buffer)
        once = keys(source.shuffled(1, 0))
        assert sorted(once) == keys(source)
        assert keys(source.shuffled(1, 0)) == once == keys(pickle.loads(pickle.dumps(source.shuffled(1, 0))))
        assert len({tuple(keys(source.shuffled(seed, epoch))) for seed in (1, 2) for epoch in (0, 1, 2)}) > 3


def test_a_table_says_which_records_of_shards_and_where(tmp_path: Path, make_shards: Make) -> None:
    folder = make_shards()
    (tmp_path / "t.csv").write_text("IMG_ID,LAT,LON,AUTHOR\nsome/p003.jpg,50,6,ann\np007,51,7,\np099,1,1,\n")
    source = open_source(tmp_path / "t.csv", images=folder)
    photos = list(source)
    assert [(p.key, p.lat, p.lon, p.group) for p in photos] == [
        ("some/p003.jpg", 50.0, 6.0, "ann"),
        ("p007", 51.0, 7.0, None),
    ]
    assert source.fingerprint != open_source(folder).fingerprint
    with pytest.raises(DataError, match="no such folder of images or shards"):
        open_source(tmp_path / "t.csv", images=tmp_path / "none")


def test_photos_of_one_name_in_two_folders_have_places_of_their_own(tmp_path: Path, add: Any, jpeg: Any) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a/1.jpg", "b/1.jpg", "c/1.jpg", "0.jpg", "5.jpg"):
            add(tar, name, jpeg(0))
    rows = ["7,a/1.jpg,10,1", "8,b/1.jpg,20,2", "5,0.jpg,30,3", "0,photos/5.jpg,40,4"]
    (tmp_path / "t.csv").write_text("\n".join(["IMG_ID,IMG_FILE,LAT,LON", *rows]))
    photos = list(open_source(tmp_path / "t.csv", images=tmp_path / "0.tar"))
    assert [(p.key, p.lat) for p in photos] == [("7", 10.0), ("8", 20.0), ("5", 30.0), ("0", 40.0)]


def test_braces_are_expanded_as_in_a_shell() -> None:
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand_braces("{x,y}/{2..1}") == ["x/2", "x/1", "y/2", "y/1"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_the_index_gives_count_and_fingerprint(make_shards: Make) -> None:
    folder = make_shards(2, 3)
    bare = TarPhotos.opened(folder)
    assert bare.count is None
    told = [{"name": path.name, "bytes": path.stat().st_size, "sha256": path.name, "count": 3} for path in bare.paths]
    (folder / "index.json").write_text(json.dumps({"shards": told}))
    source = TarPhotos.opened(folder)
    assert source.count == 6
    assert source.shard(0, 2).count is None
    (folder / "000.tar").touch()
    assert TarPhotos.opened(folder).fingerprint == source.fingerprint, "the index is trusted, not the clock"
    (folder / "index.json").write_text("[")
    with pytest.raises(DataError, match="no index of shards"):
        TarPhotos.opened(folder)


def test_a_shard_that_is_gone_meanwhile(make_shards: Make) -> None:
    folder = make_shards(2, 3)
    source = TarPhotos.opened(folder)
    (folder / "000.tar").unlink()
    (fault,) = (entry for entry in source.entries() if isinstance(entry, SkippedRecord))
    assert (fault.kind, len(keys(source))) == ("missing", 3)
