"""What an answer holds: candidates, radii, countries, and how sure they are.

:class:`Answer` and :class:`Candidate` are the only declaration of it: the JSON Schema, the description of the API, the
columns of tables and the types of the page are generated from them. Nothing heavy is imported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict, cast

from open_geoclip.errors import DataError, SettingsError
from open_geoclip.schema import Range, from_dict

__all__ = [
    "Anchor",
    "Answer",
    "Candidate",
    "Columns",
    "Heat",
    "LookAlike",
    "MultiPolygon",
    "PlaceReliability",
    "out_of_distribution_warning",
]

Latitude = Annotated[float, Range(-90, 90)]
Longitude = Annotated[float, Range(-180, 180)]
Kilometres = Annotated[float, Range(0)]
Probability = Annotated[float, Range(0, 1 + 1e-6)]  # sums of float32 may end a little beyond 1
_Position = tuple[Longitude, Latitude]


def _check_ring(ring: list[_Position], where: str) -> None:
    if len(ring) < 4 or ring[0] != ring[-1]:
        raise SettingsError(f"{where}: a ring has four positions or more, and the last one is the first")


def _check_polygon(polygon: list[Any], where: str) -> None:
    if not polygon:
        raise SettingsError(f"{where}: a polygon without a ring")


class MultiPolygon(TypedDict):
    """A GeoJSON geometry, cut at 180 degrees."""

    type: Literal["MultiPolygon"]
    coordinates: list[Annotated[list[Annotated[list[_Position], _check_ring]], _check_polygon]]


class Heat(TypedDict):
    """Where the probability lies: cells of equal area that hold 99 % of it."""

    cell_km: Annotated[Kilometres, "Side of a cell."]
    cells: Annotated[
        list[tuple[Latitude, Longitude, Probability]], "(lat, lon, probability) of each, the most probable first."
    ]


@dataclass(frozen=True)
class Columns:
    """Which keys of a field are columns of tables, and what they are called.

    Attributes:
        name: with ``{}`` for the key.
        keys: of the field.
    """

    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A place where a photo may have been taken."""

    lat: Annotated[Latitude, "Degrees north, WGS84."]
    lon: Annotated[Longitude, "Degrees east, WGS84."]
    score: Annotated[
        float, "Cosine of the embeddings of the image and of the place. Of several images it may exceed 1."
    ]
    probability: Annotated[
        Probability,
        "Probability of everything merged into this candidate. The chance of being right where `sure` is true or "
        "false; where it is null, the number compares places of one gallery and no more.",
    ]
    radius_km: Annotated[Kilometres, "Contains 90 % of that probability."]
    country: Annotated[str | None, "ISO 3166 code; empty at sea; null where the extra `places` is not installed."] = (
        None
    )
    place: Annotated[
        str | None, "Description, such as '12 km south-west of Lyon, France'; null where the extra is not installed."
    ] = None


@dataclass(frozen=True)
class PlaceReliability:
    """How often answers at places like the first candidate were right: measured, not derived from this image.

    Ranges are between photos of any kind and photos chosen for recognisable places.
    """

    text: Annotated[str, "In words."]
    within_km: Annotated[
        Mapping[str, tuple[Probability, Probability]],
        "Shares that were right within 1, 25, 200, 750 and 2500 km: of photos of any kind, of recognisable places.",
    ]
    radius_km: Annotated[
        Mapping[str, tuple[Kilometres, Kilometres]],
        "Radii that held the truth for 50 and 90 %: of photos of recognisable places, of any kind.",
    ]
    measured_on: Annotated[str, "The answers that were compared with the truth."]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        ranges = {
            name: {key: list(one) for key, one in getattr(self, name).items()} for name in ("within_km", "radius_km")
        }
        return vars(self) | ranges


@dataclass(frozen=True)
class Anchor:
    """A known place in time that an answer of a trip is estimated from."""

    lat: Annotated[Latitude, "Degrees north, WGS84."]
    lon: Annotated[Longitude, "Degrees east, WGS84."]
    time: Annotated[str, "ISO 8601, UTC."]
    accuracy_m: Annotated[float, Range(0), "Contains the true place with a probability of 68 %."]
    source: Annotated[str, "The track or the photo that it is from."]


@dataclass(frozen=True)
class LookAlike:
    """A photo of an index that looks like the image."""

    id: Annotated[str, "Name of the photo in its index."]
    similarity: Annotated[float, "Cosine of the projected features of the image and of the photo."]
    lat: Annotated[Latitude, "Degrees north, WGS84, of the photo."]
    lon: Annotated[Longitude, "Degrees east, WGS84, of the photo."]
    distance_km: Annotated[Kilometres, "Distance between the photo and the first candidate."]
    thumbnail: Annotated[str | None, "JPEG as a data URI, if the index has thumbnails."] = None


