"""Answers between the places of a gallery, on the continuous location tower.

A gallery answers with its own places, so its best answer is off by about half the distance between them. The location
tower has a vector for any place on Earth: :func:`refine` starts at the best places of the gallery, encodes rings of
places around them, goes on from the best of all with narrower rings, and ends where these are a kilometre wide. It
moves along great circles, so that poles and the 180th meridian are places like any other. The first rings, most of the
work from a coarse gallery, are the same for every picture: :class:`Surroundings` encodes each once.

What was encoded on the way is a gallery of its own, dense where the picture's vector points at: each place that was
looked around from shares its weight with its ring, so that the sum stays what it was and sums over places go on to
stand for areas (an adaptive quadrature).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, destination, unit_vectors
from open_geoclip.model.location_encoder import LocationEncoder

__all__ = [
    "Allowed",
    "RefineSettings",
    "Refined",
    "Surroundings",
    "cosines_at",
    "distinct",
    "nearest_gap_km",
    "refine",
    "starts_for",
]

Allowed = Callable[[Float64[np.ndarray, "n 2"]], Bool[np.ndarray, " n"]]
"""Which (lat, lon) an answer may be, such as :meth:`open_geoclip.geo.areas.Area.contains`."""

_NEIGHBOUR = 3  # the gap of a place is the distance to its third-nearest: the side of its cell, in an even gallery
_RING = 6  # places
_LEAST_GAP_KM, _GREATEST_GAP_KM = 2.0, 2000.0


@dataclass(frozen=True)
class RefineSettings:
    """How :func:`refine` looks around. The defaults were chosen on validation views.

    Attributes:
        starts: places of the gallery to begin with, for each picture; see :func:`starts_for`.
        beam: places to look around from in the rounds after the first; the last number goes on.
        reach: the first ring's distance, as a share of the gap between places of the gallery.
        shrink: a ring's distance after looking around, as a share of the one before.
        finish_km: rings end here.

    Raises:
        SettingsError: a setting is out of range.
    """

    starts: int = 128
    beam: tuple[int, ...] = (6, 3, 1)
    reach: float = 0.4
    shrink: float = 0.4
    finish_km: float = 1.0

    def __post_init__(self) -> None:
        if self.starts < 1 or not self.beam or min(self.beam) < 1:
            raise SettingsError("starts and beam: numbers of 1 or more")
        if not (0 < self.reach <= 1 and 0 < self.shrink < 1 and self.finish_km > 0):
            raise SettingsError("reach is above 0 and at most 1, shrink between 0 and 1, finish_km above 0")


@dataclass(frozen=True)
class Refined:
    """What was found for each of n pictures.

    Attributes:
        coordinates: the place of the highest cosine, (lat, lon) in degrees.
        cosines: of it; never below that of the best start.
        places: all places that were encoded and are allowed, the starts first; (lat, lon) in degrees.
        place_cosines: of each with the picture's vector; -inf where a place is not allowed.
        place_shares: of each in the weight of the start that it came from; the shares of a start sum to 1.
        place_starts: the number, from 0, of that start.
    """

    coordinates: Float64[Tensor, "n 2"]
    cosines: Float32[Tensor, " n"]
    places: Float64[Tensor, "n m 2"]
    place_cosines: Float32[Tensor, "n m"]
    place_shares: Float64[Tensor, "n m"]
    place_starts: Int64[Tensor, "n m"]

    @property
    def encoded(self) -> int:
        """Places a picture that the location tower saw, starts not counted."""
        return self.places.shape[1] - int(self.place_starts.max()) - 1


def nearest_gap_km(places: Float[np.ndarray, "n 2"], of: Float[np.ndarray, "m 2"]) -> Float64[np.ndarray, " m"]:
    """How far a gallery's places are apart around some of them, kilometres along a chord.

    Args:
        places: the whole gallery, (lat, lon) in degrees.
        of: places to tell it for.
    """
    from scipy.spatial import KDTree

    near = min(_NEIGHBOUR + 1, len(places))  # the first is the place itself
    tree = KDTree(unit_vectors(np.asarray(places, np.float64)))
    distance, _ = tree.query(unit_vectors(np.asarray(of, np.float64)), k=[near])
    gap = distance[:, 0] * EARTH_RADIUS_KM if near > _NEIGHBOUR else np.full(len(of), _GREATEST_GAP_KM)
    return np.clip(gap, _LEAST_GAP_KM, _GREATEST_GAP_KM)


def starts_for(gaps_km: Float64[np.ndarray, " m"]) -> int:
    """How many places to begin with: the coarser a gallery, the less its best place says about where the best one is.

    8 where places are up to 50 km apart, in proportion to the area of a cell beyond that, 128 at most. Chosen on
    validation views.

    Args:
        gaps_km: of the whole gallery.
    """
    return int(np.clip(8 * np.square(gaps_km).mean() / 50**2, 8, 128))


def cosines_at(
    encoder: LocationEncoder, vectors: Float[Tensor, "n d"], places: Float64[Tensor, "n m 2"]
) -> Float32[Tensor, "n m"]:
    """Cosine of each picture's vector with each of its own places, encoded afresh."""
    device = next(encoder.parameters()).device
    located = encoder.encode(places.reshape(-1, 2).float().to(device)).cpu()
    return torch.einsum("nd,nmd->nm", vectors.float(), located.view(*places.shape[:2], -1))


