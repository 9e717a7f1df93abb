"""Virtual time: a heap of events and the clock that they move. Knows nothing about fleets.

Events at the same moment run in the order in which they were scheduled. `sleep` lets the rest of the world
go on: what is due runs inside it, so a slow call of one control process meets the steps of another.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

START = 1_700_000_000.0
"""When every simulation begins, in seconds since 1970: far from zero, so that nobody mistakes a time for a
duration."""


def _nothing() -> None:
    return None


class Kernel:
    """Implements `ports.Clock`; `after_event` is called after each event."""

    def __init__(self, start: float = START) -> None:
        self.after_event: Callable[[], None] = _nothing
        self.events_run = 0
        self._start = start
        self._now = start
        self._sequence = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def now(self) -> float:
        """Virtual seconds since 1970."""
        return self._now

    def elapsed(self) -> float:
        """Virtual seconds since the simulation began."""
        return self._now - self._start

    def sleep(self, seconds: float) -> None:
        """Return after that long in virtual time, with everything that is due before it done."""
        self.run_until(self._now + seconds)

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run the action that much later (at once, behind what is already due now, for 0)."""
        assert delay_s >= 0, f"an event {delay_s} s in the past"
        self._sequence += 1
        heapq.heappush(self._heap, (self._now + delay_s, self._sequence, action))

    def run_until(self, end: float) -> None:
        """Run everything that is due until then; the clock stands at `end` afterwards (or later, where an
        event itself slept beyond it)."""
        while self._heap and self._heap[0][0] <= end:
            at, _, action = heapq.heappop(self._heap)
            self._now = max(self._now, at)
            action()
            self.events_run += 1
            self.after_event()
        self._now = max(self._now, end)
