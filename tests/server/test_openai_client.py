"""The official client of the API that /v1/embeddings has the shape of, against a real server on loopback."""

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from open_geoclip.search.locator import Locator
from open_geoclip.server.app import create_app
from open_geoclip.server.settings import ServerSettings

TOKEN = "0123456789abcdef"
Png = Callable[[int], bytes]


@pytest.fixture(scope="module")
def client(locator: Locator) -> Iterator[Any]:
    """Return the client, of a server that wants a token."""
    import openai
    import uvicorn

    app = create_app(ServerSettings(tokens=(SecretStr(TOKEN),)), {"small": locator})
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"  # it listens already: who comes early waits
    with closing(openai.OpenAI(base_url=url, api_key=TOKEN, timeout=60, max_retries=0)) as client:
        yield client
    server.should_exit = True
    thread.join(60)
    listening.close()


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def vectors(client: Any, given: Any, **options: Any) -> np.ndarray:
    answer = client.embeddings.create(model="small", input=given, **options)
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    assert answer.model == "small"
    return np.array([one.embedding for one in answer.data], np.float32)


def test_images_places_and_texts_come_back_in_order(client: Any, locator: Locator, png: Png) -> None:
    given = [uri(png(1)), "48.8584,2.2945", "a hot desert", uri(png(2)), "-33.86,151.2"]
    found = vectors(client, given)  # base64, which this client asks for by itself
    assert found.shape == (5, locator.model.location_encoder.settings.output)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    np.testing.assert_allclose(found[[0, 3]], locator.encode([png(1), png(2)]).numpy(), atol=1e-5)
    np.testing.assert_allclose(found[2], locator.encode_text(["a hot desert"])[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(vectors(client, given[::-1], encoding_format="float")[::-1], found, atol=1e-6)


def test_more_inputs_than_the_model_sees_at_once(client: Any, locator: Locator, png: Png) -> None:
    given = [uri(png(n)) if n % 3 else f"{n},{-n}" for n in range(20)]
    found = vectors(client, given)
    np.testing.assert_allclose(found[[1, 11, 19]], locator.encode([png(n) for n in (1, 11, 19)]).numpy(), atol=1e-5)
    np.testing.assert_allclose(found[12], vectors(client, "12,-12")[0], atol=1e-6)


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_one_input_alone_and_each_encoding(client: Any, png: Png, encoding_format: str) -> None:
    answer = client.embeddings.create(model="small", input=uri(png(1)), encoding_format=encoding_format)
    [one] = answer.data
    told = one.embedding
    if encoding_format == "base64":  # asked for by name it is handed on as it is
        told = np.frombuffer(base64.b64decode(told), "<f4")
    np.testing.assert_allclose(told, vectors(client, [uri(png(1))])[0], atol=1e-6)


def test_models_are_listed_and_refusals_are_the_client_s_own_errors(client: Any, png: Png) -> None:
    import openai

    assert [model.id for model in client.models.list()] == ["small"]
    with pytest.raises(openai.NotFoundError, match="small"):
        client.embeddings.create(model="other", input="1,2")
    with pytest.raises(openai.UnprocessableEntityError, match="input 1"):
        client.embeddings.create(model="small", input=["1,2", ""])
    with pytest.raises(openai.UnprocessableEntityError, match="input 1"):
        client.embeddings.create(model="small", input=[uri(png(1)), uri(b"no image")])
    with pytest.raises(openai.AuthenticationError, match="token"):
        client.with_options(api_key="wrong").models.list()
