"""The image encoder: a frozen backbone and a small trainable head.

The published model projects CLIP ViT-L/14's 768-dimensional image feature, frozen, through a head of two linear
layers (Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023, section 3.1). Any backbone that turns preprocessed pictures
into vectors can stand in its place: a backbone is a module called with pixels, and a :class:`Preprocessing`.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.model.backbones import earth
from open_geoclip.model.backbones.clip import ClipVision
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.weights.folders import folder
from open_geoclip.weights.load import Release, load_release

__all__ = ["Backbone", "ImageEncoder", "image_head", "load_backbone"]

GEOCLIP_WIDTHS = (768, 768, 512)
"""The published head: 984,320 parameters."""


def image_head(widths: Sequence[int] = GEOCLIP_WIDTHS) -> nn.Sequential:
    """A head: linear layers with ReLU between them. Its parts are named ``0``, ``2``... as in the published weights.

    Args:
        widths: lengths of the feature, of the hidden layers and of the vector that comes out.

    Raises:
        SettingsError: fewer than two lengths, or one below 1.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise SettingsError(f"widths: two or more lengths of 1 or more, not {tuple(widths)}")
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Backbone(Protocol):
    """What an image encoder asks of a backbone; a frozen ``nn.Module`` that has ``dim``."""

    dim: int

    def __call__(self, pixels: Float[Tensor, "n 3 h w"], /) -> Float[Tensor, "n d"]:
        """Features of preprocessed pictures."""
        ...


def load_backbone(name: str, preprocessing: Preprocessing | None = None) -> tuple[nn.Module, Preprocessing]:
    """A frozen backbone and its preprocessing.

    Args:
        name: ``earth`` (EfficientNet-Lite0), or a CLIP: ``dir:/folder`` or ``hub:org/repo@revision``.
        preprocessing: what the head was trained with, for a CLIP folder without a preprocessor_config.json.

    Raises:
        ModelNameError: the name does not follow the grammar.
        WeightsError: the weights are missing, damaged or not a CLIP's.
        MissingExtraError: ``earth`` without the extra ``earth``.
    """
    if name == "earth":
        return earth.EfficientNetLite0(), preprocessing or earth.PREPROCESSING
    return ClipVision.from_folder(folder(name), preprocessing)


class ImageEncoder(nn.Module):
    """Vectors for pictures.

    Args:
        backbone: turns preprocessed pictures (n, 3, h, w) into features (n, d). It is frozen here.
        preprocessing: what the backbone's weights were trained with.
        widths: of the head; the first is the feature's length d, and ``aligned`` more.
        backbone_name: what an answer calls the backbone.
        aligned: length of a picture's vector in a space shared with texts, which the head reads before the feature. It
            is a linear layer of the feature, ``projection``, frozen. 0 for a head that reads the feature alone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        preprocessing: Preprocessing,
        widths: Sequence[int] = GEOCLIP_WIDTHS,
        *,
        backbone_name: str = "custom",
        aligned: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.preprocessing = preprocessing
        self.backbone_name = backbone_name
        self.projection = nn.Linear(widths[0] - aligned, aligned).requires_grad_(False) if aligned else None
        self.mlp = image_head(widths)

    @classmethod
    def from_pretrained(cls, name: str, *, backbone: str | None = None) -> "ImageEncoder":
        """Trained weights, in evaluation mode.

        Args:
            name: ``geoclip`` (released), ``earth`` (embedded), ``hub:org/repo@revision`` or ``dir:/folder``.
            backbone: where the backbone is, by the same grammar; the one that the weights name when not given.

        Raises:
            ModelNameError: a name does not follow the grammar.
            WeightsError: weights are missing, damaged or of another layout; the message says what to do.
        """
        return cls.from_release(load_release(name), backbone=backbone)

    @classmethod
    def from_release(cls, release: "Release", *, backbone: str | None = None) -> "ImageEncoder":
        """Build the encoder that a release holds, in evaluation mode."""
        if release.image_head is None:
            raise WeightsError(f"{release.name} holds a location encoder only, no image head")
        backbone = release.backbone if backbone is None else backbone
        if backbone is None:
            raise WeightsError(f"{release.name} does not name its image backbone: give one, such as dir:/clip")
        widths, aligned = release.image_head["widths"], release.image_head["aligned"]
        known = Preprocessing.from_record(release.preprocessing) if release.preprocessing else None
        module, preprocessing = load_backbone(backbone, known)
        if module.dim != widths[0] - aligned:
            raise WeightsError(
                f"{release.name} was trained on features of length {widths[0] - aligned}; those of {backbone} have "
                f"{module.dim}"
            )
        encoder = cls(module, preprocessing, widths, backbone_name=backbone, aligned=aligned)
        for name, part in (("mlp", encoder.mlp), ("projection", encoder.projection)):
            if part is not None:
                prefix = f"image_encoder.{name}."
                part.load_state_dict(
                    {key[len(prefix) :]: t for key, t in release.tensors.items() if key.startswith(prefix)}
                )
        return encoder.eval()

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Training mode for the head; the backbone stays as it is."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Vectors of preprocessed pictures, not normalised, as the released package gives them."""
        with torch.no_grad():
            features = self.backbone(pixels)
        return self.of_features(features)

    def of_features(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Vectors of what the backbone gives, which training keeps."""
        features = features.to(next(self.mlp.parameters()).dtype)
        if self.projection is not None:
            with torch.no_grad():
                features = torch.cat([F.normalize(self.projection(features), dim=1), features], dim=1)
        return self.mlp(features)
