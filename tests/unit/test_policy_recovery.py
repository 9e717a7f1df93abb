"""Recovery: one path for every kind of loss, and nothing healthy is touched by lost contact."""

from __future__ import annotations

from dataclasses import replace

from caudal.domain.decision import EndGang, StartGang, StopGang
from caudal.domain.fleet import LeaseState, Machine, MachineState
from caudal.domain.gang import CANNOT_START, GangState, GangStatus
from caudal.domain.workload import ServedModel, WorkloadState
from caudal.policy.rules import Rules
from tests.unit.policy_world import RULES, Play, kinds, model, service, train, waits


def running(*, sites: int = 2, at: tuple[str, ...] = ("north", "south")) -> Play:
    play = Play(train(sites=sites), sites=at)
    play.settle()
    return play


def model_named(name: str) -> ServedModel:
    return ServedModel(name, source=f"pypi:{name}==1")


def stops(play: Play, steps: int, each_s: float = 1.0) -> list[str]:
    found = []
    for _ in range(steps):
        found += [c.action.gang_id for c in play.step(each_s).choices if isinstance(c.action, StopGang)]
    return found


def test_calm_decides_nothing() -> None:
    play = running()
    decision = play.step(1.0)
    assert decision.choices == () and decision.waiting == ()


def test_a_dead_worker_is_started_again_at_its_site_after_a_pause() -> None:
    play = running()
    play.crash("starter.worker.1", -9)
    decision = play.step()
    assert kinds(decision)[0] == "end_gang starter.worker.1"
    assert waits(decision) == {"starter.worker.1": "slot.back_off"}
    play.step(RULES.restart_base_s)
    worker = play.live("starter.worker.1")[0]
    assert (worker.incarnation, worker.site) == (2, "south")


def test_what_was_lost_or_did_not_start_on_a_node_is_started_on_another_first_and_what_ended_is_not() -> None:
    for exit_code, site in ((None, "south"), (CANNOT_START, "south"), (1, "north")):
        play = Play(service("assistant", model_named("small")))
        play.models["small"] = model("small")
        play.settle()
        assert play.at()["assistant.replica.small.0"] == "north"
        play.crash("assistant.replica.small.0", exit_code)
        play.step()
        play.step(RULES.restart_base_s)
        assert play.at()["assistant.replica.small.0"] == site
    play.crash("assistant.replica.small.0", None)
    play.leases.pop("lease-south-1")
    play.step()
    play.step(10.0)
    assert play.at()["assistant.replica.small.0"] == "north", "where there is no other, it is as good as any"


def test_restarts_slow_down_and_a_long_life_makes_them_quick_again() -> None:
    play = running()
    pauses = []
    for _ in range(8):
        play.crash("starter.worker.0")
        play.step()
        began = play.now
        while not play.live("starter.worker.0"):
            play.step(0.25)
        pauses.append(play.now - began)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    play.now += RULES.healthy_after_s
    play.crash("starter.worker.0")
    play.step()
    play.step(0.5)
    assert play.live("starter.worker.0")


def test_a_blink_of_silence_changes_nothing() -> None:
    play = running()
    play.silent["south"] = play.now
    assert play.step(RULES.suspect_after_s - 0.1).choices == ()
    play.silent.clear()
    assert play.step(1.0).choices == ()


def test_silence_makes_suspect_and_contact_brings_everything_back_unharmed() -> None:
    play = running()
    before = {g.id for g in play.live()}
    play.silent["south"] = play.now
    decision = play.step(RULES.suspect_after_s)
    assert kinds(decision) == ["suspect_lease south-1"]
    assert waits(decision) == {"starter.worker.1": "contact.lost"}
    lease = play.leases["lease-south-1"]
    assert (lease.state, lease.epoch) == (LeaseState.SUSPECT, 2)
    play.step(RULES.grace_s - 1)
    play.silent.clear()
    assert kinds(play.step(0.5)) == ["trust_lease south-1"]
    assert {g.id for g in play.live()} == before
    assert {g.epoch for g in play.live("starter.worker.1")} == {2}
    assert stops(play, 3) == []


def test_after_the_grace_another_site_takes_over_and_the_old_gang_is_stopped_when_its_site_is_back() -> None:
    play = running(at=("north", "south", "west"))
    play.silent["south"] = play.now
    play.step(RULES.suspect_after_s)
    play.step(RULES.grace_s)
    assert {g.site for g in play.live("starter.worker.1")} == {"west"}
    assert play.gangs["starter.worker.1-1"].end_reason.startswith("contact.grace_over")
    play.silent.clear()
    back = play.step(1.0)
    assert "trust_lease south-1" in kinds(back)
    assert [c.action.gang_id for c in back.choices if isinstance(c.action, StopGang)] == [
        "starter.worker.1-1"
    ]
    assert stops(play, 3) == []


