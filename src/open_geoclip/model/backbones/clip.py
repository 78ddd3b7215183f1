"""CLIP's vision transformer, read from the layout it is published in.

The network of Dosovitskiy et al. (ICLR 2021) with CLIP's changes (Radford et al., ICML 2021): a layer norm
before the blocks, quick GELU, the class token projected without a bias. It is written out here, rather than
taken from ``transformers``, for three reasons: only the vision half of the file is read; a picture costs less, since
queries, keys and values are one product and the last block is computed for the class token alone, which is all
that is used of it; and nothing needs the seconds that importing that library takes. A test holds it against the
library's own model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from open_geoclip.errors import SettingsError, WeightsError
from open_geoclip.model.preprocessing import Preprocessing

__all__ = [
    "ClipBlock",
    "ClipSettings",
    "ClipVision",
    "ClipVisionSettings",
    "block_weights",
    "clip_json",
    "clip_weights",
]

_PREFIXES = ("vision_model.", "visual_projection.")


_Settings = TypeVar("_Settings", bound="ClipSettings")


@dataclass(frozen=True)
class ClipSettings:
    """The shape of one of CLIP's two transformers; names as in the published ``config.json``."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    projection_dim: int = 512
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"

    half: ClassVar[str]

    @classmethod
    def from_config(cls: type[_Settings], config: Mapping[str, Any]) -> _Settings:
        """Read a published ``config.json``: of a whole CLIP, or of this half.

        Raises:
            SettingsError: it is not a CLIP, or its activation is not known.
        """
        if config.get("model_type") not in ("clip", f"clip_{cls.half}_model"):
            raise SettingsError(
                f"config.json describes a {config.get('model_type')!r}, not a CLIP with a {cls.half} half"
            )
        half = dict(config.get(f"{cls.half}_config") or {}) if config["model_type"] == "clip" else dict(config)
        if config["model_type"] == "clip":
            half["projection_dim"] = config.get("projection_dim", half.get("projection_dim", 512))
        settings = cls(**{name: half[name] for name in cls.__dataclass_fields__ if name in half})
        if settings.hidden_act not in ("quick_gelu", "gelu"):
            raise SettingsError(f"config.json: unknown activation {settings.hidden_act!r}; quick_gelu or gelu")
        return settings


@dataclass(frozen=True)
class ClipVisionSettings(ClipSettings):
    """The shape of a CLIP vision transformer."""

    patch_size: int = 32
    image_size: int = 224

    half = "vision"


class ClipBlock(nn.Module):
    """Attention, then a small network, each added to what went in.

    Args:
        settings: the shape.
        causal: whether a token sees only itself and those before it, as in CLIP's text transformer.
    """

    def __init__(self, settings: ClipSettings, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        d = settings.hidden_size
        self.heads = settings.num_attention_heads
        self.quick = settings.hidden_act == "quick_gelu"
        self.norm1 = nn.LayerNorm(d, settings.layer_norm_eps)
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.norm2 = nn.LayerNorm(d, settings.layer_norm_eps)
        self.fc1 = nn.Linear(d, settings.intermediate_size)
        self.fc2 = nn.Linear(settings.intermediate_size, d)

    def forward(self, x: Float[Tensor, "n t d"], queries: int) -> Float[Tensor, "n q d"]:
        """Only the first ``queries`` tokens come out; all of them are looked at."""
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q[:, :, :queries], k, v, is_causal=self.causal)
        seen = seen.transpose(1, 2).reshape(n, -1, d)
        x = x[:, :queries] + self.out(seen)
        y = self.fc1(self.norm2(x))
        y = y.mul_(torch.sigmoid(1.702 * y)) if self.quick else F.gelu(y)
        return x + self.fc2(y)


