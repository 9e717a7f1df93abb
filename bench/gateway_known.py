"""What a scheduler could do at the peak that knows everything: a reference beside the fluid bound of gateway_overload.

It knows the state of each replica (`gateway_mock.Batch`: fixed steps, a budget of prompt tokens in each, slots), every
prompt's length and every answer's. It runs each replica ahead in its head and takes at once whatever will have its first
token in time; what would be late it refuses. In virtual time, with no request of another class in the way. Nobody in front
of real replicas knows as much; what it misses of the fluid bound, the bound has too much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Known:
    """One replica in virtual time. Of a request: [unread tokens, tokens of its answer that are to come]."""

    slots: int
    budget: int
    step_s: float
    waiting: deque[list[int]] = field(default_factory=deque)
    running: list[list[int]] = field(default_factory=list)
    at: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether it has anything to do."""
        return bool(self.running or self.waiting)

    def take(self, now: float, prompt: int, tokens: int) -> None:
        """One more request, at the end of its line."""
        if not self.busy:
            self.at = now
        self.waiting.append([prompt, tokens])

    def advance(self, now: float) -> None:
        """All steps that end until then."""
        while self.busy and self.at + self.step_s <= now:
            self.at += self.step_s
            self.step()

    def step(self) -> None:
        """As `gateway_mock.Batch.step`: the first token comes in the step after the one that ends its prompt."""
        while self.waiting and len(self.running) < self.slots:
            self.running.append(self.waiting.popleft())
        left = self.budget
        for request in self.running:
            if request[0]:
                read = min(request[0], left)
                request[0] -= read
                left -= read
            else:
                request[1] -= 1
        self.running = [request for request in self.running if request[1] > 0]

    def first_at(self, now: float, prompt: int, until: float) -> float:
        """When the first token of one more request would come; anything after `until` where it is later than that."""
        ahead = Known(self.slots, self.budget, self.step_s, at=self.at if self.busy else now)
        ahead.waiting = deque(list(request) for request in self.waiting)
        ahead.running = [list(request) for request in self.running]
        mine = [prompt, 2]
        ahead.waiting.append(mine)
        while mine[1] == 2 and ahead.at <= until:
            ahead.at += self.step_s
            ahead.step()
        return ahead.at


def known(
    arrivals: Iterable[tuple[float, int, int]],
    replicas: int,
    slots: int,
    prefill: float,
    decode: float,
    first_s: float,
) -> int:
    """Prompt tokens of the requests (at, prompt, tokens) that it answers with the first token within `first_s`.
    `prefill`: prompt tokens a second of one replica; `decode`: its steps a second."""
    fleet = [Known(slots, int(prefill / decode), 1 / decode) for _ in range(replicas)]
    kept = 0
    for at, prompt, tokens in arrivals:
        for replica in fleet:
            replica.advance(at)
        until = at + first_s
        first_at, chosen = min((replica.first_at(at, prompt, until), i) for i, replica in enumerate(fleet))
        if first_at <= until:
            fleet[chosen].take(at, prompt, tokens)
            kept += prompt
    return kept
