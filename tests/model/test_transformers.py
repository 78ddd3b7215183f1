"""Vision models of transformers as backbones: features, preprocessing and wrong use, held against transformers itself.

All tests that import transformers' models are in this file, so that one worker imports them.
"""

import json
import re
import runpy
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from open_geoclip.errors import MissingExtraError, MissingWeightsError, SettingsError, WeightsError
from open_geoclip.model.backbones.clip import ClipVision
from open_geoclip.model.backbones.runtime import CompiledBackbone, prepare_backbone
from open_geoclip.model.backbones.transformers import Feature, TransformersBackbone
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.search.locator import Locator
from open_geoclip.server.engine import Engine
from open_geoclip.server.jobs import Upload
from open_geoclip.server.utility import prepare_image
from open_geoclip.training.finetuning import check_finetuning, finetuning
from open_geoclip.training.settings import TrainSettings
from open_geoclip.weights.backbones import find_licence, load_image_backbone
from open_geoclip.weights.load import load_model
from open_geoclip.weights.pull import pull
from tests.weights.hub import SHA, Hub, no_network

with warnings.catch_warnings(action="ignore"):
    import transformers

Save = Callable[..., Path]
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
TEXT = {**VIT, "vocab_size": 50, "max_position_embeddings": 8, "projection_size": 24}
SQUARE = {"height": 32, "width": 32}

