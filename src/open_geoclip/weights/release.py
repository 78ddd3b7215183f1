"""A set of weights, read and checked: its settings, its tensors and their fingerprint.

Tensors have the names of the released weights: ``logit_scale``, ``location_encoder.LocEnc{i}.capsule.*``,
``image_encoder.mlp.*``; in a model with a text side of its own also ``image_encoder.projection.*`` and
``text_encoder.*``. Which tensors belong to which settings, and their shapes, is what the modules say.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from open_geoclip.errors import ModelNameError, WeightsError
from open_geoclip.model.adapter import BackboneAdapter
from open_geoclip.model.backbones.minilm import MiniLM
from open_geoclip.model.geoclip import GeoCLIP, Tower
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.model.subspace import PrincipalSubspace
from open_geoclip.model.text_encoder import TextBackbone, TextEncoder
from open_geoclip.schema import from_dict
from open_geoclip.weights.backbones import load_text_backbone
from open_geoclip.weights.names import parse_name
from open_geoclip.weights.registry import Record

__all__ = [
    "FORMAT_VERSION",
    "Release",
    "check_keys",
    "check_release",
    "given_keys",
    "is_finite",
    "model_skeleton",
    "read_settings",
    "with_merged_tokens",
]

FORMAT_VERSION = 1
"""Of our own layout."""

_FIRST_SETTINGS = ("sigmas", "features", "width", "depth", "output", "projection")
"""Settings of the location encoder that each configuration has; later ones may be left out at their defaults."""

_TEXT_DIMS = {"minilm": MiniLM.dim}
"""Each sentence encoder that a model of our own may have, and the length of its embeddings."""


@dataclass(frozen=True)
class Release:
    """A set of weights, read and checked.

    Attributes:
        name: what it was asked for by.
        version: of the wheel, the commit on the Hub, or the start of the fingerprint.
        fingerprint: sha256 in hex over all tensors and the settings of the location encoder.
        location: settings of the location encoder.
        image: settings of the image encoder; None for a location encoder alone.
        text: name of the sentence encoder of the model's own text side, or None. A model whose image backbone is a
            CLIP needs none: texts go through that CLIP's text half.
        tensors: float32 on the CPU, by name; none of the backbones'.
        gallery: a CSV of coordinates, or None.
        preprocessing: what the image backbone expects, if that is known here. What a backbone's own folder says counts
            for more.
        record: what is known about these weights, or None.
        calibration: as :class:`open_geoclip.Calibration` reads it; None when none was fitted.
        adapter: what fine-tuning changed of the image backbone; None when nothing was.
        subspace: of the backbone's features of training images; None when none was fitted.
        self_check: embeddings of the pictures of :mod:`~open_geoclip.model.backbones.self_check`; None if not stored.
    """

    name: str
    version: str
    fingerprint: str
    location: LocationSettings
    image: ImageSettings | None
    text: str | None
    tensors: dict[str, Tensor]
    gallery: Path | None = None
    preprocessing: Preprocessing | None = None
    record: Record | None = None
    calibration: dict[str, Any] | None = None
    adapter: BackboneAdapter | None = None
    subspace: PrincipalSubspace | None = None
    self_check: Float[Tensor, "32 k"] | None = None


def with_merged_tokens(release: Release, merge_tokens: int) -> Release:
    """Return the release of a model that merges tokens of its images: others, for what is fitted to or made by it.

    Its temperature is kept, but nothing was measured with these features.
    """
    if not merge_tokens:
        return release
    fingerprint = hashlib.sha256(f"{release.fingerprint} merge_tokens {merge_tokens}".encode()).hexdigest()
    calibration = None if release.calibration is None else {**release.calibration, "fitted_on": None}
    return replace(release, fingerprint=fingerprint, calibration=calibration, subspace=None, self_check=None)


def model_skeleton(
    release: Release, image: ImageSettings | None, towers: tuple[Tower, ...] = ("image", "text")
) -> GeoCLIP:
    """Return the modules without numbers and without backbones."""
    text_encoder = None
    if image is not None and "text" in towers:
        if release.text is not None:
            text_encoder = TextEncoder(
                partial(load_text_backbone, release.text),
                aligned=image.aligned,
                feature_dim=image.feature_dim,
                text_dim=_TEXT_DIMS[release.text],
                backbone_name=release.text,
            )
        elif image.backbone.startswith(("hub:", "dir:")) and not image.feature:  # a CLIP
            text_encoder = TextEncoder(partial(_load_clip_text, release.name, image.backbone, image.widths[0]))
    image_encoder = None if image is None else ImageEncoder(None, None, image)
    return GeoCLIP(image_encoder, LocationEncoder.from_settings(release.location), text_encoder)


def _load_clip_text(release: str, backbone: str, width: int) -> TextBackbone:
    model = load_text_backbone(backbone)
    if model.dim != width:
        raise WeightsError(
            f"{release} was trained on features of length {width}; texts' of {backbone} have {model.dim}"
        )
    return model


def check_release(
    name: str,
    tensors: Mapping[str, Tensor],
    location: LocationSettings,
    image: ImageSettings | None,
    text: str | None = None,
    *,
    version: str | None = None,
    adapter: BackboneAdapter | None = None,
    **rest: Any,
) -> Release:
    """Return a release whose tensors are exactly those that its settings ask for, as float32.

    Raises:
        WeightsError: a tensor is missing, not expected, of another shape, not floating, or holds NaN or infinity.
    """
    if image is not None and image.widths[-1] != location.output:
        ends = f"the image head ends in {image.widths[-1]} numbers, the location encoder in {location.output}"
        raise WeightsError(f"{name}: {ends}")
    converted = {}
    for key in sorted(tensors):
        tensor = tensors[key].detach()
        if not tensor.is_floating_point():
            raise WeightsError(f"{name}: {key} holds {tensor.dtype}, expected floating-point numbers")
        converted[key] = tensor.to("cpu", torch.float32).contiguous()
        if not is_finite(converted[key]):
            raise WeightsError(f"{name}: {key} holds NaN or infinity")
    changes = {} if adapter is None else {f"image_encoder.backbone.{key}": t for key, t in adapter.tensors.items()}
    for key, tensor in changes.items():
        if not (tensor.is_floating_point() and is_finite(tensor)):
            raise WeightsError(f"{name}: {key} of its adapter holds something else than finite numbers")
    fingerprint = _fingerprint(converted | changes, location)
    release = Release(name, "", fingerprint, location, image, text, converted, adapter=adapter, **rest)
    release = replace(release, version=version or release.fingerprint[:12])
    with torch.device("meta"):
        expected = dict(model_skeleton(release, image).state_dict())
    if image is None:
        del expected["logit_scale"]
    for key in sorted(expected.keys() ^ converted.keys()):
        raise WeightsError(f"{name}: {key} is {'missing' if key in expected else 'not expected with these settings'}")
    for key, tensor in converted.items():
        if tensor.shape != expected[key].shape:
            raise WeightsError(f"{name}: {key} has shape {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}")
    return release


def read_settings(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return what the maker of a model gives in a configuration, as arguments of :func:`check_release`.

    Raises:
        WeightsError: a setting is unknown, missing or out of range; the message names it.
    """
    location = from_dict(
        LocationSettings,
        config["location_encoder"],
        f"{what}: location_encoder",
        required=_FIRST_SETTINGS,
        error=WeightsError,
    )
    image, text, preprocessing = None, None, None
    if config["image_encoder"] is not None:
        where = f"{what}: image_encoder"
        image = from_dict(
            ImageSettings, config["image_encoder"], where, required=("backbone", "widths"), error=WeightsError
        )
        if image.backbone != "custom":
            try:
                parse_name(image.backbone)
            except ModelNameError as error:
                raise WeightsError(f"{where}: {error}") from error
    if config.get("text_encoder") is not None:
        text = check_keys(config["text_encoder"], ("backbone",), f"{what}: text_encoder")["backbone"]
        if text not in _TEXT_DIMS:
            raise WeightsError(f"{what}: text_encoder: backbone {text!r} is not one of {', '.join(_TEXT_DIMS)}")
    if (text is not None) != (image is not None and image.aligned > 0):
        raise WeightsError(f"{what}: text_encoder and image_encoder's aligned go together")
    if config["preprocessing"] is not None:
        preprocessing = from_dict(Preprocessing, config["preprocessing"], f"{what}: preprocessing", error=WeightsError)
    if not isinstance(config["card"], dict):
        raise WeightsError(f"{what}: card must be an object")
    calibration = config["card"].get("calibration")
    if calibration is not None and not isinstance(calibration, dict):
        raise WeightsError(f"{what}: card: calibration must be an object")
    return {
        "location": location,
        "image": image,
        "text": text,
        "preprocessing": preprocessing,
        "calibration": calibration,
    }


