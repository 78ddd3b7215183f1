"""``geoclip serve`` as a process: one request does not hold up the others, and what dies is replaced and counted."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import httpx2
import pytest

Png = Callable[[int], bytes]
TOKEN = "0123456789abcdef"  # of the servers that conftest.py starts
Server = Any  # that of conftest.py, which cannot be imported
ORIGIN = "https://maps.example"
IMAGE_TIMEOUT_S, READ_TIMEOUT_S, TIMEOUT_S = 2.0, 2.0, 30.0
QUICK_S = 10.0  # for an image of another client, on a busy machine


def memory_mb(pid: int, field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), flags=re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


@pytest.fixture(scope="module")
def server(release: Path, start_server: Callable[..., Server]) -> Iterator[Server]:
    """Return a server that allows a page of another origin, with short time-outs."""
    if not Path("/proc/self/task").exists():
        pytest.skip("these tests look at processes through /proc")
    timeouts = {"image-timeout-s": IMAGE_TIMEOUT_S, "read-timeout-s": READ_TIMEOUT_S, "timeout-s": TIMEOUT_S}
    options = [part for name, value in timeouts.items() for part in (f"--{name}", str(value))]
    server = start_server("--model", f"dir:{release}", "--cors-origin", ORIGIN, *options)
    yield server
    server.stop()


def model_worker(server: Server) -> int:
    return max(server.children(), key=lambda pid: memory_mb(pid, "VmRSS"))


def test_an_expensive_image_costs_its_own_client_only(server: Server, png: Png, fuzzing: ModuleType) -> None:
    with ThreadPoolExecutor(2) as pool:
        for name, data in fuzzing.expensive_images().items():
            start = time.monotonic()
            slow = pool.submit(server.locate, (name, data), exif="true")
            took = 0.0
            while not slow.done() or not took:
                begun = time.monotonic()
                [record] = server.locate(("a.png", png(1))).json()["data"]
                took = max(took, time.monotonic() - begun)
                assert record["candidates"]
            answer, seconds = slow.result(), time.monotonic() - start
            assert answer.status_code == 200, (name, answer.text)
            assert took < QUICK_S, name
            assert seconds < IMAGE_TIMEOUT_S + QUICK_S, name


def test_an_expensive_area_is_refused_or_answered_quickly(server: Server, fuzzing: ModuleType) -> None:
    for name, area in fuzzing.expensive_areas(Random(1)).items():
        for field in ("within", "not_within"):
            start = time.monotonic()
            answer = server.client.post("/v1/text", json={"texts": ["ice"], field: [area]})
            assert answer.status_code in ((422,) if "random" in name else (200, 422)), (name, answer.text[:300])
            assert time.monotonic() - start < QUICK_S, (name, field)
    many = [area for _ in range(3) for area in fuzzing.expensive_areas(Random(2)).values() if area.startswith("{")]
    assert server.client.post("/v1/text", json={"texts": ["ice"], "within": many}).status_code in (413, 422)
    assert server.is_ready()


def test_a_large_export_stays_out_of_the_main_process(server: Server, png: Png) -> None:
    record = json.dumps({"image": "a", "error": "x" * 10_000})
    bodies = {
        "records": b'{"format":"csv","records":[' + ",".join([record] * 23_000).encode() + b"]}",
        "one text": b'{"format":"csv","records":[{"image":"' + b"a" * 230_000_000 + b'"}]}',
        "nesting": b'{"format":"csv","records":' + b"[" * 230_000_000,
        "numbers": b'{"format":"csv","records":[' + b"1," * 115_000_000 + b"1]}",
    }
    for name, body in bodies.items():
        assert len(body) > 229_000_000
        before = memory_mb(server.process.pid, "VmRSS")
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak begins anew
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                server.client.post, "/v1/export", content=body, headers={"Content-Type": "application/json"}
            )
            slowest = 0.0
            while not asked.done():
                begun = time.monotonic()
                assert server.locate(("a.png", png(1))).status_code == 200
                slowest = max(slowest, time.monotonic() - begun)
            answer = asked.result()
        assert answer.status_code in (200, 413, 422), (name, answer.text[:300])
        assert slowest < QUICK_S, name
        assert memory_mb(server.process.pid, "VmHWM") - before < 2.5 * len(body) / 2**20 + 50, name
    small = server.client.post("/v1/export", json={"format": "csv", "records": [{"image": "a", "error": "b"}]})
    assert small.status_code == 200
    server.wait_until(lambda: memory_mb(server.process.pid, "VmRSS") < 200, 10, "memory is given back")


def test_countries_take_no_memory_in_the_main_process(server: Server) -> None:
    countries = server.client.get("/v1/countries").json()
    assert {"France", "Ukraine"} <= {country["name"] for country in countries}
    assert memory_mb(server.process.pid, "VmRSS") < 200


def test_an_idle_worker_that_dies_is_replaced_at_once_and_counted(server: Server) -> None:
    model, children = model_worker(server), server.children()

    def kill(pid: int) -> None:
        before, counted = set(server.children()), server.restarts()
        os.kill(pid, signal.SIGKILL)
        server.wait_until(lambda: server.restarts() == counted + 1, 5, "count")
        if pid == model:
            assert not server.is_ready()
        server.wait_until(lambda: len(set(server.children()) - before) == 1, 5, "a new process")
        server.wait_until(server.is_ready, 60, "ready again")

    for pid in (model, *(pid for pid in children if pid != model)):
        kill(pid)
    assert len(server.children()) == len(children)
    assert server.restarts("dir:") == 1


def test_readiness_follows_a_worker_that_is_stuck(server: Server) -> None:
    counted = server.restarts()
    os.kill(model_worker(server), signal.SIGSTOP)
    server.wait_until(lambda: not server.is_ready(), 25, "not ready")
    server.wait_until(server.is_ready, 60, "ready again")
    assert server.restarts() == counted + 1
    assert server.client.post("/v1/text", json={"texts": ["ice"]}).status_code == 200


def connection(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def head(length: int, kind: str = "multipart/form-data; boundary=b", path: str = "/v1/locate") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {TOKEN}",
        f"Content-Type: {kind}",
    ]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def test_half_sent_requests_hold_up_nobody_and_end(server: Server, png: Png) -> None:
    with ExitStack() as stack:
        halves = [stack.enter_context(closing(connection(server))) for _ in range(300)]
        for number, half in enumerate(halves):
            half.sendall(head(1000)[: 60 if number % 2 else None] + (b"" if number % 2 else b"--b\r\nContent-"))
        start = time.monotonic()
        for seed in range(3):
            assert server.locate(("a.png", png(seed))).status_code == 200
        assert time.monotonic() - start < QUICK_S
        answers = [half.recv(4096) for half in halves]
        assert time.monotonic() - start < READ_TIMEOUT_S + QUICK_S
    assert all(not answer for answer in answers[1::2])  # without whole headers there is no request to answer
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers[::2])


def test_half_sent_large_bodies_leave_memory_for_others(server: Server, png: Png) -> None:
    """They are as many as fit into the server's memory, and a little more is sent of them all the time."""
    with ExitStack() as stack:
        halves = [stack.enter_context(closing(connection(server))) for _ in range(8)]

        def send(half: socket.socket) -> None:
            with suppress(OSError):  # given up
                half.sendall(head(250 * 2**20, "application/json", "/v1/export"))
                for _ in range(130):
                    half.sendall(bytes(2**20))
                for _ in range(50):
                    time.sleep(0.1)
                    half.sendall(bytes(2**14))

        with ThreadPoolExecutor(8) as pool:
            sent = [pool.submit(send, half) for half in halves]
            while held_mb(server) < 900:
                assert not all(one.done() for one in sent)
            for seed in range(5):
                assert server.locate(("a.png", png(seed))).status_code == 200
            answer = server.locate(("large.png", bytes(60_000_000)))  # which needs the memory of one of them
            assert answer.status_code == 200, answer.text
            assert not all(one.done() for one in sent)
    server.wait_until(lambda: held_mb(server) == 0, 20, "memory")