# model type: settings, processor, its settings, features
FAMILIES: dict[str, tuple[dict[str, Any], str, dict[str, Any], list[str]]] = {
    "vit": ({**VIT, "image_size": 32, "patch_size": 8}, "ViT", {"size": SQUARE}, ["pooled", "cls", "mean", "cls+mean"]),
    "dinov2": (
        {**VIT, "image_size": 70, "patch_size": 14},  # positions are interpolated to what the processor cuts out
        "Bit",
        {"size": {"shortest_edge": 48}, "crop_size": {"height": 42, "width": 42}},
        ["pooled", "cls", "mean", "cls+mean"],
    ),
    "dinov2_with_registers": (
        {**VIT, "image_size": 42, "patch_size": 14, "num_register_tokens": 3},
        "Bit",
        {"size": {"shortest_edge": 48}, "crop_size": {"height": 42, "width": 42}},
        ["pooled", "cls", "mean", "cls+mean"],
    ),
    "dinov3_vit": (
        {**VIT, "image_size": 32, "patch_size": 8, "num_register_tokens": 3},
        "DINOv3ViT",
        {"size": SQUARE},
        ["pooled", "cls", "mean", "cls+mean"],
    ),
    "siglip": (
        {"vision_config": {**VIT, "image_size": 32, "patch_size": 8}, "text_config": TEXT},
        "Siglip",
        {"size": SQUARE, "resample": 2},
        ["projected", "pooled", "mean"],
    ),
    "siglip_vision_model": (
        {**VIT, "image_size": 32, "patch_size": 8},
        "Siglip",
        {"size": SQUARE},
        ["pooled", "mean"],
    ),
    "convnext": (
        {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2},
        "ConvNext",
        {"size": {"shortest_edge": 32}, "crop_pct": 0.9},
        ["pooled", "mean"],
    ),
    "swin": (
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        "ViT",
        {"size": SQUARE},
        ["pooled", "mean"],
    ),
}


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Return a function that writes a family's small model with random weights, in the layout it is published in."""

    def write(kind: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        settings, processor, prepares, _ = FAMILIES[kind]
        torch.manual_seed(0)
        config = transformers.CONFIG_MAPPING[kind](**{**settings, **changes})
        with warnings.catch_warnings(action="ignore"):
            transformers.AutoModel.from_config(config).save_pretrained(folder)
        # As published: only what differs from the class, and often the name that the class had before.
        written = {**prepares, "image_processor_type": f"{processor}ImageProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps(written))
        return folder

    return write


def reference_features(folder: Path, pixels: torch.Tensor) -> dict[Feature, torch.Tensor]:
    """Return features as the documentation of transformers computes them."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found: dict[Feature, torch.Tensor] = {}
    with torch.no_grad():
        if hasattr(model, "get_image_features"):
            found["projected"] = model.get_image_features(pixel_values=pixels).pooler_output
            model = model.vision_model
        output = model(pixel_values=pixels)
    last = output.last_hidden_state
    found["pooled"] = output.pooler_output
    if last.ndim == 4:
        return {**found, "mean": last.mean(dim=(2, 3))}
    kind = model.config.model_type
    if kind in ("siglip_vision_model", "swin"):
        return {**found, "mean": last.mean(dim=1)}
    patches = last[:, 1 + getattr(model.config, "num_register_tokens", 0) :].mean(dim=1)
    return {**found, "cls": last[:, 0], "mean": patches, "cls+mean": torch.cat([last[:, 0], patches], dim=1)}


@pytest.mark.parametrize("kind", FAMILIES)
def test_features_and_preprocessing_equal_transformers(kind: str, save: Save) -> None:
    folder, features = save(kind), FAMILIES[kind][3]
    first, preprocessing = load_image_backbone(f"dir:{folder}")
    assert isinstance(first, TransformersBackbone)
    assert first.feature == features[0]
    assert not any(parameter.requires_grad for parameter in first.parameters())
    images = [Image.fromarray(array) for array in _images((61, 37), (33, 32), (20, 90), (300, 211))]
    pixels = torch.stack([preprocessing(image) for image in images])
    if kind != "dinov3_vit":  # whose processor needs torchvision
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        assert torch.equal(pixels, processor(images=images, return_tensors="pt")["pixel_values"])
    expected = reference_features(folder, pixels)
    assert list(expected) == features
    for feature, values in expected.items():
        module = TransformersBackbone(first.model, preprocessing.crop, feature)
        with torch.no_grad():
            found = module(pixels)
        assert module.dim == found.shape[1]
        torch.testing.assert_close(found, values.flatten(1), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        half = first.to(torch.bfloat16)(pixels)
    assert torch.cosine_similarity(half.float(), expected[features[0]].flatten(1)).min() > 0.99


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "vit")) for kind in FAMILIES])
def test_openvino_runs_each_family_as_torch_does(kind: str, save: Save) -> None:
    pytest.importorskip("openvino", reason="the extra fast is not installed")
    backbone, preprocessing = load_image_backbone(f"dir:{save(kind)}")
    compiled = prepare_backbone(backbone, "auto", "float32")
    assert isinstance(compiled, CompiledBackbone)
    for n in (1, 5):
        pixels = torch.randn(n, 3, preprocessing.crop, preprocessing.crop)
        torch.testing.assert_close(compiled(pixels), backbone(pixels), rtol=1e-4, atol=1e-4)


def _images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    return [np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_dinov3_is_within_a_rounding_of_its_processor_which_needs_torchvision(save: Save) -> None:
    _, preprocessing = load_image_backbone(f"dir:{save('dinov3_vit')}")
    assert (preprocessing.squash, preprocessing.resample, preprocessing.mean[0]) == (True, "bilinear", 0.485)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    for array in _images((61, 37), (33, 32), (300, 211)):
        values = torch.from_numpy(array).permute(2, 0, 1)[None] * (1 / 255)
        resized = torch.nn.functional.interpolate(values, (32, 32), mode="bilinear", antialias=True)[0]
        difference = (preprocessing(Image.fromarray(array)) - (resized - mean) / std) * std
        assert difference.abs().max() < 1.01 / 255


def test_a_square_is_cut_out_after_squashing_and_crop_box_says_where() -> None:
    config = {"size": {"height": 40, "width": 40}, "crop_size": 30}
    preprocessing = Preprocessing.from_config(config)
    assert preprocessing.crop_box((400, 200)) == (0.125, 0.125, 0.875, 0.875)
    image = Image.fromarray(_images((100, 50))[0])
    small = image.resize((40, 40), Image.Resampling.BICUBIC)
    assert torch.equal(preprocessing(image), preprocessing(small))
    assert preprocessing.resize_and_crop(image, 10).shape == (10, 30, 30, 3)
    plain = Preprocessing.from_config({**config, "do_normalize": False})(image)
    assert 0 <= plain.min() < plain.max() <= 1


def test_clip_is_our_own_unless_another_feature_is_asked_for(tmp_path: Path, save_clip: Callable[..., Path]) -> None:
    name = f"dir:{save_clip(tmp_path, projection=40)}"
    assert isinstance(load_image_backbone(name)[0], ClipVision)
    module, preprocessing = load_image_backbone(name, feature="pooled")
    pixels = torch.randn(2, 3, preprocessing.crop, preprocessing.crop)
    with torch.no_grad():
        torch.testing.assert_close(module(pixels), reference_features(tmp_path, pixels)["pooled"])


def test_a_pooler_that_was_not_published_is_not_used(save: Save) -> None:
    folder = save("vit")
    weights = load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if "pooler" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    module, _ = load_image_backbone(f"dir:{folder}")
    assert module.feature == "cls"
    with pytest.raises(SettingsError, match=r"a ViTModel with these weights has cls, mean, cls\+mean, not pooled"):
        load_image_backbone(f"dir:{folder}", feature="pooled")
    lost = next(key for key in kept if "layernorm" in key)
    save_file({key: kept[key] for key in kept if key != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 weights that its config\.json asks for are missing, such as "):
        load_image_backbone(f"dir:{folder}")


def _write(folder: Path, config: dict[str, Any] | None = None, processor: dict[str, Any] | None = None) -> str:
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        if content is not None:
            path = folder / name
            old = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**old, **content}))
    (folder / "model.safetensors").touch()
    return f"dir:{folder}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "a 'bert', which reads texts. A backbone turns images into features"),
        ({"model_type": "clip_text_model"}, "a 'clip_text_model', which reads texts"),
        ({"model_type": "siglip_text_model"}, "a 'siglip_text_model', which has no vision part"),
        ({"model_type": "nosuch"}, r"a 'nosuch', which transformers [\d.]+ does not know; a newer version may"),
        (
            {"model_type": "nosuch", "auto_map": {"AutoModel": "modeling.Net"}},
            "code of its own.*OPEN_GEOCLIP_TRUST_REMOTE_CODE='dir:",
        ),
    ],
)
def test_what_is_no_vision_model_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_image_backbone(_write(tmp_path, config))


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"image_processor_type": "Sam2ImageProcessor"}, "its processor Sam2ImageProcessor needs torchvision, which"),
        ({"image_processor_type": "Nosuch"}, "its processor Nosuch cannot be used here"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "If a plain processor does"),
        ({"image_processor_type": "MobileViTImageProcessor", "crop_size": SQUARE}, "does more than resize"),
        ({"do_resize": False}, "do_resize is off"),
        ({"size": {"shortest_edge": 32}}, "do_center_crop is off"),
        ({"size": {"height": 32, "width": 24}}, "not square"),
        (
            {"size": {"height": 40, "width": 40}},
            "a ViTModel cannot be used as a backbone: for images of 40 x 40 pixels",
        ),
    ],
)
def test_other_preprocessing_is_refused(save: Save, processor: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_image_backbone(_write(save("vit"), processor=processor))


def test_weights_that_do_not_fit(save: Save, tmp_path: Path) -> None:
    folder = save("vit")
    given = Preprocessing(32, 32, "bicubic", (0, 0, 0), (1, 1, 1))
    (folder / "preprocessor_config.json").unlink()
    assert load_image_backbone(f"dir:{folder}", given)[1] == given
    with pytest.raises(WeightsError, match="has no preprocessor_config"):
        load_image_backbone(f"dir:{folder}")
    with pytest.raises(WeightsError, match=r"do not fit config\.json"):
        load_image_backbone(_write(folder, {"intermediate_size": 41}), given)
    (folder / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_image_backbone(f"dir:{folder}", given)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="as a pickle"):
        load_image_backbone(f"dir:{folder}", given)


def test_code_of_a_backbone_runs_only_if_it_is_named(
    save: Save, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = save("vit")
    (folder / "modeling_own.py").write_text(
        "from torch import nn\n"
        "from transformers import PreTrainedConfig, PreTrainedModel\n"
        "from transformers.modeling_outputs import BaseModelOutput\n"
        "class OwnConfig(PreTrainedConfig):\n"
        "    model_type = 'own'\n"
        "class OwnModel(PreTrainedModel):\n"
        "    config_class = OwnConfig\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.patches = nn.Conv2d(3, 5, 8, 8)\n"
        "        self.post_init()\n"
        "    def forward(self, pixel_values):\n"
        "        return BaseModelOutput(last_hidden_state=self.patches(pixel_values))\n"
    )
    files = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    name = _write(folder, {"model_type": "own", "auto_map": files})
    save_file({"patches.weight": torch.randn(5, 3, 8, 8), "patches.bias": torch.randn(5)}, folder / "model.safetensors")
    with pytest.raises(SettingsError, match="code of its own"):
        load_image_backbone(name)
    monkeypatch.setenv("OPEN_GEOCLIP_TRUST_REMOTE_CODE", f"dir:/other {name}")
    module, _ = load_image_backbone(name)
    assert isinstance(module, TransformersBackbone)
    assert (module.feature, module.dim) == ("mean", 5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_family_is_pulled_and_carried_on(
    hub: Hub, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Downloaded on one machine, carried to another in the cache of Hugging Face's tools: the same features."""
    name, card = f"hub:org/{kind}@{SHA}", b"---\nlicense: apache-2.0\n---\n# A model\n"
    files = {file.name: file.read_bytes() for file in save(kind).iterdir()}
    hub.repositories[f"org/{kind}"] = {**files, "README.md": card, "pytorch_model.bin": b"pickle"}
    with pytest.raises(MissingWeightsError, match=f"run: geoclip pull {name}"):
        load_image_backbone(name)
    pull(name)
    backbone, preprocessing = load_image_backbone(name)
    assert find_licence(name) == "apache-2.0"
    pixels = preprocessing(Image.new("RGB", (60, 40), "teal"))[None]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another machine"))
    with no_network():
        pull(name, source=tmp_path / "hf")
        assert torch.equal(load_image_backbone(name)[0](pixels), backbone(pixels))


@pytest.mark.parametrize("kind", ["vit", "dinov3_vit", "siglip", "swin", "convnext"])
def test_the_last_block_or_low_rank_updates_of_each_family_are_trained(save: Save, kind: str) -> None:
    folder = save(kind)
    for settings in (TrainSettings(unfreeze_blocks=1), TrainSettings(lora_rank=2)):
        backbone, preprocessing = load_image_backbone(f"dir:{folder}")
        pixels = torch.rand(3, 3, preprocessing.crop, preprocessing.crop)
        assert isinstance(backbone, TransformersBackbone)
        encoder = ImageEncoder(backbone, preprocessing, ImageSettings(widths=(backbone.dim, 8)))
        model = GeoCLIP(encoder, LocationEncoder(LocationSettings(width=8, depth=1, output=8)))
        if kind == "convnext" and settings.lora_rank:
            with pytest.raises(SettingsError, match="ConvNextModel has no linear layers for queries"):
                check_finetuning(backbone, settings)
            continue
        before = backbone(pixels)
        with finetuning(model, settings) as factors:
            trained = [p for name, p in model.named_parameters() if name in factors]
            optimizer = torch.optim.SGD(trained, lr=1.0)
            for _ in range(2):  # the first step of low-rank updates moves B alone, which is 0 at first
                (encoder(pixels) * torch.arange(8)).sum().backward()
                optimizer.step()
        after = backbone(pixels)
        assert not torch.allclose(before, after, atol=1e-5)
        again, _ = load_image_backbone(f"dir:{folder}")
        assert encoder.adapter is not None
        encoder.adapter.merge(again, kind)
        torch.testing.assert_close(again(pixels), after, rtol=1e-4, atol=1e-5)


def test_a_model_that_masks_at_random_is_refused(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "vit_mae", FAMILIES["vit"])
    with pytest.raises(SettingsError, match="gives another feature of the same image each time"):
        load_image_backbone(f"dir:{save('vit_mae')}")


def test_without_transformers_the_extra_is_named(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save("vit")
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    with pytest.raises(MissingExtraError, match="transformers"):
        load_image_backbone(f"dir:{folder}")


def test_the_example_trains_on_any_model_and_its_release_locates_and_serves(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "train_any_backbone.py"
    assert len([line for line in example.read_text().splitlines() if line.strip()]) <= 45
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("open_geoclip.training.run._draw_curves", lambda *_: None)  # matplotlib is slow to import
    backbone = save("vit").rename(tmp_path / "backbone")
    arguments = [f"dir:{backbone}", "--feature", "cls+mean", "--epochs", "2", "--output", "run"]
    arguments += ["--train", "earth-views:train:64", "--validation", "earth-views:validation:8"]
    runpy.run_path(str(example))["main"](arguments)
    assert re.fullmatch(r"dir:run/model: \S+ at [-\d.]+, [-\d.]+; taken at .*\n", capsys.readouterr().out)

    # The release names backbone and feature; it moves together with its backbone.
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["image_encoder"]["feature"] == "cls+mean"
    assert config["image_encoder"]["widths"][0] == 48
    assert config["image_encoder"]["backbone"] == "dir:../../backbone"
    assert config["preprocessing"]["squash"]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    monkeypatch.chdir(moved)
    name = f"dir:{moved}/run/model"
    locator = Locator.from_pretrained(name)
    backbone_kind = TransformersBackbone if find_spec("openvino") is None else CompiledBackbone
    assert isinstance(locator.model.image_encoder.backbone, backbone_kind)
    with pytest.raises(WeightsError, match="this model has no text encoder"):
        locator.locate_text(["a beach"])

    image = Image.fromarray(_images((90, 70))[0])
    image.save("photo.png")
    located = locator.locate(["photo.png"])[0]
    upload = Upload("photo.png", Path("photo.png").read_bytes())
    pixels = prepare_image(upload, **Engine(locator).image_options).pixels
    assert pixels is not None
    served = locator.locate([Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)])[0]
    assert served.candidates == located.candidates

    # A head that does not fit
    with pytest.raises(WeightsError, match=r"trained on features of length 48; those of .* have 24: name the backbone"):
        load_model(name, backbone=f"dir:{save('vit', hidden_size=12)}")
