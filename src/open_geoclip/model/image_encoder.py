"""The image encoder: a frozen backbone and a small trainable head.

The published model projects CLIP ViT-L/14's 768-dimensional image feature, frozen, through a head of two linear
layers (Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023, section 3.1). Any module that turns preprocessed images into
features can be the backbone.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import SettingsError
from open_geoclip.model.adapter import BackboneAdapter
from open_geoclip.model.backbones.transformers import Feature
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.model.subspace import PrincipalSubspace

__all__ = ["ImageEncoder", "ImageSettings", "image_head"]

_MAX_LAYERS = 64


@dataclass(frozen=True)
class ImageSettings:
    """The shape of an image encoder. The defaults are the published model's.

    Attributes:
        backbone: name of the frozen backbone: ``earth`` (EfficientNet-Lite0), ``efficientnet-lite2``,
            ``hub:org/repo@revision``, ``dir:/folder``, or ``custom`` for a module from Python.
        widths: of the head: lengths of its input, of the hidden layers and of the embedding.
        aligned: length of an image's embedding in a space shared with texts, which the head reads before the feature;
            0 for a head that reads the feature alone.
        feature: which feature of a backbone of ``transformers`` the head reads: ``projected``, ``pooled``, ``cls``,
            ``mean`` or ``cls+mean``; "" is the first of these that it has, and the only one of other backbones.
        backbone_sha256: :func:`~open_geoclip.model.adapter.backbone_sha256` of the backbone that the head was trained
            with; "" where it is not known.

    Raises:
        SettingsError: fewer than two widths, or one out of range.
    """

    backbone: str = "custom"
    widths: tuple[int, ...] = (768, 768, 512)
    aligned: int = 0
    feature: Feature = ""
    backbone_sha256: str = ""

    def __post_init__(self) -> None:
        if not 2 <= len(self.widths) <= _MAX_LAYERS or not all(1 <= width <= 2**20 for width in self.widths):
            raise SettingsError(f"widths: two or more lengths of 1 or more, not {str(self.widths)[:80]}")
        if not 0 <= self.aligned < self.widths[0]:
            raise SettingsError(f"aligned: from 0 to {self.widths[0] - 1}, not {self.aligned}")
        if self.feature not in get_args(Feature):
            raise SettingsError(f"feature: one of {', '.join(get_args(Feature)[1:])}, not {self.feature!r}")

    @property
    def feature_dim(self) -> int:
        """Length of the backbone's feature."""
        return self.widths[0] - self.aligned


def image_head(widths: Sequence[int] = ImageSettings.widths) -> nn.Sequential:
    """Return linear layers with ReLU between them, named ``0``, ``2``... as in the published weights.

    Args:
        widths: see :class:`ImageSettings`; the default is the published head, 984,320 parameters.

    Raises:
        SettingsError: fewer than two widths, or one below 1.
    """
    widths = ImageSettings(widths=tuple(widths)).widths
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class ImageEncoder(nn.Module):
    """Embeddings of images.

    Args:
        backbone: turns preprocessed images (n, 3, h, w) into features (n, d). It is frozen here. None for an encoder of
            features that were computed before, or of texts.
        preprocessing: what the backbone's weights were trained with; None without a backbone.
        settings: the shape.

    Attributes:
        backbone: None in an encoder of features; typed as present for convenience, like ``preprocessing``.
        mlp: the trainable head.
        projection: the frozen linear layer into the space shared with texts, or None.
        feature_mean: what is subtracted from features before the head reads them; None until
            :meth:`standardize_features`.
        feature_std: what they are divided by then.
        adapter: what fine-tuning changed of the backbone as published; None where nothing was.
        subspace: of features of training images, by which others are recognised; None where it was not fitted.
    """

    backbone: nn.Module
    preprocessing: Preprocessing
    feature_mean: Tensor | None
    feature_std: Tensor | None
    adapter: BackboneAdapter | None = None
    subspace: PrincipalSubspace | None = None

    def __init__(
        self,
        backbone: nn.Module | None,
        preprocessing: Preprocessing | None,
        settings: ImageSettings | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings or ImageSettings()
        self.backbone = None if backbone is None else backbone.requires_grad_(False).eval()  # type: ignore[assignment]
        self.preprocessing = preprocessing  # type: ignore[assignment]
        feature_dim, aligned = self.settings.feature_dim, self.settings.aligned
        self.projection = nn.Linear(feature_dim, aligned).requires_grad_(False) if aligned else None
        self.mlp = image_head(self.settings.widths)
        self.register_buffer("feature_mean", None)
        self.register_buffer("feature_std", None)

    @classmethod
    def from_pretrained(cls, name: str, *, backbone: str | None = None) -> "ImageEncoder":
        """Load trained weights, in evaluation mode.

        Args:
            name: ``geoclip`` (released), ``earth`` (embedded), ``hub:org/repo@revision`` or ``dir:/folder``.
            backbone: where the backbone is, by the same grammar; the one that the weights name when not given.

        Raises:
            ModelNameError: a name does not follow the grammar.
            WeightsError: weights are missing, damaged or of another layout; the message says what to do.
        """
        from open_geoclip.weights.load import load_model

        return load_model(name, backbone=backbone, towers=("image",)).image_encoder

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Set training mode for the head; the backbone stays as it is."""
        super().train(mode)
        if self.backbone is not None:
            self.backbone.eval()
        return self

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return embeddings of preprocessed images, not normalised, as the released package gives them.

        Raises:
            SettingsError: the encoder has no backbone.
        """
        return self.forward_head(self.forward_backbone(pixels))

    def forward_backbone(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Return features of preprocessed images, as :meth:`forward_head` reads them; errors are those of the call."""
        if self.backbone is None:
            raise SettingsError("this image encoder has no backbone: give features to forward_head, or load one")
        features: Tensor = self.backbone(pixels)
        return features

    def forward_head(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return embeddings of features that the backbone computed before."""
        features = features.to(next(self.mlp.parameters()).dtype)
        if self.projection is not None:
            features = torch.cat([F.normalize(self.projection(features), dim=1), features], dim=1)
        if self.feature_mean is not None and self.feature_std is not None:
            features = (features - self.feature_mean) / self.feature_std
        return self.mlp(features)

    def standardize_features(self, features: Float[Tensor, "n d"]) -> None:
        """Let the head read features of mean 0 and standard deviation 1, taken from some thousands of images."""
        assert self.projection is None, "an aligned head keeps the statistics that it was trained with"
        device = next(self.mlp.parameters()).device
        self.feature_mean = features.float().mean(dim=0).to(device)
        self.feature_std = (features.float().std(dim=0) + 1e-3).to(device)

    @torch.no_grad()
    def fold_standardization(self) -> None:
        """Move mean and standard deviation into the head's first layer; the function stays the same."""
        if self.feature_mean is None or self.feature_std is None:
            return
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        first.weight.div_(self.feature_std)
        first.bias.sub_(first.weight @ self.feature_mean)
        self.feature_mean = self.feature_std = None
