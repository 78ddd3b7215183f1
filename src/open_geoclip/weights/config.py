"""What a configuration file says about a model, checked key by key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from open_geoclip.errors import ModelNameError, WeightsError
from open_geoclip.weights.names import parse_name

__all__ = [
    "FORMAT",
    "GIVEN",
    "HUB_TYPES",
    "PROJECTIONS",
    "SETTINGS_OF",
    "TEXT_WIDTHS",
    "HeadSettings",
    "LocationSettings",
    "OwnSettings",
    "backbone_of",
    "check_keys",
    "given_keys",
    "hub_backbone",
    "input_size",
    "read_settings",
    "read_sigmas",
]

FORMAT = "open-geoclip"
HUB_TYPES = ("geoclip-geolocation", "geoclip-location-encoder")
"""What a configuration calls itself: ``format`` in our own layout, ``model_type`` in a release on the Hub."""

GIVEN = ("location_encoder", "image_encoder", "preprocessing", "card")
"""The keys of our configuration that the maker of a model gives; the others are written for him."""

MOST_LAYERS = 64
"""More levels or layers than this in a configuration are a mistake, or meant to exhaust the machine."""

PROJECTIONS = {"equal_earth": 2, "sphere": 3, "degrees": 2}
"""Each projection, and how many numbers a place is after it."""

SETTINGS_OF: dict[str, tuple[str, ...]] = {
    "fourier": ("sigmas", "features", "projection"),
    "plain": ("projection",),
    "harmonics": ("degree",),
    "space2vec": ("scales", "finest_deg"),
    "sphere2vec": ("scales", "finest_deg"),
    "wrapped": (),
    "unit": (),
}
"""Each encoding of a place, and the settings that only it and its like have."""

_LATER = {"encoding": "fourier", "network": "relu", "degree": 40, "scales": 16, "finest_deg": 1.0}
"""Settings that configurations of before 0.2 do not have, and what they mean by that."""


class LocationSettings(TypedDict):
    """What is needed to build a location encoder.

    ``sigmas``: one a level. ``features``: random Fourier features a level; the network sees twice as many
    numbers. ``width``: of the hidden layers. ``depth``: the number of hidden layers (Linear and ReLU).
    ``output``: the length of a location vector. ``projection``: one of :data:`PROJECTIONS`. The others are there
    only where they differ from the published model's; ``LocationSettings`` of the model tells what they are.
    """

    sigmas: list[float]
    features: int
    width: int
    depth: int
    output: int
    projection: str
    encoding: NotRequired[str]
    network: NotRequired[str]
    degree: NotRequired[int]
    scales: NotRequired[int]
    finest_deg: NotRequired[float]


def input_size(location: LocationSettings) -> int:
    """How many numbers a network of these settings sees of a place."""
    encoding = location.get("encoding", "fourier")
    if encoding == "fourier":
        return 2 * location["features"]
    if encoding == "plain":
        return PROJECTIONS[location["projection"]]
    if encoding == "harmonics":
        return int((location.get("degree", 40) + 1) ** 2)
    if encoding in ("space2vec", "sphere2vec"):
        return {"space2vec": 4, "sphere2vec": 3}[encoding] * location.get("scales", 16)
    return {"wrapped": 4, "unit": 3}[encoding]


TEXT_WIDTHS = {"minilm": 384}
"""Each sentence encoder that a model of our own may have, and the length of its vectors."""


class HeadSettings(TypedDict):
    """What is needed to build an image head.

    ``widths``: from what goes in to the shared space. ``aligned``: how many of the numbers that go in are the picture's
    vector in a space shared with texts, which stands before the backbone's feature; 0 for a head without one.
    """

    widths: list[int]
    aligned: int


@dataclass(frozen=True)
class OwnSettings:
    """What the maker of a model gives, taken apart."""

    location: LocationSettings
    head: HeadSettings | None
    backbone: str | None
    text: str | None
    preprocessing: dict[str, Any] | None
    card: dict[str, Any]


def read_settings(config: Mapping[str, Any], what: str) -> OwnSettings:
    """Check what the maker of a model gives, and take it apart.

    Raises:
        WeightsError: A setting is unknown, missing or out of range; the message names it.
    """
    where = f"{what}: location_encoder"
    entry = config["location_encoder"]
    if isinstance(entry, Mapping):
        entry = _LATER | dict(entry)
    given = check_keys(entry, tuple(LocationSettings.__annotations__), where)
    if given["projection"] not in PROJECTIONS:
        raise WeightsError(f"{where}: projection {given['projection']!r} is not one of {', '.join(PROJECTIONS)}")
    location = LocationSettings(
        sigmas=read_sigmas(given["sigmas"], f"{where}: sigmas"),
        features=_count(given["features"], f"{where}: features"),
        width=_count(given["width"], f"{where}: width"),
        depth=_count(given["depth"], f"{where}: depth", most=MOST_LAYERS),
        output=_count(given["output"], f"{where}: output"),
        projection=given["projection"],
    )
    location.update(_later_settings(given, where))
    head, backbone, text = None, None, None
    if config["image_encoder"] is not None:
        where = f"{what}: image_encoder"
        optional = [key for key in ("aligned",) if key in config["image_encoder"]]
        image = check_keys(config["image_encoder"], ("backbone", "widths", *optional), where)
        if not isinstance(image["widths"], list) or not 2 <= len(image["widths"]) <= MOST_LAYERS:
            raise WeightsError(f"{where}: widths must be a list of at least two numbers")
        widths = [_count(width, f"{where}: widths") for width in image["widths"]]
        aligned = _count(image["aligned"], f"{where}: aligned", most=widths[0] - 1) if optional else 0
        head = HeadSettings(widths=widths, aligned=aligned)
        backbone = _backbone(image["backbone"], where)
    if config.get("text_encoder") is not None:
        where = f"{what}: text_encoder"
        text = check_keys(config["text_encoder"], ("backbone",), where)["backbone"]
        if text not in TEXT_WIDTHS:
            raise WeightsError(f"{where}: backbone {text!r} is not one of {', '.join(TEXT_WIDTHS)}")
    if (text is not None) != (head is not None and head["aligned"] > 0):
        raise WeightsError(f"{what}: text_encoder and image_encoder's aligned go together")
    for key in ("preprocessing", "card"):
        if not isinstance(config[key], dict) and not (key == "preprocessing" and config[key] is None):
            raise WeightsError(f"{what}: {key} must be an object")
    return OwnSettings(location, head, backbone, text, config["preprocessing"], config["card"])


def given_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """:data:`GIVEN`, and ``text_encoder`` if the configuration has it."""
    return (*GIVEN, "text_encoder") if "text_encoder" in config else GIVEN


def _later_settings(given: Mapping[str, Any], where: str) -> LocationSettings:
    """Those that differ from the published model's; of the others the fingerprint of older weights knows nothing."""
    if given["encoding"] not in SETTINGS_OF:
        raise WeightsError(f"{where}: encoding {given['encoding']!r} is not one of {', '.join(SETTINGS_OF)}")
    if given["network"] not in ("relu", "siren"):
        raise WeightsError(f"{where}: network {given['network']!r} is not one of relu, siren")
    _count(given["degree"], f"{where}: degree", most=200)
    _count(given["scales"], f"{where}: scales", most=1000)
    finest = given["finest_deg"]
    if not isinstance(finest, int | float) or isinstance(finest, bool) or not 0 < finest <= 360:
        raise WeightsError(f"{where}: finest_deg must be above 0 and at most 360, not {finest!r}")
    changed: Any = {name: given[name] for name, default in _LATER.items() if given[name] != default}
    return changed


