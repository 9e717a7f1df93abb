"""Who is next among the keys that wait: weighted virtual time over tokens (start-time fair queueing).

Every key has a line; its tag is the virtual time at which it may be served next and moves on by work / weight
with each request that is taken. The line with the smallest tag is next. A key that comes back after a pause
starts at the present virtual time: what it did not use is gone, what others have is not touched. All O(log n).
Knows nothing of replicas, classes or limits.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from caudal.policy.admission_types import Ask

MIN_WEIGHT = 1e-6


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in a line. `reply_tokens` and `work` (in tokens) are as predicted; `latest_at` is when its start
    is too late, `expected_s` how long its first token is expected to take."""

    ask: Ask
    reply_tokens: int
    work: float
    arrived_at: float
    latest_at: float
    expected_s: float = 0.0
    gone: bool = False

    @property
    def key(self) -> str:
        """Whose it is."""
        return self.ask.key


@dataclass(slots=True, eq=False)
class _Line:
    weight: float
    tag: float = 0.0
    work: float = 0.0
    count: int = 0
    waiting: deque[Waiting] = field(default_factory=deque)
    held: bool = False  # its key may have no more at once


class FairQueue:
    """The requests of one class for one model. `newest_first` turns the order within a key's line around."""

    def __init__(self, newest_first: bool = False) -> None:
        self.count = 0
        self.work = 0.0
        self.prompt_tokens = 0
        self.weight = 0.0  # of the keys that wait
        self._newest_first = newest_first
        self._time = 0.0
        self._lines: dict[str, _Line] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._serial = 0

    def push(self, item: Waiting) -> None:
        """Take a request in, at its key's end."""
        line = self._lines.get(item.key)
        if line is None:
            line = self._lines[item.key] = _Line(max(item.ask.limits.weight, MIN_WEIGHT))
        if not line.count:
            line.weight = max(item.ask.limits.weight, MIN_WEIGHT)
            line.tag = max(line.tag, self._time)
            self.weight += line.weight
            self._enter(item.key, line)
        line.waiting.append(item)
        line.count += 1
        line.work += item.work
        self.count += 1
        self.work += item.work
        self.prompt_tokens += item.ask.prompt_tokens

    def pop(self, may: Callable[[str], bool]) -> Waiting | None:
        """The next request, of a key that may have one more; None where there is none."""
        while self._heap:
            tag, _, key = heapq.heappop(self._heap)
            line = self._lines.get(key)
            if line is None or not line.count or line.tag != tag or line.held:
                continue  # an old entry: the line moved on, or is empty
            if not may(key):
                line.held = True
                continue
            item = self._take(line)
            self._time = max(self._time, tag)
            line.tag = tag + item.work / line.weight
            self._left(item, line)
            if line.count:
                self._enter(key, line)
            return item
        return None

    def remove(self, item: Waiting) -> None:
        """A waiting request leaves without being served."""
        assert not item.gone
        item.gone = True
        line = self._lines[item.key]
        self._left(item, line)
        if len(line.waiting) > 2 * line.count + 16:
            line.waiting = deque(w for w in line.waiting if not w.gone)

    def free(self, key: str) -> bool:
        """The key may have one more again; whether that was what it waited for."""
        line = self._lines.get(key)
        if line is None or not line.held:
            return False
        line.held = False
        line.tag = max(line.tag, self._time)
        self._enter(key, line)
        return True

    def uncharge(self, item: Waiting) -> None:
        """What `pop` gave is not served."""
        self.correct(item.key, -item.work)

    def correct(self, key: str, work: float) -> None:
        """A request that was taken needed so much more work than was predicted (less, if negative)."""
        line = self._lines.get(key)
        if line is None:
            return
        line.tag = max(self._time, line.tag + work / line.weight)
        if line.count:
            if not line.held:
                self._enter(key, line)
        elif line.tag <= self._time:
            del self._lines[key]

    def ahead(self, key: str, weight: float) -> float:
        """Work that comes before another request of this key: all of it, or its own over its share, if less."""
        line = self._lines.get(key)
        own = line.work if line is not None and line.count else 0.0
        mine = max(weight, MIN_WEIGHT)
        total = self.weight if own else self.weight + mine
        return min(self.work, own * total / mine)

    def others(self, key: str) -> bool:
        """Whether another key waits, too."""
        line = self._lines.get(key)
        return self.count > (line.count if line is not None else 0)

    def prune(self) -> None:
        """Forget keys that wait for nothing and owe nothing."""
        for key in [k for k, line in self._lines.items() if not line.count and line.tag <= self._time]:
            del self._lines[key]

    def lines(self) -> Iterator[tuple[float, list[Waiting]]]:
        """Each key's share of the whole and its requests, in the order in which they will be served."""
        for line in self._lines.values():
            if line.count:
                ordered = [w for w in line.waiting if not w.gone]
                if self._newest_first:
                    ordered.reverse()
                yield line.weight / self.weight, ordered

    def _enter(self, key: str, line: _Line) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (line.tag, self._serial, key))
        if len(self._heap) > 4 * len(self._lines) + 64:
            live = [(w.tag, k) for k, w in self._lines.items() if w.count and not w.held]
            self._heap = [(tag, number, k) for number, (tag, k) in enumerate(live)]
            heapq.heapify(self._heap)

    def _take(self, line: _Line) -> Waiting:
        while True:
            item = line.waiting.pop() if self._newest_first else line.waiting.popleft()
            if not item.gone:
                return item

    def _left(self, item: Waiting, line: _Line) -> None:
        line.count -= 1
        line.work -= item.work
        self.count -= 1
        self.work -= item.work
        self.prompt_tokens -= item.ask.prompt_tokens
        if not line.count:
            line.work = 0.0
            line.waiting.clear()
            line.held = False
            self.weight -= line.weight
        if not self.count:
            self.work = self.weight = 0.0
