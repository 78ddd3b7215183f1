"""Comparison of an image with the place in the metadata of its photo.

The image is located first, without the metadata; then the place is compared with the posterior.
``benchmarks/verify_rates.py`` measures how often the verdicts are right. Heavy modules are imported where they are
used, because the server's main process needs only the declarations.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np

from open_geoclip.errors import ImageError, MissingExtraError
from open_geoclip.images import ImageSource
from open_geoclip.metadata.read import PhotoMetadata, PhotoPlace, Remark, read_metadata
from open_geoclip.schema import type_hints
from open_geoclip.search.answer import Answer

if TYPE_CHECKING:
    from open_geoclip.search.locator import Locator
    from open_geoclip.search.posterior import Posterior
    from open_geoclip.search.prior import GalleryCells

__all__ = [
    "CONTRADICTS",
    "RADII_KM",
    "UNLIKELY",
    "VERDICTS",
    "Comparison",
    "Findings",
    "Verification",
    "compare",
    "verify",
]

Verdict = Literal["consistent", "unlikely", "contradicts", "cannot tell"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

UNLIKELY, CONTRADICTS = 0.05, 0.01
"""Largest p-values of the verdicts."""

RADII_KM = (25, 200, 750, 2500)
_MAX_CELL_RADII = 3.0  # of distance to the gallery; the largest of 4,096 true places is 2.6


@dataclass(frozen=True)
class Comparison:
    """Comparison of a place with the posterior of an image."""

    p_value: Annotated[
        float | None,
        "Share of true places of validation images that are at least as improbable; null if not calibrated.",
    ]
    hpd_level: Annotated[
        float,
        "Share of the probability in places more probable than this one: from 0, the most probable place, to 1.",
    ]
    outside_km: Annotated[
        float, "Distance from the place to the region that holds the truth with 90 %, in kilometres; 0 inside."
    ]
    within_km: Annotated[
        Mapping[str, float],
        "Probability that the photo was taken within 25, 200, 750 and 2500 km of the place.",
    ]
    distance_km: Annotated[float, "From the place to the first candidate."]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The metadata of a photo and the verdict; in JSON, next to the keys of the answer."""

    exif: Annotated[
        PhotoPlace | None, "The place in the metadata, which is not used for the estimate; null if there is none."
    ] = None
    camera: Annotated[str | None, "Maker and model."] = None
    software: Annotated[tuple[str, ...], "Programs that wrote the file."] = ()
    verdict: Annotated[
        Verdict | None,
        "consistent (as probable as true places, which is no confirmation), unlikely (at most 5 % of true places are "
        "as improbable), contradicts (at most 1 %), or cannot tell.",
    ] = None
    reason: Annotated[str | None, "The reason for the verdict."] = None
    comparison: Annotated[Comparison | None, "Figures of the comparison; null if there is no place."] = None
    remarks: Annotated[tuple[Remark, ...], "Inconsistencies in the metadata, found without a model."] = ()


