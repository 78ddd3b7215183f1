"""What is told about a picture or text: candidates, radii, countries, and how sure they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from open_geoclip.errors import MissingExtraError
from open_geoclip.geo.areas import Allowed
from open_geoclip.search.calibration import SURE_KM, SURE_PROBABILITY
from open_geoclip.search.decode import DecodeMethod
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import Prior
from open_geoclip.search.regions import drawn

__all__ = ["Answer", "AnswerSettings", "Candidate", "is_strange", "told"]

_RADII_KM = (1, 25, 200, 750, 2500)
_SHARES = (0.5, 0.9)


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made of probabilities.

    Attributes:
        decode: what the best answer is best for; see :meth:`open_geoclip.search.posterior.Posterior.decode`. When not
            given, ``mass`` for a calibrated model and between places; for other weights ``max``, the gallery's best
            place, all its copies counted.
        merge_km: candidates are further apart than this, and each has the mass of what is nearer to it. When not given,
            25 km, or three times the distance between places in an even gallery that is coarser.
        radius_km: of the decoding ``mass``; when not given, that of merging.
        prior: what is known before a picture is seen; see :func:`open_geoclip.search.prior.log_prior`.
    """

    decode: DecodeMethod | None = None
    merge_km: float | None = None
    radius_km: float | None = None
    prior: Prior = "gallery"


@dataclass(frozen=True)
class Candidate:
    """A place where a photo may have been taken.

    Attributes:
        lat: degrees north.
        lon: degrees east.
        score: cosine of the picture's and the place's vector, from -1 to 1.
        probability: of all ground that was merged into this candidate. The chance of being right when the model is
            calibrated (``Answer.sure`` is not None); otherwise it only compares places of one gallery.
        radius_km: within which nine tenths of that probability lie.
        country: its code, '' on the open sea; None where the extra ``places`` is not installed. See
            :class:`open_geoclip.geo.geocode.Places`.
        place: for people, such as "12 km south-west of Lyon, France"; None where the extra is not installed.
    """

    lat: float
    lon: float
    score: float
    probability: float
    radius_km: float
    country: str | None = None
    place: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The candidate as JSON-ready values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Answer:
    """What was found for one picture or text, and by what. An estimate, not evidence.

    Attributes:
        image: the picture's name; empty for a text alone.
        model: the weights' name and version.
        gallery: the gallery's name, size and fingerprint.
        version: of this package.
        candidates: best first; empty when there is an error.
        error: why the picture could not be read, or None.
        text: what was asked for in words, alone or beside the picture, or None.
        credible_radius_km: around the best candidate, holding 50 and 90 % of all probability.
        within_km: probability that the best candidate is right within 1, 25, 200, 750 and 2500 km.
        countries: probability of each country, the likeliest first; None where the extra ``places`` is not installed.
        sure: right within 200 km with a probability of 0.8 or more, and the picture is like those that this was
            measured on; None when the model is not calibrated, or was not for what was asked: limits, several
            pictures, ten crops, another gallery or prior.
        regions: the smallest regions that hold 50 and 90 % of all probability, as GeoJSON MultiPolygons cut at 180
            degrees; None where they were not asked for (``detail``).
        heat: where the probability lies, ``{"cell_km", "cells": [[lat, lon, probability], ...]}``: cells of one area,
            the likeliest first, that hold 99 %; None where it was not asked for.
        sha256: in full, of the ``weights`` (all tensors and the settings; not of a model of your own) and of the
            ``gallery`` (coordinates and weights), to tell that two answers were made by the same.
    """

    image: str
    model: str
    gallery: str
    version: str
    candidates: tuple[Candidate, ...] = ()
    error: str | None = None
    text: str | None = None
    credible_radius_km: Mapping[str, float] = field(default_factory=dict)
    within_km: Mapping[str, float] = field(default_factory=dict)
    countries: Mapping[str, float] | None = None
    sure: bool | None = None
    regions: Mapping[str, Any] | None = None
    heat: Mapping[str, Any] | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_strange(self) -> bool:
        """Whether it is unsure for its picture alone, which is unlike those that the model was calibrated on.

        Its probabilities may be high all the same; they mean nothing then.
        """
        return is_strange(self.sure, self.within_km)

    @property
    def name(self) -> str:
        """The picture's name, or the text when there is no picture."""
        return self.image or self.text or ""

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready values; ``{"image", "error"}`` alone when the picture could not be read."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        asked = {"image": self.image, "text": self.text}
        return {
            **{kind: asked[kind] for kind in asked if asked[kind]},
            "model": self.model,
            "gallery": self.gallery,
            "version": self.version,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "credible_radius_km": dict(self.credible_radius_km),
            "within_km": dict(self.within_km),
            "countries": None if self.countries is None else dict(self.countries),
            "sure": self.sure,
            **({"sha256": dict(self.sha256)} if self.sha256 else {}),
            **({} if self.regions is None else {"regions": dict(self.regions)}),
            **({} if self.heat is None else {"heat": dict(self.heat)}),
        }

    @classmethod
    def from_dict(cls, values: object) -> "Answer":
        """An answer that :meth:`to_dict` wrote, every value of it checked.

        Args:
            values: what was read from JSON; nothing about it is taken for granted.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it must be; the message names it.
        """
        from open_geoclip.search.answer_schema import checked_answer

        about = checked_answer(values)
        return cls(**{**about, "candidates": tuple(Candidate(**one) for one in about["candidates"])})


