"""An estimate with its 80 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """`low` to `high` holds about four of five."""

    value: float
    low: float
    high: float

    def times(self, factor: float, more: float = 0.0) -> Range:
        """Scaled by what is known to a half width of `more`, in logarithms, independent of this."""
        above = math.log(self.high / self.value) if self.value > 0 else 0.0
        below = math.log(self.value / self.low) if self.low > 0 and self.value > 0 else math.inf
        scaled = self.value * factor
        return Range(scaled, scaled / math.exp(math.hypot(below, more)) if below < 50 else 0.0,
                     scaled * math.exp(math.hypot(above, more)))  # fmt: skip


def around(value: float, half_width: float) -> Range:
    """`half_width` in logarithms, both ways."""
    factor = math.exp(half_width)
    return Range(value, value / factor, value * factor)
