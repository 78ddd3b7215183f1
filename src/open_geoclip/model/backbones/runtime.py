"""Backbones run by OpenVINO: the same numbers, sooner on a CPU.

OpenVINO lays fixed weights out for the processor once, which torch does anew in each product, and runs a convolution
with all that follows it in one go. Graphs are built here from the loaded torch modules, because tracing one takes
ten seconds and building it a fraction of one.
"""

import logging
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import MissingExtraError, SettingsError
from open_geoclip.model.backbones.clip import ClipVision
from open_geoclip.model.backbones.earth import FINE_BLOCK, GRID, EfficientNetLite0

__all__ = ["CompiledBackbone", "DType", "Engine", "prepare_backbone", "resolve_dtype"]


logger = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16"]
Engine = Literal["auto", "torch", "openvino"]


def resolve_dtype(name: DType, device: torch.device | str = "cpu") -> torch.dtype:
    """Return what a frozen backbone computes in.

    ``auto`` is bfloat16 where the processor multiplies it natively (AVX-512 BF16, AMX, a GPU that has it), and
    float32 elsewhere. Without such instructions bfloat16 is a hundred times slower than float32, not faster, so asking
    for it gives float32 and a logged warning.

    Raises:
        SettingsError: the name is not known.
    """
    if name not in get_args(DType):
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


def prepare_backbone(
    backbone: nn.Module, engine: Engine, dtype: DType, device: torch.device | str = "cpu"
) -> nn.Module:
    """Return a frozen backbone ready to run.

    Args:
        backbone: as loaded.
        engine: ``torch``; ``openvino``, on a CPU; ``auto`` is the latter where it can be used.
        dtype: see :func:`resolve_dtype`.
        device: where to compute.

    Raises:
        SettingsError: OpenVINO is asked for where it cannot be used.
        MissingExtraError: OpenVINO is asked for and not installed.
    """
    if engine not in get_args(Engine):
        raise SettingsError(f"engine: auto, torch or openvino, not {engine!r}")
    precision = resolve_dtype(dtype, device)
    fits = can_be_compiled(backbone) and torch.device(device).type == "cpu"
    if engine == "openvino" and not fits:
        raise SettingsError("the engine openvino is for CLIP's and the embedded backbone on a CPU: use torch")
    if engine == "openvino" or (engine == "auto" and fits and find_spec("openvino") is not None):
        return CompiledBackbone(backbone, bfloat16=precision == torch.bfloat16)
    return backbone.to(device, precision)


def can_be_compiled(backbone: nn.Module) -> bool:
    """Whether there is a graph for a backbone: for CLIP's and the embedded one."""
    return isinstance(backbone, ClipVision | EfficientNetLite0)


class CompiledBackbone(nn.Module):
    """A backbone compiled for this processor.

    Args:
        model: loaded weights, float32.
        bfloat16: compute in bfloat16, where the processor has it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        SettingsError: there is no graph for this kind of backbone.
    """

    def __init__(self, model: nn.Module, *, bfloat16: bool = False) -> None:
        super().__init__()
        # OpenVINO would import its telemetry; it goes on without, and nothing here may report anything.
        sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError("The engine openvino", "fast") from error
        from openvino import opset13 as ops

        def image(side: int) -> Any:
            return ops.parameter([-1, 3, side, side], np.float32, name="pixels")

        if isinstance(model, ClipVision):
            pixels = image(model.settings.image_size)
            features = _clip(model, pixels)
        elif isinstance(model, EfficientNetLite0):
            pixels = image(224)
            features = _efficientnet(model, pixels)
        else:
            raise SettingsError(f"the engine openvino has no graph for {type(model).__name__}: use torch")
        self.dim = model.dim
        graph = openvino.Model([features], [pixels], "backbone")
        precision = "bf16" if bfloat16 else "f32"
        self._compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Features of preprocessed pictures, as the torch module gives them."""
        found = self._compiled.create_infer_request().infer([pixels.detach().float().cpu().numpy()])
        return torch.from_numpy(np.array(found[0])).to(pixels.device)


def _weight(tensor: Tensor) -> Any:
    """A constant that shares the tensor's memory and keeps it alive."""
    from openvino.op import Constant

    return Constant(tensor.detach().contiguous().numpy(), shared_memory=True)


def _shape(*sizes: int) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.array(sizes, np.int64))


