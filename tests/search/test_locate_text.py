"""Texts located: by a text side of a model's own, by a CLIP's text half, and beside a picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from open_geoclip import Locator
from open_geoclip.errors import SettingsError, TextError, WeightsError
from open_geoclip.model.backbones.clip_text import ClipText
from open_geoclip.model.backbones.minilm import MiniLM
from open_geoclip.pretrained import load, save_release

ALIGNED, PICTURE, SENTENCE, OUTPUT = 8, 3888, 384, 16
LOCATION = {"sigmas": [1.0], "features": 8, "width": 16, "depth": 1, "output": OUTPUT, "projection": "sphere"}


def small_release(folder: Path, **changes: Any) -> Path:
    """A model with a text side, small and random."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "logit_scale": torch.tensor(3.0),
        "image_encoder.projection.weight": random(ALIGNED, PICTURE) / 60,
        "image_encoder.projection.bias": random(ALIGNED) / 60,
        "text_encoder.projection.weight": random(ALIGNED, SENTENCE),
        "text_encoder.projection.bias": random(ALIGNED) / 60,
        "text_encoder.picture": random(PICTURE),
        "image_encoder.mlp.0.weight": random(OUTPUT, ALIGNED + PICTURE)
        * torch.tensor([1.0] * ALIGNED + [0.02] * PICTURE),
        "image_encoder.mlp.0.bias": random(OUTPUT),
        "location_encoder.LocEnc0.capsule.0.b": random(8, 3),
        "location_encoder.LocEnc0.capsule.1.weight": random(16, 16),
        "location_encoder.LocEnc0.capsule.1.bias": random(16),
        "location_encoder.LocEnc0.head.0.weight": random(OUTPUT, 16),
        "location_encoder.LocEnc0.head.0.bias": random(OUTPUT),
    }
    config = {
        "location_encoder": LOCATION,
        "image_encoder": {"backbone": "earth", "aligned": ALIGNED, "widths": [ALIGNED + PICTURE, OUTPUT]},
        "text_encoder": {"backbone": "minilm"},
        "preprocessing": None,
        "card": {},
    }
    gallery = folder.with_suffix(".csv")
    places = np.random.default_rng(0).uniform((-60, -180), (75, 180), (300, 2)).round(3)
    gallery.write_text("lat,lon\n" + "".join(f"{lat},{lon}\n" for lat, lon in places))
    return save_release(folder, tensors, config | changes, gallery=gallery, dtype="float32")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("text") / "release")


@pytest.fixture(scope="module")
def locator(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Locator:
    return Locator.from_pretrained(f"dir:{release}", engine="torch", cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (224, 224, 3), dtype=np.uint8))


def test_a_text_goes_through_both_projections(release: Path, locator: Locator, picture: Image.Image) -> None:
    tensors = load(f"dir:{release}").tensors
    sentence = MiniLM().encode(["a hot desert"])[0]
    aligned = tensors["text_encoder.projection.weight"] @ sentence + tensors["text_encoder.projection.bias"]
    read = torch.cat([aligned / aligned.norm(), tensors["text_encoder.picture"]])
    expected = tensors["image_encoder.mlp.0.weight"] @ read + tensors["image_encoder.mlp.0.bias"]
    found = locator.encode_text(["a hot desert"])[0]
    torch.testing.assert_close(found, expected / expected.norm(), rtol=0, atol=1e-5)

    backbone = locator.model.image_encoder.backbone
    pixels = locator.model.image_encoder.preprocessing(picture)[None]
    feature = backbone(pixels)[0]
    aligned = tensors["image_encoder.projection.weight"] @ feature + tensors["image_encoder.projection.bias"]
    read = torch.cat([aligned / aligned.norm(), feature])
    expected = tensors["image_encoder.mlp.0.weight"] @ read + tensors["image_encoder.mlp.0.bias"]
    torch.testing.assert_close(locator.encode([picture])[0], expected / expected.norm(), rtol=0, atol=1e-5)


