"""What the tools answer, as types: clients get a JSON schema of each."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema

from open_geoclip.schema import record_schema
from open_geoclip.search.answer import Answer
from open_geoclip.verification import Findings

__all__ = [
    "DOUBT",
    "NOTE",
    "LocatedResult",
    "ModelsResult",
    "Named",
    "VectorsResult",
    "VerifiedResult",
    "WhereResult",
]

NOTE = "An estimate, not evidence."
DOUBT = "A verdict is a reason to look closer, not a proof: of many true places, one in twenty is unlikely by chance."


Record = Annotated[dict[str, Any], WithJsonSchema(record_schema("Answer", Answer))]
Verified = Annotated[dict[str, Any], WithJsonSchema(record_schema("Verification", Answer, Findings))]


class LocatedResult(BaseModel):
    """Answers in the order of what was asked."""

    note: str = Field(description="What the answers are and are not.")
    answers: list[Record]


class VerifiedResult(BaseModel):
    """Verdicts in the order of what was asked."""

    note: str = Field(description="What a verdict is and is not.")
    photos: list[Verified]


class Named(BaseModel):
    """What a coordinate is called."""

    lat: float
    lon: float
    country: str = Field(description="ISO 3166 code; empty at sea.")
    country_name: str
    place: str = Field(description="In words, such as '12 km south-west of Lyon, France'.")


class WhereResult(BaseModel):
    """Names in the order of the coordinates."""

    places: list[Named]


class Vector(BaseModel):
    """The vector of one input."""

    input: str = Field(description="What it is of: 'lat,lon', the image or the text.")
    vector: list[float] | None = Field(description="Of length 1; null when there is an error.")
    error: str | None = Field(None, description="Why the image could not be read.")


class VectorsResult(BaseModel):
    """Vectors of one space: the more alike two inputs are to the model, the nearer their product is to 1."""

    model: str
    dimensions: int
    vectors: list[Vector] = Field(description="Coordinates, then images, then texts, each in their order.")


class ModelsResult(BaseModel):
    """The weights that are known by a name."""

    in_use: str = Field(description="The model that this server answers with.")
    models: list[dict[str, Any]]
