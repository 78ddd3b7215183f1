"""What the server does not let happen: too much, too long, unasked, on disk, in the log; and what outlives a worker."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from open_geoclip.errors import OpenGeoCLIPError, SettingsError
from open_geoclip.search.locator import Locator
from open_geoclip.server.app import bind_sockets, model_workers
from open_geoclip.server.engine import Engine
from open_geoclip.server.jobs import Job, Options
from open_geoclip.server.processes import ProcessWorker, _pack
from open_geoclip.server.settings import ServerSettings

Serve = Callable[..., TestClient]
Png = Callable[[int], bytes]
Gate = Callable[..., Any]
TOKEN = "0123456789abcdef"


def post(client: TestClient, *names: str, body: bytes = b"x" * 100, **options: Any) -> Any:
    return client.post("/v1/locate", files=[("images", (name, body)) for name in names], **options)


def test_a_full_queue_refuses_whole_requests(serving: Serve, gate: Gate) -> None:
    held = gate()
    client = serving(held, queue=3)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, client, "a", "b")
        assert held.begun.wait(20)
        refused = post(client, "c", "d")
        second = pool.submit(post, client, "e")
        held.open.set()
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert [record["image"] for record in first.result().json()["data"]] == ["a", "b"]
        assert second.result().status_code == 200
    assert "c" not in str(held.seen)
    assert post(client, "c", "d").status_code == 200  # room is given back


def test_a_request_that_takes_too_long_is_given_up(serving: Serve, gate: Gate) -> None:
    held = gate()
    client = serving(held, timeout_s=0.3)
    answer = post(client, "a")
    held.open.set()
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    assert 'geoclip_queue_waiting{model="m"} 0.0' in client.get("/metrics").text


def test_only_the_image_that_kills_workers_goes_without_an_answer(serving: Serve, gate: Gate) -> None:
    held = gate(dies=True, is_open=True)
    client = serving(held, batch_wait_ms=300)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: post(client, name), ["a", "bad", "b", "c"]))
    assert [answer.status_code for answer in found] == [200, 503, 200, 200]
    assert "Retry-After" in found[1].headers
    assert held.seen.count(["bad"]) >= 1


@pytest.mark.parametrize("told", [True, False])
def test_too_large_is_refused_before_it_is_read(serving: Serve, gate: Gate, told: bool) -> None:
    client = serving(gate(), max_file_mb=1, max_request_mb=2)
    sent = 0

    def body() -> Any:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(64):
            sent += 2**18
            yield b"x" * 2**18

    headers = {"Content-Type": "multipart/form-data; boundary=b"} | ({"Content-Length": str(2**24)} if told else {})
    answer = client.post("/v1/locate", content=body(), headers=headers)
    assert answer.status_code == 413
    assert "MiB" in answer.json()["error"]["message"]


def test_too_many_images(serving: Serve, gate: Gate) -> None:
    assert post(serving(gate(), max_images=2), "a", "b", "c").status_code == 413


def test_memory_is_bounded(serving: Serve, gate: Gate) -> None:
    held = gate()
    client = serving(held, memory_mb=1)
    files = [("images", ("a", b"x" * 700_000))]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/locate", files=files)
        assert held.begun.wait(20)
        second = client.post("/v1/locate", files=files)
        held.open.set()
        assert second.status_code == 429
        assert first.result().status_code == 200


def test_no_file_is_written(serving: Serve, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a file was made")

    for name in ("SpooledTemporaryFile", "TemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    held = gate(is_open=True)
    client = serving(held)
    written: list[Any] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(arguments[0])

    watching = True
    sys.addaudithook(watch)
    answer = client.post("/v1/locate", files=[("images", ("a", b"x" * 5_000_000))])
    watching = False
    assert answer.status_code == 200
    assert written == []


def test_areas_that_clients_name_leave_nothing_on_disk(serving: Serve, locator: Locator, png: Png) -> None:
    assert locator.search_space.index.path is not None
    folder = locator.search_space.index.path.parent
    before = sorted(folder.rglob("*"))
    answer = post(serving(), "a.png", data={"within": "48.86,2.29,20km"}, body=png(1))
    assert "even places in the area" in answer.json()["data"][0]["gallery"]  # vectors were made for it
    assert sorted(folder.rglob("*")) == before


def test_areas_that_clients_name_do_not_fill_memory(locator: Locator) -> None:
    engine = Engine(locator)
    for degrees in range(1, 8):
        for within, without in (((), (f"0,0,{degrees},{degrees}",)), ((f"-40,-170,{degrees},170",), ())):
            [outcome] = engine.run([Job("text", Options(1, within, without), texts=("a desert",))])
            assert outcome.answers is not None, outcome.message
            assert sum(len(one.gallery) for one in engine._within.values()) <= 2 * len(locator.gallery)
            assert 1 <= len(engine._within) <= 4


def test_tokens(serving: Serve, gate: Gate, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("another-token-of-16\n")
    client = serving(gate(), tokens=(TOKEN,), token_file=file)
    for header in (None, "Bearer wrong", f"Basic {TOKEN}", "Bearer"):
        answer = client.get("/v1/models", headers={} if header is None else {"Authorization": header})
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for token in (TOKEN, "another-token-of-16"):
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert client.get("/metrics").status_code == 401
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"tokens": ("short",)}, {"token_file": Path("nowhere")}])
def test_settings_that_would_let_anybody_in(settings: Any) -> None:
    with pytest.raises(SettingsError):
        ServerSettings(**settings).all_tokens()
    assert ServerSettings(host="0.0.0.0", no_token=True).all_tokens() == []


def test_settings_are_read_from_the_environment_and_unknown_ones_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_GEOCLIP_SERVE_QUEUE", "5")
    assert ServerSettings().queue == 5
    monkeypatch.setenv("OPEN_GEOCLIP_SERVE_MODEL", "earth")  # an option of the command, and no setting of the server
    with pytest.raises(ValidationError, match="OPEN_GEOCLIP_SERVE_MODEL is no setting"):
        ServerSettings()


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", ""])
def test_other_hosts_are_refused(serving: Serve, gate: Gate, host: str) -> None:
    client = serving(gate(), allowed_hosts=("maps.example",))
    assert client.get("/healthz", headers={"Host": host}).status_code == 400
    for name in ("maps.example", "localhost:8000", "[::1]:8000"):
        assert client.get("/healthz", headers={"Host": name}).status_code == 200


def test_other_hosts_are_refused_on_all_addresses(serving: Serve, gate: Gate) -> None:
    client = serving(gate(), host="0.0.0.0", tokens=(TOKEN,))
    for host, status in {"other.example": 400, "127.0.0.1": 200, socket.gethostname(): 200}.items():
        headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
        assert client.get("/v1/models", headers=headers).status_code == status


def test_pages_of_others_may_not_ask_unless_allowed(serving: Serve, gate: Gate) -> None:
    held = gate(is_open=True)
    from_afar = {"Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"}
    closed = serving(held)
    assert post(closed, "a", headers=from_afar).status_code == 403
    assert "access-control-allow-origin" not in closed.get("/v1/models", headers=from_afar).headers
    opened = serving(held, cors_origins=("https://other.example",))
    answer = post(opened, "a", headers=from_afar)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://other.example"


def test_headers_of_every_answer(serving: Serve, gate: Gate) -> None:
    client = serving(gate())
    for path in ("/healthz", "/nothing", "/"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert client.get("/v1/models").headers["Cache-Control"] == "no-store"
    assert client.get("/healthz", headers={"X-Request-ID": "a-1"}).headers["X-Request-ID"] == "a-1"
    assert client.get("/healthz", headers={"X-Request-ID": "a b\tc"}).headers["X-Request-ID"] != "a b\tc"


def test_logs_tell_nothing_of_what_was_asked(serving: Serve, png: Png, caplog: pytest.LogCaptureFixture) -> None:
    from open_geoclip.server.monitoring import JsonLines

    client = serving()
    with caplog.at_level(logging.DEBUG):
        files = [("images", ("secret-name.png", png(1))), ("images", ("bad-name.png", b"x"))]
        answer = client.post("/v1/locate?hidden=1", files=files, data={"within": "-40,-170,60,171.25"}).json()
        client.post("/v1/locate", files=files, data={"within": "Secretland"})
        client.get("/secret-path")
    lines = "\n".join(JsonLines().format(record) for record in caplog.records if "open_geoclip" in record.name)
    assert [json.loads(line)["status"] for line in lines.splitlines()] == [200, 422, 404]
    for word in (
        "secret",
        "name.png",
        "171.25",
        "hidden",
        "Secretland",
        str(answer["data"][0]["candidates"][0]["lat"]),
    ):
        assert word not in lines


def test_what_libraries_say_of_damaged_images_is_not_logged() -> None:
    code = """
