"""The text encoder: texts to what the image head reads.

Two kinds. With a CLIP, a text goes through its text half and the feature goes into the image head in the picture's
stead (Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023, section 4.5). A model of our own brings a text side instead:
a frozen sentence encoder and a linear layer into a space that pictures are projected into as well. There the image
head reads a picture's vector in that space and its own features; of a text it reads its vector in that space and,
for the rest, the mean picture.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import WeightsError
from open_geoclip.model.backbones.clip_text import ClipText
from open_geoclip.model.backbones.minilm import MiniLM
from open_geoclip.weights.folders import folder
from open_geoclip.weights.load import Release

__all__ = ["TextEncoder"]


class TextEncoder:
    """What the image head reads of a text. It is no module: nothing of it is trained with the towers.

    Args:
        backbone: turns texts into vectors (n, d), frozen.
        projection: into the space that texts and pictures share; None when the backbone's own space is that.
        picture: (p,) what stands for a picture's own features; with ``projection``.
    """

    def __init__(
        self,
        backbone: ClipText | MiniLM,
        projection: nn.Linear | None = None,
        picture: Float[Tensor, " p"] | None = None,
    ) -> None:
        assert (projection is None) == (picture is None)
        self.backbone = backbone
        self.projection = None if projection is None else projection.requires_grad_(False)
        self.picture = picture

    @classmethod
    def from_release(cls, release: "Release", *, backbone: str | None = None) -> "TextEncoder":
        """The text side of a release.

        Args:
            release: weights that hold a text side, or whose image backbone is a CLIP.
            backbone: where the image backbone is, as for :class:`~open_geoclip.model.image_encoder.ImageEncoder`.

        Raises:
            WeightsError: there is no text side.
            MissingExtraError: the extra ``text`` is not installed.
        """
        if release.text_backbone is not None:
            weight, bias, picture = (
                release.tensors[f"text_encoder.{name}"] for name in ("projection.weight", "projection.bias", "picture")
            )
            projection = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            projection.load_state_dict({"weight": weight, "bias": bias}, assign=True)
            return cls(MiniLM(), projection, picture)
        backbone = release.backbone if backbone is None else backbone
        if release.image_head is None or backbone is None or backbone == "earth":
            raise WeightsError(
                f"{release.name} has no text side: use a model that has one, or one whose backbone is a CLIP, such as "
                "--model geoclip --backbone dir:/clip"
            )
        model = ClipText.from_folder(folder(backbone))
        if model.dim != release.image_head["widths"][0]:
            width = release.image_head["widths"][0]
            raise WeightsError(
                f"{release.name} was trained on features of length {width}; texts' of {backbone} have {model.dim}"
            )
        return cls(model)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """What the image head reads in a picture's stead, float32.

        Raises:
            TextError: a text is empty or too long.
        """
        vectors = self.backbone.encode(texts)
        if self.projection is None or self.picture is None:
            return vectors
        aligned = F.normalize(self.projection(vectors), dim=1)
        return torch.cat([aligned, self.picture.expand(len(aligned), -1)], dim=1)
