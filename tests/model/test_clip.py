"""CLIP's vision transformer and its preprocessing, held against transformers."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.model.backbones.clip import ClipVision, ClipVisionSettings, merge_similar
from open_geoclip.model.backbones.earth import PREPROCESSING as EARTH
from open_geoclip.model.backbones.runtime import CompiledBackbone
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.weights.backbones import load_image_backbone
from open_geoclip.weights.load import load_model

SaveClip = Callable[..., Path]
CLIP = Preprocessing.from_config({})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, save_clip: SaveClip) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def processor() -> Any:
    with warnings.catch_warnings(action="ignore"):
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    return CLIPImageProcessorPil()


def reference(folder: Path) -> Any:
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder).eval()


@pytest.mark.parametrize("vision", [{}, {"hidden_act": "gelu"}, {"patch_size": 28, "layer_norm_eps": 1e-3}])
def test_equals_transformers(tmp_path: Path, save_clip: SaveClip, vision: dict[str, Any]) -> None:
    folder = save_clip(tmp_path, projection=40, **vision)
    model, preprocessing = load_image_backbone(f"dir:{folder}")
    assert preprocessing.crop == 56
    pixels = torch.randn(3, 3, 56, 56)
    with torch.no_grad():
        expected = reference(folder).get_image_features(pixel_values=pixels).pooler_output
        found = model(pixels)
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_bfloat16_stays_close(folder: Path) -> None:
    model, _ = load_image_backbone(f"dir:{folder}")
    half, _ = load_image_backbone(f"dir:{folder}")
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        cosine = torch.cosine_similarity(half.to(torch.bfloat16)(pixels).float(), model(pixels))
    assert float(cosine.min()) > 0.99


def test_reads_shards_in_the_folder_and_no_pickles(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        expected = load_image_backbone(f"dir:{folder}")[0](pixels)

    def copy(name: str) -> Path:
        (tmp_path / name).mkdir()
        for file in ("config.json", "preprocessor_config.json"):
            (tmp_path / name / file).write_bytes((folder / file).read_bytes())
        return tmp_path / name

    sharded = copy("sharded")
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, keys in halves.items():
        save_file({key: weights[key] for key in keys}, sharded / shard)
    index = {"weight_map": {key: shard for shard, keys in halves.items() for key in keys}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with torch.no_grad():
        torch.testing.assert_close(load_image_backbone(f"dir:{sharded}")[0](pixels), expected)
    index["weight_map"][names[0]] = "../outside.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="is not the name of a"):
        load_image_backbone(f"dir:{sharded}")
    pickled = copy("pickled")
    torch.save(weights, pickled / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="as a pickle, which could run code"):
        load_image_backbone(f"dir:{pickled}")


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, missing: str) -> None:
    for file in folder.iterdir():
        if file.name != missing:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(WeightsError, match=missing):
        load_image_backbone(f"dir:{tmp_path}")


def test_damaged_weights(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 2000 if file.suffix == ".safetensors" else None])
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read"):
        load_image_backbone(f"dir:{tmp_path}")


def test_weights_of_another_shape(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 128
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"do not fit its config\.json"):
        load_image_backbone(f"dir:{tmp_path}")


def test_another_model_is_refused() -> None:
    with pytest.raises(SettingsError, match="'bert', not a CLIP"):
        ClipVisionSettings.from_config({"model_type": "bert"})


def test_the_published_config_of_vit_l_14() -> None:
    config = {
        "model_type": "clip",
        "projection_dim": 768,
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
    }
    with torch.device("meta"):
        model = ClipVision(ClipVisionSettings.from_config(config))
    assert sum(parameter.numel() for parameter in model.parameters()) == 303_966_208


@given(width=st.integers(1, 700), height=st.integers(1, 700), seed=st.integers(0, 100))
@settings(max_examples=40)
def test_preprocessing_equals_clips_own_to_the_last_bit(processor: Any, width: int, height: int, seed: int) -> None:
    if max(width, height) > 40 * min(width, height):
        return
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(CLIP(image), expected)


@pytest.mark.parametrize("preprocessing", [CLIP, EARTH])
def test_each_value_is_normalised_as_in_the_reference(preprocessing: Preprocessing) -> None:
    values = np.arange(256, dtype=np.uint8)
    rescaled = (values.astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(numbers, np.float32) for numbers in (preprocessing.mean, preprocessing.std))
    expected = (rescaled[:, None] - mean) / std
    pixels = torch.from_numpy(np.repeat(values[:, None], 3, axis=1)).view(16, 16, 1, 3)
    assert torch.equal(preprocessing.normalize(pixels).permute(0, 2, 3, 1).reshape(256, 3), torch.from_numpy(expected))


@pytest.mark.parametrize("size", [(300, 200), (57, 91), (1000, 400), (256, 256)])
def test_ten_crops_are_corners_and_middle_and_their_mirror_images(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    width, height = size
    scale = 256 / min(size)
    big = image.resize((256, int(height * scale)) if width <= height else (int(width * scale), 256), 3)
    plain = Preprocessing(224, 224, "bicubic", CLIP.mean, CLIP.std)  # of a crop it changes only the values
    expected = []
    for side in (big, ImageOps.mirror(big)):
        right, below = side.width - 224, side.height - 224
        for x, y in ((0, 0), (right, 0), (0, below), (right, below), (round(right / 2), round(below / 2))):
            expected.append(plain(side.crop((x, y, x + 224, y + 224))))
    assert torch.equal(CLIP.ten_crops(image), torch.stack(expected))


def test_preprocessing_pads_what_is_smaller_than_the_crop(processor: Any) -> None:
    with warnings.catch_warnings(action="ignore"):
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 100}, crop_size={"height": 133, "width": 133})
    ours = Preprocessing(100, 133, "bicubic", CLIP.mean, CLIP.std)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 101, 3), dtype=np.uint8))
    assert torch.equal(ours(image), theirs(images=image, return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize(
    "config",
    [
        {"size": 224, "crop_size": 224, "resample": 3},
        {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "rescale_factor": 1 / 255},
    ],
)
def test_old_and_new_configurations_agree(config: dict[str, Any]) -> None:
    assert Preprocessing.from_config(config) == CLIP


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_resize": False}, "do_resize is off"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "shortest edge"),
        ({"crop_size": {"height": 224, "width": 200}}, "not square"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
    ],
)
def test_other_configurations_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Preprocessing.from_config(config)


def test_merged_tokens_are_means_and_the_class_stays() -> None:
    x, size, keys = torch.randn(2, 9, 4), torch.randint(1, 4, (2, 9, 1)).float(), torch.randn(2, 9, 3)
    keys[:, 4] = 2 * keys[:, 7]  # most alike, by the cosine
    merged, sizes = merge_similar(x, size, keys, 1)
    assert merged.shape == (2, 8, 4)
    torch.testing.assert_close(merged[:, 0], x[:, 0])
    torch.testing.assert_close((merged * sizes).sum(dim=1), (x * size).sum(dim=1))
    expected = (x * size)[:, [4, 7]].sum(dim=1) / size[:, [4, 7]].sum(dim=1)
    assert (merged - expected[:, None]).abs().amax(dim=2).amin(dim=1).max() < 1e-6


def test_a_token_of_size_two_counts_as_two(folder: Path) -> None:
    model: Any = load_image_backbone(f"dir:{folder}")[0]
    block = model.blocks[0]
    x = torch.randn(1, 5, block.qkv.in_features)
    size = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0])[None, :, None]
    with torch.no_grad():
        found, _ = block.forward_merged(x, size, 5, 0)
        torch.testing.assert_close(found, block(x[:, [0, 1, 2, 3, 4, 2]], 5), rtol=1e-4, atol=1e-5)


def test_merging_runs_in_both_engines(folder: Path) -> None:
    pixels, features = torch.randn(3, 3, 56, 56), []
    for merge_tokens in (0, 2):
        model: Any = load_image_backbone(f"dir:{folder}")[0]
        model.merge_tokens = merge_tokens
        with torch.no_grad():
            features.append(model(pixels))
        found = CompiledBackbone(model)(pixels)
        torch.testing.assert_close(found, features[-1], rtol=1e-3, atol=1e-3)
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_only_a_clip_merges_tokens() -> None:
    with pytest.raises(SettingsError, match="merge_tokens: 0 or more, of a CLIP"):
        load_model("earth", merge_tokens=4)
