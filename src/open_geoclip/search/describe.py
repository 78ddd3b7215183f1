"""How answers are made of a posterior: candidates, radii, countries, and how sure they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from open_geoclip.errors import MissingExtraError
from open_geoclip.geo.areas import Allowed
from open_geoclip.search.answer import Candidate
from open_geoclip.search.decode import DecodeMethod
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import Prior
from open_geoclip.search.regions import drawn

__all__ = ["AnswerSettings", "describe"]

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


def describe(
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
    in_distribution: list[bool | None] = [None] * len(best)
    if posterior.calibration.fitted_on is not None and posterior.is_in_distribution is not None:
        in_distribution = posterior.is_in_distribution.tolist()
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
            "in_distribution": in_distribution[n],
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
