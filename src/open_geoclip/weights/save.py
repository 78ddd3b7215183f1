"""Saving a model in our own layout: ``config.json``, ``model.safetensors``, ``gallery.csv`` and ``README.md``.

``subspace.safetensors`` and ``self_check.safetensors`` are added to what is saved.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from open_geoclip.errors import WeightsError
from open_geoclip.files import atomic_folder, atomic_write, sha256
from open_geoclip.model.adapter import BackboneAdapter
from open_geoclip.model.backbones.self_check import PICTURES_VERSION, Progress, embed_pictures
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.model.subspace import PrincipalSubspace
from open_geoclip.weights.files import read_json
from open_geoclip.weights.folders import ADAPTER, FORMAT, SELF_CHECK, SUBSPACE
from open_geoclip.weights.load import load_model, load_release
from open_geoclip.weights.release import FORMAT_VERSION, check_keys, check_release, given_keys, is_finite, read_settings

__all__ = ["format_readme", "save_calibration", "save_model", "save_release", "save_self_check", "save_subspace"]

logger = logging.getLogger(__name__)

CURVES = "training.png"
_LEAST_SPREAD = 1e-4  # of embeddings, which have length 1
_FILES = ("config.json", "model.safetensors", "gallery.csv", ADAPTER, SELF_CHECK, SUBSPACE, "README.md", CURVES)
_KEPT_FLOAT32 = re.compile(r"logit_scale|.*\.capsule\.0\.b")
"""Frequencies are multiplied by coordinates into phases, which half precision would turn by radians."""


def save_model(
    target: Path | str,
    model: GeoCLIP,
    *,
    card: Mapping[str, Any],
    dtype: Literal["float16", "float32"] = "float16",
    gallery: Path | None = None,
    curves: Path | None = None,
) -> Path:
    """Write a model in our own layout. Of backbones only names are written, and what fine-tuning changed of them.

    Args:
        target: the folder to write. A release that is there already is replaced as a whole.
        model: standardised features (:meth:`ImageEncoder.standardize_features`) must be folded before.
        card: a free object; ``title``, ``source``, ``licence``, ``trained_on`` and ``accuracy`` are shown by
            `geoclip models`; ``calibration`` is how scores become probabilities.
        gallery: a CSV of coordinates, copied as ``gallery.csv``.
        curves: a PNG of the training curves, copied as ``training.png``.
        dtype: on disk. The random frequencies and the temperature are float32 always.

    Returns:
        The folder.

    Raises:
        WeightsError: tensors hold NaN or infinity or numbers too large for float16, or the folder holds something else.
    """
    image: ImageEncoder | None = model.image_encoder
    preprocessing: Preprocessing | None = None if image is None else image.preprocessing
    text = model.text_encoder
    tensors = {
        key: tensor for key, tensor in model.state_dict().items() if not key.startswith("image_encoder.backbone.")
    }
    if image is None:
        del tensors["logit_scale"]
    config: dict[str, Any] = {
        "location_encoder": asdict(model.location_encoder.settings),
        "image_encoder": None if image is None else asdict(image.settings),
        "preprocessing": None if preprocessing is None else asdict(preprocessing),
        "card": dict(card),
    }
    if text is not None and text.backbone_name is not None:
        config["text_encoder"] = {"backbone": text.backbone_name}
    adapter = None if image is None else image.adapter
    return save_release(target, tensors, config, gallery=gallery, curves=curves, adapter=adapter, dtype=dtype)


def save_release(
    target: Path | str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    gallery: Path | None = None,
    curves: Path | None = None,
    adapter: BackboneAdapter | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> Path:
    """Write tensors and their configuration in our own layout; see :func:`save_model`.

    Args:
        target: the folder to write.
        tensors: by the names in :mod:`open_geoclip.weights.release`.
        config: ``location_encoder`` (fields of :class:`LocationSettings`), ``image_encoder`` (fields of
            :class:`ImageSettings`, or None), ``preprocessing`` (an object or None), ``card`` (an object) and, with a
            text side, ``text_encoder`` (``backbone``).
        gallery: see :func:`save_model`.
        curves: see :func:`save_model`.
        adapter: what fine-tuning changed of the image backbone; written as float32.
        dtype: see :func:`save_model`.

    Raises:
        WeightsError: see :func:`save_model`; or tensors do not fit the settings, or a key is unknown or missing.
    """
    target, what = Path(target), str(target)
    settings = read_settings(check_keys(config, given_keys(config), "config"), "config")
    checked = check_release(what, tensors, **settings).tensors
    if dtype == "float16":
        checked = {key: tensor if _KEPT_FLOAT32.fullmatch(key) else tensor.half() for key, tensor in checked.items()}
        if large := [key for key, tensor in checked.items() if not is_finite(tensor)]:
            raise WeightsError(f"{what}: {large[0]} holds numbers too large for float16; save as float32")
    if target.exists() and {file.name for file in target.iterdir()} - set(_FILES):
        raise WeightsError(f"{what}: holds files that are no release; choose another folder")
    with atomic_folder(target) as fresh:
        safetensors.torch.save_file(checked, fresh / "model.safetensors", metadata={"format": "pt"})
        if gallery is not None:
            shutil.copyfile(gallery, fresh / "gallery.csv")
        if adapter is not None:
            changes = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
            about = {"base_sha256": adapter.base_sha256}
            safetensors.torch.save_file(changes, fresh / ADAPTER, metadata=about)
        hashes = {file.name: sha256(file) for file in sorted(fresh.iterdir())}
        written = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **{key: config[key] for key in given_keys(config)},
            "gallery": None if gallery is None else "gallery.csv",
            "sha256": hashes,
        }
        (fresh / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        if curves is not None:
            shutil.copyfile(curves, fresh / CURVES)
        (fresh / "README.md").write_text(format_readme(fresh, written), encoding="utf-8")
        # safetensors writes files that their owner alone can read.
        for file in fresh.glob("*.safetensors"):
            shutil.copymode(fresh / "config.json", file)
    return target


def format_readme(folder: Path, config: Mapping[str, Any], name: str = "dir:FOLDER") -> str:
    """Return the README of a model, with the header that the Hugging Face Hub reads.

    Args:
        folder: which files there are.
        config: of the model, as in its ``config.json``.
        name: of the model, for the command that uses it.
    """
    card, image = config["card"], config["image_encoder"]
    facts = {"image backbone": image and image["backbone"], "location encoder": json.dumps(config["location_encoder"])}
    if ADAPTER in config["sha256"]:
        facts["image backbone"] = f"{image['backbone']}, fine-tuned: its changes are in {ADAPTER}"
    for key in ("trained_on", "source", "licence", "accuracy", "kept_epoch"):
        facts[key.replace("_", " ")] = card.get(key)
    if config["gallery"] is not None:
        places = len((folder / config["gallery"]).read_text(encoding="utf-8").split("\n")) - 2
        facts["gallery"] = f"{places:,} places; whoever has this folder has them"
    header = ["library_name: open-geoclip", "tags: [geoclip, image-geolocation]"]
    header += ["license: mit"] if card.get("licence") == "MIT" else []
    use = f"geoclip locate photo.jpg --model {name}" if image else f"geoclip embed 48.86,2.35 --model {name}"
    rows = [f"| {key} | {_cell(value)} |" for key, value in facts.items() if value]
    lines = ["---", *header, "---", f"# {card.get('title') or 'GeoCLIP model'}", "", f"    {use}", ""]
    lines += ["Answers are estimates, not evidence. `config.json` has all settings.", ""]
    lines += ["| | |", "| --- | --- |", *rows]
    lines += ["", f"![Training curves]({CURVES})"] if (folder / CURVES).exists() else []
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Return a fact as the cell of a Markdown table."""
    if isinstance(value, Mapping):
        value = ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    text = f"{value:,.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def save_calibration(target: Path | str, calibration: Mapping[str, Any]) -> None:
    """Write a calibration into the card of a release in our own layout; its weights stay as they are.

    Raises:
        WeightsError: the folder holds no release of our own layout.
    """
    config = _read_own_config(Path(target))
    config["card"]["calibration"] = dict(calibration)
    atomic_write(Path(target) / "config.json", json.dumps(config, indent=2) + "\n")


