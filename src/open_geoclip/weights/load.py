"""Reading each published layout of GeoCLIP weights, and building the model.

Three layouts are read:

- the files of the released wheel: three ``.pth`` files and a gallery. A pickle is opened only after its hash is
  found on record;
- a release on the Hub: ``config.json`` with ``model_type`` and ``format_version`` 1, ``model.safetensors``;
- our own: ``config.json`` with ``format`` "open-geoclip" and ``format_version`` 1, ``model.safetensors``, a gallery,
  ``subspace.safetensors`` where images out of distribution are recognised, ``adapter.safetensors`` where the image
  backbone was fine-tuned, and ``self_check.safetensors``, with which what is loaded is compared.
  Every file's hash is in the configuration, a key too many or too few is an error.

"""

import io
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import ImageError, SettingsError, WeightsError
from open_geoclip.images import ImageSource, load_image
from open_geoclip.model.adapter import BackboneAdapter, backbone_sha256
from open_geoclip.model.backbones.clip import ClipVision
from open_geoclip.model.backbones.runtime import DType, Engine, prepare_backbone
from open_geoclip.model.backbones.self_check import PICTURES_VERSION, Progress, Reference
from open_geoclip.model.geoclip import GeoCLIP, Tower
from open_geoclip.model.image_encoder import ImageSettings
from open_geoclip.model.location_encoder import LocationSettings
from open_geoclip.model.preprocessing import CLIP_PREPROCESSING, Preprocessing
from open_geoclip.model.subspace import PrincipalSubspace
from open_geoclip.schema import from_dict
from open_geoclip.weights.backbones import load_image_backbone
from open_geoclip.weights.files import check_file_name, check_sha256, read_json
from open_geoclip.weights.folders import (
    ADAPTER,
    FORMAT,
    HUB_TYPES,
    SELF_CHECK,
    SUBSPACE,
    find_wheel_files,
    folder,
    hub_backbone,
    with_card,
)
from open_geoclip.weights.registry import (
    GALLERY_FILE,
    HEAD_FILE,
    LOCATION_FILE,
    RECORDS,
    SCALE_FILE,
    Record,
)
from open_geoclip.weights.release import (
    FORMAT_VERSION,
    Release,
    check_keys,
    check_release,
    given_keys,
    is_finite,
    model_skeleton,
    read_settings,
)

__all__ = ["load_model", "load_release"]

logger = logging.getLogger(__name__)

_CALIBRATION = 128  # images for int8


# --- building a model -----------------------------------------------------------------------------


