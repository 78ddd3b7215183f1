"""Models of timm as backbones, held against timm itself. Not a test: `test_timm.py` starts it in a process of its own.

timm imports torchvision, whose compiled operators do not load beside a CPU-only torch. Its transforms need none of
them, so that here the declarations of these operators are skipped.
"""

import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.model.backbones.runtime import CompiledBackbone, prepare_backbone
from open_geoclip.model.backbones.timm import TimmBackbone
from open_geoclip.model.backbones.transformers import Feature
from open_geoclip.weights.backbones import find_licence, load_image_backbone

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
ALL: list[Feature] = ["pooled", "cls", "mean", "cls+mean"]
# architecture, its arguments, changes of pretrained_cfg, features
MODELS: list[tuple[str, dict[str, Any], dict[str, Any], list[Feature]]] = [
    ("vit_tiny_patch16_224", VIT, {"crop_pct": 0.9}, ALL),
    (
        "vit_tiny_patch16_224",
        {**VIT, "class_token": False, "global_pool": "avg", "reg_tokens": 2},
        {},
        ["pooled", "mean"],
    ),
    ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 3}, {"crop_mode": "squash", "interpolation": "bilinear"}, ALL),
    ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16)}, {"crop_pct": 0.95}, ["pooled", "mean"]),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2)},
        {"crop_pct": 0.875},
        ["pooled", "mean"],
    ),
    ("resnet10t", {}, {"crop_pct": 0.8}, ["pooled", "mean"]),
]


def main(folder: Path) -> None:
    """Save each model with random weights as timm publishes it, and compare features and pixels with timm's."""
    register, torch.library.register_fake = torch.library.register_fake, lambda *_, **__: lambda function: function
    with warnings.catch_warnings(action="ignore"):
        import timm
        from timm.data import create_transform, resolve_data_config
        from timm.models import save_for_hf
    torch.library.register_fake = register
    rng = np.random.default_rng(0)
    sizes = [(61, 37), (33, 32), (20, 90), (300, 211), (47, 46), (35, 36)]
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    for number, (architecture, arguments, changes, features) in enumerate(MODELS):
        torch.manual_seed(0)
        with warnings.catch_warnings(action="ignore"):
            model = timm.create_model(architecture, num_classes=3, **arguments).eval()
            home = folder / str(number)
            save_for_hf(model, home, model_args={"num_classes": 3, **arguments}, safe_serialization=True)
        config = json.loads((home / "config.json").read_text())
        config["pretrained_cfg"] |= {"input_size": [3, 32, 32], "num_classes": 3, **changes}
        (home / "config.json").write_text(json.dumps(config))

        name = f"dir:{home}"
        first, preprocessing = load_image_backbone(name)
        assert isinstance(first, TimmBackbone)
        assert first.feature == features[0]
        assert not any(parameter.requires_grad for parameter in first.parameters())
        transform = create_transform(**resolve_data_config(pretrained_cfg=config["pretrained_cfg"]))
        pixels = torch.stack([preprocessing(image) for image in images])
        assert torch.equal(pixels, torch.stack([transform(image) for image in images]))
        left, top, right, bottom = preprocessing.crop_box((37, 61))
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        with torch.no_grad():
            tokens = model.forward_features(pixels)
            expected = {"pooled": model.forward_head(tokens, pre_logits=True)}
            if tokens.ndim == 4:
                expected["mean"] = tokens.mean(dim=(1, 2) if "swin" in architecture else (2, 3))
            else:
                patches = tokens[:, model.num_prefix_tokens :].mean(dim=1)
                expected |= {
                    "cls": tokens[:, 0],
                    "mean": patches,
                    "cls+mean": torch.cat([tokens[:, 0], patches], dim=1),
                }
            for feature in features:
                module, _ = load_image_backbone(name, feature=feature)
                found = module(pixels)
                assert module.dim == found.shape[1]
                torch.testing.assert_close(found, expected[feature], rtol=1e-5, atol=1e-5)
        if find_spec("openvino") is not None:
            compiled = prepare_backbone(first, "auto", "float32")
            assert isinstance(compiled, CompiledBackbone)
            torch.testing.assert_close(compiled(pixels), first(pixels), rtol=1e-4, atol=1e-4)
        if "cls" not in features:
            with pytest.raises(SettingsError, match=r"has pooled, mean, not cls"):
                load_image_backbone(name, feature="cls")
        print(architecture, *features)
    check_wrong_use(home)


def check_wrong_use(home: Path) -> None:
    """What cannot be used is refused by name."""
    path, name = home / "config.json", f"dir:{home}"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"pretrained_cfg": config["pretrained_cfg"] | {"license": "mit"}}))
    assert find_licence(name) == "mit"
    for changes, message in (
        ({"crop_mode": "border"}, "crop_mode border is not center or squash"),
        ({"input_size": [3, 32, 48]}, r"input_size \(?\[?3, 32, 48.* is not that of square images"),
    ):
        path.write_text(json.dumps(config | {"pretrained_cfg": config["pretrained_cfg"] | changes}))
        with pytest.raises(SettingsError, match=message):
            load_image_backbone(name)
    path.write_text(json.dumps(config | {"architecture": "nosuch"}))
    with pytest.raises(WeightsError, match=r"do not fit config\.json.*nosuch"):
        load_image_backbone(name)
    path.write_text(json.dumps(config | {"architecture": "resnet18"}))
    with pytest.raises(WeightsError, match=r"do not fit config\.json"):
        load_image_backbone(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
