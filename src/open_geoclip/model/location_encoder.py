"""The location encoder: a vector for any place on Earth.

A coordinate is laid out on a projection, turned into random Fourier features at several resolutions, and
each resolution has a network of its own; their outputs are summed (Vivanco Cepeda et al., "GeoCLIP", NeurIPS
2023, section 3.1 and figure 2). The Earth is a continuous function here: there are no cells.

Three projections. ``equal_earth`` is the published one: a flat map in which +180 and -180 degrees are far
apart and each pole is a line. ``sphere`` takes the Fourier features of the three-dimensional unit vector, so it
has no seam and each pole is one point. ``degrees`` is no projection at all: longitude and latitude, scaled to
-1..1, are here to compare with.

Other encodings of a place, to compare with, are in :mod:`open_geoclip.model.encodings`. They have one level.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.geo.sphere import check_coordinates, equal_earth, unit_vectors
from open_geoclip.model.encodings import FourierFeatures, Harmonics, Sine, Space2Vec, Sphere2Vec, Wrapped, siren_
from open_geoclip.weights.config import PROJECTIONS, SETTINGS_OF, input_size
from open_geoclip.weights.load import Release, load_release

__all__ = ["LocationEncoder", "LocationSettings"]

Projection = Literal["equal_earth", "sphere", "degrees"]
Encoding = Literal["fourier", "plain", "harmonics", "space2vec", "sphere2vec", "wrapped", "unit"]
Network = Literal["relu", "siren"]
_FIRST_W0 = 30.0  # of a SIREN's first layer; 1 in the others, as in SatCLIP


@dataclass(frozen=True)
class LocationSettings:
    """The shape of a location encoder. The defaults are the published model's.

    Attributes:
        sigmas: one resolution a level: the standard deviation of its frequencies, in cycles a unit of the
            projection. A unit is half the equator's length for ``equal_earth``, the Earth's radius for ``sphere``,
            180 degrees of longitude and 90 of latitude for ``degrees``.
        features: random frequencies a level; each gives a cosine and a sine.
        width: neurons a hidden layer.
        depth: hidden layers a level.
        output: length of the vector.
        projection: ``equal_earth``, ``sphere`` or ``degrees``.
        encoding: what the networks see of a place; ``fourier`` is the published one. ``sigmas``, ``features`` and
            ``projection`` are its settings. ``plain``: the projection itself, without Fourier features.
        network: ``relu``, or ``siren``: sines between the layers.
        degree: highest degree of ``harmonics``.
        scales: how many ``space2vec`` and ``sphere2vec`` have, from a full turn down to ``finest_deg``.
        finest_deg: the shortest wavelength of these, in degrees.

    Raises:
        SettingsError: a setting is out of range, or is none of the encoding's.
    """

    sigmas: tuple[float, ...] = (2.0**0, 2.0**4, 2.0**8)
    features: int = 256
    width: int = 1024
    depth: int = 3
    output: int = 512
    projection: Projection = "equal_earth"
    encoding: Encoding = "fourier"
    network: Network = "relu"
    degree: int = 40
    scales: int = 16
    finest_deg: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigmas or min(self.sigmas) <= 0:
            raise SettingsError(f"sigmas: one or more numbers above 0, not {self.sigmas}")
        choices = {"projection": list(PROJECTIONS), "encoding": list(SETTINGS_OF), "network": ["relu", "siren"]}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise SettingsError(f"{name}: one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name in ("features", "width", "depth", "output", "degree", "scales"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}: 1 or more, not {getattr(self, name)}")
        if not 0 < self.finest_deg <= 360:
            raise SettingsError(f"finest_deg: above 0 and at most 360, not {self.finest_deg}")
        defaults = {field.name: field.default for field in fields(self)}
        for encoding, names in SETTINGS_OF.items():
            for name in names:
                if name not in SETTINGS_OF[self.encoding] and getattr(self, name) != defaults[name]:
                    raise SettingsError(f"{name} is a setting of {encoding}; {self.encoding} has no use for it")

    @property
    def levels(self) -> int:
        """How many networks there are."""
        return len(self.sigmas) if self.encoding == "fourier" else 1


class Level(nn.Module):
    """One resolution. The names ``capsule`` and ``head`` are those of the published weights."""

    def __init__(self, sigma: float, settings: LocationSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = [_positional(sigma, settings)]
        size: Any = asdict(settings)
        for i in range(settings.depth):
            layers.append(nn.Linear(settings.width if i else input_size(size), settings.width))
            layers.append(nn.ReLU() if settings.network == "relu" else Sine(1.0 if i else _FIRST_W0))
        self.capsule = nn.Sequential(*layers)
        if settings.network == "siren":
            siren_(self.capsule)
        self.head = nn.Sequential(nn.Linear(settings.width, settings.output))

    def forward(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        x = self.capsule[0](v).to(next(self.parameters()).dtype)
        return self.head(self.capsule[1:](x))


def _positional(sigma: float, settings: LocationSettings) -> nn.Module:
    if settings.encoding == "fourier":
        return FourierFeatures(sigma, PROJECTIONS[settings.projection], settings.features)
    if settings.encoding == "harmonics":
        return Harmonics(settings.degree)
    if settings.encoding in ("space2vec", "sphere2vec"):
        multiscale = Space2Vec if settings.encoding == "space2vec" else Sphere2Vec
        return multiscale(settings.scales, settings.finest_deg)
    return Wrapped() if settings.encoding == "wrapped" else nn.Identity()


class LocationEncoder(nn.Module):
    """Vectors for coordinates.

    The network may run in another dtype (``encoder.to(torch.bfloat16)``); coordinates and Fourier phases stay
    in float32 or float64, because half a hundredth of a degree lost there is half a kilometre on the ground.

    Args:
        settings: the shape; the published model's when not given.
    """

    def __init__(self, settings: LocationSettings | None = None) -> None:
        super().__init__()
        self.settings = LocationSettings() if settings is None else settings
        for i, sigma in enumerate(self.settings.sigmas[: self.settings.levels]):
            self.add_module(f"LocEnc{i}", Level(sigma, self.settings))

    @property
    def levels(self) -> list[Level]:
        """The resolutions, from coarse to fine as set."""
        return [level for level in self.children() if isinstance(level, Level)]

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(cls, name: str) -> "LocationEncoder":
        """Trained weights, in evaluation mode.

        Args:
            name: ``geoclip`` (released), ``earth`` (embedded), ``hub:org/repo@revision`` or ``dir:/folder``.

        Raises:
            ModelNameError: the name does not follow the grammar.
            WeightsError: the weights are missing, damaged or of another layout.
        """
        return cls.from_release(load_release(name))

    @classmethod
    def from_release(cls, release: "Release") -> "LocationEncoder":
        """Build the encoder that a release holds, in evaluation mode."""
        settings = {**release.location_encoder, "sigmas": tuple(release.location_encoder["sigmas"])}
        encoder = cls(LocationSettings(**settings))  # type: ignore[arg-type]  # it checks them
        prefix = "location_encoder."
        weights = {key[len(prefix) :]: t for key, t in release.tensors.items() if key.startswith(prefix)}
        try:
            encoder.load_state_dict(weights)
        except RuntimeError as error:
            raise WeightsError(
                f"{release.name}: the location encoder's weights do not fit its settings: {error}"
            ) from error
        return encoder.eval()

    def project(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
        """Coordinates laid out for the encoding: a flat map, points on the unit sphere, or angles."""
        if self.settings.encoding == "harmonics":  # up to 40 waves a turn multiply the rounding of float32
            return unit_vectors(coordinates.double())
        if self.settings.encoding == "unit" or self.settings.projection == "sphere":
            return unit_vectors(coordinates)
        if self.settings.encoding not in ("fourier", "plain"):
            return torch.deg2rad(coordinates)
        if self.settings.projection == "degrees":
            return coordinates.flip(1) / coordinates.new_tensor([180.0, 90.0])
        return equal_earth(coordinates)

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        """Vectors, not normalised, as the released package gives them.

        Args:
            coordinates: (lat, lon) in degrees, float32 or float64. Phases are computed in this dtype.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        v = self.project(check_coordinates(coordinates))
        return torch.stack([level(v) for level in self.levels]).sum(dim=0)

    @torch.inference_mode()
    def encode(
        self, coordinates: Float[Tensor, "n 2"], *, chunk: int = 4096, normalize: bool = True
    ) -> Float[Tensor, "n k"]:
        """Vectors of any number of coordinates, chunk by chunk: working memory does not grow with n.

        Args:
            coordinates: (lat, lon) in degrees.
            chunk: coordinates at a time.
            normalize: to length 1, as a search wants them.

        Returns:
            float32, whatever the network runs in.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        out = torch.empty(len(coordinates), self.settings.output)
        for start in range(0, len(coordinates), chunk):
            part = self(coordinates[start : start + chunk]).float()
            out[start : start + chunk] = F.normalize(part, dim=1) if normalize else part
        return out
