"""What a run of `geoclip train` is told: a TOML file with photos, model and training, checked key by key."""

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from open_geoclip.errors import SettingsError
from open_geoclip.model.location_encoder import Network, Projection
from open_geoclip.training.settings import RECIPES, TrainSettings, from_table

__all__ = ["DataSettings", "ModelSettings", "RunSettings", "read_settings"]


@dataclass(frozen=True)
class DataSettings:
    """Which photos, and how they become features.

    Attributes:
        train: photos to train on, by a name that :func:`~open_geoclip.data.sources.open_source` knows.
        images: where the pictures of a table lie, when not beside it.
        validation: other photos to choose the best epoch on, by name; or a share of ``train``, split off by place and
            group; 0 for none.
        buffer_km: no photo of that share is nearer than this to one that is trained on.
        pixels: compute features anew each epoch instead of keeping them.
        augment: show random views of the photos, instead of each as it is.
        views: views a photo that are kept.
        together: views of a photo that a batch shows at once.
        workers: threads that decode.
        cache: folder for features; ``features`` in the run's own when not given.
    """

    train: str
    images: str = ""
    validation: float | str = 0.1
    buffer_km: float = 1.0
    pixels: bool = False
    augment: bool = True
    views: int = 4
    together: int = 1
    workers: int = 2
    cache: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.validation, float) and not 0 <= self.validation < 1:
            raise SettingsError(f"validation: a share from 0 to below 1, or the name of photos, not {self.validation}")
        if self.views < 1 or not 1 <= self.together <= self.views:
            raise SettingsError(f"views: 1 or more, and together at most as many, not {self.views} and {self.together}")
        if self.pixels and self.together > 1:
            raise SettingsError("together: several views at once need features that are kept: set pixels = false")


@dataclass(frozen=True)
class ModelSettings:
    """What is trained.

    Attributes:
        start: weights to begin with, such as ``geoclip`` (released) or ``dir:/folder``; none for new ones.
        backbone: the frozen image backbone; that of ``start`` when not given.
        add_levels: sigmas of finer levels, such as 4096, that are added to the trained ones.
        sigmas: of new weights; this and what follows as in :class:`LocationSettings`.
        features: random frequencies a level.
        width: of the hidden layers.
        depth: hidden layers a level.
        output: length of a vector.
        projection: ``equal_earth``, ``sphere`` or ``degrees``.
        encoding: of a place, such as ``fourier``.
        network: ``relu`` or ``siren``.
        hidden: neurons of the image head's hidden layers.
        gallery: places to answer with: ``train``, ``even:KM`` (evenly over the Earth) or a file.
        device: ``cpu``, ``cuda`` or ``auto``.
    """

    start: str = ""
    backbone: str = ""
    add_levels: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = (1.0, 16.0, 256.0)
    features: int = 256
    width: int = 1024
    depth: int = 3
    output: int = 512
    projection: Projection = "equal_earth"
    encoding: str = "fourier"
    network: Network = "relu"
    hidden: tuple[int, ...] = (768,)
    gallery: str = "train"
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.start and not self.backbone:
            raise SettingsError("name a backbone, such as dir:/clip or earth, or weights to start from")
        if not self.start and self.add_levels:
            raise SettingsError("add_levels: are added to trained weights: name them as start")


@dataclass(frozen=True)
class RunSettings:
    """A whole run.

    Attributes:
        output: folder of the run; the model is ``model`` in it.
        data: which photos.
        model: what is trained.
        train: how.
    """

    output: str
    data: DataSettings
    model: ModelSettings
    train: TrainSettings = field(default_factory=TrainSettings)


def read_settings(path: Path, changes: Sequence[str] = ()) -> RunSettings:
    """Settings from a TOML file.

    Args:
        path: the file, with ``output`` and the tables ``[data]``, ``[model]`` and ``[train]``; ``recipe`` in the last
            says what it starts from: ``paper`` (when not given) or ``earth``.
        changes: such as ``train.epochs=3``; the value is TOML, or text.

    Raises:
        SettingsError: the file cannot be read, a key is unknown or a value wrong; the message names it.
    """
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as TOML: {error}") from error
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise SettingsError(f"--set {change}: write it as key=value, such as train.epochs=3")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *tables, key = name.strip().split(".")
        inner = table
        for one in tables:
            inner = inner.setdefault(one, {})
        inner[key] = value
    top = {key: value for key, value in table.items() if key not in ("data", "model", "train")}
    if set(top) - {"output"} or not isinstance(top.get("output", ""), str):
        raise SettingsError(f"{path}: output (text) and the tables [data], [model] and [train], not {', '.join(top)}")
    data = from_table(DataSettings, table.get("data", {}), f"{path}: [data]")
    model = from_table(ModelSettings, table.get("model", {}), f"{path}: [model]")
    given = dict(table.get("train", {}))
    recipe = given.pop("recipe", "paper")
    if recipe not in RECIPES:
        raise SettingsError(f"{path}: [train]: recipe: one of {', '.join(RECIPES)}, not {recipe!r}")
    has_validation = data.validation != 0.0
    start = asdict(RECIPES[recipe]) | {"monitor": "median_km" if has_validation else "", "checkpoint_every": 200}
    settings = from_table(TrainSettings, {**start, **given}, f"{path}: [train]")
    if settings.monitor not in ("", "loss") and not has_validation:
        raise SettingsError(f"{path}: [train]: monitor: {settings.monitor} needs validation photos")
    if data.together > 1 and not (settings.mask_km or settings.positive_km):
        raise SettingsError(f"{path}: views of one photo at once need [train] positive_km, or mask_km, above 0")
    return RunSettings(top.get("output") or f"runs/{path.stem}", data, model, settings)
