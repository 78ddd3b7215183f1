"""Bodies of requests and answers: requests are validated by them, answers described in OpenAPI."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, RootModel, StringConstraints, ValidationError, WithJsonSchema

from open_geoclip.metadata.read import PhotoPlace
from open_geoclip.schema import json_schema, record_schema
from open_geoclip.search.answer import Answer
from open_geoclip.search.explanation import MAX_GRID, Explanation
from open_geoclip.server.jobs import DecodeMethod
from open_geoclip.server.problems import Problem

__all__ = [
    "FORMATS",
    "FORMATS_WITH_IMAGES",
    "Answers",
    "Country",
    "EmbeddingsAnswer",
    "EmbeddingsRequest",
    "ErrorAnswer",
    "ExplainForm",
    "ExplanationAnswer",
    "ExportRequest",
    "FormatName",
    "Limits",
    "LocateForm",
    "Model",
    "ModelList",
    "PageSettings",
    "TextRequest",
    "TripAnswers",
    "TripForm",
    "invalid_value",
    "parse_json",
]

_Body = TypeVar("_Body", bound=BaseModel)

FormatName = Literal["json", "csv", "csv-bom", "geojson", "kml", "kmz", "parquet", "gpkg", "html"]
"""The keys of :data:`open_geoclip.export.formats.FORMATS`, which is slow to import."""

FORMATS: tuple[FormatName, ...] = get_args(FormatName)
"""All of them."""

FORMATS_WITH_IMAGES = ("kmz", "html")
"""Formats that contain thumbnails."""

AreaText = Annotated[str, StringConstraints(min_length=1, max_length=2**20)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Search(_Strict):
    """What requests that search the gallery have in common."""

    model: str | None = Field(None, description="One of /v1/models; the first of them when not given.")
    within: list[AreaText] = Field(
        [],
        max_length=100,
        description="The area that contains the place: a country (France), a box south,west,north,east (35,-10,60,30), "
        "a circle lat,lon,radius (48.86,2.29,50km), or GeoJSON with polygons. Several are united.",
    )
    not_within: list[AreaText] = Field(
        [], max_length=100, description="Areas that do not contain the place, written as for within."
    )


class _Query(_Search):
    """What requests with images and with texts have in common."""

    top_k: int = Field(5, ge=1, description="Candidates per answer.")
    detail: bool = Field(False, description="Include credible regions and heat.")
    format: FormatName = Field("json", description="JSON, or the format of a file.")


def _with_images(schema: dict[str, Any]) -> None:
    """Describe the files, which are not part of the model."""
    files = {"type": "array", "minItems": 1, "maxItems": 100, "items": {"type": "string", "format": "binary"}}
    schema["properties"] = {"images": files | {"description": "Image files."}, **schema["properties"]}
    schema["required"] = ["images"]


class LocateForm(_Query):
    """Options of a request with images."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_with_images)

    text: Text | None = Field(None, description="What is known about the images, in words.")
    text_weight: float = Field(0.5, ge=0, le=1, description="Weight of the text, from 0 (images alone) to 1.")
    together: bool = Field(False, description="All images show one place: one answer for all.")
    decode: DecodeMethod | None = Field(None, description="What the first candidate optimises.")
    exif: bool = Field(
        False,
        description="Include the place in the metadata of each photo, which takes no part in the estimate.",
    )
    thumbnail: bool = Field(False, description="Include a small JPEG of each image, for browsers that cannot show it.")


def _with_tracks(schema: dict[str, Any]) -> None:
    _with_images(schema)
    files = {"type": "array", "maxItems": 100, "items": {"type": "string", "format": "binary"}}
    tracks = "GPX, Google Timeline or Takeout (JSON), or tables of time, lat, lon and accuracy in metres."
    schema["properties"]["tracks"] = files | {"description": tracks}


