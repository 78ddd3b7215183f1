"""Whether a picture looks like the place that its metadata name.

Estimate and metadata meet here and nowhere else: the picture is located as ever, and what the file says is held
against the answer afterwards. What that can tell and what not is measured by ``benchmarks/verify_rates.py``.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from open_geoclip.errors import ImageError, MissingExtraError
from open_geoclip.geo.geocode import Places
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, haversine_km, unit_vectors
from open_geoclip.images import ImageSource
from open_geoclip.metadata.checks import Remark, find_remarks
from open_geoclip.metadata.read import PhotoMetadata, PhotoPlace, read_metadata
from open_geoclip.search.answer import Answer
from open_geoclip.search.encode import encode_batches
from open_geoclip.search.locator import Locator
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells

__all__ = [
    "CONTRADICTS",
    "RADII_KM",
    "UNLIKELY",
    "VERDICTS",
    "Comparison",
    "Verdict",
    "Verification",
    "compare",
    "verify",
]

Verdict = Literal["consistent", "unlikely", "contradicts", "cannot tell"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

UNLIKELY, CONTRADICTS = 0.05, 0.01
"""A place is unlikely, or contradicted, when at most this share of true places is as surprising."""

RADII_KM = (25, 200, 750, 2500)
_REACH = (
    3.0  # radii of a place's cell: further off, a gallery does not know a place. 2.6 is the most of 4,096 true ones
)


@dataclass(frozen=True)
class Comparison:
    """A place held against a picture's posterior.

    Attributes:
        verdict: in words.
        reason: why it is not more than that, or what it rests on.
        p_value: share of true places that are at least as surprising, by validation pictures; None when not calibrated.
        hpd_level: share of the probability in cells that is more probable than that of the place, from 0, the most
            probable place of all, to 1.
        within_km: probability that the picture was taken within 25, 200, 750 and 2500 km of the place.
        distance_km: from the place to the best answer.
    """

    verdict: Verdict
    reason: str
    p_value: float | None
    hpd_level: float
    within_km: dict[str, float]
    distance_km: float


@dataclass(frozen=True)
class Verification:
    """What was found for one photo.

    Attributes:
        answer: of the picture alone.
        facts: what its metadata say.
        comparison: of the two; None when there is no place in the metadata, or the picture cannot be read.
        remarks: what is odd about the metadata themselves.
    """

    answer: Answer
    facts: PhotoMetadata = field(default_factory=PhotoMetadata)
    comparison: Comparison | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """That of the comparison, or ``cannot tell``."""
        return "cannot tell" if self.comparison is None else self.comparison.verdict

    @property
    def reason(self) -> str:
        """Why."""
        if self.comparison is not None:
            return self.comparison.reason
        if self.facts.places:
            return "the photo holds no place of its own, only an estimate by open-geoclip"
        return "the photo does not say where it was taken"

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; ``{"image", "error"}`` alone when the picture could not be read."""
        told = self.answer.to_dict()
        if self.answer.error is not None:
            return told
        place, found = self.facts.place, self.comparison
        return told | {
            "exif": None if place is None else place.to_dict(),
            "camera": self.facts.camera,
            "software": list(self.facts.software),
            "verdict": self.verdict,
            "reason": self.reason,
            "comparison": None
            if found is None
            else {
                "p_value": found.p_value,
                "hpd_level": found.hpd_level,
                "within_km": found.within_km,
                "distance_km": found.distance_km,
            },
            "remarks": [remark.to_dict() for remark in self.remarks],
        }


def verify(
    locator: Locator, images: Iterable[ImageSource], top_k: int = 5, *, detail: bool = False
) -> Iterator[Verification]:
    """Hold photos against what they say, one by one; memory stays flat.

    Args:
        locator: without limits, refinement or ten crops: nothing was calibrated with these.
        images: the photos; sidecars of those that are files are read too.
        top_k: candidates an answer.
        detail: answers say their regions and heat too.
    """
    for batch, sources in _batched(locator, images):
        answers: Iterator[tuple[Answer, Posterior, int, float]] = iter(())
        if len(batch.embeddings):
            posterior = locator.posterior(batch.embeddings)
            best = locator.index.logits(batch.embeddings, 1.0).max(dim=1).values.tolist()
            told = locator.tell(batch.embeddings, top_k, detail=detail)
            answers = iter([(answer, posterior, row, best[row]) for row, answer in enumerate(told)])
        for name, error, source in zip(batch.names, batch.errors, sources, strict=True):
            if error is not None:
                yield Verification(Answer(name, locator.model_name, "", "", error=error))
                continue
            answer, posterior, row, score = next(answers)
            yield _verified(replace(answer, image=name), source, posterior, row, score)


