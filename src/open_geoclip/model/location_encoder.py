"""The location encoder: a vector for any place on Earth.

A coordinate is laid out on a projection, turned into random Fourier features at several resolutions, and
each resolution has a network of its own; their outputs are summed (Vivanco Cepeda et al., "GeoCLIP", NeurIPS
2023, section 3.1 and figure 2). The Earth is a continuous function here: there are no cells.

Two projections. ``equal_earth`` is the published one: a flat map in which +180 and -180 degrees are far
apart and each pole is a line. ``sphere`` takes the Fourier features of the three-dimensional unit vector, so it
has no seam and each pole is one point.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip import pretrained
from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.sphere import check_coordinates, equal_earth, unit_vectors

__all__ = ["LocationEncoder", "LocationSettings"]

Projection = Literal["equal_earth", "sphere"]
_INPUT_SIZE: dict[str, int] = {"equal_earth": 2, "sphere": 3}


@dataclass(frozen=True)
class LocationSettings:
    """The shape of a location encoder. The defaults are the published model's.

    Attributes:
        sigmas: one resolution a level: the standard deviation of its frequencies, in cycles a unit of the
            projection. A unit is half the equator's length for ``equal_earth``, the Earth's radius for ``sphere``.
        features: random frequencies a level; each gives a cosine and a sine.
        width: neurons a hidden layer.
        depth: hidden layers a level.
        output: length of the vector.
        projection: ``equal_earth`` or ``sphere``.

    Raises:
        SettingsError: a setting is out of range.
    """

    sigmas: tuple[float, ...] = (2.0**0, 2.0**4, 2.0**8)
    features: int = 256
    width: int = 1024
    depth: int = 3
    output: int = 512
    projection: Projection = "equal_earth"

    def __post_init__(self) -> None:
        if not self.sigmas or min(self.sigmas) <= 0:
            raise SettingsError(f"sigmas: one or more numbers above 0, not {self.sigmas}")
        if self.projection not in _INPUT_SIZE:
            raise SettingsError(f"projection: one of {', '.join(_INPUT_SIZE)}, not {self.projection!r}")
        for name in ("features", "width", "depth", "output"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}: 1 or more, not {getattr(self, name)}")


class FourierFeatures(nn.Module):
    """[cos 2πBv, sin 2πBv] with B drawn once from N(0, sigma²) and stored with the weights (section 3.1)."""

    b: Tensor

    def __init__(self, sigma: float, input_size: int, features: int) -> None:
        super().__init__()
        self.register_buffer("b", torch.randn(features, input_size) * sigma)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FourierFeatures":
        # Frequencies keep their float32 when the network is cast: .to(torch.bfloat16), .half().
        b = self.b
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.b = b.to(self.b.device)
        return self

    def forward(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n two_m"]:
        phase = (2 * torch.pi * v) @ self.b.to(v.dtype).T
        return torch.cat([phase.cos(), phase.sin()], dim=-1)


class Level(nn.Module):
    """One resolution. The names ``capsule`` and ``head`` are those of the published weights."""

    def __init__(self, sigma: float, settings: LocationSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            FourierFeatures(sigma, _INPUT_SIZE[settings.projection], settings.features),
            nn.Linear(2 * settings.features, settings.width),
            nn.ReLU(),
        ]
        for _ in range(settings.depth - 1):
            layers += [nn.Linear(settings.width, settings.width), nn.ReLU()]
        self.capsule = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(settings.width, settings.output))

    def forward(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        x = self.capsule[0](v).to(next(self.parameters()).dtype)
        return self.head(self.capsule[1:](x))


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
        for i, sigma in enumerate(self.settings.sigmas):
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
        return cls.from_release(pretrained.load(name))

    @classmethod
    def from_release(cls, release: "pretrained.Release") -> "LocationEncoder":
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
        """Coordinates laid out for the Fourier features: a flat map, or points on the unit sphere."""
        if self.settings.projection == "sphere":
            return unit_vectors(coordinates)
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
