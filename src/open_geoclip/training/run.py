"""A training run from a configuration: photos in, a model that `geoclip locate` takes out."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor, nn

from open_geoclip._version import __version__
from open_geoclip.data.augmentation import Augmentation
from open_geoclip.data.photos import Fault, IndexedPhotos, Photo, PhotoSource
from open_geoclip.data.sources import open_source
from open_geoclip.data.splitting import SplitSettings, split
from open_geoclip.errors import SettingsError, TrainingError
from open_geoclip.evaluation.metrics import summary
from open_geoclip.files import atomic_write
from open_geoclip.geo.sphere import even_points, haversine_km
from open_geoclip.model.image_encoder import ImageEncoder, image_head
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.search.gallery import Gallery
from open_geoclip.training.backbone import PhotoBackbone
from open_geoclip.training.cache import CachedFeatures, cache_features
from open_geoclip.training.configuration import DataSettings, RunSettings
from open_geoclip.training.distributed import Ranks
from open_geoclip.training.heads import StandardisedHead, TrainedHead
from open_geoclip.training.loop import CHECKPOINT, Figures, train
from open_geoclip.training.pixels import PixelData
from open_geoclip.weights.load import build_model, load_release
from open_geoclip.weights.save import save_release

__all__ = ["Listener", "run"]

GALLERY = 100_000  # training coordinates at most, as many as the released gallery has


@dataclass(frozen=True)
class Listener:
    """Who is told how it goes; each may be left out.

    Attributes:
        say: a line for people.
        cached: what is encoded, entries done, of how many if that is known.
        step: the figures of a step.
        epoch: the figures of an epoch.
    """

    say: Callable[[str], None] = lambda _: None
    cached: Callable[[str, int, int | None], None] = lambda *_: None
    step: Callable[[Figures], None] = lambda _: None
    epoch: Callable[[Figures], None] = lambda _: None


def run(settings: RunSettings, *, resume: bool = False, listener: Listener | None = None) -> Path:
    """Features, training, and a release of the result.

    Args:
        settings: the run.
        resume: go on with what is in the folder.
        listener: is told how it goes.

    Returns:
        The folder of the finished model.

    Raises:
        SettingsError: a setting does not fit, or the folder holds a run that was not to be taken up.
        DataError: there is no photo to train on.
        TrainingError: the run cannot go on; what was written is unharmed.
    """
    told, ranks, folder = listener or Listener(), Ranks.current(), Path(settings.output)
    if (folder / CHECKPOINT).exists() and not resume:
        raise SettingsError(f"{folder} holds a run already: --resume goes on with it; or choose another output")
    torch.manual_seed(settings.train.seed)
    data, validation = _sources(settings.data, settings.train.seed)
    head, locations, backbone, start_scale = _model(settings)
    plain = replace(backbone, augmentation=None)
    cache = Path(settings.data.cache) if settings.data.cache else folder / "features"
    faults: Counter[str] = Counter()

    def on_fault(fault: Fault) -> None:
        faults[fault.kind] += 1
        if faults.total() <= 10:
            told.say(f"left out: {fault}")

    def features(source: PhotoSource, what: str, by: PhotoBackbone, views: int) -> CachedFeatures:
        return cache_features(
            source,
            by,
            cache,
            views=views,
            workers=settings.data.workers,
            progress=lambda done, total: told.cached(what, done, total),
            on_fault=on_fault,
        )

    workers = settings.data.workers
    if settings.data.pixels:
        training: CachedFeatures | PixelData = PixelData(data, backbone, workers=workers, on_fault=on_fault)
        sample = next(backbone.features(data, 512, workers=workers)).features[:, 0]
    else:
        kept = features(data, "training photos", backbone, settings.data.views if settings.data.augment else 1)
        training, sample = replace(kept, together=settings.data.together), kept.first_view(4096).features
    seen = None if validation is None else features(validation, "validation photos", plain, 1).first_view()
    if faults:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in faults.items())
        told.say(f"{faults.total():,} entries were left out ({kinds}); {len(training):,} photos are trained on")
    if isinstance(head, nn.Sequential):
        head = StandardisedHead(head, sample)
    device = _device(settings.model.device)
    head, locations = head.to(device), locations.to(device)
    gallery = _gallery(settings.model.gallery, training)

    def evaluate(_: float) -> Figures:
        if seen is None:
            return {}
        answers = _answers(head, locations, seen.features, gallery)
        found = summary(haversine_km(seen.coordinates.numpy(), answers.numpy()))
        return {
            **{f"within_{km}_km": share for km, share in found["within_km"].items()},
            **{name: found[name] for name in ("median_km", "mean_km", "geoscore")},
        }

    batch = min(settings.train.batch_size, len(training) // ranks.world * ranks.world)
    if batch < settings.train.batch_size:
        raise SettingsError(
            f"{len(training):,} photos are fewer than a batch of {settings.train.batch_size}: set batch_size, for "
            f"instance --set train.batch_size={max(1, batch // 4)}"
        )
    scale = train(
        head,
        locations,
        training,
        settings.train,
        folder,
        evaluate=evaluate,
        report=told.epoch,
        progress=told.step,
        start_scale=start_scale,
    )
    if ranks.leads:
        _save(folder / "model", head, locations, backbone, scale, gallery, settings, folder)
    return folder / "model"


def _sources(settings: DataSettings, seed: int) -> tuple[PhotoSource, PhotoSource | None]:
    """Photos to train on and to validate with."""
    source = open_source(settings.train, images=settings.images or None)
    if isinstance(settings.validation, str):
        return source, open_source(settings.validation, images=settings.images or None)
    if settings.validation == 0:
        return source, None
    if not isinstance(source, IndexedPhotos):
        raise SettingsError(
            f"validation: {settings.train} is a stream, of which no share can be split off: name other photos, split "
            "it beforehand with `geoclip data split`, or set validation = 0.0"
        )
    entries = list(source.entries())
    rows = np.array([i for i, entry in enumerate(entries) if isinstance(entry, Photo)])
    photos = [entry for entry in entries if isinstance(entry, Photo)]
    if not photos:
        return source, None  # the cache says what is wrong with each
    places = np.array([(photo.lat, photo.lon) for photo in photos], dtype=np.float64)
    shares = {"training": 1 - settings.validation, "validation": settings.validation}
    how = SplitSettings(shares=shares, buffer_km=settings.buffer_km, seed=seed)
    sides = split(places, [photo.group for photo in photos], how)
    unusable = np.setdiff1d(np.arange(len(entries)), rows)  # stay with the training photos, to be named
    return source.select(np.sort(np.concatenate([rows[sides == 0], unusable]))), source.select(rows[sides == 1])


def _model(settings: RunSettings) -> tuple[nn.Module, LocationEncoder, PhotoBackbone, float | None]:
    """Head, location encoder, backbone and the temperature's inverse, if it is trained."""
    model, device = settings.model, _device(settings.model.device)

    def loaded(name: str, preprocessing: Preprocessing | None = None) -> PhotoBackbone:
        backbone = PhotoBackbone.load(_absolute(name), preprocessing, device=device)
        if not settings.data.augment:
            return backbone
        wants = backbone.preprocessing
        return replace(backbone, augmentation=Augmentation(size=wants.crop, seed=settings.train.seed))

    if not model.start:
        shape = LocationSettings(
            sigmas=model.sigmas,
            features=model.features,
            width=model.width,
            depth=model.depth,
            output=model.output,
            projection=model.projection,
            encoding=model.encoding,
            network=model.network,
        )
        backbone = loaded(model.backbone)
        dim = _dim(backbone)
        return image_head((dim, *model.hidden, model.output)), LocationEncoder(shape), backbone, None
    release = load_release(model.start)
    if "logit_scale" not in release.tensors:
        raise SettingsError(f"start: {model.start} holds a location encoder only")
    start = build_model(release, backbone=_absolute(model.backbone) if model.backbone else None, towers=("image",))
    encoder, locations = start.image_encoder, start.location_encoder
    backbone = loaded(encoder.settings.backbone, encoder.preprocessing)
    return (
        TrainedHead(encoder),
        with_levels(locations, model.add_levels),
        backbone,
        math.exp(float(release.tensors["logit_scale"])),
    )


