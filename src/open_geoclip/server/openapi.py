"""The OpenAPI description: bodies that routes read themselves, to bound them while they arrive; files; errors."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from open_geoclip.server import schemas

__all__ = ["COMMON", "WORK", "body_of", "errors", "files", "openapi"]

_BODIES: list[type[BaseModel]] = [
    schemas.LocateForm,
    schemas.TripForm,
    schemas.ExplainForm,
    schemas.TextRequest,
    schemas.EmbeddingsRequest,
    schemas.ExportRequest,
]

COMMON = (400, 401, 403, 405)
"""Error statuses of any route."""

WORK = (404, 408, 413, 415, 422, 429, 499, 503, 504)
"""Further error statuses of a route that takes a body."""

_ERRORS = {
    400: "The request is damaged, or its Host is not served here.",
    401: "A token is needed.",
    403: "Pages of other origins may not use the API.",
    404: "There is no such model.",
    405: "This path has another method; Allow says which.",
    408: "The body took too long to arrive.",
    413: "Too large, or too many.",
    415: "Another content type is needed.",
    422: "A field is wrong; the message says which, and why.",
    429: "Too many requests are waiting; try again after Retry-After seconds.",
    499: "The client went away; this appears in the log and in /metrics only.",
    503: "The model cannot answer at the moment.",
    504: "It took too long.",
}

_TRIANGLE = '{"type": "Polygon", "coordinates": [[[0, 0], [60, 0], [0, 60], [0, 0]]]}'
_RECORD = {
    "image": "rome.jpg",
    "model": "earth",
    "gallery": "places",
    "version": "1",
    "candidates": [{"lat": 41.9, "lon": 12.5, "score": 0.4, "probability": 0.8, "radius_km": 40.0}],
    "credible_radius_km": {"50": 60.0, "90": 300.0},
    "within_km": {"1": 0.0, "25": 0.2, "200": 0.8, "750": 0.95, "2500": 1.0},
    "countries": {"IT": 0.98},
    "sure": True,
}
_EXAMPLES: dict[str, dict[str, Any]] = {
    "LocateForm": {
        "one photo": {"images": ["(the file)"], "top_k": 3},
        "photos within a country, with the places in their metadata": {
            "images": ["(a file)", "(another)"],
            "within": ["Italy"],
            "exif": True,
        },
        "several photos of one place, as a map": {
            "images": ["(a file)", "(another)"],
            "together": True,
            "detail": True,
            "format": "kml",
        },
    },
    "ExplainForm": {
        "the first candidate": {"images": ["(the file)"]},
        "one place against another": {
            "images": ["(the file)"],
            "place": "41.9,12.5",
            "versus": "43.3,142.5",
            "grid": 0,
        },
    },
    "TripForm": {
        "photos and a track": {"images": ["(a file)", "(another)"], "tracks": ["(walk.gpx)"]},
        "photos, some of which have a place": {"images": ["(a file)", "(another)"], "use_gps": True, "exif": True},
    },
    "TextRequest": {
        "one text": {"texts": ["a hot desert"]},
        "within an area": {"texts": ["rain forest"], "within": ["-20,-80,10,-40", _TRIANGLE], "not_within": ["Brazil"]},
    },
    "EmbeddingsRequest": {
        "two coordinates and a text": {"model": "earth", "input": ["48.8584,2.2945", "-33.86,151.2", "a hot desert"]},
        "as base64": {"model": "earth", "input": "48.8584,2.2945", "encoding_format": "base64"},
    },
    "ExportRequest": {"an answer as a map": {"format": "geojson", "records": [_RECORD]}},
}


def body_of(name: str, media_type: str = "application/json") -> dict[str, Any]:
    """The description of a body with a schema of that name, and examples."""
    examples = {summary: {"summary": summary, "value": value} for summary, value in _EXAMPLES[name].items()}
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{name}"}, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def files(**more: Any) -> dict[int | str, dict[str, Any]]:
    """The description of answers in other formats than JSON, and in JSON where that has none."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    kinds = (
        "text/csv; charset=utf-8",
        "application/vnd.google-earth.kml+xml",
        "application/vnd.google-earth.kmz",
        "application/vnd.apache.parquet",
        "application/geopackage+sqlite3",
        "text/html; charset=utf-8",
    )
    content: dict[str, Any] = {**dict.fromkeys(kinds, binary), "application/geo+json": {"schema": {"type": "object"}}}
    content |= {f"application/{name}": description for name, description in more.items()}
    return {200: {"description": "Answers, as asked for by format.", "content": content}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The descriptions of errors, with their headers."""
    described: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        described[status] = {"model": schemas.ErrorAnswer, "description": _ERRORS[status]}
        if status == 429:
            described[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return described


def openapi(app: FastAPI) -> dict[str, Any]:
    """The whole description, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, bodies = models_json_schema(
            [(body, "validation") for body in _BODIES], ref_template="#/components/schemas/{model}"
        )
        schema.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
        app.openapi_schema = schema
    return app.openapi_schema
