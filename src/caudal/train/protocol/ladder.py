"""How many inner steps a round has: few while the model is young, then as many as the network asks for.

A ladder of rungs. Below `sync_fraction` of the tokens sites agree after every step, on gradients where the spec says so:
those are always waited for, so that part is shorter where the link is slow (`Part`). Then the rung climbs by
doubling to the spec's `inner_steps`. Beyond that only the network moves it: up where sites wait for updates
for more than `wait_share` of their time, down again where updates are back long before the round is over.
A loss that rises halves it. Every change says why.

What a rung means grows as the learning rate falls: what sites drift apart within a round goes with the square of
their steps' length, so that rounds may be longer by 1/rate² (Gu et al., arXiv 2310.14423), and what is spent on the wire
is spent where it counts. Pure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from caudal.domain.workload import OuterSpec
from caudal.train.ledger import Entry
from caudal.train.protocol.rules import Tempo

WINDOW = 8
"""Rounds on one rung after which its waiting and its loss are judged."""

LONG_ROUNDS = 3
"""Rounds after which waiting is judged where each of them waited for LONG times the share that is allowed."""

LONG = 5.0
ROOM = 1.1
"""Of so much more computing than would fill the time that sites wait."""

CLIMB_ROUNDS = 4
"""Rounds on one rung between the end of the warm-up and the spec's `inner_steps`."""

RISEN = 1.05
"""A window's mean loss, over the best window's of the stage, at which the rung is halved."""

RISEN_NATS = 0.02
"""And so much more at least: the loss of a model that knows its data by heart goes up and down by half."""

HOLD_ROUNDS = 64
"""So long a rung that was halved for the loss is not raised again."""

GROWN = 32
"""A round is never more than so many times the spec's `inner_steps` because of the rate."""

EARLY = 0.4
"""Updates that are applied before this part of a round leave room for a shorter one."""


@dataclass(slots=True)
class Part:
    """The part of a run in which sites agree on gradients, each of which they wait for. It is a run's first rounds. Over
    `sync_fraction` of the tokens it ends; before that, once it has had the spec's `sync_steps` and waiting in it has cost
    more than `wait_share` of what the *whole run* takes to compute: a step in step is worth more than any later one, and
    its price is known before it is paid."""

    outer: OuterSpec
    steps: int = 0
    over: bool = False
    waited: float = (
        0.0  # of the time that the run takes to compute; what another coordinator saw is not in it
    )
    _done: float = -1.0

    def at(self, done: float) -> bool:
        """Whether the next round is of it."""
        return not self.over and self.outer.sync == "gradients" and done < self.outer.sync_fraction

    def saw(self, done: float, wait_share: float) -> str:
        """A round of it was merged, in which sites waited for this share of their time. Why it ends, where it does."""
        self.steps += 1
        if self._done >= 0:
            self.waited += max(0.0, done - self._done) * wait_share / max(1e-3, 1 - wait_share)
        self._done = done
        if self.steps < self.outer.sync_steps or self.waited <= self.outer.wait_share:
            return ""
        self.over = True
        return f"waiting in step cost {self.waited:.1%} of the run after {self.steps} steps"


