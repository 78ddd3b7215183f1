"""The photo index: what is stored, what is found, what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from open_geoclip.errors import DataError, MissingExtraError, SettingsError
from open_geoclip.search import feature_search, photo_index
from open_geoclip.search.encode import perceptual_hash
from open_geoclip.search.photo_index import PhotoIndex
from open_geoclip.search.photo_records import IndexRecords, QueryPhotos

N, DIM = 300, 24


@pytest.fixture
def records(rng: np.random.Generator) -> IndexRecords:
    """Return records with features that are points on the sphere of 6 numbers, mixed, and noise."""
    features = torch.from_numpy(rng.normal(size=(N, 6)) @ rng.normal(size=(6, DIM)) + 5).float()
    places = np.stack([rng.uniform(-80, 80, N), rng.uniform(-180, 180, N)], axis=1)
    return IndexRecords.from_features(features, places, groups=[f"g{row % 3}" if row % 2 else None for row in range(N)])


def test_finds_the_photo_itself_first_and_exactly(records: IndexRecords, tmp_path: Path) -> None:
    index = PhotoIndex.create(tmp_path / "index", records)
    again = PhotoIndex.open(tmp_path / "index")
    assert again.ids == records.ids
    assert again.groups == records.groups
    assert len(again) == N
    found = again.search(QueryPhotos(records.features[:5]), 7)
    assert [one.ids[0] for one in found] == records.ids[:5]
    projected = index.project(records.features)
    cosines = projected[:5] @ projected.T
    for one, row in zip(found, cosines, strict=True):
        best, rows = row.topk(7)
        assert one.rows.tolist() == rows.tolist()
        np.testing.assert_allclose(one.similarity, best, atol=1e-3)
        np.testing.assert_array_equal(one.coordinates, records.coordinates[rows])


def test_asks_for_more_than_there_is(records: IndexRecords, tmp_path: Path) -> None:
    index = PhotoIndex.create(tmp_path / "index", records)
    (found,) = index.search(QueryPhotos(records.features[:1], groups={"g1", "g0", "g2"}), 1000)
    assert len(found) == N // 2
    assert not {index.groups[row] for row in found.rows} - {None}


def test_a_photo_finds_neither_duplicates_nor_their_group(records: IndexRecords, tmp_path: Path) -> None:
    sha256 = np.zeros((N, 32), np.uint8)
    sha256[1] = np.frombuffer(bytes.fromhex("ab" * 32), np.uint8)
    hashes = np.random.default_rng(1).integers(0, 256, (N, 32), np.uint8)
    known = IndexRecords(**vars(records) | {"sha256": sha256, "hashes": hashes})
    index = PhotoIndex.create(tmp_path / "index", known)
    (by_hash,) = index.search(QueryPhotos(records.features[1:2], ["ab" * 32]), N)
    assert {index.groups[row] for row in by_hash.rows} == {None, "g0", "g2"}
    near = hashes[:1].copy()
    near[0, :3] ^= 0b11000  # 6 of 256 bits
    (by_look,) = index.search(QueryPhotos(records.features[:1], [None], near), N)
    assert len(by_look) == N - 1
    assert 0 not in by_look.rows


def test_add_and_remove(records: IndexRecords, tmp_path: Path, rng: np.random.Generator) -> None:
    index = PhotoIndex.create(tmp_path / "index", records)
    more = IndexRecords.from_features(records.features[:4] + 0.01, records.coordinates[:4], list("abcd"))
    more = IndexRecords(**vars(more) | {"thumbnails": [b"\xff\xd8a", b"", b"\xff\xd8c", b"\xff\xd8d"]})
    grown = index.add(more)
    assert grown.ids[-4:] == list("abcd")
    assert grown.thumbnail(N) == b"\xff\xd8a"
    assert grown.thumbnail(N + 1) is None
    with pytest.raises(DataError, match="another process"):
        index.add(IndexRecords.from_features(records.features[:1], records.coordinates[:1], ["e"]))
    with pytest.raises(DataError, match="given twice"):
        grown.add(more)
    left = grown.remove([0, N, N + 1])
    assert len(left) == N + 1
    assert left.ids[-2:] == ["c", "d"]
    assert left.thumbnail(N) == b"\xff\xd8d"
    assert len(list((tmp_path / "index").glob("*.safetensors"))) == 2  # what was replaced is gone
    with pytest.raises(DataError, match="no photo would be left"):
        left.remove(range(len(left)))


def test_the_projection_is_fitted_anew_until_there_are_enough_photos(
    records: IndexRecords, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_index, "FIT_PHOTOS", N)

    def part(rows: slice) -> IndexRecords:
        thumbnails = [b"\xff\xd8" + name.encode() for name in records.ids[rows]]
        known = IndexRecords.from_features(records.features[rows], records.coordinates[rows], records.ids[rows])
        return IndexRecords(**vars(known) | {"thumbnails": thumbnails})

    whole = PhotoIndex.create(tmp_path / "whole", part(slice(0, N)))
    grown = PhotoIndex.create(tmp_path / "grown", part(slice(0, 3))).add(part(slice(3, 50))).remove([49])
    grown = grown.add(part(slice(49, N)))
    torch.testing.assert_close(grown.project(records.features), whole.project(records.features))
    assert (grown.ids, grown.thumbnail(49), grown.thumbnail(2)) == (whole.ids, whole.thumbnail(49), whole.thumbnail(2))
    files = {file.name for file in grown.folder.glob("*.safetensors")}
    assert len(files) == 2
    more = IndexRecords.from_features(records.features[:2] + 9, records.coordinates[:2], ["a", "b"])
    assert grown.add(more).manifest["projection"] == grown.manifest["projection"]  # it stays now
    assert files < {file.name for file in grown.folder.glob("*.safetensors")}


def test_copies_of_one_photo_are_an_index(tmp_path: Path) -> None:
    records = IndexRecords.from_features(torch.ones(3, 8), np.zeros((3, 2)))
    [found] = PhotoIndex.create(tmp_path / "index", records).search(QueryPhotos(torch.rand(1, 8)), 3)
    assert len(found) == 3
    assert found.similarity.tolist() == [0, 0, 0]  # nothing is known of how photos differ


def test_refuses_what_it_cannot_use(records: IndexRecords, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with pytest.raises(DataError, match="no photo index"):
        PhotoIndex.open(folder)
    with pytest.raises(DataError, match="2 photos or more"):
        PhotoIndex.create(folder, IndexRecords.from_features(torch.ones(1, 3), np.zeros((1, 2)) + 1))
    assert not folder.exists()
    index = PhotoIndex.create(folder, records)
    with pytest.raises(DataError, match="exists already"):
        PhotoIndex.create(folder, records)
    with pytest.raises(SettingsError, match="features of 24 numbers, not 3"):
        index.search(QueryPhotos(torch.ones(1, 3)), 1)
    part = next(folder.glob("photos-*"))
    content = part.read_bytes()
    part.write_bytes(content[:1000])
    with pytest.raises(DataError, match="damaged"):
        PhotoIndex.open(folder)
    part.unlink()
    with pytest.raises(DataError, match="missing"):
        PhotoIndex.open(folder)
    part.write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    for changed, message in (({"parts": []}, "empty"), ({"version": 9}, "version 9"), ({"format": "x"}, "not that of")):
        (folder / "manifest.json").write_text(json.dumps(manifest | changed))
        with pytest.raises(DataError, match=message):
            PhotoIndex.open(folder)


def test_records_from_a_file(records: IndexRecords, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "views.safetensors"
    save_file({"features": records.features.half(), "coordinates": torch.from_numpy(records.coordinates)}, path)
    assert IndexRecords.from_file(path).ids[:2] == ["views-0000000", "views-0000001"]
    save_file({"features": records.features.half()}, path)
    with pytest.raises(DataError, match="coordinates"):
        IndexRecords.from_file(path)
    save_file({"features": records.features / 0, "coordinates": torch.from_numpy(records.coordinates)}, path)
    with pytest.raises(DataError, match="not finite"):
        IndexRecords.from_file(path)


def test_perceptual_hashes_survive_resizing_and_compression(rng: np.random.Generator) -> None:
    import io

    from PIL import Image

    noise = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((400, 400), Image.Resampling.BICUBIC)
    other = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((224, 224), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    noise.resize((180, 180)).save(file, "JPEG", quality=60)
    images = [noise, Image.open(file), other]
    pixels = [torch.from_numpy(np.array(one.resize((224, 224)), np.float32)).permute(2, 0, 1) for one in images]
    bits = np.unpackbits(perceptual_hash(torch.stack(pixels)), axis=1)
    assert (bits[0] != bits[1]).sum() <= 12
    assert 90 < (bits[0] != bits[2]).sum() < 166


@pytest.fixture
def large(records: IndexRecords, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PhotoIndex:
    """Return an index of two parts that has an inverted file."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(photo_index, "MAX_EXACT", N - 1)
    monkeypatch.setattr(photo_index, "FIT_PHOTOS", 200)
    halves = [slice(0, 200), slice(200, N)]
    first, second = (
        IndexRecords.from_features(records.features[rows], records.coordinates[rows], records.ids[rows])
        for rows in halves
    )
    index = PhotoIndex.create(tmp_path / "large", first)
    assert index.with_inverted_file() is index
    return index.add(second).with_inverted_file()


