"""How a run's words become tokens: what every vocabulary can do.

Knows nothing of where texts come from, nor of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from caudal.train.sources.base import Message

Tokens = NDArray[np.uint32]
Mask = NDArray[np.uint8]


class Vocabulary(Protocol):
    """What turns words into tokens. The same words give the same tokens on every machine."""

    size: int
    """One more than the largest token."""

    end: int
    """The token between documents."""

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Each text's tokens, without any at its beginning or end that stand for no words."""
        ...

    def dialogue(self, messages: Sequence[Message]) -> tuple[Tokens, Mask]:
        """A conversation as the model sees it, and 1 where a token is the assistant's word or its end."""
        ...

    def dialogues(self, several: Sequence[Sequence[Message]]) -> list[tuple[Tokens, Mask]]:
        """`dialogue` of each, on all cores at once. Raises DataError where the vocabulary knows no dialogues."""
        ...

    def files(self) -> dict[str, bytes]:
        """What belongs beside the data, by name: `tokenizer.json`, and what else says how it is used."""
        ...
