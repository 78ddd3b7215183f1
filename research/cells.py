"""The classification baseline: the Earth cut into cells, a photo put into one of them.

Cells are adaptive: a cell is quartered while it holds more photos than it may (Weyand et al., "PlaNet", ECCV 2016,
section 3), on a map that keeps areas. Several such partitions are learned at once and a fine cell's probability is
multiplied with those of the coarser cells around it (Müller-Budack et al., "Geolocation Estimation of Photos Using a
Hierarchical Model and Scene Classification", ECCV 2018, section 3.2). The answer is the centroid of the cell's photos.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import coordinates_of, unit_vectors
from open_geoclip.model.image_encoder import image_head
from open_geoclip.training.batches import FeatureSet

__all__ = ["CellClassifier", "CellSettings", "Partition", "train_cells"]

_DEEPEST = 16


@dataclass(frozen=True)
class CellSettings:
    """Settings of the classification baseline.

    Attributes:
        most: photos a cell may hold, for each partition, from coarse to fine.
        hidden: width of the classifier's hidden layer.
        epochs: passes over the images.
        batch_size: images a step.
        learning_rate: of AdamW at its start; it falls as a cosine to nothing.
        weight_decay: of AdamW.
        seed: of everything that is drawn.

    Raises:
        SettingsError: a setting is out of range.
    """

    most: tuple[int, ...] = (400, 100, 25)
    hidden: int = 512
    epochs: int = 8
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.most or min(self.most) < 1 or list(self.most) != sorted(set(self.most), reverse=True):
            raise SettingsError(f"most: photos a cell, falling and 1 or more, not {self.most}")
        for name in ("hidden", "epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name}: above 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class Partition:
    """The Earth cut into cells that hold photos.

    Attributes:
        labels: the cell of each photo it was made from.
        centroids: of each cell's photos on the sphere, (lat, lon) in degrees.
    """

    labels: Int64[Tensor, " n"]
    centroids: Float64[Tensor, "c 2"]

    @staticmethod
    def of(coordinates: Float64[Tensor, "n 2"], most: int) -> "Partition":
        """Quarter the map (longitude across, sine of latitude up: areas are kept) until each cell is small enough."""
        across = (coordinates[:, 1].numpy() + 180) / 360 % 1
        up = (np.sin(np.deg2rad(coordinates[:, 0].numpy())) + 1) / 2
        labels = np.zeros(len(coordinates), np.int64)
        todo = [(np.arange(len(coordinates)), 0)]
        cells = 0
        while todo:
            rows, depth = todo.pop()
            if len(rows) <= most or depth == _DEEPEST:
                labels[rows] = cells
                cells += 1
                continue
            quarter = (across[rows] * 2 ** (depth + 1)).astype(np.int64) % 2 + 2 * (
                (up[rows] * 2 ** (depth + 1)).astype(np.int64) % 2
            )
            todo += [(part, depth + 1) for i in range(4) if len(part := rows[quarter == i])]
        sums = torch.zeros(cells, 3, dtype=torch.float64)
        sums.index_add_(0, torch.from_numpy(labels), unit_vectors(coordinates))
        return Partition(torch.from_numpy(labels), coordinates_of(F.normalize(sums, dim=1)))


class CellClassifier(nn.Module):
    """One hidden layer, and a classifier for each partition.

    Args:
        features: of some thousands of images, for their mean and deviation.
        partitions: from coarse to fine, of the same photos.
        hidden: width of the hidden layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: Float[Tensor, "n d"], partitions: list[Partition], hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", features.float().mean(dim=0))
        self.register_buffer("std", features.float().std(dim=0) + 1e-3)
        self.trunk = nn.Sequential(*image_head((features.shape[1], hidden, hidden)), nn.ReLU())
        self.outs = nn.ModuleList([nn.Linear(hidden, len(p.centroids)) for p in partitions])
        self.centroids = partitions[-1].centroids
        # The cell of each coarser partition that a fine cell lies in: cells are cut from the same quarters.
        fine = partitions[-1].labels
        first = torch.zeros(len(self.centroids), dtype=torch.int64)
        first[fine] = torch.arange(len(fine))
        self.parents = [p.labels[first] for p in partitions]

    def forward(self, features: Float[Tensor, "n d"]) -> list[Float[Tensor, "n _"]]:
        """Logits of each partition's cells."""
        hidden = self.trunk((features.float() - self.mean) / self.std)
        return [out(hidden) for out in self.outs]

    @torch.inference_mode()
    def places(self, features: Float[Tensor, "n d"], *, chunk: int = 1024) -> Float64[Tensor, "n 2"]:
        """The centroid of the cell that fits each image best, all partitions asked."""
        best = []
        for part in features.split(chunk):
            logs = [F.log_softmax(logits, dim=1) for logits in self(part)]
            together = torch.stack([log[:, cells] for log, cells in zip(logs, self.parents, strict=True)]).sum(dim=0)
            best.append(together.argmax(dim=1))
        return self.centroids[torch.cat(best)]


def train_cells(
    data: FeatureSet, settings: CellSettings, report: Callable[[dict[str, float]], None] | None = None
) -> CellClassifier:
    """A trained classifier of cells.

    Args:
        data: features and coordinates to learn from.
        settings: see :class:`CellSettings`.
        report: called with each epoch's figures.
    """
    torch.manual_seed(settings.seed)
    partitions = [Partition.of(data.coordinates, most) for most in settings.most]
    model = CellClassifier(data.features[:4096], partitions, settings.hidden)
    labels = torch.stack([p.labels for p in partitions])
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    size = min(settings.batch_size, len(data))
    steps = math.ceil(len(data) / size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)
    generator = torch.Generator().manual_seed(settings.seed)
    for epoch in range(settings.epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(data), generator=generator).split(size):
            losses = [F.cross_entropy(logits, labels[i, rows]) for i, logits in enumerate(model(data.features[rows]))]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if report is not None:
            report({"epoch": epoch + 1, "loss": total / steps})
    return model.eval()