def _efficientnet(model: EfficientNetLite0, image: Any) -> Any:
    """The graph, step by step as in :meth:`EfficientNetLite0.forward`."""
    from openvino import Node
    from openvino import opset13 as ops

    def convolution(x: Node, layer: Any) -> Node:
        stride, groups = list(layer.stride), layer.groups
        same = [x, _weight(layer.weight if groups == 1 else layer.weight[:, None]), stride, [0, 0], [0, 0], [1, 1]]
        # "same_upper" is TensorFlow's SAME: what does not divide goes to the right and below.
        found = (ops.convolution if groups == 1 else ops.group_convolution)(*same, auto_pad="same_upper")
        return ops.add(found, _weight(layer.bias.reshape(1, -1, 1, 1)))

    def block(x: Node, layer: Any) -> Node:
        y = x if layer.expand is None else ops.clamp(convolution(x, layer.expand), 0.0, 6.0)
        y = convolution(ops.clamp(convolution(y, layer.depthwise), 0.0, 6.0), layer.project)
        return ops.add(y, x) if layer.residual else y

    x = ops.clamp(convolution(image, model.stem), 0.0, 6.0)
    grids = []
    for index, layer in enumerate(model.blocks):
        x = block(x, layer)
        if index in (FINE_BLOCK, len(model.blocks) - 1):
            grids.append(ops.adaptive_avg_pool(x, _shape(GRID, GRID)))
    return ops.reshape(ops.concat(grids, 1), _shape(-1, model.dim), False)


def _clip(model: ClipVision, image: Any) -> Any:
    """The graph, step by step as in :meth:`ClipVision.forward`."""
    from openvino import Node
    from openvino import opset13 as ops

    d, patch = model.settings.hidden_size, model.settings.patch_size
    heads = model.settings.num_attention_heads

    def norm(x: Node, layer: nn.LayerNorm) -> Node:
        flat = ops.mvn(x, _shape(-1), True, layer.eps, "inside_sqrt")
        return ops.add(ops.multiply(flat, _weight(layer.weight)), _weight(layer.bias))

    def product(x: Node, layer: nn.Linear) -> Node:
        return ops.matmul(x, _weight(layer.weight), False, True)

    def linear(x: Node, layer: nn.Linear) -> Node:
        return ops.add(product(x, layer), _weight(layer.bias))

    def first_token(x: Node) -> Node:
        return ops.gather(x, _shape(0), ops.constant(np.int64(1)))

    def block(x: Node, layer: Any, last: bool) -> Node:
        qkv = ops.reshape(linear(norm(x, layer.norm1), layer.qkv), _shape(0, 0, 3, heads, d // heads), True)
        q, k, v = (
            ops.transpose(ops.gather(qkv, ops.constant(np.int64(i)), ops.constant(np.int64(2))), _shape(0, 2, 1, 3))
            for i in range(3)
        )
        if last:  # the class token is all that is used of the last block
            q, x = ops.gather(q, _shape(0), ops.constant(np.int64(2))), first_token(x)
        seen = ops.scaled_dot_product_attention(q, k, v)
        x = ops.add(x, linear(ops.reshape(ops.transpose(seen, _shape(0, 2, 1, 3)), _shape(0, 0, d), True), layer.out))
        y = linear(norm(x, layer.norm2), layer.fc1)
        y = ops.swish(y, ops.constant(np.float32(1.702))) if layer.quick else ops.gelu(y, "erf")
        return ops.add(x, linear(y, layer.fc2))

    patches = ops.convolution(image, _weight(model.patches.weight), [patch, patch], [0, 0], [0, 0], [1, 1])
    tokens = ops.transpose(ops.reshape(patches, _shape(0, d, -1), True), _shape(0, 2, 1))
    count = ops.gather(ops.shape_of(image), _shape(0), ops.constant(np.int64(0)))
    token = ops.broadcast(
        _weight(model.class_token.reshape(1, 1, d)), ops.concat([count, _shape(1, d)], 0), broadcast_spec="NUMPY"
    )
    x = norm(ops.add(ops.concat([token, tokens], 1), _weight(model.positions)), model.norm_in)
    for index, layer in enumerate(model.blocks):
        x = block(x, layer, index == len(model.blocks) - 1)
    x = ops.reshape(norm(x, model.norm_out), _shape(-1, d), False)
    return product(x, model.projection)
