"""Vision models of the library ``timm`` as frozen backbones."""

from types import SimpleNamespace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from open_geoclip.model.backbones.transformers import TransformersBackbone

__all__ = ["TimmBackbone"]


class TimmBackbone(TransformersBackbone):
    """One feature of a model of ``timm``, ``pooled`` if none is named: what its classifier reads.

    Arguments and attributes are those of :class:`TransformersBackbone`; ``model`` is what ``timm.create_model`` gives.
    """

    def _run(self, pixels: Float[Tensor, "n 3 h w"]) -> SimpleNamespace:
        model: Any = self.model
        tokens = model.forward_features(pixels.to(next(model.parameters()).dtype))
        pooled = model.forward_head(tokens, pre_logits=True)
        if tokens.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":  # Swin's
            tokens = tokens.permute(0, 3, 1, 2)
        return SimpleNamespace(pooler_output=pooled, last_hidden_state=tokens)

    def _count_patches(self, tokens: int, size: int) -> int:
        has_class_token = getattr(self.model, "cls_token", None) is not None
        return tokens - int(getattr(self.model, "num_prefix_tokens", has_class_token))
