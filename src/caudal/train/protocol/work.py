"""One round's share of a site: what it was told, what came of it, and the frames that say so. Values; the site's
machine changes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from msgspec import structs

from caudal.train.interface import Flat, IdRange, InnerResult
from caudal.train.leases import first, size
from caudal.train.messages import Delta, Held, Round
from caudal.train.protocol.effects import Send

Applied = dict[tuple[int, int], int]
"""Before which step each fragment, (round, fragment), was added to the inner side's parameters."""


@dataclass(slots=True)
class Work:
    """Until its update has come. `learnt` is what was cut from the parameters; `planned`: it was cut short, and was
    to be so many steps. `recalled`: the round after which the moments are that it began with, where that has to
    be said."""

    order: Round
    started: bool = False
    fresh: bool = False
    recalled: int = 0
    waited_s: float = 0.0
    result: InnerResult | None = None
    applied: Applied = field(default_factory=dict)
    learnt: Flat | None = None
    payloads: list[bytearray] = field(default_factory=list)
    planned: int = 0

    def shorten(self, steps: int, batch: int) -> None:
        """It is that of its first steps; the ids behind them are no longer this site's."""
        ids = tuple(IdRange(*r) for r in self.order.ids)
        self.planned = -(-size(ids) // batch)
        self.order = structs.replace(self.order, ids=first(ids, steps * batch))

    def held(self) -> Held:
        """What is offered of it to the next coordinator."""
        o = self.order
        return Held(o.round, o.stage, o.ids, o.progress, o.inner_steps, o.waits, o.rate, o.gradient)

    def frames(self) -> list[Send]:
        """Its delta, one frame a fragment."""
        order, result = self.order, self.result
        assert result is not None
        keys = [(order.round - 1, fragment) for fragment in range(len(self.payloads))]
        steps = [self.applied.get(key, 0) for key in keys]
        delta = Delta(
            order.epoch,
            order.round,
            order.lease,
            result.tokens,
            float(result.loss) if math.isfinite(result.loss) else None,
            result.steps,
            result.seconds,
            bits=order.bits,
            waited_s=round(self.waited_s, 4),
            applied=tuple(steps) if any(key in self.applied for key in keys) else (),
            fresh=self.fresh,
            planned=self.planned,
            recalled=self.recalled,
        )
        return [Send(0, structs.replace(delta, fragment=f), p) for f, p in enumerate(self.payloads)]
