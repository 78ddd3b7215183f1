"""Clients that send slowly or go away: the rest are served, and what nobody waits for is not done."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from h11 import LocalProtocolError
from starlette.responses import PlainTextResponse

from open_geoclip.server.guard import Guard
from open_geoclip.server.monitoring import Metrics

Gate = Callable[..., Any]
MakeApp = Callable[..., FastAPI]
RunAsync = Callable[..., Any]


def form(name: str) -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
    return head.encode() + b"x" * 100 + b"\r\n--b--\r\n"


async def ask(
    app: FastAPI,
    *bodies: bytes,
    whole: bool = True,
    gone: asyncio.Event | None = None,
    headers: dict[bytes, bytes] | None = None,
    path: str = "/v1/locate",
) -> tuple[int, bytes]:
    """Status and body of an answer to a client that sends a body, all of it or not, and goes away when told.

    A body that is whole must have been read before the answer begins.
    """
    sent: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    parts[-1]["more_body"] = not whole

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop(0)
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert not parts
        sent.append(message)

    named = {b"host": b"localhost", b"content-type": b"multipart/form-data; boundary=b"} | (headers or {})
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(named.items()),
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_a_refused_request_is_read_to_its_end(gate: Gate, gated_app: MakeApp, run_async: RunAsync) -> None:
    """A proxy that passes bodies on as they come hangs up after an answer that was quicker than the body."""

    async def run() -> None:
        held = gate()
        app = gated_app(held)
        body = form("a")
        async with app.router.lifespan_context(app):
            other, unknown = {b"origin": b"https://other.example"}, {b"content-type": b"text/plain"}
            for headers, expected in ((other, 403), (unknown, 415), ({b"host": b"evil.example"}, 400)):
                assert (await ask(app, body[:50], body[50:99], body[99:], headers=headers))[0] == expected
            assert (await ask(app, body[:50], body[50:], path="/v1/nothing"))[0] == 404
            assert (await ask(app, body, headers=other))[0] == 403  # nothing more is waited for
            assert held.seen == []

    run_async(run())


async def until_waiting(app: FastAPI, count: int) -> None:
    while f'geoclip_queue_waiting{{model="m"}} {count}.0'.encode() not in app.state.service.metrics.text():
        await asyncio.sleep(0)


def test_a_body_that_arrives_too_slowly_is_given_up(gate: Gate, gated_app: MakeApp, run_async: RunAsync) -> None:
    async def run() -> None:
        held = gate()
        app = gated_app(held, read_timeout_s=0.2)
        async with app.router.lifespan_context(app):
            status, told = await ask(app, form("slow")[:80], whole=False)
            assert status == 408
            assert b"slow_body" in told
            assert held.seen == []
            assert b"geoclip_held_bytes 0.0" in app.state.service.metrics.text()
            held.open.set()
            assert (await ask(app, form("quick")))[0] == 200

    run_async(run())


def test_the_work_of_a_client_that_goes_away_is_dropped_and_others_are_served(
    gate: Gate, gated_app: MakeApp, run_async: RunAsync
) -> None:
    async def run() -> None:
        held = gate()
        app = gated_app(held)
        async with app.router.lifespan_context(app):
            gone = asyncio.Event()
            first = asyncio.create_task(ask(app, form("first")))
            await asyncio.to_thread(held.begun.wait)
            leaver = asyncio.create_task(ask(app, form("leaver"), gone=gone))
            await until_waiting(app, 2)
            last = asyncio.create_task(ask(app, form("last")))
            await until_waiting(app, 3)
            gone.set()
            assert (await leaver)[0] == 499
            await until_waiting(app, 2)
            held.open.set()
            assert [status for status, _ in (await first, await last)] == [200, 200]
            assert b'"last"' in (await last)[1]
            assert held.seen == [["first"], ["last"]]
            assert b"geoclip_held_bytes 0.0" in app.state.service.metrics.text()

    run_async(run())


def test_one_who_goes_away_while_sending_leaves_nothing_behind(
    gate: Gate, gated_app: MakeApp, run_async: RunAsync
) -> None:
    async def run() -> None:
        held, gone = gate(), asyncio.Event()
        gone.set()
        app = gated_app(held)
        async with app.router.lifespan_context(app):
            assert (await ask(app, form("half")[:90], whole=False, gone=gone))[0] == 499
            assert held.seen == []
            assert b"geoclip_held_bytes 0.0" in app.state.service.metrics.text()

    run_async(run())


@pytest.mark.parametrize("kind", [LocalProtocolError, ValueError])
def test_a_connection_that_broke_is_no_failure_of_the_server(kind: type[Exception], run_async: RunAsync) -> None:
    """uvicorn answers 400 by itself where HTTP ends in something else; what the application says then fits nowhere."""

    async def run() -> None:
        metrics = Metrics()

        async def send(_: Any) -> None:
            raise kind("no answer fits here")

        received: list[str] = []

        async def receive() -> Any:
            received.append("http.disconnect" if received else "http.request")
            return {"type": received[-1]}

        guard = Guard(PlainTextResponse("ok"), metrics=metrics)
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        if kind is LocalProtocolError:
            await guard(scope, receive, send)
            assert received == ["http.request", "http.disconnect"]  # not before the connection has ended
            assert b'geoclip_requests_total{route="-",status="499"} 1.0' in metrics.text()
        else:
            with pytest.raises(kind):
                await guard(scope, receive, send)

    run_async(run())
