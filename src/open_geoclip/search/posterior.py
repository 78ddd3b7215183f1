"""From scores to probabilities on the sphere, and what can be told from them.

A model's logits over a gallery become a posterior in three steps, each with numbers that are fitted on validation
data (:class:`Calibration`): they are divided by a temperature and joined with a prior; a background share follows the
prior alone, since no model is never wrong, and it is the larger the less a picture looks like any place; and each
place is blurred over the ground that it stands for, so that mass between places is where it belongs. The blur of a
place is a Gaussian on the sphere: its variance is that of the place's cell (a square has 1/12 of its area along each
axis) and of the model's own width, added.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, coordinates_of, unit_vectors
from open_geoclip.search.blur import Profile, blurred, log_gauss, quantile, upto_marks
from open_geoclip.search.calibration import SURE_KM, SURE_SHARE, Calibration
from open_geoclip.search.decode import Decode, Distinct, check_decision, decided, nearest
from open_geoclip.search.mixture import Mixture
from open_geoclip.search.prior import Ground

__all__ = ["Posterior"]

_TOP = 512  # places that a decision is made from
_BLURRED = 64  # places whose blur shows in radii; all others are points
_EVERYWHERE = 1e-6  # of the mass is spread over the whole Earth, so that no place is impossible
_SIGMAS = 8.0  # a blur ends so many standard deviations away, but for one part in a million


@dataclass(frozen=True, eq=False)
class Posterior:
    """Where each of n pictures was taken, as probabilities over a gallery's ground.

    Attributes:
        ground: the places.
        mass: probability of the ground that each place stands for; each row sums to one.
        calibration: how it was made.
        background: the share of each picture's mass that follows the prior alone; none when not given.
        familiar: whether each picture looks like those that the calibration was fitted on; not asked when not given.
    """

    ground: Ground
    mass: Float32[Tensor, "n m"]
    calibration: Calibration
    background: Float32[Tensor, " n"] | None = None
    familiar: Bool[Tensor, " n"] | None = None

    @classmethod
    def from_logits(
        cls,
        logits: Float[Tensor, "n m"],
        log_prior: Float[Tensor, " m"],
        ground: Ground,
        calibration: Calibration | None = None,
        scale: float | None = None,
    ) -> "Posterior":
        """The posterior of logits.

        Args:
            logits: temperature times cosine, as trained.
            log_prior: of each place, see :func:`open_geoclip.search.prior.log_prior`; -inf rules a place out.
            ground: of the gallery.
            calibration: none is :class:`Calibration`'s defaults.
            scale: the temperature that cosines were multiplied by: tells which pictures are unlike those of the fit.

        Raises:
            SettingsError: the prior rules out every place.
        """
        calibration = calibration or Calibration()
        if not bool((log_prior > -torch.inf).any()):
            raise SettingsError("prior: it rules out every place of the gallery")
        mass = torch.softmax(torch.add(log_prior, logits, alpha=1 / calibration.temperature), dim=1)
        best = logits.masked_fill(log_prior == -torch.inf, -torch.inf).amax(dim=1)
        familiar = None if scale is None else best >= calibration.least_score * scale
        if not calibration.background:
            return cls(ground, mass.float(), calibration, familiar=familiar)
        background = calibration.background_of(best)
        mass.mul_((1 - background)[:, None]).addcmul_(background[:, None], torch.softmax(log_prior, dim=0))
        return cls(ground, mass.float(), calibration, background.float(), familiar)

    @classmethod
    def from_log_mass(
        cls, log_mass: Float[Tensor, "n m"], ground: Ground, calibration: Calibration | None = None
    ) -> "Posterior":
        """A posterior whose log masses are known already, such as that of a trip; rows are made to sum to one."""
        return cls(ground, torch.softmax(log_mass, dim=1).float(), calibration or Calibration())

    def __len__(self) -> int:
        return len(self.mass)

    def __getitem__(self, row: int) -> "Posterior":
        """The posterior of one picture."""
        background, familiar = (None if of is None else of[[row]] for of in (self.background, self.familiar))
        return Posterior(self.ground, self.mass[[row]], self.calibration, background, familiar)

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
        check_decision(how, radius_km)
        top, _, where, blur = self._best
        with torch.inference_mode():
            return coordinates_of(decided(top.double(), where, blur, how, radius_km)).numpy()

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
        check_decision(how, radius_km)
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
            answer = decided(rest, where, blur, how, radius_km)
            near = torch.einsum("nd,ntd->nt", answer, where) >= least
            near |= torch.nn.functional.one_hot(nearest(answer, where, rest), rest.shape[1]).bool()
            part = torch.where(near, rest, 0.0)
            share, at = part.topk(min(_BLURRED, part.shape[1]), dim=1)
            spots = at[..., None].expand(-1, -1, 3)
            km, share = blurred(answer, share, where.gather(1, spots), blur.gather(1, at))
            radii.append(quantile(km, share, (0.9,))[:, 0])
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
        """Whether answers are right within 200 km with a probability of 0.8 or more; None if not calibrated.

        Never of a picture that is unlike those that the calibration was fitted on: what holds for them says nothing
        about a picture of a flower.
        """
        if self.calibration.fitted_on is None:
            return [None] * len(self)
        familiar = [True] * len(self) if self.familiar is None else self.familiar.tolist()
        return [
            bool(share >= SURE_SHARE and k) for share, k in zip(profile.within((SURE_KM,))[:, 0], familiar, strict=True)
        ]

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
        everywhere = math.log(_EVERYWHERE / (4 * math.pi * EARTH_RADIUS_KM**2))
        least = math.cos(min(float(blur.max()) * _SIGMAS + 1e-3, math.pi))
        near = points.float() @ self.ground.points.T >= least
        found = []
        for mass, point, rows in zip(self.mass, points, near, strict=True):
            at = rows.nonzero()[:, 0]
            square = (self.ground.points[at].double() - point).square().sum(dim=1)
            terms = mass[at].double().log() + log_gauss(square, blur[at])
            found.append(np.logaddexp(float(torch.logsumexp(terms, dim=0)) if len(at) else -np.inf, everywhere))
        return np.array(found, np.float64)

    def region_shares(self, shares: Sequence[float] = (0.5, 0.9)) -> Float64[np.ndarray, "n s"]:
        """Which share of the mass each picture's smallest region has to hold, to hold the truth so often.

        Single cells are trusted too much: the region of 90 % of the mass held fewer of the truths of validation
        pictures. Whoever draws regions in a way of their own asks here first.
        """
        asked = np.tile(np.asarray(shares, np.float64), (len(self), 1))
        return self.calibration.told(asked, self._backgrounds, self.calibration.region_levels)

    def region_level(self, places: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
        """How often a truth lies on denser ground than that of a place, one place a picture.

        A place lies in a picture's region of 90 %, the smallest there is, when its level is 0.9 or less.
        """
        points = unit_vectors(np.asarray(places, np.float64))
        told = np.array([Mixture.of(self, row).shares(point[None]) for row, point in enumerate(points)])
        seen = self.calibration.seen(told.reshape(-1, 1), self._backgrounds, self.calibration.region_levels)
        return seen[:, 0]

    @property
    def _backgrounds(self) -> Float64[np.ndarray, " n"]:
        return np.zeros(len(self)) if self.background is None else self.background.double().numpy()

    @torch.inference_mode()
    def profile(self, places: Float[np.ndarray, "n 2"]) -> "Profile":
        """How a picture's mass lies around a place, one place a picture."""
        answers = torch.from_numpy(unit_vectors(np.asarray(places, np.float64)))
        top, rows, where, blur = (part[:, :_BLURRED] for part in self._best)
        near = blurred(answers, top, where, blur)
        cosine = (answers.float() @ self.ground.points.T).clamp_(-1, 1)
        far = cosine.acos_().mul_(EARTH_RADIUS_KM), self.mass.scatter(1, rows, 0.0)
        told = upto_marks((near, far))
        return Profile(self.calibration.seen(told, self._backgrounds, self.calibration.levels))
