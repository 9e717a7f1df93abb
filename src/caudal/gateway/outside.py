"""Where a request goes when a model is also served at somebody else's address: carries out policy/overflow.

Knows nothing of money: whether a request can be paid somewhere is answered by its `Admits`.
"""

from __future__ import annotations

from collections.abc import Callable

from caudal.gateway.replicas import ModelState
from caudal.gateway.routes import ReplicaRoute
from caudal.policy.overflow import OverflowOption, choose_overflow
from caudal.policy.routing import Ask, Pool, Route, choose

Admits = Callable[[ReplicaRoute], tuple[bool, float]]
"""Whether a request can be paid at an external address, and what it costs there at most."""


def choose_place(model: ModelState, ask: Ask, admits: Admits | None, *, site: str, now: float) -> Route:
    """The replica or the external address for a request. Without `admits` it does not leave the fleet."""
    if not model.externals:
        return choose(model.pool, ask, site=site, now=now)
    barred: set[str] = set()
    options: list[OverflowOption] = []
    for replica in model.externals:
        affordable, most = admits(replica.route) if admits is not None else (False, 0.0)
        if replica.overflows:
            options.append(OverflowOption(replica.load, most, affordable))
        elif not affordable:
            barred.add(replica.load.gang)
    pool = model.pool
    if barred:
        pool = Pool.of([r for r in pool.replicas if r.gang not in barred], pool.weights)
    choice = choose(pool, ask, site=site, now=now)
    if admits is None:
        return choice
    if barred and choice.reason == "no_replica":
        choice = Route(None, "budget_spent")
    return choose_overflow(choice, options, now=now, tried=ask.tried)
