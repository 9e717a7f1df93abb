"""How fast a model's replicas are and how long replies get, learnt from what requests took.

Nothing is configured: every number here is a ratio of sums that forget, so that one odd request moves little and
a change of speed is seen within some tens of requests. Knows nothing of queues, classes' names or keys.
"""

from __future__ import annotations

from math import exp, inf, log, sqrt

MEMORY = 0.98
"""What a sum keeps at each observation: the last fifty or so count."""

PROMPT_OVERHEAD_TOKENS = 8
"""What a request costs besides its prompt, so that empty prompts are not free."""

TYPICAL_REPLY_TOKENS = 256.0
"""What a reply is taken to be before any was seen."""

SAME_BATCH = 0.1
"""A first token that came after less than this share of the time that the one before took was read together with it."""

REPLY_QUANTILE = 0.6
SHORTER = REPLY_QUANTILE - 1
LEARNING_RATE = 0.15
SETTLING = 1.0
"""The first steps of a quantile's estimate are so much larger: 256 is far from most truths."""

CAUTION = 1.4
"""How many times the expected wait a request must be able to bear, before it is known how good expectations are."""

DEVIATIONS = 1.2
CAUTION_MEMORY = 0.97
LEAST_CAUTION, MOST_CAUTION = 0.7, 1.5
"""Caution is e to the mean of log(took / expected) and so many of its deviations; the last thirty or so waits count.
Measured at three times the load (two replicas, promises of 2 s, bench/admission_sim.py): with 0.5, 5 to 7 % of refusals came
after a wait, with 1.2, 1.5 % on Azure's trace and 3 to 5 % in bursts, with 1.5, 1 and 2 to 3 %; goodput on Azure's trace was
0.699, 0.691 and 0.690 of what can be carried, in bursts the same. Where caution could go to 2.0 it did so in bursts, and
queues got too short for the pauses between them."""

LOST = log(MOST_CAUTION)
"""What counts for a request that waited in vain; and a wait counts as e times longer or shorter at most."""

UNSEEN = 4.0
"""So many waits is the first caution worth."""


class Ratio:
    """Sum over sum, both forgetting."""

    __slots__ = ("_above", "_below")

    def __init__(self) -> None:
        self._above = 0.0
        self._below = 0.0

    def see(self, above: float, below: float) -> float:
        """Take up an observation; returns the ratio."""
        self._above = above = self._above * MEMORY + above
        self._below = below = self._below * MEMORY + below
        return above / below if below else 0.0

    @property
    def value(self) -> float:
        """The ratio; 0 while nothing was seen."""
        return self._above / self._below if self._below else 0.0


class ReplyLength:
    """A quantile of reply lengths in tokens, by steps on their logarithm: a step up where one was longer, down
    where it was shorter, in the proportion that balances at the quantile."""

    __slots__ = ("_log", "seen", "tokens")

    def __init__(self, start: float = TYPICAL_REPLY_TOKENS) -> None:
        self._log = log(start)
        self.tokens = exp(self._log)  # the estimate
        self.seen = 0

    def see(self, tokens: int) -> None:
        """Take up a reply."""
        self.seen = seen = self.seen + 1
        before = self._log
        longer = (log(tokens) if tokens > 1 else 0.0) > before
        after = before + (LEARNING_RATE + SETTLING / seen) * (REPLY_QUANTILE if longer else SHORTER)
        self._log = after if after > 0.0 else 0.0
        self.tokens = exp(self._log)


class Pace:
    """A model's speed, as its requests saw it.

    `prompt_s`: seconds that one replica takes for each prompt token while it has any to read. `work_s`: seconds for
    which a slot is held, for each token of predicted work. `reply_s`: seconds for each predicted token of a reply
    behind its first one. All 0 while nothing was seen. Ratios to what was *predicted* put right what predictions
    get wrong on average.
    """

    __slots__ = (
        "_batch_s",
        "_batch_tokens",
        "_prompt",
        "_reply",
        "_work",
        "mean_work",
        "prompt_s",
        "reply_s",
        "work_s",
    )

    def __init__(self) -> None:
        self._prompt = Ratio()
        self._work = Ratio()
        self._reply = Ratio()
        self._batch_s, self._batch_tokens = 0.0, 0  # of the last one, which may not be over
        self.prompt_s = self.work_s = self.reply_s = 0.0
        self.mean_work = 0.0

    def read(self, busy_s: float, tokens: int) -> None:
        """A prompt of so many tokens was read; replicas were busy for so long (all together) since the one before.
        Of prompts that are read in one batch the first has all of the time, the others none: so it is the busy
        time that is counted, not each prompt's own, and a batch counts when it is over."""
        if busy_s > SAME_BATCH * self._batch_s:
            if self._batch_tokens:
                self._prompt.see(self._batch_s, self._batch_tokens)
            self._batch_s, self._batch_tokens = busy_s, tokens
        else:
            self._batch_s += busy_s
            self._batch_tokens += tokens
        self.prompt_s = self._prompt.value or self._batch_s / self._batch_tokens

    def ended(self, held_s: float, work: float, decode_s: float, predicted_reply: int) -> None:
        """A request ended well. `decode_s` 0: not known."""
        self.work_s = self._work.see(held_s, work)
        self.mean_work = work if not self.mean_work else 0.95 * self.mean_work + 0.05 * work
        if decode_s:
            self.reply_s = self._reply.see(decode_s, predicted_reply)


class Caution:
    """How many times longer than expected a wait may turn out, from how it went with those before."""

    __slots__ = ("_count", "_squares", "_sum", "value")

    def __init__(self) -> None:
        first = log(CAUTION)
        self._count, self._sum, self._squares = UNSEEN, UNSEEN * first, UNSEEN * first * first
        self.value = CAUTION

    def see(self, expected_s: float, took_s: float) -> None:
        """A request that waited was expected to have its first token after so long, and had it after so long
        (infinity: never)."""
        ratio = took_s / expected_s
        wrong = LOST if ratio == inf else max(-1.0, min(1.0, log(ratio))) if ratio > 0.0 else -1.0
        self._count = self._count * CAUTION_MEMORY + 1
        self._sum = self._sum * CAUTION_MEMORY + wrong
        self._squares = self._squares * CAUTION_MEMORY + wrong * wrong
        mean = self._sum / self._count
        deviation = sqrt(max(0.0, self._squares / self._count - mean * mean))
        self.value = min(MOST_CAUTION, max(LEAST_CAUTION, exp(mean + DEVIATIONS * deviation)))


class Window:
    """How many requests a model's replicas get at once: their slots, fewer while that makes each of them slower
    than was promised, never below a quarter (where fewer do not help either, the machine is what is slow).

    Rises by one for each window of requests that kept the promise, falls by a tenth at most once a window.
    """

    __slots__ = ("_limit", "_until", "limit", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._until = 0
        self._set(float(slots))

    def _set(self, limit: float) -> None:
        self._limit = limit
        self.limit = max(1, int(limit))  # requests at once

    def resize(self, slots: int) -> None:
        """Replicas came or went: the share that was found to be good stays."""
        self._set(max(1.0, self._limit * slots / self.slots) if self.slots else float(slots))
        self.slots = slots

    def see(self, per_token_s: float, promised_s: float, running: float) -> None:
        """An answer took so long for each token, where so many ran meanwhile (in the mean)."""
        self._until -= 1
        if per_token_s > promised_s:
            if self._until <= 0:
                self._set(max(1.0, self.slots / 4, min(self._limit, running) * 0.9))
                self._until = self.limit
        elif running >= 0.8 * self._limit:
            self._set(min(float(self.slots), self._limit + 1.0 / self._limit))
