"""Explanations: LeGrad against the whole gradient, LayerCAM against its formula, occlusion against locating again."""

import copy
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from open_geoclip.errors import CoordinateError, ImageError, SettingsError, WeightsError
from open_geoclip.geo.sphere import geodesic_km
from open_geoclip.model.adapter import BackboneAdapter, backbone_sha256
from open_geoclip.model.backbones.clip import ClipBlock, ClipVision, ClipVisionSettings
from open_geoclip.model.backbones.earth import EfficientNetLite
from open_geoclip.model.backbones.runtime import CompiledBackbone
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.schema import from_dict
from open_geoclip.search.explain import attribution, cover, explain, layer_cam, legrad
from open_geoclip.search.explanation import Explanation
from open_geoclip.search.locator import Locator


@pytest.fixture(scope="module")
def vision() -> ClipVision:
    """A vision transformer of two blocks, three heads and 3 x 3 patches."""
    torch.manual_seed(0)
    settings = ClipVisionSettings(12, 24, 2, 3, projection_dim=10, patch_size=4, image_size=12)
    vision = ClipVision(settings)
    for parameter in vision.parameters():
        nn.init.normal_(parameter, std=0.4)
    return vision


@pytest.fixture(scope="module")
def clip(vision: ClipVision) -> GeoCLIP:
    encoder = ImageEncoder(vision, None, ImageSettings(widths=(10, 16, 8)))
    location = LocationEncoder(LocationSettings(features=4, width=8, depth=1, output=8))
    return GeoCLIP(encoder, location).requires_grad_(False)


