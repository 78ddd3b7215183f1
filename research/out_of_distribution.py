"""``make out-of-distribution``: which images are recognised as no views of the Earth, measured on photos and views.

Writes docs/out-of-distribution.md. Photos from the ground are those of GCompris (Debian's ``gcompris-qt-data``).
The subspace is of training views, thresholds and the number of components are of validation views and other photos.
Which features it reads was chosen with test views of August and of shaded relief in sight.
"""

import argparse
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw
from torch import Tensor

from open_geoclip.data.earth_views import Split
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.subspace import PrincipalSubspace
from open_geoclip.search.calibration import OUT_OF_DISTRIBUTION_P, Calibration
from open_geoclip.search.encode import encode_images
from open_geoclip.search.gallery import Gallery
from open_geoclip.search.index import GalleryIndex
from open_geoclip.weights.load import load_model, load_release
from research.view_features import Imagery, earth_view_features

__all__ = ["fit_subspace", "ground_photos", "out_of_distribution_images", "roc_area"]

CHANNELS, POSITIONS, COMPONENTS = 112, 9, 32  # the features at stride 16, averaged over a 3x3 grid
COLLECTIONS = {  # of GCompris, photos alone
    "monuments": ("explore_monuments",),
    "animals": ("explore_world_animals", "explore_farm_animals", "erase"),
    "music": ("explore_world_music",),
    "buildings and paintings": ("details",),
    "things, fish, power plants": ("categorization", "clickgame"),
}
_LEAST_SIDE = 200  # pixels: smaller images are icons
_REFUSED = 0.02  # share of the views, at which pass rates are compared
_RESAMPLES = 1000

_SIZE = 300
_COLOURS = ((10, 30, 80), (20, 90, 30), (200, 180, 120), (200, 30, 30), (250, 240, 230), (90, 70, 50))
_TEXT = "The quick brown fox jumps over the lazy dog, 1234567890 times."


def out_of_distribution_images() -> dict[str, list[Image.Image]]:
    """Return images by kind, the same ones at each call; with scikit-learn, two photos are among them."""
    rng = np.random.default_rng(0)
    found = {
        "uniform grey": [_plain((level, level, level)) for level in range(0, 256, 51)],
        "uniform colour": [_plain(colour) for colour in _COLOURS],
        "noise": [Image.fromarray(rng.integers(0, 256, (_SIZE, _SIZE, 3), dtype=np.uint8)) for _ in range(12)],
        "colour patches": [_patches(rng, 4 * 2 ** (number % 4)) for number in range(12)],
        "drawn pattern": [_stripes(), _squares(), _rings()],
        "page of text": [_page()],
        "drawn face": [_face()],
        "drawn mountain": [_mountain()],
    }
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        return found
    # A temple and a flower, each as a whole and in quarters.
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    return found | {"photo taken on the ground": [part for whole in photographs for part in _parts(whole)]}


def _plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (_SIZE, _SIZE), colour)


def _patches(rng: np.random.Generator, cells: int) -> Image.Image:
    values = rng.normal(size=(cells, cells, 3))
    values = 255 * (values - values.min()) / np.ptp(values)
    return Image.fromarray(values.astype(np.uint8)).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)


def _stripes() -> Image.Image:
    image = _plain((255, 255, 255))
    for x in range(0, _SIZE, 20):
        ImageDraw.Draw(image).line([(x, 0), (x, _SIZE)], fill=(0, 0, 0), width=3)
    return image


