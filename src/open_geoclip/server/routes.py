"""The routes: each reads and validates a request, asks the service, and writes the answer."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from open_geoclip._version import __version__
from open_geoclip.server import schemas
from open_geoclip.server.bodies import parse_coordinate, parse_embedding_input, read_body, read_form
from open_geoclip.server.guard import json_response
from open_geoclip.server.jobs import Options, Upload
from open_geoclip.server.openapi import COMMON, WORK, body_of, errors, files
from open_geoclip.server.problems import Problem
from open_geoclip.server.service import MemoryHold, Service
from open_geoclip.server.settings import ServerSettings

__all__ = ["router"]

router = APIRouter(responses=errors(*COMMON), generate_unique_id_function=lambda route: route.name)

_T = TypeVar("_T")
_Form = TypeVar("_Form", schemas.LocateForm, schemas.TripForm, schemas.ExplainForm)

_LISTS = ("within", "not_within")
_MAX_NAME = 256  # characters of a file name that an answer repeats
_SLICE_BYTES = 2**18  # of a file, sent at once
_MAX_AREAS = 2**20  # characters of all areas of a request
_MAX_JSON_VALUES = 100_000  # of a body that is parsed in this process


def _settings(request: Request) -> ServerSettings:
    settings: ServerSettings = request.app.state.settings
    return settings


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _finish(request: Request, work: Awaitable[_T]) -> _T:
    """Do work within the time-out (504), as long as the client is there (499)."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    timeout_s = _settings(request).timeout_s
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait([task, watch], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        if watch.done():
            raise Problem(499, "client_gone", "the client did not wait")
        raise Problem(504, "timeout", f"this took longer than {timeout_s:g} s and was given up")
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _body(request: Request, hold: MemoryHold) -> bytearray:
    settings = _settings(request)
    return await read_body(request, hold, settings.max_request_mb * 2**20, settings.read_timeout_s)


@router.post(
    "/v1/locate",
    summary="Where photos were taken",
    response_model=schemas.Answers,
    responses=errors(*WORK) | files(),
    openapi_extra=body_of("LocateForm", "multipart/form-data"),
)
async def locate(request: Request) -> Response:
    """One answer per image, in order; an image that cannot be read has ``error`` instead."""
    service = _service(request)
    with service.hold_memory() as hold:
        query, uploads = await _form(request, hold, schemas.LocateForm)
        if query.together and query.text is not None:
            raise Problem(422, "invalid_value", "text cannot be combined with together: locate the images alone")
        model = service.model_name(query.model)
        options = _options(request, query)
        thumbnail = query.thumbnail or query.format in schemas.FORMATS_WITH_IMAGES
        work = service.locate(model, uploads, options, exif=query.exif, thumbnail=thumbnail)
        return await _written(request, model, await _finish(request, work), query.format)


@router.post(
    "/v1/trip",
    summary="Where the photos of a trip were taken, between known places",
    response_model=schemas.TripAnswers,
    responses=errors(*WORK) | files(),
    openapi_extra=body_of("TripForm", "multipart/form-data"),
)
async def trip(request: Request) -> Response:
    """One answer per image, in order; an image that cannot be read or has no time has ``error`` instead."""
    service = _service(request)
    with service.hold_memory() as hold:
        tracks: list[Upload] = []
        query, uploads = await _form(request, hold, schemas.TripForm, tracks)
        model = service.model_name(query.model)
        settings = {name: getattr(query, name) for name in ("use_gps", "speed_kmh", "clock_offset_s")}
        thumbnail = query.thumbnail or query.format in schemas.FORMATS_WITH_IMAGES
        extras = {"exif": query.exif, "thumbnail": thumbnail}
        work = service.trip(model, uploads, tracks, _options(request, query), settings, **extras)
        data, notes = await _finish(request, work)
        if query.format == "json":
            return json_response({"object": "list", "model": model, "data": data, "notes": notes})
        return await _written(request, model, data, query.format)


@router.post(
    "/v1/explain",
    summary="What in a photo speaks for a place",
    response_model=schemas.ExplanationAnswer,
    responses=errors(*WORK),
    openapi_extra=body_of("ExplainForm", "multipart/form-data"),
)
async def explain(request: Request) -> Response:
    """What raises the score of the place, and how far the answer moves without each part of the photo."""
    service = _service(request)
    with service.hold_memory() as hold:
        query, uploads = await _form(request, hold, schemas.ExplainForm)
        if len(uploads) > 1:
            raise Problem(422, "invalid_value", "images: one image at a time is explained")
        model = service.model_name(query.model)
        places = {name: getattr(query, name) for name in ("place", "versus")}
        parsed: dict[str, Any] = {
            name: parse_coordinate(text, name) for name, text in places.items() if text is not None
        }
        options = replace(Options(1, *_areas(query)), grid=query.grid, **parsed)
        return json_response(await _finish(request, service.explain(model, uploads[0], options)))


def _areas(
    query: schemas.LocateForm | schemas.TripForm | schemas.TextRequest | schemas.ExplainForm,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The area of a query; 413 where it is too large."""
    areas = tuple(query.within), tuple(query.not_within)
    if sum(len(text) for texts in areas for text in texts) > _MAX_AREAS:
        raise Problem(413, "too_large", f"within, not_within: at most {_MAX_AREAS:,} characters together")
    return areas


def _options(request: Request, query: schemas.LocateForm | schemas.TripForm | schemas.TextRequest) -> Options:
    """Options of a query; 422 or 413 where they are too large."""
    most = _settings(request).max_top_k
    if query.top_k > most:
        raise Problem(422, "invalid_value", f"top_k: at most {most}")
    options = Options(query.top_k, *_areas(query), detail=query.detail)
    if isinstance(query, schemas.TextRequest):
        return options
    if isinstance(query, schemas.TripForm):
        return replace(options, decode=query.decode)
    names = ("text", "text_weight", "together", "decode")
    return replace(options, **{name: getattr(query, name) for name in names})


async def _written(request: Request, model: str, data: list[dict[str, Any]], format_: schemas.FormatName) -> Response:
    """Answers as JSON, or as a file."""
    if format_ == "json":
        return json_response({"object": "list", "model": model, "data": data})
    body = json_response({"format": format_, "records": data}).body
    return await _file(request, bytes(body))


async def _file(request: Request, body: bytes | bytearray) -> Response:
    content, media_type, suffix = await _finish(request, _service(request).export(body))
    headers = {"Content-Disposition": f'attachment; filename="answers{suffix}"', "Content-Length": str(len(content))}
    return StreamingResponse(_slices(content), 200, headers, media_type)


async def _slices(content: bytes | bytearray) -> AsyncIterator[bytes]:
    """Content in parts, each of which waits until the client has read the one before."""
    for start in range(0, len(content), _SLICE_BYTES):
        yield bytes(memoryview(content)[start : start + _SLICE_BYTES])


async def _form(
    request: Request, hold: MemoryHold, kind: type[_Form], tracks: list[Upload] | None = None
) -> tuple[_Form, list[Upload]]:
    """Options and images of a form; files in fields named tracks are added to ``tracks``, where these are allowed."""
    settings = _settings(request)
    form = await read_form(
        request,
        hold,
        settings.max_request_mb * 2**20,
        settings.read_timeout_s,
        max_files=settings.max_images,
        max_file_bytes=settings.max_file_mb * 2**20,
    )
    fields: dict[str, Any] = {}
    uploads: list[Upload] = []
    for name, value in form:
        if isinstance(value, Upload):
            if name == "tracks" and tracks is not None:
                tracks.append(Upload(value.name[:_MAX_NAME] or f"track #{len(tracks)}", value.data))
                continue
            if name != "images":
                raise Problem(422, "invalid_value", "send files in fields named images")
            uploads.append(Upload(value.name[:_MAX_NAME] or f"image #{len(uploads)}", value.data))
        elif name in _LISTS:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise Problem(422, "invalid_value", f"{name}: given twice")
        elif name == "images":
            raise Problem(422, "invalid_value", "images: send files, each with a file name")
        else:
            fields[name] = value
    if not uploads:
        raise Problem(422, "invalid_value", "images: at least one image")
    try:
        return kind.model_validate(fields), uploads
    except ValidationError as error:
        raise schemas.invalid_value(error) from error


@router.post(
    "/v1/text",
    summary="Where on Earth a text describes",
    response_model=schemas.Answers,
    responses=errors(*WORK) | files(),
    openapi_extra=body_of("TextRequest"),
)
async def text(request: Request) -> Response:
    """One answer per text, in order."""
    service = _service(request)
    with service.hold_memory() as hold:
        query = schemas.parse_json(await _body(request, hold), schemas.TextRequest, _MAX_JSON_VALUES)
        if len(query.texts) > _settings(request).max_texts:
            raise Problem(413, "too_many_texts", f"at most {_settings(request).max_texts} texts per request")
        model = service.model_name(query.model)
        work = service.locate_text(model, query.texts, _options(request, query))
        return await _written(request, model, await _finish(request, work), query.format)


@router.post(
    "/v1/embeddings",
    summary="Embeddings of images, coordinates and texts",
    response_model=schemas.EmbeddingsAnswer,
    responses=errors(*WORK),
    openapi_extra=body_of("EmbeddingsRequest"),
)
async def embeddings(request: Request) -> Response:
    """One embedding per input, in order, all in one space: the cosine of a photo and a place says how well they fit."""
    service = _service(request)
    with service.hold_memory() as hold:
        query = schemas.parse_json(await _body(request, hold), schemas.EmbeddingsRequest, _MAX_JSON_VALUES)
        texts = [query.input] if isinstance(query.input, str) else query.input
        if not texts:
            raise Problem(422, "invalid_value", "input: at least one")
        if len(texts) > _settings(request).max_texts:
            raise Problem(413, "too_many_inputs", f"at most {_settings(request).max_texts} inputs per request")
        model = service.model_name(query.model)
        dimensions = service.info(model)["dimensions"]
        if query.dimensions not in (None, dimensions):
            raise Problem(422, "invalid_value", f"dimensions: the embeddings of {model} have {dimensions}")
        inputs = [parse_embedding_input(given, number) for number, given in enumerate(texts)]
        found = await _finish(request, service.embed(model, inputs))
    is_base64 = query.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(one) if is_base64 else one}
        for index, one in enumerate(found)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return json_response({"object": "list", "data": data, "model": model, "usage": usage})


def _base64(embedding: list[float]) -> str:
    """An embedding as float32, little-endian, in base64, as embedding clients ask for."""
    return base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode("ascii")


@router.post(
    "/v1/export",
    summary="Answers as a file",
    response_class=Response,
    responses=errors(*WORK) | files(json={}),
    openapi_extra=body_of("ExportRequest"),
)
async def export(request: Request) -> Response:
    """The records that were sent, in another format."""
    with _service(request).hold_memory() as hold:
        return await _file(request, await _body(request, hold))


@router.get("/v1/models", response_model=schemas.ModelList)
async def models(request: Request) -> Response:
    """All models of this server; the first is that of requests that name none."""
    return json_response({"object": "list", "data": [_model(request, name) for name in _service(request).models]})


@router.get("/v1/models/{model:path}", response_model=schemas.Model, responses=errors(404))
async def model(request: Request, model: str) -> Response:
    """One model."""
    return json_response(_model(request, _service(request).model_name(model)))


def _model(request: Request, name: str) -> dict[str, Any]:
    edge = _service(request).info(name)["image_options"]["resize"]
    return {"id": name, "object": "model", "created": 0, "owned_by": "open-geoclip", "shortest_edge": edge}


@router.get("/v1/countries", response_model=list[schemas.Country])
async def countries(request: Request) -> Response:
    """The countries that ``within`` accepts, by name."""
    service = _service(request)
    return json_response(service.info(service.models[0])["countries"])


@router.get("/v1/page", response_model=schemas.PageSettings)
async def page(request: Request) -> Response:
    """Settings for the page."""
    settings = _settings(request)
    limits = {name: getattr(settings, name) for name in schemas.Limits.model_fields}
    tiles = {"tile_url": settings.tile_url, "tile_attribution": settings.tile_attribution}
    models = _service(request).models
    return json_response(
        {"models": models, **tiles, "limits": limits, "formats": schemas.FORMATS, "version": __version__}
    )


@router.get("/healthz")
async def healthz() -> Response:
    """Whether the server runs."""
    return json_response({"status": "ok"})


@router.get("/readyz", responses=errors(503))
async def readyz(request: Request) -> Response:
    """Whether its models can answer."""
    if not _service(request).ready:
        raise Problem(503, "not_ready", "a model is being loaded, or does not answer", {"Retry-After": "2"})
    return json_response({"status": "ok"})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(_service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
