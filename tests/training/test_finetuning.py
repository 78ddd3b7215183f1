"""Training of the image backbone: its last blocks or low-rank updates, resumed, averaged, saved and used."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from open_geoclip.data.sources import open_source
from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.evaluation.evaluate import evaluate
from open_geoclip.evaluation.labelled import label_source
from open_geoclip.model.adapter import BackboneAdapter, apply_changes, backbone_sha256
from open_geoclip.model.backbones.earth import EfficientNetLite
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.search.locator import Locator
from open_geoclip.server.engine import Engine
from open_geoclip.server.jobs import Upload
from open_geoclip.server.utility import prepare_image
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.finetuning import check_finetuning, find_blocks, finetuning
from open_geoclip.training.loop import Callbacks, train
from open_geoclip.training.run import run
from open_geoclip.training.settings import DataSettings, ModelSettings, RunSettings, TrainSettings
from open_geoclip.weights.backbones import load_image_backbone
from open_geoclip.weights.load import load_model, load_release
from open_geoclip.weights.release import check_release

sys.path.insert(0, str(Path(__file__).parent))
from small_run import small_model  # type: ignore[import-not-found]

sys.path.pop(0)

SETTINGS = TrainSettings(epochs=2, batch_size=32, queue_size=40, learning_rate=3e-3)
WAYS: dict[str, dict[str, Any]] = {
    "blocks": {"unfreeze_blocks": 1, "backbone_rate": 1.0},
    "lora": {"lora_rank": 2, "backbone_rate": 1.0},
}
LAST = {"blocks.2", "norm_out", "projection"}


def backbone_state(model: GeoCLIP) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.image_encoder.backbone.state_dict().items()}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_asked_for_is_trained_and_its_changes_are_the_adapter(tmp_path: Path, way: str) -> None:
    model, data = small_model(96, pixels=True)
    before, base = backbone_state(model), backbone_sha256(model.image_encoder.backbone)
    kept = train(model, data, replace(SETTINGS, **WAYS[way]), tmp_path, validation=data)
    after = backbone_state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys(), "the backbone is plain again"
    if way == "blocks":
        assert {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in changed} == LAST
    else:
        assert changed == {f"blocks.{i}.qkv.weight" for i in range(3)}
    assert not any(parameter.requires_grad for parameter in model.image_encoder.backbone.parameters())
    assert kept["median_km"] > 0
    adapter = model.image_encoder.adapter
    assert adapter is not None
    assert adapter.base_sha256 == base
    fresh, _ = small_model(96, pixels=True)
    adapter.merge(fresh.image_encoder.backbone, "test")
    for name, tensor in backbone_state(fresh).items():
        torch.testing.assert_close(tensor, after[name], rtol=0, atol=1e-6)
    with pytest.raises(WeightsError, match="fine-tuned from another backbone than test"):
        adapter.merge(fresh.image_encoder.backbone, "test")


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, way: str) -> None:
    settings = replace(SETTINGS, **WAYS[way], checkpoint_every=2, ema_decay=0.9, layer_decay=0.5)
    whole, data = small_model(96, pixels=True)
    train(whole, data, settings, tmp_path / "whole")
    model, _ = small_model(96, pixels=True)
    before = backbone_state(model)

    def stop(figures: dict[str, float]) -> None:
        if figures["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, data, settings, tmp_path / "parts", callbacks=Callbacks(step=stop))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone_state(model).items())
    assert model.image_encoder.adapter is None
    train(model, data, settings, tmp_path / "parts", resume=True)
    expected, found = whole.state_dict(), model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    saved = load_file(tmp_path / "parts" / "checkpoint.safetensors")
    assert not any(name.startswith("image_encoder.backbone.blocks.0.fc1") for name in saved), "what is frozen"


def test_checkpointed_blocks_and_parts_of_a_batch_are_the_same_step(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1, unfreeze_blocks=2, backbone_rate=1.0)
    found = []
    ways: dict[str, dict[str, Any]] = {"plain": {}, "again": {"gradient_checkpointing": True, "accumulate": 4}}
    for name, changes in ways.items():
        model, data = small_model(96, pixels=True)
        train(model, data, replace(settings, **changes), tmp_path / name)
        assert "forward" not in vars(model.image_encoder.backbone.blocks[2])
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        if name.endswith("qkv.bias"):  # softmax ignores a bias of the keys: its gradient is noise, which Adam scales up
            tensor, found[1][name] = (torch.cat(part.chunk(3)[::2]) for part in (tensor, found[1][name]))
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=2e-5, msg=name)


def test_the_kept_weights_are_the_moving_average(tmp_path: Path) -> None:
    model, data = small_model(128)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps = 0

    def follow(_: dict[str, float]) -> None:
        nonlocal steps
        steps += 1
        decay = min(0.8, (1 + steps) / (10 + steps))
        for name, parameter in model.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * parameter.detach()

    evaluated: list[Tensor] = []

    def evaluate_average(trained: GeoCLIP) -> dict[str, float]:
        evaluated.append(trained.logit_scale.detach().clone())
        return {}

    callbacks = Callbacks(step=follow)
    train(model, data, replace(SETTINGS, ema_decay=0.8), tmp_path, callbacks=callbacks, evaluate=evaluate_average)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name], rtol=0, atol=1e-6)
    assert torch.equal(evaluated[-1], model.logit_scale.detach())


def test_each_block_learns_slower_than_the_one_after_it() -> None:
    model, _ = small_model(32, pixels=True)
    settings = replace(SETTINGS, unfreeze_blocks=2, backbone_rate=0.2, layer_decay=0.5)
    with finetuning(model, settings) as factors:
        rates = {name.removeprefix("image_encoder.backbone."): factor for name, factor in factors.items()}
    assert rates["projection.weight"] == rates["blocks.2.qkv.weight"] == 0.2
    assert rates["blocks.1.qkv.weight"] == 0.1
    assert "blocks.0.qkv.weight" not in rates


def test_updates_on_updates() -> None:
    """An adapter on top of another one changes a backbone as both do, one after the other."""
    torch.manual_seed(0)
    layer = {"a.weight": (6, 5), "b.weight": (4, 6)}
    parts: list[dict[str, Tensor]] = [
        {"a.lora_A": torch.randn(2, 5), "a.lora_B": torch.randn(6, 2)},
        {"a.lora_A": torch.randn(3, 5), "a.lora_B": torch.randn(6, 3), "b.weight": torch.randn(4, 6)},
        {"b.lora_A": torch.randn(1, 6), "b.lora_B": torch.randn(4, 1)},
        {"a.weight": torch.randn(6, 5)},
        {"a.lora_A": torch.randn(2, 5), "a.lora_B": torch.randn(6, 2)},
    ]
    backbone = nn.ModuleDict({"a": nn.Linear(5, 6, bias=False), "b": nn.Linear(6, 4, bias=False)})
    base = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    adapter = BackboneAdapter("", {})
    for part in parts:
        apply_changes(backbone, part)
        adapter = adapter.followed_by(part)
    expected = {name: backbone.state_dict()[name].clone() for name in layer}
    backbone.load_state_dict(base)
    apply_changes(backbone, adapter.tensors)
    for name in layer:
        torch.testing.assert_close(backbone.state_dict()[name], expected[name])


# --- a whole run ----------------------------------------------------------------------------------

N = 16
TRAIN = TrainSettings(epochs=1, batch_size=8, queue_size=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, save_colours: Callable[[Path, int], Path]) -> Path:
    return save_colours(tmp_path_factory.mktemp("photos"), N)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, save_clip: Callable[..., Path]) -> str:
    return f"dir:{save_clip(tmp_path_factory.mktemp('backbone') / 'clip', projection=24)}"


def settings_of(folder: Path, photos: Path, model: ModelSettings, **train_: Any) -> RunSettings:
    data = DataSettings(str(photos), validation=str(photos), pixels=True, workers=1)
    return RunSettings(str(folder), data, model, replace(TRAIN, backbone_rate=1.0, **train_))


def small(backbone: str) -> ModelSettings:
    location = LocationSettings(sigmas=(1.0, 4.0), features=8, width=16, depth=1, output=8)
    return ModelSettings(backbone=backbone, location=location, hidden=())


def test_a_tuned_model_is_located_served_evaluated_and_tuned_again(
    tmp_path: Path, photos: Path, clip: str, save_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_geoclip.training.run._draw_curves", lambda *_: None)  # matplotlib is slow to import
    folder = run(settings_of(tmp_path / "lora", photos, small(clip), lora_rank=2, monitor="median_km"))
    release = load_release(f"dir:{folder}")
    assert release.adapter is not None
    assert set(release.adapter.tensors) == {f"blocks.{i}.qkv.lora_{part}" for i in range(3) for part in "AB"}
    assert (folder / "adapter.safetensors").stat().st_size < 10_000
    assert "fine-tuned" in (folder / "README.md").read_text()
    plain = load_image_backbone(clip)[0]
    model = load_model(f"dir:{folder}")
    paths = [photos.parent / f"{i}.png" for i in range(N)]
    pixels = model.image_encoder.preprocessing.normalize(torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8))
    with torch.no_grad():
        assert not torch.allclose(plain(pixels), model.image_encoder.backbone(pixels), atol=1e-4)
    locator = Locator.from_pretrained(f"dir:{folder}", engine="openvino", dtype="float32")
    reference = Locator.from_pretrained(f"dir:{folder}", engine="torch", dtype="float32").encode(paths)
    torch.testing.assert_close(locator.encode(paths), reference, rtol=0, atol=1e-4)
    report = evaluate(locator, label_source(open_source(photos)), tmp_path / "report", allow_leak=True, resamples=100)
    assert locator.weights_sha256 == release.fingerprint
    assert report is not None
    upload = Upload("photo.png", paths[0].read_bytes())
    served = prepare_image(upload, **Engine(locator).image_options).pixels
    assert served is not None
    image = Image.frombytes("RGB", (served.width, served.height), served.data)
    assert locator.locate([image], 1)[0].candidates == locator.locate([paths[0]], 1)[0].candidates

    # What does not fit is named.
    assert release.image is not None
    wrong = BackboneAdapter(release.adapter.base_sha256, {"blocks.9.qkv.weight": torch.zeros(2, 2)})
    with pytest.raises(WeightsError, match=r"adapter does not fit the backbone .*blocks\.9\.qkv\.weight"):
        load_model(replace(release, adapter=wrong))
    lost = BackboneAdapter("", {"a": torch.tensor([math.nan])})
    with pytest.raises(WeightsError, match="of its adapter holds something else than finite numbers"):
        check_release("x", release.tensors, release.location, release.image, adapter=lost)
    with pytest.raises(WeightsError, match="fine-tuned from another backbone"):
        load_model(f"dir:{folder}", backbone=f"dir:{save_clip(tmp_path / 'other', projection=24, seed=1)}")

    again = run(settings_of(tmp_path / "again", photos, ModelSettings(start=f"dir:{folder}"), unfreeze_blocks=1))
    second = load_release(f"dir:{again}").adapter
    assert second is not None
    assert second.base_sha256 == release.adapter.base_sha256
    assert {"blocks.0.qkv.lora_A", "blocks.2.qkv.weight"} <= set(second.tensors)
    assert "blocks.2.qkv.lora_A" not in second.tensors
    assert load_release(f"dir:{again}").fingerprint != release.fingerprint
    load_model(f"dir:{again}")


def test_settings_that_do_not_fit_are_refused_before_photos_are_encoded(
    tmp_path: Path, photos: Path, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        pytest.fail("photos are decoded")

    monkeypatch.setattr("open_geoclip.training.features.map_photos", fails)
    with pytest.raises(SettingsError, match="unfreeze_blocks: ClipVision has 3 blocks, not 4"):
        run(settings_of(tmp_path, photos, small(clip), unfreeze_blocks=4))
    with pytest.raises(SettingsError, match="not both"):
        replace(TRAIN, unfreeze_blocks=1, lora_rank=2)
    with pytest.raises(SettingsError, match="layer_decay: it has no effect as it is: set unfreeze_blocks"):
        replace(TRAIN, layer_decay=0.5)
    for part in ("image_encoder", "image_encoder.backbone"):
        with pytest.raises(
            SettingsError, match=r"freeze: the backbone in image_encoder is to be trained.* image_encoder\.mlp"
        ):
            replace(TRAIN, unfreeze_blocks=1, freeze=(part,))
    replace(TRAIN, unfreeze_blocks=1, freeze=("image_encoder.mlp",))
    with pytest.raises(SettingsError, match="cannot be cached: set pixels = true"):
        RunSettings("x", DataSettings(str(photos)), small(clip), replace(TRAIN, lora_rank=2))
    with pytest.raises(SettingsError, match="ema_decay: below 1"):
        replace(TRAIN, ema_decay=1.0)


def test_a_convolutional_backbone_has_blocks_and_no_attention() -> None:
    backbone = EfficientNetLite(0)
    assert list(find_blocks(backbone)) == [f"blocks.{i}" for i in range(16)]
    check_finetuning(backbone, replace(TRAIN, unfreeze_blocks=16))
    with pytest.raises(SettingsError, match="unfreeze_blocks: EfficientNetLite has 16 blocks, not 17"):
        check_finetuning(backbone, replace(TRAIN, unfreeze_blocks=17))
    with pytest.raises(SettingsError, match="no linear layers for queries, keys and values"):
        check_finetuning(backbone, replace(TRAIN, lora_rank=2))
    with pytest.raises(SettingsError, match="Conv2d has 0 blocks"):
        check_finetuning(nn.Conv2d(3, 4, 1), replace(TRAIN, unfreeze_blocks=1))


def test_the_last_blocks_of_the_embedded_backbone_are_trained() -> None:
    backbone = EfficientNetLite(0)
    encoder = ImageEncoder(backbone, None, ImageSettings("earth", (backbone.dim, 4)))
    model = GeoCLIP(encoder, LocationEncoder(LocationSettings(width=4, depth=1, output=4)))
    before = backbone_state(model)
    settings = replace(TRAIN, unfreeze_blocks=2, backbone_rate=1.0, gradient_checkpointing=True)
    with finetuning(model, settings) as factors:
        trained = [parameter for name, parameter in model.named_parameters() if name in factors]
        encoder(torch.rand(2, 3, 48, 48)).square().sum().backward()
        torch.optim.SGD(trained, lr=1.0).step()
    changed = {name for name, tensor in backbone_state(model).items() if not torch.equal(tensor, before[name])}
    assert {name.rsplit(".", 2)[0] for name in changed} == {"blocks.14", "blocks.15"}
    assert encoder.adapter is not None
    assert encoder.adapter.tensors.keys() == changed


def test_features_are_not_pixels(tmp_path: Path) -> None:
    model, data = small_model(64)
    with pytest.raises(SettingsError, match="unfreeze_blocks: the model has no backbone"):
        train(model, data, replace(SETTINGS, unfreeze_blocks=1), tmp_path)
    model, _ = small_model(64, pixels=True)
    with pytest.raises(SettingsError, match="the data hold features: give pixels"):
        train(model, FeatureSet(torch.rand(64, 24), data.coordinates), replace(SETTINGS, unfreeze_blocks=1), tmp_path)
