"""Two sources of evidence as one posterior: the location model, and where the photos were taken that look alike.

With the posterior p of the location model, its prior u, and neighbours at places y with similarities s::

    log q(x) = a log p(x) + (1 - a) log u(x) + b log(1 + sum over neighbours exp((s - s0) / t) K(x, y) / u(x))

K is a Gaussian kernel on the sphere. The sum is a kernel density estimate in units of the prior whose weights are not
normalised: neighbours that look less like the photo than ``s0`` count less than the prior and change nothing, so how
much the neighbours say depends on how similar they are. The five parameters are fitted on validation photos
(:mod:`open_geoclip.evaluation.evidence`): a is at most 1, as the location model is calibrated; b below 1 accounts for
what both sources have in common.
"""

import base64
import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from open_geoclip.errors import DataError, SettingsError, WeightsError
from open_geoclip.geo.areas import Allowed
from open_geoclip.geo.sphere import EARTH_RADIUS_KM, haversine_km, unit_vectors
from open_geoclip.model.image_encoder import ImageEncoder
from open_geoclip.search.answer import LookAlike
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.encode import EncodedBatch
from open_geoclip.search.photo_index import PhotoIndex
from open_geoclip.search.photo_records import Neighbours, QueryPhotos
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.refine import add_cells

__all__ = ["EvidenceSettings", "PhotoEvidence", "combine", "look_alikes", "neighbour_ratio"]

_SHOWN = 5  # look-alikes in an answer
_JPEG = "data:image/jpeg;base64,"