import io, logging
from PIL import Image
from open_geoclip.server.monitoring import log_as_json
log_as_json()
file = io.BytesIO()
Image.new("RGB", (2, 2)).save(file, "TIFF")
data = file.getvalue().replace(b"\\x15\\x01\\x03\\x00\\x01\\x00\\x00\\x00\\x03\\x00",
                               b"\\x15\\x01\\x03\\x00\\x01\\x00\\x00\\x00\\xff\\x7f")
assert data != file.getvalue()
try:
    Image.open(io.BytesIO(data))
except OSError:
    pass
logging.getLogger("open_geoclip.server").warning("our own")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    [line] = done.stderr.splitlines()
    assert json.loads(line)["message"] == "our own"


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(
    serving: Serve, release: Path, locator: Locator, png: Png
) -> None:
    [worker] = model_workers(ServerSettings(), f"dir:{release}", engine="torch")
    assert isinstance(worker, ProcessWorker)
    client = serving({"small": [worker]}, batch_wait_ms=300, timeout_s=600)  # busy machines start processes slowly

    def wait_for_another(pid: int) -> int:
        deadline = time.monotonic() + 300
        while worker.pid in (None, pid) or not worker.ready:
            assert time.monotonic() < deadline
            client.get("/healthz")
        assert worker.pid is not None
        return worker.pid

    first = worker.pid
    assert first is not None
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(post, client, f"{n}", body=png(n)) for n in range(12)]
        while 'geoclip_batch_size_count{model="small"}' not in client.get("/metrics").text:
            assert all(one.result().status_code == 200 for one in asked if one.done())
        os.kill(first, signal.SIGKILL)  # a batch is on its way, or what it answered is
        answers = [one.result() for one in asked]
    assert [answer.status_code for answer in answers] == [200] * 12
    expected_of = [answer.candidates[0].lat for answer in locator.locate([png(n) for n in range(12)])]
    for n, answer in enumerate(answers):
        [record] = answer.json()["data"]
        assert record["image"] == str(n)
        assert record["candidates"][0]["lat"] == pytest.approx(expected_of[n], abs=1e-5)
    second = wait_for_another(first)
    os.kill(second, signal.SIGKILL)  # while it has nothing to do
    [record] = post(client, "1", body=png(1)).json()["data"]
    assert record["candidates"][0]["lat"] == pytest.approx(expected_of[1], abs=1e-5)
    assert wait_for_another(second) != first


