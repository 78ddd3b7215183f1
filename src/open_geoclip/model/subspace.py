"""The principal subspace of a backbone's features: how unlike its training images an image is."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["PrincipalSubspace"]

_TENSORS = ("mean", "std", "components")


@dataclass(frozen=True, eq=False)
class PrincipalSubspace:
    """Principal components of the channels of standardised features, and the distance of an image from their span.

    The norm of the residual is a test for images out of distribution (Ndiour, Ahuja and Tickoo, "Out-of-distribution
    detection with subspace techniques and probabilistic modeling of features", 2020; Wang et al., "ViM", CVPR 2022).
    A backbone that keeps where things are gives each channel at several positions. The channels of every position
    share one set of components, which is smaller and does not depend on what lies where.

    Attributes:
        mean: of each channel at each position; the first c * p numbers of a feature.
        std: the same, never 0.
        components: orthonormal, the first k of the channels.
    """

    mean: Float[Tensor, "c p"]
    std: Float[Tensor, "c p"]
    components: Float[Tensor, "k c"]

    @classmethod
    @torch.no_grad()
    def fit(cls, features: Float[Tensor, "n d"], channels: int, positions: int, k: int) -> "PrincipalSubspace":
        """Compute the subspace of training images.

        Args:
            features: of some thousands of images.
            channels: of the feature's first part.
            positions: of each of these channels.
            k: number of components.
        """
        parts = features[:, : channels * positions].float().view(-1, channels, positions)
        mean, std = parts.mean(dim=0), parts.std(dim=0) + 1e-3
        rows = ((parts - mean) / std).transpose(1, 2).reshape(-1, channels)
        _, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        return cls(mean, std, vectors[:, -k:].T.contiguous())

    @torch.no_grad()
    def distance(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the logarithm of the root mean square of the residual, per channel and position."""
        parts = features[:, : self.mean.numel()].float().view(-1, *self.mean.shape)
        standardised = (parts - self.mean) / self.std
        inside = torch.einsum("kc,ncp->nkp", self.components, standardised).square().sum(dim=(1, 2))
        residual = (standardised.square().sum(dim=(1, 2)) - inside) / self.mean.numel()
        return residual.clamp(min=1e-12).log() / 2

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, float16, as a release stores them."""
        return {name: getattr(self, name).half().contiguous() for name in _TENSORS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], feature_dim: int) -> "PrincipalSubspace":
        """Read tensors; a ValueError says what does not fit together or a feature of that length."""
        if sorted(tensors) != sorted(_TENSORS):
            raise ValueError(f"the tensors are {', '.join(sorted(tensors))}, not {', '.join(_TENSORS)}")
        mean, std, components = (tensors[name].float() for name in _TENSORS)
        fits = mean.ndim == components.ndim == 2 and mean.shape == std.shape and components.shape[1] == len(mean)
        if not fits or mean.numel() > feature_dim or not all(part.isfinite().all() for part in (mean, components)):
            raise ValueError(f"the tensors are of other shapes than features of length {feature_dim}")
        if not (std > 0).all():  # NaN is not above 0 either
            raise ValueError("a standard deviation is not above 0")
        return cls(mean, std, components)
