"""Every route answers as its description says."""

import base64
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from open_geoclip.search.locator import Locator
from open_geoclip.server.app import create_app
from open_geoclip.server.settings import ServerSettings


def png(seed: int, side: int = 64) -> bytes:
    """A picture of its own colours."""
    colours = np.random.default_rng(seed).integers(0, 255, (4, 4, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def locator(save_text_release: Any, tmp_path_factory: pytest.TempPathFactory) -> Locator:
    folder: Path = tmp_path_factory.mktemp("server")
    save_text_release(folder / "small")
    return Locator.from_pretrained(f"dir:{folder / 'small'}", engine="torch", cache=folder)


@pytest.fixture
def client(locator: Locator) -> Iterator[TestClient]:
    with TestClient(create_app(ServerSettings(), {"small": locator}), base_url="http://localhost") as client:
        yield client


def test_pictures_are_answered_as_the_locator_answers_them(client: TestClient, locator: Locator) -> None:
    pictures = [png(seed) for seed in range(3)]
    files = [("images", (f"{n}.png", data)) for n, data in enumerate(pictures)]
    files.insert(1, ("images", ("bad.png", b"no picture")))
    answer = client.post("/v1/locate", files=files, data={"top_k": "2"}).json()
    assert answer["object"] == "list"
    assert answer["model"] == "small"
    assert [record["image"] for record in answer["data"]] == ["0.png", "bad.png", "1.png", "2.png"]
    assert set(answer["data"][1]) == {"image", "error"}
    records = [answer["data"][n] for n in (0, 2, 3)]
    for record, expected in zip(records, locator.locate(pictures, top_k=2), strict=True):
        assert record["model"] == expected.model
        for found, candidate in zip(record["candidates"], expected.candidates, strict=True):
            assert (found["lat"], found["lon"]) == (candidate.lat, candidate.lon)
            assert found["probability"] == pytest.approx(candidate.probability, rel=1e-4)


def test_embeddings_keep_the_order_of_mixed_inputs(client: TestClient, locator: Locator) -> None:
    picture = png(1)
    inputs = ["10,20", "data:image/png;base64," + base64.b64encode(picture).decode(), "-0.5,1e1"]
    asked = {"model": "small", "input": inputs}
    floats = client.post("/v1/embeddings", json=asked).json()["data"]
    packed = client.post("/v1/embeddings", json=asked | {"encoding_format": "base64"}).json()["data"]
    assert [one["index"] for one in floats] == [0, 1, 2]
    assert floats[1]["embedding"] == pytest.approx(locator.encode([picture])[0].tolist(), abs=1e-5)
    for one, other in zip(floats, packed, strict=True):
        data = base64.b64decode(other["embedding"])
        assert one["embedding"] == pytest.approx(struct.unpack(f"<{len(data) // 4}f", data))
        assert np.linalg.norm(one["embedding"]) == pytest.approx(1, abs=1e-5)
