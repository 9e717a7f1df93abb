"""How a new epoch begins: it waits a little for all sites, and at a run's very beginning for those that the first state
is on its way to. Values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from caudal.train.protocol import rules


@dataclass(slots=True)
class Gather:
    """`sites` is how many are expected; `until` is when it is over (inf: nobody is here yet; -inf: it is over)."""

    sites: int
    until: float = math.inf

    def over(self, now: float, ready: int, states_on_their_way: bool) -> bool:
        """Whether to go on, with so many sites that are ready."""
        if self.until == -math.inf or ready >= self.sites:
            self.until = -math.inf
        elif self.until == math.inf:
            self.until = now + rules.GATHER_S
        elif now >= self.until + rules.FIRST_STATE_S * states_on_their_way:
            self.until = -math.inf
        return self.until == -math.inf
