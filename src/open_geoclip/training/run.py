"""A whole training run: photos in, a model that `geoclip locate` reads out."""

import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from open_geoclip._version import __version__
from open_geoclip.data.augmentation import Augmentation
from open_geoclip.data.photos import Fault, IndexedPhotos, Photo, PhotoSource
from open_geoclip.data.sources import open_source
from open_geoclip.data.splitting import SplitSettings, split
from open_geoclip.errors import DataError, SettingsError, TrainingError
from open_geoclip.evaluation.metrics import summary
from open_geoclip.geo.sphere import even_points, haversine_km
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.search.gallery import Gallery
from open_geoclip.training.batches import FeatureSet
from open_geoclip.training.cache import CachedFeatures, cache_features
from open_geoclip.training.checkpoint import CHECKPOINT, Figures, check_record
from open_geoclip.training.distributed import Ranks, resolve_device
from open_geoclip.training.features import FeatureExtractor, PixelData
from open_geoclip.training.loop import Callbacks, batch_loss, check_batch, train, trainable_parameters
from open_geoclip.training.settings import DataSettings, RunSettings, TrainSettings
from open_geoclip.weights.load import build_model, load_release
from open_geoclip.weights.save import save_model

__all__ = ["add_levels", "evaluate_model", "export_model", "run"]

GALLERY_SIZE = 100_000  # training coordinates at most, as many as the released gallery has
_SHOWN_FAULTS = 10


def run(settings: RunSettings, *, resume: bool = False, callbacks: Callbacks | None = None) -> Path:
    """Encode photos, train, and save the model.

    Everything that can be refused is checked before the first photo is encoded.

    Args:
        settings: the run.
        resume: continue the run in the folder.
        callbacks: report progress.

    Returns:
        The folder of the model.

    Raises:
        SettingsError: a setting does not fit, or the folder holds a run that is not to be resumed.
        DataError: there is no photo to train on, or many coordinates look swapped.
        TrainingError: the run cannot go on; what was written is unharmed.
    """
    callbacks, ranks, folder = callbacks or Callbacks(), Ranks.current(), Path(settings.output)
    device = resolve_device(settings.model.device)
    cache = Path(settings.data.cache) if settings.data.cache else folder / "features"
    _check_folder(folder, settings, resume=resume)
    for one in (folder, cache):
        _check_writable(one)
    gallery = _fixed_gallery(settings.model.gallery)
    torch.manual_seed(settings.train.seed)
    source, validation = _open_photos(settings.data, settings.train.seed)
    if source.count is not None:
        check_batch(settings.train, source.count * settings.data.together, ranks.world)
    model, extractor = _build(settings, device)
    trainable_parameters(model, settings.train.freeze)

    faults = _Faults(settings.data, callbacks.log)
    training = _training_data(settings.data, source, extractor, cache, callbacks, faults)
    held_out = None
    if validation is not None:
        plain = replace(extractor, augmentation=None)
        held_out = _encode(settings.data, validation, plain, cache, "validation photos", callbacks, faults).first_view()
    faults.summarize(len(training))
    if not settings.model.start:
        model.image_encoder.standardize_features(_sample(training, extractor, settings.data.workers))
    model.to(device)
    if gallery is None:
        decimals = int(settings.model.gallery.partition(":")[2] or 2)
        gallery = training.sample_coordinates(GALLERY_SIZE, 0).round(decimals=decimals).unique(dim=0)

    def evaluate(trained: GeoCLIP) -> Figures:
        return {} if held_out is None else evaluate_model(trained, held_out, gallery, settings.train)

    kept = train(
        model, training, settings.train, folder, evaluate=evaluate, callbacks=callbacks, resume=resume,
        record=_record(settings),
    )  # fmt: skip
    callbacks.log(f"the model is that of epoch {kept['epoch']:.0f} of {settings.train.epochs}: {_describe(kept)}")
    if ranks.is_main:
        backbone = _portable(extractor.name, folder / "model")
        model.image_encoder.settings = replace(model.image_encoder.settings, backbone=backbone)
        export_model(model, folder / "model", gallery, _card(settings, folder, kept))
    return folder / "model"


