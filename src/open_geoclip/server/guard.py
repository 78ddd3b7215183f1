"""Middleware: who may use the API, what browsers may do with answers, and one log line per request."""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import socket
import time
import traceback
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from h11 import LocalProtocolError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_geoclip.server.monitoring import Metrics
from open_geoclip.server.problems import Problem, problem_of

__all__ = ["Authorization", "Guard", "is_loopback", "json_response", "problem_response"]

logger = logging.getLogger(__name__)

_HANG_UP_S = 5
_DISCARD_S = 2
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_OPEN_PATHS = {"/", "/healthz", "/readyz", "/favicon.ico"}  # and /assets/: the page asks for the token itself
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A body of JSON. Numbers that JSON does not have are a failure of ours, not something to send."""
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, headers, "application/json")


def problem_response(problem: Problem) -> Response:
    """The response that tells a problem."""
    return json_response(problem.to_dict(), problem.status, dict(problem.headers))


class Guard:
    """The outermost middleware: checks the Host, adds headers, logs and counts.

    Args:
        app: what it guards.
        metrics: where requests are counted.
        host: address that the server listens on.
        allowed_hosts: further names that a Host header may have; ``*`` allows any.
        tile_origin: where the page may load images from besides this server.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        host: str = "127.0.0.1",
        allowed_hosts: Iterable[str] = (),
        tile_origin: str = "",
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = {"localhost", *(name.lower() for name in allowed_hosts)}
        self._on_loopback = is_loopback(host)
        if not self._on_loopback:
            self._hosts |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
            f"img-src 'self' data: blob: {tile_origin}".rstrip()
            + "; font-src 'self'; worker-src 'self' blob:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._headers = {**_HEADERS, "Content-Security-Policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        start, status, broken = time.perf_counter(), 0, False
        is_whole = "expect" in headers  # such a client sends no body before it is asked to

        async def receive_noting() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = not message.get("more_body")
            return message

        async def send_guarded(message: Message) -> None:
            nonlocal status, broken
            if message["type"] == "http.response.start":
                status = message["status"]
                if not is_whole and status != HTTPStatus.REQUEST_TIMEOUT:
                    await _discard_body(receive_noting)
                out = MutableHeaders(scope=message)
                out["X-Request-ID"] = request_id
                for name, value in self._headers.items():
                    out.setdefault(name, value)
                out.setdefault("Cache-Control", "no-store")
            try:
                await send(message)
            except LocalProtocolError:
                broken = True
                raise

        scope.setdefault("state", {})["request_id"] = request_id
        try:
            if self._is_served(headers.get("host", "")):
                await self._app(scope, receive_noting, send_guarded)
            else:
                problem = Problem(400, "invalid_host", "this Host is not served here: allow it with --allowed-host")
                await problem_response(problem)(scope, receive_noting, send_guarded)
        except Exception:
            # What followed the request was not HTTP: the server below has told the client so and hangs up. Everything
            # else is a failure of ours.
            if not broken:
                raise
            status = 499
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HANG_UP_S):
                    while (await receive())["type"] != "http.disconnect":
                        pass
        finally:
            route = getattr(scope.get("route"), "path", "-")  # a path without a route may contain anything
            seconds = time.perf_counter() - start
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            took = round(1000 * seconds, 1)
            fields = {"request_id": request_id, "method": scope["method"], "route": route, "status": status, "ms": took}
            logger.info("request", extra={"fields": fields})

    def _is_served(self, header: str) -> bool:
        """Whether a Host header names this server. A name of somebody else's that leads here is DNS rebinding.

        An address cannot be rebound, so any is accepted where the server can be reached by addresses.
        """
        host = _host_name(header)
        if host in self._hosts or "*" in self._hosts:
            return True
        return is_loopback(host) if self._on_loopback else _is_address(host)


class Authorization:
    """The inner middleware, inside that of CORS: checks origin and token, and answers problems and failures.

    So preflight requests need no token, and a page of an allowed origin can read why it was refused. Without ``tokens``
    none is needed; ``origins`` are those of pages on other servers that may use the API.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, tokens: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tokens = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._origins = {origin.lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started: list[Message] = []

        async def send_noting(message: Message) -> None:
            started[:] = [message]
            await send(message)

        headers = Headers(scope=scope)
        try:
            if scope["path"] not in _OPEN_PATHS and not scope["path"].startswith("/assets/"):
                self._check_origin(scope["method"], headers)
                self._check_token(headers.get("authorization", ""))
            await self._app(scope, receive, send_noting)
        except Exception as error:
            if started:
                raise
            problem = error if isinstance(error, Problem) else problem_of(error)
            self._metrics.refused.labels(problem.code).inc()
            for one in (error, error.__cause__, error.__context__):  # frames would keep bodies until garbage collection
                traceback.clear_frames(None if one is None else one.__traceback__)
            await problem_response(problem)(scope, receive, send)

    def _check_origin(self, method: str, headers: Headers) -> None:
        """Refuse what pages of other origins send. Programs other than browsers send neither header."""
        origin = headers.get("origin", "").lower()
        if origin in self._origins or "*" in self._origins:
            return
        is_other = bool(origin) and origin.partition("://")[2] != headers.get("host", "").lower()
        from_page = headers.get("sec-fetch-site", "") in ("cross-site", "same-site")
        if is_other or (from_page and method not in ("GET", "HEAD", "OPTIONS")):
            how = "allow them with --cors-origin; a reverse proxy has to pass the Host header on"
            raise Problem(403, "cross_origin", f"pages of other origins may not use the API: {how}")

    def _check_token(self, authorization: str) -> None:
        if not self._tokens:
            return
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        # All are compared, each in constant time: how long it takes tells nothing about them.
        known = [hmac.compare_digest(given, own) for own in self._tokens]
        if scheme.lower() != "bearer" or not any(known):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Problem(401, "invalid_token", "send a token of this server: Authorization: Bearer ...", challenge)


async def _discard_body(receive: Receive) -> None:
    """Read what a client is still sending, for a while.

    One that is cut off would see no answer, and a proxy that passes bodies on as they come would hang up after it.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while (await receive()).get("more_body"):
                pass


def _host_name(header: str) -> str:
    """The name in a Host header, an IPv6 address without its brackets."""
    return (header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]).lower()


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback  # a name may lead anywhere
