"""GeoCLIP: images, coordinates and texts in one space.

Vivanco Cepeda, Nayak and Shah, "GeoCLIP: Clip-Inspired Alignment between Locations and Images for Effective
Worldwide Geo-localization", NeurIPS 2023. The same module is trained, saved, loaded and served.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import WeightsError
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings
from open_geoclip.model.location_encoder import LocationEncoder, LocationSettings
from open_geoclip.model.preprocessing import Preprocessing
from open_geoclip.model.text_encoder import TextEncoder

__all__ = ["GeoCLIP", "Tower"]

Tower = Literal["image", "text"]


class GeoCLIP(nn.Module):
    """Two encoders and a temperature, and optionally a third encoder for texts (section 3 of the paper).

    Args:
        image_encoder: for images; None for a model that only encodes coordinates.
        location_encoder: for coordinates.
        text_encoder: for texts; None for a model without one.
        scale: what cosines are multiplied with at first: 1/0.07, as CLIP has it.

    Attributes:
        image_encoder: typed as present, since all but models for coordinates alone have it.
        logit_scale: logarithm of the scale, trained.
    """

    image_encoder: ImageEncoder

    def __init__(
        self,
        image_encoder: ImageEncoder | None,
        location_encoder: LocationEncoder,
        text_encoder: TextEncoder | None = None,
        *,
        scale: float = 1 / 0.07,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder  # type: ignore[assignment]
        self.location_encoder = location_encoder
        self.text_encoder = text_encoder
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))

    @classmethod
    def from_pretrained(
        cls, name: str, *, backbone: str | nn.Module | None = None, towers: tuple[Tower, ...] = ("image", "text")
    ) -> "GeoCLIP":
        """Load trained weights, in evaluation mode. Nothing is downloaded: ``geoclip pull NAME`` does that.

        Args:
            name: ``geoclip`` (released), ``earth`` (embedded), ``hub:org/repo@revision`` or ``dir:/folder``.
            backbone: where the image backbone is, by the same grammar; the one that the weights name when not given. A
                model that was trained on features and names none is loaded without: ``encode_features`` works.
            towers: which towers to load beside the location encoder.

        Raises:
            ModelNameError: a name does not follow the grammar.
            WeightsError: weights are missing or damaged; the message says what to do.
        """
        from open_geoclip.weights.load import load_model, load_release

        release = load_release(name)
        if release.image is not None and (backbone or release.image.backbone) == "custom":
            towers = tuple(tower for tower in towers if tower != "image") or ("text",)
        return load_model(release, backbone=backbone, towers=towers)

    @classmethod
    def for_features(
        cls,
        features: Tensor | np.ndarray,
        location: LocationSettings | LocationEncoder | None = None,
        *,
        hidden: Sequence[int] = (768,),
        backbone: str = "custom",
        preprocessing: Preprocessing | None = None,
        scale: float = 1 / 0.07,
    ) -> "GeoCLIP":
        """Return an untrained model of features that an image backbone computed before.

        Args:
            features: (n, d) of some thousand images or of all: the head reads them with mean 0 and deviation 1.
            location: shape of the location encoder, or one of your own; the published shape when not given.
            hidden: widths of the image head's hidden layers.
            backbone: name of what made the features, such as ``hub:facebook/dinov2-base``, to locate photos with the
                saved model; features alone need none.
            preprocessing: of the backbone, if its own folder does not say.
            scale: what cosines are multiplied with at first.
        """
        if not isinstance(location, LocationEncoder):
            location = LocationEncoder.from_settings(location or LocationSettings())
        features = torch.as_tensor(features)
        widths = (features.shape[1], *hidden, location.settings.output)
        image_encoder = ImageEncoder(None, preprocessing, ImageSettings(backbone, widths))
        image_encoder.standardize_features(features)
        return cls(image_encoder, location, scale=scale)

    @property
    def scale(self) -> float:
        """What cosines are multiplied with to make logits: the inverse temperature."""
        return float(self.logit_scale.detach().exp())

    def encode_image(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return embeddings of preprocessed images, of length 1, float32."""
        self.check_image_encoder()
        return F.normalize(self.image_encoder(pixels).float(), dim=1)

    def encode_features(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return embeddings of features that the image backbone computed before, of length 1, float32."""
        self.check_image_encoder()
        return F.normalize(self.image_encoder.forward_head(features).float(), dim=1)

    def encode_location(self, coordinates: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        """Return embeddings of (lat, lon) in degrees, of length 1, float32.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        return F.normalize(self.location_encoder(coordinates).float(), dim=1)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n k"]:
        """Return embeddings of texts, of length 1, float32 on the CPU.

        Raises:
            WeightsError: the model has no text encoder.
            TextError: a text is empty or too long.
            MissingExtraError: the extra ``text`` is not installed.
        """
        if self.text_encoder is None:
            raise WeightsError(
                "this model has no text encoder: use one that has, such as earth, or one whose image backbone is a "
                "CLIP, such as --model geoclip --backbone dir:/clip"
            )
        self.check_image_encoder()
        head = self.image_encoder.mlp
        weight = next(head.parameters())
        return F.normalize(head(self.text_encoder(texts).to(weight.device, weight.dtype)).float(), dim=1).cpu()

    def forward(self, pixels: Float[Tensor, "n 3 h w"], coordinates: Float[Tensor, "m 2"]) -> Float[Tensor, "n m"]:
        """Return logits of each image for each place: the scale times the cosine of their embeddings.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        return self.logit_scale.exp() * self.encode_image(pixels) @ self.encode_location(coordinates).T

    def check_image_encoder(self) -> None:
        """Raise WeightsError if the model only encodes coordinates."""
        if self.image_encoder is None:
            raise WeightsError("this model has a location encoder only: it cannot locate images")
