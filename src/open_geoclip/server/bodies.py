"""Bodies of requests, read as they arrive: bounded in size and time, into memory only."""

import asyncio
import base64
import binascii
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from open_geoclip.server.batching import queue_full
from open_geoclip.server.jobs import Upload
from open_geoclip.server.problems import Problem
from open_geoclip.server.service import EmbeddingInput, MemoryHold

__all__ = ["parse_coordinate", "parse_embedding_input", "read_body", "read_form"]

_CLOSE = {"Connection": "close"}  # what is still to come of the body is not read
_MIN_BYTES_PER_S = 2**14  # a body may take its time-out, and as much longer as its size takes at this rate
_MAX_FIELDS = 256  # of a form, besides files
_MAX_TEXT = 8192  # characters of a text to embed
_NUMBER = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*"
_COORDINATE = re.compile(f"({_NUMBER}),({_NUMBER})", re.ASCII)
_URL = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*://|file:)", re.IGNORECASE)


async def _chunks(request: Request, hold: MemoryHold, most: int, pause_s: float) -> AsyncGenerator[bytes, None]:
    """The body as it arrives.

    Args:
        request: whose body it is.
        hold: takes memory for what has arrived.
        most: bytes that it may have.
        pause_s: seconds that may pass without any of it.

    Raises:
        Problem: 408 too slow, 413 too large, 429 no memory for it, 499 the client is gone.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > most:
        raise _too_large("the request", most)
    loop = asyncio.get_running_loop()
    start, received = loop.time(), 0
    stream = request.stream()
    while True:
        left_s = start + pause_s + received / _MIN_BYTES_PER_S - loop.time()
        try:
            async with asyncio.timeout(min(pause_s, left_s)) as timeout:
                with hold.receiving(timeout):
                    chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            if hold.is_dropped:
                raise queue_full() from error
            raise Problem(408, "slow_body", "the request took too long to arrive", _CLOSE) from error
        except ClientDisconnect as error:
            raise Problem(499, "client_gone", "the client went away while it was sending") from error
        received += len(chunk)
        if received > most:
            raise _too_large("the request", most)
        hold.take(len(chunk))
        yield chunk


async def read_body(request: Request, hold: MemoryHold, most: int, pause_s: float) -> bytearray:
    """A body of JSON, not yet parsed; arguments and errors are those of :func:`_chunks`, and 415."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
    body = bytearray()
    async with aclosing(_chunks(request, hold, most, pause_s)) as chunks:
        async for chunk in chunks:
            body += chunk
    return body


class _FormParser(MultiPartParser):
    """Starlette's parser, which keeps all files in memory here."""

    spool_max_size = sys.maxsize
    ended = False

    def on_end(self) -> None:
        self.ended = True


async def read_form(
    request: Request, hold: MemoryHold, most: int, pause_s: float, *, max_files: int, max_file_bytes: int
) -> list[tuple[str, str | Upload]]:
    """Names and values of a form; further arguments and errors are those of :func:`_chunks`, and 400, 413 and 415."""
    kind, _ = parse_options_header(request.headers.get("content-type", "").encode("latin-1"))
    if kind != b"multipart/form-data":
        raise Problem(415, "unsupported_media_type", "send images as multipart/form-data, in fields named images")
    async with aclosing(_chunks(request, hold, most, pause_s)) as chunks:
        parser = _FormParser(request.headers, chunks, max_files=max_files, max_fields=_MAX_FIELDS)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if "Too many" in error.message or "exceeded" in error.message:
                raise Problem(413, "too_large", error.message, _CLOSE) from error
            raise Problem(400, "invalid_form", f"the form is damaged: {error.message}", _CLOSE) from error
    try:
        if not parser.ended:
            raise Problem(400, "invalid_form", "the form is cut off: its last boundary is missing")
        parts: list[tuple[str, str | Upload]] = []
        for name, part in form.multi_items():
            if isinstance(part, UploadFile) and (part.size or 0) > max_file_bytes:
                raise _too_large("an image", max_file_bytes)
            value = part if isinstance(part, str) else Upload(part.filename or "", await part.read())
            parts.append((name, value))
        return parts
    finally:
        await form.close()


def _too_large(what: str, most: int) -> Problem:
    return Problem(413, "too_large", f"{what} is larger than {most / 2**20:.4g} MiB, the limit of this server", _CLOSE)


def parse_embedding_input(text: str, number: int) -> EmbeddingInput:
    """An input of /v1/embeddings: a data URI of an image, ``lat,lon`` in degrees, or a text; ``number`` is its index.

    Raises:
        Problem: 422, it is empty, too long, a damaged data URI, a URL, or a place that is not on Earth.
    """
    if not text.strip():
        raise Problem(422, "invalid_input", f"input {number} is empty")
    if text[:5].lower() == "data:":
        head, comma, body = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Problem(422, "invalid_input", f"input {number}: write an image as data:image/jpeg;base64,...")
        try:
            data = base64.b64decode("".join(body.split()), validate=True)  # some encoders wrap lines
        except (binascii.Error, ValueError) as error:
            raise Problem(422, "invalid_input", f"input {number}: its base64 is damaged: {error}") from error
        return Upload(f"input {number}", data)
    if _URL.match(text):
        raise Problem(422, "invalid_input", f"input {number}: URLs are not fetched; send the image as a data URI")
    if len(text) < 200 and _COORDINATE.fullmatch(text):
        return parse_coordinate(text, f"input {number}")
    if len(text) > _MAX_TEXT:
        raise Problem(422, "invalid_input", f"input {number}: a text has at most {_MAX_TEXT:,} characters")
    return text


def parse_coordinate(text: str, name: str) -> tuple[float, float]:
    """A place, ``lat,lon`` in degrees; 422 if it is none, or not on Earth. ``name`` is that of the field."""
    match = _COORDINATE.fullmatch(text)
    if match is None:
        raise Problem(422, "invalid_coordinate", f"{name}: write lat,lon in degrees, such as -33.9,18.6")
    lat, lon = float(match[1]), float(match[2])
    if not (abs(lat) <= 90 and abs(lon) <= 360):
        raise Problem(422, "invalid_coordinate", f"{name}: ({lat:g}, {lon:g}) is no latitude and longitude")
    return lat, lon
