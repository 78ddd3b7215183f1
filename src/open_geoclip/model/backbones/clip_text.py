"""CLIP's text transformer and its tokenizer, read from the layout they are published in.

A text goes through it into the space of CLIP's pictures (Radford et al., ICML 2021, section 2.4), and from there
through the same image head as a picture: that is how GeoCLIP locates a text (Vivanco Cepeda et al., NeurIPS 2023,
section 4.5). Only the text half of the file is read. It shares its blocks with
:mod:`open_geoclip.model.backbones.clip`; a token sees those before it, and the vector is that of the last one. A
test holds it against ``transformers``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from open_geoclip.errors import MissingExtraError, WeightsError
from open_geoclip.model.backbones.clip import ClipBlock, ClipSettings, block_weights, clip_json, clip_weights
from open_geoclip.model.backbones.tokenizer import Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ClipText", "ClipTextSettings"]

_PREFIXES = ("text_model.", "text_projection.")
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class ClipTextSettings(ClipSettings):
    """The shape of a CLIP text transformer."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77

    half = "text"


class ClipText(nn.Module):
    """The projected text feature of CLIP, not normalised. Made by :meth:`from_folder`.

    Args:
        settings: the shape.
    """

    tokens: Tokens

    def __init__(self, settings: ClipTextSettings) -> None:
        super().__init__()
        self.settings = settings
        self.dim = settings.projection_dim
        d = settings.hidden_size
        self.words = nn.Parameter(torch.empty(settings.vocab_size, d))
        self.positions = nn.Parameter(torch.empty(settings.max_position_embeddings, d))
        self.blocks = nn.ModuleList(ClipBlock(settings, causal=True) for _ in range(settings.num_hidden_layers))
        self.norm_out = nn.LayerNorm(d, settings.layer_norm_eps)
        self.projection = nn.Linear(d, settings.projection_dim, bias=False)

    def forward(self, ids: Int64[Tensor, "n t"], lengths: Int64[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """Features of tokens: the vector at the last of each text's ``lengths`` tokens, which sees no padding."""
        x = self.words[ids] + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, x.shape[1])
        return self.projection(self.norm_out(x[torch.arange(len(x)), lengths - 1]))

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n k"]:
        """Features of texts, in their order.

        Raises:
            TextError: a text is empty, or longer than the model reads: 77 tokens with start and end.
        """
        return self.tokens.each(texts, self)

    @classmethod
    def from_folder(cls, folder: Path) -> "ClipText":
        """Read a folder in the published layout.

        That is ``config.json``, weights, and ``tokenizer.json`` or ``vocab.json`` with ``merges.txt``.

        Raises:
            SettingsError: config.json is not that of a CLIP with a text half.
            WeightsError: a file is missing or damaged, or weights do not fit config.json.
            MissingExtraError: the extra ``text`` is not installed.
        """
        settings = ClipTextSettings.from_config(clip_json(folder, "config.json"))
        tokenizer = _tokenizer(folder)
        if tokenizer.get_vocab_size() > settings.vocab_size:
            raise WeightsError(
                f"{folder}: its tokenizer knows {tokenizer.get_vocab_size():,} tokens, its config.json "
                f"{settings.vocab_size:,}"
            )
        with torch.device("meta"):
            model = cls(settings)
        weights = clip_weights(folder, _PREFIXES)
        if not weights:
            raise WeightsError(f"{folder} holds the vision half of a CLIP only; texts need a whole one")
        try:
            model.load_state_dict(_renamed(weights, settings.num_hidden_layers), assign=True)
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{folder}: the weights do not fit its config.json: {error}") from error
        model.tokens = Tokens(tokenizer, settings.max_position_embeddings)
        return model.requires_grad_(False).eval()


def _renamed(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    text = "text_model."
    named = {
        "words": weights[f"{text}embeddings.token_embedding.weight"],
        "positions": weights[f"{text}embeddings.position_embedding.weight"],
        "projection.weight": weights["text_projection.weight"],
        "norm_out.weight": weights[f"{text}final_layer_norm.weight"],
        "norm_out.bias": weights[f"{text}final_layer_norm.bias"],
    }
    for i in range(layers):
        named |= block_weights(weights, f"{text}encoder.layers.{i}", f"blocks.{i}")
    return named


def _tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer beside the weights, as one file or made of vocabulary and merges."""
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    except ImportError as error:
        raise MissingExtraError("Locating a text", "text") from error
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.exists() and not (vocabulary.exists() and merges.exists()):
        raise WeightsError(f"{folder} has no tokenizer: tokenizer.json, or vocab.json and merges.txt")
    try:
        if whole.exists():
            tokenizer = Tokenizer.from_file(str(whole))
        else:
            words = models.BPE.from_file(
                str(vocabulary), str(merges), unk_token=_END, continuing_subword_prefix="", end_of_word_suffix="</w>"
            )
            tokenizer = Tokenizer(words)
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
            )
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
            tokenizer.add_special_tokens([AddedToken(_START, normalized=False), AddedToken(_END, normalized=False)])
            ends = [(_START, tokenizer.token_to_id(_START)), (_END, tokenizer.token_to_id(_END))]
            tokenizer.post_processor = processors.TemplateProcessing(f"{_START} $A {_END}", None, ends)
        tokenizer.no_truncation()  # some published files ask for it, and a text cut short is another text
        tokenizer.no_padding()
        ids = tokenizer.encode("a").ids
    except Exception as error:  # the library raises no narrower one
        raise WeightsError(f"{folder}: its tokenizer cannot be read: {error}") from error
    if tokenizer.token_to_id(_END) is None or ids[-1] != tokenizer.token_to_id(_END):
        raise WeightsError(f"{folder}: its tokenizer does not end a text with {_END}, as CLIP's does")
    return tokenizer
