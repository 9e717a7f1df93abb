"""Reports and routes: what gangs say is checked, kept, made into events once, and routed by."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from caudal.control.reports import accept, curve_of
from caudal.control.routes import Routes, routes
from caudal.domain.errors import NotFound, Stale, UsageError
from caudal.domain.workload import ExternalSpec, RolloutSpec, ServedModel, ServiceSpec
from caudal.gateway.routes import decode_routes
from caudal.ports import Change
from caudal.store import history
from tests.unit.control_world import RUN, SERVICE, Bench

HEAD = "starter.coordinator-1"
REPLICA = "assistant.replica.small.0-1"


@pytest.fixture
def bench() -> Bench:
    made = Bench(RUN, SERVICE)
    made.run(5)
    return made


def say(bench: Bench, gang: str, points: list[dict[str, Any]] | None = None, **status: Any) -> None:
    body = {"at": 1.0, "status": status, "points": points or []}
    accept(bench.store, gang, body, bench.clock.now())


def urls(found: Routes) -> list[str]:
    return [r.url for m in found.models for r in m.replicas]


def test_the_last_report_and_every_point_are_kept(bench: Bench) -> None:
    point = {"seq": 1, "at": 2.0, "values": {"loss": 3.5}}
    say(bench, HEAD, [point], phase="training", sites={"north": {"round": 1}})
    say(bench, HEAD, [point], phase="training", loss=math.nan)
    assert [(p.seq, p.values) for p in bench.store.points("starter")] == [(1, {"loss": 3.5})]
    kept = next(r for r in bench.store.read().reports if r.gang_id == HEAD)
    assert kept.status == {"phase": "training", "loss": None}


def test_notable_changes_become_events_once(bench: Bench) -> None:
    for phase in ("preparing", "training", "training"):
        say(bench, HEAD, phase=phase)
    say(bench, REPLICA, ready=True, url="http://a")
    say(bench, REPLICA, ready=True, url="http://a")
    say(bench, REPLICA, ready=False, error="out of memory")
    kinds = bench.kinds()
    assert [k for k in kinds if k == "run.phase"] == ["run.phase"] * 2
    assert kinds.count("replica.ready") == kinds.count("replica.unready") == kinds.count("replica.error") == 1


def test_strangers_the_dead_and_the_fenced_are_refused(bench: Bench) -> None:
    with pytest.raises(NotFound):
        say(bench, "nobody-1")
    lease = next(x for x in bench.store.read().leases if x.site == "north")
    bench.store.commit(Change(leases=[replace(lease, epoch=lease.epoch + 1)]))
    with pytest.raises(Stale):
        say(bench, HEAD, phase="training")
    bench.store.commit(Change(leases=[lease]))
    gang = next(g for g in bench.live() if g.id == HEAD)
    bench.store.commit(Change(gangs=[replace(gang, ended_at=5.0)]))
    with pytest.raises(NotFound):
        say(bench, HEAD, phase="training")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"status": []},
        {"status": {"a": {"b": {"c": {"d": 1}}}}},
        {"status": {str(i): i for i in range(65)}},
        {"status": {"n": 1 << 60}},
        {"status": {"f": object()}},
        {"status": {}, "points": {}},
        {"status": {}, "points": [{}] * 1001},
        {"status": {}, "points": [{"seq": -1, "at": 1.0, "values": {}}]},
        {"status": {}, "points": [{"seq": True, "at": 1.0, "values": {}}]},
        {"status": {}, "points": [{"seq": 1, "at": math.inf, "values": {}}]},
        {"status": {}, "points": [{"seq": 1, "at": 1.0, "values": 3}]},
    ],
)
def test_what_is_not_a_report_is_refused_and_changes_nothing(bench: Bench, body: dict[str, Any]) -> None:
    before = bench.store.read()
    with pytest.raises(UsageError):
        accept(bench.store, HEAD, body, 1.0)
    assert bench.store.read() == before


def test_only_a_coordinator_has_a_curve_and_each_generation_its_own(bench: Bench) -> None:
    with pytest.raises(UsageError, match="curve"):
        say(bench, REPLICA, [{"seq": 1, "at": 1.0, "values": {}}])
    assert (curve_of("r", 1), curve_of("r", 3)) == ("r", "r@g3")


def test_routes_hold_what_is_ready_and_nothing_else(bench: Bench) -> None:
    starting = routes(bench.store.read()).models
    assert [(m.id, m.version, m.replicas) for m in starting] == [("small", 0, [])], "known, with nothing yet"
    say(bench, REPLICA, ready=True, url="http://127.0.0.1:7001")
    state = bench.store.read()
    found = routes(state)
    assert [(m.id, m.version, m.context) for m in found.models] == [("small", 1, 2048)]
    assert urls(found) == ["http://127.0.0.1:7001"]
    gang = next(g for g in state.gangs if g.id == REPLICA)
    lease = next(x for x in state.leases if x.id == gang.lease_id)
    others = tuple(g for g in state.gangs if g.id != REPLICA)
    for changed in (replace(gang, stopping=True), replace(gang, ended_at=1.0), replace(gang, epoch=0)):
        assert urls(routes(replace(state, gangs=(*others, changed)))) == []
    suspect = replace(lease, state="suspect")  # type: ignore[arg-type]
    assert urls(routes(replace(state, leases=(suspect,)))) == []


NEW = "assistant.replica.small.0@v2-1"


def now_routes(bench: Bench, gateway: str = "") -> Routes:
    return routes(bench.store.read(), bench.clock.now(), gateway)


def test_routes_have_both_versions_until_the_old_one_is_drained(bench: Bench) -> None:
    say(bench, REPLICA, ready=True, url="http://old")
    bench.models.put("small")
    bench.run(1)
    assert urls(now_routes(bench)) == ["http://old"]
    say(bench, NEW, ready=True, url="http://new")
    bench.run(1)
    small = now_routes(bench).models[0]
    assert [(r.url, r.version, r.slots, r.draining) for r in small.replicas] == [
        ("http://old", 1, 4, True),
        ("http://new", 2, 4, False),
    ]
    assert small.version == 2 and small.weights == []
    say(bench, "gateway.0-1", ready=True, load={REPLICA: [1, 300, 50.0]})
    bench.run(3)
    say(bench, "gateway.0-1", ready=True, load={REPLICA: [1, 300, 50.0]})
    bench.run(3)
    assert bench.live("assistant.replica.small.0"), "it still answers somebody"
    say(bench, "gateway.0-1", ready=True, load={})
    bench.run(1)
    assert urls(now_routes(bench)) == ["http://new"]
    bench.run(2)
    assert not bench.live("assistant.replica.small.0")
    assert bench.kinds().count("gang.draining") == 1


def test_a_new_version_has_its_first_share_for_its_time(bench: Bench) -> None:
    canary = ServedModel("small", source="pypi:small==1", rollout=RolloutSpec(0.1, 60.0))
    bench = Bench(ServiceSpec("assistant", (canary,)))
    bench.run(5)
    say(bench, REPLICA, ready=True, url="http://old")
    bench.models.put("small")
    bench.run(1)
    assert now_routes(bench).models[0].weights == []
    say(bench, NEW, ready=True, url="http://new")
    for _ in range(5):
        bench.run(1, each_s=10.0)
        say(bench, NEW, ready=True, url="http://new")
        weights = [(w.version, w.weight) for w in now_routes(bench).models[0].weights]
        assert weights == [(1, pytest.approx(0.9)), (2, 0.1)]
    bench.run(2, each_s=10.0)
    found = now_routes(bench).models[0]
    assert found.weights == [] and [r.draining for r in found.replicas] == [True, False]


def test_gateways_are_told_what_the_others_have_in_flight(bench: Bench) -> None:
    say(bench, "gateway.0-1", ready=True, load={REPLICA: [2, 600, 80.5], "idle-1": [0, 0, 9.0], "odd": "x"})
    bench.clock.sleep(3.0)
    assert now_routes(bench, "gateway.0-1").others_in_flight == []
    other = now_routes(bench, "gateway.1-1").others_in_flight
    assert [(o.gang, o.requests, o.tokens, o.age_s) for o in other] == [(REPLICA, 2, 600, 3.0)]
    bench.clock.sleep(60.0)
    assert now_routes(bench, "gateway.1-1").others_in_flight == []


def test_routes_say_what_answers(bench: Bench) -> None:
    for engine, shown in (("llama.cpp", ""), ("vllm", "vllm"), (None, ""), (3, "")):
        say(bench, REPLICA, ready=True, url="http://a", engine=engine, slots=6)
        (replica,) = routes(bench.store.read()).models[0].replicas
        assert (replica.engine, replica.slots, replica.external) == (shown, 6, None)
    say(bench, REPLICA, ready=True, url="http://a", slots=-1)
    (replica,) = routes(bench.store.read()).models[0].replicas
    assert replica.slots == 4, "as its service says"


EXTERNAL = ExternalSpec(
    "https://api.example.com/v1", "big-model", "/secrets/key", "", 0.5, 1.5, 20.0, max_requests=9
)


def spend(bench: Bench, gang: str, month: object, book: object, usd: object) -> None:
    say(bench, gang, ready=True, url="http://g", spent={"book": book, "month": month, "usd": usd})


def test_routes_lead_to_external_addresses_without_their_secrets() -> None:
    models = (ServedModel("small", source="x", external=EXTERNAL), ServedModel("far", external=EXTERNAL))
    bench = Bench(ServiceSpec("talk", models))
    bench.run(5)
    say(bench, "talk.replica.small.0-1", ready=True, url="http://a")
    found = {m.id: m for m in routes(bench.store.read()).models}
    assert [r.gang for r in found["small"].replicas] == ["talk.replica.small.0-1", "external.talk.small"]
    (far,) = found["far"].replicas
    assert (far.url, far.model, far.engine, far.slots) == (EXTERNAL.url, "big-model", "openai", 9)
    assert far.external is not None and far.external.key_file == "/secrets/key" and far.external.overflow
    assert (far.external.spent_month, far.external.spent_usd) == ("", {})
    told = decode_routes(msgspec.json.encode(routes(bench.store.read())))
    assert {m.id: len(m.replicas) for m in told.models} == {"small": 2, "far": 1}
    name = "external.talk.far"
    spend(bench, "gateway.0-1", "2026-10", "old", {name: 9.0})
    spend(bench, "gateway.0-1", "2026-11", "one", {name: 1.5, "external.other": 7})
    external = routes(bench.store.read()).models[0].replicas[0].external
    assert external is not None
    assert (external.spent_month, external.spent_usd) == ("2026-11", {"one": 1.5})


@pytest.mark.parametrize(
    "said",
    [(1, "b", {}), ("2026-11", 1, {}), ("2026-11", "b", 3), ("2026-11", "b", {"external.talk.far": "9"})],
)
def test_what_gateways_say_of_money_is_looked_at(said: tuple[object, object, object]) -> None:
    bench = Bench(ServiceSpec("talk", (ServedModel("far", external=EXTERNAL),)))
    bench.run(5)
    spend(bench, "gateway.0-1", *said)
    external = routes(bench.store.read()).models[0].replicas[0].external
    assert external is not None and external.spent_usd == {}


def test_the_version_of_the_routes_rises_when_a_replica_gets_ready(bench: Bench) -> None:
    before = routes(bench.store.read()).version
    say(bench, REPLICA, ready=True, url="http://a")
    assert routes(bench.store.read()).version > before


# ---- a run's events ----------------------------------------------------------------------------------------


WHY = "4 → 8 inner steps a round: sites waited 9.0% of their time"


def row(seq: int, why: str = "", at: float = 2.0) -> dict[str, Any]:
    return {"seq": seq, "at": at, "values": {"loss": 3.0, **({"why": why} if why else {})}}


def told(bench: Bench, kind: str) -> list[str]:
    return [e.text for e in bench.store.events(limit=10_000, subject="starter") if e.kind == kind]


def test_each_change_of_the_steps_is_an_event_with_its_reason_once(bench: Bench) -> None:
    say(bench, HEAD, [row(1), row(2, WHY)])
    say(bench, HEAD, [row(1), row(2, WHY)])  # the answer was lost: all of it comes again
    say(bench, HEAD, [row(2, WHY), row(3), row(3), row(4, "8 → 4 inner steps a round: the loss rose")])
    assert told(bench, "run.steps") == [
        f"round 2: {WHY}",
        "round 4: 8 → 4 inner steps a round: the loss rose",
    ]
    event = next(e for e in bench.store.events(limit=10_000) if e.kind == "run.steps")
    assert (event.subject, event.at, event.data["round"], event.data["reason"]) == ("starter", 2.0, 2, WHY)


def test_what_was_said_while_the_control_process_was_away_is_told_when_it_is_back(bench: Bench) -> None:
    say(bench, HEAD, [row(1)], epoch=1, sites={"north": {"worker": "w0"}, "south": {"worker": "w1"}})
    # an hour later, in one report: the steps went up and down again, one site left, another came
    rows = [row(seq, f"change {seq}" if seq % 100 == 0 else "", at=9e9) for seq in range(2, 502)]
    say(bench, HEAD, rows, epoch=1, sites={"north": {"worker": "w0"}, "west": {"worker": "w2"}})
    assert told(bench, "run.steps") == [f"round {n}: change {n}" for n in (100, 200, 300, 400, 500)]
    assert told(bench, "run.left") == ["south takes part in starter no more"]
    assert told(bench, "run.joined")[-1:] == ["west takes part in starter"]
    assert all(e.at <= bench.clock.now() for e in bench.store.events(limit=10_000))


def test_sites_that_come_and_go_and_are_kept_out_are_told_once(bench: Bench) -> None:
    north, south = {"worker": "w0"}, {"worker": "w1"}
    for _ in range(3):
        say(bench, HEAD, sites={"north": north, "south": south}, kept_out={})
    assert told(bench, "run.joined") == ["north takes part in starter", "south takes part in starter"]
    for _ in range(3):
        say(bench, HEAD, sites={"north": north}, kept_out={"w1": "3 bad deltas in a row"})
    assert told(bench, "run.left") == ["south takes part in starter no more"]
    assert told(bench, "run.quarantined") == ["w1 is kept out of starter: 3 bad deltas in a row"]
    # a second worker at a site changes what the first is called, not who it is
    say(bench, HEAD, sites={"north/w0": north, "north/w3": {"worker": "w3"}})
    assert len(told(bench, "run.left")) == 1 and told(bench, "run.joined")[2:] == [
        "north takes part in starter"
    ]


def test_a_takeover_is_an_event(bench: Bench) -> None:
    for epoch in (1, 1, 2, 2):
        say(bench, HEAD, epoch=epoch)
    assert told(bench, "run.epoch") == [
        "north coordinates starter, in epoch 1",
        "north takes over starter, in epoch 2",
    ]


def test_events_of_a_report_are_kept_with_it_or_not_at_all(bench: Bench) -> None:
    """Whatever breaks in between, a report that comes again tells what is missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "append_events", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            say(bench, HEAD, [row(1, WHY)], epoch=2)
    assert bench.store.points("starter") == []
    say(bench, HEAD, [row(1, WHY)], epoch=2)
    assert len(told(bench, "run.steps")) == len(told(bench, "run.epoch")) == 1