def _batched(locator: Locator, images: Iterable[ImageSource]) -> Iterator[tuple[Any, Sequence[ImageSource]]]:
    """Batches of pictures, and the pictures themselves beside them."""
    waiting: list[ImageSource] = []

    def noted() -> Iterator[ImageSource]:
        for image in images:
            waiting.append(image)
            yield image

    for batch in encode_batches(locator.model, noted(), locator.encoding):
        count = len(batch.names)
        yield batch, waiting[:count]
        del waiting[:count]


def _verified(answer: Answer, source: ImageSource, posterior: Posterior, row: int, score: float) -> Verification:
    try:
        facts = read_metadata(source, name=answer.image)
    except ImageError as error:  # its pixels were read, so this is the file that changed meanwhile
        facts = PhotoMetadata(faults=(error.reason,))
    place = facts.place
    found, odd = None, list(find_remarks(facts))
    if place is not None and abs(place.lat) <= 90 and abs(place.lon) <= 180:
        found = compare(posterior[row], place, answer, score)
        with suppress(MissingExtraError):  # without outlines of countries nobody can say what is sea
            if not Places().countries(np.array([[place.lat, place.lon]], np.float64))[0]:
                odd.append(Remark("sea", "the place lies in the open sea"))
    return Verification(answer, facts, found, tuple(odd))


def compare(posterior: Posterior, place: PhotoPlace, answer: Answer, score: float) -> Comparison:
    """Hold one place against one picture.

    Args:
        posterior: of the picture, one row.
        place: what the metadata say.
        answer: the picture's.
        score: cosine of the picture and the gallery's place that fits it best.
    """
    where = np.array([[place.lat, place.lon]], np.float64)
    best = answer.candidates[0]
    distance = float(haversine_km(where, np.array([[best.lat, best.lon]], np.float64))[0])
    within = posterior.mass_within(where, RADII_KM)[0]
    level = _level(posterior, where, (place.accuracy_m or 0.0) / 1000)
    told = {str(km): float(share) for km, share in zip(RADII_KM, within, strict=True)}

    def found(verdict: Verdict, reason: str, p: float | None = None) -> Comparison:
        return Comparison(verdict, reason, p, level, told, distance)

    if place.no_fix or (place.lat == 0 and place.lon == 0):
        return found("cannot tell", "0, 0 or a record without a fix is no place")
    calibration = posterior.calibration
    if answer.sure is None or not calibration.conformal_levels:
        return found(
            "cannot tell", f"{answer.model} is not calibrated for this: the figures compare, they are no chances"
        )
    if score < calibration.min_score:
        return found(
            "cannot tell", f"the picture is unlike the {calibration.fitted_on} that {answer.model} was calibrated on"
        )
    if (off := _off_gallery(posterior.cells, where)) is not None:
        return found("cannot tell", f"the gallery holds no place within {off:,.0f} km of the one that the photo names")
    p = calibration.p_value(level, sure=bool(answer.sure))
    if p is None:
        return found("cannot tell", "too few answers like this one were there to calibrate on")
    verdict: Verdict = "contradicts" if p <= CONTRADICTS else "unlikely" if p <= UNLIKELY else "consistent"
    share = f"{100 * p:.2g} % of true places are as surprising, by {calibration.n_images:,} {calibration.fitted_on}"
    return found(verdict, share, p)


def _level(posterior: Posterior, where: np.ndarray, accuracy_km: float) -> float:
    """The region level of a place, or of the best within its own accuracy."""
    cells = posterior.cells
    if accuracy_km > 0:
        chord = 2 * np.sin(min(accuracy_km / EARTH_RADIUS_KM, np.pi) / 2)
        apart = np.linalg.norm(cells.points.numpy() - unit_vectors(where), axis=1)
        near = np.flatnonzero(apart <= chord)
        if len(near):
            density = posterior.mass[0].numpy()[near] / cells.area_km2[near]
            where = np.concatenate([where, cells.coordinates[near[[int(density.argmax())]]].astype(np.float64)])
    return min(float(posterior.hpd_level(place[None])[0]) for place in where)


def _off_gallery(cells: GalleryCells, where: np.ndarray) -> float | None:
    """How far the gallery's next place is, when that is too far for it to stand for the place; else None."""
    [row] = cells.nearest(where).tolist()
    off = float(haversine_km(where, cells.coordinates[[row]].astype(np.float64))[0])
    return off if off > _REACH * float(np.sqrt(cells.area_km2[row] / np.pi)) else None