class Surroundings:
    """Each place of a gallery and the first ring around it: location vectors, kept once they were computed.

    Args:
        encoder: the location tower.
        places: the whole gallery, (lat, lon) in degrees.
        gaps_km: how far its places are apart around each; see :func:`nearest_gap_km`.
        reach: as in :class:`RefineSettings`.
        most: places whose rings are kept; those of others are encoded whenever they are asked for.
    """

    def __init__(
        self,
        encoder: LocationEncoder,
        places: Float64[np.ndarray, "m 2"],
        gaps_km: Float64[np.ndarray, " m"],
        reach: float = RefineSettings.reach,
        most: int = 8192,
    ) -> None:
        self.encoder = encoder
        self.reach = reach
        self._places = torch.from_numpy(places)
        self._gaps_km = torch.from_numpy(gaps_km)
        self._most = most
        self._at = torch.full((len(places),), -1)  # of a place: the number of its ring among those kept
        self._kept = torch.empty(0, 1 + _RING, encoder.settings.output)

    def rings(self, rows: Int64[Tensor, "n k"]) -> Float64[Tensor, "n k 6 2"]:
        """The places around some of the gallery's, (lat, lon) in degrees."""
        return _around(self._places[rows], self.reach * self._gaps_km[rows], 1, 0.0)

    @torch.inference_mode()
    def cosines(self, vectors: Float[Tensor, "n d"], rows: Int64[Tensor, "n k"]) -> Float32[Tensor, "n k 7"]:
        """Cosine of each picture's vector with its own rows of the gallery and the ring around each."""
        unique, inverse = rows.unique(return_inverse=True)
        missing = unique[self._at[unique] < 0]
        fresh = self._encoded(missing)
        keep = min(len(missing), self._most - len(self._kept))
        self._at[missing[:keep]] = len(self._kept) + torch.arange(keep)
        self._kept = torch.cat([self._kept, fresh[:keep]])
        at = self._at[unique]
        table = torch.empty(len(unique), 1 + _RING, fresh.shape[2])
        table[at >= 0], table[at < 0] = self._kept[at[at >= 0]], fresh[keep:]
        cosines = (vectors.float() @ table.flatten(0, 1).T).view(len(vectors), len(unique), 1 + _RING)
        return cosines.gather(1, inverse[..., None].expand(-1, -1, 1 + _RING))

    def _encoded(self, rows: Int64[Tensor, " u"]) -> Float32[Tensor, "u 7 d"]:
        device = next(self.encoder.parameters()).device
        places = torch.cat([self._places[rows][:, None], self.rings(rows[None])[0]], dim=1)
        located = self.encoder.encode(places.reshape(-1, 2).float().to(device)).cpu()
        return located.view(len(rows), 1 + _RING, located.shape[1])


