"""A small run in a process of its own. Not a test: `test_resume.py` starts it, and kills it."""

from pathlib import Path
from typing import Any

import torch

from open_geoclip.geo.sphere import even_points, unit_vectors
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.loop import Callbacks, train
from open_geoclip.training.settings import TrainSettings


def small_run(folder: Path, changes: dict[str, Any], steps: Any, rank: int = 0, world: int = 1) -> None:
    """Train for a moment; ``steps`` is a connection that is sent the number of each step."""
    torch.set_num_threads(1)
    if world > 1:
        store = f"file://{folder}.store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    torch.manual_seed(0)
    coordinates = torch.from_numpy(even_points(340))
    mixing = torch.randn(3, 24).double()
    data = FeatureSet((5 + 3 * unit_vectors(coordinates) @ mixing).half(), coordinates)
    shape = LocationSettings(sigmas=(1.0, 4.0), features=16, width=32, depth=2, output=16, projection="sphere")
    encoder = ImageEncoder(None, None, ImageSettings(widths=(24, 32, 16)))
    encoder.standardize_features(data.features)
    model = GeoCLIP(encoder, LocationEncoder(shape))
    settings = TrainSettings(**{"epochs": 3, "batch_size": 32, "queue_size": 40, "learning_rate": 3e-3} | changes)

    def step(figures: dict[str, float]) -> None:
        if steps is not None:
            steps.send(figures["step"])

    train(model, data, settings, folder, callbacks=Callbacks(step=step), resume=True)
    if world > 1:
        torch.distributed.destroy_process_group()
