"""What a training run is told, checked key by key."""

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_origin

from open_geoclip.errors import SettingsError

__all__ = ["PAPER", "RECIPES", "TrainSettings", "from_table"]

_Settings = TypeVar("_Settings")
_POSITIVE = ("epochs", "batch_size", "accumulate", "learning_rate", "gamma", "start_scale", "max_scale")
_NOT_NEGATIVE = (
    "queue_size", "weight_decay", "warmup", "clip_norm", "noise_m", "queue_noise_m", "mask_km", "positive_km",
    "checkpoint_every", "patience", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run. The defaults are those of the embedded model; :data:`PAPER` are the paper's.

    Attributes:
        epochs: passes over the pictures.
        batch_size: pictures a step, over all processes. What is left of an epoch after its last whole batch waits.
        accumulate: parts that a batch is computed in, to save memory; the gradient is the whole batch's all the same.
        queue_size: coordinates of earlier steps that serve as negatives.
        optimizer: ``adamw`` or ``adam``.
        learning_rate: at its peak.
        weight_decay: of the optimizer.
        schedule: ``cosine`` to nothing, ``step`` (times ``gamma`` each epoch) or ``constant``.
        gamma: see ``schedule``.
        warmup: share of the run in which the learning rate rises from nothing.
        clip_norm: greatest norm of the gradient; 0 for any.
        noise_m: standard deviation in metres of the noise on the batch's coordinates, north and east each.
        queue_noise_m: the same for the queue.
        mask_km: negatives nearer to the truth than this are left out.
        positive_km: other places of batch and queue within this radius count as right too; 0 for the own one alone.
        symmetric: ask for the picture of each place as well, not only for the place of each picture.
        start_scale: inverse of the temperature at the start, where no trained one is taken up.
        max_scale: bound of the temperature's inverse.
        dtype: what the towers compute in: ``float32``; ``bfloat16`` or ``auto`` where the processor has it.
        freeze: what stays as it is: ``head``, ``locations``, a level such as ``locations.LocEnc0``, ``logit_scale``.
        monitor: the figure of the evaluation whose best epoch is kept, such as ``median_km``; none: the last epoch's.
        patience: stop after so many epochs without a better figure; 0 never.
        checkpoint_every: steps between two checkpoints within an epoch; 0 for one at the end of each.
        seed: of everything that is drawn.

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
    mask_km: float = 25.0
    positive_km: float = 0.0
    symmetric: bool = False
    start_scale: float = 1 / 0.07
    max_scale: float = 100.0
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    freeze: tuple[str, ...] = ()
    monitor: str = ""
    patience: int = 0
    checkpoint_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name}: above 0, not {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name}: 0 or more, not {getattr(self, name)}")
        for field in fields(self):
            if get_origin(field.type) is Literal and getattr(self, field.name) not in get_args(field.type):
                raise SettingsError(
                    f"{field.name}: one of {', '.join(get_args(field.type))}, not {getattr(self, field.name)!r}"
                )
        if self.warmup >= 1:
            raise SettingsError(f"warmup: a share of the run below 1, not {self.warmup}")
        if self.batch_size % self.accumulate:
            raise SettingsError(f"accumulate: {self.batch_size} pictures cannot be computed in {self.accumulate} parts")
        if self.symmetric and self.accumulate > 1:
            raise SettingsError("symmetric: needs all pictures of a batch at once; set accumulate to 1")
        if self.mask_km and self.positive_km > self.mask_km:
            raise SettingsError(f"positive_km: at most mask_km ({self.mask_km}), not {self.positive_km}")
        if self.patience and not self.monitor:
            raise SettingsError("patience: set monitor to the figure that must become better, such as median_km")


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

RECIPES: dict[str, TrainSettings] = {"paper": PAPER, "earth": TrainSettings()}
"""What the key ``recipe`` of a configuration starts from."""


def from_table(cls: type[_Settings], table: Mapping[str, Any], where: str) -> _Settings:
    """Settings from a table of a TOML file.

    Args:
        cls: a dataclass.
        table: values by name of the attribute.
        where: what messages call the table.

    Raises:
        SettingsError: a key is unknown (the message names the nearest), missing, or its value of another kind.
    """
    kinds = typing.get_type_hints(cls)
    for key in table:
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            meant = f"did you mean {near[0]}?" if near else f"known are {', '.join(kinds)}"
            raise SettingsError(f"{where}: unknown key {key!r}; {meant}")
    values = {key: _checked(value, kinds[key], f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
    except TypeError as error:  # what has no default and was not given
        raise SettingsError(f"{where}: {str(error).partition(') ')[2] or error}") from error


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _checked(value: Any, kind: Any, what: str) -> Any:
    """The value as this kind; raises SettingsError where it is of another."""
    origin = get_origin(kind)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{what}: a list, not {value!r}")
        return tuple(_checked(item, get_args(kind)[0], what) for item in value)
    if origin is Literal:
        if value not in get_args(kind):
            raise SettingsError(f"{what}: one of {', '.join(map(str, get_args(kind)))}, not {value!r}")
        return value
    if origin is types.UnionType:
        for option in get_args(kind):
            try:
                return _checked(value, option, what)
            except SettingsError:
                continue
        told = " or ".join(_KINDS.get(option, str(option)) for option in get_args(kind))
        raise SettingsError(f"{what}: {told}, not {value!r}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise SettingsError(f"{what}: {_KINDS.get(kind, str(kind))}, not {value!r}")
    return value
