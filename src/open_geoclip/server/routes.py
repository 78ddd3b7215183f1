"""The routes: each reads and checks what was sent, asks the service, and writes the answer."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import lru_cache
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from open_geoclip._version import __version__
from open_geoclip.errors import OpenGeoCLIPError
from open_geoclip.server import schemas
from open_geoclip.server.description import COMMON, WORK, body_of, errors, files
from open_geoclip.server.embeddings import packed, parse_input
from open_geoclip.server.guard import json_response
from open_geoclip.server.jobs import Job, Options, Picture
from open_geoclip.server.problems import Problem, problem_of
from open_geoclip.server.service import Service
from open_geoclip.server.settings import ServerSettings
from open_geoclip.server.uploads import FormLimits, read_form

__all__ = ["BODIES", "router"]

router = APIRouter()

_Body = TypeVar("_Body", bound=BaseModel)

BODIES: list[type[BaseModel]] = [
    schemas.LocateForm,
    schemas.TextRequest,
    schemas.EmbeddingsRequest,
    schemas.ExportRequest,
]
"""Bodies that routes read themselves, to bound them while they arrive."""

_SEVERAL = ("within", "not_within")
_MAX_NAME = 256  # characters of a file's name that an answer repeats


def _settings(request: Request) -> ServerSettings:
    settings: ServerSettings = request.app.state.settings
    return settings


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _arriving(request: Request) -> AsyncGenerator[bytes, None]:
    """The body, chunk by chunk.

    Raises:
        Problem: 408, it takes too long to arrive.
    """
    try:
        async with asyncio.timeout(_settings(request).timeout_s):
            async for chunk in request.stream():
                yield chunk
    except TimeoutError as error:
        raise Problem(408, "slow_body", "the request took too long to arrive") from error
    except ClientDisconnect as error:
        raise Problem(499, "client_gone", "the client went away while it was sending") from error


def _most(request: Request) -> int:
    return _settings(request).max_request_mb * 2**20


async def _json(request: Request, kind: type[_Body]) -> _Body:
    """The body, checked.

    Raises:
        Problem: 413 too large, 415 another content type, 422 it does not fit.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise Problem(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
    body = bytearray()
    async with contextlib.aclosing(_arriving(request)) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > _most(request):
                raise Problem(413, "too_large", f"the request is larger than {_most(request) >> 20} MiB")
    try:
        return kind.model_validate_json(bytes(body), strict=True)
    except ValidationError as error:
        raise _misfit(error) from error


def _misfit(error: ValidationError) -> Problem:
    """Which field is wrong and why, without what was in it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "the body"
    return Problem(422, "invalid_value", f"{where}: {first['msg']}")


@router.post(
    "/v1/locate",
    operation_id="locate",
    summary="Where photos were taken",
    response_model=schemas.Answers,
    responses=errors(*WORK) | files(),
    openapi_extra=body_of("LocateForm", "multipart/form-data"),
)
async def locate(request: Request) -> Response:
    """One answer a picture, in order; one that cannot be read has ``error`` in its place."""
    service = _service(request)
    with service.held(request, _most(request)):
        asked, pictures = await _form(request)
        model = service.named(asked.model)
        _check_top_k(request, asked.top_k)
        options = Options(
            asked.top_k,
            tuple(asked.within),
            tuple(asked.not_within),
            asked.text,
            asked.text_weight,
            asked.together,
            asked.decode,
            asked.detail,
            asked.exif,
            asked.format in schemas.WITH_PICTURES,
        )
        data = await service.answer(request, model, Job("locate", options, pictures))
    return await _written(model, data, asked.format)


async def _written(model: str, data: list[dict[str, Any]], format_: schemas.FormatName) -> Response:
    """Answers as JSON, or as a file."""
    if format_ == "json":
        return json_response({"object": "list", "model": model, "data": data})
    return await _file(data, format_)


async def _file(records: list[dict[str, Any]], format_: schemas.FormatName) -> Response:
    """Records as a file to keep.

    Raises:
        Problem: 422, a record is not an answer, or what writes the format is not installed.
    """

    def render() -> tuple[bytes, str, str]:
        from open_geoclip.export import formats  # slow

        kind = formats.FORMATS[format_]
        return formats.render(records, format_), kind.media_type, kind.suffix

    try:
        body, media_type, suffix = await run_sync(render)
    except OpenGeoCLIPError as error:
        raise problem_of(error) from error
    return Response(body, 200, {"Content-Disposition": f'attachment; filename="answers{suffix}"'}, media_type)


def _check_top_k(request: Request, top_k: int) -> None:
    most = _settings(request).max_top_k
    if top_k > most:
        raise Problem(422, "invalid_value", f"top_k: at most {most}")


async def _form(request: Request) -> tuple[schemas.LocateForm, tuple[Picture, ...]]:
    """Fields and pictures, checked.

    Raises:
        Problem: 4xx, something about them is wrong.
    """
    settings = _settings(request)
    limits = FormLimits(settings.max_file_mb * 2**20, _most(request), settings.max_images)
    async with contextlib.aclosing(_arriving(request)) as chunks:
        form = await read_form(request.headers.get("content-type", ""), chunks, limits)
    given: dict[str, Any] = {}
    for name, value in form.fields:
        if name in _SEVERAL:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise Problem(422, "invalid_value", f"{name}: given twice")
        elif name == "images":
            raise Problem(422, "invalid_value", "images: files are needed, with a file name each")
        else:
            given[name] = value
    if any(name != "images" for name, _ in form.files):
        raise Problem(422, "invalid_value", "files belong in fields named images")
    if not form.files:
        raise Problem(422, "invalid_value", "images: at least one picture")
    try:
        asked = schemas.LocateForm.model_validate(given)
    except ValidationError as error:
        raise _misfit(error) from error
    if asked.together and asked.text is not None:
        raise Problem(422, "invalid_value", "text goes beside pictures that are located alone, not together")
    named = (
        Picture(picture.name[:_MAX_NAME] or f"image #{n}", picture.data) for n, (_, picture) in enumerate(form.files)
    )
    return asked, tuple(named)


@router.post(
    "/v1/text",
    operation_id="text",
    summary="Where on Earth words lead",
    response_model=schemas.Answers,
    responses=errors(*WORK) | files(),
    openapi_extra=body_of("TextRequest"),
)
async def text(request: Request) -> Response:
    """One answer a text, in order."""
    service = _service(request)
    with service.held(request, _most(request)):
        asked = await _json(request, schemas.TextRequest)
        if len(asked.texts) > _settings(request).max_texts:
            raise Problem(413, "too_many_texts", f"at most {_settings(request).max_texts} texts a request")
        model = service.named(asked.model)
        _check_top_k(request, asked.top_k)
        options = Options(asked.top_k, tuple(asked.within), tuple(asked.not_within), detail=asked.detail)
        data = await service.answer(request, model, Job("text", options, texts=tuple(asked.texts)))
    return await _written(model, data, asked.format)


@router.post(
    "/v1/embeddings",
    operation_id="embeddings",
    summary="Vectors of pictures, places and texts",
    response_model=schemas.EmbeddingsAnswer,
    responses=errors(*WORK),
    openapi_extra=body_of("EmbeddingsRequest"),
)
async def embeddings(request: Request) -> Response:
    """One vector an input, in order, all in one space: the cosine of a photo's and a place's says how well they fit."""
    service = _service(request)
    with service.held(request, _most(request)):
        asked = await _json(request, schemas.EmbeddingsRequest)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if not texts:
            raise Problem(422, "invalid_value", "input: at least one")
        if len(texts) > _settings(request).max_texts:
            raise Problem(413, "too_many_inputs", f"at most {_settings(request).max_texts} inputs a request")
        model = service.named(asked.model)
        inputs = tuple(parse_input(given, number) for number, given in enumerate(texts))
        found = await service.answer(request, model, Job("embed", inputs=inputs))
    vectors = [one["embedding"] for one in found]
    shown = [packed(vector) for vector in vectors] if asked.encoding_format == "base64" else vectors
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(shown)]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return json_response({"object": "list", "data": data, "model": model, "usage": usage})


@router.post(
    "/v1/export",
    operation_id="export",
    summary="Answers as a file",
    response_class=Response,
    responses=errors(*COMMON, 408, 413, 415, 422, 429, 499)
    | {200: {"description": "The file.", "content": {**files()[200]["content"], "application/json": {}}}},
    openapi_extra=body_of("ExportRequest"),
)
async def export(request: Request) -> Response:
    """The records that were sent, written in another format."""
    with _service(request).held(request, _most(request)):
        asked = await _json(request, schemas.ExportRequest)
        return await _file(asked.records, asked.format)


@router.get("/v1/models", operation_id="models", response_model=schemas.ModelList, responses=errors(*COMMON))
async def models(request: Request) -> Response:
    """The models that this server has; the first is that of requests that name none."""
    data = [{"id": n, "object": "model", "created": 0, "owned_by": "open-geoclip"} for n in _service(request).models]
    return json_response({"object": "list", "data": data})


@router.get(
    "/v1/countries", operation_id="countries", response_model=list[schemas.Country], responses=errors(*COMMON, 503)
)
async def countries() -> Response:
    """The countries that ``within`` takes, by name."""
    return json_response(await run_sync(_countries))


@lru_cache(maxsize=1)
def _countries() -> list[dict[str, str]]:
    from open_geoclip.geo.countries import Countries

    names = Countries().names
    return [{"code": code, "name": names[code]} for code in sorted(names, key=lambda code: names[code])]


@router.get("/v1/page", operation_id="page", response_model=schemas.PageSettings, responses=errors(*COMMON))
async def page(request: Request) -> Response:
    """What the page has to know."""
    settings = _settings(request)
    names = ("max_file_mb", "max_request_mb", "max_pixels", "max_images", "max_texts", "max_top_k")
    return json_response(
        {
            "models": _service(request).models,
            "tile_url": settings.tile_url,
            "tile_attribution": settings.tile_attribution,
            "limits": {name: getattr(settings, name) for name in names},
            "formats": list(schemas.FORMATS),
            "version": __version__,
        }
    )


@router.get("/healthz", operation_id="healthz", responses=errors(400, 405))
async def healthz() -> Response:
    """Whether the server lives."""
    return json_response({"status": "ok"})


@router.get("/readyz", operation_id="readyz", responses=errors(400, 405, 503))
async def readyz(request: Request) -> Response:
    """Whether its models can answer."""
    if not _service(request).ready:
        raise Problem(503, "not_ready", "a model is being loaded", {"Retry-After": "2"})
    return json_response({"status": "ok"})


@router.get("/metrics", operation_id="metrics", response_class=PlainTextResponse, responses=errors(*COMMON))
async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(_service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
