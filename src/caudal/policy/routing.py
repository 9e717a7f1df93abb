"""Which replica answers the next request: pure, so that the simulator routes with the same rules.

Each replica has a cost, in seconds: the tokens that are in flight there and those that this request adds, over
what the replica was measured to do in a second, and the way there where it is at another site. The cheapest one
is taken, or the one that has the prompt's beginning warm while it costs no more than that saves. Never one that
drains, is full, or whose breaker is open. Knows nothing of connections, of clocks, and of what a token costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from caudal.policy.affinity import mix, prefer, seed_of
from caudal.policy.breaker import Breaker
from caudal.policy.versions import Weights, choose_version

DEFAULT_TOKENS_PER_S = 100.0
"""What a replica counts as doing while no replica of its model was measured: about one request of
SmolLM2-135M on one core of llama.cpp."""

DEFAULT_PREFILL_PER_S = 1000.0
"""Prompt tokens read per second, before that was measured. A guess."""

DEFAULT_WAN_S = 0.1
"""What the way to another site costs while no connection to it was timed. A guess: a continent's round trip."""

MIN_WAN_S = 0.02
"""The least that another site costs, so that a fleet's traffic stays within sites that are idle alike."""

WAN_ROUND_TRIPS = 2.0
"""What a request pays there: its own round trip, and now and then that of a new connection."""

OTHERS_FORGET_S = 10.0
"""What other gateways have in flight counts less with its age, and nothing after this."""

DEFAULT_BOUND = 32
"""What may run or wait inside one replica whose slots are not known; more wait at the gateway, where they can
go to another one."""

_SHAKY_S = 1e5
_TRIED_S = 1e6
"""So much more costs a replica that just failed somebody's request, or this very one: it is the last resort."""


