"""Any vision model that ``AutoModel`` and ``AutoImageProcessor`` of ``transformers`` read, from its published files.

The folder has ``config.json``, ``preprocessor_config.json`` and weights as safetensors. The processors with Pillow are
used; torchvision is not needed. Code in a repository is not run unless ``OPEN_GEOCLIP_TRUST_REMOTE_CODE`` has the name
of the backbone.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from open_geoclip.errors import MissingExtraError, SettingsError, WeightsError
from open_geoclip.model.backbones.transformers import Feature, TransformersBackbone
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.weights.files import read_json, require_weights
from open_geoclip.weights.names import TRUST, trusts_code

__all__ = ["load_transformers"]

# DINOv3's only processor needs torchvision: it resizes numbers that are not rounded to 8 bits, which is all that
# differs from ViT's with Pillow.
_DINOV3 = "DINOv3ViTImageProcessor"
_DINOV3_DEFAULTS = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "resample": 2,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}


def load_transformers(
    name: str, path: Path, preprocessing: Preprocessing | None, feature: Feature
) -> tuple[TransformersBackbone, Preprocessing]:
    """Return a frozen backbone and its preprocessing.

    Args:
        name: of the backbone.
        path: its folder.
        preprocessing: for a folder without a preprocessor_config.json.
        feature: which feature is taken.

    Raises:
        SettingsError: it reads no images, needs code of its own or torchvision, or has no such feature.
        WeightsError: a file is missing or damaged, or weights do not fit config.json.
        MissingExtraError: the extra ``transformers`` is not installed.
    """
    given = read_json(path / "config.json")
    trusted = trusts_code(name)
    options = {"local_files_only": True, "trust_remote_code": trusted}
    require_weights(path)
    with _quiet(name):
        from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel, __version__

        kind = given.get("model_type")
        if kind not in CONFIG_MAPPING and not trusted:
            if "auto_map" in given:
                again = f", and bring its code: geoclip pull {name}" if name.startswith("hub:") else ""
                raise SettingsError(
                    f"{name}: comes with code of its own, which could do anything on this machine and is not run. If "
                    f"you have read it and trust it, name it: export {TRUST}='{name}'{again}"
                )
            raise SettingsError(
                f"{name}: config.json describes a {kind!r}, which transformers {__version__} does not know; "
                "a newer version may"
            )
        try:
            config = AutoConfig.from_pretrained(path, **options)
        except Exception as error:  # the library's own check of a configuration raises classes of its own
            raise WeightsError(f"{name}: config.json cannot be read: {error}") from error
        model_class = MODEL_MAPPING.get(type(config), None)
        if not trusted and not _reads_images(model_class):
            what = f"a {kind!r}, which has no vision part" if model_class is None else f"a {kind!r}, which reads texts"
            raise SettingsError(
                f"{name}: config.json describes {what}. A backbone turns images into features: use a vision model, "
                "such as a SigLIP, DINOv2, DINOv3 or ViT"
            )
        preprocessing = _read_preprocessing(name, path, options, preprocessing)
        try:
            model, report = AutoModel.from_pretrained(
                path, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise WeightsError(f"{name}: the weights cannot be read, or do not fit config.json: {error}") from error
        missing = sorted(report["missing_keys"])
        # A pooler is often left out when a model is published; it would have random weights.
        if lost := [key for key in missing if "pooler" not in key]:
            raise WeightsError(
                f"{name}: {len(lost)} weights that its config.json asks for are missing, such as {lost[0]}"
            )
        try:
            backbone = TransformersBackbone(model.eval(), preprocessing.crop, feature, has_pooler=not missing)
        except SettingsError as error:
            raise SettingsError(f"{name}: {error}") from error
    return backbone.requires_grad_(False).eval(), preprocessing


def _reads_images(model_class: Any) -> bool:
    return getattr(model_class, "main_input_name", "") == "pixel_values" or hasattr(model_class, "get_image_features")


def _read_preprocessing(
    name: str, path: Path, options: Mapping[str, Any], preprocessing: Preprocessing | None
) -> Preprocessing:
    """Return what the model's own processor does, after comparing it with that processor to the last bit."""
    from transformers import AutoImageProcessor

    files = [path / file for file in ("preprocessor_config.json", "processor_config.json") if (path / file).is_file()]
    if not files:
        if preprocessing is None:
            raise WeightsError(f"{name}: has no preprocessor_config.json, which says how it wants its images")
        return preprocessing
    given = read_json(files[0])
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "").removesuffix("Fast")
    try:
        if kind == _DINOV3:
            return Preprocessing.from_config({**_DINOV3_DEFAULTS, **given})
        try:
            processor = AutoImageProcessor.from_pretrained(path, backend="pil", **options)
        except Exception as error:  # ImportError, ValueError, or what the library raises for its dummy classes
            if "torchvision" in str(error).lower():
                raise SettingsError(f"its processor {kind} needs torchvision, which is not used here") from error
            raise SettingsError(f"its processor {kind} cannot be used here ({error})") from error
        if getattr(processor, "backend", "pil") != "pil":
            raise SettingsError(f"its processor {kind} needs torchvision, which is not used here")
        preprocessing = Preprocessing.from_config({"do_center_crop": False, **processor.to_dict()})
        for size in ((53, 37, 3), (150, 301, 3)):
            image = Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
            reference = processor(images=image, return_tensors="pt")["pixel_values"]
            if not torch.equal(torch.as_tensor(reference[0]), preprocessing(image)):
                raise SettingsError(f"its processor {kind} does more than resize, crop and normalise")
    except SettingsError as error:
        raise SettingsError(
            f"{name}: {error}. If a plain processor does for these weights, name it in a copy of their "
            f'{files[0].name}, such as "image_processor_type": "ViTImageProcessor"'
        ) from error
    return preprocessing


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Import and use transformers without its warnings and progress bars."""
    with warnings.catch_warnings(action="ignore"):
        try:
            from transformers.utils import logging
        except ImportError as error:
            raise MissingExtraError(f"The backbone {name}", "transformers") from error
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
