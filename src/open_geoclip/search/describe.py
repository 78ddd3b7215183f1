"""How answers are made of a posterior: candidates, radii, countries, and how sure they are."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from open_geoclip.data.tracks import Fix
from open_geoclip.errors import MissingExtraError
from open_geoclip.geo import geocode
from open_geoclip.search.answer import Anchor, Candidate, out_of_distribution_warning
from open_geoclip.search.decode import DecodeMethod
from open_geoclip.search.evidence import look_alikes
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import Prior
from open_geoclip.search.refine import encode_cosines
from open_geoclip.search.regions import describe_regions
from open_geoclip.search.reliability import Reliability
from open_geoclip.search.search_space import SearchSpace

if TYPE_CHECKING:
    from open_geoclip.search.query import Query

__all__ = ["AnswerSettings", "describe", "describe_query"]

_RADII_KM = (1, 25, 200, 750, 2500)
_LEVELS = (0.5, 0.9)
_CHUNK = 32  # images of a trip that are described together
_MERGE_KM = 0.05, 25.0  # limits of the distance between candidates where there are known places


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made of posteriors.

    Attributes:
        decode: what the first candidate optimises; see :meth:`open_geoclip.search.posterior.Posterior.decode`. Default:
            ``mass`` for a calibrated model or with refinement; otherwise ``max``, the most probable place.
        merge_km: smallest distance between candidates; each has the mass of what is nearest to it. Default: 25 km,
            three times the spacing of a coarser even gallery, or the smoothing of cells, whichever is most.
        radius_km: of the decoding ``mass``. Default: ``merge_km``.
        prior: what is known before an image is seen; see :class:`open_geoclip.search.prior.GalleryCells`.
    """

    decode: DecodeMethod | None = None
    merge_km: float | None = None
    radius_km: float | None = None
    prior: Prior = "gallery"


@torch.inference_mode()
def describe(
    posterior: Posterior,
    embeddings: Float[Tensor, "n d"],
    space: SearchSpace,
    settings: AnswerSettings,
    top_k: int,
    *,
    reliability: Reliability | None = None,
    detail: bool = False,
) -> list[dict[str, Any]]:
    """Return the fields of each answer that follow from its posterior.

    Args:
        posterior: of the queries.
        embeddings: of the queries.
        space: that the posterior is of.
        settings: how answers are made.
        top_k: candidates per answer. A candidate outside the area becomes the nearest place of the gallery.
        reliability: how often such answers were right, where it was measured.
        detail: whether answers have regions and heat.

    Raises:
        MissingExtraError: detail is asked for, and the extra ``places`` is not installed.
    """
    merge_km = settings.merge_km
    if merge_km is None:
        merge_km = max(space.merge_km, posterior.calibration.sigma_km)
    modes = posterior.candidates(
        min(top_k, len(posterior.cells)),
        merge_km=merge_km,
        method=settings.decode or "mass",
        radius_km=settings.radius_km,
    )
    coordinates, cells = modes.coordinates, posterior.cells
    is_found = modes.mass > 0
    if space.area.is_limited:
        places = coordinates[is_found]
        outside = ~space.area.contains(places)
        if outside.any():
            places[outside] = cells.coordinates[cells.nearest(places[outside])]
            coordinates[is_found] = places
    profile = posterior.profile(coordinates[:, 0])
    within, radii = profile.within(_RADII_KM).tolist(), profile.radius_km(_LEVELS).tolist()
    scores = encode_cosines(space.index.encoder, embeddings, torch.from_numpy(np.nan_to_num(coordinates))).numpy()
    try:
        names: list[tuple[str | None, str | None]] = [
            (place.country, place.text) for place in geocode.describe(coordinates[is_found])
        ]
    except MissingExtraError:
        names = [(None, None)] * int(is_found.sum())
    remaining = iter(names)
    codes = space.countries_of(cells)
    countries: list[Any] = [None] * len(posterior)
    if codes is not None:
        countries = posterior.label_probabilities(codes)
    sure = posterior.is_sure(profile)
    in_distribution: list[bool | None] = [None] * len(posterior)
    if posterior.is_in_distribution is not None:
        in_distribution = posterior.is_in_distribution.tolist()
    measured = [None] * len(posterior) if reliability is None else reliability.describe(coordinates[:, 0])
    return [
        {
            "candidates": tuple(
                Candidate(
                    *(round(lat, 6), round(lon, 6), float(score), min(1.0, float(mass)), round(float(km), 3)),
                    *next(remaining),
                )
                for (lat, lon), score, mass, km in zip(
                    coordinates[n].tolist(), scores[n], modes.mass[n], modes.radius_km[n], strict=True
                )
                if mass > 0
            ),
            "credible_radius_km": {
                f"{100 * level:.0f}": round(km, 3) for level, km in zip(_LEVELS, radii[n], strict=True)
            },
            "within_km": {str(km): share for km, share in zip(_RADII_KM, within[n], strict=True)},
            "countries": countries[n],
            "sure": sure[n],
            "in_distribution": in_distribution[n],
            "reliability": measured[n],
            **(describe_regions(posterior, n, space.allowed) if detail else {}),
        }
        for n in range(len(posterior))
    ]


