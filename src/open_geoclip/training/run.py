"""A whole training run: photos in, a model that `geoclip locate` reads out."""

import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from open_geoclip._version import __version__
from open_geoclip.data.augmentation import Augmentation
from open_geoclip.data.exif import ExifPhotos
from open_geoclip.data.photos import IndexedPhotos, Photo, PhotoSource, SkippedRecord, check_swapped
from open_geoclip.data.sources import open_source
from open_geoclip.data.splitting import SplitSettings, split
from open_geoclip.errors import DataError, MissingExtraError, SettingsError, TrainingError
from open_geoclip.geo.sphere import even_points
from open_geoclip.model.backbones.runtime import precision_of
from open_geoclip.model.backbones.self_check import Progress
from open_geoclip.model.geoclip import GeoCLIP
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.search.gallery import Gallery
from open_geoclip.training.cache import CachedFeatures, Encode, cache_features
from open_geoclip.training.checkpoint import CHECKPOINT, Figures, check_record, read_metrics
from open_geoclip.training.distributed import Ranks, resolve_device
from open_geoclip.training.evaluation import evaluate_model
from open_geoclip.training.features import FeatureExtractor, PixelData
from open_geoclip.training.finetuning import check_finetuning
from open_geoclip.training.loop import GALLERY_SIZE, Callbacks, check_batch, train, trainable_parameters
from open_geoclip.training.settings import DataSettings, RunSettings
from open_geoclip.weights.load import load_model, load_release
from open_geoclip.weights.save import save_model, save_self_check

__all__ = ["add_levels", "export_model", "run"]

_SHOWN_RECORDS = 10
_DECIMALS = 6  # of the coordinates in gallery.csv


