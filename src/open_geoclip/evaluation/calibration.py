"""Fitting a calibration on validation data, and measuring on test data whether probabilities hold."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, haversine_km, unit_vectors
from open_geoclip.search.blur import Profile, log_gauss
from open_geoclip.search.calibration import NOMINAL, Calibration
from open_geoclip.search.index import GalleryIndex
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import Ground, log_prior
from open_geoclip.search.search_space import Territory
from open_geoclip.search.surprise import FAMILIAR_SHARE, levels_of

__all__ = ["ANSWER_KM", "fit_between", "fit_calibration", "fit_levels", "fit_surprise", "reliability"]

ANSWER_KM = 200.0
"""Levels are fitted around the answer that has the most mass within this radius."""

_CHUNK = 128  # pictures
_NEAR = 48  # places around a truth; those further off add nothing to the density there
_TEMPERATURES = np.geomspace(0.2, 5.0, 17)
_FEWEST = 100


@torch.inference_mode()
def fit_calibration(
    index: GalleryIndex,
    vectors: Float[Tensor, "n d"],
    truth: Float[np.ndarray, "n 2"],
    scale: float,
    *,
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """The temperature, background, doubt and width under which the truths are most likely, and levels on top.

    What is made small is the mean negative log density at the truths, in nats for each square kilometre: a proper
    score, which has its best value where the probabilities are right. The gallery is gone through once: the
    normaliser is a smooth function of the temperature, so it is computed at 17 temperatures and interpolated.

    Args:
        index: the gallery that answers will be chosen from, with its own prior.
        vectors: of validation pictures, of length 1.
        truth: where they were taken, (lat, lon) in degrees.
        scale: the model's.
        name: what the pictures are called, for whoever reads the calibration.
        progress: called with (done, total).

    Raises:
        SettingsError: fewer than 100 pictures.
    """
    from scipy.interpolate import CubicSpline
    from scipy.optimize import minimize
    from scipy.spatial import cKDTree

    n = len(vectors)
    if n < _FEWEST:
        raise SettingsError(f"a calibration takes at least {_FEWEST} pictures, not {n}")
    ground = Ground.of(index.gallery)
    prior = log_prior(index.gallery, ground)
    near = min(_NEAR, len(ground))
    chord, rows = cKDTree(ground.points.numpy().astype(np.float64)).query(
        unit_vectors(np.asarray(truth, np.float64)), k=list(range(1, near + 1))
    )
    rows_ = torch.from_numpy(rows.astype(np.int64))
    totals, at_truth, best = np.empty((n, len(_TEMPERATURES))), np.empty((n, near)), np.empty(n)
    for start in range(0, n, _CHUNK):
        part = slice(start, min(start + _CHUNK, n))
        logits = index.logits(vectors[part], scale)
        at_truth[part] = logits.gather(1, rows_[part]).double().numpy()
        best[part] = logits.masked_fill(prior == -torch.inf, -torch.inf).amax(dim=1).double().numpy()
        for column, temperature in enumerate(_TEMPERATURES):
            sums = torch.logsumexp(torch.add(prior, logits, alpha=1 / temperature), dim=1)
            totals[part, column] = sums.double().numpy()
        if progress is not None:
            progress(part.stop, n)
    # Divided by what grows with 1/T, the normaliser bends little, and a spline follows it.
    normaliser = CubicSpline(1 / _TEMPERATURES[::-1], totals[:, ::-1], axis=1)
    square, cell = chord**2, ground.cell_km2[rows] / EARTH_RADIUS_KM**2
    own = prior.double().numpy()[rows]
    everywhere = math.log(1e-6 / (4 * math.pi * EARTH_RADIUS_KM**2))

    usual, spread = float(np.median(best)), float(best.std()) + 1e-9

    def unpacked(x: Float64[np.ndarray, "4"]) -> tuple[float, float, float, float]:
        low, high = math.log(_TEMPERATURES[0]), math.log(_TEMPERATURES[-1])
        share = 1 / (1 + math.exp(-np.clip(x[1], -9, 3)))
        doubt = math.exp(np.clip(x[3], -6, 3)) / spread
        return math.exp(np.clip(x[0], low, high)), share, math.exp(np.clip(x[2], -5, 8)), doubt

    def loss(x: Float64[np.ndarray, "4"]) -> float:
        temperature, background, width, doubt = unpacked(x)
        blur = torch.from_numpy(np.sqrt(cell / 12 + (width / EARTH_RADIUS_KM) ** 2))
        kernel = log_gauss(torch.from_numpy(square), blur).numpy()
        odds = math.log(background / (1 - background)) + doubt * (usual - best)[:, None]
        told = at_truth / temperature + own - normaliser(1 / temperature)[:, None] - np.logaddexp(0, odds)
        terms = np.logaddexp(told, own - np.logaddexp(0, -odds)) + kernel
        return -float(np.logaddexp(np.logaddexp.reduce(terms, axis=1), everywhere).mean())

    found = minimize(
        loss,
        [-0.7, -5.0, math.log(15.0), 0.0],
        method="Nelder-Mead",
        options={"xatol": 1e-3, "fatol": 1e-5, "maxiter": 600},
    )
    temperature, background, width, doubt = unpacked(found.x)
    told = Calibration(
        temperature=round(temperature, 4),
        background=round(background, 5),
        width_km=round(width, 2),
        fitted_on=name,
        pictures=n,
        doubt=round(doubt, 4),
        usual=round(usual, 3),
    )
    levels, region_levels = fit_levels(index, vectors, truth, scale, told)
    return fit_surprise(index, vectors, truth, scale, replace(told, levels=levels, region_levels=region_levels))


@torch.inference_mode()
def fit_levels(
    index: GalleryIndex,
    vectors: Float[Tensor, "n d"],
    truth: Float[np.ndarray, "n 2"],
    scale: float,
    calibration: Calibration,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Which shares of the mass hold the truth as often as they should, around an answer and in the smallest regions.

    Kuleshov, Fenner and Ermon, "Accurate uncertainties for deep learning using calibrated regression", 2018: quantiles
    of the mass that is nearer to the answer, or on denser ground, than the truth is. Truths that the background
    explains better than the picture does count as much less: how often it does is the background's own share.
    Arguments are those of :func:`fit_calibration`.
    """
    ground = Ground.of(index.gallery)
    prior, plain = log_prior(index.gallery, ground), replace(calibration, levels=(), region_levels=())

    def posteriors() -> Iterator[Posterior]:
        for part in vectors.split(_CHUNK):
            yield Posterior.from_logits(index.logits(part, scale), prior, ground, plain)

    return _levels_of(posteriors(), truth, plain, prior, ground)