@torch.inference_mode()
def refine(
    encoder: LocationEncoder,
    vectors: Float[Tensor, "n d"],
    starts: Float64[Tensor, "n k 2"],
    gaps_km: Float64[Tensor, "n k"],
    settings: RefineSettings | None = None,
    *,
    allowed: Allowed | None = None,
    known: tuple[Surroundings, Int64[Tensor, "n k"]] | None = None,
) -> Refined:
    """The best place on the continuous location tower for each picture, found from some starts.

    All pictures go through the tower together. With one start it is a local search that stays within about 1.3 gaps.

    Args:
        encoder: the location tower.
        vectors: of pictures, or of anything else in their space.
        starts: for each picture, the best places of a gallery, (lat, lon) in degrees.
        gaps_km: how far the gallery's places are apart around each start; see :func:`nearest_gap_km`.
        settings: how to look around.
        allowed: which places an answer may be; all when not given. The starts are taken to be allowed.
        known: the gallery's surroundings, of the same reach, and the starts as its rows: the first rings are not
            encoded anew.
    """
    settings = RefineSettings() if settings is None else settings
    n, k = gaps_km.shape
    spots, steps = starts, settings.reach * gaps_km
    kept = None if known is None else known[0].cosines(vectors, known[1])
    cosines = cosines_at(encoder, vectors, spots) if kept is None else kept[..., 0]
    shares = torch.ones(n, k, dtype=torch.float64)
    roots = torch.arange(k).expand(n, k)
    chosen, round_ = roots, 0
    while chosen.shape[1] and bool((steps.gather(1, chosen) > settings.finish_km).any()):
        # The first round is broad: many starts, one ring around each; the others are narrow, with two.
        rings = 2 if round_ or k == 1 else 1
        if known is not None and kept is not None and rings == 1:
            around, found = known[0].rings(known[1]), kept[..., 1:].flatten(1)
            new = around.flatten(1, 2)
        else:
            around = _around(_picked(spots, chosen), steps.gather(1, chosen), rings, 30.0 * (round_ % 2))
            new = around.flatten(1, 2)
            found = cosines_at(encoder, vectors, new)
        width = around.shape[2]
        if allowed is not None:
            inside = torch.from_numpy(allowed(new.reshape(-1, 2).numpy())).view(n, -1)
            found = found.masked_fill(~inside, -torch.inf)
        counts = found.isfinite().view(n, -1, width)
        part = shares.gather(1, chosen) / (1 + counts.sum(dim=2))
        shares = shares.scatter(1, chosen, part)
        steps = steps.scatter(1, chosen, settings.shrink * steps.gather(1, chosen))
        children = (part[..., None] * counts).flatten(1, 2)
        spots, cosines = torch.cat([spots, new], dim=1), torch.cat([cosines, found], dim=1)
        shares = torch.cat([shares, children], dim=1)
        steps = torch.cat([steps, steps.gather(1, chosen).repeat_interleave(width, dim=1)], dim=1)
        roots = torch.cat([roots, roots.gather(1, chosen).repeat_interleave(width, dim=1)], dim=1)
        beam = settings.beam[min(round_, len(settings.beam) - 1)]
        chosen = cosines.topk(min(beam, cosines.shape[1]), dim=1).indices
        round_ += 1
    best = cosines.argmax(dim=1, keepdim=True)
    return Refined(_picked(spots, best)[:, 0], cosines.gather(1, best)[:, 0], spots, cosines, shares, roots)


def distinct(
    found: Refined, masses: Float[Tensor, "n k"], gaps_km: Float64[Tensor, "n k"], top_k: int
) -> list[list[tuple[Float64[Tensor, "2"], float, float]]]:
    """The best places that are farther apart than the places of the gallery were, for each picture.

    Args:
        found: by :func:`refine`.
        masses: probability of each start.
        gaps_km: as given to :func:`refine`.
        top_k: at most so many.

    Returns:
        Place (lat, lon), cosine and probability of each, best first. Starts that lead to one place are one, their
        probabilities added up.
    """
    answers = []
    for row in range(len(masses)):
        cosines, starts = found.place_cosines[row].numpy(), found.place_starts[row].numpy()
        order = np.argsort(-cosines, kind="stable")
        _, first = np.unique(starts[order], return_index=True)
        peaks = order[np.sort(first)]  # the best place of each start, the best start first
        places = found.places[row].numpy()[peaks]
        points = unit_vectors(places)
        merge = gaps_km[row].numpy()[starts[peaks]] / EARTH_RADIUS_KM
        chosen: list[int] = []
        sums: list[float] = []
        for k in range(len(peaks)):
            mass = float(masses[row, starts[peaks[k]]])
            near = np.flatnonzero(np.linalg.norm(points[chosen] - points[k], axis=1) <= merge[k])
            if len(near):
                sums[near[0]] += mass
            elif len(chosen) < top_k:
                chosen.append(k)
                sums.append(mass)
        answers.append(
            [
                (torch.from_numpy(places[k]), float(cosines[peaks[k]]), sum_)
                for k, sum_ in zip(chosen, sums, strict=True)
            ]
        )
    return answers


def _picked(spots: Float64[Tensor, "n m 2"], rows: Int64[Tensor, "n k"]) -> Float64[Tensor, "n k 2"]:
    return spots.gather(1, rows[..., None].expand(-1, -1, 2))


def _around(
    centres: Float64[Tensor, "n k 2"], steps: Float64[Tensor, "n k"], rings: int, turn_deg: float
) -> Float64[Tensor, "n k m 2"]:
    """Hexagonal rings around each centre: 6 places at one step, 12 more at two."""
    bearings = [turn_deg + torch.arange(6 * ring, dtype=torch.float64) * 60 / ring for ring in range(1, rings + 1)]
    bearing = torch.cat(bearings)
    distance = torch.cat([torch.full_like(b, ring) for ring, b in enumerate(bearings, 1)])
    return destination(centres[:, :, None], bearing, distance * steps[:, :, None])