def describe_query(
    query: "Query",
    space: SearchSpace,
    scale: float,
    settings: AnswerSettings,
    top_k: int,
    *,
    model: str = "",
    refine: bool = False,
    detail: bool = False,
) -> Iterator[tuple[Posterior, dict[str, Any]]]:
    """Yield the posterior of each image or text of a query and the fields of its answer that follow from it.

    Args:
        query: encoded images or texts.
        space: that is searched.
        scale: logits are scale times cosine.
        settings: how answers are made. Between known places, candidates are as near as these allow.
        top_k: candidates per answer.
        model: its name and version, for warnings.
        refine: search between the places of the gallery too.
        detail: whether answers have regions and heat.
    """
    embeddings = query.encoded.embeddings
    if query.error is not None or len(embeddings) == 0:
        return
    parts = _posteriors(query, space, scale, refine)
    if query.evidence is not None:
        parts = iter(query.evidence.posteriors(list(parts), query.neighbours, space.allowed))
    extra: dict[str, Any] = {}
    given = settings
    start = 0
    for number, part in enumerate(parts):
        embedding = embeddings[start : start + len(part)]
        start += len(part)
        if query.anchors is not None:
            method = "mass" if settings.decode == "max" else settings.decode
            merge_km = given.merge_km or float(np.clip(2 * query.scales_km[number], *_MERGE_KM))
            settings = replace(given, decode=method, merge_km=merge_km)
            fixes = dict.fromkeys(fix for fix in query.anchors.brackets[number] if fix is not None)
            extra = {"anchors": tuple(map(_anchor, fixes)), "time": _iso(query.anchors.times_s[number])}
        fields = describe(part, embedding, space, settings, top_k, reliability=query.reliability, detail=detail)
        for row, values in enumerate(fields):
            if query.neighbours:
                first = values["candidates"][0]
                extra = {"look_alikes": look_alikes(query.neighbours[number], (first.lat, first.lon))}
            warning = out_of_distribution_warning(model) if values["in_distribution"] is False else None
            yield part[row], values | extra | {"warning": warning}


def _posteriors(query: "Query", space: SearchSpace, scale: float, refine: bool) -> Iterator[Posterior]:
    """Yield the posteriors of a query, of one image or text each or of several."""
    embeddings, distances, calibration = query.encoded.embeddings, query.encoded.distances, query.calibration
    if query.posterior is not None:
        yield from map(query.posterior, range(len(embeddings)))
        return
    trip, cells = query.trip, query.cells
    if trip is None or cells is None:
        search = space.refined_posteriors if refine else space.posteriors
        yield from search(embeddings, scale, calibration, distances=distances)
        return
    # Refined cells of a gallery in two levels depend on all images.
    size = len(embeddings) if refine and space.groups is not None else _CHUNK
    every = torch.arange(len(cells)) if refine else None
    for start in range(0, len(embeddings), size):
        images = slice(start, start + size)
        known = None if distances is None else distances[images]
        rows, log_mass = trip.part(images, every)
        if refine:
            yield from space.refined_posteriors(embeddings[images], scale, calibration, log_mass, known)
        else:
            yield Posterior.from_log_mass(log_mass, cells.part(rows.numpy()), calibration, distances=known)


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(round(time_s), UTC).isoformat()


def _anchor(fix: Fix) -> Anchor:
    return Anchor(round(fix.lat, 6), round(fix.lon, 6), _iso(fix.time_s), fix.accuracy_m, fix.source)
