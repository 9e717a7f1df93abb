"""A model that sleeps in the routes: there as long as its service is wanted, awake once a replica takes requests."""

from __future__ import annotations

from dataclasses import replace

from caudal.control.routes import ModelRoute, routes
from caudal.domain.gang import Report
from caudal.domain.snapshot import State
from caudal.domain.workload import ScaleSpec, ServedModel
from tests.unit.policy_world import Play, model, service


def only(state: State) -> ModelRoute:
    (found,) = routes(state).models
    return found


def test_a_sleeping_model_stays_in_the_routes() -> None:
    scale = ScaleSpec(0, 2, idle_s=60.0)
    play = Play(service("assistant", ServedModel("small", source="x", context=512, scale=scale)))
    play.models["small"] = model()
    play.settle(3)
    assert only(play.snapshot().state) == ModelRoute("small", 0, 512, [], [], asleep=True)
    gateway = play.live("gateway.0")[0]
    play.reports[gateway.id] = Report(gateway.id, play.now, {"ready": True, "demand": {"small": [1, 0.1, 0]}})
    play.step(0.5)
    assert only(play.snapshot().state).asleep, "its replica starts"
    play.report("assistant.replica.small.0", ready=True, url="http://127.0.0.1:9")
    awake = only(play.snapshot().state)
    assert not awake.asleep and [r.gang for r in awake.replicas] == ["assistant.replica.small.0-1"]
    gang = play.live("assistant.replica.small.0")[0]
    play.gangs[gang.id] = replace(gang, draining_at=play.now)
    assert only(play.snapshot().state).asleep, "it drains: a request has to bring it back"


def test_no_other_model_sleeps() -> None:
    play = Play(service("assistant", ServedModel("small", source="x")))
    play.models["small"] = model()
    assert routes(play.snapshot().state).models == []
    play.settle(3)
    assert not only(play.snapshot().state).asleep
    scaled = service("assistant", ServedModel("small", source="x", scale=ScaleSpec(0, 2)))
    play.workloads["assistant"] = replace(play.workloads["assistant"], spec=scaled, wanted=False)
    play.settle(6)
    assert routes(play.snapshot().state).models == []
