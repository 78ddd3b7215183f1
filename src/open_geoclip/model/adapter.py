"""What fine-tuning changed of an image backbone: whole tensors of its last blocks, or low-rank updates of matrices.

A low-rank update (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022) adds the product B A to a
weight. It is stored as ``NAME.lora_A`` (r, in) and ``NAME.lora_B`` (out, r), for the weight ``NAME.weight``; the usual
scale is in B. When a model is loaded the update is added to the weight, so that every engine runs the backbone as it
runs any other.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from open_geoclip.errors import WeightsError

__all__ = ["BackboneAdapter", "apply_changes", "backbone_sha256"]

_A, _B = ".lora_A", ".lora_B"


def backbone_sha256(backbone: nn.Module) -> str:
    """Return a sha256 over the weights of a backbone, their names, and which feature it gives."""
    digest = hashlib.sha256(getattr(backbone, "feature", "").encode())
    for key, tensor in sorted(backbone.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def apply_changes(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set the parameters that tensors name, then add the low-rank updates."""
    parameters = dict(backbone.named_parameters())
    for key in sorted(tensors, key=lambda key: key.endswith((_A, _B))):
        if key.endswith(_A):
            module = key.removesuffix(_A)
            weight = parameters[f"{module}.weight"]
            weight.add_((tensors[module + _B] @ tensors[key]).to(weight.device))
        elif not key.endswith(_B):
            parameters[key].copy_(tensors[key])


@dataclass(frozen=True, eq=False)
class BackboneAdapter:
    """Changes of a backbone's weights.

    Attributes:
        base_sha256: :func:`backbone_sha256` of the backbone that is changed.
        tensors: by name: new values of parameters, and pairs of ``.lora_A`` and ``.lora_B``.
    """

    base_sha256: str
    tensors: Mapping[str, Tensor]

    def merge(self, backbone: nn.Module, name: str) -> None:
        """Change the weights of a backbone in place.

        Args:
            backbone: as published.
            name: of it, for messages.

        Raises:
            WeightsError: it is another backbone, or a tensor does not fit.
        """
        if backbone_sha256(backbone) != self.base_sha256:
            raise WeightsError(
                f"the model was fine-tuned from another backbone than {name}: these weights have another sha256 than "
                f"{self.base_sha256[:12]}...; name the one that it was made from"
            )
        try:
            apply_changes(backbone, self.tensors)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"the adapter does not fit the backbone {name}: {error}") from error

    def followed_by(self, tensors: Mapping[str, Tensor]) -> "BackboneAdapter":
        """Return an adapter with the changes of this one and then others, which were made on top."""
        changed = dict(self.tensors)
        for key, tensor in tensors.items():
            if key.endswith((_A, _B)) and key in changed:
                changed[key] = torch.cat([changed[key], tensor], dim=0 if key.endswith(_A) else 1)
                continue
            changed[key] = tensor
            for part in (_A, _B):  # a new value of a weight has the old update in it
                if key.endswith(".weight"):
                    changed.pop(key.removesuffix(".weight") + part, None)
        return BackboneAdapter(self.base_sha256, changed)