def test_nothing_starts_at_a_healed_site_before_what_is_fenced_there_has_ended() -> None:
    play = running(at=("north", "south", "west"))
    play.silent["south"] = play.now
    play.step(RULES.suspect_after_s)
    play.step(RULES.grace_s)
    play.silent.clear()
    play.stuck_stops = True
    play.step(1.0)
    play.workloads["second"] = replace(
        play.workloads["starter"], name="second", spec=train("second", 1, at=("south",))
    )
    assert waits(play.step(1.0)) == {
        "second.coordinator": "site.cleaning",
        "second.worker.0": "site.cleaning",
    }
    status = play.processes["starter.worker.1-1"]
    play.processes[status.gang_id] = replace(status, state=GangState.EXITED, exit_code=143)
    play.step(1.0)
    assert play.live("second.worker.0")


def test_without_another_site_the_work_waits_and_is_trusted_again() -> None:
    play = running()
    play.silent["south"] = play.now
    play.step(RULES.suspect_after_s)
    decision = play.step(RULES.grace_s * 10)
    assert waits(decision) == {"starter.worker.1": "contact.no_other_site"}
    assert not any(isinstance(c.action, EndGang | StopGang) for c in decision.choices)
    play.silent.clear()
    play.step(1.0)
    assert {g.id for g in play.live("starter.worker.1")} == {"starter.worker.1-1"}


def test_a_lost_coordinator_moves_to_the_site_that_is_left() -> None:
    play = running()
    play.silent["north"] = play.now
    play.step(RULES.suspect_after_s)
    play.step(RULES.grace_s)
    assert {g.site for g in play.live("starter.coordinator")} == {"south"}


def test_a_machine_that_is_gone_ends_its_lease_and_its_gangs() -> None:
    play = running(at=("north", "south", "west"))
    del play.machines["m-south-1"]
    for gang_id, status in play.processes.items():
        if status.site == "south":
            play.processes[gang_id] = replace(status, state=GangState.LOST)
    decision = play.step(1.0)
    assert kinds(decision)[0] == "end_lease south-1"
    assert play.leases["lease-south-1"].state is LeaseState.ENDED
    play.settle(2)
    assert {g.site for g in play.live("starter.worker.1")} == {"west"}


def test_a_silent_provider_proves_nothing() -> None:
    play = running()
    play.silent_providers = {"north", "south"}
    assert play.step(1000.0).choices == ()


def test_a_gang_that_its_driver_forgot_is_over() -> None:
    play = running()
    del play.processes["starter.worker.0-1"]
    ended = next(c for c in play.step().choices if isinstance(c.action, EndGang))
    assert ended.reason.code == "gang.gone"


def test_unknown_gangs_are_stopped_once() -> None:
    play = running()
    play.stuck_stops = True
    play.processes["stranger-1"] = GangStatus("stranger-1", GangState.RUNNING, "south")
    assert kinds(play.step()) == ["stop_gang stranger-1"]
    assert play.step(1.0).choices == ()


def test_a_stray_machine_is_given_back_after_quarantine_and_others_machines_never() -> None:
    play = running()
    play.machines["x"] = Machine("x", "north", "m1", MachineState.RUNNING, "test.north.7.1")
    play.machines["z"] = Machine("z", "north", "m1", MachineState.RUNNING, "another.north.7.1")
    play.machines["y"] = Machine("y", "north", "m1", MachineState.RUNNING, "")
    play.stray_since = dict.fromkeys("xyz", play.now)
    assert play.step(RULES.quarantine_s - 1).choices == ()
    assert [c.action.kind for c in play.decide_later(1.0).choices] == ["release_machine"]


def test_a_run_fails_after_so_many_fruitless_coordinators_and_says_why() -> None:
    play = Play(train(sites=1))
    rules = Rules(restart_max_s=0.5)
    play.step(rules=rules)
    for _ in range(rules.max_coordinator_failures):
        play.report("starter.coordinator", error="no data there", round=0)
        play.crash("starter.coordinator", 1)
        play.step(rules=rules)
        play.step(1.0, rules=rules)
    run = play.workloads["starter"]
    assert run.state is WorkloadState.FAILED
    assert "no data there" in run.reason and "8 coordinators" in run.reason
    play.settle(3)
    assert play.live() == []


def test_progress_keeps_a_run_alive() -> None:
    play = Play(train(sites=1))
    rules = Rules(restart_max_s=0.5)
    play.step(rules=rules)
    for number in range(20):
        play.report("starter.coordinator", round=number + 1)
        play.crash("starter.coordinator", 1)
        play.step(rules=rules)
        play.step(1.0, rules=rules)
    assert not play.workloads["starter"].over


def test_a_coordinator_that_says_it_cannot_be_done_is_believed() -> None:
    play = running()
    play.report("starter.coordinator", error="data: /x is empty")
    play.crash("starter.coordinator", 2)
    play.step()
    assert play.workloads["starter"].state is WorkloadState.FAILED
    assert "data: /x is empty" in play.workloads["starter"].reason


def test_a_replica_is_replaced_after_its_loss() -> None:
    play = Play(service())
    play.models["small"] = model()
    play.settle()
    play.crash("assistant.replica.small.0", None)
    play.settle(3)
    assert [g.incarnation for g in play.live("assistant.replica.small.0")] == [2]
    assert any(isinstance(i.action, StartGang) for i in play.intents.values())
