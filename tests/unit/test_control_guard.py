"""Guard, record, confirm: limits on a decision, and how it is written down."""

from __future__ import annotations

from dataclasses import replace

from caudal.control.confirm import confirm
from caudal.control.guard import guard
from caudal.control.record import record
from caudal.control.settings import Settings
from caudal.domain.decision import (
    Choice,
    Decision,
    Intent,
    IntentState,
    Reason,
    ReleaseMachine,
    StartGang,
    StopGang,
)
from caudal.domain.fleet import LeaseState, Machine, MachineState
from tests.unit.policy_world import Play, model, offer, service, train


def stop_all(play: Play, code: str) -> Decision:
    choices = tuple(Choice(StopGang(g.id), g.slot, Reason(code, "test")) for g in play.live())
    return Decision(play.version, play.now, choices)


def settled() -> Play:
    play = Play(train(), service())
    play.models["small"] = model()
    play.settle()
    return play


def test_the_fleet_does_not_stop_most_of_itself() -> None:
    play = settled()
    assert len(play.live()) == 5
    guarded = guard(stop_all(play, "model.newer"), play.snapshot(), Settings())
    assert len(guarded.choices) == 2
    assert [w.reason.code for w in guarded.waiting] == ["guard.blast_radius"] * 3


def test_what_the_user_asked_for_has_no_such_limit() -> None:
    play = settled()
    decision = stop_all(play, "workload.stopped")
    assert guard(decision, play.snapshot(), Settings()) is decision


def test_one_gang_may_always_be_stopped() -> None:
    play = Play(train(sites=1))
    play.settle()
    one = stop_all(play, "model.newer")
    assert len(guard(replace(one, choices=one.choices[:1]), play.snapshot(), Settings()).choices) == 1


def test_a_slot_is_not_started_again_and_again() -> None:
    play = Play(train(sites=1))
    decision = play.decide()
    gang = next(c.action.gang for c in decision.choices if isinstance(c.action, StartGang))
    for number in range(12):
        old = replace(
            gang, id=f"old-{number}", incarnation=number, ended_at=play.now, created_at=play.now - 30
        )
        play.gangs[old.id] = old
    guarded = guard(decision, play.snapshot(), Settings())
    assert [w.reason.code for w in guarded.waiting] == ["guard.rate"]
    assert gang.slot not in {c.subject for c in guarded.choices if isinstance(c.action, StartGang)}


def test_a_replay_writes_the_same_bytes_and_ids_are_never_used_again() -> None:
    play = Play(train(), service())
    play.offers = [offer("north")]
    snapshot, decision = play.snapshot(), play.decide()
    assert repr(record(decision, snapshot, 3)) == repr(record(decision, snapshot, 3))
    ids = [i.id for i in record(decision, snapshot, 3).intents]
    play.version += 1
    later = play.snapshot()
    assert not set(ids) & {i.id for i in record(play.decide(), later, 3).intents}
    assert len(set(ids)) == len(ids)


def test_a_start_has_the_gangs_own_token() -> None:
    play = Play(train())
    change = record(play.decide(), play.snapshot(), 1)
    assert {i.token for i in change.intents} == {g.id for g in change.gangs}
    assert {e.kind for e in change.events} >= {"gang.starting"}


def intent_of(play: Play, action: ReleaseMachine | StopGang, **given: object) -> Intent:
    values = {"state": IntentState.ISSUED, "changed_at": play.now, **given}
    reason = Reason("test", "test", {"site": "north"})
    return Intent("i1", "i1", action, "x", reason, created_at=play.now, **values)  # type: ignore[arg-type]


def test_absence_confirms_only_what_was_issued_before_the_look_and_where_somebody_answers() -> None:
    play = settled()
    play.intents = {"i1": intent_of(play, ReleaseMachine("gone", "north"))}
    assert confirm(play.snapshot().state, play.snapshot()) is not None
    play.silent_providers = {"north"}
    assert confirm(play.snapshot().state, play.snapshot()) is None
    play.silent_providers = set()
    play.intents = {"i1": intent_of(play, ReleaseMachine("gone", "north"), changed_at=play.now + 1)}
    assert confirm(play.snapshot().state, play.snapshot()) is None
    play.intents = {"i1": intent_of(play, StopGang("starter.worker.0-1"))}
    assert confirm(play.snapshot().state, play.snapshot()) is None, "it still lives"


def test_a_lease_becomes_active_when_its_machine_is_seen_to_run() -> None:
    play = Play(sites=["north"])
    row = replace(play.leases["lease-north-1"], state=LeaseState.REQUESTED, machine_id="", active_at=None)
    play.leases[row.id] = row
    play.machines = {"m": Machine("m", "north", "m1", MachineState.PENDING, row.id)}
    assert confirm(play.snapshot().state, play.snapshot()) is None
    play.machines["m"] = replace(play.machines["m"], state=MachineState.RUNNING)
    change = confirm(play.snapshot().state, play.snapshot())
    assert change is not None
    assert (change.leases[0].state, change.leases[0].machine_id) == (LeaseState.ACTIVE, "m")
