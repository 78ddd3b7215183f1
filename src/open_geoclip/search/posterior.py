"""From scores to probabilities on the sphere, and what can be told from them.

A model's logits over a gallery become a posterior in three steps, each with a number that is fitted on validation
data (:class:`Calibration`): they are divided by a temperature and joined with a prior; a background share follows the
prior alone, since no model is never wrong; and each place is blurred over the ground that it stands for, so that
mass between places is where it belongs. The blur of a place is a Gaussian on the sphere: its variance is that of the
place's cell (a square has 1/12 of its area along each axis) and of the model's own width, added.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.search.ground import Ground
from open_geoclip.search.surprise import EXCEEDED
from open_geoclip.sphere import EARTH_RADIUS_KM, coordinates_of, unit_vectors

__all__ = [
    "NOMINAL",
    "SURE_KM",
    "SURE_SHARE",
    "Calibration",
    "Decode",
    "Distinct",
    "Posterior",
    "Profile",
    "quadrature",
]

Decode = Literal["mass", "distance", "geoscore", "max"]
"""What the answer is best for: most mass nearby, least expected distance, best expected GeoScore, the best place."""

NOMINAL = (*(round(0.05 * step, 2) for step in range(20)), 0.97, 0.98, 0.99, 1.0)
"""Shares that a calibration's levels are given for."""

SURE_KM, SURE_SHARE = 200.0, 0.8
"""An answer is sure when it is right within so many kilometres with at least this probability."""

_TOP = 512  # places that a decision is made from
_TRIED = 32  # of them, those that are tried as an answer
_STEPS = 12  # of a search between places
_BLURRED = 64  # places whose blur shows in radii; all others are points
_GEOSCORE_KM = 1492.7
_SIGMAS = 8.0  # a blur ends so many standard deviations away, but for one part in a million
_STEP = math.log(1.03)  # radii are found on a scale that grows by 3 %, and between its marks
_LEAST_KM = 0.05
_MARKS = math.ceil(math.log(math.pi * EARTH_RADIUS_KM / _LEAST_KM) / _STEP) + 2
_EDGES = math.log(_LEAST_KM) + _STEP * np.arange(_MARKS)


