"""The gallery index: exact answers, a cache that survives faults and two processes."""

import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.search import index as module
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex, index_key

SETTINGS = LocationSettings(sigmas=(1.0, 8.0), features=16, width=32, depth=2, output=24, projection="sphere")


def make_encoder(seed: int = 0) -> LocationEncoder:
    torch.manual_seed(seed)
    return LocationEncoder(SETTINGS).eval()


def make_gallery(n: int, seed: int = 0) -> Gallery:
    rng = np.random.default_rng(seed)
    points = np.stack([rng.uniform(-90, 90, n), rng.uniform(-180, 180, n)], axis=1)
    return Gallery.from_coordinates(points, rng.integers(1, 5, n).astype(np.float64))


@pytest.mark.parametrize("top_k", [1, 7, 2000])
def test_search_equals_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top_k: int) -> None:
    monkeypatch.setattr(module, "_CHUNK", 301)  # many chunks, the last one short
    encoder, gallery = make_encoder(), make_gallery(2000)
    index = GalleryIndex.build(encoder, gallery, folder=tmp_path)
    queries = F.normalize(torch.randn(9, 24), dim=1)
    found = index.search(queries, 40.0, top_k)

    logits = 40.0 * queries @ encoder.encode(torch.from_numpy(gallery.coordinates)).T
    expected = logits.topk(top_k, dim=1)
    exact = min(top_k, 200)  # deeper down, ties within float16's rounding may change places
    assert torch.equal(found.rows[:, :exact], expected.indices[:, :exact])
    torch.testing.assert_close(found.logits[:, :exact], expected.values[:, :exact], rtol=0, atol=1e-4)
    total = torch.logsumexp(logits + torch.from_numpy(gallery.weights).log(), dim=1)
    torch.testing.assert_close(found.log_normalizer, total, rtol=0, atol=40 * 2**-11)


def test_all_logits_are_those_of_a_search_computed_where_the_encoder_is(tmp_path: Path) -> None:
    encoder, gallery = make_encoder(), make_gallery(500)
    queries = F.normalize(torch.randn(3, 24), dim=1)
    index = GalleryIndex.build(encoder, gallery, folder=tmp_path)
    found, logits = index.search(queries, 40.0, 7), index.logits(queries, 40.0, exact=7)
    torch.testing.assert_close(logits.gather(1, found.rows), found.logits, rtol=0, atol=1e-5)
    assert torch.equal(logits.topk(7, dim=1).indices, found.rows)
    index = GalleryIndex(encoder.to("meta"), gallery, index.embeddings)
    with pytest.raises(NotImplementedError, match="meta"):  # no numbers come back from there
        index.logits(queries, 40.0)


def test_near_ties_are_ordered_in_full_precision(tmp_path: Path) -> None:
    """Places a few metres apart differ by less than float16 can hold; their order must be right all the same."""
    encoder = make_encoder()
    steps = np.arange(150) * 1e-4
    gallery = Gallery.from_coordinates(np.stack([10 + steps, 20 + steps], axis=1))
    index = GalleryIndex.build(encoder, gallery, folder=tmp_path)
    vectors = encoder.encode(torch.from_numpy(gallery.coordinates))
    queries = F.normalize(vectors[:5] + 0.3 * torch.randn(5, 24), dim=1)
    exact = queries @ vectors.T
    rounded = queries @ vectors.half().float().T
    assert not torch.equal(rounded.argsort(dim=1, descending=True), exact.argsort(dim=1, descending=True))
    found = index.search(queries, 1.0, 10).rows
    torch.testing.assert_close(exact.gather(1, found), exact.topk(10, dim=1).values, rtol=0, atol=2e-7)


def test_second_time_reads_the_file(tmp_path: Path) -> None:
    encoder, gallery = make_encoder(), make_gallery(500)
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    first = GalleryIndex.build(encoder, gallery, folder=tmp_path, progress=progress)
    assert calls == [(500, 500)]
    assert first.path is not None
    assert first.embeddings.dtype == torch.float16
    second = GalleryIndex.build(encoder, gallery, folder=tmp_path, progress=progress)
    assert calls == [(500, 500)]
    assert torch.equal(first.embeddings, second.embeddings)
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock"] == [".safetensors"]


def test_key_knows_weights_settings_and_places() -> None:
    gallery = make_gallery(10)
    keys = {
        index_key(make_encoder(0), gallery),
        index_key(make_encoder(1), gallery),
        index_key(make_encoder(0), make_gallery(10, seed=1)),
        index_key(make_encoder(0).to(torch.bfloat16), gallery),
    }
    assert len(keys) == 4
    assert index_key(make_encoder(0), gallery) in keys


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    encoder, gallery = make_encoder(), make_gallery(50)
    expected = GalleryIndex.build(encoder, gallery, folder=tmp_path).embeddings.clone()
    path = GalleryIndex.cached_path(encoder, gallery, tmp_path)
    other = GalleryIndex.build(encoder, make_gallery(40), folder=tmp_path / "other").path
    assert other is not None
    content = {"cut": path.read_bytes()[:-10], "empty": b"", "garbage": b"x" * 1000, "other": other.read_bytes()}
    path.write_bytes(content[damage])
    with caplog.at_level(logging.WARNING):
        index = GalleryIndex.build(encoder, gallery, folder=tmp_path)
    assert torch.equal(index.embeddings, expected)
    assert "computed again" in caplog.text


def test_an_interrupted_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GalleryIndex.build(make_encoder(), make_gallery(50), folder=tmp_path, progress=interrupt)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


def test_a_cache_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were written to a folder named ``~`` while weights were read from the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPEN_GEOCLIP_CACHE", "~/cache")
    monkeypatch.chdir(tmp_path)
    path = GalleryIndex.build(make_encoder(), make_gallery(50)).path
    assert path is not None
    assert path.parent == tmp_path / "cache" / "galleries"
    assert not (tmp_path / "~").exists()


def test_without_a_usable_cache_embeddings_stay_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        index = GalleryIndex.build(make_encoder(), make_gallery(50), folder=tmp_path / "file" / "cache")
    assert index.path is None
    assert len(index.embeddings) == 50
    assert "kept in memory" in caplog.text


def _build(folder: str, log: str) -> None:
    def progress(done: int, total: int) -> None:
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()}\n")

    torch.set_num_threads(1)
    GalleryIndex.build(make_encoder(), make_gallery(3000), folder=Path(folder), progress=progress)


def test_two_processes_build_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    processes = [context.Process(target=_build, args=(str(tmp_path / "cache"), str(log))) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(set(log.read_text().split())) == 1, "one process computed, the other read"
