"""The runner: passes in a thread, that survive what a pass raises and end when another process leads."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from caudal.control.background import ImmediateBackground, ThreadBackground
from caudal.control.loop import ControlLoop
from caudal.control.runner import Runner
from caudal.domain.errors import CaudalError, Failed, PullFailed, StateHeld, StorageFailed
from caudal.ports import Holder
from tests.unit.control_world import RUN, SERVICE, Bench


def wait_for(event: threading.Event) -> None:
    assert event.wait(10.0)


def test_it_runs_when_poked_and_resigns_at_the_end() -> None:
    bench = Bench(RUN)
    bench.settings = replace(bench.settings, interval_s=60.0)
    loop, passed, count = bench.process("runner"), threading.Event(), []
    once = loop.run_once

    def counted() -> None:
        once()
        loop.busy = False
        count.append(1)
        passed.set()

    loop.run_once = counted  # type: ignore[method-assign]
    runner = Runner(loop)
    runner.start()
    wait_for(passed)
    passed.clear()
    runner.poke()
    wait_for(passed)
    with pytest.raises(StateHeld):
        bench.process("other").lead()
    runner.stop()
    assert len(count) >= 2 and not runner.running
    bench.process("other").lead()


def test_a_pass_that_fails_is_one_event_and_the_next_one_is_made() -> None:
    bench = Bench(RUN)
    bench.settings = replace(bench.settings, interval_s=0.001)
    loop, enough, tries = bench.process("runner"), threading.Event(), []

    def failing() -> None:
        tries.append(1)
        if len(tries) == 5:
            enough.set()
        raise StorageFailed("the disk is full")

    loop.run_once = failing  # type: ignore[method-assign]
    runner = Runner(loop)
    runner.start()
    wait_for(enough)
    runner.stop()
    assert bench.kinds().count("control.pass_failed") == 1


def test_it_ends_when_another_process_leads() -> None:
    bench = Bench(RUN)
    told: list[CaudalError] = []
    lost = threading.Event()

    def on_lost(error: CaudalError) -> None:
        told.append(error)
        lost.set()

    bench.settings = replace(bench.settings, interval_s=0.001)
    runner = Runner(bench.process("runner"), on_lost)
    runner.start()
    held = bench.store.leader()
    assert held is not None
    bench.clock.sleep(60.0)
    while not lost.is_set():
        try:
            bench.store.lead(Holder("thief", "there", 1, 0.0), bench.clock.now() + 3600, 3600.0)
        except StateHeld:
            bench.clock.sleep(60.0)
        lost.wait(0.01)
    runner.stop()
    assert len(told) == 1 and runner.lost is told[0]
    now_leads = bench.store.leader()
    assert now_leads is not None and now_leads[0].name == "thief", "what was lost is not given back"


def test_who_cannot_lead_does_not_start() -> None:
    bench = Bench(RUN)
    bench.loop.lead()
    with pytest.raises(StateHeld, match="first"):
        Runner(bench.process("second")).start()


@pytest.mark.parametrize("background", [ImmediateBackground(), ThreadBackground()])
def test_backgrounds_run_a_key_once_until_its_outcome_is_taken(
    background: ImmediateBackground | ThreadBackground,
) -> None:
    runs: list[str] = []

    def outcome(key: str):  # type: ignore[no-untyped-def]
        for _ in range(1000):
            found = background.finished(key)
            if found is not None:
                return found
            threading.Event().wait(0.005)
        raise AssertionError("it never finished")

    def fails() -> None:
        raise PullFailed("no")

    background.submit("a", lambda: runs.append("a"))
    background.submit("a", lambda: runs.append("again"))
    assert outcome("a").error is None and runs == ["a"]
    assert background.finished("a") is None
    background.submit("b", fails)
    assert isinstance(outcome("b").error, PullFailed)
    background.submit("c", lambda: 1 / 0)
    error = outcome("c").error
    assert isinstance(error, Failed) and "ZeroDivisionError" in error.what


def test_a_pull_in_the_background_does_not_hold_up_the_loop() -> None:
    bench = Bench(SERVICE)
    gate, arrived = threading.Event(), threading.Event()
    pull = bench.models.pull

    def slow(model_id: str, source: str, sha256: str = ""):  # type: ignore[no-untyped-def]
        arrived.set()
        gate.wait(10.0)
        return pull(model_id, source, sha256)

    bench.models.pull = slow  # type: ignore[method-assign]
    loop = ControlLoop(
        bench.world, Holder("x", "here", 1, 0.0), bench.settings, background=ThreadBackground()
    )
    bench.run(4, loop=loop)
    wait_for(arrived)
    assert bench.live("gateway.0") and not bench.models.pulled
    gate.set()
    bench.run_until(lambda: bool(bench.live("assistant.replica.small.0")), loop=loop, passes=2000)
    assert bench.models.pulled == ["small"]


def test_a_bug_in_a_pass_is_one_event_and_does_not_end_the_loop() -> None:
    bench = Bench(RUN)
    bench.settings = replace(bench.settings, interval_s=0.001)
    loop, enough, tries = bench.process("runner"), threading.Event(), []

    def buggy() -> None:
        tries.append(1)
        if len(tries) == 5:
            enough.set()
        raise KeyError("what nobody foresaw")

    loop.run_once = buggy  # type: ignore[method-assign]
    runner = Runner(loop)
    runner.start()
    wait_for(enough)
    assert runner.running
    runner.stop()
    told = [e.text for e in bench.store.events() if e.kind == "control.pass_failed"]
    assert len(told) == 1 and "KeyError" in told[0]
