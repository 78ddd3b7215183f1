"""Any vision model of ``timm``, from the layout that it is published in on the Hugging Face Hub.

The folder has ``config.json`` with ``architecture`` and ``pretrained_cfg``, and ``model.safetensors``. timm imports
torchvision, so both must fit the installed torch; nothing else here uses either.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from open_geoclip.errors import MissingExtraError, SettingsError, WeightsError
from open_geoclip.model.backbones.timm import TimmBackbone
from open_geoclip.model.backbones.transformers import Feature
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.weights.files import require_weights

__all__ = ["load_timm"]


def load_timm(name: str, path: Path, feature: Feature) -> tuple[TimmBackbone, Preprocessing]:
    """Return a frozen backbone and its preprocessing.

    Args:
        name: of the backbone.
        path: its folder.
        feature: which feature is taken.

    Raises:
        SettingsError: timm cannot be imported, the model has no such feature, or its preprocessing does more than
            resize, crop and normalise.
        WeightsError: a file is missing or damaged, or weights do not fit config.json.
        MissingExtraError: the extra ``timm`` is not installed.
    """
    require_weights(path)
    with warnings.catch_warnings(action="ignore"):
        try:
            import timm
            from timm.data import create_transform, resolve_data_config
        except ImportError as error:
            raise MissingExtraError(f"The backbone {name}", "timm") from error
        except RuntimeError as error:  # torchvision's operators are registered while it is imported
            raise SettingsError(f"{name}: timm needs a torchvision that fits the installed torch ({error})") from error
        try:
            model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        except Exception as error:  # of any kind: a configuration can name anything
            raise WeightsError(f"{name}: the weights cannot be read, or do not fit config.json: {error}") from error
        data = resolve_data_config(pretrained_cfg=model.pretrained_cfg)
        try:
            preprocessing = _read_preprocessing(data)
            transform = create_transform(**data)
            for size in ((53, 37, 3), (150, 301, 3), (400, 411, 3)):
                image = Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
                if not torch.equal(transform(image), preprocessing(image)):
                    raise SettingsError("its preprocessing does more than resize, crop and normalise")
            backbone = TimmBackbone(model, preprocessing.crop, feature)
        except SettingsError as error:
            raise SettingsError(f"{name}: {error}") from error
    return backbone.requires_grad_(False).eval(), preprocessing


def _read_preprocessing(data: Mapping[str, Any]) -> Preprocessing:
    """Return the evaluation preprocessing that timm's data configuration describes."""
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise SettingsError(f"input_size {data['input_size']} is not that of square images in colour")
    if data["crop_mode"] not in ("center", "squash"):
        raise SettingsError(f"crop_mode {data['crop_mode']} is not center or squash")
    return Preprocessing(
        resize=math.floor(height / data["crop_pct"]),
        crop=height,
        resample=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        squash=data["crop_mode"] == "squash",
        round_half_even=True,
    )
