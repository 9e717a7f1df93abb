"""A model's replicas in virtual time for tests of admission: each request reads its prompt and then replies, a slot
each; and a record of what was said of every request."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from caudal.domain.key import KeyLimits, Slo
from caudal.policy.admission import Admission
from caudal.policy.admission_types import Admit, Ask, Effect, Outcome, Park, Refuse
from caudal.policy.slo import Promise, SloTargets

PROMPT_S = 0.001
REPLY_S = 0.01
TICK_S = 0.05
TARGETS = SloTargets(Promise(2.0), Promise(10.0), Promise(600.0))


@dataclass
class World:
    """`slots` at `replicas`; a slot reads a prompt token in PROMPT_S and says one in REPLY_S."""

    slots: int = 4
    replicas: int = 1
    share: int = 1
    targets: SloTargets = TARGETS
    now: float = 0.0
    asks: dict[int, Ask] = field(default_factory=dict)
    replies: dict[int, int] = field(default_factory=dict)
    asked_at: dict[int, float] = field(default_factory=dict)
    parked: set[int] = field(default_factory=set)
    admitted: dict[int, float] = field(default_factory=dict)
    refused: dict[int, tuple[float, Refuse]] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    first_at: dict[int, float] = field(default_factory=dict)
    ended_at: dict[int, float] = field(default_factory=dict)
    most_running: int = 0

    def __post_init__(self) -> None:
        self.admission = Admission(self.targets, share=self.share)
        self.admission.capacity(0.0, "m", self.replicas, self.slots)
        self._events: list[tuple[float, int, str]] = []
        self._tick_at = 0.0

    def ask(
        self,
        key: str = "k",
        slo: Slo = Slo.INTERACTIVE,
        limits: KeyLimits | None = None,
        prompt: int = 100,
        reply: int = 50,
        bound: int = 0,
        stream: bool = True,
        deadline_s: float = 0.0,
    ) -> int:
        """A request arrives now; its id."""
        id_ = len(self.asks)
        deadline_at = self.now + deadline_s if deadline_s else 0.0
        ask = Ask(id_, key, limits or KeyLimits(), slo, "m", prompt, bound, stream, deadline_at)
        self.asks[id_], self.replies[id_] = ask, reply
        self.asked_at[id_] = self.now
        self.carry_out([self.admission.arrive(self.now, ask)])
        return id_

    def leave(self, id_: int) -> None:
        """A waiting request's client goes."""
        self.admission.leave(self.now, id_)
        self.parked.discard(id_)
        self.left.add(id_)

    def run_until(self, when: float) -> None:
        """Let time pass."""
        while True:
            tick_at = self._tick_at + TICK_S
            event_at = self._events[0][0] if self._events else float("inf")
            if min(tick_at, event_at) > when:
                break
            if event_at <= tick_at:
                self.now, id_, what = heapq.heappop(self._events)
                if what == "first":
                    self.first_at[id_] = self.now
                    self.carry_out(self.admission.first_token(self.now, id_))
                else:
                    self.ended_at[id_] = self.now
                    self.carry_out(self.admission.end(self.now, id_, self.replies[id_]))
            else:
                self.now = self._tick_at = tick_at
                self.carry_out(self.admission.tick(self.now))
        self.now = when

    def carry_out(self, effects: Iterable[Effect | Outcome]) -> None:
        """What was decided happens; every request is told once, and parked before that at most."""
        for effect in effects:
            id_ = effect.id
            assert id_ not in self.admitted and id_ not in self.refused and id_ not in self.left
            if isinstance(effect, Park):
                assert id_ not in self.parked
                self.parked.add(id_)
                continue
            self.parked.discard(id_)
            if isinstance(effect, Refuse):
                self.refused[id_] = self.now, effect
                continue
            assert isinstance(effect, Admit)
            self.admitted[id_] = self.now
            first_at = self.now + PROMPT_S * self.asks[id_].prompt_tokens
            if self.asks[id_].stream:
                heapq.heappush(self._events, (first_at, id_, "first"))
            heapq.heappush(self._events, (first_at + REPLY_S * self.replies[id_], id_, "end"))
            self.most_running = max(self.most_running, len(self.admitted) - len(self.ended_at))

    def tokens_by_key(self, since: float = 0.0, until: float = float("inf")) -> Counter[str]:
        """Work that was admitted, in tokens."""
        found: Counter[str] = Counter()
        for id_, at in self.admitted.items():
            if since <= at < until:
                found[self.asks[id_].key] += self.asks[id_].prompt_tokens + 2 * self.replies[id_]
        return found
