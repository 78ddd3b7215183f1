"""Files that hold weights: which of them a folder has, and checks of their names and hashes."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from open_geoclip.errors import WeightsError
from open_geoclip.files import sha256

__all__ = [
    "check_file_name",
    "check_sha256",
    "companion_files",
    "has_weights",
    "read_json",
    "require_weights",
    "shards",
    "weight_files",
]


COMPANIONS = re.compile(r"(pre)?processor_config\.json|(adapter|self_check|subspace)\.safetensors|README\.md")
"""How a model wants its images, what fine-tuning changed, how its training images were distributed; its licence."""
TOKENIZER = re.compile(r"vocab\.json|merges\.txt|tokenizer[\w.-]*\.json|special_tokens_map\.json")
"""How a CLIP wants its words; the text side of other models is not used."""


def has_weights(path: Path) -> bool:
    """Whether a folder holds a configuration and all of its weights."""
    if not (path / "config.json").is_file():
        return False
    files = weight_files(path)
    return bool(files) and all(file.is_file() for file in files)


def weight_files(path: Path) -> list[Path]:
    """The weights that a folder should hold: one file, or all that its index names. Empty: none at all."""
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return []
    return [path / file for file in shards(read_json(index), str(index))]


def require_weights(path: Path) -> list[Path]:
    """Return the files with the weights of a backbone.

    Raises:
        WeightsError: There are none, or none that are safetensors.
    """
    if files := weight_files(path):
        return files
    if (path / "pytorch_model.bin").exists():
        raise WeightsError(
            f"{path} holds its weights as a pickle, which could run code and is not opened: get the repository's "
            "model.safetensors, or convert it with transformers: model.save_pretrained(...)"
        )
    raise WeightsError(f"{path} holds no weights: model.safetensors is missing")


def shards(index: dict[str, Any], what: str) -> list[str]:
    """The files that the index of sharded weights names.

    Raises:
        WeightsError: It is no such index, or a name in it leads out of the folder.
    """
    parts = index.get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise WeightsError(f"{what}: is no index of weights")
    files = sorted({str(part) for part in parts.values()})
    for file in files:
        check_file_name(file, ".safetensors", what)
    return files


def check_file_name(file: object, ending: str, what: str) -> str:
    """Return a file name that a configuration gives, if it stays in its folder.

    Raises:
        WeightsError: It is no plain file name with this ending.
    """
    if not isinstance(file, str) or not file.endswith(ending) or set(file) & set("/\\:\0") or file == ending:
        raise WeightsError(f"{what}: {file!r} is not the name of a {ending} file in the same folder")
    return file


def companion_files(names: Iterable[str], config: dict[str, Any], *, with_code: bool = False) -> list[str]:
    """Return the files that belong to configuration and weights: preprocessing, card, a CLIP's tokenizer, gallery."""
    galleries = [config[key] for key in ("gallery", "gallery_file") if isinstance(config.get(key), str)]
    is_clip = str(config.get("model_type", "")).startswith("clip")
    return [
        *(
            name
            for name in sorted(names)
            if COMPANIONS.fullmatch(name)
            or (is_clip and TOKENIZER.fullmatch(name))
            or (with_code and name.endswith(".py"))
        ),
        *(check_file_name(file, ".csv", "config.json") for file in galleries),
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: The file holds no JSON object; the message names it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise WeightsError(f"{path}: is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: holds no JSON object")
    return value


def check_sha256(content: Path | bytes, expected: str, what: str, *, fix: str) -> None:
    """Check that a file, or what was read from it, has a hash.

    Raises:
        WeightsError: it has another one; the message names the file (``what``) and says what to do (``fix``).
    """
    if (found := sha256(content)) != expected:
        raise WeightsError(f"{what}: is another file than expected (sha256 {found}, expected {expected}); {fix}")
