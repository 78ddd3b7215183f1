"""Downloading from the Hugging Face Hub into the cache of its tools.

From version 1.18 on, ``huggingface_hub`` deletes a partial file when it is interrupted. Here files are fetched with
``Range`` into a partial file that is kept, and compared with the hash that the Hub states; client, address, token and
cache are those of ``huggingface_hub``. Requests name this package and its version, nothing else of this machine.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from open_geoclip._version import __version__
from open_geoclip.errors import MissingWeightsError, ModelNameError, WeightsError
from open_geoclip.files import atomic_write, sha256
from open_geoclip.weights.files import companion_files, read_json, shards
from open_geoclip.weights.folders import hub_cache_folder
from open_geoclip.weights.names import Name, trusts_code

__all__ = ["DownloadProgress", "HubFile", "download", "fetch_repository", "hub_errors", "list_files"]


AGAIN = "run the same command again"

PLAIN = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)
"""Names of files that are accepted from the network: they become paths."""


class DownloadProgress:
    """Receives messages and progress of a download, and ignores them; a subclass of the command line shows them."""

    def message(self, text: str) -> None:
        """Receive a sentence for the user."""

    def update(self, file: str, done: int, total: int) -> None:
        """Receive the bytes that are there of a file, and their total."""


@dataclass(frozen=True)
class HubFile:
    """A file in a repository.

    Attributes:
        name: in the repository.
        size: bytes.
        etag: sha256 of a large file, git's sha1 of a small one; its name in the cache.
    """

    name: str
    size: int
    etag: str


def fetch_repository(name: Name, expected: Mapping[str, str], progress: DownloadProgress) -> Path:
    """Download the weights of a repository into the cache that Hugging Face's tools share; return the commit's folder.

    Downloaded are ``config.json``, the files of preprocessing and tokenizer, the model card, the gallery that the
    configuration names, and the weights as safetensors; never the same weights a second time in another format. Code
    is downloaded only if the user trusts it.

    Args:
        name: a ``hub:`` name.
        expected: file name to sha256, for files whose hash is on record.
        progress: receives messages and progress.

    Raises:
        ModelNameError: there is no such repository or revision.
        WeightsError: a file arrived damaged, is not the one on record, or there are no safetensors.
        MissingWeightsError: the Hub cannot be reached or broke off; what has arrived is kept.
    """
    commit, files = list_files(name)
    for file, digest in expected.items():
        if file in files and files[file].etag != digest:
            raise WeightsError(
                f"{name}: the hub offers another {file} than the one on record "
                f"(sha256 {files[file].etag}, expected {digest}); nothing was downloaded"
            )
    snapshot = hub_cache_folder(name.value) / "snapshots" / commit

    def fetch(file: str) -> Path:
        if file not in files:
            raise WeightsError(f"{name}: has no {file}, so it is no model that can be used here")
        return _fetch_file(name, commit, files[file], snapshot, progress)

    config = read_json(fetch("config.json"))
    if "model.safetensors" in files:
        weights = ["model.safetensors"]
    elif "model.safetensors.index.json" in files:
        index = fetch("model.safetensors.index.json")
        weights = shards(read_json(index), f"{name}: {index.name}")
    else:
        raise WeightsError(
            f"{name}: has no weights as safetensors. Other formats can hold programs and are not opened; "
            "convert it, or look for a revision that has them"
        )
    # The weights come last: a folder that has them has all.
    for file in (*companion_files(files, config, with_code=trusts_code(str(name))), *weights):
        fetch(file)
    if name.revision != commit:
        reference = hub_cache_folder(name.value) / "refs" / (name.revision or "main")
        reference.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(reference, commit)
    return snapshot


def list_files(name: Name) -> tuple[str, dict[str, HubFile]]:
    """Ask the Hub which commit a name stands for, and which files it has there; those in sub-folders are left out.

    Raises:
        ModelNameError: there is no such repository or revision.
        MissingWeightsError: the Hub cannot be reached, or gives no such answer.
    """
    from huggingface_hub import constants

    revision = quote(name.revision or "main", safe="")
    # "blobs" asks for the sizes and hashes.
    url = f"{constants.ENDPOINT}/api/models/{name.value}/revision/{revision}?blobs=true"
    with _request(name, url) as response:
        try:
            response.read()
            answer = response.json()
            commit = str(answer["sha"])
            files = [_hub_file(entry) for entry in answer["siblings"] if PLAIN.fullmatch(entry["rfilename"])]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MissingWeightsError(
                f"{name}: {constants.ENDPOINT} does not state sizes and hashes as a hub does ({error!r}); "
                f"check HF_ENDPOINT, or carry the files over: geoclip pull {name} --from FOLDER"
            ) from error
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or (re.fullmatch(r"[0-9a-f]{40}", revision) and commit != revision):
        raise MissingWeightsError(f"{name}: {constants.ENDPOINT} answers for another commit, {commit!r}")
    return commit, {file.name: file for file in files}


def _hub_file(entry: Mapping[str, Any]) -> HubFile:
    large = entry.get("lfs")
    etag = large["sha256"] if large else entry["blobId"]
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag):
        raise ValueError(f"{etag!r} is no hash")
    return HubFile(entry["rfilename"], int(large["size"] if large else entry["size"]), etag)


def _fetch_file(name: Name, commit: str, file: HubFile, snapshot: Path, progress: DownloadProgress) -> Path:
    """Download a file unless the cache holds it undamaged, and return its path in the snapshot."""
    pointer = snapshot / file.name
    if _is_complete(file, pointer):
        return pointer
    repository = hub_cache_folder(name.value)
    blob = repository / "blobs" / file.etag
    # The lock that huggingface_hub takes for this file.
    lock = FileLock(repository.parent / ".locks" / repository.name / f"{file.etag}.lock")
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        progress.message(f"{file.name}: another process is downloading it; waiting for that")
        held = lock.acquire()
    with held:
        if not _is_complete(file, blob):
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.unlink(missing_ok=True)
            download(name, commit, file, blob, progress)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # Windows without the right to make links
            shutil.copyfile(blob, pointer)
    return pointer


# --- one file -------------------------------------------------------------------------------------


def download(name: Name, commit: str, file: HubFile, target: Path, progress: DownloadProgress) -> None:
    """Download a file, continuing a partial one beside the target, and reconnect as long as each try adds something.

    Raises:
        MissingWeightsError: the disk is too small, or the hub cannot be reached any more.
        WeightsError: the file arrived damaged; it is removed.
    """
    from huggingface_hub import constants

    url = f"{constants.ENDPOINT}/{name.value}/resolve/{commit}/{quote(file.name)}"
    partial = target.with_name(f"{target.name}.partial")
    partial.touch()
    have, free = partial.stat().st_size, shutil.disk_usage(target.parent).free
    if file.size - have > free:
        raise MissingWeightsError(
            f"{name}: {file.name} takes {_mb(file.size)} and {target.parent} has {_mb(free)} free; "
            "make room, or set HF_HOME to a larger disk"
        )
    if have:
        progress.message(f"{file.name}: going on at {_mb(have)} of {_mb(file.size)}")
    while have < file.size:
        broken: MissingWeightsError | None = None
        try:
            _stream(name, url, partial, file, progress)
        except MissingWeightsError as error:
            broken = error
        before, have = have, partial.stat().st_size
        if have <= before:
            raise broken or MissingWeightsError(f"{name}: the hub sends nothing of {file.name}; {AGAIN}")
    if (found := _hash_like(file.etag, partial)) != file.etag:
        partial.unlink()
        raise WeightsError(
            f"{name}: {file.name} arrived damaged (hash {found}, expected {file.etag}) and was removed; {AGAIN}"
        )
    partial.replace(target)


def _stream(name: Name, url: str, partial: Path, file: HubFile, progress: DownloadProgress) -> None:
    """Append to a partial file what the hub sends, until it stops."""
    start = partial.stat().st_size
    with _request(name, url, {"range": f"bytes={start}-"} if start else {}) as response:
        if start and response.status_code != 206:
            start = 0  # a server that knows no ranges begins again, and so do we
        # Unbuffered: a process that is killed leaves all that had arrived.
        with partial.open("ab" if start else "wb", buffering=0) as goal:
            for chunk in response.iter_bytes():
                goal.write(chunk)
                start += len(chunk)
                if start > file.size:
                    return  # more than was stated: the hash will tell
                progress.update(file.name, start, file.size)


@contextlib.contextmanager
def hub_errors(name: Name, otherwise: str = "") -> Iterator[None]:
    """Turn each way in which the hub cannot be reached into one of our errors.

    Args:
        name: what is transferred.
        otherwise: another way than the network, for the message.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # httpx in huggingface_hub 1, httpx2 in 2: its errors share a root, from which this one comes as well.
    roots = (kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception))
    http_error = next(kind for kind in roots if kind.__name__ == "HTTPError")
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise MissingWeightsError(f"{name}: HF_HUB_OFFLINE is set, so the network is not used; unset it") from error
    except (http_error, ConnectionError) as error:  # the latter from uploads by hf_xet
        reason = str(error) or type(error).__name__
        raise MissingWeightsError(
            f"{name}: {constants.ENDPOINT} cannot be reached or broke off ({reason}). What has arrived is kept; "
            f"{AGAIN}{otherwise}"
        ) from error