class ReplicaLoad:
    """A replica as its gateway sees it. Its owner changes it while requests pass; the policy only reads.

    `requests` and `tokens` are those that this gateway has in flight there (prompt and expected reply);
    `others_tokens` what other gateways said at `others_at`. `tokens_per_s` and `prefill_per_s` are measured (0:
    not yet), `round_trip_s` too (None: not yet). `slots` 0: not known.
    """

    __slots__ = (
        "bound",
        "breaker",
        "draining",
        "gang",
        "others_at",
        "others_tokens",
        "prefill_per_s",
        "requests",
        "round_trip_s",
        "seed",
        "site",
        "slots",
        "tokens",
        "tokens_per_s",
        "version",
    )

    def __init__(self, gang: str, site: str, version: int = 0, slots: int = 0) -> None:
        self.gang = gang
        self.site = site
        self.version = version
        self.set_slots(slots)
        self.draining = False
        self.requests = 0
        self.tokens = 0
        self.others_tokens = 0.0
        self.others_at = 0.0
        self.tokens_per_s = 0.0
        self.prefill_per_s = 0.0
        self.round_trip_s: float | None = None
        self.breaker = Breaker()
        self.seed = seed_of(gang)

    def set_slots(self, slots: int, *, queue: bool = True) -> None:
        """How many requests it runs at once. One gateway's may be that many there (`bound`), and with a `queue` a
        few that are ready to follow."""
        self.slots = slots
        self.bound = slots + (max(1, slots // 4) if queue else 0) if slots else DEFAULT_BOUND

    def admits(self, now: float) -> bool:
        """Whether it takes a new request now."""
        return not self.draining and self.requests < self.bound and self.breaker.admits(now)

    @property
    def wan_s(self) -> float:
        """What the way there costs a gateway at another site."""
        if self.round_trip_s is None:
            return DEFAULT_WAN_S
        return max(MIN_WAN_S, WAN_ROUND_TRIPS * self.round_trip_s)

    def others(self, now: float) -> float:
        """Tokens that other gateways have in flight there, by what they last said and how long ago."""
        if not self.others_tokens:
            return 0.0
        return self.others_tokens * max(0.0, 1.0 - max(0.0, now - self.others_at) / OTHERS_FORGET_S)


@dataclass(slots=True)
class Pool:
    """The replicas of one model. `weights`: each version's share of requests, where there are several.
    A replica of version 0 (not known) is as good as any version's. `tokens_per_s` is the mean of those that were
    measured (0: none)."""

    replicas: Sequence[ReplicaLoad] = ()
    weights: Weights = ()
    tokens_per_s: float = 0.0
    versions: Mapping[int, Sequence[ReplicaLoad]] = field(default_factory=dict)

    @classmethod
    def of(cls, replicas: Sequence[ReplicaLoad], weights: Weights = ()) -> Pool:
        """A pool of these."""
        versions: dict[int, list[ReplicaLoad]] = {}
        for version in {replica.version for replica in replicas if replica.version}:
            versions[version] = [r for r in replicas if r.version in (version, 0)]
        pool = cls(replicas, weights, 0.0, versions)
        pool.measure()
        return pool

    def measure(self) -> None:
        """Take up what its replicas were measured to do."""
        speeds = [r.tokens_per_s for r in self.replicas if r.tokens_per_s > 0]
        self.tokens_per_s = sum(speeds) / len(speeds) if speeds else 0.0


class Ask(Struct):
    """What routing knows of a request. `tokens`: prompt and expected reply. `prefix`: the key of the prompt's
    beginning (None: too short for one). `share`: where it falls in [0, 1), which decides its version. `version`:
    the one that it was begun with, where it goes on. `tried`: replicas that failed it. `salt` decides between
    equals."""

    tokens: int
    prompt_tokens: int = 0
    prefix: int | None = None
    share: float = 0.0
    version: int = 0
    tried: frozenset[str] = frozenset()
    salt: int = 0


class Route(Struct):
    """The replica that was chosen, or None; `reason` is stable, and says which: warm, local, remote; or
    no_replica, failing, full."""

    replica: ReplicaLoad | None
    reason: str

    @property
    def gang(self) -> str | None:
        """Its name, if there is one."""
        return self.replica.gang if self.replica is not None else None


def choose(pool: Pool, ask: Ask, site: str, now: float) -> Route:
    """The replica for a request of a gateway at `site`: of the version that the weights say, and of another one
    where that has none to give."""
    if len(pool.versions) > 1:
        version = ask.version or choose_version(pool.weights, ask.share)
        of_version = pool.versions.get(version)
        if of_version:
            route = choose_replica(of_version, ask, site, now, pool.tokens_per_s)
            if route.replica is not None and route.replica.gang not in ask.tried:
                return route
    return choose_replica(pool.replicas, ask, site, now, pool.tokens_per_s)


def choose_replica(
    replicas: Sequence[ReplicaLoad], ask: Ask, site: str, now: float, mean_tokens_per_s: float = 0.0
) -> Route:
    """The replica for a request, whatever its version. About a microsecond for each replica: this is done for
    every request."""
    if len(replicas) == 1:  # as below, without a cost that is compared to nothing
        only = replicas[0]
        if not only.draining and not only.breaker.until and only.requests < only.bound:
            return Route(only, "local" if only.site == site else "remote")
    best: ReplicaLoad | None = None
    best_s = 0.0
    failing = full = False
    fit: list[ReplicaLoad] = []
    several = ask.prefix is not None and len(replicas) > 1
    usual = mean_tokens_per_s or DEFAULT_TOKENS_PER_S
    asked, tried = ask.tokens, ask.tried
    for replica in replicas:
        if replica.draining:
            continue
        breaker = replica.breaker
        if breaker.until and (breaker.until > now or breaker.trial):
            failing = True
            continue
        if replica.requests >= replica.bound:
            full = True
            continue
        tokens: float = replica.tokens + asked
        if replica.others_tokens:
            tokens += replica.others(now)
        cost_s = tokens / (replica.tokens_per_s or usual)
        if replica.site != site:
            cost_s += replica.wan_s
        if breaker.shaky_until > now:
            cost_s += _SHAKY_S
        if tried and replica.gang in tried:
            cost_s += _TRIED_S
        elif several:
            fit.append(replica)
        if best is None or cost_s < best_s or (cost_s == best_s and _before(replica, best, ask.salt)):
            best, best_s = replica, cost_s
    if best is None:
        return Route(None, "full" if full else "failing" if failing else "no_replica")
    if len(fit) > 1:
        warm = _warm(fit, ask, site)
        if warm is not best and warm.breaker.shaky_until <= now:
            cost_s = _cost_s(warm, ask, site, now, usual)
            if cost_s - ask.prompt_tokens / (warm.prefill_per_s or DEFAULT_PREFILL_PER_S) <= best_s:
                return Route(warm, "warm")
    return Route(best, "local" if best.site == site else "remote")


def _warm(fit: Sequence[ReplicaLoad], ask: Ask, site: str) -> ReplicaLoad:
    """Where the prompt's beginning belongs: within the own site, where that has any that can take it."""
    here = [r for r in fit if r.site == site] or fit
    assert ask.prefix is not None
    return here[prefer(ask.prefix, [r.seed for r in here])]


def _cost_s(replica: ReplicaLoad, ask: Ask, site: str, now: float, usual: float) -> float:
    tokens = replica.tokens + ask.tokens + replica.others(now)
    way_s = 0.0 if replica.site == site else replica.wan_s
    return tokens / (replica.tokens_per_s or usual) + way_s


def _before(one: ReplicaLoad, other: ReplicaLoad, salt: int) -> bool:
    """Which of two equals: not always the same one, or gateways that know little of each other would all begin
    with it."""
    return (one.requests, mix(one.seed ^ salt), one.gang) < (
        other.requests,
        mix(other.seed ^ salt),
        other.gang,
    )
