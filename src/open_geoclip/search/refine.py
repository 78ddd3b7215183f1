"""Refinement: posteriors on cells that are finer where an image's embedding points to.

A gallery answers with its own places, so its best answer is off by about half their spacing. The location encoder is a
continuous function: :func:`local_search` starts at the best places of the gallery, encodes hexagonal rings of places
around them, and continues around the best of all with narrower rings until these are a kilometre wide. It moves along
great circles, so poles and the antimeridian are not special. The first rings, most of the work with a coarse gallery,
are the same for every image: :class:`RingCache` encodes each once.

Each place that was searched around shares its weight with its ring, so that sums over places still represent areas (an
adaptive quadrature). :func:`refine` makes them cells of a posterior.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from open_geoclip.errors import SettingsError
from open_geoclip.geo.areas import Allowed
from open_geoclip.geo.sphere import destination, unit_vectors
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells

__all__ = [
    "LocalSearch",
    "RefineSettings",
    "RingCache",
    "add_cells",
    "encode_cosines",
    "local_search",
    "n_starts",
    "refine",
]

_RING = 6  # places


@dataclass(frozen=True)
class RefineSettings:
    """Settings of :func:`local_search`. The defaults were chosen on validation views.

    Attributes:
        beam: number of places to search around in each round after the first; the last number is repeated.
        reach: radius of the first ring, as a share of the spacing of the gallery.
        shrink: factor of the radius after each round.
        finish_km: the search ends at rings of this radius.

    Raises:
        SettingsError: a setting is out of range.
    """

    beam: tuple[int, ...] = (6, 3, 1)
    reach: float = 0.4
    shrink: float = 0.4
    finish_km: float = 1.0

    def __post_init__(self) -> None:
        if not self.beam or min(self.beam) < 1:
            raise SettingsError("beam: numbers of 1 or more")
        if not (0 < self.reach <= 1 and 0 < self.shrink < 1 and self.finish_km > 0):
            raise SettingsError("reach is above 0 and at most 1, shrink between 0 and 1, finish_km above 0")


@dataclass(frozen=True)
class LocalSearch:
    """Places that :func:`local_search` encoded for each of n embeddings.

    Attributes:
        coordinates: the place of the highest cosine, (lat, lon) in degrees.
        cosines: of it; never below that of the best start.
        places: all places, the starts first; (lat, lon) in degrees.
        place_cosines: of each with the embedding; -inf where a place is not allowed.
        place_shares: share of each in the weight of its start; those of a start sum to 1.
        place_starts: the number, from 0, of the start that each descends from.
    """

    coordinates: Float64[Tensor, "n 2"]
    cosines: Float32[Tensor, " n"]
    places: Float64[Tensor, "n m 2"]
    place_cosines: Float32[Tensor, "n m"]
    place_shares: Float64[Tensor, "n m"]
    place_starts: Int64[Tensor, "n m"]


def n_starts(spacing_km: Float64[np.ndarray, " m"]) -> int:
    """Return the number of starts for a gallery: the coarser it is, the less its best place says about the best one.

    8 for a spacing up to 50 km, in proportion to the area of a cell beyond that, 128 at most. Chosen on validation
    views.
    """
    return int(np.clip(8 * np.square(spacing_km).mean() / 50**2, 8, 128))


@torch.inference_mode()
def encode_cosines(
    encoder: LocationEncoder, embeddings: Float[Tensor, "n d"], places: Float64[Tensor, "n m 2"]
) -> Float32[Tensor, "n m"]:
    """Return the cosine of each embedding with each of its own places, encoded on the spot."""
    located = encoder.encode(places.reshape(-1, 2).float())
    return torch.einsum("nd,nmd->nm", embeddings.float(), located.view(*places.shape[:2], embeddings.shape[1]))


class RingCache:
    """Embeddings of the places of a gallery and the first ring around each, kept once they are computed.

    Args:
        encoder: the location encoder.
        places: of the gallery, (lat, lon) in degrees.
        spacing_km: of each place; see :attr:`open_geoclip.search.prior.GalleryCells.spacing_km`.
        settings: of the search.
        max_rings: number of rings to keep; others are encoded whenever they are needed.
    """

    def __init__(
        self,
        encoder: LocationEncoder,
        places: Float64[np.ndarray, "m 2"],
        spacing_km: Float64[np.ndarray, " m"],
        settings: RefineSettings | None = None,
        *,
        max_rings: int = 8192,
    ) -> None:
        self.encoder = encoder
        self.settings = settings or RefineSettings()
        self.places = torch.from_numpy(places)
        self.radius_km = self.settings.reach * torch.from_numpy(spacing_km)
        self._max_rings = max_rings
        # Where in the second the ring of a place is, or -1. Both are replaced together, never changed: threads may
        # search at once, and at worst one of them encodes what another one has.
        self._kept = torch.full((len(places),), -1), torch.empty(0, 1 + _RING, encoder.settings.output)

    def rings(self, rows: Int64[Tensor, "n k"]) -> Float64[Tensor, "n k 6 2"]:
        """Return the ring of places around some of the gallery's, (lat, lon) in degrees."""
        return _hexagons(self.places[rows], self.radius_km[rows], 1, 0.0)

    @torch.inference_mode()
    def cosines(self, embeddings: Float[Tensor, "n d"], rows: Int64[Tensor, "n k"]) -> Float32[Tensor, "n k 7"]:
        """Return the cosine of each embedding with its own rows of the gallery and the ring around each."""
        unique, inverse = rows.unique(return_inverse=True)
        slots, kept = self._kept
        is_missing = slots[unique] < 0
        missing = unique[is_missing]
        fresh = self._encode(missing)
        table = torch.empty(len(unique), 1 + _RING, fresh.shape[2])
        table[~is_missing], table[is_missing] = kept[slots[unique[~is_missing]]], fresh
        keep = min(len(missing), self._max_rings - len(kept))
        if keep:
            slots = slots.index_copy(0, missing[:keep], len(kept) + torch.arange(keep))
            self._kept = slots, torch.cat([kept, fresh[:keep]])
        cosines = (embeddings.float() @ table.flatten(0, 1).T).view(len(embeddings), len(unique), 1 + _RING)
        return cosines.gather(1, inverse[..., None].expand(-1, -1, 1 + _RING))

    def _encode(self, rows: Int64[Tensor, " u"]) -> Float32[Tensor, "u 7 d"]:
        places = torch.cat([self.places[rows][:, None], self.rings(rows[None])[0]], dim=1)
        located = self.encoder.encode(places.reshape(-1, 2).float())
        return located.view(len(rows), 1 + _RING, located.shape[1])