# --- checks before work starts --------------------------------------------------------------------


def _record(settings: RunSettings) -> dict[str, Any]:
    """Return the settings that must stay the same when a run is resumed, beside those of training and model."""
    return {"start": settings.model.start, "add_levels": settings.model.add_levels}


def _check_folder(folder: Path, settings: RunSettings, *, resume: bool) -> None:
    if not (folder / CHECKPOINT).exists():
        return
    if not resume:
        raise SettingsError(f"{folder} holds a run already: --resume continues it; or choose another output")
    if (folder / "run.json").exists():
        now: dict[str, Any] = {"settings": asdict(settings.train), "model": _record(settings)}
        if settings.model.location is not None:
            now["model"]["location_encoder"] = asdict(settings.model.location)
        before = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        check_record(before, json.loads(json.dumps(now)), folder)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".part-"):
            pass
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written: {error.strerror or error}: choose another output") from error


def _fixed_gallery(name: str) -> Float64[Tensor, "m 2"] | None:
    """Return the places of a gallery, or None for the training places."""
    kind, _, value = name.partition(":")
    if kind == "train":
        if value and not value.isdecimal():
            raise SettingsError(f"gallery: train:DECIMALS, such as train:5, not {name!r}")
        return None
    if kind == "even":
        try:
            spacing_km = float(value)
        except ValueError:
            spacing_km = 0.0
        if not 5 <= spacing_km <= 5000:
            raise SettingsError(f"gallery: even:KM with 5 to 5,000 km, such as even:50, not {name!r}")
        return torch.from_numpy(even_points(round(510e6 / spacing_km**2)))
    return torch.from_numpy(Gallery.from_file(name).coordinates.astype(np.float64))


# --- photos and features --------------------------------------------------------------------------


class _Faults:
    """Counts entries that cannot be used; logs the first ones."""

    def __init__(self, settings: DataSettings, log: Callable[[str], None]) -> None:
        self.settings, self.log = settings, log
        self.counts: Counter[str] = Counter()
        self.swapped = 0

    def __call__(self, fault: Fault) -> None:
        self.counts[fault.kind] += 1
        self.swapped += looks_swapped(fault)
        if self.counts.total() <= _SHOWN_FAULTS:
            self.log(f"skipped: {fault}")

    def summarize(self, used: int) -> None:
        check_swapped(self.swapped, used + self.counts.total(), self.settings)
        if self.counts:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
            self.log(f"{self.counts.total():,} entries were skipped ({kinds}); {used:,} photos are trained on")


def looks_swapped(fault: Fault) -> bool:
    """Whether an entry was skipped because its latitude seems to be a longitude."""
    return fault.kind == "out of range" and "exchanged" in fault.reason


def check_swapped(swapped: int, total: int, settings: DataSettings) -> None:
    """Stop where many entries seem to have latitude and longitude swapped: the others may be, too.

    Raises:
        DataError: they are more than ``max_swapped``.
    """
    if swapped > settings.max_swapped * total:
        raise DataError(
            f"{settings.train}: latitude and longitude look swapped: {swapped:,} of {total:,} entries have a latitude "
            "beyond 90 degrees. Swap the columns, or set [data] max_swapped = 1.0 to train on the others"
        )


def _open_photos(settings: DataSettings, seed: int) -> tuple[PhotoSource, PhotoSource | None]:
    """Return photos to train on and to validate with."""
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
    check_swapped(sum(isinstance(e, Fault) and looks_swapped(e) for e in entries), len(entries), settings)
    places = np.array([(photo.lat, photo.lon) for photo in photos], dtype=np.float64)
    shares = {"training": 1 - settings.validation, "validation": settings.validation}
    sides = split(
        places, [photo.group for photo in photos], SplitSettings(shares=shares, buffer_km=settings.buffer_km, seed=seed)
    )
    unusable = np.setdiff1d(np.arange(len(entries)), rows)  # stay with the training photos, to be named
    return source.select(np.sort(np.concatenate([rows[sides == 0], unusable]))), source.select(rows[sides == 1])