@dataclass(frozen=True)
class Answer:
    """The candidates for one image or text, and what they were made with. An estimate, not evidence."""

    image: Annotated[str, "Name of the image; empty for a text."] = ""
    model: Annotated[str, "Name and version of the weights."] = ""
    gallery: Annotated[str, "Name, size and hash of the gallery, and the area that it was limited to."] = ""
    version: Annotated[str, "Version of open-geoclip."] = ""
    candidates: Annotated[
        tuple[Candidate, ...], "The best first, by what the decoding optimises; none where there is an error."
    ] = ()
    error: Annotated[str | None, "Why the image could not be read."] = None
    text: Annotated[str | None, "The text that was located, alone or with the image."] = None
    credible_radius_km: Annotated[
        Mapping[str, Kilometres],
        "Radius around the first candidate that contains 50 and 90 % of the probability.",
        Columns("credible_radius_{}_km", ("50", "90")),
    ] = field(default_factory=dict)
    within_km: Annotated[
        Mapping[str, Probability],
        "Probability that the first candidate is right within 1, 25, 200, 750 and 2500 km.",
        Columns("within_{}_km", ("200",)),
    ] = field(default_factory=dict)
    countries: Annotated[
        Mapping[str, Probability] | None,
        "Probability of each country, most probable first; null where the extra `places` is not installed.",
    ] = None
    sure: Annotated[
        bool | None,
        "Whether the first candidate is right within 200 km with the probability that the calibration asks for (0.8 or "
        "more), and the image is in distribution. Null where the model is not calibrated for the query: limits, "
        "several images, ten crops, another gallery or prior.",
    ] = None
    in_distribution: Annotated[
        bool | None,
        "Whether the image is like those that the model was trained and calibrated on. Where it is not, candidates and "
        "probabilities mean nothing. Null where that is not known.",
    ] = None
    warning: Annotated[
        str | None,
        "That the candidates mean nothing, because the image is out of distribution, and what to do instead. Absent "
        "where there is nothing to say.",
    ] = None
    reliability: Annotated[
        PlaceReliability | None,
        "How often answers at such places were right. Of the released weights with their gallery, for one image "
        "without limits or text; absent for other queries and models, and where the model is calibrated.",
    ] = None
    look_alikes: Annotated[
        tuple[LookAlike, ...],
        "Photos with known places that look like the image, most similar first; absent without `--index`. The image "
        "itself, its duplicates and their groups are left out.",
    ] = ()
    sha256: Annotated[
        Mapping[str, str],
        "SHA-256 of the `image` (the bytes of its file), of the `weights` (all tensors and the settings) and of the "
        "`gallery` (coordinates and weights), where they are known.",
        Columns("{}_sha256", ("image", "weights", "gallery")),
    ] = field(default_factory=dict)
    time: Annotated[
        str | None, "When the photo of a trip was taken: ISO 8601, UTC, its clock corrected. Where there are anchors."
    ] = None
    anchors: Annotated[
        tuple[Anchor, ...],
        "The known places before and after a photo of a trip. The answer is estimated from these, the speed limit and "
        "the picture; it is no measurement.",
    ] = ()
    regions: Annotated[
        Mapping[str, MultiPolygon] | None,
        "Smallest regions that contain 50 and 90 % of the probability; with `detail`.",
    ] = None
    heat: Annotated[Heat | None, "Where the probability lies; with `detail`."] = None

    @property
    def name(self) -> str:
        """The name of the image, or the text where there is no image."""
        return self.image or self.text or ""

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON-ready values; ``{"image", "error"}`` alone where the image could not be read."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        values = {"warning": self.warning, "image": self.image, "text": self.text, **vars(self)}
        values["candidates"] = [dict(vars(candidate)) for candidate in self.candidates]
        values["anchors"] = [dict(vars(anchor)) for anchor in self.anchors]
        values["look_alikes"] = [
            {key: value for key, value in vars(one).items() if value is not None} for one in self.look_alikes
        ]
        if self.reliability is not None:
            values["reliability"] = self.reliability.to_dict()
        return {key: value for key, value in values.items() if value or key not in _LEFT_OUT}

    def _repr_html_(self) -> str:
        """Return what Jupyter shows: the photo if it is at hand, a map, the candidates."""
        from open_geoclip.export.notebook import answer_html

        return answer_html(self)

    @classmethod
    def from_dict(cls, values: object) -> "Answer":
        """Read an answer that :meth:`to_dict` wrote. Every value is checked: anyone may have written it.

        Args:
            values: what was read from JSON.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it must be; the message names it.
        """
        failed = isinstance(values, Mapping) and "error" in values
        required = ("image",) if failed else ("model", "gallery", "version", "candidates")
        answer = from_dict(cls, values, "answer", required=required, error=DataError)
        if failed and len(answer.to_dict()) != len(cast(Mapping[str, Any], values)):
            raise DataError("answer: one with an error has an image and no other keys")
        if not (failed or answer.name):
            raise DataError("answer: it has neither image nor text")
        return answer


def out_of_distribution_warning(model: str) -> str:
    """Return what an answer of a model says first when the image is out of distribution.

    Args:
        model: name and version of the weights.
    """
    if model.split(" ")[0] != "earth":
        return f"This image is unlike those that {model} was trained and calibrated on: its candidates mean nothing."
    return (
        "The model earth is for views of the Earth from orbit. This image is unlike them: its candidates mean nothing. "
        "To locate photos taken on the ground: geoclip pull geoclip; geoclip locate --model geoclip PHOTO..."
    )


_LEFT_OUT = {  # when empty
    "look_alikes",
    *("warning", "image", "text", "error", "reliability", "sha256", "time", "anchors", "regions", "heat"),
}
