"""The feature cache, and training straight from pixels: taken up again, keyed, faults named."""

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from open_geoclip.data.augmentation import Augmentation
from open_geoclip.data.photos import SkippedRecord
from open_geoclip.data.sources import open_source
from open_geoclip.errors import DataError, SettingsError, TrainingError
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.training.batches import BatchRequest
from open_geoclip.training.cache import cache_features
from open_geoclip.training.features import FeatureExtractor, PixelData

PREPROCESSING = Preprocessing(8, 8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
N = 23


class Means(nn.Module):
    """The mean of each channel."""

    dim = 3

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3"]:
        return pixels.mean(dim=(2, 3))


EXTRACTOR = FeatureExtractor(
    "test", "0" * 64, PREPROCESSING, Means(), 3, augmentation=Augmentation(size=8), batch_size=2
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of photos; the fifth is broken, the ninth has latitude 120, the eleventh is missing."""
    lines = ["IMG_FILE,LAT,LON"]
    for i in range(N):
        colour = np.full((12, 10, 3), i * 10, np.uint8)
        if i == 5:
            (tmp_path / f"{i}.png").write_bytes(b"no picture")
        elif i != 11:
            Image.fromarray(colour).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{120 if i == 9 else i},{2 * i + 1}")
    path = tmp_path / "photos.csv"
    path.write_text("\n".join(lines))
    return path


def test_features_of_another_precision_are_others(table: Path, tmp_path: Path) -> None:
    class Scaled(Means):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.001))

        def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3"]:
            return super().forward(pixels) * self.scale

    plain = replace(EXTRACTOR, backbone=Scaled())
    assert plain.fingerprint == EXTRACTOR.fingerprint
    half = replace(plain, backbone=Scaled().to(torch.bfloat16))
    source = open_source(table)
    found = [cache_features(source, one, tmp_path / "cache").first_view().features for one in (plain, half, plain)]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_what_is_kept_is_what_the_backbone_gives(table: Path, tmp_path: Path) -> None:
    plain = replace(EXTRACTOR, augmentation=None)
    kept = cache_features(open_source(table), plain, tmp_path / "kept", shard=4)
    found = kept.first_view()
    grey = (torch.arange(N)[torch.tensor([i not in (5, 9, 11) for i in range(N)])] * 10 / 255 - 0.5) / 0.5
    torch.testing.assert_close(found.features, grey[:, None].expand(-1, 3).half(), rtol=0, atol=2e-3)
    assert [fault.kind for fault in kept.faults] == ["broken", "out of range", "missing"]
    assert cache_features(open_source(table), plain, tmp_path / "kept", shard=4).faults == kept.faults


def test_interrupted_work_goes_on_where_it_was(table: Path, tmp_path: Path) -> None:
    whole = cache_features(open_source(table), EXTRACTOR, tmp_path / "whole", views=2, shard=8)

    def stops(done: int, total: int | None) -> None:
        if done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_features(open_source(table), EXTRACTOR, tmp_path / "parts", views=2, shard=8, progress=stops)
    assert len(list((tmp_path / "parts").rglob("*.unfinished"))) == 1
    seen: list[int] = []
    resumed = cache_features(
        open_source(table), EXTRACTOR, tmp_path / "parts", views=2, shard=8, progress=lambda done, _: seen.append(done)
    )
    assert seen[0] == 13, "what was done is not done again, also within a shard"
    assert not list((tmp_path / "parts").rglob("*.unfinished"))
    for one, other in zip(whole.features, resumed.features, strict=True):
        assert torch.equal(one, other)
    assert resumed.fingerprint == whole.fingerprint


def test_another_augmentation_is_another_cache(table: Path, tmp_path: Path) -> None:
    one = cache_features(open_source(table), EXTRACTOR, tmp_path, views=1)
    other = cache_features(
        open_source(table), replace(EXTRACTOR, augmentation=Augmentation(size=8, seed=1)), tmp_path, views=1
    )
    assert one.paths[0].parent.parent != other.paths[0].parent.parent
    with pytest.raises(SettingsError, match="all the same without augmentation"):
        cache_features(open_source(table), replace(EXTRACTOR, augmentation=None), tmp_path, views=2)


@pytest.mark.parametrize("neighborhood", [0, 4])
def test_an_epoch_shows_each_photo_once_and_can_be_entered_anywhere(
    table: Path, tmp_path: Path, neighborhood: int
) -> None:
    kept = cache_features(open_source(table), EXTRACTOR, tmp_path / "kept", views=3, shard=4)
    kept = replace(kept, neighborhood=neighborhood)
    whole = list(kept.batches(BatchRequest(epoch=0, seed=0, size=5)))
    latitudes = torch.cat([batch.coordinates[:, 0] for batch in whole])
    assert len(latitudes.unique()) == len(latitudes) == 20
    rest = list(kept.batches(BatchRequest(epoch=0, seed=0, size=5, position=whole[1].position)))
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.features, other.features)
        assert one.keys() == other.keys()
    other_epoch = next(iter(kept.batches(BatchRequest(epoch=1, seed=0, size=5))))
    assert not torch.equal(other_epoch.coordinates, whole[0].coordinates)


def test_several_views_of_a_photo_in_a_batch(table: Path, tmp_path: Path) -> None:
    kept = replace(cache_features(open_source(table), EXTRACTOR, tmp_path, views=3, shard=4), together=2)
    for batch in kept.batches(BatchRequest(epoch=0, seed=0, size=6)):
        assert torch.equal(batch.coordinates[::2], batch.coordinates[1::2])
        assert not torch.equal(batch.features[::2], batch.features[1::2])
    with pytest.raises(SettingsError, match="no multiple of 2 views"):
        next(kept.batches(BatchRequest(epoch=0, seed=0, size=5)))


def test_processes_share_the_photos(table: Path, tmp_path: Path) -> None:
    kept = cache_features(open_source(table), EXTRACTOR, tmp_path, shard=4)
    parts = [list(kept.batches(BatchRequest(epoch=2, seed=0, size=4, rank=rank, world=2))) for rank in range(2)]
    seen = [float(lat) for batches in parts for batch in batches for lat in batch.coordinates[:, 0]]
    assert len(seen) == len(set(seen)) >= 16


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_have_as_many_photos_however_shards_are_filled(table: Path, tmp_path: Path, world: int) -> None:
    # Two processes that cached 2,500 photos each wrote a full shard and one of the rest, both.
    kept = cache_features(open_source(table), replace(EXTRACTOR, batch_size=1), tmp_path, shard=7)
    assert [len(shard) for shard in kept.features] == [7, 7, 6]
    lengths = [7, 1, 7, 1, 4]
    parts = torch.cat(kept.features).split(lengths)
    kept = replace(kept, features=[part.clone() for part in parts])
    requests = [BatchRequest(epoch=0, seed=0, size=world, rank=rank, world=world) for rank in range(world)]
    seen = [[float(batch.coordinates[0, 0]) for batch in kept.batches(request)] for request in requests]
    assert min(map(len, seen)) == 20 // world
    assert len({lat for part in seen for lat in part}) == 20


def pixel_batches(data: PixelData, position: int = 0) -> Iterator[tuple[Tensor, Tensor, int, list[str]]]:
    for batch in data.batches(BatchRequest(epoch=1, seed=0, size=4, position=position)):
        yield batch.features, batch.coordinates, batch.position, list(batch.keys())


def test_pixels_each_epoch_anew_and_from_any_batch(table: Path) -> None:
    faults: list[SkippedRecord] = []
    data = PixelData(open_source(table), EXTRACTOR, on_skip=faults.append)
    whole = list(pixel_batches(data))
    assert len({key for batch in whole for key in batch[3]}) == 20
    assert len(faults) == 3
    rest = list(pixel_batches(data, whole[0][2]))
    assert len(rest) == len(whole) - 1
    for one, other in zip(whole[1:], rest, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[3] == other[3]
    assert len(data.sample_coordinates(5, 0)) == 5


def test_no_photo_at_all(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("IMG_FILE,LAT,LON\na.png,1,2\n")
    with pytest.raises(DataError, match=r"no photo to train on; the first of 1 .*a\.png"):
        cache_features(open_source(tmp_path / "photos.csv"), EXTRACTOR, tmp_path / "kept")
    with pytest.raises(DataError, match=r"not one photo can be used; the first of 1 .*a\.png: there is no"):
        EXTRACTOR.encode_all(open_source(tmp_path / "photos.csv"))


def test_the_first_photos_of_a_source(table: Path) -> None:
    first = EXTRACTOR.encode_all(open_source(table), most=7)
    assert first.coordinates[:, 0].tolist() == [0, 1, 2, 3, 4, 6, 7], "the fifth is broken"


def test_a_full_disk_leaves_whole_shards(table: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))  # Python ignores the signal and gets an error
    try:
        with pytest.raises(TrainingError, match=r"cannot be written: File too large.* resume the run"):
            cache_features(open_source(table), EXTRACTOR, tmp_path / "kept", shard=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "kept").rglob("*.part"))
    assert len(cache_features(open_source(table), EXTRACTOR, tmp_path / "kept", shard=4)) == 20