@torch.inference_mode()
def local_search(
    rings: RingCache,
    embeddings: Float[Tensor, "n d"],
    rows: Int64[Tensor, "n k"],
    *,
    allowed: Allowed | None = None,
) -> LocalSearch:
    """Search the continuous location encoder for the place of the highest cosine, from some places of a gallery.

    The first round is broad: one ring around each of k starts; the others are narrow, two rings around the best places
    so far. With a single start the search stays within about 1.3 spacings.

    Args:
        rings: of the gallery.
        embeddings: of images or texts; they are encoded together.
        rows: of the gallery, where to start.
        allowed: which places an answer may be; the starts are assumed to be.
    """
    settings = rings.settings
    n, k = rows.shape
    first = rings.cosines(embeddings, rows)
    places, cosines, radius_km = rings.places[rows], first[..., 0], rings.radius_km[rows]
    shares = torch.ones(n, k, dtype=torch.float64)
    starts = centres = torch.arange(k).expand(n, k)
    round_ = 0
    while centres.shape[1] and bool((radius_km.gather(1, centres) > settings.finish_km).any()):
        if round_ == 0 and k > 1:
            new, found = rings.rings(rows).flatten(1, 2), first[..., 1:].flatten(1)
        else:
            new = _hexagons(_take(places, centres), radius_km.gather(1, centres), 2, 30.0 * (round_ % 2)).flatten(1, 2)
            found = encode_cosines(rings.encoder, embeddings, new)
        width = new.shape[1] // centres.shape[1]
        if allowed is not None:
            inside = torch.from_numpy(allowed(new.reshape(-1, 2).numpy())).view(n, -1)
            found = found.masked_fill(~inside, -torch.inf)
        children = found.isfinite().view(n, -1, width)
        share = shares.gather(1, centres) / (1 + children.sum(dim=2))
        shares = torch.cat([shares.scatter(1, centres, share), (share[..., None] * children).flatten(1, 2)], dim=1)
        narrower = settings.shrink * radius_km.gather(1, centres)
        radius_km = radius_km.scatter(1, centres, narrower)
        radius_km = torch.cat([radius_km, narrower.repeat_interleave(width, dim=1)], dim=1)
        starts = torch.cat([starts, starts.gather(1, centres).repeat_interleave(width, dim=1)], dim=1)
        places, cosines = torch.cat([places, new], dim=1), torch.cat([cosines, found], dim=1)
        beam = settings.beam[min(round_, len(settings.beam) - 1)]
        centres = cosines.topk(min(beam, cosines.shape[1]), dim=1).indices
        round_ += 1
    best = cosines.argmax(dim=1, keepdim=True)
    return LocalSearch(_take(places, best)[:, 0], cosines.gather(1, best)[:, 0], places, cosines, shares, starts)


