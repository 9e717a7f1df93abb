"""Explain: why it runs where it runs, or what it waits for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caudal.control.apply import stop
from caudal.control.explain import Explained, explain
from caudal.control.reports import accept
from caudal.domain.errors import NotFound
from caudal.domain.fleet import Resources
from caudal.domain.gang import GangState, GangStatus
from tests.unit.control_world import RUN, SERVICE, Bench


def said(bench: Bench, name: str) -> dict[str, Explained]:
    return {line.subject: line for line in explain(bench.store.read(), bench.store, name)}


def test_a_run_says_where_each_gang_is_and_why_not_elsewhere() -> None:
    bench = Bench(RUN, SERVICE)
    bench.run(6)
    lines = said(bench, "starter")
    assert lines["starter"].state == "is" and lines["starter"].code == "running"
    worker = lines["starter.worker.1"]
    assert worker.state == "runs" and "south-1" in worker.text
    assert [(r.what, r.code) for r in worker.rejected] == [("north-1", "site.taken")]


def test_a_service_says_what_it_waits_for() -> None:
    bench = Bench(RUN, SERVICE)
    bench.run(6)
    lines = said(bench, "assistant")
    assert lines["assistant.replica.starter"].code == "model.unpublished"
    assert lines["assistant.replica.small.0"].state == "runs"


def test_what_cannot_fit_says_so_with_numbers_even_long_after() -> None:
    bench = Bench(replace(RUN, resources=Resources(99.0, 1)))
    bench.run(20)
    waiting = said(bench, "starter")["starter.worker.0"]
    assert (waiting.state, waiting.code) == ("waits", "impossible") and "99" in waiting.text


def test_slots_gangs_nodes_and_sites_can_be_asked_for() -> None:
    bench = Bench(RUN)
    bench.run(6)
    assert set(said(bench, "starter.worker.0")) == {"starter.worker.0"}
    assert set(said(bench, "starter.worker.0-1")) == {"starter.worker.0"}
    assert {"south-1", "starter.worker.1"} == set(said(bench, "south-1")) == set(said(bench, "south"))


def test_a_stopped_run_tells_of_itself_and_nothing_stale() -> None:
    bench = Bench(RUN)
    bench.run(6)
    stop(bench.store, "starter", bench.clock.now())
    bench.run(6)
    assert said(bench, "starter")["starter"].code == "stopped"
    assert not [x for x in said(bench, "starter").values() if x.state in ("runs", "waits")]


def test_what_is_not_there_names_what_is() -> None:
    bench = Bench(RUN)
    with pytest.raises(NotFound, match="starter"):
        said(bench, "stater")


def test_a_run_says_why_its_rounds_have_so_many_steps_and_who_is_kept_out() -> None:
    bench = Bench(RUN)
    bench.run(6)
    why = "4 → 8 inner steps a round: sites waited 9.0% of their time"
    status = {"why": why, "kept_out": {"starter.worker.1": "3 bad deltas in a row"}}
    accept(bench.store, "starter.coordinator-1", {"status": status}, bench.clock.now())
    lines = {
        (line.subject, line.code): line.text for line in explain(bench.store.read(), bench.store, "starter")
    }
    assert lines["starter.rounds", "steps"] == why
    assert "3 bad deltas" in lines["starter.worker.1", "quarantined"]


def test_what_a_driver_says_that_a_gang_waits_for_is_said() -> None:
    bench = Bench(RUN)
    bench.run(6)
    waiting = GangStatus("starter.worker.1-1", GangState.STARTING, "south", why="QOSMaxJobsPerUserLimit")
    lines = {x.subject: x for x in explain(bench.store.read(), bench.store, "starter", [waiting])}
    assert lines["starter.worker.1"].state == "waits"
    assert "QOSMaxJobsPerUserLimit" in lines["starter.worker.1"].text
    assert lines["starter.worker.0"].state == "runs"


def test_what_ended_the_gang_before_is_said_in_its_drivers_words() -> None:
    bench = Bench(RUN)
    bench.run(6)
    south = bench.drivers["south"]
    listed = south.gangs
    south.gangs = lambda: [  # type: ignore[method-assign]
        replace(s, state=GangState.LOST, why="NODE_FAIL") if s.gang_id == "starter.worker.1-1" else s
        for s in listed()
    ]
    bench.run(8)
    lines = said(bench, "starter")
    ended = lines["starter.worker.1-1"]
    assert (ended.state, ended.code) == ("ended", "gang.lost") and "NODE_FAIL" in ended.text
    assert (
        lines["starter.worker.1"].state == "runs" and "starter.worker.1-2" in lines["starter.worker.1"].text
    )
    assert "starter.worker.0-1" not in lines, "what goes on has nothing before it"
