"""Placement: where slots go, and what is said about the places that were not taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from caudal.domain.decision import StartGang
from caudal.domain.fleet import LeaseState, MachineState, Resources
from caudal.domain.workload import ServedModel
from tests.unit.policy_world import GIB, Play, kinds, lease, machine_type, model, service, train, waits

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "placement.json").read_text())


def node_size(cpus: float, memory_gib: float) -> Resources:
    return Resources(cpus, int(memory_gib * GIB))


def play_of(case: dict) -> Play:  # type: ignore[type-arg]
    specs = [
        train(t["name"], t["sites"], at=tuple(t.get("at", ())), resources=node_size(*t["each"]))
        for t in case.get("runs", ())
    ]
    services = [
        service(
            s["name"],
            *(
                ServedModel(m["id"], source="x", replicas=m["replicas"], resources=node_size(*m["each"]))
                for m in s["models"]
            ),
        )
        for s in case.get("services", ())
    ]
    play = Play(*specs, *services, sites=case["sites"])
    play.leases, play.machines = {}, {}
    for site, number, cpus, memory_gib in case["nodes"]:
        play.add_node(lease(site, number, machine_type=machine_type(cpus, memory_gib)))
    for s in case.get("services", ()):
        for m in s["models"]:
            play.models[m["id"]] = model(m["id"])
    return play


@pytest.mark.parametrize("case", GOLDEN, ids=[c["what"] for c in GOLDEN])
def test_golden_placements(case: dict) -> None:  # type: ignore[type-arg]
    decision = play_of(case).decide()
    placed = {
        c.action.gang.slot: [c.action.gang.node, c.reason.code]
        for c in decision.choices
        if isinstance(c.action, StartGang)
    }
    assert placed == case["placed"]
    assert waits(decision) == case.get("waits", {})


def test_a_choice_names_every_other_node_and_why_not() -> None:
    decision = Play(train(sites=2)).decide()
    worker = next(c for c in decision.choices if c.subject == "starter.worker.1")
    assert [(r.what, r.reason.code) for r in worker.rejected] == [("north-1", "site.taken")]
    first = next(c for c in decision.choices if c.subject == "starter.worker.0")
    assert [(r.what, r.reason.code) for r in first.rejected] == [("south-1", "node.second")]
    assert "north comes before south" in first.reason.text


def test_nothing_goes_where_the_driver_is_silent_or_the_node_leaves() -> None:
    play = Play(train(sites=1))
    play.silent["north"] = play.now
    assert {c.action.gang.site for c in play.decide().choices if isinstance(c.action, StartGang)} == {"south"}
    play = Play(train(sites=1))
    play.machines["m-north-1"] = replace(play.machines["m-north-1"], state=MachineState.STOPPING)
    assert {c.action.gang.site for c in play.decide().choices if isinstance(c.action, StartGang)} == {"south"}


def test_a_ready_node_is_taken_before_one_that_is_on_its_way() -> None:
    play = Play(train(sites=1))
    play.leases["lease-north-1"] = replace(
        play.leases["lease-north-1"], state=LeaseState.REQUESTED, machine_id=""
    )
    starts = [c for c in play.decide().choices if isinstance(c.action, StartGang)]
    assert {c.action.gang.site for c in starts} == {"south"}


def test_what_fits_nowhere_is_impossible_with_the_numbers() -> None:
    play = Play(train(sites=1, resources=Resources(0.5, 64 * GIB)))
    decision = play.decide()
    waiting = next(w for w in decision.waiting if w.subject == "starter.worker.0")
    assert waiting.reason.code == "impossible"
    assert "64.00 GiB" in waiting.reason.text and "4.00 GiB" in waiting.reason.text
    assert waiting.reason.data["asked"]["memory_bytes"] == 64 * GIB
    assert "start_gang starter.coordinator" in kinds(decision)


def test_replicas_of_one_model_spread_over_sites_and_different_ones_pack() -> None:
    models = (ServedModel("a", source="x", replicas=2), ServedModel("b", source="x"))
    play = Play(service("chat", *models))
    play.models = {"a": model("a"), "b": model("b")}
    play.settle()
    at = play.at()
    assert {at["chat.replica.a.0"], at["chat.replica.a.1"]} == {"north", "south"}
    assert at["gateway.0"] == at["chat.replica.b.0"] == "north"