class TripForm(_Query):
    """Options of a request with the images of one trip."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_with_tracks)

    use_gps: bool = Field(False, description="Images that have a place by GPS are known places for the others.")
    speed_kmh: float = Field(900, ge=0, le=1e6, description="The highest speed of travel.")
    clock_offset_s: float | None = Field(
        None,
        ge=-1e9,
        le=1e9,
        description="Seconds that are added to the times of all photos; when not given, as photos with GPS time say.",
    )
    decode: DecodeMethod | None = Field(None, description="What the first candidate optimises.")
    exif: bool = Field(False, description="Include the place in the metadata of each photo.")
    thumbnail: bool = Field(False, description="Include a small JPEG of each image.")


def _with_one_image(schema: dict[str, Any]) -> None:
    _with_images(schema)
    schema["properties"]["images"] |= {"maxItems": 1, "description": "One image file."}


class ExplainForm(_Search):
    """Options of a request that explains an image."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_with_one_image)

    place: str | None = Field(
        None, max_length=100, description="The place, lat,lon in degrees; the first candidate when not given."
    )
    versus: str | None = Field(None, max_length=100, description="Explain the place against this one, lat,lon.")
    grid: int = Field(7, ge=0, le=MAX_GRID, description="Parts per side that are covered, one at a time; 0: none.")


class TextRequest(_Query):
    """Texts to locate."""

    texts: list[Text] = Field(min_length=1)


class EmbeddingsRequest(BaseModel):
    """As embedding clients send it; other fields of theirs are ignored."""

    model: str
    input: str | list[str] = Field(
        description="Images as data URIs, coordinates as lat,lon in degrees, or texts, in any combination."
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, description="Must be the model's own number of dimensions, if it is given.")


class ExportRequest(_Strict):
    """Records of /v1/locate and /v1/text to write as a file."""

    format: FormatName
    records: list[dict[str, Any]]


def parse_json(data: bytes | bytearray, kind: type[_Body], max_values: int = 5_000_000) -> _Body:
    """A body of JSON; 413 if it has more values than ``max_values``, which bounds memory, 422 if it does not fit."""
    if sum(map(data.count, (b",", b"[", b"{"))) > max_values:
        raise Problem(413, "too_large", f"the body has more than {max_values:,} values")
    try:
        return kind.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise invalid_value(error) from error


def invalid_value(error: ValidationError) -> Problem:
    """Which field is wrong and why, without its value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "the body"
    return Problem(422, "invalid_value", f"{where}: {first['msg']}")


@dataclass(frozen=True)
class _Metadata:
    """What a record has beside its answer."""

    exif: Annotated[
        PhotoPlace | None,
        "In each record where it was requested; null where the photo has no place. Of several images as one place, "
        "that of the first that has one.",
    ]
    thumbnail: Annotated[str | None, "Where it was requested: a JPEG as a data URI, at most 320 pixels a side."] = None


class Answers(BaseModel):
    """Answers, in the order of what was sent."""

    object: Literal["list"] = "list"
    model: str
    data: list[Annotated[dict[str, Any], WithJsonSchema(record_schema("Record", Answer, _Metadata))]]


class ExplanationAnswer(RootModel[Annotated[dict[str, Any], WithJsonSchema(json_schema(Explanation))]]):
    """Where in a photo the evidence for a place lies."""


class TripAnswers(Answers):
    """Answers, in the order of the images."""

    notes: list[str] = Field(description="How the clocks of cameras were found, in words.")


class _Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(
        description="Unit length; float32, little-endian, in base64 if that was asked for."
    )


class _Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Embeddings, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[_Embedding]
    model: str
    usage: _Usage


class Model(BaseModel):
    """A model that this server has."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    shortest_edge: int = Field(description="Images are resized to this; larger ones give the model nothing more.")


class ModelList(BaseModel):
    """All models of this server."""

    object: Literal["list"] = "list"
    data: list[Model]


class Country(BaseModel):
    """A country, as ``within`` takes it and candidates name it."""

    code: str
    name: str
    spellings: list[str] = Field(description="All that ``within`` may call it: codes and names, whatever their case.")


class Limits(BaseModel):
    """What the server accepts; see :class:`~open_geoclip.server.settings.ServerSettings`."""

    max_file_mb: int
    max_request_mb: int
    max_pixels: int
    max_images: int
    max_texts: int
    max_top_k: int


class PageSettings(BaseModel):
    """Settings for the page."""

    models: list[str]
    tile_url: str | None
    tile_attribution: str | None
    limits: Limits
    formats: list[str]
    version: str


class _Error(BaseModel):
    message: str
    type: str
    code: str


class ErrorAnswer(BaseModel):
    """Why there is no answer, and what to do."""

    error: _Error
