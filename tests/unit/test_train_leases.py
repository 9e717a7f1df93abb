"""Every id is free, leased or committed: exactly one of the three, always."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caudal.train.interface import IdRange
from caudal.train.leases import Pool, complement, size, union


def ids(ranges: tuple[IdRange, ...]) -> list[int]:
    return [i for r in ranges for i in range(r.start, r.stop)]


def test_the_lowest_free_ids_are_leased_first_and_come_back_first() -> None:
    pool = Pool(100)
    assert pool.lease("a", 10, 0, 50) == (IdRange(0, 10),)
    assert pool.lease("b", 10, 0, 50) == (IdRange(10, 20),)
    assert pool.give_back("a") == (IdRange(0, 10),)
    assert pool.lease("c", 15, 0, 50) == (IdRange(0, 10), IdRange(20, 25))
    assert pool.give_back("unknown") == ()


def test_a_lease_ends_where_its_span_ends() -> None:
    pool = Pool(100, [IdRange(40, 45)])
    assert pool.lease("a", 100, 30, 50) == (IdRange(30, 40), IdRange(45, 50))
    assert pool.lease("b", 5, 30, 50) == () and "b" not in pool.leases
    pool.commit(["a"])
    assert pool.committed_in(30, 50) == 20 and pool.free_in(30, 50) == 0 and not pool.done


def test_the_same_id_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="id 5 is there twice"):
        union([IdRange(0, 10)], [IdRange(5, 6)])
    with pytest.raises(ValueError, match="not a range"):
        union([], [IdRange(3, 3)])


@given(st.lists(st.tuples(st.sampled_from("lgc"), st.integers(1, 30), st.integers(0, 5)), max_size=60))
def test_nothing_is_ever_lost_or_doubled(steps: list[tuple[str, int, int]]) -> None:
    pool = Pool(200)
    for number, (what, count, pick) in enumerate(steps):
        names = sorted(pool.leases)
        if what == "l":
            pool.lease(str(number), count, 0, 200)
        elif names and what == "g":
            pool.give_back(names[pick % len(names)])
        elif names:
            pool.commit([names[pick % len(names)]])
        leased = [i for r in pool.leases.values() for i in ids(r)]
        assert sorted(ids(pool.free) + leased + ids(pool.committed)) == list(range(200))
    assert size(complement(pool.committed, 200)) == 200 - size(pool.committed)
