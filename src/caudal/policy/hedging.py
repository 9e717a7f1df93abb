"""Whether to ask a second replica because the first one is slow to begin: off unless asked for, and never for more
than a few of a hundred requests. Pure: it is told what happened and decides.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MAX_SHARE = 0.1
"""More second requests than this would be load, not a remedy for it."""

SAMPLES = 256
MIN_SAMPLES = 20
"""Before so many first tokens were seen nothing is slow."""


@dataclass(frozen=True, slots=True)
class HedgeRules:
    """`share` is the most of all requests that may be asked twice (0: hedging is off); `burst` how many at once
    may be, after a calm. `min_wait_s`: what is faster than this is never slow."""

    share: float = 0.0
    burst: float = 2.0
    quantile: float = 0.95
    min_wait_s: float = 0.02


class Hedger:
    """The times to the first token of one model, and the allowance for second requests."""

    def __init__(self, rules: HedgeRules) -> None:
        self.on = bool(rules.share)
        self._rules = rules
        self._seen: deque[float] = deque(maxlen=SAMPLES)
        self._news = 0
        self._slow_s: float | None = None
        self._allowance = 0.0

    def asked(self) -> None:
        """A request is sent."""
        self._allowance = min(self._rules.burst, self._allowance + self._rules.share)

    def first_token(self, after_s: float) -> None:
        """A request's first token came after so long."""
        self._seen.append(after_s)
        self._news += 1

    def wait_s(self) -> float | None:
        """How long to wait for a first token before a second replica may be asked: the quantile of those that
        were seen; None where there is nothing to go by, or hedging is off."""
        if not self._rules.share or len(self._seen) < MIN_SAMPLES:
            return None
        if self._slow_s is None or self._news >= MIN_SAMPLES:
            self._news = 0
            ranked = sorted(self._seen)
            self._slow_s = ranked[min(len(ranked) - 1, int(self._rules.quantile * len(ranked)))]
        return max(self._rules.min_wait_s, self._slow_s)

    def hedge_now(self, elapsed_s: float) -> bool:
        """Whether to ask a second replica now; one that is asked is taken off the allowance."""
        slow_s = self.wait_s()
        if slow_s is None or elapsed_s < slow_s or self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def did_not(self) -> None:
        """There was no second replica to ask."""
        self._allowance += 1.0
