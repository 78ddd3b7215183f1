"""Train GeoCLIP on any vision model that transformers reads, and locate with it.

    geoclip pull hub:facebook/dinov2-base
    python examples/train_any_backbone.py hub:facebook/dinov2-base --feature cls+mean

The photos are rendered views of the Earth; name your own with --train, such as a folder of photos with GPS.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from open_geoclip import Locator
from open_geoclip.data.photos import Photo
from open_geoclip.data.sources import open_source
from open_geoclip.model.location_encoder import LocationSettings
from open_geoclip.training.run import run
from open_geoclip.training.settings import RECIPES, DataSettings, ModelSettings, RunSettings


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a head on the named backbone, and locate a photo with the trained model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", help="hub:org/repo@revision or dir:/folder")
    parser.add_argument("--feature", default="", help="projected, pooled, cls, mean or cls+mean; default: the first")
    parser.add_argument("--train", default="earth-views:train:2048")
    parser.add_argument("--validation", default="earth-views:validation:256")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", default="runs/any-backbone")
    chosen = parser.parse_args(arguments)

    location = LocationSettings(sigmas=(4.0, 32.0), width=512, projection="sphere")
    model = ModelSettings(backbone=chosen.backbone, feature=chosen.feature, location=location, hidden=(512,))
    recipe = replace(RECIPES["earth"], epochs=chosen.epochs, batch_size=64, monitor="median_km")
    settings = RunSettings(chosen.output, DataSettings(chosen.train, validation=chosen.validation), model, recipe)
    folder = run(settings)

    # The release names the backbone, its feature and its preprocessing: nothing has to be named again.
    locator = Locator.from_pretrained(f"dir:{folder}")
    photo = next(photo for photo in open_source(chosen.validation).entries() if isinstance(photo, Photo))
    guess = locator.locate([photo.image], top_k=1)[0].candidates[0]
    print(f"dir:{folder}: {photo.key} at {guess.lat:.2f}, {guess.lon:.2f}; taken at {photo.lat:.2f}, {photo.lon:.2f}")


if __name__ == "__main__":
    main()
