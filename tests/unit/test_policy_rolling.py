"""Replicas that replace each other: who drains when, who waits for whom, and one gateway for each site."""

from __future__ import annotations

from dataclasses import replace

from caudal.domain.decision import DrainGang, StopGang
from caudal.domain.fleet import GatewaySpec, Resources
from caudal.domain.workload import RolloutSpec, ServedModel, WorkloadState
from tests.unit.policy_world import RULES, Play, kinds, model, service, waits

OLD, NEW = "assistant.replica.small.0", "assistant.replica.small.0@v2"


def serving(*models: ServedModel, sites: tuple[str, ...] = ("north", "south")) -> Play:
    """A service that runs, and whose model has just got a second version."""
    play = Play(service("assistant", *models), sites=sites)
    play.models["small"] = model()
    play.settle(4)
    play.models["small"] = model(version=2)
    return play


def drains(play: Play) -> dict[str, bool]:
    return {g.slot: g.draining_at is not None for g in play.live() if g.role == "replica"}


def ready(play: Play, slot: str, **more: object) -> None:
    play.report(slot, ready=True, url="http://x", **more)


def test_requests_in_flight_hold_a_draining_replica_until_its_limit() -> None:
    play = serving()
    play.step(1.0)
    ready(play, NEW)
    play.step(1.0)
    assert drains(play) == {OLD: True, NEW: False}
    gang = play.live(OLD)[0]
    began = play.now
    while play.now < began + RULES.drain_s - 10:
        play.report("gateway.0", ready=True, load={gang.id: [1, 500, 20.0]})
        assert not any(isinstance(c.action, StopGang) for c in play.step(5.0).choices)
    for _ in range(3):
        play.report("gateway.0", ready=True, load={gang.id: [1, 500, 20.0]})
        play.step(5.0)
    assert not play.processes[gang.id].alive


def test_a_gateway_that_says_nothing_is_waited_for_and_one_that_died_is_not() -> None:
    play = serving()
    play.step(1.0)
    ready(play, NEW)
    play.step(1.0)
    for _ in range(10):
        assert not any(isinstance(c.action, StopGang) for c in play.step(2.0).choices)
    play.crash("gateway.0")
    assert [c.subject for c in play.step(1.0).choices if isinstance(c.action, StopGang)] == [OLD]


def test_old_replica_answers_again_where_its_successor_is_lost() -> None:
    play = serving()
    play.step(1.0)
    ready(play, NEW)
    play.step(1.0)
    play.report(NEW, ready=False)
    decision = play.step(0.5)
    assert [c.action for c in decision.choices] == [DrainGang(play.live(OLD)[0].id, draining=False)]
    assert drains(play) == {OLD: False, NEW: False}
    ready(play, NEW)
    play.step(1.0)
    assert drains(play)[OLD]


def test_canary_is_watched_before_the_old_version_goes() -> None:
    rollout = RolloutSpec(canary=0.1, hold_s=60.0)
    play = serving(ServedModel("small", source="x", rollout=rollout))
    play.step(1.0)
    ready(play, NEW, ready_since=play.now)
    for _ in range(5):
        assert play.step(10.0).choices == ()
    assert waits(play.decide()) == {OLD: "rollout.hold"}
    assert play.workloads["assistant"].state is WorkloadState.RUNNING
    play.step(20.0)
    assert drains(play) == {OLD: True, NEW: False}


def test_without_room_replicas_go_one_after_the_other_and_never_all_at_once() -> None:
    big = ServedModel("small", source="x", replicas=2, resources=Resources(0.7, 1 << 20))
    play = serving(big)
    for _ in range(60):
        play.step(0.5)
        serves = [g for g in play.live() if g.role == "replica" and play.reports.get(g.id)]
        serves = [g for g in serves if g.draining_at is None and not g.stopping]
        assert serves, "somebody has to answer"
        play.report("gateway.0", ready=True, load={})
        for gang in play.live():
            if gang.role == "replica" and play.now - gang.created_at > 1.5:
                ready(play, gang.slot)
    assert sorted(drains(play)) == [NEW, NEW.replace(".0@", ".1@")]


def test_a_new_version_that_never_gets_ready_takes_one_old_replica_at_most() -> None:
    big = ServedModel("small", source="x", replicas=2, resources=Resources(0.7, 1 << 20))
    play = serving(big)
    for _ in range(60):
        play.step(1.0)
        play.report("gateway.0", ready=True, load={})
        for gang in play.live():
            if "@v2" in gang.slot and play.processes[gang.id].alive and play.now - gang.created_at > 2:
                play.crash(gang.slot)
    old = [g for g in play.live() if g.role == "replica" and g.model_version == 1]
    assert len(old) == 1 and old[0].draining_at is None


def test_replicas_that_the_user_takes_away_drain_too() -> None:
    small = ServedModel("small", source="x", replicas=2)
    play = Play(service("assistant", small))
    play.models["small"] = model()
    play.settle(4)
    row = play.workloads["assistant"]
    fewer = service("assistant", replace(small, replicas=1))
    play.workloads["assistant"] = replace(row, spec=fewer)
    assert kinds(play.step(1.0)) == ["drain_gang assistant.replica.small.1"]
    play.workloads["assistant"] = row
    play.step(1.0)
    assert drains(play) == {OLD: False, "assistant.replica.small.1": False}


def test_each_site_has_a_gateway_of_its_own() -> None:
    play = Play(service(), sites=["north", "south", "west"])
    play.fleet = replace(play.fleet, gateway=GatewaySpec(port=9000, each_site=True))
    play.models["small"] = model()
    play.settle(4)
    assert {s: at for s, at in play.at().items() if s.startswith("gateway")} == {
        "gateway.0": "north",
        "gateway.1": "south",
        "gateway.2": "west",
    }
    assert play.fleet.gateway_ports() == (9000, 9001, 9002)
    play.crash("gateway.1")
    play.settle(3)
    assert play.at()["gateway.1"] == "south" and play.live("gateway.1")[0].incarnation == 2
    play.workloads["assistant"] = replace(play.workloads["assistant"], wanted=False)
    play.settle(3)
    assert play.live() == []


def test_one_gateway_is_kept_when_the_others_are_not_wanted_any_more() -> None:
    play = Play(service())
    play.fleet = replace(play.fleet, gateway=GatewaySpec(each_site=True))
    play.models["small"] = model()
    play.settle(4)
    play.fleet = replace(play.fleet, gateway=GatewaySpec())
    play.settle(3)
    assert [g.slot for g in play.live() if g.role == "gateway"] == ["gateway.0"]
