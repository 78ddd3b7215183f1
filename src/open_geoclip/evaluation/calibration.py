"""Fitting a calibration on validation data, and measuring on test data whether probabilities hold."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.evaluation.metrics import THRESHOLDS_KM, distances_km
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, haversine_km, unit_vectors
from open_geoclip.search.calibration import (
    CALIBRATED_LEVELS,
    IN_DISTRIBUTION_SHARE,
    MAX_LOG_TEMPERATURE,
    OUT_OF_DISTRIBUTION_P,
    P_VALUES,
    SURE_KM,
    Calibration,
    conformal_levels,
)
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.search_space import SearchSpace
from open_geoclip.search.smoothing import RadialProfile, log_kernel

__all__ = ["ANSWER_KM", "fit_calibration", "fit_distribution", "fit_levels", "measure_calibration", "reliability"]

ANSWER_KM = 200.0
"""Levels are fitted around the answer with the most mass within this radius."""

_BATCH = 128  # images
_NEIGHBOURS = 48  # cells around a truth; those beyond add nothing to the density there
_TEMPERATURES = np.geomspace(0.2, 5.0, 17)
_MIN_IMAGES = 100
_SHARES = (0.5, 0.9)  # of the circles and regions that are measured
_RESAMPLES = 1000
_LEAST_KM = 25  # whose reliability is measured; at 1 km nearly nothing is right


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
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Fit temperature, background and smoothing by maximum likelihood, and levels on top.

    Minimises the mean negative log density at the truths, in nats per square kilometre: a proper score. The gallery is
    searched once: the normaliser is a smooth function of the temperature, so it is computed at 17 temperatures and
    interpolated.

    Args:
        index: the gallery that answers will be chosen from, with its own prior.
        embeddings: of validation images, of length 1.
        truth: where they were taken, (lat, lon) in degrees.
        scale: the model's.
        name: of the validation data, for readers of the calibration.
        n_refined: number of images, the first ones, to also fit the levels of refined posteriors on.
        distances: of the features of the images, where the model has a subspace of training images.
        distribution: what :func:`fit_distribution` returns for more images than these; default: for these.
        progress: called with (done, total).

    Raises:
        SettingsError: fewer than 100 images.
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
    parameters = _fit_parameters(at_truth, own_prior, cells.area_km2[rows], chord, best, totals)
    calibration = Calibration(**parameters, fitted_on=name, n_images=n)

    def batches() -> Iterator[tuple[Tensor, Posterior]]:
        for part in embeddings.split(_BATCH):
            logits = index.logits(part, scale)
            yield logits, Posterior.from_logits(logits, cells, calibration)

    levels, hpd_levels, nominal = fit_levels((posterior for _, posterior in batches()), truth, calibration, cells)
    calibration = replace(calibration, levels=levels, hpd_levels=hpd_levels)
    calibration = _fit_conformal(batches(), nominal, scale, calibration, distances, distribution)
    if n_refined == 0:
        return calibration
    plain, space = replace(calibration, levels=(), hpd_levels=()), SearchSpace.from_index(index)
    parts = embeddings[:n_refined].split(_BATCH)
    refined = (posterior for part in parts for posterior in space.refined_posteriors(part, scale, plain))
    levels, hpd_levels, _ = fit_levels(refined, truth[:n_refined], plain, space.cells)
    return replace(calibration, refined_levels=levels, refined_hpd_levels=hpd_levels)


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
    posteriors: Iterable[Posterior], truth: Float[np.ndarray, "n 2"], plain: Calibration, cells: GalleryCells
) -> tuple[tuple[float, ...], tuple[float, ...], Float64[np.ndarray, " n"]]:
    """Fit ``levels`` and ``hpd_levels``: the shares of the mass that hold the truth as often as they should.

    Kuleshov, Fenner and Ermon, "Accurate uncertainties for deep learning using calibrated regression", 2018: quantiles
    of the mass that is nearer to the answer, or of higher density, than the truth. Truths that the background explains
    better than the image are weighted down by as much: how often they occur is the background's own share. Returned,
    too: the share of the mass that is of higher density than each truth.

    Args:
        posteriors: of all truths, in order, without levels.
        truth: (lat, lon) in degrees.
        plain: the calibration of the posteriors.
        cells: theirs.
    """
    places = np.asarray(truth, np.float64)
    prior_density = cells.log_prior.exp().double().numpy() / cells.area_km2
    nearer, nominal, denser, weight = (np.empty(len(places)) for _ in range(4))
    start = 0
    for posterior in posteriors:
        part = slice(start, start + len(posterior))
        start = part.stop
        answers = posterior.decode("mass", ANSWER_KM)
        distance_km = haversine_km(places[part], answers)
        cdf = posterior.profile(answers).cdf
        nearer[part] = [
            RadialProfile(row[None]).within((max(km, 1e-3),))[0, 0] for row, km in zip(cdf, distance_km, strict=True)
        ]
        nominal[part] = denser[part] = posterior.hpd_level(places[part])
        if posterior.background is None or not plain.background_slope:
            weight[part] = 1.0
            continue
        background = posterior.background.double().numpy()
        by_chance = (
            background * prior_density[cells.nearest(places[part])] / np.exp(posterior.log_density(places[part]))
        )
        weight[part] = 1 - np.clip(by_chance, 0, 1)
        nearer[part] = np.minimum(nearer[part] / (1 - background), 1)
        denser[part] = np.minimum(denser[part] / (1 - background), 1)
    return _weighted_levels(nearer, weight), _weighted_levels(denser, weight), nominal


def _weighted_levels(shares: Float64[np.ndarray, " n"], weight: Float64[np.ndarray, " n"]) -> tuple[float, ...]:
    """Return weighted quantiles of shares, as :class:`Calibration` stores them."""
    order = np.argsort(shares, kind="stable")
    cumulated = np.cumsum(weight[order]) - weight[order] / 2
    inner = np.interp(CALIBRATED_LEVELS[1:-1], cumulated / weight.sum(), shares[order]).clip(1e-6, 1 - 1e-6)
    # Each a little above the one before, so that the function can be inverted.
    increasing = np.maximum.accumulate(inner) + 1e-7 * np.arange(len(inner))
    return (0.0, *(float(level) for level in (increasing * (1 - 1e-5)).round(9)), 1.0)


def _fit_conformal(
    batches: Iterable[tuple[Tensor, Posterior]],
    nominal: Float64[np.ndarray, " n"],
    scale: float,
    calibration: Calibration,
    distances: Float[Tensor, " n"] | None,
    distribution: Mapping[str, Any] | None,
) -> Calibration:
    """Fit the levels of conformal p-values, and by which scores and distances an image is out of distribution."""
    hpd_level, best, sure = (np.empty(len(nominal), kind) for kind in (float, float, bool))
    start = 0
    for logits, posterior in batches:
        part = slice(start, start + len(posterior))
        start = part.stop
        share = posterior.background_share
        hpd_level[part] = calibration.calibrated_level(nominal[part][:, None], share, hpd=True)[:, 0]
        best[part] = logits.max(dim=1).values.double().numpy() / scale
        sure[part] = posterior.is_sure(posterior.profile(posterior.decode("mass", ANSWER_KM)))
    calibration = replace(calibration, **(distribution or fit_distribution(best, distances)))
    usual = best >= np.quantile(best, 1 - IN_DISTRIBUTION_SHARE)
    calibration = replace(calibration, sure_score=round(float(best[usual].min()), 6))
    inside = calibration.is_in_distribution(torch.from_numpy(best), distances)
    assert inside is not None
    rows = inside.numpy()
    return replace(calibration, conformal_levels=conformal_levels(hpd_level[rows], (sure & usual)[rows]))


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


@torch.inference_mode()
def measure_calibration(
    posteriors: Iterable[Posterior],
    truth: Float[np.ndarray, "n 2"],
    clusters: Int64[np.ndarray, " n"] | None = None,
) -> dict[str, Any]:
    """Measure whether probabilities hold on data that they were not fitted on.

    Args:
        posteriors: of all truths, in order, any number of rows at a time.
        truth: (lat, lon) in degrees.
        clusters: a number from 0 for each truth; those of one cluster are resampled together for the intervals.

    Returns:
        ``circle_holds`` and ``region_holds``: percentages of truths within the circles and the regions of highest
        density of 50 and 90 %; ``circle_median_km``; ``reliability`` by distance, see :func:`reliability`;
        ``nats_per_km2``, the mean negative log density at the truths; ``sure``: its share, and the percentages right
        within 200 km of sure answers and of the others (None where there is none), or None without a calibration. With
        clusters,
        ``circle_interval``: 95 % bootstrap intervals of ``circle_holds``.
    """
    n = len(truth)
    off_km, density, level, sure = np.empty(n), np.empty(n), np.empty(n), np.zeros(n, bool)
    is_calibrated = True
    within, radii = np.empty((n, len(THRESHOLDS_KM))), np.empty((n, len(_SHARES)))
    start = 0
    for posterior in posteriors:
        part = slice(start, start + len(posterior))
        start, places = part.stop, np.asarray(truth[part], np.float64)
        answers = posterior.decode("mass", ANSWER_KM)
        profile = posterior.profile(answers)
        off_km[part] = distances_km(places, answers)
        within[part], radii[part] = profile.within(THRESHOLDS_KM), profile.radius_km(_SHARES)
        is_calibrated &= posterior.calibration.fitted_on is not None
        sure[part] = list(map(bool, posterior.is_sure(profile)))
        density[part], level[part] = posterior.log_density(places), posterior.hpd_level(places)
    hits, right = off_km[:, None] <= radii, off_km <= SURE_KM
    names = [f"{100 * share:.0f}" for share in _SHARES]
    intervals = {}
    if clusters is not None:
        sizes = np.bincount(clusters)
        draws = np.random.default_rng(0).multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=_RESAMPLES)
        held = np.stack([np.bincount(clusters, hit) for hit in hits.T], axis=1)
        shares = 100 * (draws @ held) / (draws @ sizes)[:, None]
        ends = np.quantile(shares, (0.025, 0.975), axis=0).T.tolist()
        intervals = {"circle_interval": dict(zip(names, ends, strict=True))}
    return intervals | {
        "n": n,
        "circle_holds": dict(zip(names, (100 * hits.mean(axis=0)).tolist(), strict=True)),
        "circle_median_km": dict(zip(names, np.median(radii, axis=0).tolist(), strict=True)),
        "region_holds": {name: 100 * float(np.mean(level <= s)) for name, s in zip(names, _SHARES, strict=True)},
        "reliability": {
            str(km): reliability(within[:, column], off_km <= km)
            for column, km in enumerate(THRESHOLDS_KM)
            if km >= _LEAST_KM
        },
        "nats_per_km2": float(-density.mean()),
        "sure": {
            "share": 100 * float(sure.mean()),
            "right_when_sure": 100 * float(right[sure].mean()) if sure.any() else None,
            "right_when_not_sure": 100 * float(right[~sure].mean()) if not sure.all() else None,
        }
        if is_calibrated
        else None,
    }


def reliability(claimed: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = 10) -> dict[str, Any]:
    """Compare claimed probabilities with how often they were right.

    Guo et al., "On calibration of modern neural networks", 2017, section 2; with bins of equally many answers
    instead of equal width, so that none is nearly empty.

    Returns:
        ``ece``, the expected calibration error, 0 to 1; ``bins``: for each ``n``, mean ``claimed`` and share ``right``.
    """
    order = np.argsort(claimed, kind="stable")
    rows = [
        {"n": len(part), "claimed": float(claimed[part].mean()), "right": float(right[part].mean())}
        for part in np.array_split(order, min(bins, len(order)))
    ]
    gaps = [row["n"] * abs(row["claimed"] - row["right"]) for row in rows]
    return {"ece": sum(gaps) / len(claimed), "bins": rows}
