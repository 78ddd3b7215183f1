"""Reading each published layout of GeoCLIP weights, building the model, and saving our own layout.

Three layouts are read:

- the files of the released wheel: three ``.pth`` files and a gallery. A pickle is opened only after its hash is
  found on record;
- a release on the Hub: ``config.json`` with ``model_type`` and ``format_version`` 1, ``model.safetensors``;
- our own: ``config.json`` with ``format`` "open-geoclip" and ``format_version`` 1, ``model.safetensors``, a gallery.
  Every file's hash is in the configuration, a key too many or too few is an error.

Tensors have the names of the released weights: ``logit_scale``, ``location_encoder.LocEnc{i}.capsule.*``,
``image_encoder.mlp.*``; in a model with a text side of its own also ``image_encoder.projection.*`` and
``text_encoder.*``. Which tensors belong to which settings, and their shapes, is what the modules say.
"""

import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from open_geoclip.errors import ModelNameError, WeightsError
from open_geoclip.files import atomic_folder, atomic_write, sha256
from open_geoclip.model.backbones.clip import ClipText
from open_geoclip.model.backbones.minilm import MiniLM
from open_geoclip.model.backbones.runtime import DType, Engine, prepare_backbone
from open_geoclip.model.geoclip import GeoCLIP, Tower
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.model.text_encoder import TextEncoder
from open_geoclip.schema import from_dict
from open_geoclip.weights.backbones import load_image_backbone, load_text_backbone
from open_geoclip.weights.files import check_plain, check_sha256, read_json
from open_geoclip.weights.folders import FORMAT, HUB_TYPES, find_wheel_files, folder, hub_backbone, with_card
from open_geoclip.weights.names import parse_name
from open_geoclip.weights.registry import (
    CLIP_PREPROCESSING,
    GALLERY_FILE,
    HEAD_FILE,
    LOCATION_FILE,
    RECORDS,
    SCALE_FILE,
    Record,
)

__all__ = ["Release", "build_model", "load_model", "load_release", "save_calibration", "save_model"]

FORMAT_VERSION = 1
OWN_FILES = ("config.json", "model.safetensors", "gallery.csv")
_KEPT_FLOAT32 = re.compile(r"logit_scale|.*\.capsule\.0\.b")
"""Frequencies are multiplied by coordinates into phases, which half precision would turn by radians."""

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


# --- building a model -----------------------------------------------------------------------------


def load_model(
    name: str,
    *,
    backbone: str | None = None,
    towers: tuple[Tower, ...] = ("image", "text"),
    engine: Engine = "torch",
    dtype: DType = "float32",
    device: str = "cpu",
) -> GeoCLIP:
    """Load a model from weights on this machine; see :func:`load_release` and :func:`build_model`."""
    release = load_release(name)
    return build_model(release, backbone=backbone, towers=towers, engine=engine, dtype=dtype, device=device)


def build_model(
    release: Release,
    *,
    backbone: str | None = None,
    towers: tuple[Tower, ...] = ("image", "text"),
    engine: Engine = "torch",
    dtype: DType = "float32",
    device: str = "cpu",
) -> GeoCLIP:
    """Build the model of a release, in evaluation mode.

    Args:
        release: the weights.
        backbone: name of the image backbone; the one that the weights name when not given.
        towers: what to load beside the location encoder. ``text`` alone gives an image encoder without a backbone: its
            head, which texts go through too. The text tower itself is loaded at the first text.
        engine: what runs the image backbone; see :func:`~open_geoclip.model.backbones.runtime.prepare_backbone`.
        dtype: what the image backbone computes in.
        device: where to compute.

    Raises:
        WeightsError: a tower is asked for that these weights do not have, or the backbone does not fit.
        MissingExtraError: an optional dependency of a tower is not installed.
    """
    if "image" in towers and release.image is None:
        raise WeightsError(f"{release.name} holds a location encoder only, no image head: it cannot locate images")
    image = release.image if towers else None
    if image is not None:
        image = replace(image, backbone=backbone or image.backbone)
    with torch.device("meta"):
        model = _skeleton(release, image, towers)
    parts = tuple(f"{part}." for part, _ in model.named_children())
    state = {name: tensor for name, tensor in release.tensors.items() if name.startswith((*parts, "logit_scale"))}
    state.setdefault("logit_scale", torch.tensor(math.log(1 / 0.07)))
    model.load_state_dict(state, strict=True, assign=True)
    model.to(device)
    if image is not None and "image" in towers:
        if image.backbone == "custom":
            raise WeightsError(f"{release.name} does not name its image backbone: give one, such as dir:/clip")
        module, preprocessing = load_image_backbone(image.backbone, release.preprocessing)
        if module.dim != image.feature_dim:
            raise WeightsError(
                f"{release.name} was trained on features of length {image.feature_dim}; those of {image.backbone} have "
                f"{module.dim}"
            )
        model.image_encoder.backbone = prepare_backbone(module, engine, dtype, device)
        model.image_encoder.preprocessing = preprocessing
    return model.eval()


