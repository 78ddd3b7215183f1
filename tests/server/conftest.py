"""A small model behind the whole application."""

import asyncio
import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from open_geoclip.search.locator import Locator
from open_geoclip.server.app import create_app
from open_geoclip.server.engine import Engine
from open_geoclip.server.jobs import Message, decode_jobs
from open_geoclip.server.processes import WorkerDiedError
from open_geoclip.server.settings import ServerSettings


@pytest.fixture(scope="session")
def run_async() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Return a function that runs a coroutine in another thread: a browser's tests leave a running loop in this one."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, coroutine).result()

    return run


class Gate:
    """A model worker that answers when it is opened, and notes the names of the images that it was given."""

    ready = True
    info: ClassVar[dict[str, Any]] = {"image_options": {"resize": 1}, "dimensions": 2, "countries": []}

    def __init__(self, *, dies: bool = False, is_open: bool = False) -> None:
        self.begun, self.open = threading.Event(), threading.Event()
        self.seen: list[list[str]] = []
        self.dies = dies
        if is_open:
            self.open.set()

    async def start(self, on_restart: Callable[[], None]) -> None: ...

    async def stop(self) -> None: ...

    async def run(self, message: Message, timeout_s: float) -> Message:
        jobs = decode_jobs(message)
        names = [image.data.decode() for job in jobs for image in job.images]
        self.seen.append(names)
        self.begun.set()
        while not self.open.is_set():
            await asyncio.sleep(0.001)
        if self.dies and "bad" in names:
            raise WorkerDiedError("gone")
        answers = [[{"model": "m"} for _ in range(job.size)] for job in jobs]
        return [{"answers": each, "status": 200, "code": "", "message": ""} for each in answers], []


class NamesAsPixels:
    """A utility worker that takes any file for an image, whose only pixel is its name."""

    ready = True
    info: ClassVar[dict[str, Any]] = {}

    async def start(self, on_restart: Callable[[], None]) -> None: ...

    async def stop(self) -> None: ...

    async def run(self, message: Message, timeout_s: float) -> Message:
        name = message[0]["name"]
        return {"pixels": (1, 1), "error": None, "sha256": "", "exif": None, "thumbnail": None}, [name.encode()]


class Server:
    """`geoclip serve` in a process, with a client that sends its token."""

    token = "0123456789abcdef"

    def __init__(self, *arguments: str, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "open_geoclip.cli", "serve", "--port", str(self.port), *arguments]
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stderr=file,
                env=os.environ | {"OPEN_GEOCLIP_SERVE_TOKENS": Server.token, "OMP_NUM_THREADS": "1"},
            )
        headers = {"Authorization": f"Bearer {Server.token}"}
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=60)

    def stop(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def is_ready(self) -> bool:
        return self.client.get("/readyz").status_code == 200

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for something; returns how long it took."""
        start = time.monotonic()
        while True:
            with suppress(httpx2.TransportError):
                if condition():
                    return time.monotonic() - start
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() - start < seconds, f"{what}: {self.log.read_text()[-2000:]}"
            time.sleep(0.02)

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def restarts(self, model: str = "") -> int:
        text = self.client.get("/metrics").text
        found = re.findall(r'^geoclip_worker_restarts_total{model="(.*)"} ([\d.]+)$', text, flags=re.MULTILINE)
        return sum(int(float(count)) for name, count in found if model in name)

    def refused(self, code: str) -> int:
        text = self.client.get("/metrics").text
        found = re.findall(rf'^geoclip_refused_total{{code="{code}"}} ([\d.]+)$', text, flags=re.MULTILINE)
        return int(sum(map(float, found)))

    def locate(self, *files: tuple[str, bytes], **fields: Any) -> httpx2.Response:
        return self.client.post("/v1/locate", files=[("images", file) for file in files], data=fields)


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server with arguments of ``geoclip serve`` and waits until it is ready."""
    servers = []

    def start(*arguments: str) -> Server:
        servers.append(Server(*arguments, log=tmp_path_factory.mktemp("serve") / "log"))
        servers[-1].wait_until(servers[-1].is_ready, 120, "start")
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def gate() -> type[Gate]:
    """Return the class of a model worker that answers when it is opened."""
    return Gate


@pytest.fixture
def gated_app() -> Callable[..., FastAPI]:
    """Return a function that makes an application around a gate."""

    def make(held: Gate, **settings: Any) -> FastAPI:
        return create_app(ServerSettings(**settings), {"m": [held]}, utilities=[NamesAsPixels()])

    return make


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    """Return a function that makes an image whose colours are its own."""

    def make(seed: int, side: int = 64) -> bytes:
        colours = np.random.default_rng(seed).integers(0, 255, (4, 4, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def release(save_text_release: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small model with random weights."""
    folder = tmp_path_factory.mktemp("server") / "small"
    save_text_release(folder)
    return folder


@pytest.fixture(scope="session")
def locator(release: Path) -> Locator:
    """Return it, loaded."""
    locator = Locator.from_pretrained(f"dir:{release}", engine="torch", cache=release.parent)
    Engine(locator).warm_up()
    return locator


@pytest.fixture
def serving(locator: Locator) -> Iterator[Callable[..., TestClient]]:
    """Return a function that serves models (the small one when none are given), or a gate, with some settings."""
    clients = []

    def serve(models: Any = None, utilities: Any = (), **settings: Any) -> TestClient:
        if isinstance(models, Gate):
            models, utilities = {"m": [models]}, [NamesAsPixels()]
        app = create_app(ServerSettings(**settings), models or {"small": locator}, utilities=utilities)
        client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield serve
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def fuzzing() -> Iterator[ModuleType]:
    """Import the module that makes broken requests; `make fuzz-serve` sends thousands of them."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzzing.py"
    spec = importlib.util.spec_from_file_location("serve_fuzzing", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
