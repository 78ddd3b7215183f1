"""A small model behind the whole application."""

import asyncio
import importlib.util
import io
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

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


class Gate:
    """A model worker that answers when it is opened, and notes the names of the images that it was given."""

    ready = True
    info: ClassVar[dict[str, Any]] = {"image_options": {}, "dimensions": 2, "countries": []}

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
    """Return a function that makes a picture whose colours are its own."""

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
