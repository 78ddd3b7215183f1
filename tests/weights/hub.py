"""A Hugging Face Hub on loopback, with its ways to fail, and what the tests of downloads and uploads share."""

import base64
import contextlib
import hashlib
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as safetensors_bytes

from open_geoclip.weights.hub import DownloadProgress
from open_geoclip.weights.registry import GALLERY_FILE, RECORDS

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
    *("README.md", "config.json", "merges.txt", "model.safetensors", "preprocessor_config.json"),
    *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
}
# Weights come last: where they are, all is.
ORDER = ["config.json", *sorted(WANTED - {"config.json", "model.safetensors"}), "model.safetensors"]


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


def write_files(target: Path, files: Files) -> Path:
    for name, content in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return target


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
