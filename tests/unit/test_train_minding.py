"""What becomes of a gang whose worker, spare or line ends: decided without processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caudal.domain.workload import InnerSpec
from caudal.train import worker
from caudal.train.child import Child
from caudal.train.config import MOST_RESTARTS, WorkerConfig
from caudal.train.minding import (
    DEATHS,
    SPARE_AFTER_S,
    SPARE_AGAIN_MOST_S,
    SPARE_AGAIN_S,
    WITHIN_S,
    Ended,
    Minding,
    Step,
)
from tests.e2e.test_run_survival import SPEC

KILLED = Ended(-9)


def proven() -> Minding:
    """A gang whose worker has taken part at 0."""
    minding = Minding()
    minding.took_part(0.0)
    return minding


def test_a_spare_is_started_late_once_and_again_where_it_ends() -> None:
    minding = Minding()
    assert minding.due_in(0.0) is None and minding.look(1e9).step is Step.WAIT
    minding.took_part(10.0)
    minding.took_part(12.0)  # it joined once more: that is no new start
    assert minding.due_in(11.0) == SPARE_AFTER_S - 1 and minding.look(11.0).step is Step.WAIT
    assert minding.look(10 + SPARE_AFTER_S).step is Step.SPARE
    minding.took_part(30.0)
    assert minding.due_in(30.0) is None and minding.look(1e9).step is Step.WAIT
    for _ in range(20):
        minding.spare_ended(100.0)
        again = minding.due_in(100.0)
        assert again is not None and SPARE_AGAIN_S <= again <= SPARE_AGAIN_MOST_S
        assert minding.look(100.0 + again).step is Step.SPARE


def test_a_killed_worker_is_followed_by_its_spare_or_by_a_new_one() -> None:
    minding = proven()
    minding.look(SPARE_AFTER_S)
    first = minding.worker_ended(KILLED, 100.0)
    assert (first.step, first.restart) == (Step.PROMOTE, 1) and "killed by signal 9" in first.why
    assert minding.due_in(101.0) is None  # the next spare waits until this one takes part
    second = minding.worker_ended(Ended(1), 200.0)
    assert (second.step, second.restart) == (Step.START, 2)
    minding.took_part(210.0)
    assert minding.due_in(210.0) == SPARE_AFTER_S


@pytest.mark.parametrize("how", [Ended(0), Ended(1, meant=True), Ended(5, meant=True), Ended(2, meant=True)])
def test_a_clean_end_and_an_error_that_is_meant_end_the_gang(how: Ended) -> None:
    order = proven().worker_ended(how, 50.0)
    assert (order.step, order.code) == (Step.END, how.code)


@pytest.mark.parametrize("code", [143, -15])
def test_a_worker_that_was_asked_to_end_ends_the_gang(code: int) -> None:
    order = proven().worker_ended(Ended(code), 50.0)
    assert (order.step, order.code) == (Step.END, 143)


def test_a_worker_that_never_took_part_is_judged_by_the_control_process() -> None:
    order = Minding().worker_ended(Ended(1), 3.0)
    assert (order.step, order.code) == (Step.END, 1) and "never took part" in order.why


def test_a_worker_that_dies_over_and_over_ends_the_gang() -> None:
    minding = proven()
    orders = [minding.worker_ended(KILLED, at) for at in (100.0, 100.0 + WITHIN_S / 2, 100.0 + WITHIN_S)]
    assert [o.step for o in orders] == [Step.START, Step.START, Step.END] and orders[-1].code == -9


@given(st.lists(st.floats(WITHIN_S / (DEATHS - 1) + 0.1, 1e4), max_size=40))
def test_deaths_that_are_far_apart_never_end_it(pauses: list[float]) -> None:
    minding, now = proven(), 0.0
    for number, pause in enumerate(pauses):
        now += pause
        assert minding.worker_ended(KILLED, now).restart == number + 1


def test_restarts_never_reach_the_next_gang() -> None:
    minding = proven()
    minding.restart = MOST_RESTARTS
    assert minding.worker_ended(KILLED, 1e6).step is Step.END
    last, following = config("r.worker.0-1", restart=MOST_RESTARTS), config("r.worker.0-2")
    assert config("r.worker.0-1").incarnation < last.incarnation < following.incarnation


def config(gang: str = "r.worker.0-1", *, inner: InnerSpec | None = None, restart: int = 0) -> WorkerConfig:
    spec = msgspec.convert(
        {**msgspec.to_builtins(SPEC), "inner": msgspec.to_builtins(inner or InnerSpec())}, type(SPEC)
    )
    return WorkerConfig(
        run="r", generation=1, site="here", gang=gang, blobs_url="", cache_dir="", spec=spec, token="t",
        restart=restart,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inner", "env", "alone"),
    [
        (InnerSpec(), {}, False),
        (InnerSpec(spare=False), {}, True),
        (InnerSpec(processes=2), {}, True),
        (InnerSpec(), {"WORLD_SIZE": "2", "RANK": "0"}, True),
        (InnerSpec(), {"WORLD_SIZE": "1", "RANK": "0"}, False),
    ],
)
def test_a_worker_is_alone_where_several_share_its_steps_or_no_spare_is_wanted(
    inner: InnerSpec, env: dict[str, str], alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "config.json", []
    path.write_bytes(msgspec.json.encode(config(inner=inner)))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(worker.Minder, "run", lambda _: 77)

    def work(file: str, part: str) -> int:
        told.append((file, part))
        return 78

    assert worker.main([str(path)], work) == (78 if alone else 77)
    assert worker.main([str(path), "spare"], work) == 78
    assert told == [(str(path), "alone")] * alone + [(str(path), "spare")]
    assert worker.main([str(tmp_path / "none")], work) == 78  # who reads it says what is wrong with it


def test_the_first_process_loads_nothing_that_computes() -> None:
    program = "import sys, caudal.train.worker; print([m for m in ('torch', 'numpy', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CHILD = """
import asyncio, sys
from caudal.train.tether import Tether
async def live():
    tether = Tether()
    await tether.start()
    await tether.lost(4)
    tether.meant()
    print(await tether.go(), flush=True)
    await asyncio.sleep(60)
asyncio.run(live())
"""


def test_a_line_carries_words_both_ways_and_its_end_is_the_childs() -> None:
    ours, theirs = socket.socketpair()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=theirs.fileno(), stdout=subprocess.PIPE
    ) as process:
        theirs.close()
        ours.setblocking(False)
        child, heard = Child(process, ours), list[str]()
        child.tell("nonsense")
        child.tell("go 7")
        assert process.stdout is not None and process.stdout.readline() == b"7\n"
        heard += child.words()
        assert heard == ["part", "lost 4", "meant"] and not child.silent and child.ended() is None
        child.close()
        child.wait(20.0)
        assert child.ended() == 143
        child.tell("too late")
        child.kill()


def test_the_kernel_ends_a_child_that_hangs_with_its_parent() -> None:
    program = (
        "import sys, os, signal\n"
        "from caudal.train.child import Child\n"
        "child = Child.start([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(2000):
        try:
            os.kill(pid, 0)
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                break
        except (ProcessLookupError, FileNotFoundError):
            break
        os.sched_yield()
    else:
        pytest.fail("the child is still there")
