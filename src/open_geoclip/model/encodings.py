"""What a network sees of a place: random Fourier features, and the other encodings they are compared with.

=============  =========================================================================================
``fourier``    [cos 2πBv, sin 2πBv] of a projection (Vivanco Cepeda et al., "GeoCLIP", 2023, section 3.1)
``plain``      the projection itself: the same networks without Fourier features
``harmonics``  real spherical harmonics (Rußwurm et al., "Geographic location encoding with spherical harmonics
               and sinusoidal representation networks", 2024; SatCLIP uses them)
``space2vec``  sines and cosines of latitude and longitude at many scales (Mai et al., "Space2Vec", 2020, grid)
``sphere2vec`` multi-scale points on the sphere (Mai et al., "Sphere2Vec", 2023, sphereC)
``wrapped``    sine and cosine of each angle (Mac Aodha et al., "Presence-only geographical priors", 2019)
``unit``       the point on the unit sphere
=============  =========================================================================================

``harmonics`` and ``unit`` know neither a seam at 180 degrees nor poles. ``wrapped`` has no seam, but a pole is many
points. ``space2vec`` and ``sphere2vec`` have a seam, since their scales do not divide a full turn.

A new encoding is one subclass of :class:`Encoding` and one line in :data:`ENCODINGS`.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from open_geoclip.geo.projections import equal_earth
from open_geoclip.geo.sphere import unit_vectors

if TYPE_CHECKING:
    from open_geoclip.model.location_encoder import LocationSettings

__all__ = ["ENCODINGS", "PROJECTIONS", "Encoding", "FourierFeatures", "Sine", "SphericalHarmonics"]


def _scaled_degrees(coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Longitude and latitude, scaled to -1..1."""
    return coordinates.flip(1) / coordinates.new_tensor([180.0, 90.0])


PROJECTIONS: dict[str, tuple[int, Callable[[Float[Tensor, "n 2"]], Float[Tensor, "n d"]]]] = {
    "equal_earth": (2, equal_earth),
    "sphere": (3, unit_vectors),
    "degrees": (2, _scaled_degrees),
}
"""Each projection of (lat, lon) in degrees, and how many numbers a place is after it."""


class Encoding(nn.Module):
    """Features of coordinates, the first layer of a level's network.

    Subclasses set ``size`` and define ``forward``, from (lat, lon) in degrees (n, 2) to features (n, size). Constants
    are Python numbers or buffers that are saved, since weights are loaded into modules without memory.

    Args:
        settings: of the location encoder.
        level: which of its levels, from 0.

    Attributes:
        size: how many features a place has.
    """

    settings_used: ClassVar[tuple[str, ...]] = ()
    """The fields of ``LocationSettings`` that this encoding reads; giving any other is an error."""

    size: int

    def __init__(self, settings: "LocationSettings", level: int) -> None:
        super().__init__()

    @staticmethod
    def levels(settings: "LocationSettings") -> int:
        """Return how many levels the encoder has."""
        return 1


class FourierFeatures(Encoding):
    """[cos 2πBv, sin 2πBv] with B drawn once from N(0, sigma²) and stored with the weights (section 3.1)."""

    settings_used = ("sigmas", "features", "projection")
    b: Tensor

    def __init__(self, settings: "LocationSettings", level: int) -> None:
        super().__init__(settings, level)
        dimensions, self.projection = PROJECTIONS[settings.projection]
        self.size = 2 * settings.features
        self.register_buffer("b", torch.empty(settings.features, dimensions))
        if not self.b.is_meta:  # there torch would import its compiler, for a second, to draw nothing
            self.b.normal_(std=settings.sigmas[level])

    @staticmethod
    def levels(settings: "LocationSettings") -> int:
        """Return one level for each sigma."""
        return len(settings.sigmas)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FourierFeatures":
        # Frequencies keep their float32 when the network is cast: .to(torch.bfloat16), .half().
        b = self.b
        nn.Module._apply(self, fn, recurse)
        self.b = b.to(self.b.device)
        return self

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        """Return cosines, then sines, of all phases."""
        phase = (2 * torch.pi * self.projection(coordinates)) @ self.b.to(coordinates.dtype).T
        return torch.cat([phase.cos(), phase.sin()], dim=-1)


class Plain(Encoding):
    """The projection itself."""

    settings_used = ("projection",)

    def __init__(self, settings: "LocationSettings", level: int) -> None:
        super().__init__(settings, level)
        self.size, self.projection = PROJECTIONS[settings.projection]

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        return self.projection(coordinates)


