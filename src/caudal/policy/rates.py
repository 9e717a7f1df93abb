"""What was used in the last minute: a sliding sum in buckets of a second. Knows nothing of keys.

A bucket counts until every moment in it is more than a minute ago, so the sum is never too small: a limit that
is held against it holds over any sliding minute. It is too large by up to a second's worth.
"""

from __future__ import annotations

from collections import deque
from math import floor, inf

WINDOW_S = 60
COUNTS_S = WINDOW_S + 1  # from the beginning of its second


class SlidingMinute:
    """At most 61 buckets, whatever the rate. Times only rise, but for `take_back`'s."""

    __slots__ = ("_buckets", "total")

    def __init__(self) -> None:
        self._buckets: deque[list[int]] = deque()  # [second, amount]
        self.total = 0  # at least what counts: what is too old may be in it still

    def used(self, now: float) -> int:
        """What was added within the last minute."""
        buckets = self._buckets
        while buckets and buckets[0][0] + COUNTS_S <= now:
            self.total -= buckets.popleft()[1]
        return self.total

    def add(self, now: float, amount: int) -> None:
        """Count an amount."""
        self.count(now, floor(now), amount)

    def count(self, now: float, second: int, amount: int) -> None:
        """The same for who has the whole second already."""
        buckets = self._buckets
        if buckets and buckets[-1][0] == second:
            buckets[-1][1] += amount
        else:
            self.used(now)
            buckets.append([second, amount])
        self.total += amount

    def take_back(self, at: float, amount: int) -> None:
        """Uncount what was added at `at` (nothing, where that is forgotten already)."""
        second = floor(at)
        for bucket in reversed(self._buckets):
            if bucket[0] == second:
                amount = min(amount, bucket[1])
                bucket[1] -= amount
                self.total -= amount
                return

    def wait_s(self, now: float, amount: int, limit: int) -> float:
        """Seconds until an amount fits below the limit; 0 where it does now, inf where it never will."""
        if self.total + amount <= limit:
            return 0.0  # also with what is over a minute old, and not yet dropped
        if amount > limit:
            return inf
        excess = self.used(now) + amount - limit
        if excess <= 0:
            return 0.0
        for second, counted in self._buckets:
            excess -= counted
            if excess <= 0:
                return second + COUNTS_S - now
        raise AssertionError("the buckets hold what the total says")

    def standing(self, now: float) -> tuple[int, float]:
        """What was added within the last minute, and seconds until nothing of it counts any more."""
        buckets = self._buckets
        if not buckets:
            return 0, 0.0
        if buckets[0][0] + COUNTS_S <= now:
            self.used(now)
        return self.total, buckets[-1][0] + COUNTS_S - now if buckets else 0.0
