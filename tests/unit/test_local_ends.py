"""drivers/local.py and its shim: how gangs end, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from caudal.domain.gang import GangState
from caudal.drivers.local import PACKAGE_ROOT, LocalDriver
from caudal.drivers.local_folder import Folder
from caudal.drivers.local_shim import BOOT, exit_code
from tests.support.gangs import SLEEP, Site, gone, site_at, wait_for


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_at(tmp_path / "gangs") as made:
        yield made


def test_a_gang_ends_together(site: Site) -> None:
    site.sh("a-1", "exec sleep 60", "sleep 0.1; exit 4")
    pids = site.running("a-1").pids
    assert len(pids) == 2
    assert site.over("a-1").exit_code == 4
    assert all(gone(pid) for pid in pids)


def test_a_gang_whose_first_process_ends_well_ended_well(site: Site) -> None:
    site.sh("a-1", "exec sleep 60", "exit 0")
    assert site.over("a-1").exit_code == 0


@pytest.mark.parametrize(
    ("codes", "stopping", "expected"),
    [
        ([0], False, 0),
        ([3, -15], False, 3),
        ([-9, 0], False, -9),
        ([0, -15], False, 0),  # we ended it
        ([0, 143, 5], False, 5),
        ([0, 1], False, 1),
        ([0, -15], True, -15),
        ([-9], True, -9),
        ([], True, -15),  # stopped before it had started anything
    ],
)
def test_exit_code_of_a_gang(codes: list[int], stopping: bool, expected: int) -> None:
    assert exit_code(codes, stopping) == expected


def test_stop_asks_first(site: Site) -> None:
    site.sh("a-1", "exec 2>/dev/null; trap 'echo bye; exit 143' TERM; echo up; while :; do sleep 0.02; done")
    wait_for(lambda: "up" in site.driver.logs("a-1"))
    site.driver.stop("a-1", 10.0)
    site.driver.stop("a-1", 10.0)
    assert site.over("a-1").exit_code == 143
    assert site.driver.logs("a-1") == "up\nbye\n"


def test_stop_kills_what_does_not_listen_after_the_grace(site: Site) -> None:
    site.sh("a-1", "trap '' TERM; echo up; while :; do sleep 0.02; done")
    wait_for(lambda: "up" in site.driver.logs("a-1"))
    began = time.monotonic()
    site.driver.stop("a-1", 0.3)
    assert time.monotonic() - began < 0.2, "it returns at once"
    assert site.over("a-1").exit_code == -9
    assert 0.3 <= time.monotonic() - began < 5


def test_a_second_word_may_shorten_the_grace_and_not_lengthen_it(site: Site) -> None:
    site.sh("a-1", "trap '' TERM; echo up; while :; do sleep 0.02; done")
    wait_for(lambda: "up" in site.driver.logs("a-1"))
    site.driver.stop("a-1", 60.0)
    site.running("a-1")
    os.kill(site.shim("a-1"), signal.SIGSTOP)  # it reads the next two words together
    site.driver.stop("a-1", 0.0)
    site.driver.stop("a-1", 60.0)
    os.kill(site.shim("a-1"), signal.SIGCONT)
    assert site.over("a-1").exit_code == -9


def test_stop_of_what_is_over_or_unknown_is_fine(site: Site) -> None:
    site.driver.stop("nobody-1", 1.0)
    site.sh("a-1", "exit 0")
    site.over("a-1")
    site.driver.stop("a-1", 1.0)
    assert site.over("a-1").exit_code == 0


def test_a_start_that_was_cut_short_and_stopped_never_starts(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LocalDriver, "_launch", lambda *_: None)
        site.start("a-1", SLEEP)
    assert site.driver.gangs() == [], "a gang that was never started does not exist"
    site.driver.stop("a-1", 1.0)
    assert site.over("a-1").exit_code == -15
    site.start("a-1", SLEEP)
    assert site.over("a-1").exit_code == -15


def test_a_stop_that_comes_before_the_shim_is_up_is_not_lost(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch = ("touch", str(tmp_path / "ran"))
    with monkeypatch.context() as patch:
        patch.setattr(LocalDriver, "_launch", lambda *_: None)
        site.start("a-1", touch)
    held = Folder(site.root / "a-1").lock()  # as a shim that is just coming up
    assert held is not None
    site.driver.stop("a-1", 1.0)
    assert site.status("a-1") is None
    os.close(held)
    site.start("a-1", touch)
    assert site.over("a-1").exit_code == -15
    assert not (tmp_path / "ran").exists()


def test_what_a_process_started_does_not_outlive_it(site: Site) -> None:
    site.sh("a-1", "sleep 61 & echo $!; setsid sleep 62 & echo $!; sleep 0.1; exit 0")
    assert site.over("a-1").exit_code == 0
    left = [int(pid) for pid in site.driver.logs("a-1").split()]
    assert len(left) == 2
    wait_for(lambda: all(gone(pid) for pid in left))


def test_a_process_that_is_killed(site: Site) -> None:
    site.start("a-1", SLEEP, SLEEP)
    first, second = site.running("a-1").pids
    os.kill(second, signal.SIGKILL)
    assert site.over("a-1").exit_code == -9
    assert gone(first)


def test_a_shim_that_is_killed_takes_all_with_it_and_the_gang_is_lost(site: Site) -> None:
    site.sh("a-1", "sleep 61 & echo $!; setsid sleep 62 & echo $!; exec sleep 63", "exec sleep 64")
    log = site.root / "a-1" / "0.log"
    wait_for(lambda: log.read_text().count("\n") == 2)
    left = [*site.running("a-1").pids, *map(int, log.read_text().split())]
    assert len(left) == 4 and not any(gone(pid) for pid in left)
    os.kill(site.shim("a-1"), signal.SIGKILL)
    end = site.over("a-1")
    assert (end.state, end.exit_code) == (GangState.LOST, None) and end.ended_at
    assert all(gone(pid) for pid in left), "listed as lost only when nothing of it runs"
    site.start("a-1", SLEEP)
    assert site.over("a-1").state is GangState.LOST, "what was started once does not start again"


def test_the_kernel_ends_the_processes_of_a_dead_shim_with_nobody_looking(site: Site) -> None:
    site.start("a-1", SLEEP, SLEEP)
    pids = site.running("a-1").pids
    os.kill(site.shim("a-1"), signal.SIGKILL)
    wait_for(lambda: all(gone(pid) for pid in pids))


def test_a_shim_that_comes_late_to_a_gang_that_was_started_leaves(site: Site) -> None:
    site.sh("a-1", "echo $$ >> started; exec sleep 60")
    os.kill(site.shim("a-1"), signal.SIGKILL)
    wait_for(lambda: gone(site.shim("a-1")))
    late = subprocess.run([sys.executable, "-c", BOOT, str(PACKAGE_ROOT), str(site.root / "a-1")], check=True)
    assert late.returncode == 0
    assert site.over("a-1").state is GangState.LOST
    started = site.root / "a-1" / "started"  # not there where the shim was killed before it started anything
    assert not started.exists() or len(started.read_text().split()) == 1


def test_a_pid_that_a_stranger_has_now_is_never_signalled(site: Site) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        site.start("a-1", SLEEP)
        os.kill(site.shim("a-1"), signal.SIGKILL)
        wait_for(lambda: gone(site.shim("a-1")))
        folder = Folder(site.root / "a-1")
        record = folder.read("shim.json")
        assert record
        record["shim"][0] = record["processes"][0][0] = stranger.pid
        folder.write("shim.json", record)
        site.driver.stop("a-1", 0.0)
        assert site.over("a-1").state is GangState.LOST
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_shim_that_hangs_is_ended_all_the_same(site: Site) -> None:
    site.start("a-1", SLEEP)
    (pid,) = site.running("a-1").pids
    os.kill(site.shim("a-1"), signal.SIGSTOP)
    site.driver.stop("a-1", 0.0)
    site.running("a-1")
    site.clock.ahead_s = 6.0
    assert site.over("a-1").state is GangState.LOST
    assert gone(pid)


def test_a_shim_that_is_asked_by_somebody_else_ends_the_gang(site: Site) -> None:
    site.start("a-1", SLEEP)
    os.kill(site.shim("a-1"), signal.SIGTERM)
    assert site.over("a-1").exit_code == -15