class SphericalHarmonics(Encoding):
    """Real spherical harmonics of degree 0 to L, orthonormal, (L + 1)² numbers: column l² + l + m is Y_lm.

    Without the Condon-Shortley phase. Legendre functions are normalised from the start and divided by cos^m of the
    latitude, whose powers are those of x + iy: nothing overflows, and the poles are places like any other. The
    recurrence over degrees is the standard one (Holmes and Featherstone, "A unified approach to the Clenshaw
    summation", 2002, equations 11 and 12). It runs in float64 whatever is given, because in float32 a derivative of
    up to L and as many steps would leave five digits.
    """

    settings_used = ("degree",)

    def __init__(self, settings: "LocationSettings", level: int) -> None:
        super().__init__(settings, level)
        self.degree = settings.degree
        self.size = (settings.degree + 1) ** 2

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float64[Tensor, "n k"]:
        """Return all harmonics, degree by degree."""
        x, y, z = unit_vectors(coordinates.double()).unbind(-1)
        cosines, sines = [torch.ones_like(x)], [torch.zeros_like(x)]
        for _ in range(self.degree):
            c, s = cosines[-1], sines[-1]
            cosines.append(x * c - y * s)
            sines.append(x * s + y * c)
        cosine, sine = torch.stack(cosines), torch.stack(sines)
        last = torch.full_like(x, math.sqrt(1 / (4 * math.pi)))[None]  # degree l - 1, a row for each order
        before = last[:0]
        rows = [last * cosine[:1]]
        for degree in range(1, self.degree + 1):
            m = torch.arange(degree - 1, dtype=torch.float64, device=z.device)[:, None]
            a = ((4 * degree**2 - 1) / (degree**2 - m**2)).sqrt()
            b = (((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1)).sqrt()
            inner = a * (z * last[:-1] - b * before)
            beside = math.sqrt(2 * degree + 1) * z * last[-1:]
            top = math.sqrt((2 * degree + 1) / (2 * degree)) * last[-1:]
            before, last = last, torch.cat([inner, beside, top])
            both = math.sqrt(2) * last[1:]
            rows += [(both * sine[1 : degree + 1]).flip(0), last[:1], both * cosine[1 : degree + 1]]
        return torch.cat(rows).T


class _MultiScale(Encoding):
    """Angles at scales from 1 to 360 / finest_deg a full turn, evenly spaced in logarithm."""

    settings_used = ("scales", "finest_deg")
    features_per_scale: ClassVar[int]

    def __init__(self, settings: "LocationSettings", level: int) -> None:
        super().__init__(settings, level)
        steps = [i / max(settings.scales - 1, 1) for i in range(settings.scales)]
        self.factors = [(360 / settings.finest_deg) ** step for step in steps]
        self.size = self.features_per_scale * settings.scales

    def scaled(self, coordinates: Float[Tensor, "n 2"]) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s"]]:
        angles = torch.deg2rad(coordinates)
        factors = angles.new_tensor(self.factors)
        return angles[:, :1] * factors, angles[:, 1:] * factors


class Space2Vec(_MultiScale):
    """Sine and cosine of latitude and of longitude at each scale."""

    features_per_scale = 4

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        lat, lon = self.scaled(coordinates)
        return torch.cat([lat.sin(), lat.cos(), lon.sin(), lon.cos()], dim=1)


class Sphere2Vec(_MultiScale):
    """[sin lat, cos lat cos lon, cos lat sin lon] at each scale."""

    features_per_scale = 3

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        lat, lon = self.scaled(coordinates)
        return torch.cat([lat.sin(), lat.cos() * lon.cos(), lat.cos() * lon.sin()], dim=1)


class Wrapped(Encoding):
    """[sin lat, cos lat, sin lon, cos lon]."""

    size = 4

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n 4"]:
        angles = torch.deg2rad(coordinates)
        return torch.cat([angles.sin(), angles.cos()], dim=1)[:, [0, 2, 1, 3]]


class UnitVector(Encoding):
    """The point on the unit sphere."""

    size = 3

    def forward(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n 3"]:
        return unit_vectors(coordinates)


ENCODINGS: dict[str, type[Encoding]] = {
    "fourier": FourierFeatures,
    "plain": Plain,
    "harmonics": SphericalHarmonics,
    "space2vec": Space2Vec,
    "sphere2vec": Sphere2Vec,
    "wrapped": Wrapped,
    "unit": UnitVector,
}


class Sine(nn.Module):
    """sin(w0 x), the activation of a SIREN (Sitzmann et al., "Implicit neural representations", 2020).

    Args:
        w0: frequency: 30 in the first layer, 1 in the others, as in SatCLIP.
    """

    def __init__(self, w0: float) -> None:
        super().__init__()
        self.w0 = w0

    def forward(self, x: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Return sin(w0 x)."""
        return (self.w0 * x).sin()

    @torch.no_grad()
    def initialize(self, linear: nn.Linear, *, first: bool) -> None:
        """Draw the weights of the layer before as section 3.2 does, so that each layer keeps the spread of the last."""
        bound = 1 / linear.in_features if first else math.sqrt(6 / linear.in_features) / self.w0
        linear.weight.uniform_(-bound, bound)
        linear.bias.uniform_(-bound, bound)
