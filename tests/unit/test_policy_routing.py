"""Which replica answers next: costs, the way to other sites, warm prefixes, versions."""

from __future__ import annotations

import pytest

from caudal.policy.affinity import prefix_key
from caudal.policy.routing import (
    DEFAULT_TOKENS_PER_S,
    DEFAULT_WAN_S,
    OTHERS_FORGET_S,
    Ask,
    Pool,
    ReplicaLoad,
    Route,
    choose,
    choose_replica,
)
from caudal.policy.versions import choose_version, next_share, sticky_share

NOW = 100.0
ASK = Ask(100)


def load(gang: str, site: str = "north", requests: int = 0, tokens: int = 0, **more: float) -> ReplicaLoad:
    made = ReplicaLoad(gang, site, int(more.pop("version", 0)), int(more.pop("slots", 0)))
    made.requests, made.tokens = requests, tokens
    for name, value in more.items():
        setattr(made, name, value)
    return made


def pick(*replicas: ReplicaLoad, ask: Ask = ASK, now: float = NOW, **more: float) -> Route:
    return choose_replica(replicas, ask, site="north", now=now, **more)


def test_fewest_tokens_in_flight() -> None:
    assert pick(load("a", requests=1, tokens=900), load("b", requests=3, tokens=100)).gang == "b"


def test_tokens_are_weighted_by_measured_speed() -> None:
    slow, fast = load("a", tokens=100, tokens_per_s=50.0), load("b", tokens=700, tokens_per_s=400.0)
    assert pick(slow, fast).gang == "b"
    assert pick(slow, load("c", tokens=700), mean_tokens_per_s=400.0).gang == "c"  # unmeasured: as the others


def test_local_site_until_its_queue_costs_more_than_the_way() -> None:
    remote = load("b", "south")
    way = int(DEFAULT_WAN_S * DEFAULT_TOKENS_PER_S)
    assert pick(load("a", tokens=way - 1), remote).reason == "local"
    assert pick(load("a", tokens=way + 1), remote) == Route(remote, "remote")
    remote.round_trip_s = 1.0
    assert pick(load("a", tokens=way + 1), remote).reason == "local"


def test_what_other_gateways_have_there_counts_less_with_its_age() -> None:
    busy, idle = load("a", others_tokens=1000.0, others_at=NOW), load("b", tokens=400)
    assert pick(busy, idle).gang == "b"
    assert pick(busy, idle, now=NOW + 0.7 * OTHERS_FORGET_S).gang == "a"
    assert busy.others(NOW + OTHERS_FORGET_S) == 0.0


def test_bound_follows_the_slots() -> None:
    assert (load("a", slots=4).bound, load("a", slots=1).bound, load("a").bound) == (5, 2, 32)
    assert pick(load("a", requests=5, slots=4)) == Route(None, "full")


def test_why_there_is_none() -> None:
    assert pick() == Route(None, "no_replica")
    leaving = load("a")
    leaving.draining = True
    assert pick(leaving) == Route(None, "no_replica")
    broken = load("a")
    broken.breaker.failed(NOW, trial=False, hard=True)
    assert pick(broken) == Route(None, "failing")


def test_one_that_failed_this_request_or_just_now_is_last() -> None:
    a, b = load("a"), load("b", "south", 3, 9999)
    assert pick(a, b, ask=Ask(100, tried=frozenset({"a"}))).gang == "b"
    assert pick(a, ask=Ask(100, tried=frozenset({"a"}))).gang == "a"
    a.breaker.failed(NOW, trial=False, hard=False)
    assert pick(a, b).gang == "b" and pick(a).gang == "a"


def test_warm_prefix_is_preferred_while_it_saves_more_than_it_costs() -> None:
    replicas = [load(name) for name in "abcd"]
    ask = Ask(600, prompt_tokens=500, prefix=99)
    home = pick(*replicas, ask=ask).replica
    assert home is not None
    saved_s = 500 / 1000.0  # at the prefill speed that is assumed
    home.tokens = int(saved_s * DEFAULT_TOKENS_PER_S) - 1
    assert pick(*replicas, ask=ask) == Route(home, "warm")
    home.tokens += 2
    assert pick(*replicas, ask=ask).gang != home.gang
    home.prefill_per_s = 100.0  # reading the prompt again would take five seconds
    assert pick(*replicas, ask=ask) == Route(home, "warm")


