"""The calibration of the embedded model: fitted on validation views of several kinds, measured on other renderings.

A calibration that holds on views like those of training claims too much in another season or on another map. So it is
fitted on views as they are, in all weathers, of another map, and altered (:mod:`research.altered_views`), where coarse
views are sources of their own: levels hold on each source, and of sure answers 99 % are right on each. Views of shaded
relief are left out of the fit, so that one rendering of the test is of a source that was held out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from rich.console import Console
from torch import Tensor

from open_geoclip.evaluation.calibration import fit_calibration, fit_distribution, fit_parameters
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.training.batches import FeatureSet
from research.altered_views import sample_alterations
from research.view_features import ALTERED, Imagery
from research.weather import varied_basemaps

__all__ = ["FIT_IMAGERY", "FIT_VIEWS", "Views", "encoded", "fit_view_calibration", "posteriors"]

FIT_IMAGERY: tuple[Imagery, ...] = ("bluemarble", "varied", "etopo", "altered-bluemarble", "altered-etopo")
"""What the validation views are of that a calibration is fitted on."""

IN_DISTRIBUTION: tuple[Imagery, ...] = ("bluemarble", "varied", "shadedrelief")
"""What the validation views are of that all count as in distribution."""

FIT_VIEWS = 1024  # of each
_PARAMETER_VIEWS = 2048  # of all, that the parameters are fitted on
_STEEPER, _FLATTER = 1.4, 1.4  # what the slope of highest likelihood, and the temperature, are multiplied with
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


def fit_view_calibration(
    index: GalleryIndex, views: Callable[[Imagery], Views], scale: float, *, n: int = FIT_VIEWS
) -> Calibration:
    """Fit the calibration by maximum likelihood on validation views of several sources; see :func:`fit_calibration`.

    Args:
        index: of the gallery.
        views: returns the validation views of an imagery.
        scale: the model's.
        n: views of each imagery, the first ones.
    """
    usual = Views.concatenate([views(imagery) for imagery in IN_DISTRIBUTION])
    best = torch.cat([index.logits(part, 1.0).amax(dim=1) for part in usual.embeddings.split(128)])
    distribution = fit_distribution(best.double().numpy(), usual.distances)
    decide = Calibration(fitted_on="validation views", **distribution).is_in_distribution
    shaded = np.array(varied_basemaps("validation", n)) == HELD_OUT
    coarse = sample_alterations("validation", 0, n)[0].coarse_km > 0
    kept, numbers = [], []
    for number, imagery in enumerate(FIT_IMAGERY):
        found = views(imagery)[:n]
        best = torch.cat([index.logits(part, 1.0).amax(dim=1) for part in found.embeddings.split(128)])
        inside = decide(best, found.distances)
        assert inside is not None
        rows = inside.numpy() & ~(shaded & (imagery == "varied"))
        console.print(f"{imagery}: {rows.sum():,} of {n:,} validation views")
        kept.append(found[rows])
        numbers.append(2 * number + coarse[rows] * (imagery in ALTERED))
    # Mixed, so that the first ones are of all sources.
    order = np.random.default_rng(0).permutation(sum(map(len, kept)))
    pooled, sources = Views.concatenate(kept)[order], np.concatenate(numbers)[order]
    first = pooled[:_PARAMETER_VIEWS]
    parameters = fit_parameters(index, first.embeddings, first.truth, scale)
    console.print(f"of highest likelihood: {parameters}")
    parameters = replace(
        parameters,
        temperature=round(_FLATTER * parameters.temperature, 4),
        temperature_slope=round(_STEEPER * parameters.temperature_slope, 5),
    )
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
        parameters=parameters,
    )


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