def _skeleton(release: Release, image: ImageSettings | None, towers: tuple[Tower, ...] = ("image", "text")) -> GeoCLIP:
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
        elif image.backbone not in ("earth", "custom"):
            text_encoder = TextEncoder(partial(_load_clip_text, release.name, image.backbone, image.widths[0]))
    image_encoder = None if image is None else ImageEncoder(None, None, image)
    return GeoCLIP(image_encoder, LocationEncoder(release.location), text_encoder)


def _load_clip_text(release: str, backbone: str, width: int) -> ClipText | MiniLM:
    model = load_text_backbone(backbone)
    if model.dim != width:
        raise WeightsError(
            f"{release} was trained on features of length {width}; texts' of {backbone} have {model.dim}"
        )
    return model


# --- reading --------------------------------------------------------------------------------------


def load_release(name: str) -> Release:
    """Read weights that are on this machine. Nothing is downloaded.

    Args:
        name: a registered name, ``hub:org/repo@revision`` or ``dir:/folder``.

    Raises:
        ModelNameError: the name does not follow the grammar.
        MissingWeightsError: the weights are not here; the message says which command brings them.
        WeightsError: they are damaged, of an unknown layout, or not what their record says.
    """
    path = folder(name)
    if not (path / "config.json").is_file():
        files = find_wheel_files(path)
        if files is None:
            raise WeightsError(
                f"{name}: {path} holds no weights of a known layout: neither config.json and "
                f"model.safetensors nor the released {', '.join(RECORDS['geoclip'].sha256)}"
            )
        return _read_wheel(name, files)
    config = read_json(path / "config.json")
    if config.get("format") == FORMAT:
        return _read_own(name, path, config)
    if config.get("model_type") in HUB_TYPES:
        return _read_hub(name, path, config)
    if str(config.get("model_type")).startswith("clip"):
        raise WeightsError(
            f"{name}: is a CLIP, which is an image backbone and no GeoCLIP; give it as the backbone of a "
            f"model, such as --model geoclip --backbone {name}"
        )
    raise WeightsError(f"{name}: {path / 'config.json'} describes no GeoCLIP")


def _read_wheel(name: str, files: Mapping[str, Path]) -> Release:
    record = RECORDS["geoclip"]
    mend = f"these are not the files of geoclip {record.version}; to get those, run: geoclip pull geoclip"

    def read(file: str) -> Any:
        content = files[file].read_bytes()
        # What is hashed is what is opened: the file is read once.
        check_sha256(content, record.sha256[file], str(files[file]), mend=mend)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    location, head, scale = read(LOCATION_FILE), read(HEAD_FILE), read(SCALE_FILE)
    check_sha256(files[GALLERY_FILE], record.sha256[GALLERY_FILE], str(files[GALLERY_FILE]), mend=mend)
    tensors = {f"location_encoder.{key}": value for key, value in location.items()}
    tensors |= {f"image_encoder.mlp.{key}": value for key, value in head.items()}
    tensors["logit_scale"] = scale
    return _release(
        name,
        tensors,
        _infer_location(tensors, LocationSettings.sigmas, name),
        _infer_image(tensors, str(record.backbone), name),
        version=record.version,
        gallery=files[GALLERY_FILE],
        preprocessing=from_dict(Preprocessing, CLIP_PREPROCESSING, "preprocessing"),
        record=record,
    )


