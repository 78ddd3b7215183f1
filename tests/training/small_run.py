"""A small run in a process of its own. Not a test: `test_resume.py` starts it, and kills it."""

from pathlib import Path
from typing import Any

import torch

from open_geoclip.geo.sphere import even_points, unit_vectors
from open_geoclip.model.image_encoder import image_head
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.training.features import FeatureSet
from open_geoclip.training.heads import StandardisedHead
from open_geoclip.training.loop import train
from open_geoclip.training.settings import TrainSettings


def small_run(folder: Path, changes: dict[str, Any], told: Any, rank: int = 0, world: int = 1) -> None:
    """Train for a moment; ``told`` is a connection that is sent the number of each step."""
    torch.set_num_threads(1)
    if world > 1:
        store = f"file://{folder}.store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    torch.manual_seed(0)
    coordinates = torch.from_numpy(even_points(340))
    mixing = torch.randn(3, 24).double()
    data = FeatureSet((5 + 3 * unit_vectors(coordinates) @ mixing).half(), coordinates)
    shape = LocationSettings(sigmas=(1.0, 4.0), features=16, width=32, depth=2, output=16, projection="sphere")
    head, locations = StandardisedHead(image_head((24, 32, 16)), data.features), LocationEncoder(shape)
    settings = TrainSettings(**{"epochs": 3, "batch_size": 32, "queue_size": 40, "learning_rate": 3e-3} | changes)

    def step(figures: dict[str, float]) -> None:
        if told is not None:
            told.send(figures["step"])

    train(head, locations, data, settings, folder, evaluate=lambda _: {}, report=lambda _: None, progress=step)
    if world > 1:
        torch.distributed.destroy_process_group()
