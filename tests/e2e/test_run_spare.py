"""A worker that is killed is followed by its spare, inside its gang; of a gang whose first process is gone nothing is
left. Real processes, real `kill -9`."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from caudal.train import epochs, ledger
from caudal.train.given import give
from caudal.train.interface import plan
from caudal.train.layout import initial_state
from tests.e2e.test_run_survival import PREFIX, SPEC, Fleet, kill
from tests.e2e.tiny_run import prepare

Gang = subprocess.Popen[bytes]


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Spares that are started at once, and sites whose standby may coordinate."""
    monkeypatch.setenv("TINY_SPARE_S", "0.1")
    made = Fleet(tmp_path)
    run_plan = plan(SPEC, prepare(SPEC, made.blobs, PREFIX))
    give(made.blobs, PREFIX, run_plan, initial_state(run_plan.shape, run_plan.vocab, run_plan.seed))
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def parts(gang: Gang) -> dict[str, psutil.Process]:
    """The children of a gang's first process: worker, spare, standby. A promoted spare is called spare still."""
    found = {}
    for child in psutil.Process(gang.pid).children():
        words = child.cmdline()
        found["standby" if "caudal.train.standby" in words else words[-1] if words else ""] = child
    return found


def ready_spare(fleet: Fleet, gang: Gang, number: int = 1) -> psutil.Process:
    """The gang's newest spare, once it says that it is ready; `number`: how many were before, with it."""
    path = Path(str(gang.args[-1]).removesuffix(".json") + ".log")  # type: ignore[index]
    ready = "the spare is ready (process "

    def pids() -> list[int]:
        return [
            int(line.split(ready)[1].rstrip(")")) for line in path.read_text().splitlines() if ready in line
        ]

    fleet.until(lambda: len(pids()) == number)
    return psutil.Process(pids()[-1])


def contributes(fleet: Fleet, site: str, since: float) -> Callable[[], bool]:
    """Whether a round was committed with what the site computed from `since` on."""

    def look() -> bool:
        links = [ledger.read_entry(fleet.blobs, PREFIX, n + 1) for n in range(fleet.round())]
        return any(
            part.site == site and link.entry.at - part.seconds > since
            for link in links
            if link is not None
            for part in link.entry.sites
        )

    return look


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=10.0)[1]


def begin(fleet: Fleet, step_s: float = 0.1, **more: object) -> tuple[Gang, Gang]:
    """A coordinator and two sites; returns the gangs of the sites."""
    boss = fleet.start("coordinator", "tiny.coordinator", given=True)
    north, south = (
        fleet.start("worker", f"tiny.worker.{n}", step_s=step_s, given=True, standby=True, **more)
        for n in range(2)
    )
    fleet.until(lambda: fleet.round() >= 2)
    assert boss.poll() is None
    return north, south


def test_a_worker_that_is_killed_twice_is_followed_by_a_spare_each_time(fleet: Fleet) -> None:
    north, south = begin(fleet)
    worker = parts(south)["worker"]
    for number in (1, 2):
        spare = ready_spare(fleet, south, number)
        worker.kill()
        fleet.until(contributes(fleet, "1", time.time()))
        assert south.poll() is None and spare.is_running()
        worker = spare
    everything = [worker, *psutil.Process(south.pid).children(), *psutil.Process(north.pid).children()]
    for process in fleet.processes:
        fleet.ends(process)
    fleet.audit()
    assert not left(everything)
    entries = [ledger.read_entry(fleet.blobs, PREFIX, n + 1) for n in range(fleet.round())]
    assert sum(part.joined for link in entries if link for part in link.entry.sites) == 4
    assert fleet.logs().count("was killed by signal 9; its spare takes its place") == 2


def test_a_worker_that_dies_before_there_is_a_spare_is_started_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_SPARE_S", "100")
    _, south = begin(fleet)
    parts(south)["worker"].kill()
    fleet.until(contributes(fleet, "1", time.time()))
    for process in fleet.processes:
        fleet.ends(process)
    fleet.audit()
    assert "killed by signal 9; a new one takes its place" in fleet.logs()


def test_a_worker_that_dies_over_and_over_ends_its_gang_as_it_ended(fleet: Fleet) -> None:
    _, south = begin(fleet)
    everything: list[psutil.Process] = []

    def dies() -> bool:
        if south.poll() is None:
            everything.extend(there := list(psutil.Process(south.pid).children()))
            for child in there:
                child.kill()
        return south.returncode is not None

    fleet.until(dies)
    assert south.returncode == -signal.SIGKILL, fleet.logs()
    assert "the 3rd time within 60 s" in fleet.logs() and not left(everything)


def test_nothing_is_left_of_a_gang_whose_first_process_is_killed(fleet: Fleet) -> None:
    _, south = begin(fleet)
    ready_spare(fleet, south)
    everything = list(parts(south).values())
    assert len(everything) == 3
    kill(south)
    assert not left(everything)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gang_that_is_asked_to_end_ends_at_once(fleet: Fleet, number: signal.Signals) -> None:
    _, south = begin(fleet)
    ready_spare(fleet, south)
    everything = list(parts(south).values())
    south.send_signal(number)
    south.wait(timeout=10.0)
    assert south.returncode == 128 + number
    assert not [p for p in everything if p.is_running()]  # it waited for them


def test_a_worker_whose_error_is_final_ends_its_gang_with_its_code(fleet: Fleet) -> None:
    begin(fleet)
    stranger = fleet.start("worker", "tiny.worker.9", token="guess")
    fleet.ends(stranger, 1)
    newer = fleet.start("worker", "tiny.worker.1", 2, given=True)  # replaces the first start of its slot
    fleet.ends(fleet.processes[2], 5)
    assert newer.poll() is None and "was replaced by 2000" in fleet.logs()
    path = fleet.folder / "bad.json"
    path.write_text("{}")
    again = subprocess.run([*stranger.args[:-1], str(path)], capture_output=True)  # type: ignore[index,misc]
    assert again.returncode == 2


def test_a_standby_that_coordinates_goes_on_when_its_sites_worker_is_killed(fleet: Fleet) -> None:
    gangs = begin(fleet)
    for gang in gangs:
        ready_spare(fleet, gang)
    time.sleep(1.0)  # the standby processes have loaded what they need
    kill(fleet.processes[0])
    fleet.until(lambda: (found := epochs.newest(fleet.blobs, PREFIX)) is not None and found.epoch == 2)
    at = fleet.round()
    fleet.until(lambda: fleet.round() > at)
    newest = epochs.newest(fleet.blobs, PREFIX)
    assert newest is not None
    boss = gangs[int(newest.site)]
    standby = parts(boss)["standby"]
    parts(boss)["worker"].kill()
    fleet.until(contributes(fleet, newest.site, time.time()))
    assert standby.is_running()
    for gang in gangs:
        fleet.ends(gang)
    assert fleet.audit().epochs == 2 and epochs.newest(fleet.blobs, PREFIX) == newest
