"""Apply and stop: wishes are taken whole or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caudal.control.apply import apply, stop
from caudal.domain.errors import Impossible, NotFound, UsageError
from caudal.domain.fleet import GatewaySpec, SiteSpec
from caudal.domain.workload import ServiceSpec, TrainSpec, Workload, WorkloadState
from tests.unit.control_world import RUN, SERVICE, Bench


def row(bench: Bench, name: str) -> Workload:
    return next(w for w in bench.store.read().workloads if w.name == name)


def changes(bench: Bench, *specs: TrainSpec | ServiceSpec) -> list[tuple[str, str, int]]:
    return [(a.name, a.change, a.generation) for a in apply(bench.store, specs, bench.clock.now())]


def test_new_unchanged_and_changed() -> None:
    bench = Bench()
    assert changes(bench, RUN, SERVICE) == [("starter", "new", 1), ("assistant", "new", 1)]
    version = bench.store.read().version
    assert changes(bench, RUN, SERVICE) == [("starter", "unchanged", 1), ("assistant", "unchanged", 1)]
    assert bench.store.read().version == version
    assert changes(bench, replace(RUN, seed=2)) == [("starter", "changed", 2)]
    assert row(bench, "starter").spec == replace(RUN, seed=2)


def test_stopped_and_failed_workloads_are_started_again_by_applying_them() -> None:
    bench = Bench(RUN)
    assert stop(bench.store, "starter", 1.0) is True
    assert stop(bench.store, "starter", 1.0) is False
    bench.run(2)
    assert row(bench, "starter").state is WorkloadState.STOPPED
    assert changes(bench, RUN) == [("starter", "started", 1)]
    assert row(bench, "starter").wanted and row(bench, "starter").state is WorkloadState.PENDING


def test_stopping_what_is_not_there_names_what_is() -> None:
    with pytest.raises(NotFound, match="starter"):
        stop(Bench(RUN).store, "stater", 1.0)


@pytest.mark.parametrize(
    ("specs", "error", "says"),
    [
        ([RUN, replace(RUN, seed=3)], UsageError, "two specs"),
        ([replace(SERVICE, name="starter")], UsageError, "is a train already"),
        ([replace(RUN, name="x", at=("north", "mars"))], Impossible, "mars"),
        ([replace(RUN, name="x", sites=3)], Impossible, "may use 2"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    specs: list[TrainSpec | ServiceSpec], error: type[Exception], says: str
) -> None:
    bench = Bench(RUN)
    version = bench.store.read().version
    with pytest.raises(error, match=says):
        apply(bench.store, [replace(SERVICE, name="fine"), *specs], 1.0)
    assert bench.store.read().version == version


def test_fleet_changes_that_would_pull_the_rug_are_refused() -> None:
    bench = Bench(SERVICE)
    bench.run(5)
    with pytest.raises(Impossible, match="another one"):
        apply(bench.store, [replace(bench.fleet, name="other")], 1.0)
    moved = SiteSpec("north", provider="aws", driver="ray")
    with pytest.raises(Impossible, match="site north"):
        apply(bench.store, [replace(bench.fleet, sites=(moved, bench.fleet.sites[1]))], 1.0)
    with pytest.raises(Impossible, match="gateway"):
        apply(bench.store, [replace(bench.fleet, gateway=GatewaySpec(port=1))], 1.0)
    grown = replace(bench.fleet, sites=(*bench.fleet.sites, SiteSpec("west")))
    assert [a.change for a in apply(bench.store, [grown], 1.0)] == ["changed"]


def test_it_tries_again_when_the_loop_was_faster() -> None:
    bench = Bench(RUN)
    read, times = bench.store.read, []

    def interrupted():  # type: ignore[no-untyped-def]
        state = read()
        if len(times) < 3:
            times.append(1)
            bench.store.read = read  # type: ignore[method-assign]
            stop(bench.store, "starter", 1.0)
            apply(bench.store, [RUN], 1.0)
            bench.store.read = interrupted  # type: ignore[method-assign]
        return state

    bench.store.read = interrupted  # type: ignore[method-assign]
    assert changes(bench, SERVICE) == [("assistant", "new", 1)]
    assert len(times) == 3
