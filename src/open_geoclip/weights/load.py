"""Reading each published layout of GeoCLIP weights into one form, and writing our own.

Three layouts are read:

- the files of the released wheel: three ``.pth`` files and a gallery. A pickle is opened only after its
  hash is found on record;
- a release on the Hub: ``config.json`` with ``model_type`` and ``format_version`` 1, ``model.safetensors``;
- our own: ``config.json`` with ``format`` "open-geoclip" and ``format_version`` 1, ``model.safetensors``,
  a gallery. Every file's hash is in the configuration, a key too many or too few is an error.
"""

import io
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from open_geoclip.errors import WeightsError
from open_geoclip.weights.config import (
    FORMAT,
    HUB_TYPES,
    HeadSettings,
    LocationSettings,
    check_keys,
    given_keys,
    hub_backbone,
    read_settings,
    read_sigmas,
)
from open_geoclip.weights.files import check_plain, check_sha256, new_folder, read_json, sha256_of
from open_geoclip.weights.folders import find_wheel_files, folder, with_card
from open_geoclip.weights.registry import (
    CLIP_PREPROCESSING,
    GALLERY_FILE,
    HEAD_FILE,
    LOCATION_FILE,
    RECORDS,
    SCALE_FILE,
    Record,
)
from open_geoclip.weights.tensors import (
    check_tensors,
    fingerprint,
    infer_location,
    infer_widths,
    is_finite,
)

__all__ = ["Release", "load_release", "save_calibration", "save_release"]

FORMAT_VERSION = 1
OWN_FILES = ("config.json", "model.safetensors", "gallery.csv")
STAY_FLOAT32 = re.compile(r"logit_scale|.*\.capsule\.0\.b")
"""Frequencies are multiplied by coordinates into phases, which half precision would turn by radians."""


@dataclass(frozen=True)
class Release:
    """A set of weights, read and checked.

    Attributes:
        name: The name it was asked for by.
        version: The version of the wheel, the commit on the Hub, or the start of the fingerprint.
        fingerprint: sha256 in hex over all tensors and the settings of the location encoder.
        location_encoder: Settings of the location encoder.
        image_head: Settings of the image head, or None for a location encoder alone.
        tensors: All tensors, float32 on the CPU, under the names in :mod:`open_geoclip.weights.tensors`.
        gallery: A CSV of coordinates, or None.
        backbone: The name of the image backbone, in the same grammar, or "earth"; None without image head.
        preprocessing: How the backbone wants its pictures, if that is known here. What a backbone's own
            folder says counts for more.
        record: What is known about these weights, or None.
        text_backbone: The sentence encoder of a text side that these weights hold, or None. A model whose image
            backbone is a CLIP needs none: texts go through that CLIP's text half.
        calibration: How scores become probabilities, as :class:`open_geoclip.search.posterior.Calibration` reads it;
            None when that was not fitted.
    """

    name: str
    version: str
    fingerprint: str
    location_encoder: LocationSettings
    image_head: HeadSettings | None
    tensors: dict[str, Tensor]
    gallery: Path | None
    backbone: str | None
    preprocessing: dict[str, Any] | None
    record: Record | None
    text_backbone: str | None = None
    calibration: dict[str, Any] | None = None


# --- reading --------------------------------------------------------------------------------------


