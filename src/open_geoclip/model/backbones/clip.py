"""CLIP's two transformers (Radford et al., ICML 2021): images and texts to projected features, not normalised.

The image half is the network of Dosovitskiy et al. (ICLR 2021) with CLIP's changes: a layer norm before the blocks,
quick GELU, the class token projected without a bias. The text half has the same blocks with a causal mask; its feature
is that of the last token. They are written out here, rather than taken from ``transformers``, for three reasons: only
one half of the weights is read; an image costs less, since queries, keys and values are one product and the last block
is computed for the class token alone; and nothing waits for the seconds that importing that library takes. Tests hold
both against the library's own models.

Reading the published files is in :mod:`open_geoclip.weights.backbones`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from open_geoclip.errors import SettingsError
from open_geoclip.model.backbones.tokenizer import Tokenizer

__all__ = ["ClipSettings", "ClipText", "ClipTextSettings", "ClipVision", "ClipVisionSettings", "merge_similar"]

_Settings = TypeVar("_Settings", bound="ClipSettings")

_BLOCK_NAMES = {
    "out": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


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


@dataclass(frozen=True)
class ClipTextSettings(ClipSettings):
    """The shape of a CLIP text transformer."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77

    half = "text"


class ClipBlock(nn.Module):
    """Attention, then a two-layer network, each with a residual connection.

    Args:
        settings: the shape.
        causal: whether a token attends only to itself and those before it, as in the text transformer.
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
        """Return the first ``queries`` tokens; they attend to all."""
        q, k, v = self.project(x, queries)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.mix(x, attended, queries)

    def forward_merged(
        self, x: Float[Tensor, "n t d"], size: Float[Tensor, "n t 1"], queries: int, merged: int
    ) -> tuple[Float[Tensor, "n q d"], Float[Tensor, "n q 1"]]:
        """Return tokens after proportional attention, :func:`merge_similar` and the two-layer network, and their sizes.

        Args:
            x: tokens.
            size: patches that each token stands for.
            queries: tokens that are computed, the first ones.
            merged: tokens to merge after attention.
        """
        q, k, v = self.project(x, queries)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=size.log().transpose(1, 2)[:, None])
        x, size = self.add_attended(x, attended, queries), size[:, :queries]
        if merged:
            x, size = merge_similar(x, size, k.mean(dim=1), merged)
        return self.feed_forward(x), size

    def project(
        self, x: Float[Tensor, "n t d"], queries: int
    ) -> tuple[Float[Tensor, "n heads q c"], Float[Tensor, "n heads t c"], Float[Tensor, "n heads t c"]]:
        """Return the first ``queries`` queries, and all keys and values."""
        _, t, d = x.shape  # -1 for the batch: a converter would take its size for a constant
        q, k, v = self.qkv(self.norm1(x)).view(-1, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return q[:, :, :queries], k, v

    def mix(
        self, x: Float[Tensor, "n t d"], attended: Float[Tensor, "n heads q c"], queries: int
    ) -> Float[Tensor, "n q d"]:
        """Return the first ``queries`` tokens after attention and the two-layer network."""
        return self.feed_forward(self.add_attended(x, attended, queries))

    def add_attended(
        self, x: Float[Tensor, "n t d"], attended: Float[Tensor, "n heads q c"], queries: int
    ) -> Float[Tensor, "n q d"]:
        """Return the first ``queries`` tokens after attention."""
        return x[:, :queries] + self.out(attended.transpose(1, 2).reshape(-1, queries, x.shape[2]))

    def feed_forward(self, x: Float[Tensor, "n q d"]) -> Float[Tensor, "n q d"]:
        """Return tokens after the two-layer network."""
        y = self.fc1(self.norm2(x))
        y = y * (1.702 * y).sigmoid_() if self.quick else F.gelu(y)
        return x + self.fc2(y)


def merge_similar(
    x: Float[Tensor, "n t d"], size: Float[Tensor, "n t 1"], keys: Float[Tensor, "n t c"], merged: int
) -> tuple[Float[Tensor, "n u d"], Float[Tensor, "n u 1"]]:
    """Merge the most similar tokens (Bolya et al., "Token merging: your ViT but faster", ICLR 2023, section 3).

    Bipartite soft matching: every other token is compared with all between them by the cosine of keys; the ``merged``
    pairs that are most alike become one token each, the mean weighted by size. The first token, the class, stays.

    Args:
        x: tokens.
        size: patches that each stands for.
        keys: of each, the mean over the heads of attention.
        merged: number of pairs; at most half of the tokens are merged.
    """
    keys = F.normalize(keys, dim=-1)
    cosine = keys[:, 2::2] @ keys[:, 1::2].transpose(1, 2)
    best, partner = cosine.max(dim=2)
    order = best.argsort(dim=1, descending=True)[..., None]
    gone, kept = order[:, :merged], order[:, merged:]
    weighted = torch.cat((x * size, size), dim=2)
    source, target = weighted[:, 2::2], weighted[:, 1::2]
    width = weighted.shape[2]
    into = partner[..., None].gather(1, gone).expand(-1, -1, width)
    target = target.scatter_add(1, into, source.gather(1, gone.expand(-1, -1, width)))
    weighted = torch.cat((weighted[:, :1], source.gather(1, kept.expand(-1, -1, width)), target), dim=1)
    size = weighted[..., -1:]
    return weighted[..., :-1] / size, size


class ClipVision(nn.Module):
    """The projected image feature of CLIP.

    Args:
        settings: the shape.

    Attributes:
        dim: length of the feature.
        image_size: side of the square images that it takes, in pixels.
        merge_tokens: tokens that are merged after the attention of each block but the last, or half of those there are;
            see :func:`merge_similar`. 0: none. Features change, the more the larger it is.
    """

    def __init__(self, settings: ClipVisionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.merge_tokens = 0
        self.dim, self.image_size = settings.projection_dim, settings.image_size
        d, patch = settings.hidden_size, settings.patch_size
        self.patches = nn.Conv2d(3, d, patch, patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(d))
        self.positions = nn.Parameter(torch.empty((settings.image_size // patch) ** 2 + 1, d))
        self.norm_in = nn.LayerNorm(d, settings.layer_norm_eps)
        self.blocks = nn.ModuleList(ClipBlock(settings) for _ in range(settings.num_hidden_layers))
        self.norm_out = nn.LayerNorm(d, settings.layer_norm_eps)
        self.projection = nn.Linear(d, settings.projection_dim, bias=False)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return features of preprocessed images of the size the weights were trained for."""
        x = self.embed(pixels)
        last, size = len(self.blocks) - 1, torch.ones_like(x[..., :1])
        for index, block in enumerate(self.blocks):
            queries = 1 if index == last else x.shape[1]
            if self.merge_tokens:
                merged = min(self.merge_tokens, (int(queries) - 1) // 2)
                x, size = cast(ClipBlock, block).forward_merged(x, size, queries, merged)
            else:
                x = block(x, queries)
        return self.pool(x)

    def embed(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t d"]:
        """Return the tokens that the first block reads: the class token, then patches row by row."""
        patches = self.patches(pixels.to(self.class_token.dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_token + torch.zeros_like(patches[:, :1])
        return self.norm_in(torch.cat([class_token, patches], dim=1) + self.positions)

    def pool(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n k"]:
        """Return the feature that the class token of a block's output gives."""
        return self.projection(self.norm_out(x[:, 0]))

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Take the tensors of a published CLIP, by their names there.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: a tensor has another shape.
        """
        named = {
            "class_token": weights["vision_model.embeddings.class_embedding"],
            "patches.weight": weights["vision_model.embeddings.patch_embedding.weight"],
            "positions": weights["vision_model.embeddings.position_embedding.weight"],
            "projection.weight": weights["visual_projection.weight"],
        }
        for part in ("weight", "bias"):
            named[f"norm_in.{part}"] = weights[f"vision_model.pre_layrnorm.{part}"]  # spelt so in each published file
            named[f"norm_out.{part}"] = weights[f"vision_model.post_layernorm.{part}"]
        self.load_state_dict(named | _block_weights(weights, "vision_model", len(self.blocks)), assign=True)


class ClipText(nn.Module):
    """The projected text feature of CLIP.

    Args:
        settings: the shape.
        tokenizer: of the weights.

    Attributes:
        dim: length of the feature.
    """

    def __init__(self, settings: ClipTextSettings, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = tokenizer
        self.dim = settings.projection_dim
        d = settings.hidden_size
        self.words = nn.Parameter(torch.empty(settings.vocab_size, d))
        self.positions = nn.Parameter(torch.empty(settings.max_position_embeddings, d))
        self.blocks = nn.ModuleList(ClipBlock(settings, causal=True) for _ in range(settings.num_hidden_layers))
        self.norm_out = nn.LayerNorm(d, settings.layer_norm_eps)
        self.projection = nn.Linear(d, settings.projection_dim, bias=False)

    def forward(self, ids: Int64[Tensor, "n t"], lengths: Int64[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """Return features of token ids: that of the last of each text's ``lengths`` tokens, which sees no padding."""
        x = self.words[ids] + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, x.shape[1])
        return self.projection(self.norm_out(x[torch.arange(len(x)), lengths - 1]))

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n k"]:
        """Return features of texts, in their order.

        Raises:
            TextError: a text is empty, or longer than the model reads: 77 tokens with start and end.
        """
        return self.tokenizer.map(texts, self)

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Take the tensors of a published CLIP, by their names there; errors as of :class:`ClipVision`."""
        named = {
            "words": weights["text_model.embeddings.token_embedding.weight"],
            "positions": weights["text_model.embeddings.position_embedding.weight"],
            "projection.weight": weights["text_projection.weight"],
            "norm_out.weight": weights["text_model.final_layer_norm.weight"],
            "norm_out.bias": weights["text_model.final_layer_norm.bias"],
        }
        self.load_state_dict(named | _block_weights(weights, "text_model", len(self.blocks)), assign=True)


def _block_weights(weights: Mapping[str, Tensor], half: str, layers: int) -> dict[str, Tensor]:
    """Return the tensors of all blocks under our names; queries, keys and values become one matrix."""
    named = {}
    for i in range(layers):
        layer = f"{half}.encoder.layers.{i}"
        for part in ("weight", "bias"):
            named[f"blocks.{i}.qkv.{part}"] = torch.cat([weights[f"{layer}.self_attn.{x}_proj.{part}"] for x in "qkv"])
            for name, published in _BLOCK_NAMES.items():
                named[f"blocks.{i}.{name}.{part}"] = weights[f"{layer}.{published}.{part}"]
    return named