def _encode(
    settings: DataSettings,
    source: PhotoSource,
    extractor: FeatureExtractor,
    cache: Path,
    what: str,
    callbacks: Callbacks,
    on_fault: Callable[[Fault], None],
) -> CachedFeatures:
    return cache_features(
        source,
        extractor,
        cache,
        views=1 if extractor.augmentation is None else settings.views,
        workers=settings.workers,
        progress=lambda done, total: callbacks.encoding(what, done, total),
        on_fault=on_fault,
    )


def _training_data(
    settings: DataSettings,
    source: PhotoSource,
    extractor: FeatureExtractor,
    cache: Path,
    callbacks: Callbacks,
    on_fault: Callable[[Fault], None],
) -> CachedFeatures | PixelData:
    if settings.pixels:
        return PixelData(source, extractor, workers=settings.workers, on_fault=on_fault)
    cached = _encode(settings, source, extractor, cache, "training photos", callbacks, on_fault)
    return replace(cached, together=settings.together)


def _sample(data: CachedFeatures | PixelData, extractor: FeatureExtractor, workers: int) -> Tensor:
    """Return features of some hundred or thousand photos."""
    if isinstance(data, CachedFeatures):
        return data.first_view(4096).features
    return torch.cat(next(extractor.encode(data.source, 512, workers=workers)).features)[:, 0]


# --- the model ------------------------------------------------------------------------------------


def _build(settings: RunSettings, device: torch.device) -> tuple[GeoCLIP, FeatureExtractor]:
    """Return the model without its backbone, and the backbone."""
    chosen = settings.model
    release = load_release(chosen.start) if chosen.start else None
    if release and release.image is None:
        raise SettingsError(f"start: {chosen.start} holds a location encoder only")
    name = chosen.backbone or (release.image.backbone if release and release.image else "")
    preprocessing = None if release is None else release.preprocessing
    extractor = FeatureExtractor.load(name, preprocessing, device=device, batch_size=settings.data.encode_batch)
    if settings.data.augment:
        augmentation = Augmentation(size=extractor.preprocessing.crop, seed=settings.train.seed)
        extractor = replace(extractor, augmentation=augmentation)
    if release is None:
        location = chosen.location or LocationSettings()
        hidden = (768,) if chosen.hidden is None else chosen.hidden
        image = ImageSettings(extractor.name, (extractor.dim, *hidden, location.output))
        encoder = ImageEncoder(None, extractor.preprocessing, image)
        return GeoCLIP(encoder, LocationEncoder(location), scale=settings.train.start_scale), extractor
    model = build_model(release, backbone=name, towers=("text",))
    if model.image_encoder.settings.feature_dim != extractor.dim:
        raise SettingsError(
            f"backbone: {chosen.start} was trained on features of length {model.image_encoder.settings.feature_dim}; "
            f"those of {name} have {extractor.dim}"
        )
    model.image_encoder.preprocessing = extractor.preprocessing
    model.location_encoder = add_levels(model.location_encoder, chosen.add_levels)
    return model, extractor


def add_levels(encoder: LocationEncoder, sigmas: Sequence[float]) -> LocationEncoder:
    """Return a location encoder with further levels, which add 0 at first: the function stays the same."""
    if not sigmas:
        return encoder
    larger = LocationEncoder(replace(encoder.settings, sigmas=(*encoder.settings.sigmas, *sigmas)))
    for mine, theirs in zip(larger.levels, encoder.levels, strict=False):
        mine.load_state_dict(theirs.state_dict())
    for level in larger.levels[len(encoder.levels) :]:
        for parameter in level.head.parameters():
            nn.init.zeros_(parameter)
    return larger


