"""What a fleet survives: real processes, real kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.support.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

AWAY_S = float(os.environ.get("CAUDAL_TEST_AWAY_S", "8"))
"""How long the control process stays dead."""


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended with one before it
            psutil.Process(pid).kill()


def commits(one: Fleet) -> int:
    """How many rounds the ledger holds."""
    return len(list((one.home / "blobs" / "runs" / "tiny").rglob("ledger/*.json")))


def events(one: Fleet, kind: str) -> list[dict[str, Any]]:
    return [e for e in one.get("/events?subject=tiny&limit=10000")["items"] if e["kind"] == kind]


def told_as_the_curve_says(one: Fleet) -> None:
    """Every change of a round's steps is an event, with the curve's own words, once."""
    rows = [p for p in one.get("/runs/tiny/points")["items"] if p["values"].get("why")]
    told = [(e["data"]["round"], e["data"]["reason"]) for e in events(one, "run.steps")]
    assert told == [(p["seq"], p["values"]["why"]) for p in rows] and told
    assert told[-1][1] in one.caudal("events", "tiny", "-n", "10000").stdout.replace("\n", " ")


def test_a_killed_site_comes_back_and_nothing_is_lost(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=300_000)
    one.up()
    one.wait_for(
        lambda: one.round() >= 3 and len(one.workload()["progress"]["sites"]) == 2, 60, "rounds of two"
    )
    victim = one.pids("tiny.worker.0")
    others = one.pids("tiny.worker.1")
    kill(victim)
    before = one.round()
    one.wait_for(lambda: one.round() >= before + 3, 30, "the other site to go on")
    fresh = one.wait_for(lambda: set(one.pids("tiny.worker.0")) - set(victim), 30, "the site to come back")
    assert fresh
    assert set(others) <= set(one.pids("tiny.worker.1"))  # with a spare, by now
    one.wait_finished()
    one.audit()
    told_as_the_curve_says(one)
    lost = [e["data"]["worker"] for e in events(one, "run.left")]
    assert lost[:1] == ["tiny.worker.0"]
    joined = [e["data"]["worker"] for e in events(one, "run.joined")]
    assert joined.count("tiny.worker.0") == 2 and joined.count("tiny.worker.1") == 1
    assert [e["data"]["epoch"] for e in events(one, "run.epoch")] == [1]


def test_a_killed_worker_is_followed_by_its_spare_in_the_same_gang(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=400_000)
    one.up()
    one.wait_for(lambda: one.round() >= 3, 60, "rounds")

    def processes() -> dict[str, psutil.Process]:
        children = (psutil.Process(pid) for pid in one.pids("tiny.worker.0"))
        return {words[-1]: child for child in children if (words := child.cmdline())}

    one.wait_for(lambda: "spare" in processes() and processes()["spare"].num_threads() >= 3, 60, "a spare")
    victim, before = processes()["worker"], one.round()
    victim.kill()
    one.wait_for(
        lambda: one.workload()["progress"]["sites"].keys() and one.round() >= before + 3, 30, "rounds"
    )
    assert "worker" not in processes()  # the spare is it
    one.wait_finished()
    assert one.workload()["restarts"] == 0
    one.audit()


def test_the_control_process_may_be_dead_for_long(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=5_000_000)  # more than it can train while this looks on
    run = one.files / "run.yaml"
    run.write_text(run.read_text() + "outer: {sync_fraction: 0.001}\n")  # so that rounds grow while it does
    one.up()
    one.wait_for(lambda: one.round() >= 2, 60, "rounds")
    slots = ("tiny.coordinator", "tiny.worker.0", "tiny.worker.1")
    running = {slot: one.pids(slot) for slot in slots}
    reached = commits(one)
    one.kill_control()
    time.sleep(AWAY_S)
    assert commits(one) > reached
    one.up()
    one.wait_for(lambda: one.round() > 0, 20, "reports to the new control process")
    time.sleep(2.0)
    assert all(set(pids) <= set(one.pids(slot)) for slot, pids in running.items())  # and spares, by now
    assert one.workload()["restarts"] == 0
    told_as_the_curve_says(one)
    assert len(events(one, "run.joined")) == 2 and events(one, "run.left") == []


def test_everything_killed_goes_on_where_it_was(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=200_000)
    one.up()
    one.wait_for(lambda: commits(one) >= 12, 60, "rounds")
    one.kill_everything()
    reached = commits(one)
    one.up()
    one.wait_finished()
    entries = sorted((one.home / "blobs" / "runs" / "tiny").rglob("ledger/*.json"))
    epochs = [json.loads(path.read_bytes())["epoch"] for path in entries]
    assert epochs[reached - 1] == 1
    assert set(epochs[reached:]) == {2}
    one.audit()


def test_leaving_and_coming_back(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=150_000)
    one.up()
    one.wait_for(lambda: commits(one) >= 5, 60, "rounds")
    assert one.leave() == 0
    assert one.children() == []
    reached = commits(one)
    one.up()
    one.wait_finished()
    assert commits(one) > reached
    one.audit()


def test_a_second_control_process_says_who_holds_the_state(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=100_000)
    one.up()
    second = one.caudal("up", str(one.files))
    assert second.returncode == 1
    assert "error[state_held]" in second.stderr
    assert str(one.process.pid) in second.stderr  # type: ignore[union-attr]
    assert one.answers()


def test_a_port_in_use_is_said(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=100_000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", one.api_port))
        taken.listen()
        told = one.caudal("up", str(one.files))
    assert told.returncode == 1
    assert "error[port_in_use]" in told.stderr
    assert "api.port" in told.stderr


def test_an_impatient_user_strands_nothing(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=2_000_000)
    one.up()
    one.wait_for(one.children, 15, "gangs")
    assert one.process is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        one.process.send_signal(number)
        time.sleep(0.05)
    assert one.process.wait(timeout=40) == 0
    assert one.children() == []
