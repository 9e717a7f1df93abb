"""Requests in flight per replica, and the wait for one that can take another: carries out policy/routing.

Knows nothing of HTTP. A `Ticket` is a request's place at a replica until it is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from caudal.gateway.routes import ModelRoutes, ReplicaRoute, RouteTable
from caudal.gateway.upstream import Address
from caudal.policy.overflow import OverflowOption, choose_overflow
from caudal.policy.routing import AVOID_FAILED_S, ReplicaLoad, Route, choose_replica

MAX_REQUESTS_PER_REPLICA = 32
"""What may run or wait inside one replica; more wait here, where they can go to another one."""

RECENTLY_S = 60.0
"""For how long after its last ready replica a model is worth waiting for."""


@dataclass(slots=True)
class _Replica:
    """A replica's counters; kept while it is routed to or has requests in flight."""

    route: ReplicaRoute
    address: Address
    requests: int = 0
    tokens: int = 0
    avoid_until: float = 0.0


@dataclass(slots=True)
class _Model:
    """A model and the last moment at which it had a replica (None: never since this process started). One
    that left the table is still known for a while: its only replica may just be on its way back."""

    routes: ModelRoutes
    last_ready: float | None
    listed: bool = True


@dataclass(slots=True)
class Ticket:
    """A request's place at a replica. Given back exactly once."""

    gang: str
    address: Address
    model: str  # what the engine calls the model
    tokens: int
    _replica: _Replica
    _router: Router
    _open: bool = True

    @property
    def route(self) -> ReplicaRoute:
        """Where it goes."""
        return self._replica.route

    def failed(self) -> None:
        """The replica failed this request: it is avoided for a while."""
        self._replica.avoid_until = self._router.now() + AVOID_FAILED_S

    def release(self) -> None:
        """The request is over at this replica."""
        assert self._open
        self._open = False
        self._replica.requests -= 1
        self._replica.tokens -= self.tokens
        self._router.wake()


Admits = Callable[[ReplicaRoute], tuple[bool, float]]
"""Whether a request can be paid at an external address, and what it costs there at most."""


class Router:
    """The replicas and their load."""

    def __init__(self, site: str, now: Callable[[], float]) -> None:
        self.now = now
        self.known = False  # whether any table was ever had
        self._site = site
        self._models: dict[str, _Model] = {}
        self._replicas: dict[tuple[str, str], _Replica] = {}
        self._changed = asyncio.Event()

    def update(self, table: RouteTable) -> None:
        """Take over a new table. Requests in flight at a replica that left the table go on."""
        now = self.now()
        self.known = True
        models: dict[str, _Model] = {}
        for routes in table.models:
            before = self._models.get(routes.id)
            had = before is not None and before.routes.replicas
            last_ready = now if routes.replicas or had else before.last_ready if before else None
            models[routes.id] = _Model(routes, last_ready)
        for model_id, gone in self._models.items():
            if model_id not in models and gone.last_ready is not None:
                last_ready = now if gone.routes.replicas else gone.last_ready
                emptied = msgspec.structs.replace(gone.routes, replicas=())
                models[model_id] = _Model(emptied, last_ready, listed=False)
        self._models = models
        wanted = {(r.gang, r.url): r for m in table.models for r in m.replicas}
        for key, route in wanted.items():
            known = self._replicas.get(key)
            if known is None:
                self._replicas[key] = _Replica(route, route.address())
            else:
                known.route = route
        for key in [k for k, r in self._replicas.items() if k not in wanted and not r.requests]:
            del self._replicas[key]
        self.wake()

    def model(self, model_id: str) -> ModelRoutes | None:
        """A model's routes, if the fleet serves it."""
        model = self._models.get(model_id)
        return model.routes if model is not None and self._known(model) else None

    def models(self) -> list[ModelRoutes]:
        """All models of the fleet."""
        return [model.routes for model in self._models.values() if self._known(model)]

    def in_flight(self, model_id: str) -> int:
        """Requests at the model's replicas."""
        model = self._models.get(model_id)
        return sum(self._of(route).requests for route in model.routes.replicas) if model else 0

    async def acquire(
        self,
        model_id: str,
        tokens: int,
        tried: frozenset[str],
        wait_s: float,
        admits: Admits = lambda _: (True, 0.0),
    ) -> Ticket | Route:
        """A place at a replica, waiting for one where that is worth it; else a Route that says why not."""
        end = self.now() + wait_s
        while True:
            self._changed.clear()
            taken = self._try(model_id, tokens, tried, admits)
            now = self.now()
            if isinstance(taken, Ticket) or now >= end or not self._worth_waiting(model_id, now):
                return taken
            pause = min(end - now, max(0.02, self._next_trial(model_id, now)))
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass  # an avoided replica may be tried again, or the wait is over

    def wake(self) -> None:
        """Something changed that a waiting request may profit from."""
        self._changed.set()

    def _try(self, model_id: str, tokens: int, tried: frozenset[str], admits: Admits) -> Ticket | Route:
        model = self._models.get(model_id)
        replicas = [self._of(route) for route in model.routes.replicas] if model else []
        loads = [
            ReplicaLoad(r.route.gang, r.route.site, r.requests, r.tokens, r.avoid_until)
            for r in replicas
            if r.route.external is None or _takes_part(r, admits)
        ]
        choice = choose_replica(
            loads, site=self._site, now=self.now(), max_requests=MAX_REQUESTS_PER_REPLICA, tried=tried
        )
        if len(loads) < len(replicas) and (choice.gang is None or choice.gang in tried):
            choice = choose_overflow(choice, _options(replicas, admits), now=self.now(), tried=tried)
        replica = next((r for r in replicas if r.route.gang == choice.gang), None)
        if replica is None:
            return choice
        replica.requests += 1
        replica.tokens += tokens
        name = replica.route.model or model_id
        return Ticket(replica.route.gang, replica.address, name, tokens, replica, self)

    def _of(self, route: ReplicaRoute) -> _Replica:
        return self._replicas[route.gang, route.url]

    def _worth_waiting(self, model_id: str, now: float) -> bool:
        model = self._models.get(model_id)
        if model is None or model.last_ready is None:
            return False
        return bool(model.routes.replicas) or now - model.last_ready < RECENTLY_S

    def _known(self, model: _Model) -> bool:
        return model.listed or (model.last_ready is not None and self.now() - model.last_ready < RECENTLY_S)

    def _next_trial(self, model_id: str, now: float) -> float:
        model = self._models.get(model_id)
        avoided = [self._of(r).avoid_until - now for r in model.routes.replicas] if model else []
        return min((s for s in avoided if s > 0), default=1.0)


def _takes_part(replica: _Replica, admits: Admits) -> bool:
    """Whether an external address is one replica among others now."""
    external = replica.route.external
    assert external is not None
    return not external.overflow and replica.requests < replica.route.slots and admits(replica.route)[0]


def _options(replicas: list[_Replica], admits: Admits) -> Iterator[OverflowOption]:
    for replica in replicas:
        if replica.route.external is not None and replica.route.external.overflow:
            affordable, most = admits(replica.route)
            yield OverflowOption(
                replica.route.gang,
                replica.requests,
                replica.route.slots or MAX_REQUESTS_PER_REPLICA,
                most,
                affordable,
                replica.avoid_until,
            )
