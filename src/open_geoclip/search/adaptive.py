"""A posterior on a ground that is finer where a picture's vector points at.

:func:`open_geoclip.search.refine.refine` encodes places around the best ones of a gallery. Here they become
ground of their own: a start shares its cell's area and its prior with the places around it, each in turn gets the
likelihood of its own vector, and candidates, radii and probabilities are all told from that one posterior.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from open_geoclip.geo.sphere import unit_vectors
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import Ground
from open_geoclip.search.refine import Allowed, Surroundings, refine, starts_for

__all__ = ["Adapted", "adapt"]


@dataclass(frozen=True, eq=False)
class Adapted:
    """One picture's posterior on its own ground.

    Attributes:
        posterior: of the picture; its ground is the gallery's places, then those that were found between them.
        origins: the row of the gallery's place that each place of the ground came from.
    """

    posterior: Posterior
    origins: Int64[np.ndarray, " p"]


@torch.inference_mode()
def adapt(
    encoder: LocationEncoder,
    vectors: Float[Tensor, "n d"],
    scale: float,
    logits: Float[Tensor, "n m"],
    log_mass: Float[Tensor, "n m"],
    log_prior: Float[Tensor, " m"],
    ground: Ground,
    gaps_km: Float64[np.ndarray, " m"],
    calibration: Calibration,
    *,
    allowed: Allowed | None = None,
    surroundings: Surroundings | None = None,
) -> list[Adapted]:
    """Posteriors on grounds that are refined for each picture.

    Args:
        encoder: the location tower.
        vectors: of pictures, of any length.
        scale: logits are scale times the products of vectors.
        logits: of each picture over the gallery.
        log_mass: of each place before the background is added, up to a constant: logits over the temperature plus
            the prior, or what a trip made of that.
        log_prior: of each place, for the background.
        ground: of the gallery.
        gaps_km: how far its places are apart; see :func:`open_geoclip.search.refine.nearest_gap_km`.
        calibration: of the model, with the levels of refined grounds.
        allowed: which places an answer may be; all when not given.
        surroundings: of the gallery, which need not be encoded anew.
    """
    rows = log_mass.topk(min(starts_for(gaps_km), log_mass.shape[1]), dim=1).indices
    starts = torch.from_numpy(ground.coordinates.astype(np.float64))[rows]
    known = None if surroundings is None else (surroundings, rows)
    found = refine(encoder, vectors, starts, torch.from_numpy(gaps_km)[rows], allowed=allowed, known=known)
    # The logits over the gallery are of rounded vectors; those of the starts are exact now.
    sharpness = scale / calibration.temperature
    base = log_mass.double().gather(1, rows) - logits.double().gather(1, rows) / calibration.temperature
    base = base.gather(1, found.place_starts)
    encoded = base + sharpness * found.place_cosines.double() + found.place_shares.log()
    prior = torch.softmax(log_prior.double(), dim=0)
    best = logits.masked_fill(log_prior == -torch.inf, -torch.inf).amax(dim=1)
    background, familiar = calibration.background_of(best), best >= calibration.least_score * scale
    answers = []
    for n, at in enumerate(rows):
        k = len(at)
        new = torch.zeros_like(found.place_shares[n], dtype=torch.bool)
        new[k:] = (found.place_shares[n, k:] > 0) & found.place_cosines[n, k:].isfinite()
        shares, origins = found.place_shares[n], at[found.place_starts[n]]
        own_mass = log_mass[n].double().clone()
        own_mass[at] = encoded[n, :k]
        mass = torch.softmax(torch.cat([own_mass, encoded[n, new]]), dim=0)
        if calibration.background:
            rest = prior.clone()
            rest[at] *= shares[:k]
            rest = torch.cat([rest, prior[origins[new]] * shares[new]])
            mass = (1 - background[n]) * mass + background[n] * rest
        cell = ground.cell_km2.copy()
        cell[at.numpy()] *= shares[:k].numpy()
        fresh = found.places[n, new].numpy()
        finer = Ground(
            np.concatenate([ground.coordinates, fresh.astype(np.float32)]),
            torch.cat([ground.points, torch.from_numpy(unit_vectors(fresh)).float()]),
            np.concatenate([cell, ground.cell_km2[origins[new].numpy()] * shares[new].numpy()]),
        )
        answers.append(
            Adapted(
                Posterior(finer, mass.float()[None], calibration, background[[n]].float(), familiar[[n]]),
                np.concatenate([np.arange(len(ground)), origins[new].numpy()]),
            )
        )
    return answers