def check_keys(value: object, expected: Collection[str], what: str) -> dict[str, Any]:
    """Return a JSON object that has exactly these keys.

    Raises:
        WeightsError: it is no object, or has a key too many or too few; the message names it.
    """
    if not isinstance(value, Mapping):
        raise WeightsError(f"{what} must be an object with the keys {', '.join(expected)}")
    if unknown := sorted(map(str, value.keys() - set(expected))):
        raise WeightsError(f"{what}: unknown key {', '.join(unknown)}; known are {', '.join(expected)}")
    if missing := sorted(set(expected) - value.keys()):
        raise WeightsError(f"{what}: the key {', '.join(missing)} is missing")
    return dict(value)


def given_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that the maker of a model gives; the others are written here."""
    given = ("location_encoder", "image_encoder", "preprocessing", "card")
    return (*given, "text_encoder") if "text_encoder" in config else given


def _fingerprint(tensors: Mapping[str, Tensor], location: LocationSettings) -> str:
    """Return a sha256 that changes with any number, name, shape or setting, not with the order or dtype on disk."""
    settings = {
        field.name: getattr(location, field.name)
        for field in fields(location)
        if field.name in _FIRST_SETTINGS or getattr(location, field.name) != field.default
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].reshape(-1).numpy().data)
    return digest.hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor of float32 or less holds neither NaN nor infinity."""
    # Such a sum cannot overflow in float64, and is 30 times faster than a test of each number.
    return math.isfinite(tensor.sum(dtype=torch.float64).item())