def _read_hub(name: str, path: Path, config: Mapping[str, Any]) -> Release:
    what = str(path / "config.json")
    if config.get("format_version") != 1 or isinstance(config["format_version"], bool):
        raise WeightsError(f"{what}: format_version is {config.get('format_version')!r}, only 1 is known")
    tensors = _read_safetensors(path)
    only_location = config["model_type"] == HUB_TYPES[1]
    if only_location:
        tensors = {f"location_encoder.{key}": tensor for key, tensor in tensors.items()}
    sigmas = from_dict(LocationSettings, {"sigmas": config.get("sigma")}, f"{what}: sigma", error=WeightsError).sigmas
    location = _infer_location(tensors, sigmas, name)
    if only_location:
        return _release(name, tensors, location, None, version=_commit(path), record=RECORDS.get(name))
    return _release(
        name,
        tensors,
        location,
        _infer_image(tensors, hub_backbone(config, what), name),
        version=_commit(path),
        gallery=_gallery(path, config.get("gallery_file"), what),
        preprocessing=from_dict(Preprocessing, CLIP_PREPROCESSING, "preprocessing"),
        record=RECORDS.get(name),
    )


def _read_own(name: str, path: Path, config: Mapping[str, Any]) -> Release:
    what = str(path / "config.json")
    _check_keys(config, ("format", "format_version", *_given_keys(config), "gallery", "sha256"), what)
    if config["format_version"] != FORMAT_VERSION or isinstance(config["format_version"], bool):
        raise WeightsError(
            f"{what}: format_version is {config['format_version']!r}, this version of OpenGeoCLIP reads "
            f"{FORMAT_VERSION}; a newer one may read it"
        )
    gallery = None if config["gallery"] is None else _gallery(path, config["gallery"], what)
    files = ["model.safetensors", *([gallery.name] if gallery else [])]
    hashes = _check_keys(config["sha256"], files, f"{what}: sha256")
    for file in files:
        if not (path / file).is_file():
            raise WeightsError(f"{name}: {path / file} is missing")
        check_sha256(path / file, str(hashes[file]), str(path / file), mend="damaged or mixed up: get it again")
    none = "not stated"
    record = RECORDS.get(name) or Record(name, name, source=none, licence=none, trained_on=none, accuracy=none)
    return _release(
        name,
        _read_safetensors(path),
        version=_commit(path),
        gallery=gallery,
        record=with_card(record, _card(config, what)),
        **_read_settings(config, what),
    )