@dataclass(slots=True)
class Ladder:
    """The rung and what was seen on it. `rung` starts where the run's last round was."""

    outer: OuterSpec
    rung: int = 1
    why: str = ""
    part: Part = field(init=False)
    _waits: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _backs: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _best: float = math.inf
    _lags: deque[int] = field(default_factory=lambda: deque(maxlen=LONG_ROUNDS + 1))
    _stage: int = -1
    _rounds: int = 0  # on this rung
    _hold: int = 0
    _warm: bool = True

    def __post_init__(self) -> None:
        self.part = Part(self.outer)

    @staticmethod
    def begun(outer: OuterSpec, last: Entry | None) -> Ladder:
        """Behind this round: what it had of steps beyond the spec's was the rate's or the network's, which says so again.
        Where it was not of gradients the part that is has ended, and else all rounds before it were."""
        if last is None:
            return Ladder(outer)
        ladder = Ladder(outer, min(last.inner_steps, outer.inner_steps))
        if outer.sync == "gradients":
            ladder.part = Part(outer, last.round, over=not last.gradients)
        return ladder

    def tempo(self, done: float, cooled: float = 1.0) -> Tempo:
        """How the next round goes, when `done` of the run's tokens are trained and the learning rate is `cooled`
        times its highest. In the warm-up sites average plainly, gradients where a round is one step."""
        outer = self.outer
        waits = self.rung == 1 or not outer.overlap
        if self.part.at(done):
            return Tempo(1, 1.0, 0.0, True, outer.sync_bits, 1, gradients=True)
        if self._in_warm_up(done):
            return Tempo(self.rung, 1.0, 0.0, waits, outer.bits, self.rung)
        steps = self._grown(cooled) if outer.grow and self.rung > 1 else self.rung
        return Tempo(steps, outer.learning_rate, outer.momentum, waits, outer.bits, self.rung)

    def _in_warm_up(self, done: float) -> bool:
        return done < self.outer.sync_fraction and not self.part.over

    def _grown(self, cooled: float) -> int:
        most = max(self.rung, min(GROWN * self.outer.inner_steps, self.outer.max_inner_steps))
        return min(most, round(self.rung / max(1e-3, cooled) ** 2))

    def saw(self, rung: int, stage: int, done: float, wait_share: float, back: float, loss: float) -> None:
        """A round was merged: its sites waited for `wait_share` of their time (the least of all sites: what is
        more is waiting for a slower site), and had applied the update before it after `back` of it."""
        why = self.part.saw(done, wait_share) if self.part.at(done) else ""
        self._warm = self._in_warm_up(done)
        if stage != self._stage:
            self._stage, self._best = stage, math.inf
            self._losses.clear()
        if rung != self.rung:
            return  # leased before the last change
        self._rounds += 1
        self._hold = max(0, self._hold - 1)
        self._waits.append(wait_share)
        self._backs.append(back)
        self._losses.append(loss)
        climbs = not self._warm and not self._hold and self.rung < self.outer.inner_steps
        if climbs and (self.rung == 1 or self._rounds >= CLIMB_ROUNDS):
            self._go(min(self.outer.inner_steps, 2 * self.rung), why or "the warm-up is over")
            return
        if self.part.at(done):
            return  # whatever it costs: `Part` has the last word
        waiting = sum(self._waits) / len(self._waits)
        if len(self._waits) < WINDOW:
            if self._rounds >= LONG_ROUNDS and min(self._waits) > LONG * self.outer.wait_share:
                self._link(waiting)
            return
        mean = math.inf
        if len(self._losses) == WINDOW:
            mean = sum(self._losses) / WINDOW
            if self._hold:
                self._best = mean
            elif mean > RISEN * self._best and mean > self._best + RISEN_NATS and self.rung > 1:
                self._hold = HOLD_ROUNDS
                self._go(max(1, self.rung // 2), f"the loss rose from {self._best:.3f} to {mean:.3f}")
                self._best = mean
                return
            self._best = min(self._best, mean)
        self._link(waiting)

    def joining(self, lags: Sequence[int]) -> None:
        """A round was merged: sites that join are so many rounds behind it. One that does not come nearer gets
        the updates more slowly than they are made: longer rounds make fewer of them."""
        if not lags:
            self._lags.clear()
            return
        self._lags.append(max(lags))
        full = len(self._lags) == self._lags.maxlen
        if full and self._lags[-1] > 1 and self._lags[-1] >= self._lags[0] and self.rung < self._most:
            self._lags.clear()
            self.part.over = self.outer.sync == "gradients"
            self._go(min(self._most, math.ceil(1.5 * self.rung)), "a site that joins does not catch up")

    @property
    def _most(self) -> int:
        return max(self.outer.max_inner_steps, self.outer.inner_steps)

    def _link(self, waiting: float) -> None:
        """What the network asks for."""
        most = self.outer.inner_steps if self._warm else self._most
        least = 1 if self._warm else self.outer.inner_steps
        needed = math.ceil(max(self._backs) * self.rung / 0.6)
        if waiting > self.outer.wait_share:
            if not self._hold and self.rung < most:
                times = min(4.0, max(1.5, ROOM / max(0.01, 1 - waiting)))
                self._go(min(most, math.ceil(times * self.rung)), f"sites waited {waiting:.1%} of their time")
        elif self.rung > least and self.rung > 2 and max(self._backs) < EARLY and needed < self.rung:
            lower = max(least, needed, 2)
            if lower < self.rung:
                self._go(lower, f"updates were back after {max(self._backs):.0%} of a round")

    def _go(self, rung: int, why: str) -> None:
        if rung != self.rung:
            self.why = f"{self.rung} → {rung} inner steps a round: {why}"
        self.rung, self._rounds = rung, 0
        self._forget()

    def _forget(self) -> None:
        self._waits.clear()
        self._backs.clear()
        self._losses.clear()
