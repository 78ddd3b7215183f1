"""Figures of merit of a model on images that it was not trained on."""

from dataclasses import replace

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from open_geoclip.evaluation.metrics import summary
from open_geoclip.geo.sphere import haversine_km
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.checkpoint import Figures
from open_geoclip.training.loss import batch_loss, encode_inputs
from open_geoclip.training.settings import TrainSettings

__all__ = ["best_places", "evaluate_model"]


@torch.inference_mode()
def evaluate_model(
    model: GeoCLIP, data: FeatureSet, gallery: Float64[Tensor, "m 2"], settings: TrainSettings | None = None
) -> Figures:
    """Return figures of merit: the loss, and distances to the best place of a gallery for each image.

    Args:
        model: in evaluation mode.
        data: features and coordinates that the model was not trained on.
        gallery: (lat, lon) of the places to choose from.
        settings: of the loss; the defaults when not given.

    Returns:
        ``validation_loss`` (the cross-entropy over places, also for ``siglip``), ``within_1_km`` to ``within_2500_km``
        in percent, ``median_km``, ``mean_km``, ``geoscore``.
    """
    settings, device = settings or TrainSettings(), model.logit_scale.device
    loss, size = 0.0, settings.batch_size
    for features, truth in zip(data.features.split(size), data.coordinates.split(size), strict=True):
        features, truth = features.to(device), truth.to(device)
        loss += len(truth) * float(batch_loss(model, features, truth, truth, replace(settings, symmetric=False)))
    found = summary(haversine_km(data.coordinates.numpy(), best_places(model, data.features, gallery).numpy()))
    return {
        "validation_loss": loss / len(data),
        **{f"within_{km}_km": share for km, share in found["within_km"].items()},
        **{name: found[name] for name in ("median_km", "mean_km", "geoscore")},
    }


@torch.inference_mode()
def best_places(
    model: GeoCLIP, features: Float[Tensor, "n d"] | UInt8[Tensor, "n h w 3"], gallery: Float64[Tensor, "m 2"]
) -> Float64[Tensor, "n 2"]:
    """Return the place of a gallery with the highest logit for each image, (lat, lon) on the CPU."""
    device = model.logit_scale.device
    places = model.location_encoder.encode(gallery).to(device)
    parts = torch.split(features, 1024 if features.ndim == 2 else 64)
    rows = [(encode_inputs(model, part.to(device)) @ places.T).argmax(dim=1) for part in parts]
    return gallery.cpu()[torch.cat(rows).cpu()]
