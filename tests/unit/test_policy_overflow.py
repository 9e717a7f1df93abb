"""When a request leaves the fleet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caudal.policy.overflow import OverflowOption, choose_overflow
from caudal.policy.routing import ReplicaLoad, Route


def load(gang: str, requests: int = 0, slots: int = 4, failed_at: float | None = None) -> ReplicaLoad:
    made = ReplicaLoad(gang, "")
    made.set_slots(slots, queue=False)
    made.requests = requests
    if failed_at is not None:
        made.breaker.failed(failed_at, False, hard=True)
    return made


OWN_A, OWN_B = load("a"), load("b")
FULL = Route(None, "full")
NONE = Route(None, "no_replica")
CHEAP = OverflowOption(load("cheap"), 1.0, True)
DEAR = OverflowOption(load("dear"), 9.0, True)


def choose(own: Route, *options: OverflowOption, tried: frozenset[str] = frozenset()) -> Route:
    return choose_overflow(own, options, now=100.0, tried=tried)


def test_own_replicas_first() -> None:
    assert choose(Route(OWN_A, "local"), CHEAP) == Route(OWN_A, "local")
    for own in (FULL, NONE, Route(None, "failing")):
        assert choose(own, DEAR, CHEAP) == Route(CHEAP.replica, "overflow")


def test_an_own_replica_that_failed_this_request_gives_way() -> None:
    own = Route(OWN_A, "local")
    assert choose(own, CHEAP, tried=frozenset({"a"})).gang == "cheap"
    assert choose(own, CHEAP, tried=frozenset({"a", "cheap"})) == own, "nothing else is left"
    assert choose(FULL, CHEAP, DEAR, tried=frozenset({"cheap"})).gang == "dear"
    assert choose(FULL, CHEAP, tried=frozenset({"cheap"})).gang == "cheap"


def test_why_there_is_none() -> None:
    spent, failed, full = (
        OverflowOption(load("cheap"), 1.0, False),
        OverflowOption(load("cheap", failed_at=99.5), 1.0, True),
        OverflowOption(load("cheap", requests=4), 1.0, True),
    )
    for option in (spent, failed, full):
        assert choose(FULL, option) == FULL, "the fleet's own reason stands"
    assert choose(NONE, spent) == Route(None, "budget_spent")
    assert choose(NONE, failed) == choose(NONE, failed, spent) == Route(None, "failing")
    assert choose(NONE, full) == Route(None, "full")
    assert choose(NONE) == NONE


def test_one_request_tries_an_address_that_failed() -> None:
    option = OverflowOption(load("cheap", failed_at=90.0), 1.0, True)
    assert choose(NONE, option).gang == "cheap" and option.replica.breaker.begin(100.0)
    assert choose(NONE, option) == Route(None, "failing"), "until that one is answered"


OPTIONS = st.lists(
    st.builds(
        OverflowOption,
        st.builds(
            load,
            st.sampled_from("pqrst"),
            st.integers(0, 5),
            st.integers(1, 5),
            st.sampled_from([None, 90.0, 99.5]),
        ),
        st.floats(0, 10),
        st.booleans(),
    ),
    max_size=5,
    unique_by=lambda o: o.replica.gang,
)
OWN = st.sampled_from([Route(OWN_A, "local"), Route(OWN_B, "remote"), FULL, NONE, Route(None, "failing")])


@given(OWN, OPTIONS, st.frozensets(st.sampled_from("abpqrst")))
def test_nobody_pays_for_what_the_fleet_can_do_nor_beyond_the_budget(
    own: Route, options: list[OverflowOption], tried: frozenset[str]
) -> None:
    chosen = choose(own, *options, tried=tried)
    if own.gang is not None and own.gang not in tried:
        assert chosen == own
    usable = {
        o.replica.gang: o
        for o in options
        if o.affordable and o.replica.breaker.admits(100.0) and o.replica.requests < o.replica.bound
    }
    fresh = [o for o in usable.values() if o.replica.gang not in tried]
    if chosen.reason == "overflow":
        assert chosen.gang in usable
        if fresh:
            assert chosen.gang not in tried
            assert usable[chosen.gang].most == min(o.most for o in fresh)
    elif own.gang is None:
        assert not usable
