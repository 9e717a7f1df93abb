"""Dialogues as samples of a fixed length: whole ones side by side, and which words count.

Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from caudal.train.chat import ASSISTANT, END, USER
from caudal.train.data.tinyworld import Dialogue
from caudal.train.data.tokenizer import token_id

_AT_ONCE = 2_000
"""Dialogues that are encoded together: the tokenizer works on all cores then."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Samples side by side, both [samples, length]: tokens, and 1 where a token is the assistant's word or
    its end."""

    tokens: NDArray[np.uint32]
    mask: NDArray[np.uint8]


def pack_dialogues(tokenizer: Tokenizer, dialogues: Iterator[Dialogue], length: int, samples: int) -> Packed:
    """`samples` rows of `length` tokens. A dialogue that does not fit a row's rest begins the next row; one
    that is longer than a row is cut. What stays free is filled with `<|end|>`, which does not count."""
    packed = Packed(
        np.full((samples, length), token_id(tokenizer, END), np.uint32), np.zeros((samples, length), np.uint8)
    )
    row, used = 0, 0
    for tokens, mask in _encoded(tokenizer, dialogues):
        if used and used + len(tokens) > length:
            row, used = row + 1, 0
        if row == samples:
            break
        some = slice(used, min(used + len(tokens), length))
        packed.tokens[row, some] = tokens[: some.stop - used]
        packed.mask[row, some] = mask[: some.stop - used]
        used = some.stop
    return packed


def _encoded(tokenizer: Tokenizer, dialogues: Iterator[Dialogue]) -> Iterator[tuple[list[int], list[int]]]:
    """Each dialogue's tokens and mask."""
    user, assistant, end = (token_id(tokenizer, name) for name in (USER, ASSISTANT, END))
    while True:
        some = [next(dialogues) for _ in range(_AT_ONCE)]
        words = [text for dialogue in some for turn in dialogue for text in (turn.question, turn.answer)]
        encoded = iter(tokenizer.encode_batch_fast(words, add_special_tokens=False))
        for dialogue in some:
            tokens: list[int] = []
            mask: list[int] = []
            for _ in dialogue:
                asked, answered = next(encoded).ids, next(encoded).ids
                tokens.extend([user, *asked, assistant, *answered, end])
                mask.extend([0] * (len(asked) + 2) + [1] * (len(answered) + 1))
            yield tokens, mask
