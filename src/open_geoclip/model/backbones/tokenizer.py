"""Texts to tokens, in batches: what both text backbones share."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from open_geoclip.errors import TextError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Tokens", "check_texts"]

_BATCH = 64


def check_texts(texts: Sequence[str]) -> Sequence[str]:
    """The same texts.

    Raises:
        TextError: one is empty, or a single text was given where a list is asked for.
    """
    if isinstance(texts, str) or len(texts) == 0:
        raise TextError("texts are a list of one or more, such as ['a hot desert']")
    for number, text in enumerate(texts):
        if not text.strip():
            raise TextError(f"text {number + 1} of {len(texts)} is empty: say in words where, such as 'a hot desert'")
    return texts


class Tokens:
    """A tokenizer with a limit.

    Args:
        tokenizer: of the ``tokenizers`` library; it adds start and end, and neither cuts nor pads.
        most: tokens that the model reads at most, start and end counted.
    """

    def __init__(self, tokenizer: "Tokenizer", most: int) -> None:
        self.tokenizer = tokenizer
        self.most = most

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text.

        Raises:
            TextError: a text is too long.
        """
        found = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        for text, ids in zip(texts, found, strict=True):
            if len(ids) > self.most:
                raise TextError(
                    f"the text {text[:40]!r}... has {len(ids)} tokens, the model reads {self.most} at most: shorten it"
                )
        return found

    def each(
        self, texts: Sequence[str], compute: Callable[[Int64[Tensor, "n t"], Int64[Tensor, " n"]], Float[Tensor, "n k"]]
    ) -> Float[Tensor, "m k"]:
        """What a network computes of each text, in the order of the texts.

        Args:
            texts: one or more.
            compute: takes tokens padded with 0, and how many of them are a text's own.

        Raises:
            TextError: see :func:`check_texts` and :meth:`ids`.
        """
        found = self.ids(check_texts(texts))
        order = sorted(range(len(found)), key=lambda row: len(found[row]))  # of like length: little padding
        parts: list[Float[Tensor, "b k"]] = []
        for start in range(0, len(order), _BATCH):
            rows = [found[row] for row in order[start : start + _BATCH]]
            lengths = [len(row) for row in rows]
            ids = torch.tensor([row + [0] * (lengths[-1] - len(row)) for row in rows])
            parts.append(compute(ids, torch.tensor(lengths)))
        joined = torch.cat(parts)
        result = torch.empty_like(joined)
        result[torch.tensor(order)] = joined
        return result
