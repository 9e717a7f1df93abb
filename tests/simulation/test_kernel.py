"""Virtual time and the seeded tree: what makes a simulation the same every time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caudal.simulate.kernel import START, Kernel
from caudal.simulate.tree import Tree


@given(st.lists(st.integers(min_value=0, max_value=20), max_size=30))
def test_events_run_in_order_of_time_and_then_of_scheduling(delays: list[int]) -> None:
    kernel = Kernel()
    ran: list[tuple[float, int]] = []
    for number, delay in enumerate(delays):
        kernel.after(float(delay), lambda n=number: ran.append((kernel.now() - START, n)))  # type: ignore[misc]
    kernel.run_until(START + 100.0)
    assert ran == sorted((float(delay), number) for number, delay in enumerate(delays))
    assert kernel.now() == START + 100.0


def test_nothing_runs_before_its_time() -> None:
    kernel = Kernel()
    ran: list[str] = []
    kernel.after(5.0, lambda: ran.append("late"))
    kernel.run_until(START + 4.9)
    assert ran == []


def test_the_world_goes_on_while_somebody_sleeps() -> None:
    kernel = Kernel()
    seen: list[tuple[str, float]] = []

    def slow() -> None:
        kernel.sleep(10.0)
        seen.append(("slow", kernel.elapsed()))

    kernel.after(1.0, slow)
    kernel.after(3.0, lambda: seen.append(("other", kernel.elapsed())))
    kernel.run_until(START + 5.0)
    assert seen == [("other", 3.0), ("slow", 11.0)]
    assert kernel.elapsed() == 11.0


@given(st.integers(), st.permutations(["faults", "boot", "calls"]))
def test_a_branch_does_not_depend_on_who_drew_before(seed: int, order: list[str]) -> None:
    tree = Tree(seed)
    drawn = {}
    for name in order:
        chance = tree.branch(name).chance()
        drawn[name] = [chance.random() for _ in range(3)]
    again = Tree(seed).branch("faults").chance()
    assert drawn["faults"] == [again.random() for _ in range(3)]


def test_branches_and_seeds_differ() -> None:
    paths = [Tree(1).branch("a"), Tree(1).branch("b"), Tree(2).branch("a"), Tree(1).branch("a").branch("b")]
    assert len({tree.chance().random() for tree in paths}) == len(paths)
