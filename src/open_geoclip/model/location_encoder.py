"""The location encoder: an embedding for any place on Earth.

A coordinate is projected, turned into random Fourier features at several resolutions, and each resolution has a
network of its own; their outputs are summed (Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023, section 3.1 and figure
2). The Earth is a continuous function here: there are no cells.

Three projections. ``equal_earth`` is the published one: a flat map in which +180 and -180 degrees are far apart and
each pole is a line. ``sphere`` takes the Fourier features of the three-dimensional unit vector, so it has no seam and
each pole is one point. ``degrees`` is no projection at all, for comparison. Other encodings than Fourier features are
in :mod:`open_geoclip.model.encodings`.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import SettingsError
from open_geoclip.geo.sphere import check_coordinates
from open_geoclip.model.encodings import ENCODINGS, PROJECTIONS, Sine

__all__ = ["LOCATION_ENCODERS", "LocationEncoder", "LocationSettings"]

Projection = Literal["equal_earth", "sphere", "degrees"]
Network = Literal["relu", "siren"]

_MAXIMA = {"features": 2**20, "width": 2**20, "output": 2**20, "depth": 64, "degree": 200, "scales": 1000}
_MAX_LEVELS = 64  # more are a mistake, or meant to exhaust the machine


@dataclass(frozen=True)
class LocationSettings:
    """The shape of a location encoder. The defaults are the published model's.

    Attributes:
        sigmas: one resolution a level: the standard deviation of its frequencies, in cycles per unit of the
            projection. A unit is half the equator's length for ``equal_earth``, the Earth's radius for ``sphere``,
            180 degrees of longitude and 90 of latitude for ``degrees``.
        features: random frequencies per level; each gives a cosine and a sine.
        width: neurons per hidden layer.
        depth: hidden layers per level.
        output: length of the embedding.
        projection: ``equal_earth``, ``sphere`` or ``degrees``.
        encoding: a key of :data:`~open_geoclip.model.encodings.ENCODINGS`, of which ``fourier`` is the published one,
            or of :data:`LOCATION_ENCODERS`.
        network: ``relu``, or ``siren``: sines between the layers.
        degree: highest degree of ``harmonics``.
        scales: how many ``space2vec`` and ``sphere2vec`` have, from a full turn down to ``finest_deg``.
        finest_deg: the shortest wavelength of these, in degrees.

    Raises:
        SettingsError: a setting is out of range, or is not one of the encoding's.
    """

    sigmas: tuple[float, ...] = (2.0**0, 2.0**4, 2.0**8)
    features: int = 256
    width: int = 1024
    depth: int = 3
    output: int = 512
    projection: Projection = "equal_earth"
    encoding: str = "fourier"
    network: Network = "relu"
    degree: int = 40
    scales: int = 16
    finest_deg: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.sigmas) <= _MAX_LEVELS or not all(0 < sigma < 1e9 for sigma in self.sigmas):
            raise SettingsError(f"sigmas: one to {_MAX_LEVELS} numbers above 0, not {str(self.sigmas)[:80]}")
        encodings = ENCODINGS.keys() | LOCATION_ENCODERS.keys()
        for name, known in (("projection", PROJECTIONS), ("encoding", encodings), ("network", ("relu", "siren"))):
            if getattr(self, name) not in known:
                raise SettingsError(f"{name}: one of {', '.join(sorted(known))}, not {getattr(self, name)!r}")
        for name, most in _MAXIMA.items():
            if not 1 <= getattr(self, name) <= most:
                raise SettingsError(f"{name}: from 1 to {most:,}, not {getattr(self, name)}")
        if not 0 < self.finest_deg <= 360:
            raise SettingsError(f"finest_deg: above 0 and at most 360, not {self.finest_deg}")
        if self.encoding in LOCATION_ENCODERS:
            return
        defaults = {field.name: field.default for field in fields(self)}
        used = ENCODINGS[self.encoding].settings_used
        for encoding, kind in ENCODINGS.items():
            for name in kind.settings_used:
                if name not in used and getattr(self, name) != defaults[name]:
                    raise SettingsError(f"{name} is a setting of {encoding}; {self.encoding} does not use it")


class Level(nn.Module):
    """One resolution. The names ``capsule`` and ``head`` are those of the published weights."""

    def __init__(self, settings: LocationSettings, level: int) -> None:
        super().__init__()
        encoding = ENCODINGS[settings.encoding](settings, level)
        layers: list[nn.Module] = [encoding]
        for i in range(settings.depth):
            linear = nn.Linear(settings.width if i else encoding.size, settings.width)
            activation: nn.Module = nn.ReLU()
            if settings.network == "siren":
                activation = Sine(1.0 if i else 30.0)
                activation.initialize(linear, first=i == 0)
            layers += [linear, activation]
        self.capsule = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(settings.width, settings.output))

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        """Embeddings of (lat, lon) in degrees at this resolution."""
        features = self.capsule[0](coordinates).to(next(self.parameters()).dtype)
        return self.head(self.capsule[1:](features))


class LocationEncoder(nn.Module):
    """Embeddings of coordinates.

    The network may run in another dtype (``encoder.to(torch.bfloat16)``); coordinates and Fourier phases stay
    in float32 or float64, because half a hundredth of a degree lost there is half a kilometre on the ground.

    Args:
        settings: the shape. Weights are random; trained ones come from :meth:`from_pretrained`.

    Raises:
        SettingsError: no settings are given.
    """

    def __init__(self, settings: LocationSettings | None = None) -> None:
        super().__init__()
        if settings is None:
            raise SettingsError(
                "LocationEncoder() would have random weights. For trained ones: LocationEncoder.from_pretrained"
                "('geoclip') or ('earth'); for an untrained one: LocationEncoder(LocationSettings())"
            )
        self.settings = settings
        encoding = ENCODINGS.get(settings.encoding)  # None for one of LOCATION_ENCODERS, which has its own modules
        for level in range(encoding.levels(settings) if encoding else 0):
            self.add_module(f"LocEnc{level}", Level(settings, level))

    @property
    def levels(self) -> list[Level]:
        """The resolutions, in the order of ``settings.sigmas``."""
        return [level for level in self.children() if isinstance(level, Level)]

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.parameters()).dtype

    @classmethod
    def from_settings(cls, settings: LocationSettings) -> "LocationEncoder":
        """Return an untrained encoder, of :data:`LOCATION_ENCODERS` where the settings name one of these."""
        return LOCATION_ENCODERS.get(settings.encoding, cls)(settings)

    @classmethod
    def from_pretrained(cls, name: str) -> "LocationEncoder":
        """Load trained weights, in evaluation mode.

        Args:
            name: ``geoclip`` (released), ``earth`` (embedded), ``hub:org/repo@revision`` or ``dir:/folder``.

        Raises:
            ModelNameError: the name does not follow the grammar.
            WeightsError: the weights are missing, damaged or of another layout.
        """
        from open_geoclip.weights.load import load_model

        return load_model(name, towers=()).location_encoder

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        """Return embeddings, not normalised, as the released package gives them.

        Args:
            coordinates: (lat, lon) in degrees, float32 or float64. Phases are computed in this dtype.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        coordinates = check_coordinates(coordinates)
        return torch.stack([level(coordinates) for level in self.levels]).sum(dim=0)

    @torch.inference_mode()
    def encode(
        self, coordinates: Float[Tensor, "n 2"], *, chunk: int = 4096, normalize: bool = True
    ) -> Float[Tensor, "n k"]:
        """Return embeddings of any number of coordinates, chunk by chunk: working memory does not grow with n.

        Args:
            coordinates: (lat, lon) in degrees, on any device.
            chunk: coordinates at a time.
            normalize: to length 1, as a search wants them.

        Returns:
            float32 on the CPU, whatever the network runs in.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        out = torch.empty(len(coordinates), self.settings.output)
        device = next(self.parameters(), coordinates).device
        for start in range(0, len(coordinates), chunk):
            part = self(coordinates[start : start + chunk].to(device)).float()
            out[start : start + chunk] = F.normalize(part, dim=1) if normalize else part
        return out


LOCATION_ENCODERS: dict[str, type[LocationEncoder]] = {}
"""Location encoders of your own, by the name that ``encoding`` of their settings has.

Such a class takes :class:`LocationSettings` and defines ``forward``, from (lat, lon) in degrees (n, 2) to embeddings
(n, settings.output). Whoever loads a model that was saved with one registers the class before.
"""
