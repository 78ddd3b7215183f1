"""The text encoder: from texts to what the image head reads.

Two kinds. With a CLIP, a text goes through its text half and the feature goes into the image head in the image's
place (Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023, section 4.5). A model of our own brings a text side instead:
a frozen sentence encoder and a linear layer into a space that images are projected into as well. There the image
head reads an image's embedding in that space and its feature; of a text it reads its embedding in that space and,
for the rest, the mean image.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["TextBackbone", "TextEncoder"]


@runtime_checkable
class TextBackbone(Protocol):
    """A frozen text tower."""

    dim: int

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return one feature for each text."""
        ...


class TextEncoder(nn.Module):
    """What the image head reads of a text.

    Args:
        load_backbone: returns the frozen text tower. It is called at the first text, so that images do not wait for it;
            the tower is not part of the state dict and stays on the CPU.
        aligned: length of the space shared with images; 0 when the tower's own space is the head's input.
        feature_dim: length of the image backbone's feature, with ``aligned``.
        text_dim: length of the text tower's feature, with ``aligned``.
        backbone_name: of the text tower, as weights name it; None for a CLIP, which the image backbone names.

    Attributes:
        projection: into the space shared with images; None without ``aligned``.
        picture: the feature that stands in for an image's own, with ``aligned``.
    """

    picture: Tensor | None

    def __init__(
        self,
        load_backbone: Callable[[], TextBackbone],
        *,
        aligned: int = 0,
        feature_dim: int = 0,
        text_dim: int = 384,
        backbone_name: str | None = None,
    ) -> None:
        super().__init__()
        self._load_backbone = load_backbone
        self._backbone: list[TextBackbone] = []  # in a list, so that it is no submodule
        self.backbone_name = backbone_name
        self.projection = nn.Linear(text_dim, aligned).requires_grad_(False) if aligned else None
        self.register_buffer("picture", torch.zeros(feature_dim) if aligned else None)

    @property
    def backbone(self) -> TextBackbone:
        """The text tower; loaded when it is first needed.

        Raises:
            WeightsError: there is no text tower, or it does not fit the image head.
            MissingExtraError: the extra ``text`` is not installed.
        """
        if not self._backbone:
            self._backbone.append(self._load_backbone())
        return self._backbone[0]

    @torch.inference_mode()
    def forward(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return what the image head reads in an image's place, float32.

        Raises:
            TextError: a text is empty or too long.
        """
        features = self.backbone.encode(texts)
        if self.projection is None or self.picture is None:
            return features
        aligned = F.normalize(self.projection(features.to(self.picture.device)), dim=1)
        return torch.cat([aligned, self.picture.expand(len(aligned), -1)], dim=1)
