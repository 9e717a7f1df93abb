"""The life of workloads: started, finished, stopped, changed; models that come and are replaced."""

from __future__ import annotations

from dataclasses import replace

from caudal.domain.decision import AcquireNode, IntentState, PullModel, ReleaseNode, StartGang, StopGang
from caudal.domain.fleet import LeaseState, Market, Resources, SiteSpec
from caudal.domain.workload import ExternalSpec, ServedModel, Workload, WorkloadState
from caudal.policy import decide
from tests.unit.policy_world import RULES, Play, kinds, model, offer, service, train, waits


def state_of(play: Play, name: str) -> Workload:
    return play.workloads[name]


def test_a_run_finishes_when_its_coordinator_ends_well_and_workers_may_leave_by_themselves() -> None:
    play = Play(train())
    play.settle()
    assert state_of(play, "starter").state is WorkloadState.RUNNING
    play.crash("starter.coordinator", 0)
    decision = play.step()
    assert kinds(decision) == ["end_gang starter.coordinator", "set_workload_state starter"]
    assert state_of(play, "starter").state is WorkloadState.FINISHED
    assert play.step(RULES.leave_s - 1).choices == ()
    late = play.step(1.0)
    assert {c.reason.code for c in late.choices} == {"run.finished"}
    play.settle(2)
    assert play.live() == []


def test_code_zero_after_being_asked_to_end_is_not_finished() -> None:
    play = Play(train())
    play.settle()
    play.workloads["starter"] = replace(state_of(play, "starter"), wanted=False)
    play.stuck_stops = True
    play.step()
    play.crash("starter.coordinator", 0)
    play.step()
    assert state_of(play, "starter").state is not WorkloadState.FINISHED


def test_a_worker_that_left_with_its_work_done_stays_away_until_somebody_asks() -> None:
    play = Play(train())
    play.settle()
    play.crash("starter.worker.0", 0)
    play.settle(3)
    assert not play.live("starter.worker.0")
    play.crash("starter.coordinator", 1)
    play.settle(3)
    assert play.live("starter.worker.0"), "a coordinator that was started later needs workers again"


def test_stopping_stops_all_and_then_says_stopped() -> None:
    play = Play(train(), service())
    play.models["small"] = model()
    play.settle()
    play.workloads = {n: replace(w, wanted=False) for n, w in play.workloads.items()}
    decision = play.step()
    assert {c.reason.code for c in decision.choices if isinstance(c.action, StopGang)} == {"workload.stopped"}
    play.settle(3)
    assert play.live() == []
    assert {w.state for w in play.workloads.values()} == {WorkloadState.STOPPED}


def test_a_new_generation_of_a_run_ends_the_old_one_first() -> None:
    play = Play(train())
    play.settle()
    play.workloads["starter"] = replace(state_of(play, "starter"), generation=2)
    decision = play.step()
    assert {c.reason.code for c in decision.choices if isinstance(c.action, StopGang)} == {
        "generation.changed"
    }
    assert not any(isinstance(c.action, StartGang) for c in decision.choices)
    play.settle(3)
    assert {g.generation for g in play.live()} == {2} and len(play.live()) == 3


def test_a_service_says_what_it_waits_for_until_it_serves() -> None:
    play = Play(service())
    decision = play.step()
    pulls = [c.action for c in decision.choices if isinstance(c.action, PullModel)]
    assert pulls == [PullModel("small", "pypi:small==1")]
    assert waits(decision)["assistant.replica.small"] == "model.pulling"
    assert "pulled" in state_of(play, "assistant").reason
    play.models["small"] = model()
    play.step(1.0)
    play.step(1.0)
    assert state_of(play, "assistant").state is WorkloadState.PENDING
    play.settle(2)
    assert state_of(play, "assistant").state is WorkloadState.RUNNING


def test_a_model_that_is_served_elsewhere_has_no_replica_here() -> None:
    there = ServedModel("big", external=ExternalSpec("https://api.example.com/v1"))
    play = Play(service("assistant", there))
    play.settle()
    assert {g.role for g in play.live()} == {"gateway"} and waits(play.decide()) == {}
    assert state_of(play, "assistant").state is WorkloadState.RUNNING
    play = Play(service("assistant", there, ServedModel("small", source="x")))
    assert "assistant.replica.small" in waits(play.step())


def test_a_failed_pull_is_tried_again_after_a_growing_pause() -> None:
    play = Play(service())
    pauses = []
    for _ in range(3):
        play.step()
        intent = max(
            (i for i in play.intents.values() if isinstance(i.action, PullModel)), key=lambda i: i.id
        )
        play.intents[intent.id] = replace(
            intent, state=IntentState.FAILED, error="pull_failed: no net", changed_at=play.now
        )
        began = play.now
        while not any(isinstance(c.action, PullModel) for c in play.decide().choices):
            assert waits(play.decide())["assistant.replica.small"] == "model.pull_failed"
            play.now += 1.0
        pauses.append(play.now - began)
    assert pauses == [5.0, 10.0, 20.0]


def test_a_model_that_a_run_publishes_joins_the_service() -> None:
    play = Play(service("assistant", ServedModel("small", source="x"), ServedModel("starter", run="starter")))
    play.models["small"] = model()
    play.settle()
    assert state_of(play, "assistant").state is WorkloadState.RUNNING
    assert waits(play.decide()) == {"assistant.replica.starter": "model.unpublished"}
    play.models["starter"] = model("starter", run="starter")
    play.settle(2)
    assert play.live("assistant.replica.starter.0")


