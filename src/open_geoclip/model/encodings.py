"""What a network sees of a place: random Fourier features, and the other encodings they are compared with.

=============  =========================================================================================
``fourier``    [cos 2πBv, sin 2πBv] of a projection (Vivanco Cepeda et al., "GeoCLIP", 2023, section 3.1)
``plain``      the projection itself: the same networks without Fourier features
``harmonics``  real spherical harmonics (Rußwurm et al., "Geographic location encoding with spherical harmonics
               and sinusoidal representation networks", 2024; SatCLIP uses them)
``space2vec``  sines and cosines of latitude and longitude at many scales (Mai et al., "Space2Vec", 2020, grid)
``sphere2vec`` points on spheres that are wound more and more often (Mai et al., "Sphere2Vec", 2023, sphereC)
``wrapped``    sine and cosine of each angle (Mac Aodha et al., "Presence-only geographical priors", 2019)
``unit``       the point on the unit sphere
=============  =========================================================================================

``harmonics`` and ``unit`` know neither a seam at 180 degrees nor poles. ``wrapped`` has no seam, but a pole is many
vectors. ``space2vec`` and ``sphere2vec`` have a seam, since their scales do not divide a full turn.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

__all__ = ["FourierFeatures", "Harmonics", "Sine", "Space2Vec", "Sphere2Vec", "Wrapped", "siren_"]


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
        """Features of places laid out on a projection."""
        phase = (2 * torch.pi * v) @ self.b.to(v.dtype).T
        return torch.cat([phase.cos(), phase.sin()], dim=-1)


class Harmonics(nn.Module):
    """Real spherical harmonics of degree 0 to L, orthonormal, (L + 1)² numbers: column l² + l + m is Y_lm.

    Without the Condon-Shortley phase. Legendre functions are normalised from the start and divided by cos^m of the
    latitude, whose powers are those of x + iy: nothing overflows, and the poles are places like any other. The
    recurrence over degrees is the standard one (Holmes and Featherstone, "A unified approach to the Clenshaw
    summation", 2002, equations 11 and 12). It runs in float64 whatever is given, because in float32 a derivative of
    up to L and as many steps would leave five digits.
    """

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree

    def forward(self, points: Float[Tensor, "n 3"]) -> Float64[Tensor, "n k"]:
        """Harmonics at points on the unit sphere."""
        x, y, z = points.double().unbind(-1)
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


class _Scales(nn.Module):
    """Factors that angles are multiplied with: from 1 to so many a full turn, evenly in logarithm."""

    def __init__(self, scales: int, finest_deg: float) -> None:
        super().__init__()
        share = [i / max(scales - 1, 1) for i in range(scales)]
        self.factors = [(360 / finest_deg) ** s for s in share]

    def scaled(self, angles: Float[Tensor, "n 2"]) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s"]]:
        factors = torch.tensor(self.factors, dtype=angles.dtype, device=angles.device)
        return angles[:, :1] * factors, angles[:, 1:] * factors


class Space2Vec(_Scales):
    """Sine and cosine of latitude and of longitude at each scale."""

    def forward(self, angles: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        """Features of (lat, lon) in radians."""
        lat, lon = self.scaled(angles)
        return torch.cat([lat.sin(), lat.cos(), lon.sin(), lon.cos()], dim=1)


class Sphere2Vec(_Scales):
    """[sin lat, cos lat cos lon, cos lat sin lon] at each scale."""

    def forward(self, angles: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        """Features of (lat, lon) in radians."""
        lat, lon = self.scaled(angles)
        return torch.cat([lat.sin(), lat.cos() * lon.cos(), lat.cos() * lon.sin()], dim=1)


class Wrapped(nn.Module):
    """[sin lat, cos lat, sin lon, cos lon]."""

    def forward(self, angles: Float[Tensor, "n 2"]) -> Float[Tensor, "n 4"]:
        """Features of (lat, lon) in radians."""
        return torch.cat([angles.sin(), angles.cos()], dim=1)[:, [0, 2, 1, 3]]


class Sine(nn.Module):
    """The activation of a SIREN (Sitzmann et al., "Implicit neural representations", 2020)."""

    def __init__(self, w0: float) -> None:
        super().__init__()
        self.w0 = w0

    def forward(self, x: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """The sine, of w0 times the input."""
        return (self.w0 * x).sin()


@torch.no_grad()
def siren_(capsule: nn.Sequential) -> None:
    """Draw the weights of a SIREN as its authors do (section 3.2), so that each layer keeps the spread of the last."""
    pairs = [(a, b) for a, b in zip(list(capsule)[:-1], list(capsule)[1:], strict=True) if isinstance(b, Sine)]
    for index, (linear, sine) in enumerate(pairs):
        assert isinstance(linear, nn.Linear)
        size = linear.in_features
        bound = 1 / size if index == 0 else math.sqrt(6 / size) / sine.w0
        linear.weight.uniform_(-bound, bound)
        linear.bias.uniform_(-bound, bound)
