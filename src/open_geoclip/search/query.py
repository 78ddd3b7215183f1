"""Queries: encoded images or texts, and how their scores become probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from open_geoclip.data.clocks import Anchors
from open_geoclip.errors import SettingsError
from open_geoclip.search.anchors import anchored_posteriors
from open_geoclip.search.calibration import Calibration
from open_geoclip.search.encode import EncodedBatch
from open_geoclip.search.evidence import PhotoEvidence
from open_geoclip.search.photo_records import Neighbours
from open_geoclip.search.posterior import Posterior
from open_geoclip.search.prior import GalleryCells
from open_geoclip.search.reliability import Reliability
from open_geoclip.search.search_space import SearchSpace
from open_geoclip.search.trips import TripPosterior, evidence_weights, trip_posterior, trip_weights

__all__ = ["Query"]

_TEXT_SIGMA_KM = 200.0
"""Texts describe regions, not places: structure at the spacing of the gallery (53 km for ``earth``) is noise."""

_MOST_NATS = 60.0
"""No place is less likely by an image than this; in float32 it would be impossible, and with it the trip."""

_CHUNK = 32
"""Images of a trip whose scores are computed together."""


@dataclass(frozen=True, eq=False)
class Query:
    """Encoded images or texts that are searched for together; see :meth:`open_geoclip.search.locator.Locator.answer`.

    Attributes:
        encoded: names, hashes, errors and embeddings.
        calibration: how scores become probabilities.
        text: what was located in words, alone or with an image, one per answer.
        trip: posterior of each image, where they are of a trip.
        error: why none of them has an answer.
        reliability: how often answers to single images were right, where it was measured.
        anchors: known places in time around each image.
        posterior: of each image, by its number, where there are anchors.
        scales_km: standard deviation of each image's place before it is seen, where there are anchors.
        neighbours: photos of indexes that look like each image, where indexes are searched.
        evidence: how these count.
        cells: that ``trip`` is of.
    """

    encoded: EncodedBatch
    calibration: Calibration
    text: Sequence[str] | None = None
    trip: TripPosterior | None = None
    error: str | None = None
    reliability: Reliability | None = None
    anchors: Anchors | None = None
    posterior: Callable[[int], Posterior] | None = None
    scales_km: Sequence[float] = ()
    neighbours: Sequence[Neighbours] = ()
    evidence: PhotoEvidence | None = None
    cells: GalleryCells | None = None

    @classmethod
    def from_texts(cls, texts: Sequence[str], embeddings: Float[Tensor, "n d"]) -> "Query":
        """Return a query of texts. Nothing was calibrated for them; cells are smoothed to the resolution of texts."""
        return cls(EncodedBatch.from_embeddings(embeddings), Calibration(sigma_km=_TEXT_SIGMA_KM), texts)

    def with_text(self, text: str, embedding: Float[Tensor, " d"], weight: float) -> "Query":
        """Return a query whose logits are weighted means of those of the images and of a text.

        Raises:
            SettingsError: the weight is not within 0 and 1.
        """
        if not 0 <= weight <= 1:
            raise SettingsError(f"text_weight: from 0 to 1, not {weight}")
        embeddings = torch.lerp(self.encoded.embeddings, embedding, weight)
        calibration = Calibration(distances=self.calibration.distances)
        return Query(replace(self.encoded, embeddings=embeddings), calibration, [text] * len(self.encoded.names))

    @classmethod
    def from_place(cls, batch: EncodedBatch, calibration: Calibration) -> "Query":
        """Return one query of all images, which show one place. Nothing was calibrated for several images.

        Args:
            batch: the images, all of which could be read.
            calibration: of the model.

        Raises:
            SettingsError: there is no image.
        """
        if not batch.names:
            raise SettingsError("locate_together: at least one image")
        sha256 = ", ".join(filter(None, batch.sha256)) if all(batch.sha256) else None
        weights = evidence_weights(batch.embeddings)
        pooled = (weights @ batch.embeddings.double()).float()[None]
        if len(batch.names) > 1:  # the best logit of the sum is compared with the sum of those of single images
            evidence = float(weights.sum())
            calibration = replace(
                calibration,
                fitted_on=None,
                reference_logit=calibration.reference_logit * evidence,
                background_slope=calibration.background_slope / evidence,
                temperature_slope=calibration.temperature_slope / evidence,
            )
        distances = None if batch.distances is None else batch.distances.mean(dim=0, keepdim=True)
        encoded = EncodedBatch([", ".join(batch.names)], [None], [sha256], pooled, distances=distances)
        return cls(encoded, calibration)

    @classmethod
    def from_trip(
        cls,
        batch: EncodedBatch,
        calibration: Calibration,
        space: SearchSpace,
        scale: float,
        hours: Float[np.ndarray, " n"],
        speed_kmh: float,
    ) -> "Query":
        """Return a query of the images of one trip. Nothing was calibrated for trips.

        Args:
            batch: the images, all of which could be read.
            calibration: of the model; an image counts with its temperature, without the background.
            space: where the trip is.
            scale: logits are scale times cosine.
            hours: of each image.
            speed_kmh: highest speed along great circles.

        Raises:
            SettingsError: an hour is not a number, or the speed is below 0.
        """
        calibration = replace(calibration, background=0.0, fitted_on=None)
        embeddings, distances = batch.embeddings, batch.distances
        order = np.argsort(hours, kind="stable")
        rank = np.argsort(order)
        weights = trip_weights(embeddings, hours, speed_kmh).float()
        # What is opened of a gallery in two levels depends on all images.
        size = _CHUNK if space.groups is None else len(hours)

        @lru_cache(maxsize=2)
        def alone(chunk: int) -> Posterior:
            at = torch.from_numpy(order[chunk * size : (chunk + 1) * size])
            return space.posterior(embeddings[at], scale, calibration, None if distances is None else distances[at])

        cells = alone(0).cells
        log_prior = torch.log_softmax(cells.log_prior, dim=0)
        floor = torch.where(log_prior > -torch.inf, log_prior - _MOST_NATS, -torch.inf)

        def log_mass(image: int) -> Float32[Tensor, " m"]:
            mass = torch.maximum(alone(int(rank[image]) // size).mass[rank[image] % size].log(), floor)
            return torch.where(floor > -torch.inf, torch.lerp(log_prior, mass, weights[image]), -torch.inf)

        spacing_km = float(np.median(cells.spacing_km))
        trip = trip_posterior(log_mass, cells.coordinates, hours, speed_kmh=speed_kmh, slack_km=spacing_km)
        error = _trip_error(trip.log_evidence > -np.inf, speed_kmh, space)
        return cls(batch, calibration, None, trip, error, cells=cells)

    @classmethod
    def from_anchors(
        cls,
        batch: EncodedBatch,
        calibration: Calibration,
        space: SearchSpace,
        scale: float,
        anchors: Anchors,
        speed_kmh: float,
    ) -> "Query":
        """Return a query of the images of one trip with known places; arguments are those of :meth:`from_trip`.

        Raises:
            SettingsError: the speed is below 0.
        """
        if not 0 <= speed_kmh < np.inf:
            raise SettingsError(f"speed: a number of 0 or more, not {speed_kmh}")
        posterior, scales_km, is_possible = anchored_posteriors(
            space, batch.embeddings, scale, calibration, anchors, speed_kmh, batch.distances
        )
        error = _trip_error(is_possible, speed_kmh, space)
        return cls(batch, calibration, None, None, error, None, anchors, posterior, scales_km)


def _trip_error(is_possible: bool, speed_kmh: float, space: SearchSpace) -> str | None:
    limits = f" within {space.area.name}" if space.area.is_limited else ""
    return None if is_possible else f"no trip of these images keeps to {speed_kmh:g} km/h{limits}"