def _read_settings(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return what the maker of a model gives in a configuration, as arguments of :func:`_release`."""
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
        text = _check_keys(config["text_encoder"], ("backbone",), f"{what}: text_encoder")["backbone"]
        if text not in _TEXT_DIMS:
            raise WeightsError(f"{what}: text_encoder: backbone {text!r} is not one of {', '.join(_TEXT_DIMS)}")
    if (text is not None) != (image is not None and image.aligned > 0):
        raise WeightsError(f"{what}: text_encoder and image_encoder's aligned go together")
    if config["preprocessing"] is not None:
        preprocessing = from_dict(Preprocessing, config["preprocessing"], f"{what}: preprocessing", error=WeightsError)
    calibration = _card(config, what).get("calibration")
    if calibration is not None and not isinstance(calibration, dict):
        raise WeightsError(f"{what}: card: calibration must be an object")
    return {
        "location": location,
        "image": image,
        "text": text,
        "preprocessing": preprocessing,
        "calibration": calibration,
    }


def _release(
    name: str,
    tensors: Mapping[str, Tensor],
    location: LocationSettings,
    image: ImageSettings | None,
    text: str | None = None,
    *,
    version: str | None = None,
    **rest: Any,
) -> Release:
    """Return a release whose tensors are exactly those that its settings ask for, as float32."""
    if image is not None and image.widths[-1] != location.output:
        ends = f"the image head ends in {image.widths[-1]} numbers, the location encoder in {location.output}"
        raise WeightsError(f"{name}: {ends}")
    converted = {}
    for key in sorted(tensors):
        tensor = tensors[key].detach()
        if not tensor.is_floating_point():
            raise WeightsError(f"{name}: {key} holds {tensor.dtype}, expected floating-point numbers")
        converted[key] = tensor.to("cpu", torch.float32).contiguous()
        if not _is_finite(converted[key]):
            raise WeightsError(f"{name}: {key} holds NaN or infinity")
    release = Release(name, "", _fingerprint(converted, location), location, image, text, converted, **rest)
    release = replace(release, version=version or release.fingerprint[:12])
    with torch.device("meta"):
        expected = dict(_skeleton(release, image).state_dict())
    if image is None:
        del expected["logit_scale"]
    for key in sorted(expected.keys() ^ converted.keys()):
        raise WeightsError(f"{name}: {key} is {'missing' if key in expected else 'not expected with these settings'}")
    for key, tensor in converted.items():
        if tensor.shape != expected[key].shape:
            raise WeightsError(f"{name}: {key} has shape {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}")
    return release


def _infer_location(tensors: Mapping[str, Tensor], sigmas: tuple[float, ...], name: str) -> LocationSettings:
    """Read the settings of a released location encoder off its tensors."""
    level = "location_encoder.LocEnc0."
    hidden = re.compile(re.escape(level) + r"capsule\.\d*[13579]\.weight")
    return LocationSettings(
        sigmas=sigmas,
        features=_shape(tensors, f"{level}capsule.0.b", name)[0],
        width=_shape(tensors, f"{level}capsule.1.weight", name)[0],
        depth=sum(bool(hidden.fullmatch(key)) for key in tensors),
        output=_shape(tensors, f"{level}head.0.weight", name)[0],
    )


def _infer_image(tensors: Mapping[str, Tensor], backbone: str, name: str) -> ImageSettings:
    """Read the settings of a released image head off its tensors."""
    layers = sorted(
        int(found[1]) for key in tensors if (found := re.fullmatch(r"image_encoder\.mlp\.(\d+)\.weight", key))
    )
    if not layers:
        raise WeightsError(f"{name}: the image head is missing")
    shapes = [_shape(tensors, f"image_encoder.mlp.{layer}.weight", name) for layer in layers]
    return ImageSettings(backbone=backbone, widths=(shapes[0][1], *(shape[0] for shape in shapes)))


def _shape(tensors: Mapping[str, Tensor], key: str, name: str) -> tuple[int, ...]:
    if key not in tensors:
        raise WeightsError(f"{name}: {key} is missing")
    if tensors[key].ndim != 2:
        raise WeightsError(f"{name}: {key} has {tensors[key].ndim} axes where 2 are expected")
    return tuple(tensors[key].shape)


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


def _is_finite(tensor: Tensor) -> bool:
    # Such a sum cannot overflow in float64, and is 30 times faster than a test of each number.
    return math.isfinite(tensor.sum(dtype=torch.float64).item())


def _check_keys(value: object, expected: Collection[str], what: str) -> dict[str, Any]:
    """Return a JSON object that has exactly these keys."""
    if not isinstance(value, Mapping):
        raise WeightsError(f"{what} must be an object with the keys {', '.join(expected)}")
    if unknown := sorted(map(str, value.keys() - set(expected))):
        raise WeightsError(f"{what}: unknown key {', '.join(unknown)}; known are {', '.join(expected)}")
    if missing := sorted(set(expected) - value.keys()):
        raise WeightsError(f"{what}: the key {', '.join(missing)} is missing")
    return dict(value)


def _given_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that the maker of a model gives; the others are written here."""
    given = ("location_encoder", "image_encoder", "preprocessing", "card")
    return (*given, "text_encoder") if "text_encoder" in config else given


def _card(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(config["card"], dict):
        raise WeightsError(f"{what}: card must be an object")
    return config["card"]


def _commit(path: Path) -> str | None:
    """Return the commit that a folder holds, by its name, as in the caches."""
    return path.name if re.fullmatch(r"[0-9a-f]{40}", path.name) else None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    file = path / "model.safetensors"
    if not file.is_file():
        raise WeightsError(f"{file} is missing")
    try:
        return safetensors.torch.load_file(file)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{file}: is damaged or no safetensors file ({error}); get it again") from error


def _gallery(path: Path, file: object, what: str) -> Path:
    gallery = path / check_plain(file, ".csv", what)
    if not gallery.is_file():
        raise WeightsError(f"{what}: its gallery {gallery} is missing")
    return gallery


# --- saving ---------------------------------------------------------------------------------------


def save_model(
    target: Path | str,
    model: GeoCLIP,
    *,
    card: Mapping[str, Any],
    gallery: Path | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> Path:
    """Write a model in our own layout. Backbones are not written, only their names.

    Args:
        target: the folder to write. A release that is there already is replaced as a whole.
        model: standardised features (:meth:`ImageEncoder.standardize_features`) must be folded before.
        card: a free object; ``title``, ``source``, ``licence``, ``trained_on`` and ``accuracy`` are shown by
            `geoclip models`; ``calibration`` is how scores become probabilities.
        gallery: a CSV of coordinates, copied as ``gallery.csv``.
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
    return save_release(target, tensors, config, gallery=gallery, dtype=dtype)


def save_release(
    target: Path | str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    gallery: Path | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> Path:
    """Write tensors and their configuration in our own layout; see :func:`save_model`.

    Args:
        target: the folder to write.
        tensors: by the names at the top of this module.
        config: ``location_encoder`` (fields of :class:`LocationSettings`), ``image_encoder`` (fields of
            :class:`ImageSettings`, or None), ``preprocessing`` (an object or None), ``card`` (an object) and, with a
            text side, ``text_encoder`` (``backbone``).
        gallery: see :func:`save_model`.
        dtype: see :func:`save_model`.

    Raises:
        WeightsError: see :func:`save_model`; or tensors do not fit the settings, or a key is unknown or missing.
    """
    target, what = Path(target), str(target)
    settings = _read_settings(_check_keys(config, _given_keys(config), "config"), "config")
    checked = _release(what, tensors, **settings).tensors
    if dtype == "float16":
        checked = {key: tensor if _KEPT_FLOAT32.fullmatch(key) else tensor.half() for key, tensor in checked.items()}
        if large := [key for key, tensor in checked.items() if not _is_finite(tensor)]:
            raise WeightsError(f"{what}: {large[0]} holds numbers too large for float16; save as float32")
    if target.exists() and {file.name for file in target.iterdir()} - set(OWN_FILES):
        raise WeightsError(f"{what}: holds files that are no release; choose another folder")
    with atomic_folder(target) as fresh:
        safetensors.torch.save_file(checked, fresh / "model.safetensors", metadata={"format": "pt"})
        if gallery is not None:
            shutil.copyfile(gallery, fresh / "gallery.csv")
        hashes = {file.name: sha256(file) for file in sorted(fresh.iterdir())}
        written = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **{key: config[key] for key in _given_keys(config)},
            "gallery": None if gallery is None else "gallery.csv",
            "sha256": hashes,
        }
        (fresh / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        # safetensors writes files that their owner alone can read.
        shutil.copymode(fresh / "config.json", fresh / "model.safetensors")
    return target


def save_calibration(target: Path | str, calibration: Mapping[str, Any]) -> None:
    """Write a calibration into the card of a release in our own layout; its weights stay as they are.

    Raises:
        WeightsError: the folder holds no release of our own layout.
    """
    path = Path(target) / "config.json"
    config = read_json(path)
    if config.get("format") != FORMAT or not isinstance(config.get("card"), dict):
        raise WeightsError(f"{path} is no release in our own layout: a calibration cannot be kept there")
    config["card"]["calibration"] = dict(calibration)
    atomic_write(path, json.dumps(config, indent=2) + "\n")
