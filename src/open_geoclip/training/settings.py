"""Settings of a training run, and the TOML file that they are read from.

The settings of a model are the model's own dataclasses, embedded whole: a field that is added there is a key here.
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from open_geoclip.data.photos import MAX_SWAPPED
from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import EARTH_RADIUS_KM
from open_geoclip.model.backbones.transformers import Feature
from open_geoclip.model.location_encoder import LocationSettings
from open_geoclip.schema import from_dict

__all__ = [
    "OPENGEOCLIP",
    "PAPER",
    "RECIPES",
    "DataSettings",
    "ModelSettings",
    "RunSettings",
    "TrainSettings",
    "read_settings",
]

_POSITIVE = (
    "epochs", "batch_size", "accumulate", "learning_rate", "gamma", "start_scale", "max_scale",
    "smooth_end", "near_weight_km", "backbone_rate", "layer_decay",
)  # fmt: skip
_NOT_NEGATIVE = (
    "queue_size", "weight_decay", "warmup", "clip_norm", "noise_m", "queue_noise_m", "mask_km", "positive_km",
    "near_weight", "nearby_places", "checkpoint_every", "patience", "seed", "unfreeze_blocks", "lora_rank", "ema_decay",
)  # fmt: skip
_OF_BACKBONES = ("backbone_rate", "layer_decay", "gradient_checkpointing")
_MAX_SEED = 2**32  # random numbers of an epoch are seeded with multiples of it
_HALF_WAY_KM = math.pi * EARTH_RADIUS_KM


def _refuse_without_effect(settings: Any, *rules: tuple[str, bool, str]) -> None:
    """Refuse settings that are not the default and have no effect: (name, whether it has none, what gives it one)."""
    for name, is_ignored, how in rules:
        if is_ignored and getattr(settings, name) != getattr(type(settings), name):
            raise SettingsError(f"{name}: it has no effect as it is: {how}, or remove it")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run. The defaults are those of the embedded model; :data:`PAPER` are the paper's.

    Attributes:
        epochs: passes over the images.
        batch_size: images per step, over all processes. An incomplete batch at the end of an epoch is dropped.
        accumulate: parts that a batch is computed in, to save memory; the gradient is that of the whole batch.
        queue_size: coordinates of earlier steps that serve as negatives.
        optimizer: ``adamw`` or ``adam``.
        learning_rate: the peak learning rate.
        weight_decay: of the optimizer.
        schedule: ``cosine`` to 0, ``step`` (times ``gamma`` per epoch) or ``constant``.
        gamma: see ``schedule``.
        warmup: share of the run in which the learning rate rises from 0.
        clip_norm: largest norm of the gradient; 0 does not clip.
        noise_m: standard deviation in metres of the noise on the batch's coordinates, north and east each.
        queue_noise_m: the same for the queue.
        loss: ``infonce``, the cross-entropy over places, or ``siglip``, a sigmoid for each pair, with a trained bias.
        mask_km: negatives nearer to the truth than this are ignored.
        positive_km: other places of batch and queue within this radius are positives too; 0 for none.
        smooth_km: widths of Gaussians of the distance, in km: each place of batch and queue has a share in the target
            (the mean over the widths). Needs ``mask_km`` and ``positive_km`` of 0.
        smooth_end: the widths at the end of the run as a share of those at its beginning; they shrink geometrically.
        near_weight: negatives near the truth count up to 1 + ``near_weight`` times; 0 weights none.
        near_weight_km: the distance at which that excess has fallen to 1/e.
        nearby_places: places around that of each image, drawn anew in each step, that are candidates too.
        nearby_km: their least and greatest distance; as many are drawn in each octave between.
        symmetric: classify images among places and places among images, not only the former.
        start_scale: inverse temperature at the start of new weights.
        max_scale: upper bound of the inverse temperature.
        dtype: of the networks: ``float32``; ``bfloat16`` or ``auto`` where the processor has it.
        freeze: parameters that are not trained, by the beginning of their names in the published checkpoint:
            ``image_encoder``, ``location_encoder``, ``location_encoder.LocEnc0``, ``logit_scale``.
        unfreeze_blocks: the last blocks of the image backbone that are trained, with all that follows them.
        lora_rank: rank of low-rank updates of queries, keys and values in all blocks of the backbone, instead.
        backbone_rate: learning rate of the last block as a share of ``learning_rate``.
        layer_decay: each block's learning rate as a share of that of the block after it.
        gradient_checkpointing: compute trained blocks a second time instead of storing what they computed.
        ema_decay: evaluate and keep an exponential moving average of the weights of all steps, which decays by this
            per step, faster in the first ones: min(``ema_decay``, (1 + t) / (10 + t)); 0 keeps the weights themselves.
        monitor: figure of the evaluation whose best epoch is kept, such as ``median_km``; empty keeps the last epoch.
        patience: stop after this many epochs without a better figure; 0 never stops early.
        checkpoint_every: steps between two checkpoints within an epoch; 0 for one at the end of each epoch.
        seed: of all random numbers.

    Raises:
        SettingsError: a setting is out of range.
    """

    epochs: int = 12
    batch_size: int = 512
    accumulate: int = 1
    queue_size: int = 1024
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    gamma: float = 0.87
    warmup: float = 0.05
    clip_norm: float = 0.0
    noise_m: float = 2000.0
    queue_noise_m: float = 2000.0
    loss: Literal["infonce", "siglip"] = "infonce"
    mask_km: float = 25.0
    positive_km: float = 0.0
    smooth_km: tuple[float, ...] = ()
    smooth_end: float = 1.0
    near_weight: float = 0.0
    near_weight_km: float = 500.0
    nearby_places: int = 0
    nearby_km: tuple[float, float] = (15.0, 500.0)
    symmetric: bool = False
    start_scale: float = 1 / 0.07
    max_scale: float = 100.0
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    freeze: tuple[str, ...] = ()
    unfreeze_blocks: int = 0
    lora_rank: int = 0
    backbone_rate: float = 0.1
    layer_decay: float = 1.0
    gradient_checkpointing: bool = False
    ema_decay: float = 0.0
    monitor: str = ""
    patience: int = 0
    checkpoint_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{name}: above 0, not {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name}: 0 or more, not {getattr(self, name)}")
        for name in ("mask_km", "positive_km"):
            if getattr(self, name) > _HALF_WAY_KM:
                raise SettingsError(f"{name}: at most {_HALF_WAY_KM:,.0f}, half the Earth, not {getattr(self, name)}")
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise SettingsError(f"{name}: one of {', '.join(get_args(kind))}, not {getattr(self, name)!r}")
        if self.warmup >= 1:
            raise SettingsError(f"warmup: a share of the run, below 1, not {self.warmup}")
        if self.batch_size % self.accumulate:
            raise SettingsError(f"accumulate: {self.batch_size} images cannot be divided into {self.accumulate} parts")
        if self.symmetric and self.accumulate > 1:
            raise SettingsError("symmetric: needs all images of a batch at once; set accumulate to 1")
        if self.mask_km and self.positive_km > self.mask_km:
            raise SettingsError(f"positive_km: at most mask_km ({self.mask_km}), not {self.positive_km}")
        if any(not 0 < width <= _HALF_WAY_KM for width in self.smooth_km):
            raise SettingsError(f"smooth_km: widths above 0 and at most {_HALF_WAY_KM:,.0f}, not {self.smooth_km}")
        if self.smooth_km and (self.mask_km or self.positive_km):
            raise SettingsError("smooth_km: gives every place a share: set mask_km and positive_km to 0")
        if not 0 < self.nearby_km[0] <= self.nearby_km[1] <= _HALF_WAY_KM:
            raise SettingsError(
                f"nearby_km: a distance above 0 and another, at most {_HALF_WAY_KM:,.0f}, not {self.nearby_km}"
            )
        if self.loss == "siglip" and (self.smooth_km or self.near_weight):
            raise SettingsError("loss: siglip knows right and wrong pairs only: set smooth_km to [], near_weight to 0")
        if self.smooth_end > 1:
            raise SettingsError(f"smooth_end: at most 1, not {self.smooth_end}")
        if self.unfreeze_blocks and self.lora_rank:
            raise SettingsError("unfreeze_blocks, lora_rank: train the last blocks or updates of all, not both")
        if self.layer_decay > 1 or self.ema_decay >= 1:
            raise SettingsError("layer_decay: at most 1; ema_decay: below 1")
        _refuse_without_effect(
            self,
            *((name, not self.trains_backbone, "set unfreeze_blocks or lora_rank") for name in _OF_BACKBONES),
            ("smooth_end", not self.smooth_km, "set smooth_km"),
            ("near_weight_km", not self.near_weight, "set near_weight"),
            ("nearby_km", not self.nearby_places, "set nearby_places"),
            ("gamma", self.schedule != "step", 'set schedule = "step"'),
        )
        if self.seed >= _MAX_SEED:
            raise SettingsError(f"seed: below 2^32, not {self.seed}")
        if self.trains_backbone and any("image_encoder.backbone".startswith(part) for part in self.freeze):
            raise SettingsError("freeze: the backbone in image_encoder is to be trained: freeze image_encoder.mlp")
        if self.patience and not self.monitor:
            raise SettingsError("patience: set monitor to the figure that must improve, such as median_km")

    @property
    def trains_backbone(self) -> bool:
        """Whether the image backbone is trained, too."""
        return bool(self.unfreeze_blocks or self.lora_rank)


