"""Where in a photo the evidence for a place lies: gradients of the score, and occlusion in kilometres.

Two methods that need no training and answer different questions:

- The map shows what raises the score of a place (the cosine), or of a place against another (the difference of their
  cosines). For vision transformers it is LeGrad (Bousselham et al., ICCV 2025): gradients of the score with respect to
  the attention maps. For EfficientNet-Lite0 it is LayerCAM (Jiang et al., IEEE Transactions on Image Processing 2021)
  over all blocks: gradients times activations, summed over channels.
- Occlusion (Zeiler and Fergus, ECCV 2014) covers one part of the photo after the other and locates what remains: how
  far the answer moves, and how much probability the place loses.

``docs/explain.md`` shows how far each can be trusted.
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.geo import geocode
from open_geoclip.geo.sphere import check_coordinates, geodesic_km
from open_geoclip.images import MAX_PIXELS, ImageSource, image_name, load_image, read_bytes
from open_geoclip.model.adapter import BackboneAdapter
from open_geoclip.model.backbones.clip import ClipBlock, ClipVision
from open_geoclip.model.backbones.earth import EfficientNetLite
from open_geoclip.model.backbones.runtime import CompiledBackbone
from open_geoclip.model.backbones.transformers import Feature
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.search.answer import Answer
from open_geoclip.search.encode import EncodedBatch, perceptual_hash
from open_geoclip.search.explanation import MAX_GRID, WITHIN_KM, Box, CoveredRegion, Explanation, LatLon
from open_geoclip.search.posterior import Posterior
from open_geoclip.weights.backbones import load_image_backbone

__all__ = ["attribution", "block_products", "cover", "explain", "layer_cam", "legrad"]

_SAME_KM = 0.001  # nearer places are one
_BATCH = 8  # images that are encoded at once
_LAYER_CAM_CELLS = 14  # per side of the map: those of the backbone's features at stride 16

Locate = Callable[[EncodedBatch], Iterable[tuple[Answer, Posterior | None]]]
"""Answers and posteriors of encoded images."""


def explain(
    model: GeoCLIP,
    image: ImageSource,
    locate: Locate,
    place: LatLon | None = None,
    versus: LatLon | None = None,
    *,
    grid: int = 7,
    max_pixels: int = MAX_PIXELS,
) -> Explanation:
    """Explain one photo; see :meth:`open_geoclip.search.locator.Locator.explain`.

    Args:
        model: with an image encoder.
        image: the photo.
        locate: returns answers and posteriors of encoded images.
        place: (lat, lon) in degrees; default: the first candidate.
        versus: (lat, lon) in degrees, or None.
        grid: parts per side that are covered; 0: none.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        CoordinateError: a place is not on Earth.
        ImageError: the photo cannot be read.
        SettingsError: the two places are one, grid is out of range, or the backbone has no gradients.
        WeightsError: the model has no image encoder.
    """
    given = np.array([one for one in (place, versus) if one is not None], np.float64).reshape(-1, 2)
    given = check_coordinates(given)
    if not 0 <= grid <= MAX_GRID:
        raise SettingsError(f"grid: from 0 to {MAX_GRID} parts per side, not {grid}")
    if len(given) == 2 and float(geodesic_km(given[0], given[1])) < _SAME_KM:
        raise SettingsError(f"place and versus are the same place: {given[0, 0]:g},{given[0, 1]:g}")
    name, sha256 = image_name(image, 0), None
    if not isinstance(image, Image.Image | np.ndarray):
        image = read_bytes(image, name)
        sha256 = hashlib.sha256(image).hexdigest()
    upright = load_image(image, name=name, max_pixels=max_pixels)
    model.check_image_encoder()
    preprocessing = model.image_encoder.preprocessing
    pixels, crop = preprocessing(upright), preprocessing.crop_box(upright.size)

    batch = _encode(model, torch.cat([pixels[None], cover(pixels, grid)]), name, sha256)
    [(answer, posterior), *without] = locate(batch)
    best = answer.candidates[0]
    places = given if place is not None else np.vstack(([best.lat, best.lon], given))
    with torch.no_grad():
        targets = model.encode_location(torch.from_numpy(places).to(model.logit_scale.device))
    scores = (targets.cpu() @ batch.embeddings[0]).tolist()
    method, relevance = attribution(model, pixels, targets[0] if versus is None else targets[0] - targets[1])
    probability = _probability(posterior, places[:1])
    regions = []
    for number, (covered, left) in enumerate(without):
        lat, lon = covered.candidates[0].lat, covered.candidates[0].lon
        moved_km = float(geodesic_km(np.array([best.lat, best.lon]), np.array([lat, lon])))
        lost = probability - _probability(left, places[:1])
        regions.append(CoveredRegion(_part(crop, number, grid), lat, lon, round(moved_km, 3), round(lost, 6)))
    names = _place_names(places)
    return Explanation(
        image=name,
        model=answer.model,
        gallery=answer.gallery,
        version=answer.version,
        method=method,
        place=(float(places[0, 0]), float(places[0, 1])),
        place_name=names[0],
        score=scores[0],
        probability=probability,
        versus=None if versus is None else (float(places[1, 0]), float(places[1, 1])),
        versus_name=None if versus is None else names[1],
        versus_score=None if versus is None else scores[1],
        crop=crop,
        map=tuple(tuple(round(value, 4) for value in row) for row in relevance.tolist()),
        regions=tuple(regions),
        warning=answer.warning,
        sha256=dict(answer.sha256),
    )


# --- gradients ------------------------------------------------------------------------------------


def attribution(
    model: GeoCLIP, pixels: Float[Tensor, "3 h w"], target: Float[Tensor, " k"]
) -> tuple[str, Float[Tensor, "r c"]]:
    """Return a method's name and its map of what raises the score of an image: from 0 to 1, the most.

    Args:
        model: with an image encoder.
        pixels: the preprocessed image.
        target: embedding of a place, or the difference of two.

    Raises:
        SettingsError: the backbone is of another kind than CLIP and EfficientNet-Lite.
    """
    backbone: nn.Module = model.image_encoder.backbone
    if isinstance(backbone, CompiledBackbone):
        settings, adapter = model.image_encoder.settings, model.image_encoder.adapter
        if settings.backbone == "custom":
            raise SettingsError("explain: a module given as the backbone has no gradients in OpenVINO: engine='torch'")
        backbone = _load_backbone(settings.backbone, settings.feature, adapter)
    batch = pixels[None].to(next(backbone.parameters(), pixels).device)
    with torch.inference_mode(False), torch.enable_grad():
        if isinstance(backbone, ClipVision):
            method, relevance = "LeGrad", legrad(model, backbone, batch, target)
        elif isinstance(backbone, EfficientNetLite):
            method, relevance = "LayerCAM", layer_cam(model, backbone, batch, target)
        else:
            raise SettingsError(f"explain needs CLIP or EfficientNet-Lite as backbone, not {type(backbone).__name__}")
    return method, relevance / relevance.max().clamp_min(1e-12)


def legrad(
    model: GeoCLIP, vision: ClipVision, pixels: Float[Tensor, "1 3 h w"], target: Float[Tensor, " k"]
) -> Float[Tensor, "r r"]:
    """Return LeGrad's map (equations 4 to 8 of the paper), not normalised.

    The score of a block is that of its class token, which goes through the rest of the model as if the block were the
    last. The class token depends on one row of the block's attention alone: its gradient is the whole gradient.
    """
    total = torch.zeros(())
    with torch.no_grad():
        x = vision.embed(pixels)
    for block in vision.blocks:
        assert isinstance(block, ClipBlock)
        with torch.no_grad():
            q, k, v = block.project(x, 1)
            attention = torch.softmax(q @ k.transpose(2, 3) / q.shape[3] ** 0.5, dim=3)
        attention.requires_grad_()
        feature = vision.pool(block.mix(x, attention @ v, 1))
        [gradient] = torch.autograd.grad(_score(model, feature, target), attention)
        total = total + gradient[0, :, 0, 1:].float().clamp_min(0).mean(dim=0).cpu()
        with torch.no_grad():
            x = block(x, x.shape[1])
    side = vision.image_size // vision.settings.patch_size
    return (total / len(vision.blocks)).view(side, side)


def layer_cam(
    model: GeoCLIP, backbone: EfficientNetLite, pixels: Float[Tensor, "1 3 h w"], target: Float[Tensor, " k"]
) -> Float[Tensor, "r r"]:
    """Return LayerCAM's map, the mean over all blocks of maps whose sum is 1, at the cells of stride 16."""
    total, products = torch.zeros(()), block_products(model, backbone, pixels, target)
    for product in products:
        layer = product.clamp_min(0).sum(dim=1, keepdim=True)
        if layer.shape[3] < _LAYER_CAM_CELLS:
            layer = F.interpolate(layer, size=(_LAYER_CAM_CELLS,) * 2, mode="bilinear")
        else:
            layer = F.adaptive_avg_pool2d(layer, _LAYER_CAM_CELLS)
        total = total + layer[0, 0] / layer.sum().clamp_min(1e-12)
    return total / len(products)


