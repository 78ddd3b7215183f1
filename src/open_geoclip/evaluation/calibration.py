"""Fitting a calibration on validation data. :mod:`open_geoclip.evaluation.reliability` measures whether it holds."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, haversine_km, unit_vectors
from open_geoclip.search.calibration import (
    CALIBRATED_LEVELS,
    IN_DISTRIBUTION_SHARE,
    MAX_LOG_TEMPERATURE,
    OUT_OF_DISTRIBUTION_P,
    P_VALUES,
    SURE_KM,
    SURE_PROBABILITY,
    Calibration,
    conformal_scores,
    nonconformity,
)
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.mixture import Approach
from open_geoclip.search.posterior import HPDPosition, Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.search_space import SearchSpace
from open_geoclip.search.smoothing import RadialProfile, log_kernel

__all__ = [
    "ANSWER_KM",
    "fit_calibration",
    "fit_distribution",
    "fit_levels",
    "fit_parameters",
]

ANSWER_KM = 200.0
"""Levels are fitted around the answer with the most mass within this radius."""

_BATCH = 128  # images
_NEIGHBOURS = 48  # cells around a truth; those beyond add nothing to the density there
_TEMPERATURES = np.geomspace(0.2, 5.0, 17)
_MIN_IMAGES = 100
_SURE_PROBABILITIES = (*np.arange(SURE_PROBABILITY, 0.99, 0.01).round(2), *np.arange(0.99, 1, 0.001).round(3))
_SURE_RIGHT = 0.99  # share of sure answers that are right in each of several sources


def fit_calibration(
    index: GalleryIndex,
    embeddings: Float[Tensor, "n d"],
    truth: Float[np.ndarray, "n 2"],
    scale: float,
    *,
    name: str,
    n_refined: int = 0,
    distances: Float[Tensor, " n"] | None = None,
    distribution: Mapping[str, Any] | None = None,
    sources: Int64[np.ndarray, " n"] | None = None,
    parameters: Calibration | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Fit temperature, background and smoothing by maximum likelihood, and levels on top.

    Args:
        index: the gallery that answers will be chosen from, with its own prior.
        embeddings: of validation images, of length 1.
        truth: where they were taken, (lat, lon) in degrees.
        scale: the model's.
        name: of the validation data, for readers of the calibration.
        n_refined: number of images, the first ones, to also fit the levels of refined posteriors on.
        distances: of the features of the images, where the model has a subspace of training images.
        distribution: what :func:`fit_distribution` returns for more images than these; default: for these.
        sources: a number for the source of each image, such as the season. With them levels and p-values are those
            that hold on each source, and sure answers are right on each; default: one source.
        parameters: what :func:`fit_parameters` returns; default: for these images.
        progress: called with (done, total).

    Raises:
        SettingsError: fewer than 100 images.
    """
    n = len(embeddings)
    parameters = parameters or fit_parameters(index, embeddings, truth, scale, progress=progress)
    calibration = replace(parameters, fitted_on=name, n_images=n)
    cells = GalleryCells.from_gallery(index.gallery)
    sources = np.zeros(n, np.int64) if sources is None else sources
    best_scores = np.empty(n)

    def posteriors() -> Iterator[Posterior]:
        for start in range(0, n, _BATCH):
            logits = index.logits(embeddings[start : start + _BATCH], scale)
            best_scores[start : start + _BATCH] = logits.max(dim=1).values.double().numpy() / scale
            yield Posterior.from_logits(logits, cells, calibration)

    outcomes = _outcomes(posteriors(), truth, calibration, cells)
    levels, hpd_levels = outcomes.levels(sources)
    calibration = replace(calibration, levels=levels, hpd_levels=hpd_levels)
    calibration = _fit_conformal(outcomes, best_scores, sources, calibration, distances, distribution)
    if n_refined == 0:
        return calibration
    plain, space = replace(calibration, levels=(), hpd_levels=()), SearchSpace.from_index(index)
    parts = embeddings[:n_refined].split(_BATCH)
    refined = (posterior for part in parts for posterior in space.refined_posteriors(part, scale, plain))
    fitted = fit_levels(refined, truth[:n_refined], plain, space.cells, sources[:n_refined])
    return replace(calibration, refined_levels=fitted.levels, refined_hpd_levels=fitted.hpd_levels)


