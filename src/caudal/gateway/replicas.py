"""A replica as this gateway knows it, and a request's place there: what is measured while requests pass.

Knows nothing of which replica is chosen; policy/routing does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct

from caudal.gateway.address import Address
from caudal.gateway.routes import ModelRoutes, ReplicaRoute
from caudal.policy.hedging import Hedger
from caudal.policy.routing import Ask, Pool, ReplicaLoad
from caudal.policy.speeds import Speed

SHARE_WEIGHT = 0.05
MIN_SHARE = 0.02


class Owner(Protocol):
    """What a ticket tells of its end."""

    def now(self) -> float:
        """Seconds."""
        ...

    def wake(self) -> None:
        """Something is free."""
        ...


class Replica:
    """A replica's address, load and speed; kept while it is routed to or has requests in flight."""

    __slots__ = ("address", "load", "route", "speed")

    def __init__(self, route: ReplicaRoute, address: Address) -> None:
        self.route = route
        self.address = address
        self.load = ReplicaLoad(route.gang, route.site, route.version, route.slots)
        self.speed = Speed()

    def take(self, route: ReplicaRoute) -> None:
        """What control says of it now."""
        self.route = route
        self.load.site = route.site
        self.load.version = route.version
        self.load.draining = route.draining
        self.load.set_slots(route.slots, queue=route.external is None)
        self.address = route.address()

    @property
    def overflows(self) -> bool:
        """Whether it is somebody else's address, asked only when the fleet's own replicas cannot answer."""
        return self.route.external is not None and self.route.external.overflow

    def seen(self, now: float) -> None:
        """Its load was what it is, up to now."""
        load = self.load
        others = load.others(now) if load.others_tokens else 0.0
        self.speed.passed(now, load.requests, load.tokens, others)


@dataclass(slots=True)
class ModelState:
    """A model and the last moment at which it had a replica (None: never since this process started). One
    that left the table is still known for a while: its only replica may just be on its way back.

    `pool` are those that requests are spread over, `externals` the addresses of others among all in `by_gang`.
    `served_share`: what requests turn out to have of the tokens that they may have, in the mean."""

    routes: ModelRoutes
    last_ready: float | None
    hedger: Hedger
    listed: bool = True
    pool: Pool = field(default_factory=Pool)
    by_gang: Mapping[str, Replica] = field(default_factory=dict)
    externals: Sequence[Replica] = ()
    served_share: float = 1.0
    asks_outside: bool = False  # whether an external address is one replica among others
    capacity: tuple[int, int] = (0, 0)  # replicas, and requests that all of them run at once

    def take(self, replicas: Sequence[Replica]) -> None:
        """Where its routes lead to now."""
        weights = [(w.version, w.weight) for w in self.routes.weights]
        self.pool = Pool.of([r.load for r in replicas if not r.overflows], weights)
        self.by_gang = {r.load.gang: r for r in replicas}
        self.externals = [r for r in replicas if r.route.external is not None]
        self.asks_outside = any(not r.overflows for r in self.externals)


