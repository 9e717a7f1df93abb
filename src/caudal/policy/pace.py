"""How fast a model's replicas are and how long replies get, learnt from what requests took.

Nothing is configured: every number here is a ratio of sums that forget, so that one odd request moves little and
a change of speed is seen within some tens of requests. Knows nothing of queues, classes' names or keys.
"""

from __future__ import annotations

import math

MEMORY = 0.98
"""What a sum keeps at each observation: the last fifty or so count."""

PROMPT_OVERHEAD_TOKENS = 8
"""What a request costs besides its prompt, so that empty prompts are not free."""

TYPICAL_REPLY_TOKENS = 256.0
"""What a reply is taken to be before any was seen."""

REPLY_QUANTILE = 0.6
LEARNING_RATE = 0.15
SETTLING = 1.0
"""The first steps of a quantile's estimate are so much larger: 256 is far from most truths."""


class Ratio:
    """Sum over sum, both forgetting."""

    __slots__ = ("_above", "_below")

    def __init__(self) -> None:
        self._above = 0.0
        self._below = 0.0

    def see(self, above: float, below: float) -> None:
        """Take up an observation."""
        self._above = self._above * MEMORY + above
        self._below = self._below * MEMORY + below

    @property
    def value(self) -> float:
        """The ratio; 0 while nothing was seen."""
        return self._above / self._below if self._below else 0.0


class ReplyLength:
    """A quantile of reply lengths in tokens, by steps on their logarithm: a step up where one was longer, down
    where it was shorter, in the proportion that balances at the quantile."""

    __slots__ = ("_log", "seen")

    def __init__(self, start: float = TYPICAL_REPLY_TOKENS) -> None:
        self._log = math.log(start)
        self.seen = 0

    def see(self, tokens: int) -> None:
        """Take up a reply."""
        rate = LEARNING_RATE + SETTLING / (1 + self.seen)
        self.seen += 1
        longer = math.log(max(1, tokens)) > self._log
        self._log += rate * (REPLY_QUANTILE if longer else REPLY_QUANTILE - 1)
        self._log = max(0.0, self._log)

    @property
    def tokens(self) -> float:
        """The estimate."""
        return math.exp(self._log)


class Pace:
    """A model's speed, as its requests saw it.

    `prompt_s`: seconds to the first token for each prompt token that one replica had still to read, those of
    others ahead included. `work_s`: seconds for which a slot is held, for each token of predicted work. `reply_s`:
    seconds for each predicted token of a reply behind its first one. All 0 while nothing was seen. Ratios to
    what was *predicted* put right what predictions get wrong on average.
    """

    __slots__ = ("_deviation", "_prompt", "_reply", "_work", "mean_work", "prompt_s", "reply_s", "work_s")

    def __init__(self) -> None:
        self._prompt = Ratio()
        self._work = Ratio()
        self._reply = Ratio()
        self._deviation = Ratio()
        self.prompt_s = self.work_s = self.reply_s = 0.0
        self.mean_work = 0.0

    def first_token(self, seconds: float, tokens_per_replica: float) -> None:
        """A first token came so long after its request was started, with so much to read at that moment."""
        if self.prompt_s:
            self._deviation.see(max(0.0, seconds - self.prompt_s * tokens_per_replica), seconds)
        self._prompt.see(seconds, tokens_per_replica)
        self.prompt_s = self._prompt.value

    def ended(self, held_s: float, work: float, decode_s: float, predicted_reply: int) -> None:
        """A request ended well. `decode_s` 0: not known."""
        self._work.see(held_s, work)
        self.work_s = self._work.value
        self.mean_work = work if not self.mean_work else 0.95 * self.mean_work + 0.05 * work
        if decode_s:
            self._reply.see(decode_s, predicted_reply)
            self.reply_s = self._reply.value

    @property
    def lateness(self) -> float:
        """By which share of itself a time to the first token exceeds its estimate, on average over all (those
        that came early count as 0)."""
        return self._deviation.value


class Window:
    """How many requests a model's replicas get at once: their slots, fewer while that makes each of them slower
    than was promised, never below a quarter (where fewer do not help either, the machine is what is slow).

    Rises by one for each window of requests that kept the promise, falls by a tenth at most once a window.
    """

    __slots__ = ("_limit", "_room", "_until", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._limit = float(slots)
        self._until = 0

    @property
    def limit(self) -> int:
        """Requests at once."""
        return max(1, int(self._limit))

    def resize(self, slots: int) -> None:
        """Replicas came or went: the share that was found to be good stays."""
        self._limit = max(1.0, self._limit * slots / self.slots) if self.slots else float(slots)
        self.slots = slots

    def see(self, per_token_s: float, promised_s: float, running: int) -> None:
        """An answer took so long for each token, where so many ran."""
        self._until -= 1
        if per_token_s > promised_s:
            if self._until <= 0:
                self._limit = max(1.0, self.slots / 4, min(self._limit, running) * 0.9)
                self._until = self.limit
        elif running >= 0.8 * self._limit:
            self._limit = min(float(self.slots), self._limit + 1.0 / self._limit)