def _squares() -> Image.Image:
    cells = (np.indices((_SIZE, _SIZE)) // 40).sum(axis=0) % 2
    return Image.fromarray((255 * cells).astype(np.uint8)).convert("RGB")


def _rings() -> Image.Image:
    image, middle = _plain((255, 255, 255)), _SIZE // 2
    for radius in range(140, 0, -20):
        corners = [middle - radius, middle - radius, middle + radius, middle + radius]
        ImageDraw.Draw(image).ellipse(corners, fill=(200, 0, 0) if radius // 20 % 2 else (255, 255, 255))
    return image


def _page() -> Image.Image:
    image = _plain((255, 255, 255))
    for y in range(10, _SIZE, 14):
        ImageDraw.Draw(image).text((8, y), _TEXT, fill=(0, 0, 0))
    return image


def _face() -> Image.Image:
    image = _plain((90, 120, 160))
    pen = ImageDraw.Draw(image)
    pen.ellipse([70, 40, 230, 260], fill=(224, 172, 140))
    for left in (110, 170):
        pen.ellipse([left, 110, left + 20, 130], fill=(0, 0, 0))
    pen.arc([110, 170, 190, 220], 0, 180, fill=(130, 60, 50), width=5)
    return image


def _mountain() -> Image.Image:
    image = _plain((60, 120, 220))
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, 180, _SIZE, _SIZE], fill=(60, 140, 50))
    pen.polygon([(60, 180), (130, 60), (200, 180)], fill=(110, 100, 90))
    return image


def _parts(whole: Image.Image) -> list[Image.Image]:
    width, height = whole.width // 2, whole.height // 2
    corners = [(x, y) for x in (0, width) for y in (0, height)]
    return [whole, *(whole.crop((x, y, x + width, y + height)) for x, y in corners)]


# --- photos and views -----------------------------------------------------------------------------


def ground_photos(folder: Path) -> dict[str, list[Image.Image]]:
    """Return the photos in the resource files of GCompris, by collection.

    A resource file holds WebP images as they are, among others; what has transparency or is small is a drawing.
    """
    return {
        kind: [image for name in names for image in _webp_images((folder / f"{name}.rcc").read_bytes())]
        for kind, names in COLLECTIONS.items()
    }


def _webp_images(content: bytes) -> Iterator[Image.Image]:
    for found in re.finditer(rb"RIFF(....)WEBP", content, re.DOTALL):
        size = 8 + int.from_bytes(found[1], "little")
        with Image.open(io.BytesIO(content[found.start() : found.start() + size])) as image:
            if image.mode == "RGB" and min(image.size) >= _LEAST_SIDE:
                yield image.copy()


def fit_subspace(features: Float[Tensor, "n d"]) -> PrincipalSubspace:
    """Return the subspace of the features of training views."""
    return PrincipalSubspace.fit(features, CHANNELS, POSITIONS, COMPONENTS)


@dataclass(frozen=True)
class Scored:
    """Images as the test sees them.

    Attributes:
        distances: of their features.
        scores: cosines of their best places.
    """

    distances: Float[Tensor, " n"]
    scores: Float[Tensor, " n"]

    def is_in_distribution(self, calibration: Calibration) -> Bool[np.ndarray, " n"]:
        """Return the decision."""
        known = calibration.is_in_distribution(self.scores, self.distances)
        assert known is not None
        decided: np.ndarray = known.numpy()
        return decided


@torch.inference_mode()
def scored(model: GeoCLIP, index: GalleryIndex, features: Float[Tensor, "n d"]) -> Scored:
    """Return distance and best score of images whose backbone features are known."""
    subspace = model.image_encoder.subspace
    assert subspace is not None, "the model has no subspace: research.accuracy --fit makes it"
    best = [index.logits(model.encode_features(part.float()), 1.0).amax(dim=1) for part in features.split(128)]
    return Scored(subspace.distance(features), torch.cat(best))


# --- figures --------------------------------------------------------------------------------------


def roc_area(strange: Float[np.ndarray, " n"], usual: Float[np.ndarray, " m"]) -> float:
    """Return the share of pairs in which the strange image has the higher value; ties count half."""
    usual = np.sort(usual)
    below = np.searchsorted(usual, strange, "left") + np.searchsorted(usual, strange, "right")
    return float(below.mean() / (2 * len(usual)))


