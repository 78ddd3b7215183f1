"""Pulling weights, end to end against a hub on loopback, and finding them afterwards without a network."""

import base64
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import save as safetensors_bytes

from open_geoclip.errors import MissingWeightsError, ModelNameError, SettingsError, WeightsError
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.weights.folders import folder, status
from open_geoclip.weights.hub import DownloadProgress
from open_geoclip.weights.load import load_release
from open_geoclip.weights.pull import pull
from open_geoclip.weights.push import push
from open_geoclip.weights.registry import CLIP_BACKBONE, GALLERY_FILE, LOCATION_FILE, RECORDS
from open_geoclip.weights.save import save_model

SHA = "0123456789abcdef0123456789abcdef01234567"
NAME = f"hub:org/clip@{SHA}"
WEIGHTS_SIZE = 3_000_000

Files = dict[str, bytes]


def small_clip(seed: int = 0) -> Files:
    """What is on the Hub beside a CLIP: weights in four formats, of which one is wanted."""
    weights = np.frombuffer(np.random.default_rng(seed).bytes(WEIGHTS_SIZE), np.uint8)
    return {
        "README.md": b"# CLIP\n",
        "config.json": json.dumps({"model_type": "clip", "vision_config": {}, "text_config": {}}).encode(),
        "flax_model.msgpack": b"flax",
        "merges.txt": b"#version\n",
        "model.safetensors": safetensors_bytes({"vision_model.embeddings.class_embedding": weights}),
        "onnx/model.onnx": b"onnx",
        "preprocessor_config.json": b'{"crop_size": 8}',
        "pytorch_model.bin": b"pickle",
        "special_tokens_map.json": b'{"unk_token": ""}',
        "tf_model.h5": b"tf",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b'{"model_max_length": 77}',
        "vocab.json": b'{"a": 0}',
    }