def block_products(
    model: GeoCLIP, backbone: EfficientNetLite, pixels: Float[Tensor, "1 3 h w"], target: Float[Tensor, " k"]
) -> list[Float[Tensor, "1 c r s"]]:
    """Return, of the output of each block, the gradient of the score times the activation."""
    # Without hooks, which another thread's images would go through too.
    activations = list(backbone.block_outputs(pixels.clone().requires_grad_()))
    feature = backbone.pool(activations)
    gradients = torch.autograd.grad(_score(model, feature, target), activations)
    return [(one * of.detach()).float().cpu() for one, of in zip(gradients, activations, strict=True)]


def _score(model: GeoCLIP, feature: Float[Tensor, "1 d"], target: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    return (model.encode_features(feature)[0] * target).sum()


@lru_cache(maxsize=1)
def _load_backbone(name: str, feature: Feature, adapter: BackboneAdapter | None) -> nn.Module:
    """Return the torch module of a backbone that OpenVINO runs, which gives no gradients."""
    backbone, _ = load_image_backbone(name, feature=feature)
    if adapter is not None:
        adapter.merge(backbone, name)
    return backbone


# --- occlusion ------------------------------------------------------------------------------------


def cover(pixels: Float[Tensor, "3 h w"], grid: int) -> Float[Tensor, "n 3 h w"]:
    """Return copies of an image, each with another one of ``grid`` x ``grid`` parts covered by the mean colour."""
    _, height, width = pixels.shape
    copies = pixels.repeat(grid * grid, 1, 1, 1)
    mean = pixels.mean(dim=(1, 2), keepdim=True)
    for number, copy in enumerate(copies):
        left, top, right, bottom = _part((0.0, 0.0, float(width), float(height)), number, grid)
        copy[:, round(top) : round(bottom), round(left) : round(right)] = mean
    return copies


def _part(box: Box, number: int, grid: int) -> Box:
    """Return one of ``grid`` x ``grid`` parts of a box, counted row by row."""
    row, column = divmod(number, grid)
    left, top, right, bottom = box
    width, height = (right - left) / grid, (bottom - top) / grid
    return left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height


def _probability(posterior: Posterior | None, place: Float[np.ndarray, "1 2"]) -> float:
    assert posterior is not None, "what was encoded has an answer"
    return float(posterior.profile(place).within((WITHIN_KM,))[0, 0])


@torch.inference_mode()
def _encode(model: GeoCLIP, pixels: Float[Tensor, "n 3 h w"], name: str, sha256: str | None) -> EncodedBatch:
    """Encode copies of one photo: all of them have its hashes, so that an index of photos leaves it out for each."""
    encoder, n = model.image_encoder, len(pixels)
    parts = [encoder.forward_backbone(part.to(model.logit_scale.device)) for part in pixels.split(_BATCH)]
    features = torch.cat(parts).float().cpu()
    return EncodedBatch(
        [name] * n,
        [None] * n,
        [sha256] * n,
        torch.cat([model.encode_features(part) for part in parts]).cpu(),
        features,
        np.repeat(perceptual_hash(pixels[:1]), n, axis=0),
        None if encoder.subspace is None else encoder.subspace.distance(features),
    )


def _place_names(places: Float[np.ndarray, "n 2"]) -> list[str] | list[None]:
    try:
        return [place.text for place in geocode.describe(places)]
    except MissingExtraError:
        return [None] * len(places)
