"""Bodies of requests, read as they arrive: bounded in size and time, into memory only."""

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from open_geoclip.server.jobs import Upload
from open_geoclip.server.problems import Problem
from open_geoclip.server.service import EmbeddingInput, MemoryHold, queue_full

__all__ = ["Form", "FormLimits", "parse_embedding_input", "read_body", "read_form"]

_CLOSE = {"Connection": "close"}  # what is still to come of the body is not read
_MIN_BYTES_PER_S = 2**14  # a body may take its time-out, and as much longer as its size takes at this rate
_MAX_HEADER_BYTES = 8192  # of one part of a form
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
    """A body of JSON, not yet parsed; arguments and errors as for :func:`read_form`.

    Raises:
        Problem: 415, another content type.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
    body = bytearray()
    async with aclosing(_chunks(request, hold, most, pause_s)) as chunks:
        async for chunk in chunks:
            body += chunk
    return body


@dataclass(frozen=True)
class FormLimits:
    """What a form may contain.

    Attributes:
        file_bytes: size of one file.
        total_bytes: size of the whole body.
        files: number of files.
        fields: number of other fields.
        field_bytes: size of one field.
    """

    file_bytes: int
    total_bytes: int
    files: int
    fields: int = 256
    field_bytes: int = 2**20


@dataclass
class Form:
    """A form: ``files`` and ``fields``, each with the name of its field, in order."""

    files: list[tuple[str, Upload]] = field(default_factory=list)
    fields: list[tuple[str, str]] = field(default_factory=list)


async def read_form(request: Request, hold: MemoryHold, limits: FormLimits, pause_s: float) -> Form:
    """Read a form of ``multipart/form-data``.

    Starlette's own reader writes files of more than a megabyte to disk, and reads all of a file before anybody can
    look at its size. This one stops at the first byte too many.

    Args:
        request: whose body it is.
        hold: takes memory for what has arrived.
        limits: what it may contain.
        pause_s: seconds that may pass without any of it.

    Raises:
        Problem: 400 damaged, 408 too slow, 413 too large, 415 another content type, 429 no memory for it.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type", "").encode("latin-1"))
    if kind != b"multipart/form-data":
        raise Problem(415, "unsupported_media_type", "send images as multipart/form-data, in fields named images")
    boundary = parameters.get(b"boundary", b"")
    if not boundary:
        raise Problem(400, "invalid_form", "the Content-Type has no boundary: let the client's library set it")
    builder = _FormBuilder(limits)
    try:
        parser = MultipartParser(boundary, builder.callbacks())  # type: ignore[arg-type]
        async with aclosing(_chunks(request, hold, limits.total_bytes, pause_s)) as chunks:
            async for chunk in chunks:
                parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, "invalid_form", f"the form is damaged: {error}", _CLOSE) from error
    if not builder.ended:
        raise Problem(400, "invalid_form", "the form is cut off: its last boundary is missing")
    return builder.form


class _FormBuilder:
    """Callbacks of the parser that build a form."""

    def __init__(self, limits: FormLimits) -> None:
        self.form = Form()
        self.ended = False
        self._limits = limits
        self._header, self._value = bytearray(), bytearray()
        self._disposition, self._header_bytes = b"", 0
        self._name, self._file_name, self._data = "", None, bytearray()  # type: str, str | None, bytearray

    def callbacks(self) -> dict[str, object]:
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end")
        return {f"on_{name}": getattr(self, f"_{name}") for name in (*names, "headers_finished", "end")}

    def _part_begin(self) -> None:
        self._header, self._value = bytearray(), bytearray()
        self._disposition, self._header_bytes = b"", 0
        self._name, self._file_name, self._data = "", None, bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise Problem(400, "invalid_form", f"a part of the form has more than {_MAX_HEADER_BYTES} bytes of headers")

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise Problem(400, "invalid_form", "a part of the form has no name")
        self._name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            self._file_name = options[b"filename"].decode("utf-8", "replace")
            if len(self.form.files) >= self._limits.files:
                raise Problem(413, "too_many_images", f"at most {self._limits.files} images per request")
        elif len(self.form.fields) >= self._limits.fields:
            raise Problem(413, "too_many_fields", f"at most {self._limits.fields} fields per request")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        is_file = self._file_name is not None
        most = self._limits.file_bytes if is_file else self._limits.field_bytes
        if len(self._data) + end - start > most:
            raise _too_large("an image" if is_file else "a field", most)
        self._data += data[start:end]

    def _part_end(self) -> None:
        if self._file_name is None:
            self.form.fields.append((self._name, self._data.decode("utf-8", "replace")))
        else:
            self.form.files.append((self._name, Upload(self._file_name, bytes(self._data))))
        self._data = bytearray()

    def _end(self) -> None:
        self.ended = True


def _too_large(what: str, most: int) -> Problem:
    return Problem(413, "too_large", f"{what} is larger than {most / 2**20:.4g} MiB, the limit of this server", _CLOSE)


def parse_embedding_input(text: str, number: int) -> EmbeddingInput:
    """An input of /v1/embeddings: a data URI of an image, ``lat,lon`` in degrees, or a text.

    Args:
        text: the input.
        number: its index, for messages.

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
    match = _COORDINATE.fullmatch(text) if len(text) < 200 else None
    if match is None:
        if len(text) > _MAX_TEXT:
            raise Problem(422, "invalid_input", f"input {number}: a text has at most {_MAX_TEXT:,} characters")
        return text
    lat, lon = float(match[1]), float(match[2])
    if not (abs(lat) <= 90 and abs(lon) <= 360):
        raise Problem(422, "invalid_coordinate", f"input {number}: ({lat:g}, {lon:g}) is no latitude and longitude")
    return lat, lon