WANTED = {
    *("config.json", "merges.txt", "model.safetensors", "preprocessor_config.json", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json"),
}
# Weights come last: where they are, all is.
ORDER = ["config.json", *sorted(WANTED - {"config.json", "model.safetensors"}), "model.safetensors"]


# --- a hub ----------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """As much of the Hugging Face Hub as a download needs, and its ways to fail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, Files] = {"org/clip": small_clip()}
        self.commit = SHA
        self.log: list[tuple[str, str | None, int]] = []  # path, Range, bytes sent
        self.headers: list[dict[str, str]] = []
        self.cuts: list[int] = []  # each answer with weights breaks off after so many bytes
        self.hold: threading.Event | None = None  # waited for where an answer is to break off
        self.broken: Files = {}  # what is sent instead of what was stated
        self.ranges = True
        self.garbage = False
        self.created: dict[str, bool] = {}  # whether each new repository is private
        self.uploads: Files = {}  # by sha256

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def weights(self) -> list[tuple[str | None, int]]:
        """Range and bytes sent, for each time that weights were asked for."""
        return [(asked, sent) for path, asked, sent in self.log if path.endswith("model.safetensors")]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: a client that goes away is part of the tests."""


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.headers.append({key.lower(): value for key, value in self.headers.items()})
        path = self.path.partition("?")[0]
        parts = path.strip("/").split("/")
        if self.server.garbage:
            self._send(200, b"<html>Log in to the hotel</html>")
        elif parts[:2] == ["api", "models"] and len(parts) > 5:
            self.server.log.append((path, None, 0))
            self._list("/".join(parts[2:4]), parts[4], parts[5])
        elif parts[2:3] == ["resolve"]:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), path)
        else:
            self._send(404, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        repository = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if not self.headers["Authorization"]:
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            is_private = asked.get("private") or asked.get("visibility") == "private"  # before and since version 2
            self.server.created[name] = bool(is_private)
            self.server.repositories.setdefault(name, {})
            return self._json({"url": f"{self.server.url}/{name}", "name": name})
        if path.endswith("/preupload/main"):
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": modes})
        if path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = [{**o, "actions": {"upload": {"href": f"{self.server.url}/put/{o['oid']}"}}} for o in objects]
            return self._json({"transfer": "basic", "objects": upload})
        if path.endswith("/commit/main"):
            files = self.server.repositories["/".join(path.split("/")[3:5])]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.uploads[value["oid"]]
            url = f"{self.server.url}/{repository}/commit/{self.server.commit}"
            return self._json({"success": True, "commitOid": self.server.commit, "commitUrl": url})
        return self._json({})  # the check of the README's header

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.uploads[self.path.removeprefix("/put/")] = content
        self._json({})

    def _json(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _list(self, repository: str, what: str, revision: str) -> None:
        if repository not in self.server.repositories:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in (self.server.commit, "main"):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings, tree = [], []
        for name, content in self.server.repositories[repository].items():
            size, git, sha256 = len(content), git_hash(content), hashlib.sha256(content).hexdigest()
            lfs: dict[str, Any] | None = {"size": size, "pointerSize": 135} if is_large(name) else None
            siblings.append({"rfilename": name, "size": size, "blobId": git, "lfs": lfs and {**lfs, "sha256": sha256}})
            tree.append({"type": "file", "path": name, "size": size, "oid": git, "lfs": lfs and {**lfs, "oid": sha256}})
        answer = tree if what == "tree" else {"id": repository, "sha": self.server.commit, "siblings": siblings}
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, revision: str, name: str, path: str) -> None:
        files = self.server.repositories.get(repository, {})
        if revision != self.server.commit or name not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = self.server.broken.get(name, files[name])
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        body = content[start:]
        cut = self.server.cuts.pop(0) if self.server.cuts and name == "model.safetensors" else len(body)
        if self.command == "GET":
            # Logged before it is sent: whoever has the bytes finds them in the log.
            self.server.log.append((path, asked, min(cut, len(body))))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        etag = hashlib.sha256(content).hexdigest() if is_large(name) else git_hash(content)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", self.server.commit)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            if cut < len(body):
                if self.server.hold is not None:
                    self.server.hold.wait(30)
                self.close_connection = True
        return None

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: Any, **kwargs: Any) -> None:
        """Keep quiet."""


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, with caches of their own, for this process and those it starts."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for key in list(os.environ):
            if key.startswith(("HF_", "HUGGINGFACE", "PIP_")) or "proxy" in key.lower():
                monkeypatch.delenv(key)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("OPEN_GEOCLIP_CACHE", str(tmp_path / "ours"))
        # huggingface_hub read its environment when it was imported.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
        yield server
        if server.hold is not None:
            server.hold.set()
        server.shutdown()
        thread.join()


# --- helpers --------------------------------------------------------------------------------------


class Heard(DownloadProgress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.last: dict[str, tuple[int, int]] = {}

    def message(self, text: str) -> None:
        self.said.append(text)

    def update(self, file: str, done: int, total: int) -> None:
        self.last[file] = (done, total)


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Let nothing make a socket."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a socket was made")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        yield


COMMAND = """
import sys
from pathlib import Path
from open_geoclip.cli.pull import pull
from open_geoclip.errors import OpenGeoCLIPError
try:
    pull(sys.argv[1], from_=Path(sys.argv[2]) if sys.argv[2:] else None)
except OpenGeoCLIPError as error:
    sys.exit(str(error))
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", COMMAND, *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=120)


def partial_file(tmp_path: Path) -> Path | None:
    return next((tmp_path / "hf" / "hub" / "models--org--clip" / "blobs").glob("*.partial"), None)


def write_files(target: Path, files: Files) -> Path:
    for name, content in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return target


# --- a download -----------------------------------------------------------------------------------


def test_the_command_brings_what_is_wanted_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    done = run(NAME)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stderr.splitlines()] == ORDER, "a bar a file"
    snapshot = tmp_path / "hf" / "hub" / "models--org--clip" / "snapshots" / SHA
    assert done.stdout == f"{snapshot}\n"
    assert {file.name for file in snapshot.iterdir()} == WANTED
    for file in WANTED:
        assert (snapshot / file).read_bytes() == hub.repositories["org/clip"][file]
    assert [path for path, _, _ in hub.log] == [
        f"/api/models/org/clip/revision/{SHA}",
        *(f"/org/clip/resolve/{SHA}/{file}" for file in ORDER),
    ], "each file once, and no other address"
    with no_network():
        assert folder(NAME) == snapshot


def test_nothing_is_told_about_this_machine(hub: Hub) -> None:
    pull(NAME)
    assert len(hub.headers) == len(WANTED) + 1
    for headers in hub.headers:
        assert headers["user-agent"].startswith("open-geoclip/")
        assert " " not in headers["user-agent"], "no versions of other packages, no system, no agent"
        assert set(headers) <= {"host", "accept", "accept-encoding", "connection", "user-agent", "x-amzn-trace-id"}


