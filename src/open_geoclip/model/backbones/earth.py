"""EfficientNet-Lite: Lite0 is the frozen image backbone of the embedded model.

The networks are Google's (Tan and Le, "EfficientNet", ICML 2019, arXiv 1905.11946; the Lite variants have no
squeeze-and-excitation and use ReLU6). Batch norm is folded into the convolutions while loading: the network here is
convolutions, ReLU6 and sums. :mod:`open_geoclip.weights.backbones` reads the ImageNet weights from installed packages,
so nothing is downloaded.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from open_geoclip.model.preprocessing import Preprocessing

__all__ = ["GRID", "PREPROCESSING", "EfficientNetLite"]

_EPSILON = 1e-3  # of the batch norms
# Stages (Table 1 of the paper): repeats, kernel, stride, expansion, channels out.
_STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
_VARIANTS = [(1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260)]
"""Of Lite0 to Lite2: what widths and repeats are multiplied by, and the side of the images, in pixels."""
_FINE_STAGE = 4
"""The last stage at stride 16: 112 channels in Lite0."""
GRID = 3
"""Features are averaged over so many rows and columns."""

PREPROCESSING = Preprocessing(
    resize=224,
    crop=224,
    resample="bicubic",
    mean=(127 / 255, 127 / 255, 127 / 255),
    std=(128 / 255, 128 / 255, 128 / 255),
)
"""What the weights of Lite0 were trained with: (value - 127) / 128. The others differ in their size."""


class _Convolution(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME does, for which the weights were trained."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, groups=groups)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1:
            return super().forward(x)
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        pad = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[3], x.shape[2])]
        x = F.pad(x, (pad[0] // 2, pad[0] - pad[0] // 2, pad[1] // 2, pad[1] - pad[1] // 2))
        return super().forward(x)


class _Block(nn.Module):
    """Inverted residual: expansion, depthwise convolution, projection."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand = _Convolution(channels_in, wide, 1) if expansion > 1 else None
        self.depthwise = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = _Convolution(wide, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return y.add_(x) if self.residual else y


class EfficientNetLite(nn.Module):
    """Convolutional features of an image, with random weights until :meth:`load_published`.

    Args:
        variant: 0, 1 or 2.

    Attributes:
        dim: length of the feature; 3,888 in Lite0.
        image_size: side of the square images that it takes, in pixels.
        fine_block: number of the last block at stride 16.
    """

    def __init__(self, variant: int = 0) -> None:
        super().__init__()
        width, depth, self.image_size = _VARIANTS[variant]
        self.stem = _Convolution(3, 32, 3, 2)
        blocks, ends, channels = [], [], 32
        for number, (repeats, kernel, stride, expansion, out) in enumerate(_STAGES):
            is_end = number in (0, len(_STAGES) - 1)  # of the Lite variants, these are not repeated
            for repeat in range(repeats if is_end else math.ceil(repeats * depth)):
                scaled = _scale_channels(out, width)
                blocks.append(_Block(channels, scaled, kernel, stride if repeat == 0 else 1, expansion))
                channels = scaled
            ends.append((len(blocks) - 1, channels))
        self.blocks = nn.ModuleList(blocks)
        self.fine_block, fine = ends[_FINE_STAGE]
        self.dim = GRID**2 * (fine + channels)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return features of preprocessed images.

        In Lite0, 112 channels at stride 16 and 320 at stride 32, each averaged over a 3x3 grid, so that what lies
        where in the image is kept.
        """
        return self.pool(self.block_outputs(pixels))

    def block_outputs(self, pixels: Float[Tensor, "n 3 h w"]) -> Iterator[Float[Tensor, "n _ _ _"]]:
        """Yield the output of each block, from the first to the last."""
        x = F.relu6(
            self.stem(pixels.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)), inplace=True
        )
        for block in self.blocks:
            x = block(x)
            yield x

    def pool(self, outputs: Iterable[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n k"]:
        """Return the feature of the outputs of all blocks."""
        chosen = (self.fine_block, len(self.blocks) - 1)
        grids = [F.adaptive_avg_pool2d(x, GRID) for index, x in enumerate(outputs) if index in chosen]
        return torch.cat(grids, dim=1).flatten(1)

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Take the published ImageNet weights; a KeyError or RuntimeError tells what does not fit."""
        self.load_state_dict(_fold_batch_norms(weights, len(self.blocks)), assign=True)


def _scale_channels(channels: int, width: float) -> int:
    """Return channels times width as a multiple of 8, at most 10 % below."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels * width else scaled


def _fold_batch_norms(weights: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Return the published tensors under our names, batch norms folded into the convolutions."""
    folded: dict[str, Tensor] = {}

    def fold(convolution: str, norm: str, to: str) -> None:
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _EPSILON).sqrt()
        weight = weights[f"{convolution}.weight"] * scale[:, None, None, None]
        folded[f"{to}.weight"] = weight.contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU
        folded[f"{to}.bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale

    fold("_conv_stem", "_bn0", "stem")
    for index in range(blocks):
        block = f"_blocks.{index}"
        if f"{block}._expand_conv.weight" in weights:
            fold(f"{block}._expand_conv", f"{block}._bn0", f"blocks.{index}.expand")
        fold(f"{block}._depthwise_conv", f"{block}._bn1", f"blocks.{index}.depthwise")
        fold(f"{block}._project_conv", f"{block}._bn2", f"blocks.{index}.project")
    return folded