@dataclass(frozen=True, kw_only=True)
class Verification(Findings):
    """The answer for the image of a photo, and the findings about its metadata."""

    answer: Answer

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON; only ``{"image", "error"}`` if the image could not be read."""
        values = self.answer.to_dict()
        if self.answer.error is not None:
            return values
        values |= {name: getattr(self, name) for name in type_hints(Findings)}
        return values | {
            "exif": self.exif and self.exif.to_dict(),
            "software": list(self.software),
            "comparison": self.comparison and dict(vars(self.comparison)),
            "remarks": [dict(vars(remark)) for remark in self.remarks],
        }


def verify(
    locator: "Locator", images: Iterable[ImageSource], top_k: int = 5, *, detail: bool = False
) -> Iterator[Verification]:
    """Compare photos with the places in their metadata, one by one, in constant memory.

    Args:
        locator: without area, refinement or ten crops, which are not calibrated.
        images: the photos; sidecars of files are read too.
        top_k: candidates per answer.
        detail: whether answers have regions and heat.
    """
    sources, photos = itertools.tee(images)
    located = locator.answer(locator.query_images(sources), top_k, detail=detail)
    for photo, (answer, posterior) in zip(photos, located, strict=True):
        findings = Findings() if posterior is None else _find(photo, answer, posterior)
        yield Verification(answer=answer, **vars(findings))


def _find(source: ImageSource, answer: Answer, posterior: "Posterior") -> Findings:
    from open_geoclip.geo.countries import country_codes
    from open_geoclip.metadata.checks import find_remarks

    try:
        metadata = read_metadata(source, name=answer.image)
    except ImageError as error:  # the image was decoded: the file has changed since
        metadata = PhotoMetadata(faults=(error.reason,))
    place, remarks = metadata.place, list(find_remarks(metadata))
    findings = Findings(verdict="cannot tell", reason="the photo does not say where it was taken")
    if place is not None and place.is_on_earth:
        findings = compare(posterior, place, answer)
        with suppress(MissingExtraError):  # without the outlines of countries, the sea is not known
            if not country_codes(np.array([[place.lat, place.lon]], np.float64))[0]:
                remarks.append(Remark("sea", "the place lies in the open sea"))
    elif metadata.places:
        findings = replace(findings, reason="the photo holds no place of its own, only an estimate by open-geoclip")
    return replace(findings, exif=place, camera=metadata.camera, software=metadata.software, remarks=tuple(remarks))


def compare(posterior: "Posterior", place: PhotoPlace, answer: Answer) -> Findings:
    """Compare a place with an image.

    Args:
        posterior: of the image, one row.
        place: in its metadata.
        answer: of the image.

    Returns:
        Verdict, reason and comparison.
    """
    from open_geoclip.geo.sphere import haversine_km

    where = np.array([[place.lat, place.lon]], np.float64)
    best = answer.candidates[0]
    distance = float(haversine_km(where, np.array([[best.lat, best.lon]], np.float64))[0])
    within = posterior.profile(where).within(RADII_KM)[0]
    level, outside = _position(posterior, where, (place.accuracy_m or 0.0) / 1000)
    shares = {str(km): float(share) for km, share in zip(RADII_KM, within, strict=True)}
    figures = Comparison(None, level, outside, shares, distance)
    calibration = posterior.calibration
    if place.no_fix or (place.lat == 0 and place.lon == 0):
        reason = "0, 0 or a record without a fix is no place"
    elif answer.sure is None or not calibration.conformal_scores:
        reason = f"{answer.model} is not calibrated for this: the figures compare places, they are not chances"
    elif answer.in_distribution is False:
        reason = f"the image is unlike the {calibration.fitted_on} that {answer.model} was calibrated on"
    elif (off := _off_gallery(posterior.cells, where)) is not None:
        reason = f"the gallery has no place within {off:,.0f} km of the one in the metadata"
    elif (p := calibration.p_value(level, outside, sure=bool(answer.sure))) is None:
        reason = "too few validation images had an answer like this one"
    else:
        verdict: Verdict = "contradicts" if p <= CONTRADICTS else "unlikely" if p <= UNLIKELY else "consistent"
        share = f"{100 * p:.2g} % of true places are as improbable, by {calibration.n_images:,} {calibration.fitted_on}"
        return Findings(verdict=verdict, reason=share, comparison=replace(figures, p_value=p))
    return Findings(verdict="cannot tell", reason=reason, comparison=figures)


def _position(posterior: "Posterior", where: np.ndarray, accuracy_km: float) -> tuple[float, float]:
    """Return HPD level and distance to the region of 90 % of a place, or of the densest one within its accuracy."""
    from open_geoclip.geo.sphere import EARTH_RADIUS_KM, unit_vectors

    cells = posterior.cells
    if accuracy_km > 0:
        chord = 2 * np.sin(min(accuracy_km / EARTH_RADIUS_KM, np.pi) / 2)
        apart = np.linalg.norm(cells.points.numpy() - unit_vectors(where), axis=1)
        near = np.flatnonzero(apart <= chord)
        if len(near):
            density = posterior.mass[0].numpy()[near] / cells.area_km2[near]
            where = np.concatenate([where, cells.coordinates[near[[int(density.argmax())]]].astype(np.float64)])
    positions = (posterior.hpd_position(place[None]) for place in where)
    return min((float(level[0]), float(outside_km[0])) for level, outside_km in positions)


def _off_gallery(cells: "GalleryCells", where: np.ndarray) -> float | None:
    """Return the distance to the nearest place of the gallery where that is too far to stand for this one, or None."""
    from open_geoclip.geo.sphere import haversine_km

    [row] = cells.nearest(where).tolist()
    off = float(haversine_km(where, cells.coordinates[[row]].astype(np.float64))[0])
    return off if off > _MAX_CELL_RADII * float(np.sqrt(cells.area_km2[row] / np.pi)) else None
