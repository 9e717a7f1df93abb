"""How many inner steps a round has: few while the model is young, then as many as the network asks for.

A ladder of rungs. Below `sync_fraction` of the tokens sites agree after every step, on gradients where the spec says so:
where sites wait for them, the next is computed meanwhile, a step old. Then the rung climbs by
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

GROWN = 16
"""A round is never more than so many times the spec's `inner_steps` because of the rate."""

EARLY = 0.4
"""Updates that are applied before this part of a round leave room for a shorter one."""


@dataclass(slots=True)
class Ladder:
    """The rung and what was seen on it. `rung` starts where the run's last round was."""

    outer: OuterSpec
    rung: int = 1
    why: str = ""
    _waits: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _backs: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _best: float = math.inf
    _lags: deque[int] = field(default_factory=lambda: deque(maxlen=LONG_ROUNDS + 1))
    _stage: int = -1
    _rounds: int = 0  # on this rung
    _hold: int = 0
    _streams: bool = False  # gradients are computed while the step that the last ones became is on its way
    _warm: bool = True

    @staticmethod
    def begun(outer: OuterSpec, steps: int) -> Ladder:
        """Where the run's last round had so many steps: what it had beyond the spec's was the rate's or the
        network's, which says so again."""
        return Ladder(outer, min(steps, outer.inner_steps))

    def tempo(self, done: float, cooled: float = 1.0) -> Tempo:
        """How the next round goes, when `done` of the run's tokens are trained and the learning rate is `cooled`
        times its highest. In the warm-up sites average plainly, gradients where a round is one step."""
        outer = self.outer
        waits = self.rung == 1 or not outer.overlap
        if done < outer.sync_fraction:
            gradients = self._gradients
            waits = waits and not (gradients and self._streams)
            return Tempo(self.rung, 1.0, 0.0, waits, outer.bits, self.rung, gradients)
        steps = self._grown(cooled) if outer.grow and self.rung > 1 else self.rung
        return Tempo(steps, outer.learning_rate, outer.momentum, waits, outer.bits, self.rung)

    @property
    def _gradients(self) -> bool:
        return self.outer.sync == "gradients" and self.rung == 1

    def _grown(self, cooled: float) -> int:
        most = max(self.rung, min(GROWN * self.outer.inner_steps, self.outer.max_inner_steps))
        return min(most, round(self.rung / max(1e-3, cooled) ** 2))

    def saw(self, rung: int, stage: int, done: float, wait_share: float, back: float, loss: float) -> None:
        """A round was merged: its sites waited for `wait_share` of their time (the least of all sites: what is
        more is waiting for a slower site), and had applied the update before it after `back` of it."""
        self._warm = done < self.outer.sync_fraction
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
            self._go(min(self.outer.inner_steps, 2 * self.rung), "the warm-up is over")
            return
        waiting = sum(self._waits) / len(self._waits)
        if len(self._waits) < WINDOW:
            long = max(LONG * self.outer.wait_share, self._allowed)
            if self._rounds >= LONG_ROUNDS and min(self._waits) > long:
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
            self._go(min(self._most, math.ceil(1.5 * self.rung)), "a site that joins does not catch up")

    @property
    def _most(self) -> int:
        return max(self.outer.max_inner_steps, self.outer.inner_steps)

    @property
    def _allowed(self) -> float:
        """The share of their time that sites may wait. While they agree on gradients that is what makes `wait_share` of
        the whole run: every round there is worth more than later ones."""
        outer = self.outer
        if self._warm and self._gradients and self.outer.overlap:
            return min(0.5, outer.wait_share / max(1e-3, outer.sync_fraction))
        return outer.wait_share

    def _link(self, waiting: float) -> None:
        """What the network asks for."""
        if self._warm and self._gradients and self.outer.overlap and not self._streams:
            if waiting > self._allowed:
                self._streams, self._rounds = True, 0
                self._forget()
                self.why = f"sites waited {waiting:.1%} of their time: gradients are a step old, from now on"
            return
        most = self.outer.inner_steps if self._warm else self._most
        least = 1 if self._warm else self.outer.inner_steps
        needed = math.ceil(max(self._backs) * self.rung / 0.6)
        if waiting > self._allowed:
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