def check_keys(value: object, expected: Sequence[str], what: str) -> dict[str, Any]:
    """Return a JSON object that has exactly these keys.

    Raises:
        WeightsError: It is no object, or has a key too many or too few; the message names it.
    """
    if not isinstance(value, Mapping):
        raise WeightsError(f"{what} must be an object with the keys {', '.join(expected)}")
    if unknown := sorted(map(str, value.keys() - set(expected))):
        raise WeightsError(f"{what}: unknown key {', '.join(unknown)}; known are {', '.join(expected)}")
    if missing := sorted(set(expected) - value.keys()):
        raise WeightsError(f"{what}: the key {', '.join(missing)} is missing")
    return dict(value)


def _count(value: object, what: str, *, most: int | None = None) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most is not None and value > most):
        raise WeightsError(f"{what}: {value!r} must be a whole number from 1" + (f" to {most}" if most else ""))
    return value


def read_sigmas(value: object, what: str) -> list[float]:
    """Check the sigmas of a location encoder.

    Raises:
        WeightsError: They are no list of positive numbers.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_LAYERS:
        raise WeightsError(f"{what} must be a list of positive numbers, one a level, not {value!r}")
    for sigma in value:
        if not isinstance(sigma, int | float) or isinstance(sigma, bool) or not 0 < sigma < 1e9:
            raise WeightsError(f"{what} must be positive numbers, not {sigma!r}")
    return [float(sigma) for sigma in value]


def _backbone(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise WeightsError(f"{what}: backbone must be a name")
    try:
        parse_name(value)
    except ModelNameError as error:
        raise WeightsError(f"{what}: {error}") from error
    return value


def hub_backbone(config: Mapping[str, Any], what: str) -> str:
    """The name of the backbone that a release on the Hub was made with.

    Raises:
        WeightsError: It names none.
    """
    backbone = config.get("backbone")
    if not isinstance(backbone, dict) or not isinstance(backbone.get("repo_id"), str):
        raise WeightsError(f"{what}: backbone must give repo_id and revision")
    revision = backbone.get("revision")
    name = f"hub:{backbone['repo_id']}" + ("" if revision is None else f"@{revision}")
    return _backbone(name, what)


def backbone_of(config: Mapping[str, Any], what: str) -> str | None:
    """The backbone on the Hub that must be there before a model can be used, or None."""
    if config.get("model_type") == HUB_TYPES[0]:
        return hub_backbone(config, what)
    if config.get("format") == FORMAT and isinstance(config.get("image_encoder"), dict):
        name = _backbone(config["image_encoder"].get("backbone"), what)
        return name if name.startswith("hub:") else None
    return None