def test_a_worker_that_cannot_be_started_again_is_tried_until_it_can(
    monkeypatch: pytest.MonkeyPatch, run_async: Callable[..., Any]
) -> None:
    async def scenario() -> None:
        worker = ProcessWorker({"role": "utility", "memory_mb": 4096})
        await worker.start()
        try:
            assert worker.pid is not None
            monkeypatch.setattr(sys, "executable", "/no/such/python")  # as when the machine has no process to spare
            os.kill(worker.pid, signal.SIGKILL)
            errors = set[str]()
            async with asyncio.timeout(60):
                while "a worker cannot be started: No such file or directory" not in errors:
                    with pytest.raises(OpenGeoCLIPError) as raised:
                        await worker.run((None, []), 30)
                    errors.add(str(raised.value))
            monkeypatch.undo()
            async with asyncio.timeout(60):
                while not worker.ready:
                    await asyncio.sleep(0)
            assert await worker.run((None, []), 30) == (None, [])
        finally:
            await worker.stop()

    run_async(scenario())


def test_a_port_in_use_is_an_error_before_anything_is_loaded(run_async: Callable[..., Any]) -> None:
    [bound] = run_async(bind_sockets(ServerSettings(port=0)))
    with bound:
        port = bound.getsockname()[1]
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0, "refused until the server serves"
        bound.listen()
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}: address already in use: choose .*--port"):
            run_async(bind_sockets(ServerSettings(port=port)))


def test_a_worker_whose_server_is_gone_ends_without_a_word() -> None:
    command = [sys.executable, "-m", "open_geoclip.server.worker"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        worker.stdout.close()
        worker.stdin.writelines(_pack(({"role": "utility", "memory_mb": 2000}, [])))
        worker.stdin.close()
        assert worker.stderr.read() == b""
        assert worker.wait(60) == 0


@pytest.mark.slow
def test_sigterm_finishes_what_was_taken(release: Path, png: Png, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "open_geoclip.cli", "serve", "--model", f"dir:{release}", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen([*command, "--batch-wait-ms", "1000"], stderr=file)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                httpx2.get(f"{url}/readyz", timeout=10)
                break
            except httpx2.TransportError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
        with ThreadPoolExecutor(4) as pool:
            # A second's wait for others keeps them in the queue while the signal arrives.
            asked = [
                pool.submit(httpx2.post, f"{url}/v1/locate", files={"images": (f"{n}", png(n))}, timeout=60)
                for n in range(4)
            ]
            while "geoclip_queue_waiting" in (text := httpx2.get(f"{url}/metrics").text):
                if f'geoclip_queue_waiting{{model="dir:{release}"}} 4.0' in text:
                    break
                assert time.monotonic() < deadline
            server.send_signal(signal.SIGTERM)
            assert [one.result().json()["data"][0]["image"] for one in asked] == ["0", "1", "2", "3"]
        server.wait(60)
    finally:
        server.kill()
        server.wait()