def load_model(
    source: str | Release,
    *,
    backbone: str | nn.Module | None = None,
    towers: tuple[Tower, ...] = ("image", "text"),
    engine: Engine = "torch",
    dtype: DType = "float32",
    device: str = "cpu",
    merge_tokens: int = 0,
    calibration_images: Iterable[ImageSource] = (),
    progress: Progress | None = None,
) -> GeoCLIP:
    """Return a model with weights that are on this machine, in evaluation mode.

    Args:
        source: a name of weights, or a release that was read before.
        backbone: name of the image backbone, or a module that turns preprocessed images into features; the one that
            the weights name when not given.
        towers: what to load beside the location encoder. ``text`` alone gives an image encoder without a backbone: its
            head, which texts go through too. The text tower itself is loaded at the first text.
        engine: what runs the image backbone; see :func:`~open_geoclip.model.backbones.runtime.prepare_backbone`.
        dtype: what the image backbone computes in; see the same function.
        device: where to compute, such as ``cpu`` or ``cuda``.
        merge_tokens: of a CLIP, tokens that each layer merges; see
            :class:`~open_geoclip.model.backbones.clip.ClipVision`. Faster, with other features.
        calibration_images: for ``dtype="int8"``: at least 32 images like those to encode; the first 128 that can be
            read are used. They are needed once: the quantised backbone is kept in the cache folder.
        progress: called while the image backbone is checked, once per machine.

    Raises:
        SettingsError: tokens are to be merged, and the backbone is no CLIP; or the engine or dtype cannot be used, see
            :func:`~open_geoclip.model.backbones.runtime.prepare_backbone`.
        ModelNameError: a name does not follow the grammar.
        WeightsError: see :func:`load_release`; or a tower is asked for that these weights do not have, or the backbone
            does not fit, or gives other embeddings than when the weights were saved.
        MissingExtraError: an optional dependency of a tower is not installed.
    """
    release = load_release(source) if isinstance(source, str) else source
    if "image" in towers and release.image is None:
        raise WeightsError(f"{release.name} holds a location encoder only, no image head: it cannot locate images")
    image = release.image if towers else None
    if image is not None:
        given = "custom" if isinstance(backbone, nn.Module) else backbone
        image = replace(image, backbone=given or image.backbone)
    with torch.device("meta"):
        model = model_skeleton(release, image, towers)
    parts = tuple(f"{part}." for part, _ in model.named_children())
    state = {name: tensor for name, tensor in release.tensors.items() if name.startswith((*parts, "logit_scale"))}
    state.setdefault("logit_scale", torch.tensor(math.log(1 / 0.07)))
    model.load_state_dict(state, strict=True, assign=True)
    model.to(device)
    if image is not None:
        model.image_encoder.adapter = release.adapter
    if image is not None and "image" in towers:
        if isinstance(backbone, nn.Module):
            if release.preprocessing is None:
                raise WeightsError(f"{release.name} was saved without the preprocessing of its backbone")
            module, preprocessing = backbone.requires_grad_(False).eval(), release.preprocessing
            with torch.inference_mode():
                at = getattr(next(module.parameters(), None), "device", None)
                dim = module(torch.zeros(1, 3, preprocessing.crop, preprocessing.crop, device=at)).shape[1]
        elif image.backbone == "custom":
            raise WeightsError(
                f"{release.name} does not name its image backbone: give one, such as dir:/clip, or in Python the module"
            )
        else:
            module, preprocessing = load_image_backbone(image.backbone, release.preprocessing, image.feature)
            dim = cast(int, module.dim)
        known = image.backbone_sha256 if given and release.self_check is None else ""
        if release.adapter is not None:
            release.adapter.merge(module, image.backbone)
        elif known and known != backbone_sha256(module):
            logger.warning(
                "%s was trained with another backbone than %s, whose weights have another sha256 than %s...: unless it "
                "gives the same features, answers are wrong",
                *(release.name, image.backbone, known[:12]),
            )
        if dim != image.feature_dim:
            raise WeightsError(
                f"{release.name} was trained on features of length {image.feature_dim}; those of {image.backbone} have "
                f"{dim}: name the backbone that it was trained with, or train a head for this one"
            )
        if merge_tokens:
            if merge_tokens < 0 or not isinstance(module, ClipVision):
                raise SettingsError(f"merge_tokens: 0 or more, of a CLIP, not {merge_tokens} of {image.backbone}")
            module.merge_tokens = merge_tokens
        reference = None
        if release.self_check is not None and not merge_tokens:  # which gives other features
            about = model.encode_features, release.name, release.fingerprint
            reference = Reference.from_release(release.self_check, preprocessing, *about)
        calibration = partial(_calibration_pixels, calibration_images, preprocessing)
        options: dict[str, Any] = {"calibration": calibration, "reference": reference, "progress": progress}
        backbone = prepare_backbone(module, engine, dtype, device, side=preprocessing.crop, **options)
        model.image_encoder.backbone = backbone
        model.image_encoder.preprocessing = preprocessing
        if release.image and image.backbone == release.image.backbone and not merge_tokens:  # else other features
            model.image_encoder.subspace = release.subspace
    return model.eval()


def _calibration_pixels(images: Iterable[ImageSource], preprocessing: Preprocessing) -> list[Float[Tensor, "3 h w"]]:
    """Return the pixels of the first 128 images that can be read."""
    pixels: list[Tensor] = []
    failed = 0
    for image in images:
        try:
            pixels.append(preprocessing(load_image(image)))
        except ImageError:
            failed += 1
        if len(pixels) == _CALIBRATION:
            break
    if failed:
        logger.warning("%d of the images for int8 cannot be read: %d are used", failed, len(pixels))
    return pixels


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
    if "model_type" in config:
        raise WeightsError(
            f"{name}: is a {config['model_type']}, no GeoCLIP; if it is a vision model, train a head for it: "
            f'geoclip train with [model] backbone = "{name}"'
        )
    raise WeightsError(f"{name}: {path / 'config.json'} describes no GeoCLIP")


def _read_wheel(name: str, files: Mapping[str, Path]) -> Release:
    record = RECORDS["geoclip"]
    fix = f"these are not the files of geoclip {record.version}; to get those, run: geoclip pull geoclip"

    def read(file: str) -> Any:
        content = files[file].read_bytes()
        # What is hashed is what is opened: the file is read once.
        check_sha256(content, record.sha256[file], str(files[file]), fix=fix)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    location, head, scale = read(LOCATION_FILE), read(HEAD_FILE), read(SCALE_FILE)
    check_sha256(files[GALLERY_FILE], record.sha256[GALLERY_FILE], str(files[GALLERY_FILE]), fix=fix)
    tensors = {f"location_encoder.{key}": value for key, value in location.items()}
    tensors |= {f"image_encoder.mlp.{key}": value for key, value in head.items()}
    tensors["logit_scale"] = scale
    return check_release(
        name,
        tensors,
        _infer_location(tensors, LocationSettings.sigmas, name),
        _infer_image(tensors, str(record.backbone), name),
        version=record.version,
        gallery=files[GALLERY_FILE],
        preprocessing=CLIP_PREPROCESSING,
        record=record,
    )