def with_levels(locations: LocationEncoder, sigmas: Sequence[float]) -> LocationEncoder:
    """A location encoder with further levels. They add nothing at first, so that it starts as the same function."""
    if not sigmas:
        return locations
    more = LocationEncoder(replace(locations.settings, sigmas=(*locations.settings.sigmas, *sigmas)))
    for mine, theirs in zip(more.levels, locations.levels, strict=False):
        mine.load_state_dict(theirs.state_dict())
    for level in more.levels[len(locations.levels) :]:
        nn.init.zeros_(level.head[0].weight)  # type: ignore[arg-type]
        nn.init.zeros_(level.head[0].bias)  # type: ignore[arg-type]
    return more


def _dim(backbone: PhotoBackbone) -> int:
    side = backbone.preprocessing.crop
    with torch.inference_mode():
        return int(backbone.runner(torch.zeros(1, 3, side, side, device=backbone.device)).shape[1])


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _absolute(name: str) -> str:
    """A name of weights that holds in any folder."""
    return f"dir:{Path(name[4:]).resolve()}" if name.startswith("dir:") else name


def _gallery(name: str, data: CachedFeatures | PixelData) -> Float64[Tensor, "m 2"]:
    """Places to answer with."""
    if name == "train":
        return data.some_coordinates(GALLERY, 0).unique(dim=0)
    if name.startswith("even:"):
        try:
            spacing = float(name[5:])
        except ValueError:
            spacing = 0.0
        if spacing < 5:
            raise SettingsError(f"gallery: even:KM with 5 km or more, such as even:50, not {name!r}")
        return torch.from_numpy(even_points(round(510e6 / spacing**2)))
    return torch.from_numpy(Gallery.from_file(name).coordinates.astype(np.float64))


