"""Importing weights from a folder, for machines without a network: checked, then linked or copied into our cache."""

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from open_geoclip.errors import WeightsError
from open_geoclip.files import atomic_folder
from open_geoclip.weights.files import (
    check_sha256,
    companion_files,
    has_weights,
    read_json,
    weight_files,
)
from open_geoclip.weights.folders import FORMAT, HUB_TYPES, find_wheel_files, offline_folder, released_folder
from open_geoclip.weights.hub import DownloadProgress
from open_geoclip.weights.names import Name, trusts_code
from open_geoclip.weights.registry import GALLERY_FILE, RECORDS

__all__ = ["MAX_DEPTH", "import_released", "import_repository", "unpack_wheel"]

MAX_DEPTH = 4
"""Levels of folders that are searched: Hugging Face's cache and the unpacked wheel have three."""

CHUNK = 16 * 2**20


def import_released(source: Path, progress: DownloadProgress) -> Path | None:
    """Copy the released heads and gallery from a wheel or its unpacked files; None if a folder has neither.

    Raises:
        WeightsError: a file is not the one on record.
    """
    for place in _walk(source):
        wheels = sorted(place.glob("geoclip-*.whl"))
        if wheels:
            path = unpack_wheel(wheels[0])
        elif files := find_wheel_files(place):
            contents = {name: file.read_bytes() for name, file in files.items()}
            path = _write_released(contents.__getitem__, str(place))
        else:
            continue
        progress.message(f"geoclip: all hashes agree with the record; taken from {wheels[0] if wheels else place}")
        return path
    return None


def unpack_wheel(wheel: Path) -> Path:
    """Copy weights and gallery out of the released wheel; nothing else of it is unpacked or run.

    Raises:
        WeightsError: it is no such wheel, or a file in it is not the one on record.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:

            def read(file: str) -> bytes:
                inner = "gps_gallery" if file == GALLERY_FILE else "weights"
                return archive.read(f"geoclip/model/{inner}/{file}")

            return _write_released(read, str(wheel))
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise WeightsError(f"{wheel}: is damaged or not the wheel of geoclip ({error})") from error


def _write_released(read: Callable[[str], bytes], what: str) -> Path:
    record = RECORDS["geoclip"]
    with atomic_folder(released_folder()) as fresh:
        for file, sha256 in record.sha256.items():
            content = read(file)
            check_sha256(content, sha256, f"{what}: {file}", fix=f"it must be geoclip {record.version}")
            (fresh / file).write_bytes(content)
    return released_folder()


def import_repository(name: Name, source: Path, progress: DownloadProgress) -> Path | None:
    """Copy what is the same as a repository on the Hub from a folder, or a folder within; None if there is none.

    Raises:
        WeightsError: it is unclear which of several folders is meant, or the one found is damaged, is not the one on
            record, or is neither a GeoCLIP nor a backbone.
    """
    found = _select_folder(name, [place for place in _walk(source) if has_weights(place)], source)
    if found is None:
        return None
    config, weights = read_json(found / "config.json"), weight_files(found)
    index = [file for file in (found / "model.safetensors.index.json",) if weights != [found / "model.safetensors"]]
    names = [file.name for file in found.iterdir()]
    companions = companion_files(names, config, with_code=trusts_code(str(name)))
    kind = _identify(found, weights)
    record = RECORDS.get(str(name))
    known = record.sha256 if record else {}
    with atomic_folder(offline_folder(name)) as fresh:
        for file in (found / "config.json", *(found / companion for companion in companions), *index, *weights):
            if not file.is_file():
                raise WeightsError(f"{found}: {file.name} is missing")
            _link_or_copy(file, fresh / file.name, progress)
            if file.name in known:
                check_sha256(fresh / file.name, known[file.name], str(file), fix=f"it is not that of {name}")
    checked = (
        f"the hash of {', '.join(known)} agrees with the record"
        if known
        else f"no hash is on record; checked that it is a {kind} whose weights can be read"
    )
    progress.message(f"{name}: {checked}; taken from {found}")
    return offline_folder(name)


def _select_folder(name: Name, places: list[Path], source: Path) -> Path | None:
    """Return the only folder, or the only one whose path names repository or commit."""
    repository = name.value.partition("/")[2].lower()
    for hint in (repository, name.value.replace("/", "--").lower(), name.revision or ""):
        if len(places) > 1:
            places = [place for place in places if hint in str(place.relative_to(source)).lower()] or places
    if len(places) > 1:
        raise WeightsError(
            f"--from {source}: several folders could be {name}: {', '.join(map(str, places))}; give the one that it is"
        )
    return places[0] if places else None


def _identify(found: Path, weights: list[Path]) -> str:
    """Return what a folder holds, by its configuration and the headers of its weights."""
    config = read_json(found / "config.json")
    if config.get("format") == FORMAT or config.get("model_type") in HUB_TYPES:
        kind = "GeoCLIP"
    elif str(config.get("model_type")).startswith("clip") and isinstance(config.get("vision_config", {}), dict):
        kind = "CLIP"
    elif isinstance(described := config.get("model_type", config.get("architecture")), str):
        kind = described  # a model of transformers, or one of timm
    else:
        raise WeightsError(f"{found}: is neither a GeoCLIP nor a backbone: its config.json names no model_type")
    names: set[str] = set()
    for file in weights:
        try:
            # Opening reads the header and compares it with the length of the file.
            with safe_open(file, framework="numpy") as tensors:
                names.update(tensors.keys())
        except SafetensorError as error:
            raise WeightsError(f"{file}: is damaged or no safetensors file ({error}); carry it over again") from error
    if kind == "CLIP" and not any(tensor.startswith("vision_model.") for tensor in names):
        raise WeightsError(f"{found}: is a CLIP without its vision half")
    return kind


def _walk(source: Path, deep: int = 0) -> Iterator[Path]:
    yield source
    if deep < MAX_DEPTH:
        for place in sorted(source.iterdir()):
            if place.is_dir() and not place.is_symlink():
                yield from _walk(place, deep + 1)


def _link_or_copy(file: Path, target: Path, progress: DownloadProgress) -> None:
    """Link a file, or copy it to another disk."""
    real = file.resolve()  # in Hugging Face's cache the names are links
    try:
        os.link(real, target)
    except OSError:
        size, done = real.stat().st_size, 0
        with real.open("rb") as reading, target.open("wb") as writing:
            while chunk := reading.read(CHUNK):
                writing.write(chunk)
                done += len(chunk)
                progress.update(file.name, done, size)