def held_mb(server: Server) -> float:
    found = re.search(r"^geoclip_held_bytes (\S+)$", server.client.get("/metrics").text, flags=re.MULTILINE)
    assert found is not None
    return float(found[1]) / 2**20


def test_a_client_that_does_not_read_is_cut_off(server: Server) -> None:
    records = [{"image": "a", "error": "x" * 1000}] * 30_000
    body = json.dumps({"format": "json", "records": records}).encode()
    with closing(socket.socket()) as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.settimeout(60)
        idle.connect(("127.0.0.1", server.port))
        idle.sendall(head(len(body), "application/json", "/v1/export") + body)
        begin = idle.recv(1000)
        assert begin.startswith(b"HTTP/1.1 200 ")
        time.sleep(3 * READ_TIMEOUT_S)
        received = 0
        with suppress(ConnectionError):
            while part := idle.recv(2**20):
                received += len(part)
    assert received < len(body) / 2


def test_browsers_of_allowed_and_other_origins(server: Server) -> None:
    anyone = httpx2.Client(base_url=server.client.base_url, timeout=60)
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    with anyone:
        preflight = anyone.options("/v1/locate", headers={"Origin": ORIGIN} | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        refused = anyone.post("/v1/text", json={"texts": ["ice"]}, headers={"Origin": ORIGIN})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        other = anyone.options("/v1/locate", headers={"Origin": "https://other.example"} | asked)
        assert "access-control-allow-origin" not in other.headers
    own = f"http://127.0.0.1:{server.port}"
    for origin, status in {"https://other.example": 403, "null": 403, own: 200, ORIGIN: 200}.items():
        for answer in (
            server.client.post("/v1/text", json={"texts": ["ice"]}, headers={"Origin": origin}),
            server.client.get("/v1/models", headers={"Origin": origin}),
        ):
            assert answer.status_code == status, origin
    for host in ("other.example", "127.0.0.1.other.example"):
        assert server.client.get("/v1/models", headers={"Host": host}).status_code == 400
    assert server.client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code in (200, 404)  # a link to it


def test_the_host_is_checked_on_other_addresses_too(release: Path, start_server: Callable[..., Server]) -> None:
    server = start_server("--model", f"dir:{release}", "--host", "0.0.0.0", "--no-token")
    for host, status in {"other.example": 400, "127.0.0.1": 200, socket.gethostname(): 200}.items():
        assert server.client.get("/v1/models", headers={"Host": host}).status_code == status
    server.stop()


def test_embeddings_as_clients_send_them(server: Server, png: Png) -> None:
    import base64

    def embed(given: Any, **more: Any) -> httpx2.Response:
        return server.client.post("/v1/embeddings", json={"model": model, "input": given} | more)

    [model] = [one["id"] for one in server.client.get("/v1/models").json()["data"]]
    assert server.client.get(f"/v1/models/{model}").json()["id"] == model
    assert server.client.get("/v1/models/none").status_code == 404
    right = embed(["1,2"]).json()["data"][0]["embedding"]
    assert embed("1,2", encoding_format=None, dimensions=None).json()["data"][0]["embedding"] == right
    assert embed("1,2", dimensions=len(right), user="me").json()["data"][0]["embedding"] == right
    assert embed("1,2", dimensions=len(right) + 1).status_code == 422
    assert embed("1,2", dimensions=0).status_code == 422
    for text in ("http://example.org/a.jpg", "HTTPS://example.org", "file:///etc/passwd", "file:a.jpg", " ftp://a/b"):
        assert embed(text).status_code == 422, text
    uri = "data:image/png;base64," + base64.b64encode(png(1)).decode()
    wrapped = "data:image/png;base64," + base64.encodebytes(png(1)).decode().replace("\n", "\r\n")
    assert embed(wrapped).json()["data"] == embed(uri).json()["data"]
    unknown = server.client.post("/v1/embeddings", json={"model": "text-embedding-3-small", "input": "ice"})
    assert unknown.status_code == 404
    message = unknown.json()["error"]["message"]
    assert "text-embedding-3-small" in message
    assert model in message