def run(
    settings: RunSettings, *, resume: bool = False, callbacks: Callbacks | None = None, encode: Encode | None = None
) -> Path:
    """Encode photos, train, and save the model.

    Everything that can be refused is checked before the first photo is encoded.

    Args:
        settings: the run.
        resume: continue the run in the folder.
        callbacks: report progress.
        encode: computes the features that are cached; see :func:`~open_geoclip.training.cache.cache_features`.

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
    _check_folders(folder, cache, settings, resume=resume)
    gallery = _fixed_gallery(settings.model.gallery)
    torch.manual_seed(settings.train.seed)
    source, validation = _open_photos(settings.data, settings.train.seed, callbacks.log)
    if source.count is not None:
        check_batch(settings.train, source.count * settings.data.together, ranks.world)
    model, extractor = _build(settings, device, partial(callbacks.encoding, "images of the self-check"))
    record = _record(settings) | {"photos": source.fingerprint[:12], "backbone_sha256": extractor.weights[:12]}
    record |= {"validation": None if validation is None else validation.fingerprint[:12]}
    if (folder / CHECKPOINT).exists():
        check_record(folder, {"model": record})
    trainable_parameters(model, settings.train.freeze)
    check_finetuning(extractor.backbone, settings.train)
    workers = settings.data.workers

    def cached(photos: PhotoSource, what: str, by: FeatureExtractor) -> CachedFeatures:
        views = 1 if by.augmentation is None else settings.data.views
        progress = partial(callbacks.encoding, what)
        features = cache_features(photos, by, cache, views=views, encode=encode, workers=workers, progress=progress)
        _report_skipped(features.faults, len(features.coordinates), settings.data, callbacks.log)
        return features

    training: CachedFeatures | PixelData
    as_it_is = replace(extractor, augmentation=None)
    if settings.data.pixels:
        decode_only = settings.train.trains_backbone
        training = PixelData(source, replace(extractor, decode_only=decode_only), workers=workers)
        sample = extractor.encode_all(source, workers=workers, most=512).features
    else:
        together, neighborhood = settings.data.together, settings.data.neighborhood
        training = replace(cached(source, "training photos", extractor), together=together, neighborhood=neighborhood)
        sample = training.first_view(4096).features
    held_out = None
    if validation is not None and not settings.train.trains_backbone:
        held_out = cached(validation, "validation photos", as_it_is).first_view()
    if not settings.model.start:
        model.image_encoder.standardize_features(sample)
    if settings.train.trains_backbone:
        model.image_encoder.backbone = extractor.backbone
    model.to(device)
    if gallery is None:
        decimals = int(settings.model.gallery.partition(":")[2] or 2)
        gallery = training.sample_coordinates(GALLERY_SIZE, 0).round(decimals=decimals).unique(dim=0)

    def evaluate(trained: GeoCLIP) -> Figures:
        if validation is None:
            return {}
        features = held_out or as_it_is.encode_all(validation, workers=workers)  # anew where the backbone has changed
        return evaluate_model(trained, features, gallery, settings.train)

    kept = train(
        model, training, settings.train, folder, evaluate=evaluate, callbacks=callbacks, resume=resume,
        record=record,
    )  # fmt: skip
    figures = ", ".join(f"{name} {value:,.4g}" for name, value in kept.items() if name not in ("epoch", "seconds"))
    callbacks.log(f"the model is that of epoch {kept['epoch']:.0f} of {settings.train.epochs}: {figures}")
    if ranks.is_main:
        backbone = _portable(extractor.name, folder / "model")
        weights = "" if model.image_encoder.adapter else extractor.weights  # an adapter names its own
        model.image_encoder.settings = replace(model.image_encoder.settings, backbone=backbone, backbone_sha256=weights)
        curves = _draw_curves(folder, kept, callbacks.log)
        export_model(model, folder / "model", gallery, _card(settings, folder, kept), curves=curves)
        is_own = precision_of(extractor.backbone) == "float32" and not settings.train.trains_backbone
        own = extractor.backbone if is_own else None  # else it is loaded again, in float32, with what was trained
        progress = partial(callbacks.encoding, "images of the self-check")
        save_self_check(folder / "model", own, device=device, progress=progress)
    return folder / "model"


# --- checks before work starts --------------------------------------------------------------------


def _record(settings: RunSettings) -> dict[str, Any]:
    """Return the settings that must stay the same when a run is resumed, beside those of training and model."""
    data = {key: getattr(settings.data, key) for key in ("augment", "views", "pixels", "together", "neighborhood")}
    return data | {key: getattr(settings.model, key) for key in ("start", "add_levels", "gallery")}


def _check_folders(folder: Path, cache: Path, settings: RunSettings, *, resume: bool) -> None:
    """Check that the output can be written, and that a run in it is to be resumed and the same."""
    if (folder / CHECKPOINT).exists():
        if not resume:
            raise SettingsError(f"{folder} holds a run already: --resume continues it; or choose another output")
        now: dict[str, Any] = {"settings": asdict(settings.train), "model": _record(settings)}
        if settings.model.location is not None:
            now["model"]["location_encoder"] = asdict(settings.model.location)
        check_record(folder, now)
    for one in (folder, cache):
        existing = next(path for path in (one.absolute(), *one.absolute().parents) if path.exists())
        try:
            with TemporaryDirectory(dir=existing, prefix=".part-"):  # a run that is refused leaves no folders
                pass
        except OSError as error:
            raise TrainingError(f"{one} cannot be written: {error.strerror or error}: choose another output") from error


def _fixed_gallery(name: str) -> Float64[Tensor, "m 2"] | None:
    """Return the places of a gallery, or None for the training places."""
    kind, _, value = name.partition(":")
    if kind == "train":
        if value and not (value.isdecimal() and int(value) <= _DECIMALS):
            raise SettingsError(f"gallery: train:DECIMALS, 0 to {_DECIMALS}, such as train:5, not {name!r}")
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


def _report_skipped(faults: list[SkippedRecord], used: int, settings: DataSettings, log: Callable[[str], None]) -> None:
    """Log how many entries were skipped, and the first of them."""
    for fault in faults[:_SHOWN_RECORDS]:
        log(f"skipped: {fault}")
    _check_swapped(faults, used + len(faults), settings)
    if faults:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(fault.kind for fault in faults).items())
        log(f"{len(faults):,} entries were skipped ({kinds}), {used:,} photos are used")


def _check_swapped(faults: Iterable[SkippedRecord], total: int, settings: DataSettings) -> None:
    override = ", or set [data] max_swapped = 1.0 to train on the others"
    check_swapped(faults, total, settings.train, most=settings.max_swapped, override=override)


def _open_photos(
    settings: DataSettings, seed: int, log: Callable[[str], None]
) -> tuple[PhotoSource, PhotoSource | None]:
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
    # Without their images, which a table or the Earth hands over with the place.
    entries = [replace(entry, image=b"") if isinstance(entry, Photo) else entry for entry in source.entries()]
    rows = np.array([i for i, entry in enumerate(entries) if isinstance(entry, Photo)])
    photos = [entry for entry in entries if isinstance(entry, Photo)]
    if not photos:
        return source, None  # the cache says what is wrong with each
    _check_swapped([entry for entry in entries if isinstance(entry, SkippedRecord)], len(entries), settings)
    sides = _split(photos, settings, seed, log, groups_matter=not isinstance(source, ExifPhotos))
    unusable = np.setdiff1d(np.arange(len(entries)), rows)  # stay with the training photos, to be named
    return source.select(np.sort(np.concatenate([rows[sides == 0], unusable]))), source.select(rows[sides == 1])


def _split(
    photos: list[Photo], settings: DataSettings, seed: int, log: Callable[[str], None], *, groups_matter: bool
) -> Int64[np.ndarray, " n"]:
    """Split off the validation photos. Albums of a photo library may be divided where they cannot be kept apart."""
    places = np.array([(photo.lat, photo.lon) for photo in photos], dtype=np.float64)
    groups, share = [photo.group for photo in photos], float(settings.validation)
    attempts = [(settings.buffer_km, True)]
    if not groups_matter:
        attempts += [(km, False) for km in (settings.buffer_km, 0.1, 0.02, 0.0) if km <= settings.buffer_km]
    for buffer_km, by_group in attempts:
        how = SplitSettings(
            {"training": 1 - share, "validation": share}, buffer_km=buffer_km, groups=by_group, seed=seed
        )
        try:
            sides = split(places, groups, how)
        except DataError:
            continue
        if (buffer_km, by_group) == attempts[-1] or share / 3 <= (sides == 1).mean() <= 3 * share:
            if (buffer_km, by_group) != attempts[0]:
                log(
                    f"the photos are of few places: those for validation are of the same albums, {buffer_km:g} km or "
                    "more from those trained on. The figures hold for these places, not for others"
                )
            return sides
    raise DataError(
        f"{settings.train}: no {share:.0%} for validation can be split off, because too many of the {len(photos):,} "
        f"photos are within {settings.buffer_km:g} km of each other or of one group. In [data], name other photos as "
        "validation, set a smaller buffer_km, or validation = 0.0 to train on all"
    )


# --- the model ------------------------------------------------------------------------------------


def _build(settings: RunSettings, device: torch.device, progress: Progress) -> tuple[GeoCLIP, FeatureExtractor]:
    """Return the model without its backbone, and the backbone."""
    chosen = settings.model
    release = load_release(chosen.start) if chosen.start else None
    if release and release.image is None:
        raise SettingsError(f"start: {chosen.start} holds a location encoder only")
    name = chosen.backbone or (release.image.backbone if release and release.image else "")
    preprocessing = None if release is None else release.preprocessing
    feature = release.image.feature if release and release.image else chosen.feature
    options: dict[str, Any] = {"feature": feature, "device": device, "batch_size": settings.data.encode_batch}
    options["progress"] = progress
    if settings.train.trains_backbone:
        options |= {"engine": "torch", "dtype": "float32"}
    extractor = FeatureExtractor.load(name, preprocessing, adapter=release.adapter if release else None, **options)
    if settings.data.augment:
        augmentation = Augmentation(size=extractor.preprocessing.crop, seed=settings.train.seed)
        extractor = replace(extractor, augmentation=augmentation)
    if release is None:
        location = chosen.location or LocationSettings()
        hidden = (768,) if chosen.hidden is None else chosen.hidden
        widths, feature = (extractor.dim, *hidden, location.output), getattr(extractor.backbone, "feature", "")
        image = ImageSettings(extractor.name, widths, feature=feature)
        encoder = ImageEncoder(None, extractor.preprocessing, image)
        return GeoCLIP(encoder, LocationEncoder.from_settings(location), scale=settings.train.start_scale), extractor
    model = load_model(release, backbone=name, towers=("text",))
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
    if not encoder.levels:
        raise SettingsError(f"add_levels: a {type(encoder).__name__} has no levels")
    larger = LocationEncoder(replace(encoder.settings, sigmas=(*encoder.settings.sigmas, *sigmas)))
    for mine, theirs in zip(larger.levels, encoder.levels, strict=False):
        mine.load_state_dict(theirs.state_dict())
    for level in larger.levels[len(encoder.levels) :]:
        for parameter in level.head.parameters():
            nn.init.zeros_(parameter)
    return larger


# --- saving ---------------------------------------------------------------------------------------


def export_model(
    model: GeoCLIP,
    folder: Path | str,
    gallery: Float64[Tensor, "m 2"],
    card: Mapping[str, Any] | None = None,
    *,
    curves: Path | None = None,
) -> Path:
    """Write a trained model for ``--model dir:FOLDER``; standardisation of features is folded into the head.

    Args:
        model: without or with its backbone, which is stored by name only.
        folder: to write; a model that is there is replaced as a whole.
        gallery: (lat, lon) of the places to answer with; written with 6 decimals.
        card: what is known about the model: ``title``, ``licence``, ``accuracy``...
        curves: a PNG of the training curves.

    Raises:
        TrainingError: the folder cannot be written.
    """
    backbone: nn.Module | None = model.image_encoder.backbone
    plain = copy.deepcopy(model, {id(backbone): None}).cpu()  # without the backbone, which is not saved
    plain.image_encoder.fold_standardization()
    try:
        with TemporaryDirectory() as temporary:
            table = Path(temporary) / "gallery.csv"
            table.write_text(
                "lat,lon\n" + "".join(f"{lat:.{_DECIMALS}f},{lon:.{_DECIMALS}f}\n" for lat, lon in gallery.tolist())
            )
            return save_model(folder, plain, card=card or {}, gallery=table, curves=curves, dtype="float32")
    except OSError as error:
        raise TrainingError(
            f"{folder} cannot be written: {error.strerror or error}. The checkpoint is unharmed: make room and resume"
        ) from error


def _draw_curves(folder: Path, kept: Figures, log: Callable[[str], None]) -> Path | None:
    """Draw ``training.png``; without matplotlib there is none."""
    from open_geoclip.export.figures import draw_training_curves

    try:
        draw_training_curves(folder / "training.png", read_metrics(folder), kept=kept["epoch"])
    except MissingExtraError as error:
        log(f"there are no training curves: {error}")
        return None
    return folder / "training.png"


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
