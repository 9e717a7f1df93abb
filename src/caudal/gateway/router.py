"""Requests in flight per replica, and the wait for one that can take another: carries out policy/routing.

Knows nothing of HTTP. A `Ticket` is a request's place at a replica until it is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from caudal.gateway.address import Address
from caudal.gateway.demand import Demand
from caudal.gateway.outside import Admits, choose_place
from caudal.gateway.replicas import ModelState, Replica, Ticket, place_at
from caudal.gateway.routes import ModelRoutes, OthersLoad, ReplicaRoute, RouteTable
from caudal.policy.hedging import Hedger, HedgeRules
from caudal.policy.routing import DEFAULT_BOUND, Ask, Route, choose
from caudal.policy.versions import next_share, sticky_share

__all__ = ["Router", "Ticket"]

RECENTLY_S = 60.0
"""For how long after its last ready replica a model is worth waiting for."""

NO_CAPACITY = (0, 0)
NOT_TRIED: frozenset[str] = frozenset()
WAKE_WAIT_S = 30.0
"""A request of a model that sleeps waits at least so long for a replica to start."""

MAX_REPORTED = 64
"""Replicas in a gateway's report: control takes no more keys."""


class Router:
    """The replicas and their load. `hedge` off: no request is sent twice."""

    def __init__(self, site: str, now: Callable[[], float], hedge: HedgeRules | None = None) -> None:
        self.now = now
        self.known = False  # whether any table was ever had
        self.hedged = 0  # requests that were sent twice
        self.demand = Demand(now)
        self._site = site
        self._hedge = hedge or HedgeRules()
        self._models: dict[str, ModelState] = {}
        self._replicas: dict[tuple[str, str], Replica] = {}
        self._by_address: dict[tuple[str, int], Replica] = {}
        self._changed = asyncio.Event()
        self._waits = False  # somebody may wait for it
        self._requests = 0

    def update(self, table: RouteTable) -> None:
        """Take over a new table. Requests in flight at a replica that left the table go on."""
        now = self.now()
        self.known = True
        models: dict[str, ModelState] = {}
        for routes in table.models:
            before = self._models.get(routes.id)
            had = before is not None and before.routes.replicas
            last_ready = now if routes.replicas or had else before.last_ready if before else None
            models[routes.id] = self._kept(before, routes, last_ready)
        for model_id, gone in self._models.items():
            if model_id not in models and gone.last_ready is not None:
                last_ready = now if gone.routes.replicas else gone.last_ready
                emptied = msgspec.structs.replace(gone.routes, replicas=())
                models[model_id] = self._kept(gone, emptied, last_ready, listed=False)
        self._models = models
        wanted = {(r.gang, r.url): r for m in table.models for r in m.replicas}
        for key, route in wanted.items():
            if key not in self._replicas:
                self._replicas[key] = Replica(route, route.address())
            self._replicas[key].take(route)
        for key in [k for k, r in self._replicas.items() if k not in wanted and not r.load.requests]:
            del self._replicas[key]
        self._by_address = {(r.address.host, r.address.port): r for r in self._replicas.values()}
        for model in models.values():
            model.take([self._of(r) for r in model.routes.replicas])
            model.capacity = _capacity(model.routes)
        self.wake()

    def learn(self, others: Iterable[OthersLoad]) -> None:
        """What other gateways have in flight; what is not named has nothing of theirs."""
        now = self.now()
        said = {o.gang: o for o in others}
        for replica in self._replicas.values():
            other = said.get(replica.load.gang)
            replica.seen(now)
            replica.load.others_tokens = float(other.tokens) if other else 0.0
            replica.load.others_at = now - other.age_s if other else now

    def connected(self, address: Address, seconds: float) -> None:
        """A connection to a replica took so long: that is a round trip."""
        replica = self._by_address.get((address.host, address.port))
        if replica is not None:
            before = replica.load.round_trip_s
            replica.load.round_trip_s = seconds if before is None else before + 0.3 * (seconds - before)

    def model(self, model_id: str) -> ModelRoutes | None:
        """A model's routes, if the fleet serves it."""
        model = self._models.get(model_id)
        if model is not None and (model.listed or self._known(model)):
            return model.routes
        return None

    def capacity(self, model_id: str) -> tuple[int, int]:
        """A model's replicas and the requests that they run at once, together; the same object between updates."""
        model = self._models.get(model_id)
        return model.capacity if model is not None else NO_CAPACITY

    def models(self) -> list[ModelRoutes]:
        """All models of the fleet."""
        return [model.routes for model in self._models.values() if self._known(model)]

    def asked(self, model_id: str) -> Callable[[], None]:
        """A request of a model came; to be called when it is over."""
        model = self._models.get(model_id)
        return self.demand.begun(model_id, model is not None and model.routes.asleep).ended

    def _asleep(self, model_id: str) -> bool:
        model = self._models.get(model_id)
        return model is not None and model.routes.asleep

    def waking(self) -> list[str]:
        """The models that sleep and are waited for."""
        rows = [m.routes for m in self._models.values() if m.routes.asleep]
        return sorted(routes.id for routes in rows if self.demand.waits_for(routes.id))[:MAX_REPORTED]

    def in_flight(self, model_id: str) -> int:
        """Requests at the model's replicas."""
        model = self._models.get(model_id)
        return sum(self._of(route).load.requests for route in model.routes.replicas) if model else 0

    def load(self) -> dict[str, list[float]]:
        """What control is told, by gang: requests and tokens in flight here, and tokens per second (0: not
        measured). Those that drain come first, then the busiest, should they be too many to tell."""
        own = [r for r in self._replicas.values() if r.route.external is None]
        told = [r for r in own if r.load.requests or r.load.tokens_per_s]
        told.sort(key=lambda r: (not r.load.draining, -r.load.requests))
        return {
            r.load.gang: [r.load.requests, r.load.tokens, round(r.load.tokens_per_s, 1)]
            for r in told[:MAX_REPORTED]
        }

    def standing(self, model_id: str, ticket: Ticket) -> tuple[bool, bool]:
        """Whether a request's replica is to stay, and whether another one could take the request over now: of the
        same version, of this fleet, one that did not fail it before, and that is known to answer (no half-open
        breaker)."""
        model, now = self._models.get(model_id), self.now()
        replicas = [self._of(route) for route in model.routes.replicas] if model else []
        stays = any(ticket.is_at(r) and not r.load.draining for r in replicas)
        known = ticket.ask.tried | {ticket.gang}
        others = [
            r.load
            for r in replicas
            if r.load.gang not in known and r.load.version == ticket.version and r.route.external is None
        ]
        return stays, any(load.admits(now) and load.breaker.state(now) == "closed" for load in others)

    async def acquire(
        self,
        model_id: str,
        tokens: int,
        tried: frozenset[str],
        wait_s: float,
        *,
        prompt_tokens: int = 0,
        prefix: int | None = None,
        who: str = "",
        version: int = 0,
        admits: Admits | None = None,
    ) -> Ticket | Route:
        """A place at a replica, waiting for one where that is worth it; else a Route that says why not.

        `tokens` are the most that prompt and reply may have; `prefix` is the prompt's key (policy/affinity). `who`
        gets the same version each time; `version` is the one to go on with. Both are preferred only. Without
        `admits` the request does not leave the fleet.
        """
        end = self.now() + wait_s
        if self._asleep(model_id):
            end = max(end, self.now() + WAKE_WAIT_S)
        ask = self._ask(self._models.get(model_id), tokens, tried, prompt_tokens, prefix, who, version)
        while True:
            self._changed.clear()
            self._waits = True
            taken = self._try(self._models.get(model_id), ask, tokens, admits)
            now = self.now()
            if isinstance(taken, Ticket) or now >= end or not self._worth_waiting(model_id, now):
                return taken
            pause = min(end - now, max(0.02, self._next_trial(model_id, now)))
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass  # an open breaker may let one through, or the wait is over

    def take(
        self, model_id: str, tokens: int, prompt_tokens: int, prefix: int | None, who: str
    ) -> Ticket | None:
        """A place within the fleet that is to be had at once; None where there is none, or where the request may be
        sent twice."""
        model = self._models.get(model_id)
        if model is None or model.asks_outside or (model.hedger.on and model.hedger.wait_s() is not None):
            return None
        ask = self._ask(model, tokens, NOT_TRIED, prompt_tokens, prefix, who, 0)
        if model.externals:
            taken = self._try(model, ask, tokens, None)
            return taken if isinstance(taken, Ticket) else None
        now = self.now()
        load = choose(model.pool, ask, self._site, now).replica
        return place_at(model.by_gang[load.gang], model, self, ask, tokens, now) if load is not None else None

    def _ask(
        self,
        model: ModelState | None,
        tokens: int,
        tried: frozenset[str],
        prompt_tokens: int,
        prefix: int | None,
        who: str,
        version: int,
    ) -> Ask:
        self._requests = number = self._requests + 1
        share = sticky_share(who) if who else next_share(number)
        expected = tokens
        if model is not None:
            expected = int(tokens * model.served_share) or 1
            if model.hedger.on:
                model.hedger.asked()
        return Ask(expected, prompt_tokens, prefix, share, version, tried, number)

    def _try(self, model: ModelState | None, ask: Ask, asked: int, admits: Admits | None) -> Ticket | Route:
        """A place at a replica now, or why there is none."""
        if model is None:
            return Route(None, "no_replica")
        now = self.now()
        if model.externals:
            choice = choose_place(model, ask, admits, site=self._site, now=now)
        else:
            choice = choose(model.pool, ask, self._site, now)
        load = choice.replica
        if load is None:
            return choice
        return place_at(model.by_gang[load.gang], model, self, ask, asked, now)

    def try_other(self, ticket: Ticket) -> Ticket | None:
        """A place at another replica of the same version, for a request that has one already. Nobody pays for an
        answer that may not be wanted: it is one of the fleet's own."""
        ask = msgspec.structs.replace(
            ticket.ask,
            tried=ticket.ask.tried | {ticket.gang},
            prefix=None,
            version=ticket.version,
        )
        other = self._try(self._models.get(ticket.public_model), ask, ticket.asked, None)
        if not isinstance(other, Ticket):
            return None
        if other.gang in ask.tried or other.version != ticket.version:
            other.release()
            return None
        return other

    def wake(self) -> None:
        """Something changed that a waiting request may profit from."""
        if self._waits:
            self._waits = False
            self._changed.set()

    def _kept(
        self, before: ModelState | None, routes: ModelRoutes, last_ready: float | None, listed: bool = True
    ) -> ModelState:
        """What is known of a model, with its new routes."""
        if before is None:
            return ModelState(routes, last_ready, Hedger(self._hedge), listed)
        before.routes, before.last_ready, before.listed = routes, last_ready, listed
        return before

    def _of(self, route: ReplicaRoute) -> Replica:
        return self._replicas[route.gang, route.url]

    def _worth_waiting(self, model_id: str, now: float) -> bool:
        model = self._models.get(model_id)
        if model is not None and model.routes.asleep:
            return True
        if model is None or model.last_ready is None:
            return False
        return bool(model.routes.replicas) or now - model.last_ready < RECENTLY_S

    def _known(self, model: ModelState) -> bool:
        return model.listed or (model.last_ready is not None and self.now() - model.last_ready < RECENTLY_S)

    def _next_trial(self, model_id: str, now: float) -> float:
        model = self._models.get(model_id)
        waits = [r.load.breaker.until - now for r in model.by_gang.values()] if model else []
        return min((s for s in waits if s > 0), default=1.0)


def _capacity(routes: ModelRoutes) -> tuple[int, int]:
    """Replicas that take requests, and how many all of them run at once."""
    taking = [route for route in routes.replicas if not route.draining]
    return len(taking), sum(route.slots or DEFAULT_BOUND for route in taking)
