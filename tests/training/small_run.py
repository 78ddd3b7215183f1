"""A small run in a process of its own. Not a test: `test_resume.py` starts it, and kills it."""

from pathlib import Path
from typing import Any

import torch

from open_geoclip.geo.sphere import even_points, unit_vectors
from open_geoclip.model.backbones.clip import ClipVision, ClipVisionSettings
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.loop import Callbacks, train
from open_geoclip.training.settings import TrainSettings

SHAPE = LocationSettings(sigmas=(1.0, 4.0), features=16, width=32, depth=2, output=16, projection="sphere")


def small_model(n: int = 340, *, pixels: bool = False) -> tuple[GeoCLIP, FeatureSet]:
    """Return a model and data that tell the place; pixels come with a transformer of three blocks."""
    torch.manual_seed(0)
    coordinates = torch.from_numpy(even_points(n))
    points = unit_vectors(coordinates)
    if not pixels:
        data = FeatureSet((5 + 3 * points @ torch.randn(3, 24).double()).half(), coordinates)
        return GeoCLIP.for_features(data.features, LocationEncoder(SHAPE), hidden=(32,)), data
    colours = (points * 100 + 128).to(torch.uint8)
    data = FeatureSet(colours[:, None, None].expand(-1, 16, 16, -1).contiguous(), coordinates)
    shape = ClipVisionSettings(
        16, 24, num_hidden_layers=3, num_attention_heads=2, projection_dim=24, patch_size=8, image_size=16
    )
    backbone = ClipVision(shape)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    preprocessing = Preprocessing(16, 16, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    encoder = ImageEncoder(backbone, preprocessing, ImageSettings(widths=(24, 32, 16)))
    encoder.standardize_features(encoder.forward_backbone(preprocessing.normalize(data.features)))
    return GeoCLIP(encoder, LocationEncoder(SHAPE)), data


def small_run(folder: Path, changes: dict[str, Any], steps: Any, rank: int = 0, world: int = 1) -> None:
    """Train for a moment; ``steps`` is a connection that is sent the number of each step."""
    torch.set_num_threads(1)
    if world > 1:
        store = f"file://{folder}.store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    settings = TrainSettings(**{"epochs": 3, "batch_size": 32, "queue_size": 40, "learning_rate": 3e-3} | changes)
    model, data = small_model(pixels=settings.trains_backbone)
    for parameter in model.parameters() if rank else ():
        parameter.data += 1  # the weights of the main process count

    def step(figures: dict[str, float]) -> None:
        if steps is not None:
            steps.send(figures["step"])

    train(model, data, settings, folder, callbacks=Callbacks(step=step), resume=True)
    if world > 1:
        torch.save(model.state_dict(), f"{folder}.rank{rank}")
        torch.distributed.destroy_process_group()