def load_release(name: str) -> Release:
    """Read weights that are on this machine. Nothing is downloaded.

    Args:
        name: A registered name, ``hub:org/repo@revision`` or ``dir:/folder``.

    Returns:
        The weights and their settings.

    Raises:
        ModelNameError: The name does not follow the grammar.
        MissingWeightsError: The weights are not here; the message says which command brings them.
        WeightsError: They are damaged, of an unknown layout, or not what their record says.
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
        infer_location(tensors, [2.0**0, 2.0**4, 2.0**8], name),
        _plain_head(infer_widths(tensors, name)),
        version=record.version,
        gallery=files[GALLERY_FILE],
        backbone=record.backbone,
        preprocessing=dict(CLIP_PREPROCESSING),
        record=record,
    )


def _read_hub(name: str, path: Path, config: Mapping[str, Any]) -> Release:
    what = str(path / "config.json")
    if config.get("format_version") != 1 or isinstance(config["format_version"], bool):
        raise WeightsError(f"{what}: format_version is {config.get('format_version')!r}, only 1 is known")
    sigmas = read_sigmas(config.get("sigma"), f"{what}: sigma")
    alone = config["model_type"] == HUB_TYPES[1]
    tensors = _read_safetensors(path)
    if alone:
        tensors = {f"location_encoder.{key}": tensor for key, tensor in tensors.items()}
    commit = _commit(path)
    location = infer_location(tensors, sigmas, name)
    if alone:
        return _release(name, tensors, location, None, version=commit, record=RECORDS.get(name))
    widths = infer_widths(tensors, name)
    if widths is None:
        raise WeightsError(f"{name}: the image head is missing")
    return _release(
        name,
        tensors,
        location,
        _plain_head(widths),
        version=commit,
        gallery=_gallery(path, config.get("gallery_file"), what),
        backbone=hub_backbone(config, what),
        preprocessing=dict(CLIP_PREPROCESSING),
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
    settings = read_settings(config, what)
    gallery = None if config["gallery"] is None else _gallery(path, config["gallery"], what)
    files = ["model.safetensors", *([gallery.name] if gallery else [])]
    hashes = check_keys(config["sha256"], files, f"{what}: sha256")
    for file in files:
        if not (path / file).is_file():
            raise WeightsError(f"{name}: {path / file} is missing")
        check_sha256(
            path / file,
            str(hashes[file]),
            str(path / file),
            mend="damaged or mixed up: get it again",
        )
    record = RECORDS.get(name) or Record(
        name=name,
        title=name,
        source="not told",
        licence="not told",
        trained_on="not told",
        accuracy="not told",
    )
    return _release(
        name,
        _read_safetensors(path),
        settings.location,
        settings.head,
        version=_commit(path),
        gallery=gallery,
        backbone=settings.backbone,
        preprocessing=settings.preprocessing,
        record=with_card(record, settings.card),
        text=settings.text,
        calibration=_calibration(settings.card, what),
    )


def _calibration(card: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    calibration = card.get("calibration")
    if calibration is not None and not isinstance(calibration, dict):
        raise WeightsError(f"{what}: card: calibration must be an object")
    return calibration


def _release(
    name: str,
    tensors: Mapping[str, Tensor],
    location: LocationSettings,
    head: HeadSettings | None,
    *,
    version: str | None = None,
    gallery: Path | None = None,
    backbone: str | None = None,
    preprocessing: dict[str, Any] | None = None,
    record: Record | None = None,
    text: str | None = None,
    calibration: dict[str, Any] | None = None,
) -> Release:
    checked = _checked(tensors, location, head, text, name)
    mark = fingerprint(checked, location)
    return Release(
        name=name,
        version=version or mark[:12],
        fingerprint=mark,
        location_encoder=location,
        image_head=head,
        tensors=checked,
        gallery=gallery,
        backbone=backbone,
        preprocessing=preprocessing,
        record=record,
        text_backbone=text,
        calibration=calibration,
    )


def _plain_head(widths: list[int] | None) -> HeadSettings | None:
    return None if widths is None else HeadSettings(widths=widths, aligned=0)


def _checked(
    tensors: Mapping[str, Tensor], location: LocationSettings, head: HeadSettings | None, text: str | None, what: str
) -> dict[str, Tensor]:
    if head is None:
        return check_tensors(tensors, location, None, what)
    return check_tensors(tensors, location, head["widths"], what, aligned=head["aligned"], text=text)


def _commit(path: Path) -> str | None:
    """The commit that a folder holds, by its name, as in the caches."""
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


# --- writing --------------------------------------------------------------------------------------


def save_release(
    target: Path | str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    gallery: Path | None = None,
    dtype: Literal["float16", "float32"] = "float16",
) -> Path:
    """Write weights in our own layout.

    Args:
        target: The folder to write. A release that is there already is replaced as a whole.
        tensors: Under the names in :mod:`open_geoclip.weights.tensors`.
        config: ``location_encoder`` (see :class:`LocationSettings`), ``image_encoder`` (``backbone`` and
            ``widths``, and ``aligned`` with a text side; or None for a location encoder alone), ``text_encoder``
            (``backbone``; may be left out), ``preprocessing`` (an object or None) and
            ``card`` (an object, free; ``title``, ``source``, ``licence``, ``trained_on`` and ``accuracy`` are
            shown by `geoclip models`; ``calibration`` is how scores become probabilities).
        gallery: A CSV of coordinates, copied as ``gallery.csv``.
        dtype: On disk. The random frequencies and the temperature are float32 always.

    Returns:
        The folder.

    Raises:
        WeightsError: The tensors do not fit the settings or hold NaN or infinity, a number is too large for
            float16, a key is unknown or missing, or the folder holds something else.
    """
    target, what = Path(target), str(target)
    settings = read_settings(check_keys(config, given_keys(config), "config"), "config")
    checked = _checked(tensors, settings.location, settings.head, settings.text, what)
    if dtype == "float16":
        checked = {key: tensor if STAY_FLOAT32.fullmatch(key) else tensor.half() for key, tensor in checked.items()}
        if large := [key for key, tensor in checked.items() if not is_finite(tensor)]:
            raise WeightsError(f"{what}: {large[0]} holds numbers too large for float16; save as float32")
    if target.exists() and {file.name for file in target.iterdir()} - set(OWN_FILES):
        raise WeightsError(f"{what}: holds files that are no release; choose another folder")
    with new_folder(target) as fresh:
        safetensors.torch.save_file(checked, fresh / "model.safetensors", metadata={"format": "pt"})
        if gallery is not None:
            shutil.copyfile(gallery, fresh / "gallery.csv")
        hashes = {file.name: sha256_of(file) for file in sorted(fresh.iterdir())}
        written = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **{key: config[key] for key in given_keys(config)},
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
        WeightsError: The folder holds no release of our own layout.
    """
    path = Path(target) / "config.json"
    config = read_json(path)
    if config.get("format") != FORMAT or not isinstance(config.get("card"), dict):
        raise WeightsError(f"{path} is no release in our own layout: a calibration cannot be kept there")
    config["card"]["calibration"] = dict(calibration)
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)