PAPER = TrainSettings(
    epochs=10,
    batch_size=512,
    queue_size=4096,
    optimizer="adam",
    learning_rate=3e-5,
    weight_decay=1e-6,
    schedule="step",
    gamma=0.87,
    warmup=0.0,
    noise_m=150.0,
    queue_noise_m=1000.0,
    mask_km=0.0,
)
"""The recipe of Vivanco Cepeda et al. (NeurIPS 2023), as far as it is known."""

OPENGEOCLIP = replace(TrainSettings(), mask_km=0.0, smooth_km=(75.0,), nearby_places=4)
"""The embedded model's recipe with the objective that helped most in our comparison."""

RECIPES: dict[str, TrainSettings] = {"paper": PAPER, "earth": TrainSettings(), "opengeoclip": OPENGEOCLIP}
"""What the key ``recipe`` of a configuration file names."""


@dataclass(frozen=True)
class DataSettings:
    """Which photos, and how they become features.

    Attributes:
        train: photos to train on, by a name that :func:`~open_geoclip.data.sources.open_source` knows.
        images: where the images of a table are, if not beside it.
        validation: other photos to choose the best epoch on, by name; or a share of ``train``, split off by place and
            group; 0 for none.
        buffer_km: no validation photo of that share is nearer than this to a training photo.
        pixels: compute features anew in each epoch instead of caching them; needed where the backbone is trained.
        augment: train on random views of the photos instead of each as it is.
        views: views per photo in the cache.
        together: views of one photo in a batch.
        neighborhood: half of each batch consists of groups of about this many photos from one area, which are hard
            negatives of each other; 0 draws all at random.
        workers: threads that decode; default: one per processor core.
        encode_batch: images that the backbone encodes at a time; 0 is 16 on a CPU and 128 on a GPU.
        cache: folder for features; ``features`` in the run's own when not given.
        max_swapped: largest share of entries whose latitude and longitude look swapped; beyond it the run stops.
    """

    train: str
    images: str = ""
    validation: float | str = 0.1
    buffer_km: float = 1.0
    pixels: bool = False
    augment: bool = True
    views: int = 4
    together: int = 1
    neighborhood: int = 0
    workers: int | None = None
    encode_batch: int = 0
    cache: str = ""
    max_swapped: float = MAX_SWAPPED

    def __post_init__(self) -> None:
        if isinstance(self.validation, float) and not 0 <= self.validation < 1:
            raise SettingsError(f"validation: a share from 0 to below 1, or the name of photos, not {self.validation}")
        if self.views < 1 or not 1 <= self.together <= self.views:
            raise SettingsError(f"views: 1 or more, and together at most as many, not {self.views} and {self.together}")
        if self.pixels and self.together > 1:
            raise SettingsError("together: several views at once need cached features: set pixels = false")
        if self.together > 1 and not self.augment:
            raise SettingsError("together: views of a photo are all the same without augmentation: set augment = true")
        if self.neighborhood < 0 or (self.pixels and self.neighborhood):
            raise SettingsError("neighborhood: 0 or more, and with cached features only: set pixels = false")
        _refuse_without_effect(
            self,
            ("views", self.views > 1 and (self.pixels or not self.augment), "set pixels = false, augment = true"),
            ("buffer_km", self.validation == 0 or isinstance(self.validation, str), "set validation to a share"),
        )
        if not 0 <= self.max_swapped <= 1:
            raise SettingsError(f"max_swapped: a share from 0 to 1, not {self.max_swapped}")
        if (self.workers or 0) < 0 or self.encode_batch < 0:
            raise SettingsError(f"workers, encode_batch: 0 or more, not {self.workers} and {self.encode_batch}")


