"""Reliability: how often answers of the released weights were right, by the place of the answer.

The released weights have no calibration, but the places of their published answers tell much: an answer amid many
photos of the gallery was right far more often than one amid few. The coefficients are fitted by
``python -m research.reliability``; docs/reliability.md has the method and what was measured.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Float64

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, check_coordinates, unit_vectors
from open_geoclip.search.answer import PlaceReliability
from open_geoclip.search.gallery import Gallery
from open_geoclip.weights.folders import find_wheel_files, folder
from open_geoclip.weights.registry import GALLERY_FILE

__all__ = ["PhotoKind", "Reliability"]

PhotoKind = Literal["recognisable", "any"]
"""Photos chosen for recognisable places, as those of Im2GPS3k, or photos of any kind, as those of YFCC4k."""

_WITHIN_KM = (1, 25, 200, 750, 2500)
_LEVELS = (0.5, 0.9)
_FARTHEST_KM = np.pi * EARTH_RADIUS_KM


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often answers were right within some distances, by the number of gallery places around them.

    A continuation-ratio model (Agresti, "Analysis of ordinal categorical data", 2010, section 4.2): from 2500 km down
    to 1 km, the share of answers within a distance among those within the next larger one is a logistic regression on
    the counts, so shares increase with the distance at every place.

    Attributes:
        gallery: the places that are counted; a place with a weight counts as often as it stood in the source.
        radii_km: distances from an answer within which places are counted.
        coefficients: intercept and slopes of ``log(1 + count)``, for 1, 25, 200, 750 and 2500 km.
        shifts: of the intercepts, by kind of photo.
        highest: no share is above these, by kind of photo.
        measured_on: the answers that it was fitted on, in words.
    """

    gallery: Gallery
    radii_km: Sequence[float]
    coefficients: Sequence[Sequence[float]]
    shifts: Mapping[PhotoKind, Sequence[float]]
    highest: Mapping[PhotoKind, Sequence[float]]
    measured_on: str

    @classmethod
    def from_pretrained(cls, name: str = "geoclip") -> "Reliability":
        """Load what was measured of the released weights, whose gallery must be on this machine.

        Raises:
            WeightsError: nothing was measured of these weights, or their gallery is not the released one.
            MissingWeightsError: the gallery is not on this machine; the message says which command brings it.
        """
        if name != "geoclip":
            raise WeightsError(f"reliability was measured of the released weights, 'geoclip', not of {name!r}")
        gallery = Gallery.from_file((find_wheel_files(folder(name)) or {})[GALLERY_FILE])
        if (found := cls.find(_record()["weights_sha256"], gallery)) is None:
            raise WeightsError(f"{gallery} is not the gallery that the reliability of {name} was measured with")
        return found

    @classmethod
    def find(cls, weights_sha256: str, gallery: Gallery) -> "Reliability | None":
        """Return what was measured of some weights with a gallery; None where nothing was."""
        record = _record()
        if (weights_sha256, gallery.fingerprint) != (record["weights_sha256"], record["gallery_sha256"]):
            return None
        return cls(gallery, **record["model"])

    def within_km(
        self, coordinates: Float[np.ndarray, "n 2"], *, photos: PhotoKind = "recognisable"
    ) -> Float64[np.ndarray, "n 5"]:
        """Return the shares of answers at these places that were right within 1, 25, 200, 750 and 2500 km.

        Args:
            coordinates: first candidates, (lat, lon) in degrees.
            photos: the kind of photos that were located.

        Raises:
            CoordinateError: a coordinate is not on Earth.
            SettingsError: the kind of photos is unknown.
        """
        if photos not in get_args(PhotoKind):
            raise SettingsError(f"photos: one of {', '.join(get_args(PhotoKind))}, not {photos!r}")
        logits = self.logits(coordinates)
        # Shares of any photos are never above those of recognisable places.
        kinds: tuple[PhotoKind, ...] = ("recognisable", photos)
        shares = [np.minimum(self.chain(logits + np.asarray(self.shifts[kind])), self.highest[kind]) for kind in kinds]
        return np.minimum(*shares)

    def radius_km(
        self,
        coordinates: Float[np.ndarray, "n 2"],
        levels: Sequence[float] = _LEVELS,
        *,
        photos: PhotoKind = "recognisable",
    ) -> Float64[np.ndarray, "n k"]:
        """Return the radii around answers that held the truth with some probabilities; 1 km is the smallest.

        The inverse of :meth:`within_km`, interpolated over the logarithm of the distance.

        Args:
            coordinates: first candidates, (lat, lon) in degrees.
            levels: probabilities above 0 and below 1.
            photos: the kind of photos that were located.

        Raises:
            CoordinateError: a coordinate is not on Earth.
            SettingsError: a level is out of range, or the kind of photos is unknown.
        """
        return self.invert(self.within_km(coordinates, photos=photos), levels)

    def describe(self, coordinates: Float[np.ndarray, "n 2"]) -> list[PlaceReliability]:
        """Return what answers say of the places of their first candidates; errors are those of :meth:`within_km`."""
        kinds: tuple[PhotoKind, ...] = ("any", "recognisable")
        shares = np.stack([self.within_km(coordinates, photos=kind) for kind in kinds], axis=-1).round(4)
        radii = np.stack([self.radius_km(coordinates, photos=kind) for kind in reversed(kinds)], axis=-1).round()
        return [
            PlaceReliability(
                text=_sentence(within.tolist()),
                within_km=_ranges(map(str, _WITHIN_KM), within),
                radius_km=_ranges((f"{100 * level:.0f}" for level in _LEVELS), radius),
                measured_on=self.measured_on,
            )
            for within, radius in zip(shares, radii, strict=True)
        ]

    def logits(self, coordinates: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 5"]:
        """Return the logits of each distance among answers within the next larger one, of recognisable places."""
        weights = np.asarray(self.coefficients)
        return weights[:, 0] + self.log_counts(coordinates) @ weights[:, 1:].T

    def log_counts(self, coordinates: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n r"]:
        """Return ``log(1 + count)`` of the gallery's places within each of ``radii_km``."""
        points = unit_vectors(np.asarray(check_coordinates(np.asarray(coordinates)), np.float64))
        chords = 2 * np.sin(np.asarray(self.radii_km) / (2 * EARTH_RADIUS_KM))
        counts = [self._tree.query_ball_point(points, chord, return_length=True) for chord in chords]
        return np.log1p(np.stack(counts, axis=1))

    @staticmethod
    def chain(logits: Float[np.ndarray, "n 5"]) -> Float64[np.ndarray, "n 5"]:
        """Return shares within each distance: the product of those of it and of all larger distances."""
        return np.cumprod(1 / (1 + np.exp(-logits[:, ::-1])), axis=1)[:, ::-1]

    @staticmethod
    def invert(within: Float[np.ndarray, "n 5"], levels: Sequence[float]) -> Float64[np.ndarray, "n k"]:
        """Return the radii at which shares of :meth:`within_km` reach some levels; errors of :meth:`radius_km`."""
        wanted = np.asarray(levels, np.float64).reshape(-1)
        if not np.all((wanted > 0) & (wanted < 1)):
            raise SettingsError(f"levels: above 0 and below 1, not {levels}")
        log_km = np.log([*_WITHIN_KM, _FARTHEST_KM])
        radii = [np.exp(np.interp(wanted, [*row, 1.0], log_km)) for row in within]
        return np.array(radii).reshape(len(within), len(wanted))

    @cached_property
    def _tree(self) -> Any:
        from scipy.spatial import cKDTree

        copies = np.repeat(self.gallery.coordinates.astype(np.float64), self.gallery.weights.astype(int), axis=0)
        return cKDTree(unit_vectors(copies))


def _record() -> dict[str, Any]:
    return dict(json.loads(files("open_geoclip").joinpath("weights", "geoclip", "reliability.json").read_bytes()))


def _ranges(names: Any, values: Float[np.ndarray, "k 2"]) -> dict[str, tuple[float, float]]:
    return {name: (low, high) for name, (low, high) in zip(names, values.tolist(), strict=True)}


def _sentence(within: Sequence[Sequence[float]]) -> str:
    """Return the ranges at 25 and at 200 km in words."""
    near, far = (map(_odds, within[_WITHIN_KM.index(km)]) for km in (25, 200))
    return (
        "answers here were right within 25 km for {} photos of any kind and {} of recognisable places, "
        "within 200 km for {} and {}"
    ).format(*near, *far)


def _odds(share: float) -> str:
    if share < 0.01:
        return "fewer than 1 in 100"
    if share < 0.3:
        return f"1 in {1 / share:.0f}"
    return "19 in 20" if share >= 0.95 else f"{10 * share:.0f} in 10"
