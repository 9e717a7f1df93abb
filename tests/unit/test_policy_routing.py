"""Which replica answers next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caudal.policy.routing import REMOTE_TOKENS, ReplicaLoad, Route, choose_replica


def choose(*replicas: ReplicaLoad, tried: frozenset[str] = frozenset(), now: float = 100.0) -> Route:
    return choose_replica(replicas, site="north", now=now, max_requests=4, tried=tried)


def test_fewest_tokens_in_flight() -> None:
    assert choose(ReplicaLoad("a", "north", 1, 900), ReplicaLoad("b", "north", 3, 100)).gang == "b"


def test_local_site_first_until_it_is_much_busier() -> None:
    remote = ReplicaLoad("b", "south", 0, 0)
    assert choose(ReplicaLoad("a", "north", 1, REMOTE_TOKENS - 1), remote) == Route("a", "local")
    assert choose(ReplicaLoad("a", "north", 1, REMOTE_TOKENS + 1), remote) == Route("b", "remote")


def test_failed_replica_is_avoided_until_its_time() -> None:
    failed = ReplicaLoad("a", "north", 0, 0, avoid_until=101.0)
    assert choose(failed, ReplicaLoad("b", "south", 3, 9999)).gang == "b"
    assert choose(failed) == Route(None, "failing")
    assert choose(failed, now=101.0).gang == "a"


def test_one_that_failed_this_request_is_last() -> None:
    a, b = ReplicaLoad("a", "north", 0, 0), ReplicaLoad("b", "south", 3, 9999)
    assert choose(a, b, tried=frozenset({"a"})).gang == "b"
    assert choose(a, tried=frozenset({"a"})).gang == "a"


def test_why_there_is_none() -> None:
    assert choose() == Route(None, "no_replica")
    assert choose(ReplicaLoad("a", "north", 4, 0)) == Route(None, "full")


loads = st.builds(
    ReplicaLoad,
    gang=st.text("abcdef", min_size=1, max_size=2),
    site=st.sampled_from(["north", "south"]),
    requests=st.integers(0, 6),
    tokens=st.integers(0, 5000),
    avoid_until=st.sampled_from([0.0, 200.0]),
)


@given(st.lists(loads, max_size=8, unique_by=lambda r: r.gang))
def test_choice_is_allowed_and_does_not_depend_on_order(replicas: list[ReplicaLoad]) -> None:
    route = choose(*replicas)
    allowed = {r.gang for r in replicas if r.avoid_until <= 100.0 and r.requests < 4}
    assert (route.gang in allowed) if allowed else route.gang is None
    assert choose(*reversed(replicas)) == route