@dataclass(frozen=True)
class ModelSettings:
    """What is trained.

    Attributes:
        start: weights to begin with, such as ``geoclip`` (released) or ``dir:/folder``; none for new ones.
        backbone: the frozen image backbone; that of ``start`` when not given.
        feature: which feature of a vision model: ``projected``, ``pooled``, ``cls``, ``mean`` or ``cls+mean``; the
            first of these that it has when not given.
        add_levels: sigmas of finer levels, such as 4096, that are added to those of ``start``.
        location: shape of a new location encoder; None: the published one, or that of ``start``.
        hidden: widths of a new image head's hidden layers; None: (768,), or those of ``start``.
        gallery: places to answer with: ``train`` (rounded to 0.01 degrees, about a kilometre), ``train:DECIMALS``,
            ``even:KM`` (evenly over the Earth) or a file.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
    """

    start: str = ""
    backbone: str = ""
    feature: Feature = ""
    add_levels: tuple[float, ...] = ()
    location: LocationSettings | None = None
    hidden: tuple[int, ...] | None = None
    gallery: str = "train"
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.start and not self.backbone:
            raise SettingsError("name a backbone, such as dir:/clip or earth, or weights to start from")
        if not self.start and self.add_levels:
            raise SettingsError("add_levels: are added to trained weights: name them as start")
        if self.start and (self.location or self.hidden is not None or self.feature):
            raise SettingsError(
                f"the shape is that of {self.start}: remove hidden, feature and the location encoder's keys"
            )


