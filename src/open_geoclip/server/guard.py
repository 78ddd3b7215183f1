"""What stands before every route: who may ask, what a browser may do with the answer, and a line in the log."""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any

from h11 import LocalProtocolError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_geoclip.server.metrics import Metrics
from open_geoclip.server.problems import Problem

__all__ = ["Guard", "is_loopback", "json_response", "problem_response"]

logger = logging.getLogger(__name__)

_HANG_UP_S = 5
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
    """A body of JSON. Numbers that JSON does not have are a fault of ours, not something to send."""
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, headers, "application/json")


def problem_response(problem: Problem) -> Response:
    """The answer that tells a problem."""
    return json_response(problem.to_dict(), problem.status, dict(problem.headers))


class Guard:
    """Middleware around the whole application.

    Args:
        app: what it guards.
        tokens: of which a request has to bring one; none are asked for when there are none.
        hosts: what a Host header may say; None is anything.
        origins: of pages on other servers that may ask.
        metrics: where requests are counted.
        tile_origin: where the page may get pictures from beside this server; '' is nowhere.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        tokens: Iterable[str] = (),
        hosts: Iterable[str] | None = None,
        origins: Iterable[str] = (),
        tile_origin: str = "",
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tokens = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._origins = set(origins)
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
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else secrets.token_hex(8)
        start, status, broken = time.perf_counter(), 0, False

        async def send_guarded(message: Message) -> None:
            nonlocal status, broken
            if message["type"] == "http.response.start":
                status = message["status"]
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
            try:
                self._check(scope, headers)
                await self._app(scope, receive, send_guarded)
            except Problem as problem:
                self._metrics.refused.labels(problem.code).inc()
                await problem_response(problem)(scope, receive, send_guarded)
        except Exception:
            # What followed was no HTTP, and the server under us has told the client so and hangs up: nobody is there to
            # answer. It takes an end before that for a failure of ours.
            if not broken:
                raise
            status = 499
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HANG_UP_S):
                    while (await receive())["type"] != "http.disconnect":
                        pass
        finally:
            route = getattr(scope.get("route"), "path", "-")  # a path that nobody made may hold anything
            seconds = time.perf_counter() - start
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            took = round(1000 * seconds, 1)
            told = {"request_id": request_id, "method": scope["method"], "route": route, "status": status, "ms": took}
            logger.info("request", extra={"fields": told | scope["state"].get("told", {})})

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = _without_port(headers.get("host", ""))
        if self._hosts is not None and host.lower() not in self._hosts:
            raise Problem(400, "invalid_host", "this Host is not served here: allow it with --allowed-host")
        origin = headers.get("origin", "")
        foreign = headers.get("sec-fetch-site", "") in ("cross-site", "same-site")
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and foreign and origin not in self._origins:
            raise Problem(403, "cross_origin", "pages of other servers may not ask: allow them with --cors-origin")
        path = scope["path"]
        if self._tokens and path not in _OPEN_PATHS and not path.startswith("/assets/"):
            self._check_token(headers.get("authorization", ""))

    def _check_token(self, authorization: str) -> None:
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        # All are compared, each in constant time: how long it takes tells nothing about them.
        known = [hmac.compare_digest(given, own) for own in self._tokens]
        if scheme.lower() != "bearer" or not any(known):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Problem(401, "invalid_token", "send a token of this server: Authorization: Bearer ...", challenge)


def _without_port(host: str) -> str:
    """The name in a Host header, an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: who knows where it leads
        return False
