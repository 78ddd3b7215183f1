"""What the tools answer, as types: clients get a JSON schema of each."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "DOUBT",
    "NOTE",
    "Candidate",
    "Located",
    "LocatedResult",
    "ModelsResult",
    "Named",
    "VectorsResult",
    "VerifiedResult",
    "WhereResult",
]

NOTE = "An estimate, not evidence."
DOUBT = "A verdict is a reason to look closer, not a proof: of many true places, one in twenty is unlikely by chance."


class Candidate(BaseModel):
    """A place where a picture may have been taken."""

    model_config = ConfigDict(extra="allow")

    lat: float = Field(description="Degrees north, WGS84.")
    lon: float = Field(description="Degrees east, WGS84.")
    score: float = Field(description="Cosine of picture and place.")
    probability: float = Field(
        description="From 0 to 1, of everything merged into this candidate. A chance of being right only where `sure` "
        "is true or false; where it is null it compares places and no more."
    )
    radius_km: float = Field(description="Nine tenths of that probability lie within it.")
    country: str | None = Field(None, description="ISO 3166 code; empty at sea; null where it is not known.")
    place: str | None = Field(None, description="In words, such as '12 km south-west of Lyon, France'.")


class Located(BaseModel):
    """What was found for one picture or text, or why nothing was."""

    model_config = ConfigDict(extra="allow")

    image: str | None = Field(None, description="The picture, as it was asked for.")
    text: str | None = Field(None, description="The words that were asked for.")
    error: str | None = Field(None, description="Why the picture could not be read; then there is nothing else.")
    model: str | None = Field(None, description="Name and version of the weights.")
    gallery: str | None = Field(None, description="The places that were chosen from, and the limits.")
    version: str | None = Field(None, description="Of open-geoclip.")
    candidates: list[Candidate] = Field(default_factory=list, description="The most likely first.")
    credible_radius_km: dict[str, float] = Field(
        default_factory=dict, description="Around the first candidate, holding 50 and 90 % of all probability."
    )
    within_km: dict[str, float] = Field(
        default_factory=dict, description="Probability that the first candidate is right within so many km."
    )
    countries: dict[str, float] | None = Field(None, description="Probability of each country, likeliest first.")
    sure: bool | None = Field(
        None,
        description="Whether the first candidate is right within 200 km with a probability of 0.8 or more; null where "
        "this was not measured.",
    )


class LocatedResult(BaseModel):
    """Answers in the order of what was asked."""

    note: str = Field(description="What the answers are and are not.")
    answers: list[Located]


class Verified(Located):
    """What was found for one photo, and how the place that it names fits."""

    exif: dict[str, Any] | None = Field(
        None,
        description="Where the file says it was taken, which took no part in the estimate; null where it does not.",
    )
    verdict: str | None = Field(
        None,
        description="consistent (no more surprising than true places are, which is no confirmation), unlikely (at most "
        "5 % of true places are as surprising), contradicts (at most 1 %), or cannot tell.",
    )
    reason: str | None = Field(None, description="What the verdict rests on, or why nothing can be told.")
    comparison: dict[str, Any] | None = Field(
        None,
        description="p_value (share of true places that are at least as surprising; null where not calibrated), "
        "hpd_level, within_km (probability around the place that the file names), distance_km (to the estimate).",
    )
    remarks: list[dict[str, str]] = Field(
        default_factory=list, description="What is odd about the metadata themselves; needs no model."
    )


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

    input: str = Field(description="What it is of: 'lat,lon', the picture or the text.")
    vector: list[float] | None = Field(description="Of length 1; null when there is an error.")
    error: str | None = Field(None, description="Why the picture could not be read.")


class VectorsResult(BaseModel):
    """Vectors of one space: the more alike two inputs are to the model, the nearer their product is to 1."""

    model: str
    dimensions: int
    vectors: list[Vector] = Field(description="Coordinates first, then pictures, then texts, each in their order.")


class ModelsResult(BaseModel):
    """The weights that are known by a name."""

    in_use: str = Field(description="The model that this server answers with.")
    models: list[dict[str, Any]]