def test_the_tools_of_hugging_face_find_it_as_well(hub: Hub, tmp_path: Path) -> None:
    pull(NAME)
    cache = tmp_path / "hf" / "hub"
    found = huggingface_hub.snapshot_download("org/clip", revision=SHA, local_files_only=True, cache_dir=cache)
    assert Path(found) == folder(NAME)
    [repository] = huggingface_hub.scan_cache_dir(cache).repos
    assert {file.file_name for revision in repository.revisions for file in revision.files} == WANTED


def test_pulling_again_asks_for_no_file(hub: Hub) -> None:
    heard = Heard()
    first = pull(NAME, progress=heard)
    size = len(hub.repositories["org/clip"]["model.safetensors"])
    assert heard.last["model.safetensors"] == (size, size)
    hub.log.clear()
    assert pull(NAME) == first
    assert [path for path, _, _ in hub.log] == [f"/api/models/org/clip/revision/{SHA}"]


def test_a_line_that_breaks_now_and_then_is_taken_up_at_once(hub: Hub) -> None:
    hub.cuts = [1_000_000, 500_000, 1]
    [path] = pull(NAME)
    whole = hub.repositories["org/clip"]["model.safetensors"]
    assert (path / "model.safetensors").read_bytes() == whole
    asked = [asked for asked, _ in hub.weights()]
    assert asked == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500001-"]
    assert sum(sent for _, sent in hub.weights()) == len(whole), "no byte was sent twice"


def test_a_pull_that_was_cut_off_goes_on_in_a_second_run(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [1_000_000, 0]
    broken = run(NAME)
    assert broken.returncode == 1
    assert broken.stdout == ""
    assert "broke off" in broken.stderr
    assert "run the same command again" in broken.stderr
    assert "Traceback" not in broken.stderr
    kept = partial_file(tmp_path)
    assert kept is not None
    assert kept.stat().st_size == 1_000_000
    with pytest.raises(MissingWeightsError, match=f"run: geoclip pull {NAME}$"):
        folder(NAME)
    before = len(hub.weights())
    done = run(NAME)
    assert done.returncode == 0
    assert "going on at 1.0 MB of 3.0 MB" in done.stderr
    whole = hub.repositories["org/clip"]["model.safetensors"]
    assert hub.weights()[before:] == [("bytes=1000000-", len(whole) - 1_000_000)]
    assert (folder(NAME) / "model.safetensors").read_bytes() == whole
    assert partial_file(tmp_path) is None


def test_a_pull_that_was_killed_goes_on_in_a_second_run(hub: Hub, tmp_path: Path) -> None:
    hub.cuts, hub.hold = [1_000_000], threading.Event()
    with subprocess.Popen(command(NAME), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not hub.weights() or not (kept := partial_file(tmp_path)) or kept.stat().st_size < 1_000_000:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"ended by itself with status {process.wait(timeout=0.02)}")
        process.kill()
    hub.hold.set()
    [path] = pull(NAME)
    whole = hub.repositories["org/clip"]["model.safetensors"]
    assert hub.weights()[-1] == ("bytes=1000000-", len(whole) - 1_000_000)
    assert (path / "model.safetensors").read_bytes() == whole


def test_a_server_without_ranges_begins_again(hub: Hub) -> None:
    hub.cuts, hub.ranges = [1_000_000], False
    [path] = pull(NAME)
    assert (path / "model.safetensors").read_bytes() == hub.repositories["org/clip"]["model.safetensors"]
    assert [asked for asked, _ in hub.weights()] == [None, "bytes=1000000-"]


def test_two_at_once_download_once(hub: Hub) -> None:
    hub.cuts, hub.hold = [1_000_000], (held := threading.Event())

    class Waits(Heard):
        def message(self, text: str) -> None:
            super().message(text)
            held.set()

    paths: list[Path] = []
    heard = Waits()
    first = threading.Thread(target=lambda: paths.extend(pull(NAME)))
    second = threading.Thread(target=lambda: paths.extend(pull(NAME, progress=heard)))
    first.start()
    while not hub.weights():
        first.join(0.01)
    second.start()
    first.join()
    second.join()
    assert paths == [folder(NAME)] * 2
    assert heard.said == ["model.safetensors: another process is downloading it; waiting for that"]
    assert sum(sent for _, sent in hub.weights()) == len(hub.repositories["org/clip"]["model.safetensors"])


def test_a_file_that_arrives_damaged_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    whole = hub.repositories["org/clip"]["model.safetensors"]
    faults = {
        "vocab.json": b'{"b": 0}',  # a small file, which carries git's hash
        "model.safetensors": whole[:-1] + bytes([whole[-1] ^ 1]),
    }
    for file, content in faults.items():
        hub.broken = {file: content}
        with pytest.raises(WeightsError, match=rf"{file} arrived damaged .* run the same command again"):
            pull(NAME)
        assert partial_file(tmp_path) is None
        with pytest.raises(MissingWeightsError):
            folder(NAME)
    hub.broken = {"model.safetensors": whole + b"more than was stated"}
    with pytest.raises(WeightsError, match=r"model\.safetensors arrived damaged"):
        pull(NAME)
    hub.broken = {}
    [path] = pull(NAME)
    assert (path / "model.safetensors").read_bytes() == whole


def test_a_file_that_is_shorter_than_was_stated(hub: Hub) -> None:
    hub.broken = {"model.safetensors": b"short"}
    with pytest.raises(MissingWeightsError, match=r"sends nothing of model\.safetensors; run the same command"):
        pull(NAME)


def test_what_was_damaged_on_disk_is_mended(hub: Hub) -> None:
    [path] = pull(NAME)
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"\0" * len(whole))
    pull(NAME)
    assert weights.read_bytes() == whole