def is_strange(sure: bool | None, within_km: Mapping[str, float]) -> bool:
    """See :attr:`Answer.is_strange`; of an answer as it stands in JSON."""
    return sure is False and within_km.get(f"{SURE_KM:g}", 0.0) >= SURE_PROBABILITY


def told(
    posterior: Posterior,
    settings: AnswerSettings,
    top_k: int,
    *,
    merge_km: float,
    scores: Callable[[Float64[np.ndarray, "n k 2"]], Float[np.ndarray, "n k"]],
    labels: np.ndarray | None,
    allowed: Allowed | None = None,
    detail: bool = False,
) -> list[dict[str, Any]]:
    """What each answer says, beside its name.

    Args:
        posterior: of the pictures.
        settings: how answers are made of it.
        top_k: candidates a picture.
        merge_km: how far candidates are apart.
        scores: gives the cosines of pictures with their own candidates, which need not be places of the gallery.
        labels: the country of each place of the posterior's ground, if they are known.
        allowed: which places an answer may be. One between places that is not becomes the nearest place of the ground.
        detail: whether it says its regions and heat too.

    Raises:
        MissingExtraError: detail is asked for, and the extra ``places`` is not installed.
    """
    found = posterior.candidates(
        top_k, merge_km=merge_km, method=settings.decode or "mass", radius_km=settings.radius_km
    )
    coordinates = found.coordinates
    if allowed is not None:
        known = np.isfinite(coordinates).all(axis=-1)
        places = coordinates[known]
        outside = ~allowed(places)
        if outside.any():
            places[outside] = posterior.cells.coordinates[posterior.cells.nearest(places[outside])]
            coordinates[known] = places
    best = coordinates[:, 0]
    profile = posterior.profile(best)
    within, radii = profile.within(_RADII_KM), profile.radius_km(_SHARES)
    cosines = scores(coordinates)
    names = iter(_named(coordinates[found.mass > 0]))
    countries = [None] * len(best) if labels is None else posterior.label_probabilities(labels)
    sure = posterior.is_sure(profile)
    return [
        {
            "candidates": tuple(
                Candidate(round(lat, 6), round(lon, 6), float(score), float(mass), round(float(km), 3), *next(names))
                for (lat, lon), score, mass, km in zip(
                    coordinates[n].tolist(), cosines[n], found.mass[n], found.radius_km[n], strict=True
                )
                if mass > 0
            ),
            "credible_radius_km": {
                f"{100 * share:.0f}": round(km, 3) for share, km in zip(_SHARES, radii[n].tolist(), strict=True)
            },
            "within_km": {str(km): share for km, share in zip(_RADII_KM, within[n].tolist(), strict=True)},
            "countries": countries[n],
            "sure": sure[n],
            **(drawn(posterior, n, allowed) if detail else {}),
        }
        for n in range(len(best))
    ]


def _named(coordinates: Float64[np.ndarray, "n 2"]) -> list[tuple[str | None, str | None]]:
    """Country and description of each place; None twice where the extra ``places`` is not installed."""
    from open_geoclip.geo.geocode import Places

    try:
        return [(place.country, place.text) for place in Places().describe_all(coordinates)]
    except MissingExtraError:
        return [(None, None)] * len(coordinates)