def full_attention(block: ClipBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention of all tokens, which takes a gradient, and the tokens that the block makes of it."""
    heads, width = block.heads, x.shape[2] // block.heads
    q, k, v = (part.view(1, -1, heads, width).transpose(1, 2) for part in block.qkv(block.norm1(x)).chunk(3, dim=2))
    attention = (q @ k.transpose(2, 3) / width**0.5).softmax(dim=3).detach().requires_grad_()
    x = x + block.out((attention @ v).transpose(1, 2).flatten(2))
    y = block.fc1(block.norm2(x))
    return attention, x + block.fc2(y * torch.sigmoid(1.702 * y))


def test_legrad_is_the_gradient_of_all_attention(clip: GeoCLIP, vision: ClipVision) -> None:
    pixels, target = torch.randn(1, 3, 12, 12), F.normalize(torch.randn(8), dim=0)
    x, maps = vision.embed(pixels), []
    for block in vision.blocks:
        assert isinstance(block, ClipBlock)
        attention, x = full_attention(block, x)
        score = clip.encode_features(vision.pool(x))[0] @ target
        [gradient] = torch.autograd.grad(score, attention)
        assert torch.count_nonzero(gradient[:, :, 1:]) == 0  # the class token asks alone
        maps.append(gradient.clamp(min=0).sum(dim=2).mean(dim=(0, 1))[1:])
        x = x.detach()
    found = legrad(clip, vision, pixels, target)
    torch.testing.assert_close(found, (maps[0] + maps[1]).view(3, 3) / 2, rtol=1e-4, atol=1e-8)
    assert found.count_nonzero() > 0


def test_legrad_is_what_small_changes_of_attention_do(clip: GeoCLIP, vision: ClipVision) -> None:
    pixels, target = torch.randn(1, 3, 12, 12), F.normalize(torch.randn(8), dim=0)
    x, total = vision.embed(pixels), torch.zeros(9)
    for block in vision.blocks:
        assert isinstance(block, ClipBlock)
        q, k, v = block.project(x, 1)
        attention = (q @ k.transpose(2, 3) / 2).softmax(dim=3)

        def score(changed: Tensor, block: ClipBlock = block, x: Tensor = x, v: Tensor = v) -> float:
            return float(clip.encode_features(vision.pool(block.mix(x, changed @ v, 1)))[0] @ target)

        for head in range(3):
            for patch in range(9):
                step = torch.zeros_like(attention)
                step[0, head, 0, patch + 1] = 0.01
                total[patch] += max((score(attention + step) - score(attention - step)) / 0.02, 0) / 6
        x = block(x, x.shape[1])
    torch.testing.assert_close(legrad(clip, vision, pixels, target), total.view(3, 3), rtol=0.02, atol=1e-4)


@pytest.fixture(scope="module")
def locator(tmp_path_factory: pytest.TempPathFactory, save_text_release: Callable[..., Path]) -> Locator:
    folder = save_text_release(tmp_path_factory.mktemp("release") / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_GEOCLIP_CACHE", str(folder.parent))
        return Locator.from_pretrained(f"dir:{folder}", engine="torch", dtype="float32")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 16, 3), np.uint8)).resize((448, 224))


def test_layer_cam_is_gradient_times_activation(locator: Locator, photo: Image.Image) -> None:
    model, target = locator.model, F.normalize(torch.randn(16), dim=0)
    backbone = model.image_encoder.backbone
    assert isinstance(backbone, EfficientNetLite)
    pixels = model.image_encoder.preprocessing(photo)[None]
    found = layer_cam(model, backbone, pixels, target)
    outputs = [F.relu6(backbone.stem(pixels))]
    for block in backbone.blocks:
        outputs.append(block(outputs[-1]))
    expected = torch.zeros(14, 14)
    for number in range(1, 17):  # each block by itself: what follows it is computed again
        x = activation = outputs[number].clone().requires_grad_()
        fine = outputs[backbone.fine_block + 1] if number > backbone.fine_block + 1 else x
        for at in range(number, 16):
            x = backbone.blocks[at](x)
            fine = x if at == backbone.fine_block else fine
        grids = [F.adaptive_avg_pool2d(fine, 3), F.adaptive_avg_pool2d(x, 3)]
        [gradient] = torch.autograd.grad(model.encode_features(torch.cat(grids, 1).flatten(1))[0] @ target, activation)
        layer = (gradient * activation).detach().clamp(min=0).sum(dim=1, keepdim=True)
        cells = F.interpolate(layer, size=(14, 14), mode="bilinear" if layer.shape[2] < 14 else "area")
        expected += cells[0, 0] / cells.sum() / 16
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_the_crop_is_what_the_model_sees(locator: Locator, photo: Image.Image) -> None:
    explanation = locator.explain(photo, grid=1)
    assert explanation.crop == pytest.approx((0.25, 0, 0.75, 1))
    assert explanation.regions[0].box == explanation.crop
    array = explanation.array(100, 50)
    assert np.isnan(array[:, :25]).all()
    assert np.isnan(array[:, 75:]).all()
    assert not np.isnan(array[:, 25:75]).any()
    same = locator.explain(photo.crop((112, 0, 336, 224)), grid=1)
    assert same.crop == pytest.approx((0, 0, 1, 1))
    assert (same.map, same.place, same.score) == (explanation.map, explanation.place, explanation.score)


def test_a_small_picture_is_padded() -> None:
    preprocessing = Preprocessing(100, 200, "bicubic", (0, 0, 0), (1, 1, 1))
    assert preprocessing.crop_box((50, 50)) == (-0.5, -0.5, 1.5, 1.5)


def test_the_array_interpolates_between_cells() -> None:
    fields: dict[str, Any] = dict.fromkeys(("image", "model", "gallery", "version", "method"), "")
    fields |= dict.fromkeys(("place_name", "versus", "versus_name", "versus_score"), None)
    fields |= {"place": (0.0, 0.0), "score": 0.0, "probability": 0.0, "crop": (0.0, 0.0, 1.0, 1.0)}
    explanation = Explanation(map=((0.0, 1.0), (0.0, 0.0)), **fields)
    np.testing.assert_allclose(explanation.array(4, 2), np.array([[0, 0.25, 0.75, 1], [0, 0, 0, 0]]))
    np.testing.assert_allclose(Explanation(map=((0.5,),), **fields).array(2, 2), 0.5)
    for wrong in ((), ((),), ((0.0, 1.0), (0.0,))):
        with pytest.raises(SettingsError, match="rows of one length"):
            Explanation(map=wrong, **fields)


def test_occlusion_is_locating_what_remains(locator: Locator, photo: Image.Image) -> None:
    explanation = locator.explain(photo, grid=2)
    pixels = locator.model.image_encoder.preprocessing(photo)
    covered = cover(pixels, 2)
    mean = pixels.mean(dim=(1, 2), keepdim=True)
    assert torch.equal(covered[1][:, :112, 112:], mean.expand(3, 112, 112))
    assert torch.equal(covered[1][:, 112:], pixels[:, 112:])
    with torch.no_grad():
        embeddings = locator.model.encode_image(torch.cat([pixels[None], covered]))
    answers = locator.locate_embeddings(embeddings, 1)
    places = np.array([(one.candidates[0].lat, one.candidates[0].lon) for one in answers])
    assert explanation.place == tuple(places[0])
    within = locator.posterior(embeddings).profile(np.repeat(places[:1], 5, axis=0)).within((200,))[:, 0]
    assert explanation.probability == pytest.approx(within[0], abs=1e-5)
    for region, place, left in zip(explanation.regions, places[1:], within[1:], strict=True):
        assert (region.lat, region.lon) == tuple(place)
        assert region.moved_km == pytest.approx(float(geodesic_km(places[0], place)), abs=0.01)
        assert region.probability_lost == pytest.approx(within[0] - left, abs=1e-5)
    boxes = [region.box for region in explanation.regions]
    assert boxes[0][:2] == explanation.crop[:2]
    assert boxes[3][2:] == pytest.approx(explanation.crop[2:])


def test_one_place_against_another(locator: Locator, photo: Image.Image) -> None:
    here, there = (48.9, 2.3), (-33.9, 151.2)
    one, other = locator.explain(photo, here, there, grid=0), locator.explain(photo, there, here, grid=0)
    assert one.score == pytest.approx(other.versus_score)
    assert one.versus == there
    assert one.regions == ()
    assert np.corrcoef(np.ravel(one.map), np.ravel(other.map))[0, 1] < 0.9
    assert one.map != locator.explain(photo, here, grid=0).map
    turned = locator.explain(photo, (0.0, 190.0), (-1.0, -190.0), grid=0)
    assert (turned.place, turned.versus) == ((0.0, -170.0), (-1.0, 170.0))


def test_what_was_written_is_read_again(locator: Locator, photo: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo.save(path)
    explanation = locator.explain(path, (0.0, -30.0), grid=2)
    assert explanation.image == str(path)
    assert set(explanation.sha256) == {"image", "weights", "gallery"}
    assert explanation.place_name is not None
    assert explanation.place_name.startswith("at sea")  # it works, and says so
    record = json.loads(json.dumps(explanation.to_dict()))
    assert from_dict(Explanation, record, "explanation") == explanation


def test_a_compiled_backbone_is_explained_by_its_torch_module(locator: Locator, photo: Image.Image) -> None:
    model, pixels = locator.model, locator.model.image_encoder.preprocessing(photo)
    target = F.normalize(torch.randn(16), dim=0)
    backbone = CompiledBackbone.__new__(CompiledBackbone)  # compiling takes seconds, and is tested elsewhere
    nn.Module.__init__(backbone)
    encoder = ImageEncoder(backbone, None, model.image_encoder.settings)
    encoder.mlp, encoder.projection = model.image_encoder.mlp, model.image_encoder.projection
    compiled = GeoCLIP(encoder, model.location_encoder)
    (method, found), (same, expected) = (attribution(one, pixels, target) for one in (compiled, model))
    assert method == same
    torch.testing.assert_close(found, expected)


def test_a_finetuned_backbone_is_explained_with_its_changes(locator: Locator, photo: Image.Image) -> None:
    model, pixels = locator.model, locator.model.image_encoder.preprocessing(photo)
    target = F.normalize(torch.randn(16), dim=0)
    plain = copy.deepcopy(model.image_encoder.backbone)
    name = "blocks.15.project.bias"
    changes = {name: plain.get_parameter(name) + torch.randn(320)}
    adapter = BackboneAdapter(backbone_sha256(plain), changes)
    adapter.merge(plain, "earth")
    found = []
    for backbone in (CompiledBackbone.__new__(CompiledBackbone), plain):
        if isinstance(backbone, CompiledBackbone):
            nn.Module.__init__(backbone)
        encoder = ImageEncoder(backbone, None, model.image_encoder.settings)
        encoder.mlp, encoder.projection = model.image_encoder.mlp, model.image_encoder.projection
        encoder.adapter = adapter
        found.append(attribution(GeoCLIP(encoder, model.location_encoder), pixels, target)[1])
    torch.testing.assert_close(found[0], found[1])


def test_a_photo_is_explained_while_another_thread_encodes(locator: Locator, photo: Image.Image) -> None:
    model, pixels = locator.model, locator.model.image_encoder.preprocessing(photo)
    target = F.normalize(torch.randn(16), dim=0)
    _, expected = attribution(model, pixels, target)
    backbone = model.image_encoder.backbone
    block = backbone.get_submodule("blocks.3")
    forward = block.forward
    others = 0

    def interrupted(x: Tensor) -> Tensor:  # another photo goes through the network while this one is in block 3
        nonlocal others
        if x.requires_grad:
            block.forward, others = forward, others + 1
            with ThreadPoolExecutor(1) as pool:
                pool.submit(backbone, pixels[None]).result()
        return forward(x)

    block.forward = interrupted
    try:
        _, found = attribution(model, pixels, target)
    finally:
        del block.forward
    assert others == 1
    torch.testing.assert_close(found, expected)


def test_what_cannot_be_explained_is_an_error(locator: Locator, photo: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(CoordinateError):
        locator.explain(photo, (91.0, 0.0))
    with pytest.raises(CoordinateError):
        locator.explain(photo, versus=(0.0, float("nan")))
    with pytest.raises(SettingsError, match="the same place"):
        locator.explain(photo, (90.0, 0.0), (90.0, 77.0))
    with pytest.raises(SettingsError, match="from 0 to 16"):
        locator.explain(photo, grid=17)
    with pytest.raises(ImageError):
        locator.explain(tmp_path / "missing.jpg")
    model = GeoCLIP(None, locator.model.location_encoder)
    with pytest.raises(WeightsError, match="location encoder only"):
        explain(model, photo, lambda _: [])
    other = GeoCLIP(ImageEncoder(nn.Flatten(), None, ImageSettings(widths=(12, 16))), locator.model.location_encoder)
    with pytest.raises(SettingsError, match="not Flatten"):
        attribution(other, torch.zeros(3, 2, 2), torch.zeros(16))
