"""Vision models of the library ``transformers`` as frozen backbones.

A model gives up to five features of an image. Which one is best for places depends on how it was trained: contrastive
models (SigLIP) have a projection, self-supervised ones (DINOv2, DINOv3) a class token, and the mean of the patches
keeps what a class token drops. Reading the published files is in :mod:`open_geoclip.weights.transformers`.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import SettingsError

__all__ = ["Feature", "TransformersBackbone"]

Feature = Literal["", "projected", "pooled", "cls", "mean", "cls+mean"]
"""Which feature of a vision model is taken; "" is the first of the others that a model has.

- ``projected``: of ``get_image_features``, in the space shared with texts;
- ``pooled``: the model's own ``pooler_output``;
- ``cls``: the class token after the last layer;
- ``mean``: the mean of all patches after the last layer;
- ``cls+mean``: both, one after the other.
"""


class TransformersBackbone(nn.Module):
    """One feature of a vision model of ``transformers``.

    Args:
        model: as ``AutoModel`` gives it, in evaluation mode; its text half is dropped.
        size: side of the square images that it reads, pixels.
        feature: which feature; see :data:`Feature`.
        has_pooler: False if the weights of the model's pooler were not published.

    Attributes:
        feature: the one that is taken, never "".
        dim: its length.
        image_size: side of the images, pixels.

    Raises:
        SettingsError: the model does not have this feature, cannot read such images, or gives random features.
    """

    def __init__(self, model: nn.Module, size: int, feature: Feature = "", *, has_pooler: bool = True) -> None:
        super().__init__()
        if hasattr(model, "text_model"):
            del model.text_model
        self.model, self.prefix, self.image_size = model, 0, size
        probe = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
        try:
            with torch.inference_mode():
                output = self._run(probe)
                tokens = _tokens(output)
                self.prefix = tokens.shape[1] - self._count_patches(tokens.shape[1], size)
                has_class_token = self.prefix > 0 and bool(getattr(model, "has_class_token", True))
                has: dict[Feature, bool] = {
                    "projected": hasattr(model, "get_image_features"),
                    "pooled": has_pooler and getattr(output, "pooler_output", None) is not None,
                    "cls": has_class_token,
                    "mean": True,
                    "cls+mean": has_class_token,
                }
                available = [name for name, present in has.items() if present]
                if feature and feature not in available:
                    raise SettingsError(
                        f"feature: a {type(model).__name__} with these weights has {', '.join(available)}, "
                        f"not {feature}"
                    )
                self.feature: Feature = feature or available[0]
                features = self(probe)
        except SettingsError:
            raise
        except Exception as error:  # of any kind: the model is somebody else's
            raise SettingsError(
                f"a {type(model).__name__} cannot be used as a backbone: for images of {size} x {size} pixels it ends "
                f"in {type(error).__name__}: {error}"
            ) from error
        if not torch.allclose(features[0], features[1], rtol=1e-2, atol=1e-3):
            raise SettingsError(
                f"a {type(model).__name__} gives another feature of the same image each time, as masked autoencoders "
                "do; use a model that is made from it without masking"
            )
        self.dim = features.shape[1]

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return features of preprocessed images."""
        if self.feature == "projected":
            pixels = pixels.to(next(self.model.parameters()).dtype)
            get_image_features: Any = self.model.get_image_features
            output = get_image_features(pixel_values=pixels)
            return getattr(output, "pooler_output", output)
        output = self._run(pixels)
        if self.feature == "pooled":
            return output.pooler_output.flatten(1)
        tokens = _tokens(output)
        parts = [tokens[:, 0]] if "cls" in self.feature else []
        if "mean" in self.feature:
            parts.append(tokens[:, self.prefix :].mean(dim=1))
        return torch.cat(parts, dim=1)

    def _run(self, pixels: Float[Tensor, "n 3 h w"]) -> Any:
        """Return the output of the vision part."""
        vision = getattr(self.model, "vision_model", self.model)
        return vision(pixel_values=pixels.to(next(vision.parameters()).dtype))

    def _count_patches(self, tokens: int, size: int) -> int:
        """Return how many tokens stand for patches; class and register tokens come before them."""
        config: Any = self.model.config
        patch = getattr(getattr(config, "vision_config", config), "patch_size", None)
        patch = patch[0] if isinstance(patch, list | tuple) else patch
        patches = (size // patch) ** 2 if patch else 0
        # A hierarchical model merges patches: what is left of them is a square.
        return patches if 0 < patches <= tokens else math.isqrt(tokens) ** 2


def _tokens(output: Any) -> Float[Tensor, "n t d"]:
    """Return the output of the last layer as tokens; that of a convolutional network is a grid of channels."""
    last = output.last_hidden_state
    return last.flatten(2).transpose(1, 2) if last.ndim == 4 else last