def interval(strange: Float[np.ndarray, " n"], usual: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the ROC area, photos and views resampled."""
    rng = np.random.default_rng(0)
    areas = [roc_area(rng.choice(strange, len(strange)), rng.choice(usual, len(usual))) for _ in range(_RESAMPLES)]
    low, high = np.quantile(areas, (0.025, 0.975))
    return float(low), float(high)


def page(
    photos: dict[str, Scored], drawn: dict[str, Scored], views: dict[str, Scored], calibration: Calibration
) -> str:
    """Return docs/out-of-distribution.md."""
    ground = Scored(
        torch.cat([one.distances for one in photos.values()]), torch.cat([one.scores for one in photos.values()])
    )
    n = len(ground.scores)
    lines = [
        "# Images out of distribution",
        "",
        "The embedded model is for views of the Earth from orbit. Whether an image is one is tested on the features of",
        "its backbone: they are standardised, and what lies outside the span of the first principal components of",
        "training views is measured ([model/subspace.py](../src/open_geoclip/model/subspace.py)): "
        f"{COMPONENTS} components of the {CHANNELS} channels",
        f"at stride 16, shared by the {POSITIONS} positions of the grid. The p-value of this distance among validation "
        "views (as they are,",
        "in all weathers, and as shaded relief) decides together with the best score: an image is out of distribution "
        "when either is",
        f"beyond {100 * OUT_OF_DISTRIBUTION_P:.0f} % of these views. Then the answer says so first, its candidates are "
        "marked, and its probabilities go to the prior as",
        "the p-value falls.",
        "",
        f"`make out-of-distribution` writes this page: {n} photos from the ground, from Debian's `gcompris-qt-data` "
        "(free licences), against test",
        "views. Nothing was tuned on these photos, January or May. Which features are read was chosen with August and",
        "shaded relief in sight; the number of components was chosen on validation views and 87 other photos.",
        "",
        "## Separation",
        "",
        f"Area under the ROC curve with its 95 % bootstrap interval, and the share of the {n} photos that pass at the "
        f"threshold that refuses {100 * _REFUSED:.0f} % of the views.",
        "",
        "| views | n | distance: ROC area | photos pass | best score, as before: ROC area | photos pass |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, view in views.items():
        cells = []
        for strange, usual in ((ground.distances, view.distances), (-ground.scores, -view.scores)):
            high, low = strange.double().numpy(), usual.double().numpy()
            passing = np.mean(high <= np.quantile(low, 1 - _REFUSED))
            start, end = interval(high, low)
            cells.append(f"{roc_area(high, low):.4f} ({start:.4f} to {end:.4f}) | {100 * passing:.1f} %")
        lines.append(f"| {name} | {len(view.scores):,} | {cells[0]} | {cells[1]} |")
    lines += [
        "",
        "## Decisions of the released test",
        "",
        "| images | n | in distribution |",
        "| --- | --- | --- |",
    ]
    kinds = {f"views, {name}": view for name, view in views.items()}
    kinds |= {f"photos from the ground, {kind}": one for kind, one in photos.items()} | drawn
    for kind, one in kinds.items():
        lines.append(f"| {kind} | {len(one.scores):,} | {100 * one.is_in_distribution(calibration).mean():.1f} % |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ground", type=Path, help="folder of GCompris' resource files (*.rcc)")
    parser.add_argument("--features", type=Path, default=Path("build/earth-model/features"))
    parser.add_argument("--january", type=Path, default=Path("build/others/january.jpg"))
    parser.add_argument("--may", type=Path, default=Path("build/others/may.jpg"))
    parser.add_argument("--output", type=Path, default=Path("docs/out-of-distribution.md"))
    options = parser.parse_args()

    release = load_release("earth")
    assert release.gallery is not None
    model = load_model(release, towers=("image",))
    index = GalleryIndex.build(model.location_encoder, Gallery.from_file(release.gallery))
    split: Split = "test"
    imageries: dict[str, Imagery] = {"August": "bluemarble", "January": options.january, "May": options.may}
    imageries["shaded relief"] = "shadedrelief"
    views = {
        name: scored(model, index, earth_view_features(options.features, split, 4096, imagery=imagery).features)
        for name, imagery in imageries.items()
    }

    def encoded(images: list[Image.Image]) -> Scored:
        features = encode_images(model, images).features
        assert features is not None
        return scored(model, index, features)

    photos = {kind: encoded(images) for kind, images in ground_photos(options.ground).items()}
    drawn = {kind: encoded(images) for kind, images in out_of_distribution_images().items()}
    text = page(photos, drawn, views, Calibration.from_dict(release.calibration))
    options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
