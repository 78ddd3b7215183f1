"""Training: contrastive alignment of images and locations.

::

    from open_geoclip.training import FeatureSet, TrainSettings, train

    train(model, FeatureSet(features, coordinates), TrainSettings(epochs=20), folder)
"""

from open_geoclip.training.batches import Batch, BatchRequest, FeatureSet, TrainingData
from open_geoclip.training.loop import Callbacks, train
from open_geoclip.training.loss import (
    SigLIPLoss,
    add_noise,
    contrastive_loss,
    distances_km,
    near_duplicates,
    near_weights,
    siglip_loss,
    smooth_targets,
)
from open_geoclip.training.run import evaluate_model, export_model
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
    "contrastive_loss",
    "distances_km",
    "evaluate_model",
    "export_model",
    "near_duplicates",
    "near_weights",
    "siglip_loss",
    "smooth_targets",
    "train",
]
