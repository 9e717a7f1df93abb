"""drivers/processes.py: a process is its pid and its start, and no other is ever signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from caudal.drivers.processes import Identity, alive, identify, marked, send


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, "CAUDAL_TEST_MARK": "s-1"})
    yield process
    process.kill()
    process.wait()


def test_a_process_is_the_same_whenever_one_looks(sleeper: subprocess.Popen[bytes]) -> None:
    first = identify(sleeper.pid)
    assert first is not None and first.pid == sleeper.pid
    assert identify(sleeper.pid) == first and alive(first)


def test_a_zombie_and_a_reaped_process_are_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    known = identify(sleeper.pid)
    assert known
    assert send(known, signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    assert not alive(known) and identify(sleeper.pid) is None
    sleeper.wait()
    assert not alive(known) and not send(known, signal.SIGKILL)


def test_a_pid_that_another_has_now_is_not_signalled(sleeper: subprocess.Popen[bytes]) -> None:
    known = identify(sleeper.pid)
    assert known
    before = Identity(sleeper.pid, known.born + "0")
    assert not alive(before)
    assert not send(before, signal.SIGKILL)
    assert sleeper.poll() is None and alive(known)


def test_a_name_with_brackets_and_spaces_does_not_confuse(tmp_path: os.PathLike[str]) -> None:
    odd = os.path.join(tmp_path, "a) S 1 (b")  # noqa: PTH118 - the name is the point
    os.symlink("/bin/sleep", odd)  # noqa: PTH211
    process = subprocess.Popen([odd, "60"])
    try:
        known, me = identify(process.pid), identify(os.getpid())
        assert known and me
        assert int(known.born.rpartition(":")[2]) >= int(me.born.rpartition(":")[2])
    finally:
        process.kill()
        process.wait()


def test_what_carries_the_mark_is_found_and_nothing_else(sleeper: subprocess.Popen[bytes]) -> None:
    assert [p.pid for p in marked("CAUDAL_TEST_MARK=s-1")] == [sleeper.pid]
    assert marked("CAUDAL_TEST_MARK=s") == []  # not a beginning of it


def test_the_way_of_other_platforms_sees_the_same(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert psutil.pid_exists(sleeper.pid)  # imported while it still knows the platform
    monkeypatch.setattr(sys, "platform", "somewhere")
    known = identify(sleeper.pid)
    assert known and alive(known)
    assert [p.pid for p in marked("CAUDAL_TEST_MARK=s-1")] == [sleeper.pid]
    assert not send(Identity(sleeper.pid, "0.00"), signal.SIGKILL)
    assert send(known, signal.SIGKILL)
    sleeper.wait()
    assert identify(sleeper.pid) is None and not send(known, signal.SIGKILL)


def test_nothing_heavy_is_imported_by_it() -> None:
    code = "import sys, caudal.drivers.processes"
    code += "; print(*(name in sys.modules for name in ('psutil', 'asyncio', 'dataclasses')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