def test_weights_in_parts(hub: Hub) -> None:
    files = hub.repositories["org/clip"]
    part = files.pop("model.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files["model-00001-of-00002.safetensors"] = part
    files["model-00002-of-00002.safetensors"] = part[:1000]
    files["model-00003-of-00002.safetensors"] = part
    [path] = pull(NAME)
    assert {file.name for file in path.glob("*.safetensors")} == set(index["weight_map"].values())
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match="run: geoclip pull hub:org/clip@"):
        folder(NAME)


def test_a_branch_is_found_again_and_its_commit_is_told(hub: Hub) -> None:
    heard = Heard()
    [path] = pull("hub:org/clip", progress=heard)
    assert path.name == SHA
    assert heard.said == [f"hub:org/clip is commit {SHA} today; hold to it with {NAME}"]
    with no_network():
        assert folder("hub:org/clip") == folder("hub:org/clip@main") == folder(NAME) == path


def test_a_release_brings_its_backbone(hub: Hub) -> None:
    config = {
        "model_type": "geoclip-geolocation",
        "format_version": 1,
        "gallery_file": "places.csv",
        "backbone": {"repo_id": "org/clip", "revision": SHA},
    }
    hub.repositories["org/release"] = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": hub.repositories["org/clip"]["model.safetensors"],
        "places.csv": b"LAT,LON\n",
        "other.csv": b"",
    }
    release, backbone = pull(f"hub:org/release@{SHA}")
    assert {file.name for file in release.iterdir()} == {"config.json", "model.safetensors", "places.csv"}
    assert backbone == folder(NAME)


# --- what can be wrong with a hub -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hub:org/clip@v9", "org/clip has no revision 'v9' on http://127"),
        (f"hub:org/clip@{'f' * 40}", "has no revision 'ffff"),
        ("hub:org/nothing", "hub:org/nothing: there is no such repository on http://127"),
    ],
)
def test_what_is_not_on_the_hub(hub: Hub, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNameError, match=said):
        pull(name)
    assert not (tmp_path / "hf").exists()


def test_nobody_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        done = run(NAME)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_offline_what_is_held_to_a_commit_stays_usable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first, branch = pull(NAME), pull("hub:org/clip")
    assert first == branch
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    heard = Heard()
    assert pull(NAME, progress=heard) == first
    assert "HF_HUB_OFFLINE is set" in heard.said[0]
    assert "the weights are here" in heard.said[0]
    with pytest.raises(MissingWeightsError, match="HF_HUB_OFFLINE is set"):
        pull("hub:org/clip")


