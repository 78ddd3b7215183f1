"""Fixtures of the tests of weights: a hub, and a machine without the released package."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

from tests.weights.hub import Hub


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


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the installed distribution behind one of the same name that has no files."""
    information = tmp_path / "site" / "geoclip-0.1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: geoclip\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
