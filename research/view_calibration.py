"""The calibration of the embedded model: fitted on validation views of several kinds, measured on other renderings.

A calibration that holds on views like those of training claims too much in another season or on another map. So it is
fitted on views as they are, in all weathers, of another map, and altered (:mod:`research.altered_views`), where coarse
views are sources of their own: levels hold on each source, and of sure answers 99 % are right on each. Views of shaded
relief are left out of the fit, so that one rendering of the test is of a source that was held out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from rich.console import Console
from torch import Tensor

from open_geoclip.evaluation.calibration import (
    ANSWER_KM,
    fit_calibration,
    fit_distribution,
    fit_levels,
    fit_parameters,
)
from open_geoclip.geo.sphere import haversine_km
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.training.batches import FeatureSet
from research.altered_views import sample_alterations
from research.view_features import ALTERED, Imagery
from research.weather import varied_basemaps

__all__ = [
    "FIT_IMAGERY",
    "FIT_VIEWS",
    "Views",
    "compare_factors",
    "encoded",
    "fit_view_calibration",
    "posteriors",
    "source_numbers",
]

FIT_IMAGERY: tuple[Imagery, ...] = ("bluemarble", "varied", "etopo", "altered-bluemarble", "altered-etopo")
"""What the validation views are of that a calibration is fitted on."""

IN_DISTRIBUTION: tuple[Imagery, ...] = ("bluemarble", "varied", "shadedrelief")
"""What the validation views are of that all count as in distribution."""

FIT_VIEWS = 1024  # of each
_PARAMETER_VIEWS = 2048  # of all, that the parameters are fitted on
_STEEPER, _FLATTER = 1.4, 1.4  # of FACTORS: plain circles widen by a fifth, and nothing is lost within 25 km
FACTORS = ((1.0, 1.0), (1.2, 1.2), (1.4, 1.0), (1.4, 1.4), (1.8, 1.4))
"""What the slope of the temperature of highest likelihood, and the temperature, may be multiplied with."""

HELD_OUT = "shadedrelief"
_N_REFINED = 1024  # views that the levels of refinement are fitted on: it takes longer
_CHUNK = 32  # images

console = Console(stderr=True)


@dataclass(frozen=True)
class Views:
    """Embeddings of n views, their true places, and the distances of their features."""

    embeddings: Float[Tensor, "n d"]
    truth: Float64[np.ndarray, "n 2"]
    distances: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, rows: slice | Int64[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "Views":
        return Views(self.embeddings[rows], self.truth[rows], self.distances[rows])

    @staticmethod
    def concatenate(parts: "Sequence[Views]") -> "Views":
        """Concatenate along the views."""
        return Views(
            torch.cat([part.embeddings for part in parts]),
            np.concatenate([part.truth for part in parts]),
            torch.cat([part.distances for part in parts]),
        )


@torch.inference_mode()
def encoded(model: GeoCLIP, data: FeatureSet) -> Views:
    """Encode images whose backbone features are known."""
    subspace = model.image_encoder.subspace
    assert subspace is not None, "the model has no subspace: research.accuracy --fit makes it"
    parts = [F.normalize(model.image_encoder.forward_head(part.float()), dim=1) for part in data.features.split(512)]
    return Views(torch.cat(parts), data.coordinates.numpy(), subspace.distance(data.features))


def source_numbers(n: int) -> Int64[np.ndarray, "k n"]:
    """Return the source of the first n validation views of each of FIT_IMAGERY; -1 of what is held out."""
    numbers = np.repeat(2 * np.arange(len(FIT_IMAGERY))[:, None], n, axis=1)
    numbers[FIT_IMAGERY.index("varied"), np.array(varied_basemaps("validation", n)) == HELD_OUT] = -1
    numbers[[imagery in ALTERED for imagery in FIT_IMAGERY]] += sample_alterations("validation", 0, n)[0].coarse_km > 0
    return numbers


def pooled_views(
    index: GalleryIndex, views: Callable[[Imagery], Views], n: int
) -> tuple[Views, Int64[np.ndarray, " m"], dict[str, Any]]:
    """Return the validation views to fit on, mixed, the number of the source of each, and what is in distribution.

    Args:
        index: of the gallery.
        views: returns the validation views of an imagery.
        n: views of each imagery, the first ones; those out of distribution are left out.
    """

    def best(some: Views) -> Float[Tensor, " n"]:
        return torch.cat([index.logits(part, 1.0).amax(dim=1) for part in some.embeddings.split(128)])

    usual = Views.concatenate([views(imagery) for imagery in IN_DISTRIBUTION])
    distribution = fit_distribution(best(usual).double().numpy(), usual.distances)
    decide = Calibration(fitted_on="validation views", **distribution).is_in_distribution
    kept, numbers = [], []
    for imagery, sources in zip(FIT_IMAGERY, source_numbers(n), strict=True):
        found = views(imagery)[:n]
        inside = decide(best(found), found.distances)
        assert inside is not None
        rows = inside.numpy() & (sources >= 0)
        console.print(f"{imagery}: {rows.sum():,} of {n:,} validation views")
        kept.append(found[rows])
        numbers.append(sources[rows])
    # Mixed, so that the first ones are of all sources.
    order = np.random.default_rng(0).permutation(sum(map(len, kept)))
    return Views.concatenate(kept)[order], np.concatenate(numbers)[order], distribution


def scaled(parameters: Calibration, steeper: float, flatter: float) -> Calibration:
    """Return parameters with the slope of the temperature and the temperature itself multiplied."""
    return replace(
        parameters,
        temperature=round(flatter * parameters.temperature, 4),
        temperature_slope=round(steeper * parameters.temperature_slope, 5),
    )


def fit_view_calibration(
    index: GalleryIndex, views: Callable[[Imagery], Views], scale: float, *, n: int = FIT_VIEWS
) -> Calibration:
    """Fit the calibration on validation views of several sources; see :func:`fit_calibration`.

    Args:
        index: of the gallery.
        views: returns the validation views of an imagery.
        scale: the model's.
        n: views of each imagery, the first ones.
    """
    pooled, sources, distribution = pooled_views(index, views, n)
    first = pooled[:_PARAMETER_VIEWS]
    parameters = fit_parameters(index, first.embeddings, first.truth, scale)
    console.print(f"of highest likelihood: {parameters}")
    return fit_calibration(
        index,
        pooled.embeddings,
        pooled.truth,
        scale,
        name="validation views of several renderings",
        n_refined=_N_REFINED,
        distances=pooled.distances,
        distribution=distribution,
        sources=sources,
        parameters=scaled(parameters, _STEEPER, _FLATTER),
    )


def compare_factors(
    index: GalleryIndex, views: Callable[[Imagery], Views], scale: float, *, n: int = FIT_VIEWS
) -> Iterator[str]:
    """Yield the lines of a table: what factors of slope and temperature do on validation views, levels fitted on half.

    Arguments are those of :func:`fit_view_calibration`.
    """
    pooled, sources, _ = pooled_views(index, views, n)
    first, cells = pooled[:_PARAMETER_VIEWS], GalleryCells.from_gallery(index.gallery)
    likely = fit_parameters(index, first.embeddings, first.truth, scale)
    half = len(pooled) // 2
    yield "| slope | temperature | plain views within 25 km | median radius of 90 %, plain, each source | 90 % holds |"
    yield "| --- | --- | --- | --- | --- |"
    for steeper, flatter in FACTORS:
        plain = replace(scaled(likely, steeper, flatter), fitted_on="validation views")
        fitting = (one for _, one, _ in posteriors(index, cells, pooled[:half], scale, plain))
        fitted = fit_levels(fitting, pooled.truth[:half], plain, cells, sources[:half])
        rest, off_km, radius_km = pooled[half:], [], []
        for rows, one, _ in posteriors(index, cells, rest, scale, fitted):
            answers = one.decode("mass", ANSWER_KM)
            off_km.append(haversine_km(rest.truth[rows], answers))
            radius_km.append(one.profile(answers).radius_km((0.9,))[:, 0])
        off, radius = np.concatenate(off_km), np.concatenate(radius_km)
        groups = [sources[half:] == number for number in np.unique(sources)]
        radii = ", ".join(f"{np.median(radius[rows]):.0f}" for rows in groups)
        holds = ", ".join(f"{100 * np.mean(off[rows] <= radius[rows]):.0f}" for rows in groups)
        near = 100 * np.mean(off[groups[0]] <= 25)
        yield f"| {steeper} | {flatter} | {near:.1f} % | {radii} km | {holds} |"


def posteriors(
    index: GalleryIndex, cells: GalleryCells, views: Views, scale: float, calibration: Calibration
) -> Iterator[tuple[slice, Posterior, Posterior]]:
    """Yield posteriors of a few images at a time, calibrated and not."""
    for start in range(0, len(views), _CHUNK):
        rows = slice(start, start + _CHUNK)
        part = views[rows]
        logits = index.logits(part.embeddings, scale)
        calibrated = Posterior.from_logits(logits, cells, calibration, scale=scale, distances=part.distances)
        yield rows, calibrated, Posterior.from_logits(logits, cells)
