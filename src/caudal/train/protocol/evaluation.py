"""Who evaluates the state, when, and what came of it. Values; the coordinator's machine changes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from caudal.train.protocol.rules import FIRST_GRACE_S

T = TypeVar("T")


@dataclass(slots=True)
class Evaluations:
    """Sites take turns. `values` are the newest; `seconds` what one takes; `asked` who answers the held-out
    questions at the end (empty: nobody)."""

    every_steps: int
    values: dict[str, float] = field(default_factory=dict)
    seconds: float = FIRST_GRACE_S
    asked: str = ""
    _unsaid: dict[str, float] = field(default_factory=dict)
    _turn: int = 0
    _steps: int = 0

    def stepped(self, inner_steps: int) -> None:
        """A round was merged."""
        self._steps += inner_steps

    def evaluator(self, workers: Sequence[str]) -> str:
        """Who evaluates before the next round, where that is due."""
        if self._steps < self.every_steps or not workers:
            return ""
        self._steps = 0
        return self.next_of(workers)

    def next_of(self, those: Sequence[T]) -> T:
        """Whose turn it is."""
        self._turn += 1
        return those[self._turn % len(those)]

    def heard(self, values: Mapping[str, float], seconds: float | None = None) -> None:
        """An answer; `seconds` where it was one between two rounds."""
        self.values = dict(values)
        if seconds is not None:
            self.seconds = min(FIRST_GRACE_S, seconds)
            self._unsaid = dict(values)

    def for_curve(self) -> dict[str, float]:
        """What the run's curve does not show yet."""
        unsaid, self._unsaid = self._unsaid, {}
        return unsaid
