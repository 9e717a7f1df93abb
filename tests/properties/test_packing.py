"""Properties of the packer: nothing is over-filled, bounds hold, all that can have room has it, and nodes that come are
filled as they were meant."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.fleet import Resources
from caudal.policy.filling import Kind, Option
from caudal.policy.packing import Filled, cheapest, into

SITES = ("a", "b", "c")
GIB = 1 << 30
asked = st.builds(
    Resources, st.sampled_from([0.1, 0.5, 1.0, 1.5, 3.0, 6.0]), st.integers(1, 24).map(lambda n: n * GIB),
    st.sampled_from([0, 0, 1, 2, 4]),
)  # fmt: skip
has = st.builds(
    Resources, st.sampled_from([1.0, 2.0, 4.0, 8.0, 32.0]), st.integers(2, 128).map(lambda n: n * GIB),
    st.sampled_from([0, 0, 1, 4, 8]),
)  # fmt: skip
some_sites = st.sets(st.sampled_from(SITES), min_size=1).map(frozenset)
kinds = st.lists(
    st.builds(Kind, asked, some_sites, st.integers(1, 7), st.just(False)) | st.builds(
        Kind, asked, some_sites, st.integers(1, 3), st.just(True), st.sets(st.sampled_from(SITES), max_size=1).map(frozenset)
    ),
    min_size=1, max_size=5,
)  # fmt: skip
shapes = st.lists(
    st.tuples(st.sampled_from(SITES), has, st.integers(0, 400).map(lambda n: n / 10),
              st.none() | st.integers(0, 3), st.sampled_from(["", "", "pool"])),
    min_size=1, max_size=7,
)  # fmt: skip


def options_of(drawn: list[tuple[str, Resources, float, int | None, str]]) -> list[Option]:
    return [
        Option(f"o{n}", site, size, price, most, pool if most is not None else "")
        for n, (site, size, price, most, pool) in enumerate(drawn)
    ]


def check(plan: list[Filled], some: list[Kind], options: list[Option]) -> None:
    apart: Counter[tuple[int, str]] = Counter()
    used: Counter[str] = Counter()
    placed = [0] * len(some)
    for filled in plan:
        option = options[filled.option]
        left = option.resources
        assert any(filled.counts), "an empty machine is never taken"
        used[option.pool or option.name] += 1
        assert option.most is None or used[option.pool or option.name] <= option.most
        for k, count in enumerate(filled.counts):
            placed[k] += count
            for _ in range(count):
                assert some[k].resources.fits(left)
                left = left.minus(some[k].resources)
            if count:
                assert option.site in some[k].sites
                if some[k].apart:
                    apart[k, option.site] += count
                    assert option.site not in some[k].taken
    assert all(count <= 1 for count in apart.values())
    assert all(n <= kind.count for n, kind in zip(placed, some, strict=True))


@settings(max_examples=150, deadline=None)
@given(kinds, shapes)
def test_a_plan_breaks_no_bound(
    some: list[Kind], drawn: list[tuple[str, Resources, float, int | None, str]]
) -> None:
    options = options_of(drawn)
    check(cheapest(some, options, options), some, options)


@settings(max_examples=150, deadline=None)
@given(kinds, shapes)
def test_where_machines_are_many_all_that_fits_anywhere_has_room(
    some: list[Kind], drawn: list[tuple[str, Resources, float, int | None, str]]
) -> None:
    options = [Option(o.name, o.site, o.resources, o.usd_per_hour) for o in options_of(drawn)]
    plan = cheapest(some, options, options)
    check(plan, some, options)
    for k, kind in enumerate(some):
        there = {
            o.site for o in options if o.site in kind.sites and kind.resources.fits(o.resources)
        } - kind.taken
        wanted = min(kind.count, len(there)) if kind.apart else kind.count if there else 0
        assert sum(f.counts[k] for f in plan) == wanted


@settings(max_examples=150, deadline=None)
@given(kinds, shapes)
def test_nodes_that_come_hold_what_they_were_taken_for(
    some: list[Kind], drawn: list[tuple[str, Resources, float, int | None, str]]
) -> None:
    options = options_of(drawn)
    plan = cheapest(some, options, options)
    counts = into(some, [(options[f.option].site, options[f.option].resources) for f in plan], options)
    assert sum(map(sum, counts)) == sum(sum(f.counts) for f in plan)


@settings(max_examples=60, deadline=None)
@given(kinds, shapes)
def test_the_same_again_is_the_same(
    some: list[Kind], drawn: list[tuple[str, Resources, float, int | None, str]]
) -> None:
    options = options_of(drawn)
    assert cheapest(some, options, options) == cheapest(some, options, options)
