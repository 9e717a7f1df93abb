"""When a request goes to somebody else's address: pure, like routing, whose choice it is given.

An overflow address costs money or leaves the fleet, so it is taken only when none of the fleet's own replicas can
take the request: they are full, failing or absent, or the one that could has just failed this very request. Of
several the cheapest is taken. Knows nothing of connections or of how money is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from caudal.policy.routing import ReplicaLoad, Route


@dataclass(frozen=True, slots=True)
class OverflowOption:
    """An address as its gateway sees it. `most` is what this request may cost there at most (in whatever money,
    the same for all), `affordable` whether the month's budget has room for it."""

    replica: ReplicaLoad
    most: float
    affordable: bool


def choose_overflow(
    own: Route, options: Iterable[OverflowOption], *, now: float, tried: frozenset[str] = frozenset()
) -> Route:
    """`own`, which is what routing chose among the fleet's replicas, or the address to take instead of it.

    `tried` are those that failed this very request: they are taken again only when no other is left. Where there
    is neither, the reason is why the fleet itself has nothing; for a model that has only addresses it is
    `budget_spent`, `failing` or `full`.
    """
    if own.gang is not None and own.gang not in tried:
        return own
    best: OverflowOption | None = None
    seen = avoided = unaffordable = False
    for option in options:
        seen = True
        if not option.affordable:
            unaffordable = True
        elif not option.replica.breaker.admits(now):
            avoided = True
        elif option.replica.requests < option.replica.bound and (
            best is None or _cost(option, tried) < _cost(best, tried)
        ):
            best = option
    if best is not None and (own.gang is None or best.replica.gang not in tried):
        return Route(best.replica, "overflow")
    if own.gang is not None or own.reason != "no_replica" or not seen:
        return own
    return Route(None, "budget_spent" if unaffordable and not avoided else "failing" if avoided else "full")


def _cost(option: OverflowOption, tried: frozenset[str]) -> tuple[bool, float, int, str]:
    name = option.replica.gang
    return (name in tried, option.most, option.replica.requests, name)