def test_an_inverted_file_gives_candidates_that_are_compared_exactly(large: PhotoIndex, records: IndexRecords) -> None:
    queries = QueryPhotos(records.features[::7])
    exact = PhotoIndex(large.folder, {**large.manifest, "inverted_file": None})
    for index in (large, PhotoIndex.open(large.folder)):
        for found, expected in zip(index.search(queries, 5), exact.search(queries, 5), strict=True):
            assert found.ids == expected.ids
            np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-6)
    assert large.with_inverted_file() is large


def test_an_inverted_file_after_photos_are_removed_and_added(
    large: PhotoIndex, records: IndexRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_search, "MAX_CANDIDATES", 150)
    name = large.manifest["inverted_file"]["file"]
    more = IndexRecords.from_features(records.features[:2], records.coordinates[:2], ["a", "b"])
    index = large.add(more).remove([0, 3])  # the first part is written anew, and searched exactly
    assert index.manifest["inverted_file"]["file"] == name
    found = index.search(QueryPhotos(records.features[[0, 1, 250]]), 3)
    assert [found[0].ids[0], found[2].ids[0]] == ["a", records.ids[250]]
    assert set(found[1].ids[:2]) == {records.ids[1], "b"}  # equal features: rounding orders them
    renewed = index.with_inverted_file()  # most photos were in no inverted file
    assert renewed.manifest["inverted_file"]["file"] != name
    assert [file.name for file in index.folder.glob("*.faiss")] == [renewed.manifest["inverted_file"]["file"]]
    assert [one.ids for one in renewed.search(QueryPhotos(records.features[[0]]), 1)] == [["a"]]


def test_without_the_extra_or_the_file(
    large: PhotoIndex, records: IndexRecords, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, query = next(large.folder.glob("*.faiss")), QueryPhotos(records.features[:1])
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[: len(content) // 2], b"x" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            PhotoIndex.open(large.folder).search(query, 1)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert PhotoIndex.open(large.folder).search(query, 1)[0].ids == records.ids[:1]
    assert "open-geoclip[faiss]" in caplog.text
    with pytest.raises(MissingExtraError, match=r"open-geoclip\[faiss\]"):
        large.add(
            IndexRecords.from_features(records.features, records.coordinates, [f"n{i}" for i in range(N)])
        ).with_inverted_file()
