"""Texts to token ids, in batches: what both text towers share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from open_geoclip.errors import TextError

__all__ = ["Tokenizer"]

_BATCH = 64


class Tokenizer:
    """A tokenizer with a limit.

    Args:
        tokenizer: of the ``tokenizers`` library; it adds start and end, and neither truncates nor pads.
        max_tokens: what the model reads at most, start and end counted.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text.

        Raises:
            TextError: there is no text, one is empty or too long, or a single text was given in place of a list.
        """
        if isinstance(texts, str) or len(texts) == 0:
            raise TextError("texts are a list of one or more, such as ['a hot desert']")
        for number, text in enumerate(texts):
            if not text.strip():
                raise TextError(
                    f"text {number + 1} of {len(texts)} is empty: say in words where, such as 'a hot desert'"
                )
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        for text, ids in zip(texts, encoded, strict=True):
            if len(ids) > self.max_tokens:
                raise TextError(
                    f"the text {text[:40]!r}... has {len(ids)} tokens, the model reads {self.max_tokens} at most: "
                    "shorten it"
                )
        return encoded

    def map(
        self, texts: Sequence[str], network: Callable[[Int64[Tensor, "n t"], Int64[Tensor, " n"]], Float[Tensor, "n k"]]
    ) -> Float[Tensor, "m k"]:
        """Return what a network computes of each text, in the order of the texts.

        Args:
            texts: one or more.
            network: takes token ids padded with 0, and how many of them are a text's own.

        Raises:
            TextError: see :meth:`encode`.
        """
        encoded = self.encode(texts)
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))  # of like length: little padding
        parts: list[Float[Tensor, "b k"]] = []
        for start in range(0, len(order), _BATCH):
            rows = [encoded[row] for row in order[start : start + _BATCH]]
            lengths = [len(row) for row in rows]
            ids = torch.tensor([row + [0] * (lengths[-1] - len(row)) for row in rows])
            parts.append(network(ids, torch.tensor(lengths)))
        features = torch.cat(parts)
        result = torch.empty_like(features)
        result[torch.tensor(order)] = features
        return result
