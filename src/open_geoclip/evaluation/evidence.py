"""Fitting how much the photos of an index count beside the location model, and the calibration of both together."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from open_geoclip.data.splitting import clusters
from open_geoclip.errors import SettingsError
from open_geoclip.evaluation.calibrate import check_locator
from open_geoclip.evaluation.calibration import fit_levels
from open_geoclip.evaluation.labelled import Labelled
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, unit_vectors
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.evidence import EvidenceSettings, combine, neighbour_ratio
from open_geoclip.search.locator import Locator
from open_geoclip.search.photo_index import PhotoIndex
from open_geoclip.search.photo_records import Neighbours
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.smoothing import log_kernel

__all__ = ["calibrate_evidence", "fit_evidence", "fit_index"]

_TOP = 128  # cells with the most mass of the location model that stand for all in the fit
_UNIFORM = math.log(1e-6 / (4 * math.pi * EARTH_RADIUS_KM**2))
_MAX_EVALUATIONS = 160
_MIN_IMAGES = 100
_MOST_IMAGES = 2000


class _Data:
    """What the fit needs of n images: few cells each, the most probable ones and those at the neighbours' places."""

    def __init__(
        self, posteriors: Sequence[Posterior], neighbours: Sequence[Neighbours], truth: Float64[np.ndarray, "n 2"]
    ) -> None:
        cells, sigma = posteriors[0].cells, posteriors[0].sigma_km
        prior = torch.log_softmax(cells.log_prior.double(), dim=0)
        rows, mass = [], []
        for posterior, near in zip(posteriors, neighbours, strict=True):
            top = posterior.mass[0].topk(min(_TOP, len(cells))).indices
            own = torch.from_numpy(cells.nearest(near.coordinates).astype(np.int64))
            # A place that is named twice has no mass the second time.
            named = torch.cat([top, own])
            first = torch.zeros(len(named), dtype=torch.bool)
            first[[int((named == row).nonzero()[0]) for row in named.unique()]] = True
            rows.append(named)
            mass.append(torch.where(first, posterior.mass[0, named].double().log(), -torch.inf))
        at = torch.stack(rows)
        self.log_mass, self.log_prior = torch.stack(mass), prior[at]
        self.log_prior = torch.where(self.log_mass.isinf(), -torch.inf, self.log_prior)
        self.density = prior[at] - torch.from_numpy(np.log(cells.area_km2))[at]
        self.rest = (1 - self.log_mass.exp().sum(dim=1)).clamp(min=1e-9).log()
        self.rest_prior = (1 - self.log_prior.exp().sum(dim=1)).clamp(min=1e-9).log()
        points = cells.points.double()[at]
        places = torch.from_numpy(np.stack([unit_vectors(near.coordinates) for near in neighbours]))
        self.square = (2 - 2 * torch.einsum("nck,nmk->ncm", points, places)).clamp(min=0)
        self.similarity = torch.from_numpy(np.stack([near.similarity for near in neighbours]))
        true = torch.from_numpy(unit_vectors(truth))
        square = (2 - 2 * torch.einsum("nck,nk->nc", points, true)).clamp(min=0)
        self.kernel = log_kernel(square, torch.from_numpy(sigma)[at] / EARTH_RADIUS_KM)

    def loss(self, settings: EvidenceSettings) -> float:
        """Return the mean negative log density at the truths, in nats per square kilometre."""
        a, b = settings.location_weight, settings.neighbour_weight
        ratio = neighbour_ratio(self.square, self.similarity[:, None], self.density, settings)
        prior = torch.where(self.log_prior.isinf(), 0.0, self.log_prior)
        log_mass = a * self.log_mass + (1 - a) * prior + b * ratio
        beside = a * self.rest + (1 - a) * self.rest_prior  # where no neighbour is
        total = torch.logaddexp(torch.logsumexp(log_mass, dim=1), beside)
        density = torch.logsumexp(log_mass + self.kernel, dim=1) - total
        return -float(torch.logaddexp(density, torch.tensor(_UNIFORM)).mean())


