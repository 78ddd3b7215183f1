"""Forms with files, read as they arrive: bounded, into memory only."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from open_geoclip.server.jobs import Picture
from open_geoclip.server.problems import Problem

__all__ = ["Form", "FormLimits", "read_form"]

_MAX_HEADER_BYTES = 8192  # of one part


@dataclass(frozen=True)
class FormLimits:
    """What a form may hold.

    Attributes:
        file_bytes: of one file.
        total_bytes: of the whole body.
        files: how many.
        fields: how many others.
        field_bytes: of one of those.
    """

    file_bytes: int
    total_bytes: int
    files: int
    fields: int = 256
    field_bytes: int = 2**20


@dataclass
class Form:
    """What a form held: ``files`` by the name of their field, ``fields`` likewise, in order."""

    files: list[tuple[str, Picture]] = field(default_factory=list)
    fields: list[tuple[str, str]] = field(default_factory=list)


async def read_form(content_type: str, chunks: AsyncIterator[bytes], limits: FormLimits) -> Form:
    """Read a form of ``multipart/form-data``.

    Starlette's own reader writes files of more than a megabyte to disk, and reads all of a file before anybody can
    look at its size. This one stops at the first byte too many.

    Args:
        content_type: the header.
        chunks: the body, as it arrives.
        limits: what it may hold.

    Raises:
        Problem: 415 another content type, 413 too large, 400 damaged.
    """
    kind, parameters = parse_options_header(content_type.encode("latin-1"))
    if kind != b"multipart/form-data":
        raise Problem(415, "unsupported_media_type", "send pictures as multipart/form-data, in fields named images")
    boundary = parameters.get(b"boundary", b"")
    if not boundary:
        raise Problem(400, "invalid_form", "the Content-Type has no boundary: let the client's library set it")
    reader = _Reader(limits)
    total = 0
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        async for chunk in chunks:
            total += len(chunk)
            if total > limits.total_bytes:
                raise _too_large("the request", limits.total_bytes)
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, "invalid_form", f"the form is damaged: {error}") from error
    if not reader.ended:
        raise Problem(400, "invalid_form", "the form is cut off: its last boundary is missing")
    return reader.form


class _Reader:
    """Collects what the parser finds."""

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
                raise Problem(413, "too_many_images", f"at most {self._limits.files} pictures a request")
        elif len(self.form.fields) >= self._limits.fields:
            raise Problem(413, "too_many_fields", f"at most {self._limits.fields} fields a request")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        is_file = self._file_name is not None
        most = self._limits.file_bytes if is_file else self._limits.field_bytes
        if len(self._data) + end - start > most:
            raise _too_large("a picture" if is_file else "a field", most)
        self._data += data[start:end]

    def _part_end(self) -> None:
        if self._file_name is None:
            self.form.fields.append((self._name, self._data.decode("utf-8", "replace")))
        else:
            self.form.files.append((self._name, Picture(self._file_name, bytes(self._data))))
        self._data = bytearray()

    def _end(self) -> None:
        self.ended = True


def _too_large(what: str, most: int) -> Problem:
    return Problem(413, "too_large", f"{what} is larger than {most / 2**20:.4g} MiB, the most that this server takes")