@dataclass(frozen=True)
class Calibration:
    """How the scores of one model become probabilities.

    Attributes:
        temperature: logits are divided by it.
        background: share of the mass that follows the prior alone.
        width_km: blur of each place beyond its own cell, one standard deviation along each axis.
        fitted_on: on which data, or None: not calibrated, and the numbers are not chances of being right.
        pictures: how many of them.
        levels: for each of :data:`NOMINAL`, which share of the mass around an answer holds the truth that often.
            Answers that lie between places are better than the mass around them tells, because ripples of the logits
            average out; this maps what is told to what was seen (Kuleshov, Fenner and Ermon, 2018). Empty: as told.
        surprise: of unsure and of sure answers, how far out true places lay; see :mod:`open_geoclip.search.surprise`.
            Empty: nothing can be said of places that others name.
        least_score: cosine of its best place that a picture like those of the fit has at least.
    """

    temperature: float = 1.0
    background: float = 0.0
    width_km: float = 0.0
    fitted_on: str | None = None
    pictures: int = 0
    levels: tuple[float, ...] = ()
    surprise: tuple[tuple[float, ...], ...] = ()
    least_score: float = -1.0

    def __post_init__(self) -> None:
        numbers = (self.temperature, self.background, self.width_km, self.least_score)
        if not all(map(math.isfinite, numbers)):  # a TypeError for what is no number
            raise SettingsError(f"calibration: finite numbers, not {numbers}")
        if not (self.temperature > 0 and 0 <= self.background < 1 and self.width_km >= 0):
            raise SettingsError("calibration: a temperature above 0, a background from 0 to below 1, a width from 0")
        if self.levels and (len(self.levels) != len(NOMINAL) or sorted({0.0, 1.0, *self.levels}) != list(self.levels)):
            raise SettingsError(f"calibration: levels are {len(NOMINAL)} numbers that grow from 0 to 1, or none")
        told = [len(part) <= len(EXCEEDED) and sorted([0.0, *part, 1.0]) == [0.0, *part, 1.0] for part in self.surprise]
        if self.surprise and told != [True, True]:
            raise SettingsError(
                f"calibration: surprise is twice at most {len(EXCEEDED)} numbers that grow from 0 to 1, or empty"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "Calibration":
        """What a release says; not calibrated when it says nothing.

        Raises:
            WeightsError: a key is unknown or a value out of range.
        """
        try:
            if values is None:
                return cls()
            surprise = tuple(map(tuple, values.get("surprise", ())))
            return cls(**{**values, "levels": tuple(values.get("levels", ())), "surprise": surprise})
        except (TypeError, SettingsError) as error:
            raise WeightsError(f"calibration of the weights: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """As a release keeps it."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Distinct:
    """Places that are really different, for each of n pictures, best first.

    Attributes:
        coordinates: (lat, lon) in degrees; NaN where no mass was left for so many.
        mass: of all that was merged into each.
        radius_km: around each, within which nine tenths of that mass lie.
    """

    coordinates: Float64[np.ndarray, "n k 2"]
    mass: Float64[np.ndarray, "n k"]
    radius_km: Float64[np.ndarray, "n k"]


@dataclass(frozen=True, eq=False)
class Posterior:
    """Where each of n pictures was taken, as probabilities over a gallery's ground.

    Attributes:
        ground: the places.
        mass: probability of the ground that each place stands for; each row sums to one.
        calibration: how it was made.
    """

    ground: Ground
    mass: Float32[Tensor, "n m"]
    calibration: Calibration

    @classmethod
    def from_logits(
        cls,
        logits: Float[Tensor, "n m"],
        log_prior: Float[Tensor, " m"],
        ground: Ground,
        calibration: Calibration | None = None,
    ) -> "Posterior":
        """The posterior of logits.

        Args:
            logits: temperature times cosine, as trained.
            log_prior: of each place, see :func:`open_geoclip.search.ground.log_prior`; -inf rules a place out.
            ground: of the gallery.
            calibration: none is :class:`Calibration`'s defaults.

        Raises:
            SettingsError: the prior rules out every place.
        """
        calibration = calibration or Calibration()
        if not bool((log_prior > -torch.inf).any()):
            raise SettingsError("prior: it rules out every place of the gallery")
        mass = torch.softmax(torch.add(log_prior, logits, alpha=1 / calibration.temperature), dim=1)
        if calibration.background:
            mass.mul_(1 - calibration.background).add_(calibration.background * torch.softmax(log_prior, dim=0))
        return cls(ground, mass.float(), calibration)

    @classmethod
    def from_log_mass(
        cls, log_mass: Float[Tensor, "n m"], ground: Ground, calibration: Calibration | None = None
    ) -> "Posterior":
        """A posterior whose log masses are known already, such as that of a trip; rows are made to sum to one."""
        return cls(ground, torch.softmax(log_mass, dim=1).float(), calibration or Calibration())

    def __len__(self) -> int:
        return len(self.mass)

    @property
    def log_mass(self) -> Float32[Tensor, "n m"]:
        """Logarithm of the mass."""
        return self.mass.log()

    @cached_property
    def blur_km(self) -> Float64[np.ndarray, " m"]:
        """Standard deviation of each place's blur along each axis."""
        blur: np.ndarray = np.sqrt(self.calibration.width_km**2 + self.ground.cell_km2 / 12)
        return blur

    # --- answers ----------------------------------------------------------------------------------

    def decode(self, how: Decode = "mass", radius_km: float = 25.0) -> Float64[np.ndarray, "n 2"]:
        """One answer for each picture: the best for what is asked.

        ``mass`` is right for "within radius_km"; ``distance`` for the mean distance; ``geoscore`` for points; ``max``
        is the gallery's place with the most mass, as the released package answers. All but ``max`` may lie between
        places. They are found from the 512 places of the most mass: the best of 32 of these, then steps towards the
        weighted mean of what is near (mean shift; for distances, Weiszfeld's method).

        Raises:
            SettingsError: an argument is out of range.
        """
        _check_decision(how, radius_km)
        top, _, where, blur = self._best
        with torch.inference_mode():
            return coordinates_of(_decided(top.double(), where, blur, how, radius_km)).numpy()

    @cached_property
    def _best(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mass, rows, unit vectors and blur of the places that decisions are made from."""
        with torch.inference_mode():
            top, rows = self.mass.topk(min(_TOP, len(self.ground)), dim=1)
            return top, rows, self.ground.points[rows].double(), torch.from_numpy(self.blur_km)[rows]

    @torch.inference_mode()
    def candidates(
        self, top_k: int = 5, *, merge_km: float = 25.0, how: Decode = "mass", radius_km: float | None = None
    ) -> Distinct:
        """The best places that are more than ``merge_km`` apart, each with all the mass that is nearer to it.

        The first is that of :meth:`decode`. Its surroundings are taken away, the next is the best of what remains, and
        so on.

        Args:
            top_k: how many.
            merge_km: what is nearer than this belongs to a candidate; 0 merges nothing.
            how: see :meth:`decode`.
            radius_km: of ``mass``; the radius of merging, or 25 km, when not given.

        Raises:
            SettingsError: an argument is out of range.
        """
        radius_km = radius_km or merge_km or 25.0
        _check_decision(how, radius_km)
        if not (1 <= top_k <= len(self.ground)):
            raise SettingsError(f"top_k: from 1 to the gallery's {len(self.ground):,} places, not {top_k}")
        if not 0 <= merge_km < math.inf:
            raise SettingsError(f"merge_km: kilometres from 0, not {merge_km}")
        if how == "max" and merge_km == 0:
            return self._plain(top_k)
        top, rows, where, blur = self._best
        rest = top.double()
        # Chord from the cosine: float32 keeps 3 km of it, which matters to no radius that is merged within.
        chord = 2 * math.sin(min(merge_km / EARTH_RADIUS_KM, math.pi) / 2)
        least = 1 - chord**2 / 2 if merge_km else 2.0
        answers, radii = [], []
        for _ in range(top_k):
            answer = _decided(rest, where, blur, how, radius_km)
            near = torch.einsum("nd,ntd->nt", answer, where) >= least
            near |= torch.nn.functional.one_hot(_nearest(answer, where, rest), rest.shape[1]).bool()
            part = torch.where(near, rest, 0.0)
            share, at = part.topk(min(_BLURRED, part.shape[1]), dim=1)
            km, share = self._blurred(answer, share.float(), rows.gather(1, at))
            radii.append(_quantile(km, share, (0.9,))[:, 0])
            answers.append(answer.masked_fill((part.sum(dim=1) <= 0)[:, None], torch.nan))
            rest = rest - part
        places = torch.stack(answers, dim=1)
        mass = self._merged(places, rows, least)
        found = places.nan_to_num(1.0)
        coordinates = coordinates_of(found).numpy()
        coordinates[places.isnan().any(dim=-1).numpy()] = np.nan
        return Distinct(coordinates, mass.numpy(), torch.stack(radii, dim=1).numpy())

    def _merged(
        self, places: Float64[Tensor, "n k 3"], rows: Int64[Tensor, "n t"], least: float
    ) -> Float64[Tensor, "n k"]:
        """Mass of everything that is near enough to each answer and to none before it, whatever it was found from."""
        sums = []
        for answers, mass, at in zip(places, self.mass, rows, strict=True):
            close = answers.float() @ self.ground.points.T >= least
            left, taken = mass.clone(), []
            for number, answer in enumerate(answers):
                if bool(answer.isnan().any()):
                    taken.append(0.0)
                    continue
                near = close[number]
                square = (self.ground.points[at].double() - answer).square().sum(dim=1)
                near[at[square.masked_fill(left[at] <= 0, torch.inf).argmin()]] = True
                taken.append(float(left[near].sum(dtype=torch.float64)))
                left[near] = 0.0
            sums.append(taken)
        return torch.tensor(sums, dtype=torch.float64).reshape(places.shape[:2])

    def _plain(self, top_k: int) -> Distinct:
        """The places of the most mass, each alone."""
        mass, rows = self.mass.topk(top_k, dim=1)
        found = self.ground.coordinates[rows.numpy()].astype(np.float64)
        # Nine tenths of a Gaussian lie within this many standard deviations.
        radius = math.sqrt(-2 * math.log(0.1)) * self.blur_km[rows.numpy()]
        return Distinct(found, mass.double().numpy(), radius)

    # --- how sure ---------------------------------------------------------------------------------

    def mass_within(
        self, places: Float[np.ndarray, "n 2"], radii_km: Sequence[float] = (1, 25, 200, 750, 2500)
    ) -> Float64[np.ndarray, "n r"]:
        """Probability that a picture was taken within some radii of a place, one place a picture."""
        return self.profile(places).within(radii_km)

    def credible_radius_km(
        self, places: Float[np.ndarray, "n 2"], shares: Sequence[float] = (0.5, 0.9)
    ) -> Float64[np.ndarray, "n s"]:
        """Radius around a place within which each share of a picture's mass lies, one place a picture."""
        return self.profile(places).radius_km(shares)

    def sure(self, profile: "Profile") -> list[bool | None]:
        """Whether answers are right within 200 km with a probability of 0.8 or more; None if not calibrated."""
        if self.calibration.fitted_on is None:
            return [None] * len(self)
        return [bool(share >= SURE_SHARE) for share in profile.within((SURE_KM,))[:, 0]]

    def shares(self, labels: Sequence[str] | np.ndarray, least: float = 0.005) -> list[dict[str, float]]:
        """Probability of each label, such as the countries of the gallery's places; the largest first.

        Args:
            labels: one for each place; places with an empty one are left out.
            least: labels with less are left out.
        """
        told = np.ascontiguousarray(labels, dtype=str)
        if told.dtype.itemsize == 8:  # two letters: as whole numbers they are sorted three times as fast
            numbers, number = np.unique(told.view(np.int64), return_inverse=True)
            names = numbers.view(told.dtype)
        else:
            names, number = np.unique(told, return_inverse=True)
        sums = torch.zeros(len(self), len(names), dtype=torch.float64)
        sums.index_add_(1, torch.from_numpy(number.astype(np.int64)), self.mass.double())
        return [
            {str(names[i]): float(row[i]) for i in np.argsort(-row, kind="stable") if names[i] and row[i] >= least}
            for row in sums.numpy()
        ]

    @torch.inference_mode()
    def log_density(self, places: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
        """Logarithm of the probability for each square kilometre at a place, one place a picture; in nats.

        One part in a million is spread over the whole Earth, so that no place is impossible.
        """
        points = torch.from_numpy(unit_vectors(np.asarray(places, np.float64)))
        blur = torch.from_numpy(self.blur_km / EARTH_RADIUS_KM)
        everywhere = math.log(1e-6 / (4 * math.pi * EARTH_RADIUS_KM**2))
        least = math.cos(min(float(blur.max()) * _SIGMAS + 1e-3, math.pi))
        near = points.float() @ self.ground.points.T >= least
        found = []
        for mass, point, rows in zip(self.mass, points, near, strict=True):
            at = rows.nonzero()[:, 0]
            square = (self.ground.points[at].double() - point).square().sum(dim=1)
            terms = mass[at].double().log() + log_gauss(square, blur[at])
            found.append(np.logaddexp(float(torch.logsumexp(terms, dim=0)) if len(at) else -np.inf, everywhere))
        return np.array(found, np.float64)

    @torch.inference_mode()
    def region_level(self, places: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
        """Mass of all ground that is denser than that around a place, one place a picture.

        A place lies in a picture's region of 90 %, the smallest there is, when its level is below 0.9.
        """
        rows = torch.from_numpy(self.ground.nearest(places).astype(np.int64))
        density = self.mass.double() / torch.from_numpy(self.ground.cell_km2)
        own = density[torch.arange(len(self)), rows][:, None]
        above = torch.where(density > own, self.mass, 0.0).sum(dim=1, dtype=torch.float64)
        half = self.mass[torch.arange(len(self)), rows].double() / 2  # somewhere in its own cell
        return (above + half).numpy()

    def _blurred(
        self, answers: Float64[Tensor, "n 3"], mass: Float32[Tensor, "n t"], rows: Tensor
    ) -> tuple[Float64[Tensor, "n p"], Float64[Tensor, "n p"]]:
        """Distances from answers to points that stand for the blur of some places, and the mass of each point."""
        where = self.ground.points[rows].double()
        blur = torch.from_numpy(self.blur_km / EARTH_RADIUS_KM)[rows]
        offsets = torch.from_numpy(_QUADRATURE) * blur[..., None, None]
        # East of a place, and anything that is level at a pole.
        east = torch.stack((-where[..., 1], where[..., 0] + 1e-12, torch.zeros_like(where[..., 0])), dim=-1)
        east = torch.nn.functional.normalize(east, dim=-1)
        north = torch.linalg.cross(where, east)
        points = where[:, :, None] + offsets[..., :1] * east[:, :, None] + offsets[..., 1:] * north[:, :, None]
        points = torch.nn.functional.normalize(points, dim=-1).flatten(1, 2)
        share = mass.double().repeat_interleave(len(_QUADRATURE), dim=1) / len(_QUADRATURE)
        return _km((points - answers[:, None]).norm(dim=-1)), share

    @torch.inference_mode()
    def profile(self, places: Float[np.ndarray, "n 2"]) -> "Profile":
        """How a picture's mass lies around a place, one place a picture."""
        answers = torch.from_numpy(unit_vectors(np.asarray(places, np.float64)))
        top, rows = (part[:, :_BLURRED] for part in self._best[:2])
        km, share = self._blurred(answers, top, rows)
        rest = self.mass.scatter(1, rows, 0.0)
        cosine = (answers.float() @ self.ground.points.T).clamp_(-1, 1)
        sums = torch.zeros(len(self), _MARKS, dtype=torch.float64)
        for distance, mass in ((km, share), (cosine.acos_().mul_(EARTH_RADIUS_KM), rest)):
            mark = ((distance.clamp(min=_LEAST_KM).log_() - math.log(_LEAST_KM)) / _STEP).ceil_().long()
            sums.scatter_add_(1, mark.clamp_(max=_MARKS - 1), mass.double())
        upto = sums.cumsum(dim=1)
        told = (upto / upto[:, -1:]).numpy()
        return Profile(np.interp(told, self.calibration.levels, NOMINAL) if self.calibration.levels else told)


@dataclass(frozen=True, eq=False)
class Profile:
    """Mass of n pictures within radii around one place each.

    Attributes:
        upto: share of the mass up to each mark of a scale of radii on which a step is 3 %.
    """

    upto: Float64[np.ndarray, "n marks"]

    def within(self, radii_km: Sequence[float]) -> Float64[np.ndarray, "n r"]:
        """Share of the mass within some radii."""
        marks = np.log(np.asarray(radii_km, np.float64))
        return np.array([np.interp(marks, _EDGES, row) for row in self.upto]).reshape(len(self.upto), len(marks))

    def radius_km(self, shares: Sequence[float]) -> Float64[np.ndarray, "n s"]:
        """Radii within which some shares of the mass lie."""
        found = [np.exp(np.interp(shares, row, _EDGES)) for row in self.upto]
        return np.array(found).reshape(len(self.upto), len(shares))


def _check_decision(how: str, radius_km: float) -> None:
    if how not in ("mass", "distance", "geoscore", "max"):
        raise SettingsError(f"decode: mass, distance, geoscore or max, not {how!r}")
    if not 0 < radius_km < math.inf:
        raise SettingsError(f"radius_km: kilometres above 0, not {radius_km}")


def quadrature(n: int = 24) -> Float64[np.ndarray, "n 2"]:
    """Points that stand for a Gaussian of variance one along each axis: even in mass, turning by the golden angle."""
    step = (np.arange(n) + 0.5) / n
    radius, angle = np.sqrt(-2 * np.log(1 - step)), np.arange(n) * np.pi * (3 - math.sqrt(5))
    points = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    points -= points.mean(axis=0)
    return np.asarray(points / np.sqrt((points**2).mean()))


_QUADRATURE = quadrature()


def _km(chord: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """Kilometres along the sphere, of chords between unit vectors."""
    return 2 * EARTH_RADIUS_KM * torch.asin((chord / 2).clamp(max=1))


def log_gauss(chord_square: Float64[Tensor, "*n"], blur: Float64[Tensor, "*#n"]) -> Float64[Tensor, "*n"]:
    """Log density by square kilometre of a von Mises-Fisher blur; on the sphere it is exp(-chord²/2 blur²)."""
    kappa = 1 / blur.square()
    norm = torch.log(2 * math.pi * EARTH_RADIUS_KM**2 * blur.square()) + torch.log1p(-torch.exp(-2 * kappa))
    return -kappa * chord_square / 2 - norm


def _nearest(
    answer: Float64[Tensor, "n 3"], where: Float64[Tensor, "n t 3"], rest: Float64[Tensor, "n t"]
) -> Int64[Tensor, " n"]:
    """The place with mass that is nearest to each answer: it is merged even where places are far apart."""
    return (where - answer[:, None]).square().sum(dim=-1).masked_fill(rest <= 0, torch.inf).argmin(dim=1)


def _quantile(
    km: Float64[Tensor, "n p"], share: Float64[Tensor, "n p"], levels: Sequence[float]
) -> Float64[Tensor, "n l"]:
    """Distances within which some parts of the shares lie."""
    ordered, order = km.sort(dim=1)
    upto = share.gather(1, order).cumsum(dim=1)
    goal = upto[:, -1:] * torch.tensor(levels, dtype=torch.float64)
    at = torch.searchsorted(upto, goal.contiguous()).clamp(max=km.shape[1] - 1)
    return ordered.gather(1, at)


def _decided(
    mass: Float64[Tensor, "n t"],
    where: Float64[Tensor, "n t 3"],
    blur_km: Float64[Tensor, "n t"],
    how: Decode,
    radius_km: float,
) -> Float64[Tensor, "n 3"]:
    """The answer, as a unit vector: the best of the places that are tried, then steps between them."""
    at = mass.topk(min(_TRIED, mass.shape[1]), dim=1).indices
    tried = where.gather(1, at[..., None].expand(-1, -1, 3))
    if how == "max":
        return tried[:, 0]
    # A disc has a quarter of its radius squared as variance along each axis: a Gaussian of that stands for it.
    width = (blur_km.square() + radius_km**2 / 4) / EARTH_RADIUS_KM**2

    def gain(answers: Float64[Tensor, "n c 3"]) -> Float64[Tensor, "n c"]:
        chord = torch.cdist(answers, where, compute_mode="donot_use_mm_for_euclid_dist")
        if how == "mass":
            return torch.einsum("nct,nt->nc", torch.exp(-chord.square() / (2 * width[:, None])), mass / width)
        km = (_km(chord).square() + blur_km[:, None].square()).sqrt()
        worth = -km if how == "distance" else torch.exp(-km / _GEOSCORE_KM)
        return torch.einsum("nct,nt->nc", worth, mass)

    best = gain(tried).argmax(dim=1)
    answer = tried[torch.arange(len(tried)), best]
    for _ in range(_STEPS):
        square = (where - answer[:, None]).square().sum(dim=-1)
        if how == "mass":
            pull = mass / width.square() * torch.exp(-square / (2 * width))
        else:
            km = (_km(square.sqrt()).square() + blur_km.square()).sqrt()
            pull = mass / km * (torch.exp(-km / _GEOSCORE_KM) if how == "geoscore" else 1)
        answer = torch.nn.functional.normalize(torch.einsum("nt,ntd->nd", pull, where), dim=1)
    stepped = gain(torch.stack((answer, tried[torch.arange(len(tried)), best]), dim=1))
    return torch.where((stepped[:, 0] >= stepped[:, 1])[:, None], answer, tried[torch.arange(len(tried)), best])