def test_prefix_belongs_to_the_own_site() -> None:
    replicas = [load("a"), load("b"), load("c", "south"), load("d", "south")]
    homes = {pick(*replicas, ask=Ask(600, 500, key)).gang for key in range(100)}
    assert homes == {"a", "b"}


def test_prefix_key_is_that_of_the_longest_block_from_where_the_prompt_begins() -> None:
    def body(text: str, **more: str) -> bytes:
        head = "".join(f'"{k}": "{v}", ' for k, v in more.items())
        return f'{{{head}"messages": [{{"role": "user", "content": "{text}"}}]}}'.encode()

    assert prefix_key(body("hi")) is None and prefix_key(b"{}") is None
    assert prefix_key(body("x" * 300)) == prefix_key(body("x" * 300, user="somebody else"))
    assert prefix_key(body("x" * 300 + "y")) == prefix_key(body("x" * 300 + "z"))
    assert prefix_key(body("x" * 300)) != prefix_key(body("x" * 3000))
    assert prefix_key(body("x" * 5000 + "y")) == prefix_key(body("x" * 9000))
    assert prefix_key(b'{"prompt": "' + b"x" * 300) is not None


def test_version_is_that_of_the_weights_and_another_where_it_has_none_to_give() -> None:
    old, new = load("old", version=1), load("new", version=2, tokens=9000)
    pool = Pool.of([old, new], [(1, 0.9), (2, 0.1)])

    def gang(share: float, version: int = 0, tried: frozenset[str] = frozenset()) -> str | None:
        return choose(pool, Ask(100, share=share, version=version, tried=tried), site="north", now=NOW).gang

    assert [gang(s) for s in (0.0, 0.09, 0.11, 0.99)] == ["new", "new", "old", "old"]
    assert gang(0.99, version=2) == "new"
    assert gang(0.0, tried=frozenset({"new"})) == "old"
    new.requests = new.bound
    assert gang(0.0) == "old"
    new.draining = True
    assert gang(0.0) == "old"


@pytest.mark.parametrize("weights", [[(1, 0.9), (2, 0.1)], [(1, 0.25), (2, 0.5), (3, 0.25)], [(7, 1.0)]])
def test_shares_of_versions_meet_their_weights_soon(weights: list[tuple[int, float]]) -> None:
    for number, within in ((100, 0.03), (2000, 0.005)):
        got = [choose_version(weights, next_share(n)) for n in range(number)]
        for version, weight in weights:
            assert abs(got.count(version) / number - weight) <= within
    people = [choose_version(weights, sticky_share(f"key-{n}")) for n in range(5000)]
    for version, weight in weights:
        assert abs(people.count(version) / 5000 - weight) < 0.03


def test_who_has_the_new_version_keeps_it_while_its_weight_grows() -> None:
    for n in range(200):
        versions = [choose_version([(1, 1 - w), (2, w)], sticky_share(str(n))) for w in (0.0, 0.1, 0.5, 1.0)]
        assert versions == sorted(versions)
    assert choose_version([(1, 0.0)], 0.5) == choose_version([], 0.5) == 0


def test_a_replica_of_no_known_version_is_as_good_as_any_versions() -> None:
    old, new, odd = load("old", version=1), load("new", version=2), load("odd")
    pool = Pool.of([old, new, odd], [(1, 0.9), (2, 0.1)])
    assert pool.versions == {1: [old, odd], 2: [new, odd]}
    for share in (0.0, 0.5):
        busy = new if share < 0.1 else old
        busy.tokens = 500
        assert choose(pool, Ask(100, share=share), site="north", now=NOW).gang == "odd"
        busy.tokens, odd.tokens = 0, 500
        assert choose(pool, Ask(100, share=share), site="north", now=NOW).gang == busy.gang
        odd.tokens = 0
    assert Pool.of([odd]).versions == {}


def test_bound_without_a_queue_is_the_slots() -> None:
    outside = load("a")
    outside.set_slots(4, queue=False)
    assert outside.bound == 4
    outside.set_slots(0, queue=False)
    assert outside.bound == load("b").bound