@contextlib.contextmanager
def _request(name: Name, url: str, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Ask the hub."""
    from huggingface_hub import constants, get_session, get_token

    sent = {"user-agent": f"open-geoclip/{__version__}", "accept-encoding": "identity", **(headers or {})}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    by_hand = ", or carry the files over with --from FOLDER"
    with hub_errors(name, by_hand), get_session().stream("GET", url, headers=sent, timeout=timeout) as response:
        _check_status(name, url, response)
        yield response


def _check_status(name: Name, url: str, response: Any) -> None:
    status, said = response.status_code, response.headers.get("x-error-code", "")
    if status < 400:
        return
    host = url.partition("/api/")[0]
    if status == 404 and said == "RevisionNotFound":
        raise ModelNameError(f"{name}: {name.value} has no revision {name.revision!r} on {host}")
    if status == 404 and "/api/" in url:
        raise ModelNameError(f"{name}: there is no such repository on {host}")
    if status in (401, 403):
        # The Hub says 401 for what does not exist, too, so that private names stay private.
        raise ModelNameError(
            f"{name}: does not exist, or may not be read without logging in (hf auth login) and agreeing to "
            "its terms on its page"
        )
    raise MissingWeightsError(f"{name}: {url} answers with status {status}; {AGAIN} later")


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _is_complete(file: HubFile, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == file.size and _hash_like(file.etag, path) == file.etag


def _hash_like(etag: str, path: Path) -> str:
    """Return the hash of a file of the kind that the Hub states: sha256, or that of git."""
    if len(etag) == 64:
        return sha256(path)
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes(), usedforsecurity=False).hexdigest()