@torch.inference_mode()
def _answers(
    head: nn.Module, locations: LocationEncoder, features: Tensor, gallery: Float64[Tensor, "m 2"]
) -> Float64[Tensor, "n 2"]:
    """The best place of a gallery for each picture."""
    device = next(locations.parameters()).device
    places = locations.encode(gallery.to(device)).to(device)
    rows = [
        (F.normalize(head(part.to(device).float()), dim=1) @ places.T).argmax(dim=1).cpu()
        for part in features.split(256)
    ]
    return gallery[torch.cat(rows)]


def _save(
    target: Path,
    head: nn.Module,
    locations: LocationEncoder,
    backbone: PhotoBackbone,
    scale: float,
    gallery: Float64[Tensor, "m 2"],
    settings: RunSettings,
    folder: Path,
) -> None:
    """Write the result as a release, with what it was made from."""
    plain = head.folded() if isinstance(head, StandardisedHead) else head
    if isinstance(plain, TrainedHead):
        plain = plain.encoder
    prefix = "image_encoder." + ("" if isinstance(plain, ImageEncoder) else "mlp.")
    tensors = {f"{prefix}{name}": tensor for name, tensor in plain.state_dict().items()}
    tensors |= {f"location_encoder.{name}": tensor for name, tensor in locations.state_dict().items()}
    tensors["logit_scale"] = torch.tensor(scale).log()
    aligned = plain.projection.out_features if isinstance(plain, ImageEncoder) and plain.projection else 0
    linear = [tuple(t.shape) for n, t in sorted(tensors.items()) if ".mlp." in n and n.endswith("weight")]
    metrics = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    record: Mapping[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    config: dict[str, Any] = {
        "location_encoder": asdict(locations.settings) | {"sigmas": list(locations.settings.sigmas)},
        "image_encoder": {
            "backbone": backbone.name,
            **({"aligned": aligned} if aligned else {}),
            "widths": [linear[0][1], *(shape[0] for shape in linear)],
        },
        "preprocessing": asdict(backbone.preprocessing),
        "card": {
            "title": f"GeoCLIP trained on {settings.data.train}",
            "source": f"geoclip train (open-geoclip {__version__})",
            "trained_on": f"{record['data']['pictures']:,} photos of {settings.data.train}",
            "run": record,
            "configuration": asdict(settings),
            "last_epoch": json.loads(metrics[-1]) if metrics else {},
        },
    }
    table = folder / "gallery.csv"
    if aligned:  # the projection into the space of the texts is frozen, so that their encoder still fits
        release = load_release(settings.model.start)
        tensors = {**release.tensors, **tensors}
        config["text_encoder"] = {"backbone": release.text}
    try:
        atomic_write(table, "lat,lon\n" + "".join(f"{lat:.6f},{lon:.6f}\n" for lat, lon in gallery.tolist()))
        save_release(target, tensors, config, gallery=table, dtype="float32")
    except OSError as error:
        raise TrainingError(
            f"{target} cannot be written: {error.strerror or error}. The weights are safe in {folder / CHECKPOINT}: "
            "make room and take the run up again"
        ) from error
