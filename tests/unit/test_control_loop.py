"""The loop: starts what is wanted, survives being killed between any two steps, adopts, and yields to
another leader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from caudal.control import reports
from caudal.control.apply import apply, stop
from caudal.control.loop import ControlLoop
from caudal.domain.decision import AcquireNode, IntentState, StartGang
from caudal.domain.errors import LostLeadership, PullFailed, StateHeld, Unreachable
from caudal.domain.fleet import LeaseState
from caudal.domain.gang import GangStatus
from caudal.domain.workload import WorkloadState
from tests.unit.control_world import RUN, SERVICE, Bench

WANTED = {
    "starter.coordinator",
    "starter.worker.0",
    "starter.worker.1",
    "assistant.replica.small.0",
    "gateway.0",
}


def slots(bench: Bench) -> set[str]:
    return {g.slot for g in bench.live()}


def test_everything_that_is_wanted_runs_once() -> None:
    bench = Bench(RUN, SERVICE)
    bench.run(6)
    assert slots(bench) == WANTED
    assert sorted(bench.started) == sorted(f"{s}-1" for s in WANTED)
    assert set(bench.processes()) == set(bench.started)
    assert {x.state for x in bench.store.read().leases} == {LeaseState.ACTIVE}
    assert [i for i in bench.store.read().intents if i.open] == []


def test_a_calm_pass_writes_nothing() -> None:
    bench = Bench(RUN, SERVICE)
    bench.run(8)
    version = bench.store.read().version
    bench.run(5)
    assert bench.store.read().version == version
    assert not bench.loop.busy


@pytest.mark.parametrize("more", [1, 2, 3])
def test_killed_again_and_again_between_any_two_steps_it_ends_up_the_same(more: int) -> None:
    """Each process lives for `more` steps longer than the last, so that every cut is made at some time."""
    bench = Bench(RUN, SERVICE)
    lives = 1
    for number in range(60):
        live_for(bench, bench.process(f"process-{number}"), lives)
        bench.clock.sleep(bench.settings.leader_ttl_s + 1.0)
        lives += more
    bench.run(5, loop=bench.process("last"))
    assert slots(bench) == WANTED
    assert len(bench.started) == len(set(bench.started)) == len(WANTED), "nothing is started twice"
    assert bench.processes() == {g.id: g.site for g in bench.live()}
    assert len(bench.store.read().leases) == 2
    assert sum(len(p.existing()) for p in bench.providers.values()) == 2


def live_for(bench: Bench, loop: ControlLoop, steps: int) -> None:
    """Take that many steps, over as many passes as they fill, and then be gone."""
    while steps > 0:
        for _ in loop.steps():
            steps -= 1
            if steps == 0:
                return
        bench.clock.sleep(0.5)


def test_a_process_that_returns_after_a_long_absence_adopts_what_runs() -> None:
    bench = Bench(RUN, SERVICE)
    bench.run(6)
    before = bench.processes()
    bench.clock.sleep(3_600.0)
    bench.run(5, loop=bench.process("next"))
    assert bench.processes() == before and len(bench.started) == len(before)


def test_what_died_in_the_absence_is_started_again() -> None:
    bench = Bench(RUN)
    bench.run(6)
    bench.drivers["south"].crash("starter.worker.1-1")
    bench.clock.sleep(60.0)
    bench.run(3, loop=bench.process("next"))
    assert [g.incarnation for g in bench.live("starter.worker.1")] == [2]
    ended = next(g for g in bench.store.read().gangs if g.id == "starter.worker.1-1")
    assert ended.exit_code == -9 and ended.end_reason.startswith("gang.exited")


def test_only_one_leads_and_the_other_says_who() -> None:
    bench = Bench(RUN)
    bench.loop.run_once()
    with pytest.raises(StateHeld, match="first"):
        bench.process("second").run_once()
    bench.loop.resign()
    bench.process("second").run_once()


def test_a_process_that_was_held_up_reaches_nothing_when_it_wakes() -> None:
    bench = Bench(RUN)
    bench.run(2)
    woken = bench.loop.steps()
    apply(bench.store, [SERVICE], bench.clock.now())
    for step in woken:
        if step.startswith("calling"):
            break
    before = list(bench.started), list(bench.models.pulled)
    bench.clock.sleep(60.0)
    bench.process("second").lead()
    with pytest.raises((LostLeadership, StateHeld)):
        list(woken)
    assert (bench.started, bench.models.pulled) == before


def test_a_decision_on_a_state_that_has_changed_is_dropped() -> None:
    bench = Bench(RUN)
    steps = bench.loop.steps()
    names = []
    for name in steps:
        names.append(name)
        if name == "decided":
            stop(bench.store, "starter", bench.clock.now())
    assert names == ["led", "observed", "decided", "guarded", "stale"]
    bench.run(6)
    assert bench.started == []
    assert bench.store.read().workloads[0].state is WorkloadState.STOPPED


def test_an_answer_that_is_lost_starts_nothing_twice() -> None:
    bench = Bench(RUN)
    lost = iter(["lost_answer", "lost_call", "lost_answer"] * 2)
    for driver in bench.drivers.values():
        driver._fault = lambda call: next(lost, "") if call == "start" else ""  # type: ignore[assignment,return-value]
    bench.run(12)
    assert len(bench.started) == len(set(bench.started)) == 3
    assert len(bench.processes()) == 3


def test_a_start_that_never_works_is_given_up_and_made_anew() -> None:
    bench = Bench(RUN)
    for driver in bench.drivers.values():
        driver._fault = lambda call: "lost_call" if call == "start" else ""  # type: ignore[assignment]
    bench.run_until(
        lambda: any(g.end_reason.startswith("gang.start_failed") for g in bench.store.read().gangs)
    )
    for driver in bench.drivers.values():
        driver._fault = lambda call: ""
    bench.run_until(lambda: len(bench.processes()) == 3)
    assert "intent.failed" in bench.kinds()


def test_no_capacity_is_remembered_and_tried_again_later() -> None:
    bench = Bench(replace(RUN, sites=1), sites=("north",))
    bench.providers["fake-north"].set_capacity("own@north", 0)
    bench.providers["fake-north"].offers = lambda: []  # type: ignore[method-assign]
    bench.run(3)
    assert bench.store.read().leases == ()
    del bench.providers["fake-north"].offers  # type: ignore[attr-defined]
    bench.providers["fake-north"].set_capacity("own@north", 1)
    bench.run_until(lambda: bool(bench.processes()))


def test_a_machine_that_died_before_it_was_seen_is_asked_for_anew() -> None:
    bench = Bench(replace(RUN, sites=1), sites=("north",))
    bench.loop.run_once()
    bench.providers["fake-north"].kill("fake-north-m0001")
    bench.run_until(lambda: bool(bench.processes()), passes=150)
    asked = [i for i in bench.store.intents("north-1") if isinstance(i.action, AcquireNode)]
    assert len({i.action.lease_id for i in asked}) == 2  # type: ignore[union-attr]


def test_a_failed_pull_is_an_event_and_is_tried_again() -> None:
    bench = Bench(SERVICE)
    bench.models.fails = PullFailed("no network", remedy="plug it in")
    bench.run(2)
    failed = next(e for e in bench.store.events() if e.kind == "intent.failed")
    assert "no network" in failed.text
    bench.run_until(lambda: "small" in bench.models.records)
    bench.run_until(lambda: bool(bench.live("assistant.replica.small.0")))
    assert "model.pulled" in bench.kinds()


def test_silence_shows_as_suspect_and_heals_without_a_restart() -> None:
    bench = Bench(RUN)
    bench.run(6)
    bench.drivers["south"].silent = True
    bench.run(6)
    assert {x.site: x.state for x in bench.store.read().leases}["south"] is LeaseState.SUSPECT
    bench.drivers["south"].silent = False
    bench.run(3)
    assert {x.state for x in bench.store.read().leases} == {LeaseState.ACTIVE}
    assert len(bench.started) == 3


def test_a_call_in_vain_counts_as_silence_for_as_long_as_it_took_and_the_next_look_is_at_once() -> None:
    bench = Bench(RUN)
    bench.run(12)
    assert not bench.loop.busy
    south = bench.drivers["south"]
    listed = south.gangs

    def in_vain() -> Sequence[GangStatus]:
        bench.clock.sleep(1.1)
        return listed()

    south.silent, south.gangs = True, in_vain  # type: ignore[method-assign]

    def state() -> LeaseState:
        return {x.site: x.state for x in bench.store.read().leases}["south"]

    bench.loop.run_once()
    assert state() is LeaseState.ACTIVE and bench.loop.busy
    bench.loop.run_once()
    assert state() is LeaseState.SUSPECT
    bench.clock.sleep(60.0)
    bench.loop.run_once()
    bench.loop.run_once()
    assert not bench.loop.busy, "what has been away for long is not looked for all the time"


def test_a_run_that_ends_well_is_finished_and_its_gangs_are_forgotten() -> None:
    bench = Bench(RUN, SERVICE)
    bench.run(6)
    bench.models.put("starter", run="starter")
    for gang in bench.live():
        if gang.workload == "starter":
            bench.drivers[gang.site].finish(gang.id, 0)
    bench.run(4)
    run = next(w for w in bench.store.read().workloads if w.name == "starter")
    assert run.state is WorkloadState.FINISHED
    assert {"run.finished", "model.published"} <= set(bench.kinds())
    assert bench.live("assistant.replica.starter.0")
    listed = {s.gang_id for d in bench.drivers.values() for s in d.gangs()}
    assert listed == {g.id for g in bench.live()}


def test_a_coordinator_that_always_dies_makes_its_run_fail_and_it_can_be_applied_again() -> None:
    bench = Bench(RUN)
    bench.run(4)

    def die() -> bool:
        for gang in bench.live("starter.coordinator"):
            bench.drivers[gang.site].crash(gang.id, 1)
        return bench.store.read().workloads[0].state is WorkloadState.FAILED

    bench.run_until(die, passes=300)
    assert bench.started.count("starter.coordinator-8") == 1 and "starter.coordinator-9" not in bench.started
    bench.run(5)
    assert bench.live() == [] and "run.failed" in bench.kinds()
    apply(bench.store, [RUN], bench.clock.now())
    bench.run(4)
    assert len(bench.live()) == 3 and bench.store.read().workloads[0].state is WorkloadState.RUNNING


def test_reports_make_a_service_run() -> None:
    bench = Bench(SERVICE)
    bench.run(6)
    for gang in bench.live():
        body = {"at": 1.0, "status": {"ready": True, "url": "http://127.0.0.1:1"}, "points": []}
        reports.accept(bench.store, gang.id, body, bench.clock.now())
    bench.run(1)
    assert bench.store.read().workloads[0].state is WorkloadState.RUNNING


def test_a_model_store_that_does_not_answer_stops_nothing() -> None:
    bench = Bench(SERVICE)
    bench.run(6)
    before = bench.processes()

    def away() -> list[object]:
        raise Unreachable("no disk")

    bench.models.list = away  # type: ignore[method-assign,assignment]
    bench.run(5)
    assert bench.processes() == before


def test_intents_hold_what_was_done_in_order_and_are_confirmed_by_sight() -> None:
    bench = Bench(RUN)
    names = list(bench.loop.steps())
    assert names[:5] == ["led", "observed", "decided", "guarded", "recorded"]
    assert names[-2:] == ["confirmed", "swept"]
    assert {i.state for i in bench.store.read().intents} == {IntentState.ISSUED}
    bench.clock.sleep(5.0)
    bench.run(3)
    started = [i for i in bench.store.intents("starter") if isinstance(i.action, StartGang)]
    assert {i.state for i in started} == {IntentState.CONFIRMED}
    assert {i.token for i in started} == set(bench.started)