class ClipVision(nn.Module):
    """The projected image feature of CLIP, not normalised.

    Args:
        settings: the shape.
    """

    def __init__(self, settings: ClipVisionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.dim = settings.projection_dim
        d, patch = settings.hidden_size, settings.patch_size
        self.patches = nn.Conv2d(3, d, patch, patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(d))
        self.positions = nn.Parameter(torch.empty((settings.image_size // patch) ** 2 + 1, d))
        self.norm_in = nn.LayerNorm(d, settings.layer_norm_eps)
        self.blocks = nn.ModuleList(ClipBlock(settings) for _ in range(settings.num_hidden_layers))
        self.norm_out = nn.LayerNorm(d, settings.layer_norm_eps)
        self.projection = nn.Linear(d, settings.projection_dim, bias=False)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Features of preprocessed pictures of the size the weights were trained for."""
        patches = self.patches(pixels.to(self.class_token.dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(patches), 1, -1), patches], dim=1) + self.positions
        x = self.norm_in(x)
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            x = block(x, 1 if index == last else x.shape[1])
        return self.projection(self.norm_out(x[:, 0]))

    @classmethod
    def from_folder(
        cls, folder: Path, preprocessing: Preprocessing | None = None
    ) -> "tuple[ClipVision, Preprocessing]":
        """Read a folder in the published layout: ``config.json``, ``preprocessor_config.json`` and weights.

        Weights are one ``model.safetensors``, its shards with an index, or a ``pytorch_model.bin`` (read with
        ``weights_only``). The text half is left where it is.

        Args:
            folder: where the files are.
            preprocessing: used when the folder has no ``preprocessor_config.json``.

        Raises:
            SettingsError: config.json is not a CLIP's.
            WeightsError: a file is missing or damaged, or weights do not fit config.json.
        """
        settings = ClipVisionSettings.from_config(clip_json(folder, "config.json"))
        if preprocessing is None or (folder / "preprocessor_config.json").exists():
            preprocessing = Preprocessing.from_clip(clip_json(folder, "preprocessor_config.json"))
        if preprocessing.crop != settings.image_size:
            raise WeightsError(
                f"{folder}: pictures are cut to {preprocessing.crop} pixels (preprocessor_config.json) but the model "
                f"takes {settings.image_size} (config.json)"
            )
        with torch.device("meta"):
            model = cls(settings)
        try:
            model.load_state_dict(_renamed(clip_weights(folder, _PREFIXES), settings.num_hidden_layers), assign=True)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{folder}: the weights do not fit its config.json: {error}") from error
        return model.requires_grad_(False).eval(), preprocessing


def clip_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object beside the weights of a published CLIP."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{folder} has no {name}, which a published CLIP has beside its weights") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{folder / name} does not hold a JSON object")
    return content


def clip_weights(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors of a published CLIP whose names begin so, float32; the others are not read."""
    index = folder / "model.safetensors.index.json"
    shards = [folder / "model.safetensors"]
    if not shards[0].exists() and index.exists():
        shards = sorted({folder / name for name in clip_json(folder, index.name)["weight_map"].values()})
    weights: dict[str, Tensor] = {}
    if shards[0].exists():
        for shard in shards:
            try:
                with safe_open(shard, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118  (not a dict)
                        if key.startswith(prefixes):
                            weights[key] = file.get_tensor(key).float()
            except Exception as error:
                raise WeightsError(f"{shard} cannot be read: {error}; get it again") from error
        return weights
    pickle = folder / "pytorch_model.bin"
    if not pickle.exists():
        raise WeightsError(f"{folder} holds no weights: model.safetensors or pytorch_model.bin")
    loaded = torch.load(pickle, map_location="cpu", weights_only=True)
    return {key: tensor.float() for key, tensor in loaded.items() if key.startswith(prefixes)}


def _renamed(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Published names to ours."""
    vision = "vision_model."
    named = {
        "class_token": weights[f"{vision}embeddings.class_embedding"],
        "patches.weight": weights[f"{vision}embeddings.patch_embedding.weight"],
        "positions": weights[f"{vision}embeddings.position_embedding.weight"],
        "projection.weight": weights["visual_projection.weight"],
    }
    for part in ("weight", "bias"):
        named[f"norm_in.{part}"] = weights[f"{vision}pre_layrnorm.{part}"]  # spelt so in each published file
        named[f"norm_out.{part}"] = weights[f"{vision}post_layernorm.{part}"]
    for i in range(layers):
        named |= block_weights(weights, f"{vision}encoder.layers.{i}", f"blocks.{i}")
    return named


def block_weights(weights: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """The tensors of one block under our names; queries, keys and values become one matrix."""
    named = {}
    for part in ("weight", "bias"):
        named[f"{ours}.qkv.{part}"] = torch.cat([weights[f"{theirs}.self_attn.{x}_proj.{part}"] for x in "qkv"])
        for name, source in (
            ("out", "self_attn.out_proj"),
            ("norm1", "layer_norm1"),
            ("norm2", "layer_norm2"),
            ("fc1", "mlp.fc1"),
            ("fc2", "mlp.fc2"),
        ):
            named[f"{ours}.{name}.{part}"] = weights[f"{theirs}.{source}.{part}"]
    return named