def fit_index(
    locator: Locator,
    index: PhotoIndex,
    labelled: Labelled,
    *,
    buffer_km: float = 1.0,
    progress: Callable[[int, int | None], None] = lambda *_: None,
) -> dict[str, Any]:
    """Fit and calibrate the evidence of an index for a model on photos, and store it with the index.

    The parameters are fitted on one half of the photos and calibrated on the other; groups, and places within the
    buffer, are in one half. No photo of the index is found that is a duplicate, or of a group of these photos.

    Args:
        locator: the model and its gallery.
        index: of photos with known places.
        labelled: photos whose places are known; the first 2,000 are used.
        buffer_km: see above.
        progress: called with photos encoded, and all.

    Raises:
        SettingsError: fewer than 200 photos can be used, or the index was made with another backbone; see also
            :func:`~open_geoclip.evaluation.calibrate.check_locator`.
    """
    weights_sha256 = check_locator(locator)
    groups: Sequence[str | None] = labelled.groups or [None] * len(labelled)
    searching = locator.with_photo_index(index, exclude_groups={group for group in groups if group})
    posteriors: list[Posterior] = []
    neighbours: list[Neighbours] = []
    errors: list[bool] = []
    for query in searching.query_images(itertools.islice(labelled.photos, _MOST_IMAGES)):
        errors += [error is not None for error in query.encoded.errors]
        if len(query.encoded.embeddings):
            found = locator.posterior(query.encoded.embeddings)
            posteriors += [found[row] for row in range(len(found))]
            neighbours += query.neighbours
        progress(len(errors), min(len(labelled), _MOST_IMAGES))
    rows = np.flatnonzero(~np.array(errors, bool))
    count = min((len(near) for near in neighbours), default=0)
    if len(rows) < 2 * _MIN_IMAGES or count == 0:
        raise SettingsError(f"evidence is fitted on at least {2 * _MIN_IMAGES} photos, not {len(rows)}")
    neighbours = [near.subset(np.arange(count)) for near in neighbours]
    truth = labelled.truth[rows]
    group_of = clusters(truth, [groups[row] for row in rows.tolist()], buffer_km)
    is_first = np.random.default_rng(0).permutation(int(group_of.max()) + 1)[group_of] % 2 == 0
    if min(is_first.sum(), (~is_first).sum()) < _MIN_IMAGES:
        raise SettingsError(f"the {len(rows):,} photos are of too few places or groups to be divided in two halves")

    def half(part: np.ndarray) -> tuple[list[Posterior], list[Neighbours], np.ndarray]:
        at = np.flatnonzero(part)
        return [posteriors[i] for i in at], [neighbours[i] for i in at], truth[at]

    settings = fit_evidence(*half(is_first))
    calibration = calibrate_evidence(*half(~is_first), settings, f"photos of {labelled.name}")
    fit = {"settings": asdict(settings), "calibration": calibration.to_dict()}
    index.save_fit(weights_sha256, locator.gallery.fingerprint, fit)
    return {"settings": fit["settings"], "n_images": len(rows)}


@torch.inference_mode()
def fit_evidence(
    posteriors: Sequence[Posterior],
    neighbours: Sequence[Neighbours],
    truth: Float64[np.ndarray, "n 2"],
) -> EvidenceSettings:
    """Fit the five parameters by maximum likelihood: the log density at the truths is a proper score.

    The location model, which is calibrated, is not sharpened: its exponent is at most 1.

    Args:
        posteriors: of the location model, calibrated, one row each, on the same cells.
        neighbours: of the same images, as many of each.
        truth: where they were taken, (lat, lon) in degrees.

    Raises:
        SettingsError: fewer than 100 images.
    """
    from scipy.optimize import minimize

    if len(truth) < _MIN_IMAGES:
        raise SettingsError(f"evidence is fitted on at least {_MIN_IMAGES} images, not {len(truth)}")
    data = _Data(posteriors, neighbours, np.asarray(truth, np.float64))

    def settings(x: Float64[np.ndarray, "5"]) -> EvidenceSettings:
        a, b = np.clip(x[:2], 0, (1, 2))
        return EvidenceSettings(
            location_weight=round(float(a), 4),
            neighbour_weight=round(float(b), 4),
            temperature=round(math.exp(np.clip(x[2], -7, 2)), 5),
            min_similarity=round(float(x[3]), 4),
            kernel_km=round(math.exp(np.clip(x[4], 1, 7)), 2),
        )

    first = np.array([0.71, 0.2, math.log(0.016), 0.02, math.log(88.0)])  # the first exponents are within bounds
    simplex = np.stack([first, *(first + np.diag([0.2, 0.2, 0.4, 0.1, 0.3]))])
    options = {"maxfev": _MAX_EVALUATIONS, "xatol": 5e-3, "fatol": 1e-4, "initial_simplex": simplex}
    return settings(minimize(lambda x: data.loss(settings(x)), first, method="Nelder-Mead", options=options).x)


def calibrate_evidence(
    posteriors: Sequence[Posterior],
    neighbours: Sequence[Neighbours],
    truth: Float64[np.ndarray, "n 2"],
    settings: EvidenceSettings,
    name: str,
    sources: Int64[np.ndarray, " n"] | None = None,
) -> Calibration:
    """Fit the levels of combined posteriors, as :func:`open_geoclip.evaluation.calibration.fit_calibration` does.

    Args:
        posteriors: of the location model.
        neighbours: of the same images.
        truth: where they were taken; images that the settings were not fitted on are better.
        settings: of the combination.
        name: of the images, for readers of the calibration.
        sources: see :func:`open_geoclip.evaluation.calibration.fit_levels`.
    """
    own = posteriors[0].calibration
    plain = Calibration(sigma_km=own.sigma_km, fitted_on=name, n_images=len(truth), min_score=own.min_score)
    combined: Iterator[Posterior] = (
        combine(one, near, settings, plain) for one, near in zip(posteriors, neighbours, strict=True)
    )
    return fit_levels(combined, truth, plain, posteriors[0].cells, sources)