def _read_hub(name: str, path: Path, config: Mapping[str, Any]) -> Release:
    what = str(path / "config.json")
    if config.get("format_version") != 1 or isinstance(config["format_version"], bool):
        raise WeightsError(f"{what}: format_version is {config.get('format_version')!r}, only 1 is known")
    tensors = _read_safetensors(path / "model.safetensors")
    only_location = config["model_type"] == HUB_TYPES[1]
    if only_location:
        tensors = {f"location_encoder.{key}": tensor for key, tensor in tensors.items()}
    sigmas = from_dict(LocationSettings, {"sigmas": config.get("sigma")}, f"{what}: sigma", error=WeightsError).sigmas
    location = _infer_location(tensors, sigmas, name)
    if only_location:
        return check_release(name, tensors, location, None, version=_commit(path), record=RECORDS.get(name))
    return check_release(
        name,
        tensors,
        location,
        _infer_image(tensors, hub_backbone(config, what), name),
        version=_commit(path),
        gallery=_gallery(path, config.get("gallery_file"), what),
        preprocessing=CLIP_PREPROCESSING,
        record=RECORDS.get(name),
    )


def _read_own(name: str, path: Path, config: Mapping[str, Any]) -> Release:
    what = str(path / "config.json")
    check_keys(config, ("format", "format_version", *given_keys(config), "gallery", "sha256"), what)
    if config["format_version"] != FORMAT_VERSION or isinstance(config["format_version"], bool):
        raise WeightsError(
            f"{what}: format_version is {config['format_version']!r}, this version of OpenGeoCLIP reads "
            f"{FORMAT_VERSION}; a newer one may read it"
        )
    gallery = None if config["gallery"] is None else _gallery(path, config["gallery"], what)
    files = ["model.safetensors", *([gallery.name] if gallery else [])]
    files += [
        file
        for file in (ADAPTER, SELF_CHECK, SUBSPACE)
        if isinstance(config["sha256"], dict) and file in config["sha256"]
    ]
    hashes = check_keys(config["sha256"], files, f"{what}: sha256")
    for file in files:
        if not (path / file).is_file():
            raise WeightsError(f"{name}: {path / file} is missing")
        check_sha256(path / file, str(hashes[file]), str(path / file), fix="damaged or mixed up: get it again")
    settings, none = read_settings(config, what), "not stated"
    if settings["image"] is not None and settings["image"].backbone.startswith("dir:"):
        # A relative path is relative to this folder, so that a model can be moved together with its backbone.
        backbone = (path / settings["image"].backbone.removeprefix("dir:")).resolve()
        settings["image"] = replace(settings["image"], backbone=f"dir:{backbone}")
    record = RECORDS.get(name) or Record(name, name, source=none, licence=none, trained_on=none, accuracy=none)
    adapter = subspace = None
    if ADAPTER in files:
        changes = _read_safetensors(path / ADAPTER)
        with safetensors.safe_open(path / ADAPTER, "pt") as file:
            adapter = BackboneAdapter((file.metadata() or {}).get("base_sha256", ""), changes)
    if SUBSPACE in files:
        if settings["image"] is None:
            raise WeightsError(f"{what}: {SUBSPACE} belongs to an image encoder, and there is none")
        try:
            subspace = PrincipalSubspace.from_tensors(_read_safetensors(path / SUBSPACE), settings["image"].feature_dim)
        except ValueError as error:
            raise WeightsError(f"{path / SUBSPACE}: {error}") from error
    return check_release(
        name,
        _read_safetensors(path / "model.safetensors"),
        version=_commit(path),
        adapter=adapter,
        subspace=subspace,
        self_check=_read_self_check(path / SELF_CHECK, settings["location"].output) if SELF_CHECK in files else None,
        gallery=gallery,
        record=with_card(record, config["card"]),
        **settings,
    )


def _read_self_check(path: Path, dim: int) -> Tensor | None:
    """Return stored embeddings; None if they are of other pictures than this version's."""
    embeddings = _read_safetensors(path).get("embeddings", torch.empty(0))
    with safetensors.safe_open(path, "pt") as file:
        pictures = (file.metadata() or {}).get("pictures")
    if pictures != str(PICTURES_VERSION):
        logger.warning("%s was made by another version of OpenGeoCLIP, and is not used", path)
        return None
    if embeddings.shape != (32, dim) or not (embeddings.is_floating_point() and is_finite(embeddings)):
        raise WeightsError(f"{path}: holds no embeddings of 32 pictures, of length {dim}")
    return embeddings


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


def _commit(path: Path) -> str | None:
    """Return the commit that a folder holds, by its name, as in the caches."""
    return path.name if re.fullmatch(r"[0-9a-f]{40}", path.name) else None


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise WeightsError(f"{file} is missing")
    try:
        return safetensors.torch.load_file(file)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{file}: is damaged or no safetensors file ({error}); get it again") from error


def _gallery(path: Path, file: object, what: str) -> Path:
    gallery = path / check_file_name(file, ".csv", what)
    if not gallery.is_file():
        raise WeightsError(f"{what}: its gallery {gallery} is missing")
    return gallery