class Ticket(Struct, eq=False):
    """A request's place at a replica; made by `place_at`. Given back exactly once, by `release`; before that its holder
    says `first_token`, and `done` or `failed`, so that the next requests know better."""

    gang: str
    address: Address
    model: str  # what the engine calls the model
    version: int
    tokens: int  # that count as to be done there: of the prompt until it was read, and of the reply
    ask: Ask
    asked: int  # the most tokens that it may have; `tokens` are those that are expected
    _begun_at: float
    _trial: bool
    _at_once: bool  # it found a free slot
    _replica: Replica
    _model: ModelState
    _owner: Owner
    _open: bool = True
    _answered: bool = False
    _failed: bool = False

    @property
    def site(self) -> str:
        """Where the replica runs."""
        return self._replica.route.site

    def is_at(self, replica: Replica) -> bool:
        """Whether this is its place."""
        return self._replica is replica

    @property
    def route(self) -> ReplicaRoute:
        """Where it goes."""
        return self._replica.route

    @property
    def context(self) -> int:
        """The most tokens that prompt and reply of the model may have; 0: not known."""
        return self._model.routes.context

    @property
    def engine(self) -> str:
        """What generates there."""
        return self._replica.route.engine

    @property
    def public_model(self) -> str:
        """What clients call the model."""
        return self._model.routes.id

    @property
    def hedger(self) -> Hedger:
        """What decides whether the request is sent twice."""
        return self._model.hedger

    def first_token(self) -> None:
        """The first byte of a good answer came."""
        if self._answered:
            return
        self._answered = True
        now, load = self._owner.now(), self._replica.load
        after_s = now - self._begun_at
        self._replica.seen(now)
        read = min(self.ask.prompt_tokens, self.tokens)  # that is done: the next prompt does not wait for it
        load.tokens -= read
        self.tokens -= read
        load.breaker.answered(self._trial)
        if self._trial:
            self._owner.wake()  # others may follow now
        if self.route.external is None:
            self._model.hedger.first_token(after_s)
        if self._at_once:
            self._replica.speed.first_token(self.ask.prompt_tokens, after_s - (load.round_trip_s or 0.0))
            load.prefill_per_s = self._replica.speed.prefill_per_s

    def done(self, tokens: int) -> None:
        """The answer is whole: prompt and reply had so many tokens."""
        if not self._answered:  # it came in one piece: when it began to speak is not known
            self._answered = True
            self._replica.load.breaker.answered(self._trial)
        model, asked = self._model, self.asked
        share = tokens / asked if tokens < asked else 1.0
        if share < MIN_SHARE:
            share = MIN_SHARE
        model.served_share += SHARE_WEIGHT * (share - model.served_share)
        replica = self._replica
        speed, load, now = replica.speed, replica.load, self._owner.now()
        speed.passed(now, load.requests, load.tokens, load.others(now) if load.others_tokens else 0.0)
        if speed.served(tokens, load.slots):
            load.tokens_per_s = speed.tokens_per_s
            model.pool.measure()

    def failed(self, *, hard: bool = True) -> None:
        """The replica failed this request. `hard`: it could not be reached, hung up, or would not answer, and is
        left alone for a while; else it answered nonsense, and is asked last for a moment."""
        self._failed = True
        self._replica.load.breaker.failed(self._owner.now(), self._trial, hard=hard)

    def swap(self, other: Ticket) -> None:
        """Change places with another ticket of the same request."""
        for name in (
            "gang",
            "address",
            "model",
            "version",
            "tokens",
            "ask",
            "_begun_at",
            "_trial",
            "_at_once",
        ):
            mine, its = getattr(self, name), getattr(other, name)
            setattr(self, name, its)
            setattr(other, name, mine)
        self._replica, other._replica = other._replica, self._replica
        self._answered, other._answered = other._answered, self._answered
        self._failed, other._failed = other._failed, self._failed

    def release(self, just_done: bool = False) -> None:
        """The request is over at this replica; `just_done`: `done` was said at this very moment."""
        assert self._open
        self._open = False
        replica = self._replica
        if not just_done:
            replica.seen(self._owner.now())
        load = replica.load
        load.requests -= 1
        load.tokens -= self.tokens
        if self._trial and not self._answered and not self._failed:
            load.breaker.gave_up()
        self._owner.wake()


def place_at(replica: Replica, model: ModelState, owner: Owner, ask: Ask, asked: int, now: float) -> Ticket:
    """Take a place. `asked`: the most tokens that the request may have."""
    load, route = replica.load, replica.route
    requests, tokens, breaker = load.requests, ask.tokens, load.breaker
    replica.speed.passed(now, requests, load.tokens, load.others(now) if load.others_tokens else 0.0)
    load.requests = requests + 1
    load.tokens += tokens
    return Ticket(
        route.gang,
        replica.address,
        route.model or model.routes.id,
        load.version,
        tokens,
        ask,
        asked,
        now,
        breaker.begin(now) if breaker.until else False,
        not load.slots or requests < load.slots,
        replica,
        model,
        owner,
    )
