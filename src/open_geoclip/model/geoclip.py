"""Two towers and a temperature: the contrastive model itself."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.model.backbones.runtime import CompiledBackbone, can_be_compiled, openvino_is_installed
from open_geoclip.model.image_encoder import ImageEncoder
from open_geoclip.model.location_encoder import LocationEncoder
from open_geoclip.model.text_encoder import TextEncoder
from open_geoclip.weights.load import Release

__all__ = ["DType", "Engine", "TwoTowers", "network_dtype", "prepared"]

logger = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound="TwoTowers")

DType = Literal["auto", "float32", "bfloat16"]
Engine = Literal["auto", "torch", "openvino"]


def network_dtype(name: DType, device: torch.device | str = "cpu") -> torch.dtype:
    """What a frozen backbone computes in.

    ``auto`` is bfloat16 where the processor multiplies it natively (AVX-512 BF16, AMX, a GPU that has it), and
    float32 elsewhere. Without such instructions bfloat16 is a hundred times slower than float32, not faster, so a
    wish for it is answered with float32 and a logged warning.

    Raises:
        SettingsError: the name is not known.
    """
    if name not in ("auto", "float32", "bfloat16"):
        raise SettingsError(f"dtype: auto, float32 or bfloat16, not {name!r}")
    if name == "float32":
        return torch.float32
    if _has_bfloat16(torch.device(device)):
        return torch.bfloat16
    if name == "bfloat16":
        logger.warning("%s has no bfloat16 instructions, which makes it far slower: computing in float32", device)
    return torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.10
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def prepared(backbone: nn.Module, engine: Engine, dtype: DType, device: torch.device | str = "cpu") -> nn.Module:
    """A frozen backbone ready to run.

    Args:
        backbone: as loaded.
        engine: ``torch``; ``openvino``, on a CPU; ``auto`` is the latter where it can be used.
        dtype: see :func:`network_dtype`.
        device: where to compute.

    Raises:
        SettingsError: OpenVINO is asked for where it cannot be used.
        MissingExtraError: OpenVINO is asked for and not installed.
    """
    if engine not in ("auto", "torch", "openvino"):
        raise SettingsError(f"engine: auto, torch or openvino, not {engine!r}")
    precision = network_dtype(dtype, device)
    fits = can_be_compiled(backbone) and torch.device(device).type == "cpu"
    if engine == "openvino" and not fits:
        raise SettingsError("the engine openvino is for CLIP's and the embedded backbone on a CPU: use torch")
    if engine == "openvino" or (engine == "auto" and fits and openvino_is_installed()):
        return CompiledBackbone(backbone, bfloat16=precision == torch.bfloat16)
    return backbone.to(device, precision)


class TwoTowers(nn.Module):
    """Pictures and places in one space (Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023, section 3).

    Args:
        image_encoder: the tower for pictures.
        location_encoder: the tower for coordinates.

    Attributes:
        logit_scale: logarithm of the temperature's inverse; starts at ln(1/0.07), as CLIP's does.
    """

    def __init__(self, image_encoder: ImageEncoder, location_encoder: LocationEncoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.location_encoder = location_encoder
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._text_source: tuple[Release, str | None] | None = None
        self._text: TextEncoder | None = None

    @classmethod
    def from_release(cls: type[_Model], release: "Release", *, backbone: str | None = None) -> _Model:
        """Build the model that a release holds, in evaluation mode.

        Raises:
            WeightsError: the release holds a location encoder only, or its parts do not fit together.
        """
        if "logit_scale" not in release.tensors:
            raise WeightsError(f"{release.name} holds a location encoder only: it cannot locate pictures")
        model = cls(ImageEncoder.from_release(release, backbone=backbone), LocationEncoder.from_release(release))
        with torch.no_grad():
            model.logit_scale.copy_(release.tensors["logit_scale"])
        own = {name: tensor for name, tensor in release.tensors.items() if name.startswith("text_encoder.")}
        model._text_source = (replace(release, tensors=own), backbone)
        return model.eval()

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n k"]:
        """Vectors of texts, of length 1, float32 on the CPU. The text side is loaded at the first call.

        Raises:
            WeightsError: the model has no text side.
            TextError: a text is empty or too long.
            MissingExtraError: the extra ``text`` is not installed.
        """
        if self._text is None:
            if self._text_source is None:
                raise WeightsError("this model has no text side: one made from weights has, `TwoTowers.from_release`")
            release, backbone = self._text_source
            self._text = TextEncoder.from_release(release, backbone=backbone)
        head = self.image_encoder.mlp
        weight = next(head.parameters())
        read = self._text(texts).to(weight.device, weight.dtype)
        return F.normalize(head(read).float(), dim=1).cpu()

    @property
    def scale(self) -> float:
        """What cosines are multiplied with to make logits."""
        return float(self.logit_scale.detach().exp())

    def forward(self, pixels: Float[Tensor, "n 3 h w"], coordinates: Float[Tensor, "m 2"]) -> Float[Tensor, "n m"]:
        """Logits of each picture for each place: the temperature times the cosine of their vectors.

        Raises:
            CoordinateError: a coordinate is not on Earth.
        """
        image = F.normalize(self.image_encoder(pixels).float(), dim=1)
        location = F.normalize(self.location_encoder(coordinates).float(), dim=1)
        return self.logit_scale.exp() * image @ location.T