def fit_parameters(
    index: GalleryIndex,
    embeddings: Float[Tensor, "n d"],
    truth: Float[np.ndarray, "n 2"],
    scale: float,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Fit temperature, background and smoothing by maximum likelihood; the result has no levels.

    Minimises the mean negative log density at the truths, in nats per square kilometre: a proper score. The gallery is
    searched once: the normaliser is a smooth function of the temperature, so it is computed at 17 temperatures and
    interpolated. Arguments and exceptions are those of :func:`fit_calibration`.
    """
    from scipy.spatial import cKDTree

    n = len(embeddings)
    if n < _MIN_IMAGES:
        raise SettingsError(f"a calibration takes at least {_MIN_IMAGES} images, not {n}")
    cells = GalleryCells.from_gallery(index.gallery)
    near = min(_NEIGHBOURS, len(cells))
    chord, rows = cKDTree(cells.points.numpy().astype(np.float64)).query(
        unit_vectors(np.asarray(truth, np.float64)), k=list(range(1, near + 1))
    )
    near_rows = torch.from_numpy(rows.astype(np.int64))
    totals, at_truth, best = np.empty((n, len(_TEMPERATURES))), np.empty((n, near)), np.empty(n)
    for start in range(0, n, _BATCH):
        part = slice(start, min(start + _BATCH, n))
        logits = index.logits(embeddings[part], scale)
        at_truth[part] = logits.gather(1, near_rows[part]).double().numpy()
        best[part] = cells.best_logits(logits).double().numpy()
        for column, temperature in enumerate(_TEMPERATURES):
            sums = torch.logsumexp(torch.add(cells.log_prior, logits, alpha=1 / temperature), dim=1)
            totals[part, column] = sums.double().numpy()
        if progress is not None:
            progress(part.stop, n)
    own_prior = cells.log_prior.double().numpy()[rows]
    return Calibration(**_fit_parameters(at_truth, own_prior, cells.area_km2[rows], chord, best, totals))


@torch.inference_mode(False)
def _fit_parameters(
    logits: Float64[np.ndarray, "n k"],
    log_prior: Float64[np.ndarray, "n k"],
    area_km2: Float64[np.ndarray, "n k"],
    chord: Float64[np.ndarray, "n k"],
    best: Float64[np.ndarray, " n"],
    totals: Float64[np.ndarray, "n t"],
) -> dict[str, Any]:
    """Return the parameters of highest likelihood, by name. Arrays, as tensors of inference mode have no gradient.

    Args:
        logits: of the k cells around each truth.
        log_prior: of these cells.
        area_km2: of these cells.
        chord: from the truth to each of them, in Earth radii.
        best: logit of each image.
        totals: logarithm of the normaliser of each image at each of the temperatures.
    """
    from scipy.interpolate import CubicSpline
    from scipy.optimize import minimize

    reference = float(np.median(best))
    # As a function of 1/T the normaliser is nearly straight, and a spline follows it.
    spline = CubicSpline(1 / _TEMPERATURES[::-1], totals[:, ::-1], axis=1)
    pieces, knots = torch.from_numpy(spline.c), torch.from_numpy(spline.x)
    square, area = torch.from_numpy(chord**2), torch.from_numpy(area_km2 / EARTH_RADIUS_KM**2)
    own_prior, own_logits = torch.from_numpy(log_prior), torch.from_numpy(logits)
    uniform = torch.tensor(math.log(1e-6 / (4 * math.pi * EARTH_RADIUS_KM**2)), dtype=torch.float64)
    spread, n = float(best.std()) + 1e-9, len(best)
    below = torch.from_numpy((reference - best) / spread)
    limits = [np.log(_TEMPERATURES[[0, -1]]), (-9, 3), (-5, 8), (-6, 3), (0, MAX_LOG_TEMPERATURE)]

    def loss(x: Float64[np.ndarray, "5"]) -> tuple[float, Float64[np.ndarray, "5"]]:
        """Return the negative log density and its gradient."""
        parameters = torch.from_numpy(x).requires_grad_()
        log_temperature, log_odds, log_sigma, log_slope, slope = parameters
        power = (slope * below).clamp(-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
        inverse = (-log_temperature - power).exp().clamp(*knots[[0, -1]].tolist())
        piece = (torch.searchsorted(knots, inverse.detach()) - 1).clamp(0, len(knots) - 2)
        step, cubic = inverse - knots[piece], pieces[:, piece, torch.arange(n)]
        normaliser = ((cubic[0] * step + cubic[1]) * step + cubic[2]) * step + cubic[3]
        odds = (log_odds + log_slope.exp() * below)[:, None]
        kernel = log_kernel(square, (area / 12 + (log_sigma.exp() / EARTH_RADIUS_KM) ** 2).sqrt())
        signal = own_logits * inverse[:, None] + own_prior - normaliser[:, None] - F.softplus(odds)
        terms = torch.logaddexp(signal, own_prior - F.softplus(-odds)) + kernel
        mean = -torch.logaddexp(torch.logsumexp(terms, dim=1), uniform).mean()
        [gradient] = torch.autograd.grad(mean, parameters)
        return float(mean.detach()), gradient.numpy()

    found = minimize(loss, [-0.7, -5.0, math.log(15.0), 0.0, 0.2], jac=True, method="L-BFGS-B", bounds=limits)
    log_temperature, log_odds, log_sigma, log_slope, slope = found.x.tolist()
    return {
        "temperature": round(math.exp(log_temperature), 4),
        "background": round(1 / (1 + math.exp(-log_odds)), 5),
        "sigma_km": round(math.exp(log_sigma), 2),
        "background_slope": round(math.exp(log_slope) / spread, 4),
        "reference_logit": round(reference, 3),
        "temperature_slope": round(slope / spread, 5),
    }


def fit_levels(
    posteriors: Iterable[Posterior],
    truth: Float[np.ndarray, "n 2"],
    plain: Calibration,
    cells: GalleryCells,
    sources: Int64[np.ndarray, " n"] | None = None,
) -> Calibration:
    """Return a calibration with levels: the shares of the mass that hold the truth as often as they should.

    Kuleshov, Fenner and Ermon, "Accurate uncertainties for deep learning using calibrated regression", 2018: quantiles
    of the mass that is nearer to the answer, or of higher density, than the truth. Truths that the background explains
    better than the image are weighted down by as much: how often they occur is the background's own share.

    Args:
        posteriors: of all truths, in order, without levels.
        truth: (lat, lon) in degrees.
        plain: the calibration of the posteriors.
        cells: theirs.
        sources: a number for the source of each image: levels are the highest of any source, those of the source
            whose truths lie farthest out. With several, ``sure_probability`` is also fitted. Default: one source.
    """
    outcomes = _outcomes(posteriors, truth, plain, cells)
    sources = np.zeros(len(outcomes.nearer), np.int64) if sources is None else sources
    levels, hpd_levels = outcomes.levels(sources)
    calibration = replace(plain, levels=levels, hpd_levels=hpd_levels)
    within = calibration.calibrated_level(outcomes.within[:, None], outcomes.background)[:, 0]
    return replace(calibration, sure_probability=_sure_probability(within, outcomes.off_km <= SURE_KM, sources))


@dataclass(frozen=True)
class _Outcomes:
    """Where the truths of n images lie in their posteriors, without levels.

    Attributes:
        nearer: share of the mass that is nearer to the answer than the truth.
        approaches: how near HPD regions come.
        within: share of the mass within 200 km of the answer.
        off_km: from the answer to the truth.
        background: share of the background.
        weight: how far the image rather than the background explains the truth.
    """

    nearer: Float64[np.ndarray, " n"]
    approaches: list[Approach]
    within: Float64[np.ndarray, " n"]
    off_km: Float64[np.ndarray, " n"]
    background: Float64[np.ndarray, " n"]
    weight: Float64[np.ndarray, " n"]

    def levels(self, sources: Int64[np.ndarray, " n"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return ``levels`` and ``hpd_levels``; see :func:`fit_levels`."""
        signal = 1 - self.background
        groups = [sources == number for number in np.unique(sources)]
        highest = []
        denser = np.array([approach.levels[-1] for approach in self.approaches])  # share of the mass
        for shares in (self.nearer / signal, denser / signal):
            curves = [_weighted_levels(np.minimum(shares[rows], 1), self.weight[rows]) for rows in groups]
            highest.append(tuple(map(max, zip(*curves, strict=True))))
        return highest[0], highest[1]


def _outcomes(
    posteriors: Iterable[Posterior], truth: Float[np.ndarray, "n 2"], plain: Calibration, cells: GalleryCells
) -> _Outcomes:
    """Return where the truths lie; the arguments are those of :func:`fit_levels`."""
    places = np.asarray(truth, np.float64)
    prior_density = cells.log_prior.exp().double().numpy() / cells.area_km2
    nearer, within, off_km, background, weight = np.zeros((5, len(places)))
    approaches, start = list[Approach](), 0
    for posterior in posteriors:
        part = slice(start, start + len(posterior))
        start = part.stop
        answers = posterior.decode("mass", ANSWER_KM)
        off_km[part] = haversine_km(places[part], answers)
        profile = posterior.profile(answers)
        within[part] = profile.within((SURE_KM,))[:, 0]
        nearer[part] = [
            RadialProfile(row[None]).within((max(km, 1e-3),))[0, 0]
            for row, km in zip(profile.cdf, off_km[part], strict=True)
        ]
        approaches += posterior.approaches(places[part])
        weight[part] = 1.0
        if posterior.background is None or not plain.background_slope:
            continue
        background[part] = posterior.background_share
        prior = background[part] * prior_density[cells.nearest(places[part])]
        weight[part] = 1 - np.clip(prior / np.exp(posterior.log_density(places[part])), 0, 1)
    return _Outcomes(nearer, approaches, within, off_km, background, weight)


def _weighted_levels(shares: Float64[np.ndarray, " n"], weight: Float64[np.ndarray, " n"]) -> tuple[float, ...]:
    """Return weighted quantiles of shares, as :class:`Calibration` stores them."""
    order = np.argsort(shares, kind="stable")
    cumulated = np.cumsum(weight[order]) - weight[order] / 2
    inner = np.interp(CALIBRATED_LEVELS[1:-1], cumulated / weight.sum(), shares[order]).clip(1e-6, 1 - 1e-6)
    # Each a little above the one before, so that the function can be inverted.
    increasing = np.maximum.accumulate(inner) + 1e-7 * np.arange(len(inner))
    return (0.0, *(float(level) for level in (increasing * (1 - 1e-5)).round(9)), 1.0)


def _fit_conformal(
    outcomes: _Outcomes,
    best: Float64[np.ndarray, " n"],
    sources: Int64[np.ndarray, " n"],
    calibration: Calibration,
    distances: Float[Tensor, " n"] | None,
    distribution: Mapping[str, Any] | None,
) -> Calibration:
    """Fit when an answer is sure, the scores of p-values, and the scores and distances out of distribution."""
    scores = nonconformity(*HPDPosition.from_approaches(outcomes.approaches, calibration, outcomes.background))
    within = calibration.calibrated_level(outcomes.within[:, None], outcomes.background)[:, 0]
    calibration = replace(calibration, **(distribution or fit_distribution(best, distances)))
    usual = best >= np.quantile(best, 1 - IN_DISTRIBUTION_SHARE)
    known = calibration.is_in_distribution(torch.from_numpy(best), distances)
    assert known is not None
    inside = known.numpy()
    may_be_sure, right = usual & inside, outcomes.off_km <= SURE_KM
    calibration = replace(
        calibration,
        sure_score=round(float(best[usual].min()), 6),
        sure_probability=_sure_probability(within[may_be_sure], right[may_be_sure], sources[may_be_sure]),
    )
    sure = usual & (within >= calibration.sure_probability)
    return replace(calibration, conformal_scores=conformal_scores(scores[inside], sure[inside], sources[inside]))


def _sure_probability(
    within: Float64[np.ndarray, " n"], right: Bool[np.ndarray, " n"], sources: Int64[np.ndarray, " n"]
) -> float:
    """Return the least probability that sure answers need: with several sources, enough are right in each of them."""
    names = np.unique(sources)
    if len(names) < 2:
        return SURE_PROBABILITY
    for probability in _SURE_PROBABILITIES:
        sure = within >= probability
        if all(right[sure & (sources == name)].mean() >= _SURE_RIGHT for name in names if any(sure[sources == name])):
            return float(probability)
    return 1.0


def fit_distribution(best_scores: Float[np.ndarray, " n"], distances: Float[Tensor, " n"] | None) -> dict[str, Any]:
    """Return the fields of a calibration by which images out of distribution are recognised.

    Args:
        best_scores: cosines of the best cells of validation images.
        distances: of their features; None: not known.
    """
    refused = 1 - IN_DISTRIBUTION_SHARE if distances is None else OUT_OF_DISTRIBUTION_P
    fields: dict[str, Any] = {"min_score": round(float(np.quantile(best_scores, refused)), 6)}
    if distances is not None:
        known = [p for p in P_VALUES if p * (len(distances) + 1) >= 1]
        fields["distances"] = tuple(np.quantile(distances.double().numpy(), 1 - np.array(known)).round(6).tolist())
    return fields