def test_a_page_that_is_no_hub(hub: Hub) -> None:
    hub.garbage = True
    with pytest.raises(MissingWeightsError, match="check HF_ENDPOINT"):
        pull(NAME)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.safetensors": None}, "no weights as safetensors. Other formats can hold programs"),
        ({"config.json": None}, r"has no config\.json"),
        ({"config.json": b"{"}, "is not JSON"),
        ({"config.json": b'{"gallery": "../../x.csv"}'}, r"is not the name of a \.csv"),
        ({"config.json": b'{"gallery": "x.csv"}'}, r"has no x\.csv"),
        ({"model.safetensors": None, INDEX: b'{"weight_map": {"a": "../x.safetensors"}}'}, "is not the name"),
        ({"model.safetensors": None, INDEX: b"{}"}, "is no index of weights"),
    ],
)
def test_a_repository_that_cannot_be_used(hub: Hub, change: dict[str, bytes | None], said: str) -> None:
    files = hub.repositories["org/clip"]
    for name, content in change.items():
        if content is None:
            del files[name]
        else:
            files[name] = content
    with pytest.raises(WeightsError, match=said):
        pull(NAME)


def test_a_mirror_that_offers_another_file_than_the_one_on_record(hub: Hub) -> None:
    repository, _, hub.commit = CLIP_BACKBONE.removeprefix("hub:").partition("@")
    hub.repositories[repository] = small_clip()
    with pytest.raises(WeightsError, match=r"offers another model\.safetensors than the one on record"):
        pull(CLIP_BACKBONE)
    assert hub.weights() == []


# --- the released wheel ---------------------------------------------------------------------------


