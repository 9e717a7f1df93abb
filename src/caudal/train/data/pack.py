"""Dialogues as samples of a fixed length: whole ones side by side, and which words count.

Knows nothing of words, nor of files.
"""

from __future__ import annotations

import numpy as np

from caudal.train.data.vocabulary import Mask, Tokens


class Packer:
    """Rows of `length` tokens, of which `take` hands out those that are full. A dialogue that does not fit a row's
    rest begins the next row; one that is longer than a row is cut. What stays free is filled with `end`, which does
    not count."""

    def __init__(self, length: int, end: int) -> None:
        self._length, self._end = length, end
        self._full: list[tuple[Tokens, Mask]] = []
        self._begin()

    def add(self, tokens: Tokens, mask: Mask) -> None:
        """Place a dialogue."""
        tokens, mask = tokens[: self._length], mask[: self._length]
        if self._used and self._used + len(tokens) > self._length:
            self.flush()
        self._tokens[self._used : self._used + len(tokens)] = tokens
        self._mask[self._used : self._used + len(tokens)] = mask
        self._used += len(tokens)

    def flush(self) -> None:
        """End the row that is begun, if there is one."""
        if self._used:
            self._full.append((self._tokens, self._mask))
            self._begin()

    def take(self) -> list[tuple[Tokens, Mask]]:
        """The full rows that were not taken yet: tokens, and 1 where one is the assistant's word or its end."""
        taken, self._full = self._full, []
        return taken

    def _begin(self) -> None:
        self._tokens = np.full(self._length, self._end, np.uint32)
        self._mask = np.zeros(self._length, np.uint8)
        self._used = 0
