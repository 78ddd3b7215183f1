"""Texts located: by a text side of a model's own, by a CLIP's text half, and beside an image."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from PIL import Image

from open_geoclip import Locator
from open_geoclip.errors import SettingsError, TextError, WeightsError
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.encode import EncodedBatch
from open_geoclip.search.query import Query
from open_geoclip.weights.backbones import load_text_backbone
from open_geoclip.weights.load import load_release
from open_geoclip.weights.save import save_release

SaveRelease = Callable[..., Path]
ALIGNED, PICTURE, OUTPUT = 8, 3888, 16


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, save_text_release: SaveRelease) -> Path:
    return save_text_release(tmp_path_factory.mktemp("text") / "release")


@pytest.fixture(scope="module")
def locator(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Locator:
    return Locator.from_pretrained(
        f"dir:{release}", engine="torch", dtype="float32", cache=tmp_path_factory.mktemp("cache")
    )


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (224, 224, 3), dtype=np.uint8))


def test_a_text_goes_through_both_projections(release: Path, locator: Locator, picture: Image.Image) -> None:
    tensors = load_release(f"dir:{release}").tensors
    sentence = load_text_backbone("minilm").encode(["a hot desert"])[0]
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
    found, same = ([(c.lat, c.lon) for c in answer.candidates] for answer in (alone, ice))
    np.testing.assert_allclose(found, same, rtol=0, atol=1e-4)  # ten metres
    said = json.loads(json.dumps(desert.to_dict()))
    assert said["text"] == "a hot desert"
    assert "image" not in said
    with pytest.raises(SettingsError, match="top_k"):
        locator.locate_text(["ice"], top_k=0)
    assert len(locator.locate_text(["ice"], top_k=301)[0].candidates) <= 300


def test_regions_of_texts_are_smooth() -> None:
    [answer] = Locator.from_pretrained("earth").locate_text(["a hot desert"], detail=True)
    assert answer.regions is not None
    for level, most in (("50", 12), ("90", 8)):  # without smoothing 34 pieces, of the shape of worms
        polygons = shapely.from_geojson(json.dumps(answer.regions[level]))
        assert len(polygons.geoms) <= most
        assert all(polygon.area > 0.35 * polygon.minimum_rotated_rectangle.area for polygon in polygons.geoms)


def test_texts_alone_need_no_image_backbone(release: Path, locator: Locator, tmp_path: Path) -> None:
    words = Locator.from_pretrained(f"dir:{release}", towers=("text",), cache=tmp_path)
    image_encoder: Any = words.model.image_encoder
    assert image_encoder.backbone is None
    assert words.locate_text(["ice"]) == locator.locate_text(["ice"])


def test_logits_beside_an_image_are_the_weighted_mean(locator: Locator, picture: Image.Image) -> None:
    pictures, words = locator.encode([picture]), locator.encode_text(["ice"])
    places = locator.model.location_encoder.encode(torch.from_numpy(locator.gallery.coordinates))
    query = Query(EncodedBatch.from_embeddings(pictures), Calibration()).with_text("ice", words[0], 0.25)
    mixed = query.encoded.embeddings @ places.T
    torch.testing.assert_close(mixed, 0.75 * pictures @ places.T + 0.25 * words @ places.T, rtol=0, atol=1e-5)

    def first(**beside: Any) -> tuple[float, float]:
        candidate = locator.locate(picture, 5, **beside)[0].candidates[0]
        return candidate.lat, candidate.lon

    alone, ice = first(), locator.locate_text(["ice"])[0].candidates[0]
    assert alone != (ice.lat, ice.lon)
    assert first(text="ice", text_weight=0.0) == alone
    assert first(text="ice", text_weight=1.0) == (ice.lat, ice.lon)
    both = locator.locate(picture, 5, text="ice", text_weight=0.25)[0]
    assert both.text == "ice"
    assert {"image", "text"} <= both.to_dict().keys()
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
        expected = head(load_text_backbone(f"dir:{folder}").encode(["hot desert"]))[0]
    torch.testing.assert_close(locator.encode_text(["hot desert"])[0], expected / expected.norm(), rtol=0, atol=1e-5)
    with pytest.raises(TextError, match="77 at most"):
        locator.locate_text(["desert " * 80], 1)


def test_models_without_a_text_side_say_so(release: Path, tmp_path: Path) -> None:
    tensors = {
        name: tensor[:, ALIGNED:] if name.endswith("mlp.0.weight") else tensor
        for name, tensor in load_release(f"dir:{release}").tensors.items()
        if "projection" not in name and "text" not in name
    }
    plain = {
        "location_encoder": json.loads((release / "config.json").read_text())["location_encoder"],
        "image_encoder": {"backbone": "earth", "widths": [PICTURE, OUTPUT]},
        "preprocessing": None,
        "card": {},
    }
    save_release(tmp_path / "plain", tensors, plain, gallery=release / "gallery.csv")
    locator = Locator.from_pretrained(f"dir:{tmp_path / 'plain'}", engine="torch", cache=tmp_path / "cache")
    with pytest.raises(WeightsError, match="has no text encoder: use one that has"):
        locator.locate_text(["ice"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_encoder": {"backbone": "word2vec"}}, "'word2vec' is not one of minilm"),
        ({"text_encoder": None}, "go together"),
        ({"image_encoder": {"backbone": "earth", "widths": [3896, 16]}}, "go together"),
        ({"image_encoder": {"backbone": "earth", "aligned": 3896, "widths": [3896, 16]}}, "aligned: from 0 to 3895"),
        ({"image_encoder": {"backbone": "earth", "aligned": 9, "widths": [3896, 16]}}, "has shape"),
    ],
)
def test_settings_of_a_text_side_are_checked(
    tmp_path: Path, save_text_release: SaveRelease, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        save_text_release(tmp_path / "release", **changes)
