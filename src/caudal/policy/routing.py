"""Which replica answers the next request: pure, so that the simulator routes with the same rules.

Fewest tokens in flight, the gateway's own site before others, and a replica that just failed not at all for
a few seconds. Knows nothing of connections; nothing yet of speeds, prefixes and prices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

REMOTE_TOKENS = 512
"""A replica at another site counts as if it had this many more tokens in flight. Not measured yet: about
what a small model generates in the time that a few WAN round trips and a cold prefix cost."""

AVOID_FAILED_S = 2.0
"""How long a replica that failed is left alone: a restarted llama.cpp answers after about 0.5 s."""


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """A replica as its gateway sees it. `tokens` are those promised to requests in flight: the prompt's and
    the most that may be generated."""

    gang: str
    site: str
    requests: int
    tokens: int
    avoid_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """The replica that was chosen, or None; `reason` is stable, and says which."""

    gang: str | None
    reason: str


def choose_replica(
    replicas: Iterable[ReplicaLoad],
    *,
    site: str,
    now: float,
    max_requests: int,
    tried: frozenset[str] = frozenset(),
) -> Route:
    """The replica for the next request of a gateway at `site`.

    `max_requests` bounds what waits inside one replica. `tried` are those that failed this very request:
    they are taken again only when no other is left (and no longer avoided).
    """
    best: ReplicaLoad | None = None
    best_cost: tuple[bool, int, int, str] | None = None
    seen = avoided = False
    for replica in replicas:
        seen = True
        if replica.avoid_until > now:
            avoided = True
            continue
        if replica.requests >= max_requests:
            continue
        tokens = replica.tokens + (0 if replica.site == site else REMOTE_TOKENS)
        cost = (replica.gang in tried, tokens, replica.requests, replica.gang)
        if best_cost is None or cost < best_cost:
            best, best_cost = replica, cost
    if best is not None:
        return Route(best.gang, "local" if best.site == site else "remote")
    if not seen:
        return Route(None, "no_replica")
    return Route(None, "failing" if avoided else "full")
