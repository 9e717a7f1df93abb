"""When a process that died is started again, and when there is no use in it. Pure: times in seconds come in."""

from __future__ import annotations

FIRST_S = 0.1
LONGEST_S = 5.0
LIVED_S = 10.0
"""A process that lived for so long died of something new."""

MOST = 6
"""So many early deaths in a row, and it is given up."""


class Restarts:
    """One process's deaths."""

    def __init__(self) -> None:
        self.early = 0

    def died(self, lived_s: float) -> float | None:
        """How long to wait before the next start, in seconds; None: give up."""
        if lived_s >= LIVED_S:
            self.early = 0
        self.early += 1
        if self.early >= MOST:
            return None
        return min(LONGEST_S, FIRST_S * 2.0 ** (self.early - 1))