@torch.inference_mode()
def fit_between(
    index: GalleryIndex,
    vectors: Float[Tensor, "n d"],
    truth: Float[np.ndarray, "n 2"],
    scale: float,
    calibration: Calibration,
) -> Calibration:
    """A calibration that holds for answers between the places of the gallery too.

    Refined grounds gather the mass in narrower peaks, which the levels of the gallery's own places would trust too
    much. Arguments are those of :func:`fit_calibration`.
    """
    plain = replace(calibration, levels=(), region_levels=())
    territory = Territory(index, "gallery")

    def posteriors() -> Iterator[Posterior]:
        for part in vectors.split(_CHUNK):
            yield from (adapted.posterior for adapted in territory.between(part, scale, plain))

    levels, region_levels = _levels_of(posteriors(), truth, plain, territory.log_prior, territory.ground)
    return replace(calibration, between_levels=levels, between_region_levels=region_levels)


def _levels_of(
    posteriors: Iterable[Posterior],
    truth: Float[np.ndarray, "n 2"],
    plain: Calibration,
    prior: Float[Tensor, " m"],
    ground: Ground,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Levels around answers and of regions; the posteriors are of all truths, one after the other."""
    places = np.asarray(truth, np.float64)
    before = prior.exp().double().numpy() / ground.cell_km2
    nearer, denser, weight = (np.empty(len(places)) for _ in range(3))
    start = 0
    for posterior in posteriors:
        part = slice(start, start + len(posterior))
        start = part.stop
        answers = posterior.decode("mass", ANSWER_KM)
        off = haversine_km(places[part], answers)
        profile = posterior.profile(answers)
        nearer[part] = [
            Profile(row[None]).within((max(km, 1e-3),))[0, 0] for row, km in zip(profile.upto, off, strict=True)
        ]
        denser[part] = posterior.region_level(places[part])
        if posterior.background is None or not plain.doubt:
            weight[part] = 1.0
            continue
        background = posterior.background.double().numpy()
        by_chance = background * before[ground.nearest(places[part])] / np.exp(posterior.log_density(places[part]))
        weight[part] = 1 - np.clip(by_chance, 0, 1)
        nearer[part] = np.minimum(nearer[part] / (1 - background), 1)
        denser[part] = np.minimum(denser[part] / (1 - background), 1)
    return _levels(nearer, weight), _levels(denser, weight)


def _levels(shares: Float64[np.ndarray, " n"], weight: Float64[np.ndarray, " n"]) -> tuple[float, ...]:
    """Weighted quantiles of shares, as :class:`Calibration` keeps them."""
    order = np.argsort(shares, kind="stable")
    upto = np.cumsum(weight[order]) - weight[order] / 2
    inner = np.interp(NOMINAL[1:-1], upto / weight.sum(), shares[order]).clip(1e-6, 1 - 1e-6)
    # Each a little above the one before, so that levels can be told apart.
    grown = np.maximum.accumulate(inner) + 1e-7 * np.arange(len(inner))
    return (0.0, *(float(level) for level in (grown * (1 - 1e-5)).round(9)), 1.0)


@torch.inference_mode()
def fit_surprise(
    index: GalleryIndex,
    vectors: Float[Tensor, "n d"],
    truth: Float[np.ndarray, "n 2"],
    scale: float,
    calibration: Calibration,
) -> Calibration:
    """A calibration that can also say how surprising a place is, and which pictures are unlike those of the fit.

    See :mod:`open_geoclip.search.surprise`. Arguments are those of :func:`fit_calibration`.
    """
    ground = Ground.of(index.gallery)
    prior = log_prior(index.gallery, ground)
    level, best, sure = np.empty(len(vectors)), np.empty(len(vectors)), np.empty(len(vectors), bool)
    for start in range(0, len(vectors), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(vectors)))
        logits = index.logits(vectors[part], scale)
        posterior = Posterior.from_logits(logits, prior, ground, calibration)
        level[part] = posterior.region_level(np.asarray(truth[part], np.float64))
        best[part] = logits.max(dim=1).values.double().numpy() / scale
        sure[part] = posterior.sure(posterior.profile(posterior.decode("mass", ANSWER_KM)))
    least = round(float(np.quantile(best, 1 - FAMILIAR_SHARE)), 6)
    familiar = best >= least
    return replace(calibration, surprise=levels_of(level[familiar], sure[familiar]), least_score=least)


def reliability(claimed: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = 10) -> dict[str, Any]:
    """Claimed probabilities held against how often they were right.

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
