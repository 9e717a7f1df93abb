"""Gangs outlive what started them, and a crash at any step of a start leaves exactly one gang or none.

The crashes are real: a forked process kills itself by SIGKILL at the k-th step that changes something
(creating, linking, renaming, locking a file, starting a process), for every k until it gets through.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from caudal.domain.gang import GangSpec, GangState, ProcessSpec
from caudal.drivers import local_shim
from caudal.drivers.local import LocalDriver
from caudal.drivers.local_folder import Folder
from caudal.drivers.processes import marked
from tests.support.gangs import Clock, Site, gone, site_at, wait_for

STEPS = frozenset(
    {"os.mkdir", "os.link", "os.rename", "os.remove", "fcntl.flock", "subprocess.Popen", "os.fork"}
)
MOST_STEPS = 60

CONTROL = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in a shell's background
from pathlib import Path
from tests.support.gangs import Site
site = Site(Path(sys.argv[1]))
site.sh("a-1", "echo $$ >> started; while [ ! -e go ]; do sleep 0.01; done; exit 7")
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_at(tmp_path / "gangs") as made:
        yield made


@pytest.fixture
def control(site: Site) -> Iterator[subprocess.Popen[str]]:
    """A control process of its own, in a process group of its own, that has started one gang."""
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROL, str(site.root)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def kill_group(process: subprocess.Popen[str], number: int) -> None:
    os.killpg(process.pid, number)
    process.wait()


def test_a_gang_is_adopted_by_the_next_control_process(site: Site, control: subprocess.Popen[str]) -> None:
    pids, shim = site.running("a-1").pids, site.shim("a-1")
    kill_group(control, signal.SIGKILL)
    assert site.running("a-1").pids == pids and site.shim("a-1") == shim
    site.sh("a-1", "echo $$ >> started; while [ ! -e go ]; do sleep 0.01; done; exit 7")
    assert site.running("a-1").pids == pids, "asked again by the next, it is not started again"
    assert (site.root / "a-1" / "started").read_text().split() == [str(pids[0])]
    (site.root / "a-1" / "go").touch()
    assert site.over("a-1").exit_code == 7


def test_how_it_ended_is_known_although_nobody_was_there(site: Site, control: subprocess.Popen[str]) -> None:
    (pid,) = site.running("a-1").pids
    kill_group(control, signal.SIGKILL)
    (site.root / "a-1" / "go").touch()
    wait_for(lambda: gone(pid))
    end = Site(site.root).over("a-1")
    assert (end.state, end.exit_code) == (GangState.EXITED, 7)


def test_ctrl_c_in_the_terminal_does_not_reach_gangs(site: Site, control: subprocess.Popen[str]) -> None:
    kill_group(control, signal.SIGINT)
    site.running("a-1")
    Site(site.root).driver.stop("a-1", 5.0)
    assert site.over("a-1").exit_code == -15


def spec_of(script: str) -> GangSpec:
    return GangSpec("a-1", "north", "n-1", 1, (ProcessSpec(("/bin/sh", "-c", script), {}, {"token": "x"}),))


def in_a_fork(work: Callable[[], Any]) -> int:
    """Do it in a forked process and end it without cleaning up; its wait status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def die_at(step: int, is_it_me: Callable[[], bool]) -> None:
    """From now on, kill this process by SIGKILL at its `step`-th change."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_CREAT | os.O_WRONLY)
        )
        if (event in STEPS or writes) and is_it_me():
            seen += 1
            if seen > step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


SCRIPT = "echo $$ >> started; exec sleep 60"


def starts(site: Site) -> list[int]:
    """The pids under which the gang was ever started."""
    try:
        return [int(pid) for pid in (site.root / "a-1" / "started").read_text().split()]
    except FileNotFoundError:
        return []


def runs_once(site: Site) -> None:
    """Exactly one gang was ever started, and it runs."""
    wait_for(lambda: starts(site))
    assert starts(site) == list(site.running("a-1").pids)


def test_a_start_that_is_cut_short_at_any_step_is_repaired_by_the_next(tmp_path: Path) -> None:
    for step in range(MOST_STEPS):
        with site_at(tmp_path / str(step)) as site:
            status = in_a_fork(partial(start_and_die, site.driver, step))
            listed = site.status("a-1")
            assert listed is None or listed.alive, f"step {step}"
            site.driver.start(spec_of(SCRIPT), "t-1")
            runs_once(site)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0 and step >= 6, (
                "it got through, after being killed at each step"
            )
            return
    raise AssertionError("a start takes that many steps?")


def start_and_die(driver: LocalDriver, step: int) -> None:
    die_at(step, lambda: True)
    driver.start(spec_of(SCRIPT), "t-1")


def test_a_starter_that_dies_while_the_shim_comes_up_leaves_one_gang(site: Site) -> None:
    def start() -> None:
        subprocess.Popen.wait = lambda *_, **__: os._exit(9)  # type: ignore[method-assign]
        site.driver.start(spec_of(SCRIPT), "t-1")

    assert os.waitstatus_to_exitcode(in_a_fork(start)) == 9
    site.driver.start(spec_of(SCRIPT), "t-1")
    runs_once(site)


def test_a_shim_that_dies_at_any_step_leaves_one_gang_or_a_lost_one_never_two(tmp_path: Path) -> None:
    lost = 0
    for step in range(MOST_STEPS):
        with site_at(tmp_path / str(step)) as site:
            got_through = shim_to_step(site, step)
            site.driver.start(spec_of(SCRIPT), "t-1")
            wait_for(partial(settled, site))
            status = site.status("a-1")
            assert status is not None and len(starts(site)) <= 1, f"step {step}"
            if status.state is GangState.LOST:
                lost += 1
                assert not got_through and all(gone(pid) for pid in starts(site)), f"step {step}"
            else:
                runs_once(site)
        if got_through:
            assert lost >= 3 and step >= 10, "it got through, after being killed at each step"
            return
    raise AssertionError("a shim takes that many steps?")


def shim_to_step(site: Site, step: int) -> bool:
    """Run a gang's shim that kills itself at that step; whether it got its gang to run before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalDriver, "_launch", lambda *_: None)
        site.driver.start(spec_of(SCRIPT), "t-1")
    lifeline, held = os.pipe()  # what the gang's processes have of it is closed when they become programs
    in_a_fork(partial(shim_and_die, Folder(site.root / "a-1"), step))
    os.close(held)
    try:
        wait_for(lambda: select.select([lifeline], [], [], 0)[0] or starts(site))
        dead = bool(select.select([lifeline], [], [], 0.05)[0])
    finally:
        os.close(lifeline)
    return not dead


def shim_and_die(folder: Folder, step: int) -> None:
    record = folder.read("spec.json")
    assert record
    os.environ["CAUDAL_GANG_MARK"] = record["mark"]
    # Only the shim itself, which leads its session; not the gang's processes.
    die_at(step, lambda: os.getsid(0) == os.getpid())
    local_shim.main(str(folder.path))


def settled(site: Site) -> bool:
    status = site.status("a-1")
    return status is not None and status.state is not GangState.STARTING


def test_twenty_starters_at_once_start_one_gang(site: Site) -> None:
    pids = []
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            try:
                LocalDriver("north", site.root, Clock()).start(spec_of(SCRIPT), "t-1")
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * 20
    runs_once(site)
    wait_for(lambda: not others(site))


def others(site: Site) -> list[int]:
    """Processes that belong to the gang and are neither its shim nor its process."""
    mark = (Folder(site.root / "a-1").read("spec.json") or {})["mark"]
    known = {site.shim("a-1"), *site.running("a-1").pids}
    return [p.pid for p in marked(f"CAUDAL_GANG_MARK={mark}") if p.pid not in known]
