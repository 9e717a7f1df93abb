"""Replicas that follow demand: what gateways say is read, starts and drains carry their reason, sleep and wake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from caudal.control.routes import routes
from caudal.domain.decision import DrainGang, StartGang, StopGang
from caudal.domain.fleet import Resources
from caudal.domain.workload import ScaleSpec, ServedModel, ServiceSpec, WorkloadState
from caudal.policy.demand import read, speed_of
from tests.unit.policy_world import Play, kinds, model, service, waits

HEAD = "assistant.replica.small"
FIRST, SECOND = f"{HEAD}.0", f"{HEAD}.1"


class Scaled(Play):
    """A service of one model with a scale; its gateway says what is asked with every step."""

    def __init__(self, **scale: Any) -> None:
        spec = ScaleSpec(**({"min": 0, "max": 3, "idle_s": 60.0} | scale))
        super().__init__(service("assistant", ServedModel("small", source="x", slots=4, scale=spec)))
        self.models["small"] = model()
        self.asked: dict[str, Any] = {"demand": {}, "peaks": {}, "load": {}}

    def ask(self, requests: int, load: float | None = None, idle_s: float = 0.0, peaks: Any = ()) -> None:
        row = [requests, float(requests if load is None else load), idle_s]
        self.asked = self.asked | {"demand": {"small": row}, "peaks": {"small": list(peaks)}}

    def tell(self) -> None:
        for gang in self.live():
            if gang.role == "gateway":
                self.report(gang.slot, ready=True, url="http://g", **self.asked)
            elif gang.role == "replica" and not gang.stopping:
                self.report(gang.slot, ready=True, url=f"http://{gang.id}")

    def pass_(self, seconds: float, each_s: float = 1.0) -> list[str]:
        """Everything that was chosen about replicas meanwhile."""
        found: list[str] = []
        for _ in range(int(seconds / each_s)):
            self.tell()
            found += [k for k in kinds(self.step(each_s)) if HEAD in k]
        return found

    def held(self) -> list[str]:
        return sorted(g.slot for g in self.live() if g.role == "replica")


def test_a_model_with_no_demand_sleeps_and_the_service_runs() -> None:
    play = Scaled()
    play.pass_(5)
    assert play.held() == []
    assert waits(play.decide()) == {HEAD: "scale.asleep"}
    row = play.workloads["assistant"]
    assert (row.state, row.reason) == (WorkloadState.RUNNING, "asleep: a request wakes it")


def test_a_request_wakes_it_and_without_more_it_sleeps_again() -> None:
    play = Scaled()
    play.pass_(70)
    play.ask(1, load=0.0)
    play.tell()
    (choice,) = [c for c in play.step().choices if isinstance(c.action, StartGang)]
    assert choice.subject == FIRST and choice.reason.text.startswith("there are requests; ")
    play.ask(0, load=0.3, idle_s=1.0)
    assert play.pass_(50) == []
    assert play.workloads["assistant"].state is WorkloadState.RUNNING
    for second in range(50, 70):
        play.ask(0, load=0.01, idle_s=float(second), peaks=[30.0, 0.4])
        play.pass_(1)
    assert play.held() == []
    stopped = [c for c in play.intents.values() if isinstance(c.action, StopGang)]
    assert [i.reason.code for i in stopped] == ["scale.down"]


def test_more_load_starts_more_at_once_and_less_drains_the_last_after_the_peak() -> None:
    play = Scaled(min=1)
    play.pass_(65)
    assert play.held() == [FIRST]
    play.ask(6)
    assert play.pass_(1) == [f"start_gang {SECOND}"]
    play.ask(40)
    assert play.pass_(1) == [f"start_gang {HEAD}.2"]
    play.ask(1, peaks=[1.0, 40.0, 0.0, 1.0])
    assert play.pass_(40) == []
    play.ask(1, peaks=[50.0, 5.0])
    assert play.pass_(15) == []  # the third is young still
    last = play.live(f"{HEAD}.2")[0]
    play.asked["load"] = {last.id: [1, 100, 20.0]}
    assert play.pass_(8) == [f"drain_gang {HEAD}.2"]
    assert play.pass_(8) == []  # a request is there still
    play.asked["load"] = {}
    assert play.pass_(4) == [f"stop_gang {HEAD}.2", f"end_gang {HEAD}.2"]
    assert play.held() == [FIRST, SECOND]


def test_a_prewarmed_replica_is_there_before_the_load_and_is_replaced_when_it_is_needed() -> None:
    play = Scaled(prewarmed=1)
    play.pass_(70)
    assert play.held() == [FIRST]  # nothing was ever asked: the spare is there, and ready
    [listed] = [m for m in routes(play.snapshot().state, play.now).models if m.id == "small"]
    assert [(r.gang, r.draining) for r in listed.replicas] == [(play.live(FIRST)[0].id, False)]
    assert not listed.asleep  # so gateways send the first request there themselves, also without control
    play.ask(1)
    assert play.pass_(1) == [f"start_gang {SECOND}"]  # it serves now: the next spare
    play.ask(6)
    assert play.pass_(1) == [f"start_gang {HEAD}.2"]
    for second in range(150):
        play.ask(0, load=0.0, idle_s=float(second))
        play.pass_(1)
    assert play.held() == [FIRST]


def test_a_replica_that_drains_is_taken_back_when_it_is_needed_again() -> None:
    play = Scaled(min=1)
    play.ask(6)
    play.pass_(70)
    play.ask(1, idle_s=0.0)
    play.asked["load"] = {play.live(SECOND)[0].id: [1, 100, 20.0]}
    assert play.pass_(5) == [f"drain_gang {SECOND}"]
    play.ask(6)
    play.tell()
    (choice,) = play.step(1.0).choices
    assert choice.action == DrainGang(play.live(SECOND)[0].id, draining=False)
    assert play.live(SECOND)[0].draining_at is None


def test_a_gateway_that_does_not_say_keeps_what_is_there_and_a_new_one_knows_too_little() -> None:
    play = Scaled()
    play.ask(6)
    play.pass_(70)
    for _ in range(100):
        play.step(2.0)  # nobody reports
    assert play.held() == [FIRST, SECOND]
    play.crash("gateway.0")
    play.ask(0, idle_s=-1.0)
    play.pass_(40)
    assert play.held() == [FIRST, SECOND]
    play.pass_(40)
    assert play.held() == []


def test_a_crashed_replica_is_started_again_for_the_peak_alone() -> None:
    play = Scaled(min=1)
    play.ask(6)
    play.pass_(65)
    play.ask(1, peaks=[5.0, 6.0])
    play.tell()
    play.crash(SECOND)
    assert f"start_gang {SECOND}" in play.pass_(5)


def test_the_queues_wait_counts_with_measured_speed() -> None:
    play = Scaled(min=1, ttft_s=1.0)
    play.pass_(65)
    gang = play.live(FIRST)[0]
    play.ask(12, load=1.0)
    play.asked["load"] = {gang.id: [5, 500, 4000.0]}  # 8 wait, of 100 tokens each, at 4,000 a second
    assert play.pass_(3) == []
    play.asked["load"] = {gang.id: [5, 500, 100.0]}
    play.tell()
    starts = [c for c in play.step(1.0).choices if isinstance(c.action, StartGang)]
    assert [c.subject for c in starts] == [SECOND, f"{HEAD}.2"]
    assert "would wait for longer than 1 s" in starts[0].reason.text


def test_a_new_version_replaces_as_many_as_are_needed_and_growth_keeps_the_service_running() -> None:
    play = Scaled(min=1)
    play.pass_(65)
    play.ask(6)
    play.step(0.5)
    assert play.workloads["assistant"].state is WorkloadState.RUNNING
    play.models["small"] = model(version=2)
    play.pass_(20)
    assert play.held() == [f"{FIRST}@v2", f"{SECOND}@v2"]


def test_what_finds_no_room_waits_and_the_service_runs_on() -> None:
    play = Scaled(min=1)
    row = play.workloads["assistant"]
    assert isinstance(row.spec, ServiceSpec)
    large = replace(row.spec.models[0], resources=Resources(0.6, 1 << 20))
    play.workloads["assistant"] = replace(row, spec=replace(row.spec, models=(large,)))
    play.pass_(65)
    play.ask(40)
    play.pass_(5)
    assert play.held() == [FIRST, SECOND]
    assert list(waits(play.decide())) == [f"{HEAD}.2"]
    assert play.workloads["assistant"].state is WorkloadState.RUNNING


def test_a_sleeping_models_source_is_pulled_all_the_same() -> None:
    play = Scaled()
    play.models.clear()
    assert "pull_model assistant.replica.small" in kinds(play.step(1.0))
    assert waits(play.decide())[HEAD] == "model.pulling"


def test_a_fixed_number_is_not_touched() -> None:
    play = Scaled()
    fixed = service("assistant", ServedModel("small", source="x", replicas=2))
    play.workloads["assistant"] = replace(play.workloads["assistant"], spec=fixed)
    play.ask(100)
    play.pass_(80)
    assert play.held() == [FIRST, SECOND]


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"demand": None},
        {"demand": {"small": "x"}},
        {"demand": {"small": [1, 2]}},
        {"demand": {"small": [1, float("nan"), 0]}},
        {"demand": {"small": [None, 1, 0]}},
        {"demand": {"other": [1, 2, 3]}, "peaks": 7},
    ],
)
def test_what_cannot_be_read_was_not_said(status: dict[str, Any]) -> None:
    found = read(status, "small", 1.0, 60.0)
    assert (found.requests, found.load, found.idle_s) == (0, 0.0, None)


def test_ages_count_from_the_report() -> None:
    status = {"demand": {"m": [0, 0.5, 3.0]}, "peaks": {"m": [58.0, 9.0, 57.0, 4.0, 9.0]}}
    found = read(status, "m", 2.5, 60.0)
    assert (found.load, found.peak, found.idle_s) == (0.5, 4.0, 5.5)
    assert read({"demand": {"m": [-3, -1.0, -1]}}, "m", 0.0, 60.0).requests == 0
    assert speed_of({"load": {"a": [1, 2, 30.0], "b": [1]}}, "a") == 30.0
    assert speed_of({"load": {"b": [1, 2]}}, "b") == 0.0
