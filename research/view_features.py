"""Features and captions of Earth views, computed once and kept on disk.

Features are float16 in shards of 4,096 views; work that was interrupted goes on at the first missing shard.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float16, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from open_geoclip.data.earth import Basemap, Earth
from open_geoclip.data.earth_views import Split, ViewBatch, sample_cameras, view_centres, views
from open_geoclip.files import atomic_file, sha256
from open_geoclip.model.backbones.earth import PREPROCESSING
from open_geoclip.model.backbones.runtime import prepare_backbone
from open_geoclip.training.batches import FeatureSet
from open_geoclip.weights.backbones import load_image_backbone, load_text_backbone
from research.altered_views import altered_views
from research.captions import sentences
from research.geo_targets import facts_of
from research.weather import varied_views

__all__ = ["ALTERED", "CaptionSet", "Imagery", "earth_view_captions", "earth_view_features"]

Altered = Literal["altered-bluemarble", "altered-etopo"]
Imagery = Basemap | Literal["varied"] | Altered | Path
"""A basemap, an image file of the whole Earth, or ``varied``: all basemaps, with weather; or altered views of one."""

ALTERED: dict[Altered, Basemap] = {"altered-bluemarble": "bluemarble", "altered-etopo": "etopo"}

SHARD = 4096
_BATCH = 16  # views at a time: what is in flight stays in the processor's cache
_VERSION = 1  # raise it when views or features change


@dataclass(frozen=True)
class CaptionSet:
    """Captions of images as sentence embeddings.

    Attributes:
        sentences: embeddings of m different captions, float16.
        rows: of each of n images, which of the sentences are its k captions.
    """

    sentences: Float16[Tensor, "m s"]
    rows: Int64[Tensor, "n k"]


def earth_view_captions(
    folder: Path,
    split: Split,
    n: int,
    each: int,
    *,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CaptionSet:
    """Sentence embeddings of captions of views ``first`` to ``n`` of a split, from the cache if they are there.

    Args:
        folder: where they are kept.
        split: ``train``, ``validation`` or ``test``.
        n: where to stop.
        each: captions a view.
        first: the first view.
        progress: called with how many different captions are done, and of how many.

    Raises:
        MissingExtraError: the extra ``text`` is not installed.
    """
    path = folder / f"captions-{split}-{f'{first}-' if first else ''}{n}-{each}-v{_VERSION}.safetensors"
    if not path.exists():
        facts = facts_of(view_centres(split, n)[first:], sample_cameras(split, 0, n)[0][first:])
        written = [sentences(facts, seed) for seed in range(each)]
        different = sorted({caption for captions in written for caption in captions})
        number = {caption: row for row, caption in enumerate(different)}
        encoder = load_text_backbone("minilm")
        embeddings = []
        for start in range(0, len(different), SHARD):
            embeddings.append(encoder.encode(different[start : start + SHARD]).half())
            if progress is not None:
                progress(min(start + SHARD, len(different)), len(different))
        rows = torch.tensor([[number[caption] for caption in captions] for captions in written]).T.contiguous()
        with atomic_file(path) as temporary:
            save_file({"sentences": torch.cat(embeddings), "rows": rows}, temporary)
    found = load_file(path)
    return CaptionSet(found["sentences"], found["rows"])


def earth_view_features(
    folder: Path,
    split: Split,
    n: int,
    *,
    imagery: Imagery = "bluemarble",
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureSet:
    """Features of views ``first`` to ``n`` of a split, from the cache as far as they are there.

    OpenVINO computes them where it is installed; what it gives differs from torch by less than float16 rounds.

    Args:
        folder: where shards are kept; about 7.8 kB a view.
        split: ``train``, ``validation`` or ``test``.
        n: where to stop.
        imagery: what is rendered.
        first: the first view; a multiple of 4,096.
        progress: called with how many views are done, and of how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"file{sha256(imagery)[:12]}" if isinstance(imagery, Path) else imagery
    earth: Earth | None = None
    backbone: nn.Module | None = None
    shards = []
    for start in range(first, n, SHARD):
        count = min(SHARD, n - start)
        path = folder / f"{name}-{split}-{start:07d}-{count}-v{_VERSION}.safetensors"
        if not path.exists():
            backbone = backbone or prepare_backbone(load_image_backbone("earth")[0], "auto", "float32")
            if imagery == "varied":
                batches = varied_views(split, start + count, batch_size=64, start=start)
            elif imagery == "altered-bluemarble" or imagery == "altered-etopo":
                basemap = ALTERED[imagery]
                batches = altered_views(split, start + count, basemap=basemap, batch_size=64, start=start)
            else:
                earth = earth or Earth(imagery)
                batches = views(split, start + count, earth=earth, batch_size=64, start=start)
            _save(path, _encode(backbone, batches))
        shard = load_file(path)
        shards.append(FeatureSet(shard["features"], shard["coordinates"]))
        if progress is not None:
            progress(start + count - first, n - first)
    return FeatureSet(torch.cat([s.features for s in shards]), torch.cat([s.coordinates for s in shards]))


@torch.inference_mode()
def _encode(backbone: nn.Module, batches: Iterator[ViewBatch]) -> FeatureSet:
    features, coordinates = [], []
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (PREPROCESSING.mean, PREPROCESSING.std))
    for batch in batches:
        pixels = (torch.from_numpy(batch.images).permute(0, 3, 1, 2) - mean) / std
        features += [backbone(part).half() for part in pixels.split(_BATCH)]
        coordinates.append(torch.from_numpy(batch.coordinates))
    return FeatureSet(torch.cat(features), torch.cat(coordinates))


def _save(path: Path, shard: FeatureSet) -> None:
    with atomic_file(path) as temporary:
        save_file({"features": shard.features, "coordinates": shard.coordinates}, temporary)