def test_texts_are_answered_in_order(locator: Locator) -> None:
    desert, ice = locator.locate_text(["a hot desert", "ice"], top_k=3)
    assert (desert.text, ice.text, desert.image, desert.name) == ("a hot desert", "ice", "", "a hot desert")
    assert len(desert.candidates) == 3
    assert desert.candidates[0].probability >= desert.candidates[1].probability
    assert desert.candidates != ice.candidates
    alone = locator.locate_text(["ice"], top_k=3)[0]
    assert [(c.lat, c.lon) for c in alone.candidates] == [(c.lat, c.lon) for c in ice.candidates]
    said = json.loads(json.dumps(desert.to_dict()))
    assert said["text"] == "a hot desert"
    assert "image" not in said
    with pytest.raises(SettingsError, match="top_k"):
        locator.locate_text(["ice"], top_k=301)


def test_logits_beside_a_picture_are_the_weighted_mean(locator: Locator, picture: Image.Image) -> None:
    everywhere = len(locator.gallery)

    def scores(answer: Any) -> dict[tuple[float, float], float]:
        return {(c.lat, c.lon): c.score for c in answer.candidates}

    alone = scores(locator.locate(picture, everywhere)[0])
    words = scores(locator.locate_text(["ice"], everywhere)[0])
    both = locator.locate(picture, everywhere, text="ice", text_weight=0.25)[0]
    assert both.text == "ice"
    assert {"image", "text"} <= both.to_dict().keys()
    for place, score in scores(both).items():
        assert score == pytest.approx(0.75 * alone[place] + 0.25 * words[place], abs=1e-3)
    assert scores(locator.locate(picture, 5, text="ice", text_weight=0)[0]) == scores(locator.locate(picture, 5)[0])
    with pytest.raises(SettingsError, match=r"text_weight: from 0 to 1, not 1\.5"):
        locator.locate(picture, text="ice", text_weight=1.5)
    with pytest.raises(TextError, match="empty"):
        locator.locate(picture, text=" ")


def test_clip_takes_its_own_text_half(
    released: Path, tmp_path: Path, save_clip: Callable[..., Path], clip_tokenizer: Callable[[Path], dict[str, Any]]
) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    save_clip(folder, text=clip_tokenizer(folder))
    gallery = tmp_path / "gallery.csv"
    gallery.write_text("lat,lon\n1,2\n50,8\n-20,30\n")
    locator = Locator.from_pretrained(
        "geoclip", backbone=f"dir:{folder}", gallery=gallery, engine="torch", cache=tmp_path / "cache"
    )
    head = locator.model.image_encoder.mlp
    with torch.no_grad():
        expected = head(ClipText.from_folder(folder).encode(["hot desert"]))[0]
    torch.testing.assert_close(locator.encode_text(["hot desert"])[0], expected / expected.norm(), rtol=0, atol=1e-5)
    with pytest.raises(TextError, match="77 at most"):
        locator.locate_text(["desert " * 80], 1)


def test_models_without_a_text_side_say_so(release: Path, tmp_path: Path) -> None:
    tensors = {
        name: tensor[:, ALIGNED:] if name.endswith("mlp.0.weight") else tensor
        for name, tensor in load(f"dir:{release}").tensors.items()
        if "projection" not in name and "text" not in name
    }
    plain = {
        "location_encoder": LOCATION,
        "image_encoder": {"backbone": "earth", "widths": [PICTURE, OUTPUT]},
        "preprocessing": None,
        "card": {},
    }
    save_release(tmp_path / "plain", tensors, plain, gallery=release / "gallery.csv")
    locator = Locator.from_pretrained(f"dir:{tmp_path / 'plain'}", engine="torch", cache=tmp_path / "cache")
    with pytest.raises(WeightsError, match="has no text side: use a model that has one"):
        locator.locate_text(["ice"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_encoder": {"backbone": "word2vec"}}, "'word2vec' is not one of minilm"),
        ({"text_encoder": None}, "go together"),
        ({"image_encoder": {"backbone": "earth", "widths": [3896, 16]}}, "go together"),
        ({"image_encoder": {"backbone": "earth", "aligned": 3896, "widths": [3896, 16]}}, "from 1 to 3895"),
        ({"image_encoder": {"backbone": "earth", "aligned": 9, "widths": [3896, 16]}}, "has shape"),
    ],
)
def test_settings_of_a_text_side_are_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        small_release(tmp_path / "release", **changes)
