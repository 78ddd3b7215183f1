"""The image head while it is trained."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.model.image_encoder import ImageEncoder

__all__ = ["StandardisedHead", "TrainedHead"]


class TrainedHead(nn.Module):
    """The head of a trained image encoder, called with features; the encoder loses its backbone.

    Args:
        encoder: the image encoder.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        encoder.backbone = nn.Identity()

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Vectors of features as the backbone gives them."""
        return self.encoder.forward_head(features)


class StandardisedHead(nn.Module):
    """A head that is trained on features of mean 0 and deviation 1, and saved as one that takes them as they are.

    Args:
        head: linear layers.
        features: of some thousands of pictures, to take mean and deviation from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, head: nn.Sequential, features: Float[Tensor, "n d"]) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", features.float().mean(dim=0))
        self.register_buffer("std", features.float().std(dim=0) + 1e-3)

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Vectors of features as the backbone gives them."""
        return self.head((features - self.mean) / self.std)

    @torch.no_grad()
    def folded(self) -> nn.Sequential:
        """The same function as a plain head: mean and deviation go into its first layer."""
        plain = copy.deepcopy(self.head)
        first = plain[0]
        assert isinstance(first, nn.Linear)
        first.weight.div_(self.std)
        first.bias.sub_(first.weight @ self.mean)
        return plain
