"""CLIP's vision transformer run by OpenVINO: the same numbers, sooner on a CPU.

Most of a photo's time are matrix products with fixed weights. OpenVINO lays these weights out for the processor once,
which torch does anew in each product. The graph is built here from the loaded :class:`ClipVision`, because
tracing it takes ten seconds and building it a fraction of one.
"""

import sys
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.errors import MissingExtraError
from open_geoclip.model.backbones.clip import ClipVision

__all__ = ["OpenVinoClip", "openvino_is_installed"]


def openvino_is_installed() -> bool:
    """Whether the extra ``fast`` is there; OpenVINO itself is not imported."""
    from importlib.util import find_spec

    return find_spec("openvino") is not None


class OpenVinoClip(nn.Module):
    """A :class:`ClipVision` compiled for this processor.

    Args:
        model: loaded weights, float32.
        bfloat16: compute in bfloat16, where the processor has it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """

    def __init__(self, model: ClipVision, *, bfloat16: bool = False) -> None:
        super().__init__()
        # OpenVINO would import its telemetry; it goes on without, and nothing here may report anything.
        sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError("The engine openvino", "fast") from error
        self.dim = model.dim
        self.settings = model.settings
        precision = "bf16" if bfloat16 else "f32"
        graph = openvino.Model([_vision(model, image := _image(model))], [image], "clip-vision")
        self._compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision})

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Features of preprocessed pictures, as :class:`ClipVision` gives them."""
        found = self._compiled.create_infer_request().infer([pixels.detach().float().cpu().numpy()])
        return torch.from_numpy(np.array(found[0])).to(pixels.device)


def _image(model: ClipVision) -> Any:
    from openvino import opset13 as ops

    side = model.settings.image_size
    return ops.parameter([-1, 3, side, side], np.float32, name="pixels")


def _vision(model: ClipVision, image: Any) -> Any:
    """The graph, step by step as in :meth:`ClipVision.forward`."""
    from openvino import Node
    from openvino import opset13 as ops
    from openvino.op import Constant

    d, patch = model.settings.hidden_size, model.settings.patch_size
    heads = model.settings.num_attention_heads

    def weight(tensor: Tensor) -> Node:
        return Constant(tensor.detach().contiguous().numpy(), shared_memory=True)

    def shape(*sizes: int) -> Node:
        return ops.constant(np.array(sizes, np.int64))

    def norm(x: Node, layer: nn.LayerNorm) -> Node:
        flat = ops.mvn(x, shape(-1), True, layer.eps, "inside_sqrt")
        return ops.add(ops.multiply(flat, weight(layer.weight)), weight(layer.bias))

    def product(x: Node, layer: nn.Linear) -> Node:
        return ops.matmul(x, weight(layer.weight), False, True)

    def linear(x: Node, layer: nn.Linear) -> Node:
        return ops.add(product(x, layer), weight(layer.bias))

    def first_token(x: Node) -> Node:
        return ops.gather(x, shape(0), ops.constant(np.int64(1)))

    def block(x: Node, layer: Any, last: bool) -> Node:
        qkv = ops.reshape(linear(norm(x, layer.norm1), layer.qkv), shape(0, 0, 3, heads, d // heads), True)
        q, k, v = (
            ops.transpose(ops.gather(qkv, ops.constant(np.int64(i)), ops.constant(np.int64(2))), shape(0, 2, 1, 3))
            for i in range(3)
        )
        if last:  # the class token is all that is used of the last block
            q, x = ops.gather(q, shape(0), ops.constant(np.int64(2))), first_token(x)
        seen = ops.scaled_dot_product_attention(q, k, v)
        x = ops.add(x, linear(ops.reshape(ops.transpose(seen, shape(0, 2, 1, 3)), shape(0, 0, d), True), layer.out))
        y = linear(norm(x, layer.norm2), layer.fc1)
        y = ops.swish(y, ops.constant(np.float32(1.702))) if layer.quick else ops.gelu(y, "erf")
        return ops.add(x, linear(y, layer.fc2))

    patches = ops.convolution(image, weight(model.patches.weight), [patch, patch], [0, 0], [0, 0], [1, 1])
    tokens = ops.transpose(ops.reshape(patches, shape(0, d, -1), True), shape(0, 2, 1))
    count = ops.gather(ops.shape_of(image), shape(0), ops.constant(np.int64(0)))
    token = ops.broadcast(
        weight(model.class_token.reshape(1, 1, d)), ops.concat([count, shape(1, d)], 0), broadcast_spec="NUMPY"
    )
    x = norm(ops.add(ops.concat([token, tokens], 1), weight(model.positions)), model.norm_in)
    for index, layer in enumerate(model.blocks):
        x = block(x, layer, index == len(model.blocks) - 1)
    x = ops.reshape(norm(x, model.norm_out), shape(-1, d), False)
    return product(x, model.projection)