@torch.inference_mode()
def refine(
    rings: RingCache,
    cells: GalleryCells,
    embeddings: Float[Tensor, "n d"],
    logits: Float[Tensor, "n m"],
    log_mass: Float[Tensor, "n m"],
    *,
    scale: float,
    calibration: Calibration,
    allowed: Allowed | None = None,
    distances: Float[Tensor, " n"] | None = None,
) -> list[Posterior]:
    """Return a posterior for each embedding, on the cells of the gallery and finer ones where it points to.

    A start shares the area and the prior of its cell with the places around it; each has the likelihood of its own
    embedding. The last cells of a posterior are the new ones; ``cells.origins`` tells which cell each belongs to.

    Args:
        rings: of the gallery.
        cells: of the gallery.
        embeddings: of images or texts, of any length.
        logits: over the gallery.
        log_mass: of each cell before the background is added, up to a constant: logits over the temperature plus the
            log prior, or that of a trip.
        scale: logits are scale times cosine.
        calibration: with the levels of refined posteriors.
        allowed: which places an answer may be; default: all.
        distances: of the features of the images, where they are known.
    """
    each = log_mass if cells.counts is None else log_mass - cells.counts.log()
    rows = each.topk(min(n_starts(cells.spacing_km), log_mass.shape[1]), dim=1).indices
    found = local_search(rings, embeddings, rows, allowed=allowed)
    # Logits over the gallery are of rounded embeddings; those of the starts are exact now.
    best = cells.best_logits(logits)
    temperature = calibration.temperature_of(best).double()[:, None]
    without_image = log_mass.double().gather(1, rows) - logits.double().gather(1, rows) / temperature
    log_mass_found = (
        without_image.gather(1, found.place_starts)
        + scale / temperature * found.place_cosines.double()
        + found.place_shares.log()
    )
    k, posteriors = rows.shape[1], []
    for n, at in enumerate(rows):
        shares, origins = found.place_shares[n], at[found.place_starts[n]]
        is_new = (shares > 0) & found.place_cosines[n].isfinite()
        is_new[:k] = False
        gallery_log_mass = log_mass[n].double().clone()
        gallery_log_mass[at] = log_mass_found[n, :k]
        refined = add_cells(cells, found.places[n, is_new], origins[is_new], shares[is_new].log(), at, shares[:k].log())
        posteriors.append(
            Posterior.from_log_mass(
                torch.cat([gallery_log_mass, log_mass_found[n, is_new]])[None],
                refined,
                calibration,
                best_logits=best[[n]],
                scale=scale,
                distances=None if distances is None else distances[[n]],
            )
        )
    return posteriors


def add_cells(
    cells: GalleryCells,
    places: Float64[Tensor, "p 2"],
    origins: Int64[Tensor, " p"],
    log_shares: Float64[Tensor, " p"],
    divided: Int64[Tensor, " k"],
    kept_log_shares: Float64[Tensor, " k"],
) -> GalleryCells:
    """Return cells in which places were added, each with a share of the area and prior of its origin.

    Args:
        cells: to which places are added.
        places: (lat, lon) in degrees.
        origins: the cell that each place has a share of.
        log_shares: logarithm of the share of each place.
        divided: the cells that have new places in them.
        kept_log_shares: logarithm of what each of these keeps.
    """
    area, log_prior = cells.area_km2.copy(), cells.log_prior.double()
    new_area = area[origins.numpy()] * log_shares.exp().numpy()
    new_log_prior = log_prior[origins] + log_shares
    area[divided.numpy()] *= kept_log_shares.exp().numpy()
    log_prior[divided] += kept_log_shares
    numbers = np.arange(len(cells)) if cells.origins is None else cells.origins
    return GalleryCells(
        np.concatenate([cells.coordinates, places.numpy().astype(np.float32)]),
        torch.cat([cells.points, torch.from_numpy(unit_vectors(places.numpy())).float()]),
        np.concatenate([area, new_area]),
        torch.cat([log_prior, new_log_prior]),
        np.concatenate([numbers, numbers[origins.numpy()]]),
        None if cells.counts is None else torch.cat([cells.counts, torch.ones(len(places))]),
    )


def _take(places: Float64[Tensor, "n m 2"], rows: Int64[Tensor, "n k"]) -> Float64[Tensor, "n k 2"]:
    return places.gather(1, rows[..., None].expand(-1, -1, 2))


def _hexagons(
    centres: Float64[Tensor, "n k 2"], radius_km: Float64[Tensor, "n k"], rings: int, turn_deg: float
) -> Float64[Tensor, "n k m 2"]:
    """Return hexagonal rings around each centre: 6 places at one radius, 12 more at two."""
    bearings = [turn_deg + torch.arange(6 * ring, dtype=torch.float64) * 60 / ring for ring in range(1, rings + 1)]
    bearing = torch.cat(bearings)
    distance = torch.cat([torch.full_like(b, ring) for ring, b in enumerate(bearings, 1)])
    return destination(centres[:, :, None], bearing, distance * radius_km[:, :, None])
