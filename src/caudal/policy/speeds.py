"""What a replica does in a second, from what its gateway sees of it. Pure: its owner says what happened and when.

Tokens per second of all requests together, over the time in which it had any. A replica with one request does
less than it could, so an observation below the estimate counts by how full its slots were, one above it in full.
"""

from __future__ import annotations

from math import exp

WINDOW_S = 1.0
WINDOW_ANSWERS = 4
WINDOW_MAX_S = 10.0
TAU_S = 10.0
"""Busy seconds after which an old estimate weighs a third."""

PREFILL_WEIGHT = 0.2
PREFILL_MIN_TOKENS = 64
"""The first token to shorter prompts says more of the network than of the replica."""


class Speed:
    """One replica's. `tokens_per_s` and `prefill_per_s` are 0 until something was measured."""

    __slots__ = (
        "_answers",
        "_at",
        "_busy_s",
        "_own",
        "_requests",
        "_served",
        "_total",
        "prefill_per_s",
        "tokens_per_s",
    )

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        self.prefill_per_s = 0.0
        self._at = 0.0
        self._reset()

    def passed(self, now: float, requests: int, tokens: float, others: float) -> None:
        """So many requests and tokens of this gateway, and tokens of others, were there since the last call.
        Called before each change of them."""
        passed_s = now - self._at
        self._at = now
        if requests and passed_s > 0:
            self._busy_s += passed_s
            self._requests += requests * passed_s
            self._own += tokens * passed_s
            self._total += (tokens + others) * passed_s

    def served(self, tokens: int, slots: int) -> bool:
        """An answer is over, with prompt and reply of so many tokens; whether the estimate changed."""
        self._served += tokens
        self._answers += 1
        enough = self._busy_s >= WINDOW_S and self._answers >= WINDOW_ANSWERS
        if not enough and self._busy_s < WINDOW_MAX_S:
            return False
        shared = self._total / self._own if self._own > 0 else 1.0
        seen = self._served / self._busy_s * shared
        if not self.tokens_per_s:
            self.tokens_per_s = seen
        else:
            weight = 1.0 - exp(-self._busy_s / TAU_S)
            if seen < self.tokens_per_s and slots:
                weight *= min(1.0, self._requests / self._busy_s / slots)
            self.tokens_per_s += weight * (seen - self.tokens_per_s)
        self._reset()
        return True

    def first_token(self, prompt_tokens: int, after_s: float) -> None:
        """The first token came, to a request that found a free slot."""
        if prompt_tokens < PREFILL_MIN_TOKENS or after_s <= 0:
            return
        seen = prompt_tokens / after_s
        if self.prefill_per_s:
            self.prefill_per_s += PREFILL_WEIGHT * (seen - self.prefill_per_s)
        else:
            self.prefill_per_s = seen

    def _reset(self) -> None:
        self._busy_s = self._requests = self._own = self._total = 0.0
        self._served = self._answers = 0
