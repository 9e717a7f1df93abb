"""What the first process of a worker's gang does when one of its children ended, or time has come. Pure.

A worker that was killed or crashed is replaced inside its gang: by the spare, or, where there is none yet, by a
new start. What nobody but the control process can judge ends the gang, with the worker's own exit status: a clean
end, an error that was meant (`Ended.meant`), a worker that nobody has ever seen take part, and one that dies over
and over. So the control process sees what it would see of a worker alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from caudal.train.config import MOST_RESTARTS

DEATHS = 3
WITHIN_S = 60.0
"""So many deaths within so long are not bad luck: the gang ends, and the control process waits longer each time."""

SPARE_AFTER_S = 5.0
"""A worker takes part for so long before its spare loads: the first rounds are the worker's alone."""

SPARE_AGAIN_S = 30.0
SPARE_AGAIN_MOST_S = 600.0
"""A spare that ended by itself is started again after this, twice as late each time."""

TERMINATED = 143
ASKED_TO_END = (TERMINATED, -15)


class Step(StrEnum):
    """What to do next. `promote`: the spare becomes the worker."""

    WAIT = "wait"
    START = "start"
    SPARE = "spare"
    PROMOTE = "promote"
    END = "end"


@dataclass(frozen=True, slots=True)
class Order:
    """A step; `restart` says which start of the worker inside its gang it is, `code` how the gang ends: an exit
    code, or a signal below zero."""

    step: Step
    restart: int = 0
    code: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker's end: its exit code, or below zero the signal; `meant` where it said so itself before."""

    code: int
    meant: bool = False

    def __str__(self) -> str:
        return f"was killed by signal {-self.code}" if self.code < 0 else f"ended with code {self.code}"


@dataclass(slots=True)
class Minding:
    """Times are seconds of any clock that does not go back."""

    restart: int = 0
    _proven: bool = False  # a worker of this gang has taken part
    _spare: bool = False  # there is one, loading or loaded
    _spare_at: float | None = None
    _spare_ends: int = 0
    _deaths: deque[float] = field(default_factory=lambda: deque(maxlen=DEATHS))

    def took_part(self, now: float) -> None:
        """The coordinator has welcomed the worker."""
        self._proven = True
        if not self._spare and self._spare_at is None:
            self._spare_at = now + SPARE_AFTER_S

    def due_in(self, now: float) -> float | None:
        """Seconds until `look` has something to say; None: only an event will."""
        return None if self._spare_at is None else max(0.0, self._spare_at - now)

    def look(self, now: float) -> Order:
        """Whether it is time for a spare."""
        if self._spare_at is None or now < self._spare_at:
            return Order(Step.WAIT)
        self._spare, self._spare_at = True, None
        return Order(Step.SPARE)

    def spare_ended(self, now: float) -> None:
        """By itself, or it could not be started: nothing is lost yet."""
        pause = min(SPARE_AGAIN_MOST_S, SPARE_AGAIN_S * 2.0**self._spare_ends)
        self._spare, self._spare_at = False, now + pause
        self._spare_ends = min(self._spare_ends + 1, 16)

    def worker_ended(self, how: Ended, now: float) -> Order:
        """What becomes of the gang."""
        if how.code == 0 or how.meant:
            return Order(Step.END, code=how.code)
        if how.code in ASKED_TO_END:
            return Order(Step.END, code=TERMINATED)
        self._deaths.append(now)
        if why := self._why_not_again(now):
            return Order(Step.END, code=how.code, why=f"the worker {how}, {why}")
        self.restart += 1
        ready, self._spare, self._spare_at = self._spare, False, None
        step, who = (Step.PROMOTE, "its spare") if ready else (Step.START, "a new one")
        return Order(step, self.restart, why=f"the worker {how}; {who} takes its place")

    def _why_not_again(self, now: float) -> str:
        if not self._proven:
            return "and never took part"
        if len(self._deaths) == DEATHS and now - self._deaths[0] <= WITHIN_S:
            return f"the {DEATHS}rd time within {WITHIN_S:.0f} s"
        return "too many times" if self.restart == MOST_RESTARTS else ""