def test_a_newer_version_gets_ready_beside_the_old_one_and_then_takes_its_place() -> None:
    play = Play(service())
    play.models["small"] = model()
    play.settle()
    play.models["small"] = model(version=2)
    decision = play.step(1.0)
    assert kinds(decision) == ["start_gang assistant.replica.small.0@v2"]
    assert state_of(play, "assistant").state is WorkloadState.RUNNING, "the old one serves on"
    assert play.step(1.0).choices == ()
    play.report("assistant.replica.small.0@v2", ready=True)
    assert kinds(play.step(1.0)) == ["drain_gang assistant.replica.small.0"]
    assert play.step(1.0).choices == ()
    play.report("gateway.0", ready=True, load={})
    decision = play.step(RULES.drain_least_s)
    assert not any(isinstance(c.action, StopGang) for c in decision.choices), "it may not know yet"
    play.report("gateway.0", ready=True, load={})
    decision = play.step(0.1)
    assert [
        (c.action.gang_id, c.reason.code) for c in decision.choices if isinstance(c.action, StopGang)
    ] == [("assistant.replica.small.0-1", "model.newer")]
    play.settle(2)
    assert [g.slot for g in play.live() if g.role == "replica"] == ["assistant.replica.small.0@v2"]


def test_where_both_versions_have_no_room_the_old_one_goes_first() -> None:
    big = ServedModel("small", source="x", resources=Resources(0.8, 1 << 20))
    play = Play(service("assistant", big), sites=["north"])
    play.models["small"] = model()
    play.settle()
    play.models["small"] = model(version=2)
    assert [(c.action.kind, c.reason.code) for c in play.step(1.0).choices] == [
        ("drain_gang", "replace.no_room")
    ]
    play.settle(6)
    assert [g.model_version for g in play.live() if g.role == "replica"] == [2]


def test_a_model_store_that_lists_nothing_now_stops_nothing() -> None:
    play = Play(service())
    play.models["small"] = model()
    play.settle()
    play.models.clear()
    assert not any(isinstance(c.action, StopGang) for c in play.step(1.0).choices)


def test_own_machines_are_taken_at_once_and_one_at_each_site() -> None:
    play = Play()
    play.leases, play.machines = {}, {}
    play.offers = [offer("south"), offer("north")]
    taken = [c.action.offer.site for c in play.step().choices if isinstance(c.action, AcquireNode)]
    assert taken == ["north", "south"]
    assert {x.state for x in play.leases.values()} == {LeaseState.ACTIVE}
    assert play.step(1.0).choices == ()


def test_a_slot_without_room_takes_the_cheapest_node_that_holds_it_and_idle_ones_go_back() -> None:
    play = Play(train(sites=1))
    play.fleet = replace(play.fleet, sites=tuple(SiteSpec(s, provider="fake") for s in play.sites))
    play.leases, play.machines = {}, {}
    play.offers = [
        offer("north", "2.00", Market.ON_DEMAND, id="dear"),
        offer("south", "1.00", Market.ON_DEMAND, id="cheap"),
        offer("south", "0.50", Market.SPOT, id="none-left", available=0),
    ]
    choice = next(c for c in play.step().choices if isinstance(c.action, AcquireNode))
    assert choice.action.offer.id == "cheap"
    assert {r.what: r.reason.code for r in choice.rejected} == {
        "offer dear": "offer.second",
        "offer none-left": "offer.none_left",
    }
    play.settle(3)
    assert play.at() == {"starter.coordinator": "south", "starter.worker.0": "south"}
    assert len(play.leases) == 1, "the worker was promised room on the node that was on its way"
    play.workloads["starter"] = replace(state_of(play, "starter"), wanted=False)
    play.settle(3)
    released = play.step(RULES.idle_release_s)
    assert [c.reason.code for c in released.choices if isinstance(c.action, ReleaseNode)] == ["node.idle"]


def test_an_offer_without_capacity_is_left_alone_for_a_while() -> None:
    play = Play(train(sites=1), sites=["north"])
    play.fleet = replace(play.fleet, sites=(SiteSpec("north", provider="fake"),))
    play.leases, play.machines = {}, {}
    play.offers = [offer("north", "1.00", Market.ON_DEMAND)]
    snapshot = play.snapshot()
    decision = play.step()
    intent = next(i for i in play.intents.values() if isinstance(i.action, AcquireNode))
    play.machines.clear()
    play.leases = {k: replace(x, state=LeaseState.REQUESTED, machine_id="") for k, x in play.leases.items()}
    play.intents[intent.id] = replace(intent, state=IntentState.FAILED, error="no_capacity: none")
    ended = play.step(1.0)
    assert kinds(ended)[0] == "end_lease north-1"
    assert not any(isinstance(c.action, AcquireNode) for c in ended.choices)
    later = play.decide_later(RULES.no_capacity_retry_s)
    assert any(isinstance(c.action, AcquireNode) for c in later.choices)
    assert decide(snapshot, snapshot.at) == decision, "the same snapshot, the same decision"


def test_the_nodes_of_a_site_that_left_the_fleet_are_emptied_and_given_back() -> None:
    play = Play(train(sites=1, at=()))
    play.settle()
    play.fleet = replace(play.fleet, sites=(SiteSpec("south"),))
    first = play.step(1.0)
    assert {c.reason.code for c in first.choices if isinstance(c.action, StopGang)} == {"site.removed"}
    play.settle(4)
    assert set(play.at().values()) == {"south"}
    assert play.leases["lease-north-1"].state is LeaseState.ENDED
