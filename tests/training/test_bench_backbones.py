"""Backbones compared: one row each, the same settings, going on, and wrong use refused before any work."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from open_geoclip.cli.bench_backbones import bench_backbones
from open_geoclip.data.sources import open_source
from open_geoclip.errors import MissingWeightsError, OpenGeoCLIPError, SettingsError
from open_geoclip.evaluation.metrics import distances_km
from open_geoclip.search.encode import encode_images
from open_geoclip.search.gallery import Gallery
from open_geoclip.training import bench_backbones as module
from open_geoclip.training.evaluation import best_places
from open_geoclip.training.run import run
from open_geoclip.training.settings import DataSettings, ModelSettings, RunSettings
from open_geoclip.weights.backbones import find_licence
from open_geoclip.weights.load import load_model

SHAPE = ["width=16", "depth=1", "output=8", "hidden=[8]", "sigmas=[1.0]", 'device="cpu"']
SET = [f"model.{one}" for one in SHAPE] + ["train.epochs=1", "train.batch_size=4", "train.queue_size=4"]


@pytest.fixture
def photos(tmp_path: Path, save_colours: Callable[[Path, int], Path]) -> str:
    return str(save_colours(tmp_path, 12))


@pytest.fixture
def other_photos(tmp_path: Path, save_colours: Callable[[Path, int], Path]) -> str:
    (tmp_path / "test").mkdir()
    return str(save_colours(tmp_path / "test", 12))


@pytest.fixture
def bench(
    photos: str, other_photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that compares backbones with the command and returns the rows that it writes."""
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    monkeypatch.setattr("open_geoclip.training.run._draw_curves", lambda *_: None)

    def compare(*backbones: str, seeds: int = 2, more: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        output = tmp_path / "out"
        bench_backbones(
            photos,
            backbones=[*backbones],
            test=other_photos,
            output=output,
            seeds=seeds,
            speed=False,
            set_=[*SET, *more],
        )
        rows: list[dict[str, Any]] = json.loads((output / "backbones.json").read_text())
        return rows

    return compare


def test_a_row_per_backbone_and_a_second_call_goes_on(
    bench: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    save_clip: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `earth`)")
    small, large = (f"dir:{save_clip(tmp_path / f'clip{width}', projection=width)}" for width in (8, 12))
    [row] = bench(small, seeds=1)
    assert (row["dim"], row["seeds"], row["n"], row["licence"]) == (8, 1, 12, "unknown")
    assert row["photos_per_s"] is None
    assert row["parameters"] > 0
    low, high = row["median_km"]["interval"]
    assert low <= row["median_km"]["mean"] <= high
    assert row["median_km"]["deviation"] is None

    # With another backbone and seed: what is done is not done again.
    trained = list[str]()

    def counted(settings: RunSettings, **options: Any) -> Path:
        trained.append(settings.output)
        return run(settings, **options)

    monkeypatch.setattr(module, "run", counted)
    capsys.readouterr()
    rows = bench(small, large)
    assert rows[0]["median_km"]["deviation"] >= 0
    runs = [output.split("clip")[1] for output in trained]
    assert runs == ["8/1", "12/0", "12/1"]
    table = capsys.readouterr().out
    assert table == (tmp_path / "out" / "backbones.md").read_text()
    assert [line.count("|") for line in table.splitlines()] == [11] * 4
    with Image.open(tmp_path / "out" / "backbones.png") as plot:
        assert plot.width > plot.height

    with pytest.raises(SettingsError, match=r"holds a comparison with other settings \(train\): choose another output"):
        bench(small, more=("train.epochs=2",))


def test_a_backbone_that_was_trained_too_is_tested_as_it_was_trained(
    bench: Callable[..., list[dict[str, Any]]], tmp_path: Path, other_photos: str, save_clip: Callable[..., Path]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `earth`)")
    more = ("data.pixels=true", "train.unfreeze_blocks=1", "train.backbone_rate=1.0", "train.learning_rate=0.1")
    bench(f"dir:{save_clip(tmp_path / 'clip')}", seeds=1, more=("data.augment=false", *more))
    [home] = (tmp_path / "out" / "runs").glob("*/0")
    model = load_model(f"dir:{home / 'model'}")
    photos = list(open_source(other_photos))
    encoded = encode_images(model, [photo.image for photo in photos])
    gallery = torch.from_numpy(Gallery.from_file(home / "model" / "gallery.csv").coordinates).double()
    assert encoded.features is not None
    found = best_places(model, encoded.features.half(), gallery).numpy()
    truth = np.array([(photo.lat, photo.lon) for photo in photos])
    tested = np.array(json.loads((home / "test_km.json").read_text()))
    same = np.isclose(tested, distances_km(truth, found), atol=1e-3)
    assert same.sum() >= len(same) - 2, "another engine may round a place to its neighbour"


def test_wrong_use_is_refused_before_any_work(
    bench: Callable[..., list[dict[str, Any]]], tmp_path: Path, save_clip: Callable[..., Path]
) -> None:
    good = f"dir:{save_clip(tmp_path / 'clip')}"
    for wrong in ("dir:/nowhere", "efficientnet-lite9", "earth2"):
        with pytest.raises(OpenGeoCLIPError, match=wrong.partition(":")[2] or wrong):
            bench(good, wrong)
    with pytest.raises(SettingsError, match="name each backbone once"):
        bench(good, good)
    with pytest.raises(SettingsError, match="one seed or more"):
        bench(good, seeds=0)
    with pytest.raises(SettingsError, match="fewer than a batch of 5000"):
        bench(good, more=("train.batch_size=5000",))
    started = RunSettings("out", DataSettings("photos.csv"), ModelSettings(start="earth"))
    with pytest.raises(SettingsError, match="start: trained weights have one backbone"):
        module.bench_backbones(started, [good], "test.csv")
    with pytest.raises(SettingsError, match=r"test: photos\.csv are the photos to train on"):
        module.bench_backbones(replace(started, model=ModelSettings(backbone=good)), [good], "photos.csv")
    assert not (tmp_path / "out" / "features").exists()


def test_speed_and_memory_are_measured(tmp_path: Path, save_clip: Callable[..., Path]) -> None:
    cost = module.measure_cost(f"dir:{save_clip(tmp_path)}", "", "cpu", seconds=0.01)
    assert cost["photos_per_s"] > 0
    assert cost["memory_bytes"] is None or cost["memory_bytes"] > 1e7


def test_the_licence_is_that_of_the_card_or_the_configuration(tmp_path: Path) -> None:
    assert find_licence("efficientnet-lite2") == "Apache-2.0"
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"license": "cc-by-nc-4.0"}}')
    assert find_licence(f"dir:{tmp_path}") == "cc-by-nc-4.0"
    (tmp_path / "README.md").write_text("---\ntags:\n- timm\nlicense: apache-2.0\n---\nlicense: none\n")
    assert find_licence(f"dir:{tmp_path}") == "apache-2.0"
    (tmp_path / "README.md").write_text("no header\nlicense: none\n")
    (tmp_path / "config.json").write_text("{}")
    assert find_licence(f"dir:{tmp_path}") == "unknown"
    with pytest.raises(MissingWeightsError):
        find_licence("dir:/nowhere")
