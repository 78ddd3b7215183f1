"""What an explanation holds: where in a photo the evidence for a place lies.

:class:`Explanation` is the only declaration of it, like :class:`~open_geoclip.search.answer.Answer` of answers: JSON
Schema, API and page follow from it. Nothing heavy is imported here; :mod:`open_geoclip.search.explain` computes it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from open_geoclip.errors import SettingsError
from open_geoclip.schema import Range
from open_geoclip.search.answer import Kilometres, Latitude, Longitude, Probability

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64

__all__ = ["MAX_GRID", "WITHIN_KM", "Box", "CoveredRegion", "Explanation", "LatLon"]

WITHIN_KM = 200
"""Probabilities are those of this distance from the place."""

MAX_GRID = 16
"""The most parts per side that are covered."""

LatLon = tuple[Latitude, Longitude]
"""Degrees, WGS84."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in shares of the width and height of the upright photo."""


@dataclass(frozen=True)
class CoveredRegion:
    """A part of the photo, and what happens when the mean colour covers it."""

    box: Annotated[Box, "Left, top, right and bottom, in shares of the upright photo."]
    lat: Annotated[Latitude, "First candidate without this part."]
    lon: Annotated[Longitude, "First candidate without this part."]
    moved_km: Annotated[Kilometres, "How far the first candidate moves."]
    probability_lost: Annotated[
        float, "What the probability within 200 km of the place loses; negative where it gains."
    ]


@dataclass(frozen=True)
class Explanation:
    """Where in a photo the evidence for a place lies, by one model. An estimate, not evidence."""

    image: Annotated[str, "Name of the image."]
    model: Annotated[str, "Name and version of the weights."]
    gallery: Annotated[str, "Name, size and hash of the gallery, and the area that it was limited to."]
    version: Annotated[str, "Version of open-geoclip."]
    method: Annotated[str, "How the map was computed."]
    place: Annotated[LatLon, "The place that is explained."]
    place_name: Annotated[str | None, "Its description; null where the extra `places` is not installed."]
    score: Annotated[float, "Cosine of the embeddings of the image and of the place."]
    probability: Annotated[Probability, "Probability that the photo was taken within 200 km of the place."]
    versus: Annotated[LatLon | None, "The place that it is compared with."]
    versus_name: Annotated[str | None, "Its description."]
    versus_score: Annotated[float | None, "Cosine of the embeddings of the image and of that place."]
    crop: Annotated[Box, "The part of the upright photo that the model sees, in shares of it."]
    map: Annotated[
        tuple[tuple[Annotated[float, Range(0, 1)], ...], ...],
        "What raises the score, or the difference of the two scores, in the crop: rows from the top, 1 is the most.",
    ]
    regions: Annotated[tuple[CoveredRegion, ...], "Parts of the crop that were covered one at a time, row by row."] = ()
    warning: Annotated[
        str | None, "The `warning` of the answer, where the image is out of distribution; else null."
    ] = None
    sha256: Annotated[Mapping[str, str], "SHA-256 of the `image`, `weights` and `gallery`."] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        if not self.map or len({len(row) for row in self.map}) != 1 or not self.map[0]:
            raise SettingsError("map: one or more rows of one length, not empty")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    def array(self, width: int, height: int) -> "Float64[np.ndarray, 'height width']":
        """Return the map over the upright photo, interpolated; NaN where the model does not look.

        Args:
            width: of the array; any, such as that of a smaller copy of the photo.
            height: of the array.
        """
        import numpy as np

        left, top, right, bottom = self.crop
        x = ((np.arange(width) + 0.5) / width - left) / (right - left)
        y = ((np.arange(height) + 0.5) / height - top) / (bottom - top)
        values = np.asarray(self.map, np.float64)
        for axis, at in ((0, y), (1, x)):
            position = np.clip(at * values.shape[axis] - 0.5, 0, values.shape[axis] - 1)
            below = np.minimum(position.astype(np.int64), max(values.shape[axis] - 2, 0))
            above = np.minimum(below + 1, values.shape[axis] - 1)
            share = np.expand_dims(position - below, 1 - axis)
            values = values.take(below, axis) * (1 - share) + values.take(above, axis) * share
        outside = ((y < 0) | (y > 1))[:, None] | ((x < 0) | (x > 1))
        return np.where(outside, np.nan, values)
