"""Training: contrastive alignment of images and locations.

::

    from open_geoclip import GeoCLIP
    from open_geoclip.training import FeatureSet, TrainSettings, export_model, train

    data = FeatureSet(features, coordinates)
    model = GeoCLIP.for_features(data.features)
    train(model, data, TrainSettings(epochs=20), folder)
    export_model(model, folder / "model", data.coordinates)
"""

from open_geoclip.training.batches import Batch, BatchRequest, FeatureSet, TrainingData
from open_geoclip.training.evaluation import best_places, evaluate_model
from open_geoclip.training.loop import Callbacks, train
from open_geoclip.training.loss import (
    SigLIPLoss,
    add_noise,
    contrastive_loss,
    distances_km,
    near_duplicates,
    near_weights,
    nearby_places,
    siglip_loss,
    smooth_targets,
)
from open_geoclip.training.run import export_model
from open_geoclip.training.settings import PAPER, TrainSettings

__all__ = [
    "PAPER",
    "Batch",
    "BatchRequest",
    "Callbacks",
    "FeatureSet",
    "SigLIPLoss",
    "TrainSettings",
    "TrainingData",
    "add_noise",
    "best_places",
    "contrastive_loss",
    "distances_km",
    "evaluate_model",
    "export_model",
    "near_duplicates",
    "near_weights",
    "nearby_places",
    "siglip_loss",
    "smooth_targets",
    "train",
]