@torch.inference_mode()
def evaluate_model(
    model: GeoCLIP, data: FeatureSet, gallery: Float64[Tensor, "m 2"], settings: TrainSettings | None = None
) -> Figures:
    """Return figures of merit: the loss, and distances to the best place of a gallery for each image.

    Args:
        model: in evaluation mode.
        data: features and coordinates that the model was not trained on.
        gallery: (lat, lon) of the places to choose from.
        settings: of the loss; the defaults when not given.

    Returns:
        ``validation_loss``, ``within_1_km`` to ``within_2500_km`` in percent, ``median_km``, ``mean_km``, ``geoscore``.
    """
    settings, device = settings or TrainSettings(), model.logit_scale.device
    places = model.location_encoder.encode(gallery.to(device)).to(device)
    loss, rows = 0.0, []
    size = settings.batch_size
    for features, truth in zip(data.features.split(size), data.coordinates.split(size), strict=True):
        features, truth = features.to(device), truth.to(device)
        loss += len(truth) * float(batch_loss(model, features, truth, truth, replace(settings, symmetric=False)))
        rows.append((model.encode_features(features.float()) @ places.T).argmax(dim=1).cpu())
    found = summary(haversine_km(data.coordinates.numpy(), gallery.cpu()[torch.cat(rows)].numpy()))
    return {
        "validation_loss": loss / len(data),
        **{f"within_{km}_km": share for km, share in found["within_km"].items()},
        **{name: found[name] for name in ("median_km", "mean_km", "geoscore")},
    }


# --- saving ---------------------------------------------------------------------------------------


def export_model(
    model: GeoCLIP, folder: Path | str, gallery: Float64[Tensor, "m 2"], card: Mapping[str, Any] | None = None
) -> Path:
    """Write a trained model for ``--model dir:FOLDER``; standardisation of features is folded into the head.

    Args:
        model: without or with its backbone, which is stored by name only.
        folder: to write; a model that is there is replaced as a whole.
        gallery: (lat, lon) of the places to answer with; written with 6 decimals.
        card: what is known about the model: ``title``, ``licence``, ``accuracy``...

    Raises:
        TrainingError: the folder cannot be written.
    """
    plain = copy.deepcopy(model).cpu()
    plain.image_encoder.fold_standardization()
    try:
        with TemporaryDirectory() as temporary:
            table = Path(temporary) / "gallery.csv"
            table.write_text("lat,lon\n" + "".join(f"{lat:.6f},{lon:.6f}\n" for lat, lon in gallery.tolist()))
            return save_model(folder, plain, card=card or {}, gallery=table, dtype="float32")
    except OSError as error:
        raise TrainingError(
            f"{folder} cannot be written: {error.strerror or error}. The checkpoint is unharmed: make room and resume"
        ) from error


def _portable(name: str, folder: Path) -> str:
    """Return the name of a backbone for a model in ``folder``: a folder's path is relative to it."""
    return f"dir:{os.path.relpath(Path(name[4:]).resolve(), folder.resolve())}" if name.startswith("dir:") else name


def _card(settings: RunSettings, folder: Path, kept: Figures) -> dict[str, Any]:
    """Return what a model says about itself. It names data by their last part: a shared model tells no paths."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    data = Path(settings.data.train).name
    return {
        "title": f"GeoCLIP trained on {data}",
        "source": f"geoclip train (open-geoclip {__version__})",
        "trained_on": f"{record['data']['pictures']:,} photos of {data}",
        "run": _without_paths(record),
        "configuration": _without_paths(asdict(settings)),
        "kept_epoch": kept,
    }


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, str) and "/" in value and not value.startswith("hub:"):
        return value.rsplit("/", 1)[1] or value.rstrip("/").rsplit("/", 1)[-1]
    return value


def _describe(figures: Figures) -> str:
    return ", ".join(f"{name} {value:,.4g}" for name, value in figures.items() if name not in ("epoch", "seconds"))
