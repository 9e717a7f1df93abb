"""A linear program with some whole variables, as it is put together: variables and rows by number.

Knows nothing of what they mean, nor of who solves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

INFINITY = float("inf")


@dataclass(slots=True)
class Program:
    """Minimise cost · x where each row's sum lies between its bounds, and each x between its own."""

    costs: list[float] = field(default_factory=list)
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    row_lows: list[float] = field(default_factory=list)
    row_highs: list[float] = field(default_factory=list)
    row_groups: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    indices: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    offset: float = 0.0
    _group_numbers: dict[str, int] = field(default_factory=dict)

    def add(self, cost: float, high: float = INFINITY, *, whole: bool = False) -> int:
        """A variable from 0 to `high`; returns its number."""
        self.costs.append(cost)
        self.lows.append(0.0)
        self.highs.append(high)
        if whole:
            self.whole.append(len(self.costs) - 1)
        return len(self.costs) - 1

    def row(
        self, group: str, low: float, high: float, variables: Sequence[int], factors: Sequence[float]
    ) -> int:
        """low <= sum of factor × variable <= high; returns its number. `group` is the rule that it belongs to, in
        words, for who asks which rules cannot hold together."""
        assert len(variables) == len(factors)
        self.row_lows.append(low)
        self.row_highs.append(high)
        self.row_groups.append(self._group(group))
        self.indices += variables
        self.values += factors
        self.starts.append(len(self.indices))
        return len(self.row_lows) - 1

    def _group(self, name: str) -> int:
        if name not in self._group_numbers:
            self._group_numbers[name] = len(self.groups)
            self.groups.append(name)
        return self._group_numbers[name]
