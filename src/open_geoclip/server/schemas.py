"""Bodies of requests and answers. They check what comes in, and are what OpenAPI tells of what goes out."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "FORMATS",
    "WITH_PICTURES",
    "Answers",
    "Country",
    "EmbeddingsAnswer",
    "EmbeddingsRequest",
    "ErrorAnswer",
    "ExportRequest",
    "FormatName",
    "LocateForm",
    "ModelList",
    "PageSettings",
    "TextRequest",
]

FORMATS = ("json", "csv", "geojson", "kml", "kmz", "parquet", "html")
"""What answers can be written as; those of :data:`open_geoclip.export.formats.FORMATS`, which is slow to import."""

WITH_PICTURES = ("kmz", "html")
"""Formats that show the pictures, small."""

FormatName = Literal["json", "csv", "geojson", "kml", "kmz", "parquet", "html"]
Decode = Literal["mass", "distance", "geoscore", "max"]
Limit = Annotated[str, StringConstraints(min_length=1, max_length=2**20)]
Words = Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Asked(_Strict):
    """What pictures and texts have in common."""

    model: str | None = Field(None, description="One of /v1/models; the first of them when not given.")
    top_k: int = Field(5, ge=1, description="Candidates an answer.")
    within: list[Limit] = Field(
        [],
        description="Where it can only have been: a country (France), a box south,west,north,east (35,-10,60,30), a "
        "circle lat,lon,radius (48.86,2.29,50km), or GeoJSON with polygons. Several are united.",
    )
    not_within: list[Limit] = Field([], description="Where it cannot have been, written as for within.")
    detail: bool = Field(False, description="With credible regions and heat.")
    format: FormatName = Field("json", description="What the answer is written as: JSON, or a file.")


def _with_images(schema: dict[str, Any]) -> None:
    """Tell of the files, which do not go through the model."""
    files = {"type": "array", "minItems": 1, "maxItems": 100, "items": {"type": "string", "format": "binary"}}
    schema["properties"] = {"images": files | {"description": "Files of pictures."}, **schema["properties"]}
    schema["required"] = ["images"]


class LocateForm(_Asked):
    """Pictures to locate, and how."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_with_images)

    text: Words | None = Field(None, description="What is known beside the pictures, in words.")
    text_weight: float = Field(0.5, ge=0, le=1, description="How much the text counts against the picture.")
    together: bool = Field(False, description="All pictures show one place: one answer for all.")
    decode: Decode | None = Field(None, description="What the first candidate is best for.")
    exif: bool = Field(
        False,
        description="With where the photo itself says it was taken: its metadata, which the estimate never sees.",
    )


class TextRequest(_Asked):
    """Texts to locate."""

    texts: list[Words] = Field(min_length=1)


class EmbeddingsRequest(BaseModel):
    """As embedding clients send it; other fields of theirs are not looked at."""

    model: str
    input: str | list[str] = Field(
        description="Pictures as data URIs, coordinates as lat,lon in degrees, or texts; mixed as you like."
    )
    encoding_format: Literal["float", "base64"] = "float"


class ExportRequest(_Strict):
    """Records to write as a file: what /v1/locate and /v1/text answered."""

    format: FormatName
    records: list[dict[str, Any]]


class _Candidate(BaseModel):
    lat: float
    lon: float
    score: float
    probability: float
    radius_km: float
    country: str | None = None
    place: str | None = None


class _Exif(BaseModel):
    """The place that a photo's metadata name, as written."""

    model_config = ConfigDict(extra="allow")

    lat: float
    lon: float
    source: Literal["exif", "xmp"]
    accuracy_m: float | None
    time: str | None


class _Record(BaseModel):
    """An answer, or the reason why there is none."""

    model_config = ConfigDict(extra="allow")

    image: str | None = None
    text: str | None = None
    error: str | None = None
    model: str | None = None
    gallery: str | None = None
    version: str | None = None
    candidates: list[_Candidate] | None = None
    credible_radius_km: dict[str, float] | None = None
    within_km: dict[str, float] | None = None
    countries: dict[str, float] | None = None
    sure: bool | None = None
    sha256: dict[str, str] | None = None
    exif: _Exif | None = Field(
        None,
        description="In each record where it was asked for; null where the photo names no place. Of several pictures "
        "as one place, that of the first that names one.",
    )


class Answers(BaseModel):
    """Answers, in the order of what was sent."""

    object: Literal["list"] = "list"
    model: str
    data: list[_Record]


class _Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Of length 1; float32 in little-endian as base64 if asked for.")


class _Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[_Embedding]
    model: str
    usage: _Usage


class _Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The models that this server has."""

    object: Literal["list"] = "list"
    data: list[_Model]


class Country(BaseModel):
    """A country, as ``within`` takes it and candidates name it."""

    code: str
    name: str


class _Limits(BaseModel):
    max_file_mb: int
    max_request_mb: int
    max_pixels: int
    max_images: int
    max_texts: int
    max_top_k: int


class PageSettings(BaseModel):
    """What the page has to know."""

    models: list[str]
    tile_url: str | None
    tile_attribution: str | None
    limits: _Limits
    formats: list[str]
    version: str


class _Error(BaseModel):
    message: str
    type: str
    code: str


class ErrorAnswer(BaseModel):
    """Why there is no answer, and what to do."""

    error: _Error