def wheel_of(released: Path, target: Path, **instead: bytes) -> Path:
    """A wheel as the package index has it, with the files of the installed distribution."""
    target.mkdir(exist_ok=True)
    wheel = target / "geoclip-1.3.0-py3-none-any.whl"
    information = "geoclip-1.3.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in RECORDS["geoclip"].sha256:
            inner = f"model/{'gps_gallery' if file == GALLERY_FILE else 'weights'}/{file}"
            content = instead.get(file.partition(".")[0]) or (released / inner).read_bytes()
            archive.writestr(f"geoclip/{inner}", content)
        archive.writestr("geoclip/__init__.py", "raise SystemExit('never run')")
        archive.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: geoclip\nVersion: 1.3.0\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    return wheel


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the installed distribution behind one of the same name that has no files."""
    information = tmp_path / "site" / "geoclip-0.1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: geoclip\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.usefixtures("not_installed")
def test_the_wheel_is_got_by_pip_and_only_weights_and_gallery_are_kept(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, released: Path
) -> None:
    wheel_of(released, tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    with pytest.raises(MissingWeightsError, match="run: geoclip pull geoclip"):
        load_release("geoclip")
    heard = Heard()
    # The hub on loopback has no CLIP ViT-L/14, so this goes as far as the heads.
    with pytest.raises(ModelNameError, match=r"openai/clip-vit-large-patch14@.*: there is no such"):
        pull("geoclip", progress=heard)
    assert "getting geoclip==1.3.0" in heard.said[0]
    ours = tmp_path / "ours" / "geoclip-1.3.0"
    assert {file.name for file in ours.iterdir()} == set(RECORDS["geoclip"].sha256)
    assert [path.name for path in ours.parent.iterdir()] == ["geoclip-1.3.0"], "no wheel is left behind"
    with no_network():
        assert load_release("geoclip").gallery == ours / GALLERY_FILE
    assert status("geoclip").folder == ours
    assert status("geoclip").bytes_here == RECORDS["geoclip"].bytes
    assert status("geoclip").bytes_to_get == RECORDS[CLIP_BACKBONE].bytes
    # What was damaged since is got again.
    (ours / LOCATION_FILE).write_bytes(b"damaged")
    with pytest.raises(ModelNameError):
        pull("geoclip")
    assert load_release("geoclip").version == "1.3.0"


@pytest.mark.usefixtures("not_installed")
def test_a_package_index_that_has_no_wheel(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(MissingWeightsError, match=r"pip could not get geoclip==1\.3\.0 .*--from FOLDER"):
        pull("geoclip")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "No matching distribution" in captured.err
    assert list((tmp_path / "ours").iterdir()) == []


@pytest.mark.usefixtures("not_installed")
@pytest.mark.parametrize("how", ["weights", "missing", "cut"])
def test_a_wheel_that_is_not_the_one_on_record(hub: Hub, tmp_path: Path, released: Path, how: str) -> None:
    stem = LOCATION_FILE.partition(".")[0]
    wheel = wheel_of(released, tmp_path / "usb", **({stem: b"pickle"} if how == "weights" else {}))
    if how == "cut":
        wheel.write_bytes(wheel.read_bytes()[:-100])
    if how == "missing":
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("geoclip/__init__.py", "")
    with pytest.raises(WeightsError, match=rf"{stem}\.pth: is another file|damaged or not the wheel"):
        pull("geoclip", source=tmp_path / "usb")
    assert not (tmp_path / "ours" / "geoclip-1.3.0").exists()


# --- carried over from another machine ------------------------------------------------------------


@pytest.mark.parametrize("inner", ["", "clip", f"hub/models--org--clip/snapshots/{SHA}"])
def test_a_clip_that_was_carried_over(hub: Hub, tmp_path: Path, inner: str) -> None:
    write_files(tmp_path / "usb" / inner, small_clip())
    heard = Heard()
    with no_network():
        [path] = pull(NAME, source=tmp_path / "usb", progress=heard)
        assert path == tmp_path / "ours" / "hub" / "org--clip" / SHA
        assert folder(NAME) == path
        assert pull(NAME) == [path], "what was carried over needs no network"
    assert {file.name for file in path.iterdir()} == WANTED
    assert (path / "model.safetensors").read_bytes() == small_clip()["model.safetensors"]
    assert "no hash is on record; checked that it is a CLIP whose weights can be read" in heard.said[0]
    with pytest.raises(MissingWeightsError):
        folder("hub:org/clip")


def test_of_several_the_one_whose_path_tells_is_taken(hub: Hub, tmp_path: Path) -> None:
    write_files(tmp_path / "usb" / "one", small_clip(1))
    write_files(tmp_path / "usb" / "two", small_clip(2))
    with pytest.raises(WeightsError, match=r"several folders could be hub:org/clip@.*usb/one.*usb/two"):
        pull(NAME, source=tmp_path / "usb")
    write_files(tmp_path / "usb" / "org--clip", small_clip(3))
    [path] = pull(NAME, source=tmp_path / "usb")
    assert (path / "model.safetensors").read_bytes() == small_clip(3)["model.safetensors"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config.json": b'{"model_type": "bert"}'}, "neither a CLIP nor a GeoCLIP"),
        ({"model.safetensors": small_clip()["model.safetensors"][:-1]}, r"model\.safetensors: is damaged"),
        ({"model.safetensors": b""}, r"model\.safetensors: is damaged"),
        ({"model.safetensors": safetensors_bytes({"text_model.x": np.zeros(1)})}, "without its vision half"),
    ],
)
def test_a_carried_folder_that_is_no_clip(hub: Hub, tmp_path: Path, change: Files, said: str) -> None:
    write_files(tmp_path / "usb", small_clip() | change)
    with pytest.raises(WeightsError, match=said):
        pull(NAME, source=tmp_path / "usb")
    assert not (tmp_path / "ours").exists()


@pytest.mark.usefixtures("not_installed")
def test_both_parts_of_geoclip_are_carried_and_what_is_missing_is_told(
    hub: Hub, tmp_path: Path, released: Path
) -> None:
    (tmp_path / "usb").mkdir()
    with pytest.raises(MissingWeightsError, match=f"did not find geoclip nor {CLIP_BACKBONE}"):
        pull("geoclip", source=tmp_path / "usb")
    wheel_of(released, tmp_path / "usb")
    with pytest.raises(MissingWeightsError, match=f"did not find {CLIP_BACKBONE}.*What was found is in place"):
        pull("geoclip", source=tmp_path / "usb")
    with no_network():
        assert load_release("geoclip").version == "1.3.0"
    write_files(tmp_path / "usb" / "clip-vit-large-patch14", small_clip())
    with pytest.raises(WeightsError, match=rf"model\.safetensors: is another file .* not that of {CLIP_BACKBONE}"):
        pull("geoclip", source=tmp_path / "usb")
    assert hub.log == []


def test_a_source_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="there is no such folder"):
        pull(NAME, source=tmp_path / "none")


# --- finding --------------------------------------------------------------------------------------


def test_finding_makes_no_socket_and_says_what_to_run(hub: Hub, tmp_path: Path) -> None:
    with no_network():
        for name in (NAME, "hub:org/clip", "hub:org/clip@v1"):
            with pytest.raises(MissingWeightsError) as caught:
                folder(name)
            assert str(caught.value).endswith(f"run: geoclip pull {name}")
            with pytest.raises(MissingWeightsError, match="run: geoclip pull"):
                load_release(name)
        assert status(CLIP_BACKBONE).command == f"geoclip pull {CLIP_BACKBONE}"
    assert hub.log == []
    assert not (tmp_path / "hf").exists(), "looking leaves nothing behind"
    assert not (tmp_path / "ours").exists()


def test_what_another_tool_downloaded_is_found(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    code = (
        "import sys, huggingface_hub as hub; "
        "print(hub.snapshot_download(sys.argv[1], revision=sys.argv[2], allow_patterns=sys.argv[3:]))"
    )
    arguments = ["org/clip", SHA, "config.json", "*.safetensors"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    with no_network():
        assert folder(NAME) == path
    hub.log.clear()
    pull(NAME)  # brings the rest
    assert hub.weights() == []
    assert {file.name for file in path.iterdir()} == WANTED


def test_nothing_to_pull(hub: Hub) -> None:
    with pytest.raises(ModelNameError, match="is a folder on this machine already"):
        pull("dir:/x")
    with pytest.raises(ModelNameError, match="Did you mean 'geoclip'"):
        pull("geoclp")
    assert hub.log == []


# --- an upload ------------------------------------------------------------------------------------


def trained_model(folder: Path, backbone: str) -> str:
    """Write a model with gallery and curves, as `geoclip train` does; return its name."""
    location = LocationSettings(sigmas=(4.0,), features=2, width=3, depth=1, output=2)
    model = GeoCLIP(ImageEncoder(None, None, ImageSettings(backbone, (3, 2))), LocationEncoder(location))
    gallery, curves = folder / "places.csv", folder / "curves.png"
    gallery.write_text("lat,lon\n48.86,2.35\n")
    curves.write_bytes(b"png")
    card = {"title": "Holiday", "trained_on": "200 photos", "kept_epoch": {"epoch": 3, "median_km": 81.25}}
    return f"dir:{save_model(folder / 'model', model, card=card, gallery=gallery, curves=curves)}"


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log in, and upload over plain HTTP: the hub here has no Xet storage."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


@pytest.mark.usefixtures("token")
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own
def test_what_is_pushed_is_pulled_on_another_machine(hub: Hub, tmp_path: Path) -> None:
    name, heard = trained_model(tmp_path, f"dir:{tmp_path / 'clip'}"), Heard()
    with pytest.raises(SettingsError, match=r"a folder that nobody else has.*--backbone hub:org/repo"):
        push(name, "hub:me/holiday")
    assert "me/holiday" not in hub.created, "nothing is made before all is checked"
    assert push(name, "hub:me/holiday", backbone=NAME, progress=heard) == f"hub:me/holiday@{SHA}"
    assert hub.created == {"me/holiday": True}, "private unless asked for"
    assert "gallery.csv lists the places" in heard.said[0]
    pushed = hub.repositories["me/holiday"]
    assert set(pushed) == {"config.json", "model.safetensors", "gallery.csv", "README.md", "training.png"}
    assert str(tmp_path) not in pushed["config.json"].decode() + pushed["README.md"].decode()
    pulled = f"hub:me/holiday@{SHA}"
    assert len(pull(pulled)) == 2, "with its backbone"
    mine, theirs = load_release(name), load_release(pulled)
    assert mine.fingerprint == theirs.fingerprint
    assert theirs.image is not None
    assert theirs.image.backbone == NAME
    push(name, "hub:me/open", backbone=NAME, public=True)
    assert hub.created["me/open"] is False


def test_the_readme_says_what_a_model_is(tmp_path: Path) -> None:
    readme = (Path(trained_model(tmp_path, "earth").removeprefix("dir:")) / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name: open-geoclip\n")
    for text in ("# Holiday", "geoclip locate photo.jpg --model", "| 200 photos |", "epoch 3, median_km 81.25"):
        assert text in readme
    assert "1 places; whoever has this folder has them" in readme
    assert "![Training curves](training.png)" in readme


def test_a_push_that_cannot_be(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = trained_model(tmp_path, "earth")
    with pytest.raises(ModelNameError, match=r"may not be written .status 40.*: log in"):
        push(name, "hub:me/holiday")
    with pytest.raises(ModelNameError, match="pushed to hub:org/repo"):
        push(name, "hub:me/holiday@main")
    with pytest.raises(WeightsError, match="only a model that `geoclip train`"):
        push(f"dir:{write_files(tmp_path / 'clip', small_clip())}", "hub:me/holiday")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeightsError, match="HF_HUB_OFFLINE is set"):
        push(name, "hub:me/holiday")