@dataclass(frozen=True)
class EvidenceSettings:
    """Parameters by which neighbours and the location model are combined. The defaults are those of ``earth``.

    Attributes:
        location_weight: exponent a of the location model.
        neighbour_weight: exponent b of the neighbours.
        temperature: t of similarities.
        min_similarity: s0.
        kernel_km: standard deviation of the kernel.
        neighbours: photos that count.

    Raises:
        SettingsError: a parameter is out of range.
    """

    location_weight: float = 1.0
    neighbour_weight: float = 0.37
    temperature: float = 0.022
    min_similarity: float = 0.15
    kernel_km: float = 75.0
    neighbours: int = 24

    def __post_init__(self) -> None:
        values = asdict(self)
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values.values()):
            raise SettingsError(f"evidence: finite numbers, not {values}")
        positive = (self.temperature, self.kernel_km, self.neighbours)
        if min(positive) <= 0 or not 0 <= self.location_weight <= 2 or not 0 <= self.neighbour_weight <= 2:
            raise SettingsError("evidence: temperature, kernel_km, neighbours above 0; weights from 0 to 2")

    def log_peak(self, similarity: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Return the logarithm of the density per km² of each neighbour at its own place."""
        weight = (similarity - self.min_similarity) / self.temperature
        return weight - math.log(2 * math.pi * self.kernel_km**2)


def neighbour_ratio(
    chord_square: Float[Tensor, "*n k"],
    similarity: Float[Tensor, "*#n k"],
    log_prior_density: Float[Tensor, "*n"],
    settings: EvidenceSettings,
) -> Float[Tensor, "*n"]:
    """Return the logarithm of 1 plus the density of the neighbours, in units of the prior, at some places.

    Args:
        chord_square: squared chords between each place and the k neighbours, in Earth radii.
        similarity: of the neighbours.
        log_prior_density: of each place, by square kilometre.
        settings: temperature, threshold and kernel.
    """
    sigma = settings.kernel_km / EARTH_RADIUS_KM
    density = torch.logsumexp(chord_square * (-0.5 / sigma**2) + settings.log_peak(similarity), dim=-1)
    return torch.logaddexp(density - log_prior_density, torch.zeros(()))


@torch.inference_mode()
def combine(
    posterior: Posterior, neighbours: Neighbours, settings: EvidenceSettings, calibration: Calibration
) -> Posterior:
    """Return the posterior of one photo from both sources, on its cells and new ones at the neighbours' places.

    A neighbour's place shares the area, the prior and the mass of the cell that is nearest to it.

    Args:
        posterior: of the location model, one row.
        neighbours: of the same photo.
        settings: of the combination.
        calibration: of combined posteriors.
    """
    cells = posterior.cells
    if len(neighbours) == 0:
        return Posterior(cells, posterior.mass, calibration, None, posterior.is_in_distribution)
    places = torch.from_numpy(neighbours.coordinates)
    origins = torch.from_numpy(cells.nearest(neighbours.coordinates).astype(np.int64))
    divided, of_place, counts = torch.unique(origins, return_inverse=True, return_counts=True)
    log_shares = -(counts + 1).double().log()
    combined = add_cells(cells, places, origins, log_shares[of_place], divided, log_shares)
    a, b, similarity = settings.location_weight, settings.neighbour_weight, torch.from_numpy(neighbours.similarity)
    mass = posterior.mass[0].clamp(min=torch.finfo(torch.float32).tiny)  # what float32 rounds to 0 is not impossible
    log_mass = a * mass.double().log() + (1 - a) * cells.normalised_log_prior
    log_mass = torch.cat([log_mass, log_mass[origins] + log_shares[of_place]])
    log_mass[divided] += log_shares
    # The density of the prior is that of the cells that were divided. The ratio is computed where it is above 1e-7:
    # most cells are far from all neighbours.
    log_density = cells.normalised_log_prior - torch.from_numpy(np.log(cells.area_km2))
    least = log_density[log_density.isfinite()].min()
    excess = settings.log_peak(similarity) + math.log(len(neighbours)) - least - math.log(1e-7)
    reach = settings.kernel_km / EARTH_RADIUS_KM * (2 * excess.clamp(min=0)).sqrt()
    known = torch.from_numpy(cells.within(neighbours.coordinates, reach.numpy()))
    near = torch.cat([known, torch.arange(len(cells), len(combined))])
    points = torch.from_numpy(unit_vectors(neighbours.coordinates)).float()
    chord_square = (2 - 2 * combined.points[near].float() @ points.T).clamp(min=0)
    density = log_density[torch.cat([known, origins])].float()
    log_mass[near] += b * neighbour_ratio(chord_square, similarity.float(), density, settings)
    log_mass = log_mass.masked_fill(combined.log_prior == -torch.inf, -torch.inf)[None]
    mass = torch.softmax(log_mass, dim=1).float()
    return Posterior(combined, mass, calibration, None, posterior.is_in_distribution)


@dataclass(frozen=True, eq=False)
class PhotoEvidence:
    """Indexes to search, and how their neighbours count.

    Attributes:
        indexes: one or more, of the backbone of the model.
        exclude_groups: no photo of these groups is found.
        settings: of the combination.
        calibration: of combined posteriors; None: not calibrated, smoothing as that of the model.
    """

    indexes: Sequence[PhotoIndex]
    exclude_groups: Collection[str] = ()
    settings: EvidenceSettings = EvidenceSettings()
    calibration: Calibration | None = None

    @classmethod
    def from_indexes(
        cls,
        indexes: Sequence[PhotoIndex],
        exclude_groups: Collection[str],
        encoder: ImageEncoder,
        weights_sha256: str | None,
        gallery_sha256: str,
    ) -> "PhotoEvidence":
        """Return how photos of indexes count: as fitted for one index and a model, else as by default.

        Args:
            indexes: one or more.
            exclude_groups: no photo of these groups is found.
            encoder: of the model.
            weights_sha256: of the model.
            gallery_sha256: fingerprint of its gallery.

        Raises:
            SettingsError: no index, or one was made with another backbone.
            DataError: the file of a fit is damaged.
        """
        if not indexes:
            raise SettingsError("with_photo_index: one index or more")
        for index in indexes:
            index.check_model(encoder)
        fitted = indexes[0].read_fit(weights_sha256, gallery_sha256) if len(indexes) == 1 else None
        if fitted is None:
            return cls(indexes, exclude_groups)
        try:
            calibration = Calibration.from_dict(fitted["calibration"])
            return cls(indexes, exclude_groups, EvidenceSettings(**fitted["settings"]), calibration)
        except (KeyError, TypeError, SettingsError, WeightsError) as error:
            raise DataError(
                f"{indexes[0].folder}: its fit is damaged ({error}); run geoclip calibrate again"
            ) from error

    @property
    def fingerprint(self) -> str:
        """Hash of the photos of the indexes, their places, and of how they count."""
        digest = hashlib.sha256()
        for index in self.indexes:
            digest.update(json.dumps([index.manifest["backbone"], index.ids, index.groups]).encode())
            for array in (index.coordinates, index.sha256, index.hashes):
                digest.update(array.tobytes())
        fit = None if self.calibration is None else self.calibration.fingerprint
        digest.update(json.dumps([sorted(self.exclude_groups), asdict(self.settings), fit]).encode())
        return digest.hexdigest()

    def search(self, batch: EncodedBatch) -> list[Neighbours]:
        """Return the neighbours of each image that could be read, from all indexes, best first."""
        if batch.features is None or len(batch.features) == 0:
            return []
        known = [digest for digest, error in zip(batch.sha256, batch.errors, strict=True) if error is None]
        queries = QueryPhotos(batch.features, known, batch.perceptual_hashes, self.exclude_groups)
        k, found = self.settings.neighbours, []
        for index in self.indexes:
            several = index.search(queries, k)
            for n, one in enumerate(several):
                pictures = [
                    index.thumbnail(row) if rank < _SHOWN else None for rank, row in enumerate(one.rows.tolist())
                ]
                several[n] = replace(one, thumbnails=pictures)
            found.append(several)
        return [_merge(several, k) for several in zip(*found, strict=True)]

    def posteriors(
        self, parts: Sequence[Posterior], neighbours: Sequence[Neighbours], allowed: Allowed | None = None
    ) -> list[Posterior]:
        """Return the combined posterior of each image; that of the model alone for images out of distribution.

        Args:
            parts: posteriors of the location model, all images in order.
            neighbours: of each image.
            allowed: which places an answer may be; neighbours elsewhere are left out.
        """
        singles = [part[row] for part in parts for row in range(len(part))]
        found = []
        for single, near in zip(singles, neighbours, strict=True):
            if single.is_in_distribution is not None and not bool(single.is_in_distribution):
                found.append(single)  # the answer says that its candidates mean nothing: no place may stand out
                continue
            own = single.calibration
            calibration = self.calibration or Calibration(sigma_km=own.sigma_km, min_score=own.min_score)
            if own.fitted_on is None:  # limits, another prior
                calibration = replace(calibration, fitted_on=None)
            inside = near if allowed is None else near.subset(np.flatnonzero(allowed(near.coordinates)))
            found.append(combine(single, inside, self.settings, calibration))
        return found


def _merge(several: Sequence[Neighbours], k: int) -> Neighbours:
    """Return the most similar of the neighbours in several indexes."""
    merged = Neighbours(
        [name for one in several for name in one.ids],
        np.concatenate([one.similarity for one in several]),
        np.concatenate([one.coordinates for one in several]),
        np.concatenate([one.rows for one in several]),
        [picture for one in several for picture in one.thumbnails],
    )
    return merged.subset(np.argsort(-merged.similarity, kind="stable")[:k])


def look_alikes(neighbours: Neighbours, place: tuple[float, float]) -> tuple[LookAlike, ...]:
    """Return the first neighbours as they stand in an answer, with their distance from its first candidate."""
    pictures = neighbours.thumbnails or [None] * len(neighbours)
    km = haversine_km(neighbours.coordinates[:_SHOWN], np.array([place]))
    return tuple(
        LookAlike(
            name,
            round(float(similarity), 4),
            round(float(lat), 6),
            round(float(lon), 6),
            round(float(distance), 3),
            None if not picture else _JPEG + base64.b64encode(picture).decode(),
        )
        for name, similarity, (lat, lon), distance, picture in zip(
            neighbours.ids, neighbours.similarity, neighbours.coordinates, km, pictures, strict=False
        )
    )