@dataclass(frozen=True)
class RunSettings:
    """A whole run.

    Attributes:
        output: folder of the run; the model is ``model`` in it.
        data: which photos.
        model: what is trained.
        train: how.

    Raises:
        SettingsError: settings do not fit together.
    """

    output: str
    data: DataSettings
    model: ModelSettings
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        monitor = self.train.monitor
        if monitor not in ("", "loss") and self.data.validation == 0.0:
            raise SettingsError(f"monitor: {monitor} needs validation photos")
        if monitor not in ("", *FIGURES):
            raise SettingsError(f"monitor: one of {', '.join(FIGURES)}, not {monitor!r}")
        if self.train.trains_backbone and not self.data.pixels:
            raise SettingsError(
                "unfreeze_blocks, lora_rank: features of a backbone that is trained cannot be cached: set pixels = "
                "true in [data]"
            )
        if self.model.start and self.train.start_scale != TrainSettings.start_scale:
            raise SettingsError(f"start_scale: the scale is that of {self.model.start}: remove it")
        if self.data.together > 1 and not (self.train.mask_km or self.train.positive_km or self.train.smooth_km):
            raise SettingsError("together: views of one photo at once need mask_km, positive_km or smooth_km")


FIGURES = (
    "loss", "validation_loss", "median_km", "mean_km", "geoscore",
    *(f"within_{km}_km" for km in (1, 25, 200, 750, 2500)),
)  # fmt: skip
"""Figures of an epoch that can be monitored."""


def read_settings(path: Path | None, changes: Sequence[str] = ()) -> RunSettings:
    """Read the settings of a run from a TOML file.

    Args:
        path: the file, with ``output`` and the tables ``[data]``, ``[model]`` and ``[train]``, or None for ``changes``
            alone. ``[model]`` also takes all fields of
            :class:`~open_geoclip.model.location_encoder.LocationSettings`; ``recipe`` in ``[train]`` names what the
            others start from: ``paper`` (default), ``earth`` or ``opengeoclip``.
        changes: such as ``train.epochs=3``; the value is TOML, or text.

    Raises:
        SettingsError: the file cannot be read, a key is unknown or a value wrong; the message names it.
    """
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as TOML: {error}") from error
    for change in changes:
        _apply(table, change)
    path = path or Path("settings")
    unknown = set(table) - {"output", "data", "model", "train"}
    if unknown or not isinstance(table.get("output", ""), str):
        names = ", ".join(sorted(unknown)) or "another output"
        raise SettingsError(f"{path}: output (text) and the tables [data], [model] and [train], not {names}")
    data = from_dict(DataSettings, table.get("data", {}), f"{path}: [data]")
    for name in ("model", "train"):
        if not isinstance(table.get(name, {}), dict):
            raise SettingsError(f"{path}: [{name}] must be a table, not {table[name]!r}")
    model = dict(table.get("model", {}))
    shape = {name: model.pop(name) for name in (f.name for f in fields(LocationSettings)) if name in model}
    if shape:
        model["location"] = from_dict(LocationSettings, shape, f"{path}: [model]")
    train = dict(table.get("train", {}))
    recipe = train.pop("recipe", "paper")
    if recipe not in RECIPES:
        raise SettingsError(f"{path}: [train]: recipe: one of {', '.join(RECIPES)}, not {recipe!r}")
    defaults = asdict(RECIPES[recipe]) | {"monitor": "" if data.validation == 0.0 else "median_km"}
    settings = from_dict(TrainSettings, {**defaults, "checkpoint_every": 200, **train}, f"{path}: [train]")
    output = table.get("output") or f"runs/{path.stem}"
    try:
        return RunSettings(output, data, from_dict(ModelSettings, model, f"{path}: [model]"), settings)
    except SettingsError as error:
        raise SettingsError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def _apply(table: dict[str, Any], change: str) -> None:
    """Set a key such as ``train.epochs=3``."""
    name, equals, text = change.partition("=")
    if not equals:
        raise SettingsError(f"--set {change}: write it as key=value, such as train.epochs=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, key = name.strip().split(".")
    for one in tables:
        table = table.setdefault(one, {})
        if not isinstance(table, dict):
            raise SettingsError(f"--set {change}: {one} is no table")
    table[key] = value
