"""A small model behind the whole application."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from open_geoclip.search.locator import Locator
from open_geoclip.server.app import create_app
from open_geoclip.server.engine import Engine
from open_geoclip.server.settings import ServerSettings


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
    """Return a function that serves models (the small one when none are given) with some settings."""
    clients = []

    def serve(models: Any = None, **settings: Any) -> TestClient:
        app = create_app(ServerSettings(**settings), models or {"small": locator})
        client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield serve
    for client in clients:
        client.__exit__(None, None, None)
