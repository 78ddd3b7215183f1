"""Features on Ray are those of one machine: what the stages do, without Ray; test_ray.py has a whole run."""

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from open_geoclip._version import __version__
from open_geoclip.cli._options import RayOptions
from open_geoclip.cli.train import train
from open_geoclip.data.augmentation import Augmentation
from open_geoclip.data.photos import IndexedPhotos, PhotoSource
from open_geoclip.data.sources import open_source
from open_geoclip.errors import RayError, SettingsError
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.scale import features
from open_geoclip.scale.ray import RaySettings
from open_geoclip.training.cache import cache_features
from open_geoclip.training.features import EncodedPhotos, FeatureExtractor


class Means(nn.Module):
    """The mean of each channel."""

    dim = 3

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3"]:
        return pixels.mean(dim=(2, 3))


PREPROCESSING = Preprocessing(8, 8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EXTRACTOR = FeatureExtractor(
    "test", "0" * 64, PREPROCESSING, Means(), 3, augmentation=Augmentation(size=8), batch_size=4
)


def table(folder: Path) -> Path:
    """Nine photos; one of them is broken, and one has no coordinates."""
    for number in range(9):
        Image.fromarray(np.full((12, 10, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"no image")
    rows = [f"{number}.png,{number if number != 6 else ''},7" for number in range(9)]
    (folder / "photos.csv").write_text("\n".join(["path,lat,lon", *rows]))
    return folder / "photos.csv"


def shards(folder: Path) -> Path:
    """The same in a shard."""
    table(folder)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(9):
            for suffix, data in (
                ("png", (folder / f"{number}.png").read_bytes()),
                ("json", b'{"lat": 1, "lon": 2}' if number != 6 else b"{}"),
            ):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / "0.tar"


@pytest.mark.parametrize("make", [table, shards])
@pytest.mark.parametrize("continued", [False, True])
def test_the_stages_give_the_features_of_one_machine(
    make: Callable[[Path], Path], continued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(make(tmp_path))

    def encode(
        extractor: FeatureExtractor, source: PhotoSource, views: int, size: int, start: int
    ) -> Iterator[EncodedPhotos]:
        job = features._Job(__version__, source, replace(extractor, backbone=nn.Identity()), views, size, start)
        if isinstance(source, IndexedPhotos):
            chunks = [pa.table({"id": [number]}) for number in range(-(-(len(source) - start) // size))]
        else:
            chunks = list(features._read(job, pa.table({"id": [0]})))
        decoded = pa.concat_tables([table for chunk in chunks[::-1] for table in features._decode(job, chunk)])
        return features._in_order(features._Encoder(RaySettings(lambda: extractor), job)(decoded))

    def stop(done: int, total: int | None) -> None:
        if done > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(features, "fetch", lambda job: job)
    plain = cache_features(source, EXTRACTOR, tmp_path / "plain", views=2, shard=3)
    if continued:
        with pytest.raises(KeyboardInterrupt):
            cache_features(source, EXTRACTOR, tmp_path / "ray", views=2, shard=3, progress=stop)
    on_ray = cache_features(source, EXTRACTOR, tmp_path / "ray", views=2, shard=3, encode=encode)
    assert on_ray.fingerprint == plain.fingerprint
    assert on_ray.faults == plain.faults
    assert {fault.kind for fault in plain.faults} == {"broken", "no coordinates"}
    assert [path.relative_to(tmp_path / "ray") for path in on_ray.paths] == [
        path.relative_to(tmp_path / "plain") for path in plain.paths
    ]
    for one, other in zip(plain.features, on_ray.features, strict=True):
        assert torch.equal(one, other)


def test_a_node_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "fetch", lambda job: job)
    job = features._Job(__version__, open_source(table(tmp_path)), EXTRACTOR, 1, 2, 0)
    with pytest.raises(RayError, match=f"another weights {'1' * 64}, not {'0' * 64}"):
        features._Encoder(RaySettings(lambda: replace(EXTRACTOR, weights="1" * 64)), job)


@pytest.mark.parametrize(
    ("options", "lines", "message"),
    [
        (RayOptions(ray="auto"), "pixels = true", "set pixels = false"),
        (RayOptions(ray_gpus=1), "", "are for --ray"),
    ],
)
def test_training_options_that_do_not_go_together_are_refused(
    tmp_path: Path, options: RayOptions, lines: str, message: str
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f"output = 'run'\n[data]\ntrain = 'photos'\n{lines}\n[model]\nbackbone = 'earth'\n")
    with pytest.raises(SettingsError, match=message):
        train(config, ray=options)


def test_what_ray_prints_is_not_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "run.toml"
    config.write_text("output = 'run'\n[data]\ntrain = 'photos'\n[model]\nbackbone = 'earth'\n")

    def run(*_: object, **__: object) -> Path:
        print("a worker died")
        return tmp_path

    monkeypatch.setattr("open_geoclip.training.run.run", run)
    train(config, ray=RayOptions(ray="auto"))
    assert capsys.readouterr().out == f"{tmp_path}\n"
