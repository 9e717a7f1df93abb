"""When a request leaves the fleet."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from caudal.policy.overflow import OverflowOption, choose_overflow
from caudal.policy.routing import Route

FULL = Route(None, "full")
NONE = Route(None, "no_replica")
CHEAP = OverflowOption("cheap", 0, 4, 1.0, True)
DEAR = OverflowOption("dear", 0, 4, 9.0, True)


def choose(own: Route, *options: OverflowOption, tried: frozenset[str] = frozenset()) -> Route:
    return choose_overflow(own, options, now=100.0, tried=tried)


def test_own_replicas_first() -> None:
    assert choose(Route("a", "local"), CHEAP) == Route("a", "local")
    for own in (FULL, NONE, Route(None, "failing")):
        assert choose(own, DEAR, CHEAP) == Route("cheap", "overflow")


def test_an_own_replica_that_failed_this_request_gives_way() -> None:
    own = Route("a", "local")
    assert choose(own, CHEAP, tried=frozenset({"a"})).gang == "cheap"
    assert choose(own, CHEAP, tried=frozenset({"a", "cheap"})) == own, "nothing else is left"
    assert choose(FULL, CHEAP, DEAR, tried=frozenset({"cheap"})).gang == "dear"
    assert choose(FULL, CHEAP, tried=frozenset({"cheap"})).gang == "cheap"


def test_why_there_is_none() -> None:
    spent, failed, full = (
        replace(CHEAP, affordable=False),
        replace(CHEAP, avoid_until=101.0),
        replace(CHEAP, requests=4),
    )
    for option in (spent, failed, full):
        assert choose(FULL, option) == FULL, "the fleet's own reason stands"
    assert choose(NONE, spent) == Route(None, "budget_spent")
    assert choose(NONE, failed) == choose(NONE, failed, spent) == Route(None, "failing")
    assert choose(NONE, full) == Route(None, "full")
    assert choose(NONE) == NONE


OPTIONS = st.lists(
    st.builds(
        OverflowOption,
        st.sampled_from("pqrst"),
        st.integers(0, 5),
        st.integers(1, 5),
        st.floats(0, 10),
        st.booleans(),
        st.sampled_from([0.0, 99.0, 101.0]),
    ),
    max_size=5,
    unique_by=lambda o: o.name,
)
OWN = st.sampled_from([Route("a", "local"), Route("b", "remote"), FULL, NONE, Route(None, "failing")])


@given(OWN, OPTIONS, st.frozensets(st.sampled_from("abpqrst")))
def test_nobody_pays_for_what_the_fleet_can_do_nor_beyond_the_budget(
    own: Route, options: list[OverflowOption], tried: frozenset[str]
) -> None:
    chosen = choose(own, *options, tried=tried)
    if own.gang is not None and own.gang not in tried:
        assert chosen == own
    usable = {
        o.name: o for o in options if o.affordable and o.avoid_until <= 100 and o.requests < o.max_requests
    }
    fresh = [o for o in usable.values() if o.name not in tried]
    if chosen.reason == "overflow":
        assert chosen.gang in usable
        if fresh:
            assert chosen.gang not in tried
            assert usable[chosen.gang].most == min(o.most for o in fresh)
    elif own.gang is None:
        assert not usable