def save_subspace(target: Path | str, subspace: PrincipalSubspace) -> None:
    """Write the subspace of training images into a release in our own layout; its weights stay as they are.

    Raises:
        WeightsError: the folder holds no release of our own layout.
    """
    _add_file(Path(target), SUBSPACE, safetensors.torch.save(subspace.to_tensors()))


def save_self_check(
    target: Path | str,
    backbone: nn.Module | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Write the model's embeddings of the built-in pictures into a release in our own layout.

    From then on, whatever engine and precision the model is loaded with are compared with them, once per machine; see
    :mod:`open_geoclip.model.backbones.self_check`. The weights stay as they are.

    Args:
        target: the folder of the release.
        backbone: of images, in float32; default: loaded by its name, and run by torch.
        device: where to compute.
        progress: called while pictures are encoded.

    Raises:
        WeightsError: the folder holds no release of our own layout, or the backbone is not named and not given, or
            cannot be loaded.
    """
    _read_own_config(Path(target))
    release = replace(load_release(f"dir:{target}"), self_check=None)
    model = load_model(
        release, backbone=backbone, towers=("image",) if backbone is None else ("text",), device=str(device)
    )
    preprocessing = release.preprocessing
    if backbone is None:
        backbone, preprocessing = model.image_encoder.backbone, model.image_encoder.preprocessing
    if preprocessing is None:
        raise WeightsError(f"{target} was saved without the preprocessing of its backbone")
    embeddings = embed_pictures(backbone, preprocessing, model.encode_features, torch.device(device), progress)
    if float((embeddings.float() - embeddings.float().mean(dim=0)).norm(dim=1).mean()) < _LEAST_SPREAD:
        logger.warning("%s gives all pictures of the self-check the same embedding: it is saved without", target)
        return
    content = safetensors.torch.save({"embeddings": embeddings}, {"pictures": str(PICTURES_VERSION)})
    _add_file(Path(target), SELF_CHECK, content)


def _add_file(target: Path, name: str, content: bytes) -> None:
    """Write a file into a release, and its hash into the configuration."""
    config = _read_own_config(target)
    config["sha256"][name] = sha256(content)
    atomic_write(target / name, content)
    atomic_write(target / "config.json", json.dumps(config, indent=2) + "\n")


def _read_own_config(target: Path) -> dict[str, Any]:
    path = target / "config.json"
    config = read_json(path)
    if config.get("format") != FORMAT or not isinstance(config.get("card"), dict):
        raise WeightsError(f"{path} is no release in our own layout: nothing can be added to it")
    return config
