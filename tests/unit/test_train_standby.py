"""Who takes over: nobody while a coordinator is there, one of the sites when it is gone."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given as each
from hypothesis import strategies as st

from caudal.domain.errors import NotFound, StorageFailed, UsageError
from caudal.domain.workload import ModelShape, OuterSpec
from caudal.store.blobs import ObjectBlobs, open_blobs
from caudal.train import call, checkpoint, epochs, standby
from caudal.train.beat import beat, beat_path, beats
from caudal.train.compute import ComputeThread
from caudal.train.config import CoordinatorConfig
from caudal.train.given import give, given_plan
from caudal.train.interface import RunPlan, Stage
from caudal.train.protocol.effects import Shift
from caudal.train.runner import Shifts
from tests.e2e.test_run_survival import SPEC

PREFIX = "runs/r/g1"


@pytest.fixture
def blobs(tmp_path: Path) -> ObjectBlobs:
    return open_blobs(tmp_path.as_uri())


def config(slot: str = "r.worker.0", *, given: bool = False) -> CoordinatorConfig:
    return CoordinatorConfig(
        run="r", generation=1, site="here", gang=f"{slot}-1", blobs_url="", cache_dir="", spec=SPEC,
        token="t", given=given,
    )  # fmt: skip


def claimed(blobs: ObjectBlobs, address: str) -> int:
    return epochs.claim(blobs, PREFIX, address=address, site="s", gang="g", at=1.0).epoch


def gone(blobs: ObjectBlobs, lost: int, *, given: bool = False) -> bool:
    return asyncio.run(standby.gone(config(given=given), blobs, lost))


def test_a_coordinator_that_refuses_connections_is_gone_and_one_that_listens_is_not(
    blobs: ObjectBlobs,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        epoch = claimed(blobs, address)
        assert not gone(blobs, epoch)
    assert gone(blobs, epoch)
    assert not gone(blobs, epoch - 1)  # another has the run already
    assert claimed(blobs, address) == epoch + 1 and not gone(blobs, epoch)


def test_a_run_without_a_coordinator_is_begun_by_sites_only_where_they_brought_it(blobs: ObjectBlobs) -> None:
    assert not gone(blobs, 0) and gone(blobs, 0, given=True)


def test_a_coordinator_that_cannot_be_heard_but_writes_its_beat_is_there(blobs: ObjectBlobs) -> None:
    async def both() -> tuple[bool, bool]:
        living = asyncio.create_task(beat(blobs, PREFIX, 3))
        await asyncio.sleep(0.05)
        there = await beats(blobs, PREFIX, 3, watch_s=1.3)
        living.cancel()
        return there, await beats(blobs, PREFIX, 3, watch_s=0.1)

    assert asyncio.run(both()) == (True, False)
    assert blobs.get(beat_path(PREFIX, 3)) in (b"1", b"2")


def test_where_the_store_does_not_answer_nobody_takes_over() -> None:
    class Silent:
        def get(self, path: str) -> bytes:
            raise StorageFailed("no answer", where=path)

    assert asyncio.run(beats(Silent(), PREFIX, 1, watch_s=0.0))  # type: ignore[arg-type]


def test_sites_take_over_in_the_order_of_their_slots() -> None:
    assert [standby.turn_of(f"r.worker.{n}") for n in (0, 1, 9)] == [0, 1, 1]
    assert 0 <= standby.turn_of("r.worker.north") < standby.TURNS


def test_a_word_starts_a_standby_once_and_one_that_ended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a program in its place that writes down what it hears."""
    heard = tmp_path / "heard"
    program = f"import sys; open({str(heard)!r}, 'a').write(sys.stdin.readline())"
    begin = asyncio.create_subprocess_exec

    async def instead(*command: str, **how: object) -> asyncio.subprocess.Process:
        assert command[1:] == ("-m", "caudal.train.standby", "some.json")
        return await begin(sys.executable, "-c", program, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", instead)

    async def story() -> None:
        one = call.Standby("some.json")
        await one.end()
        await one.lost(4)
        await one.lost(4)  # told just now
        assert one._process is not None
        await one._process.wait()
        await one.lost(5)
        await one.end()

    asyncio.run(story())
    assert heard.read_text().split() == ["4", "5"]


def run_plan(**other: object) -> RunPlan:
    stage = Stage("data", "text", 0, 10, 10, 2, 1, 0.0, 0.0, 0.0, 0.0)
    plan = RunPlan("r", 1, 0, ModelShape(), 6, OuterSpec(), (stage,), ((0, 4), (4, 6)), "hash")
    return msgspec.convert({**msgspec.to_builtins(plan), **other}, RunPlan)


def test_who_comes_first_gives_a_run_its_plan_and_state_and_others_must_fit(blobs: ObjectBlobs) -> None:
    with pytest.raises(NotFound):
        given_plan(blobs, PREFIX)
    first, second = np.arange(6, dtype=np.float32), np.zeros(6, np.float32)
    give(blobs, PREFIX, run_plan(), first)
    give(blobs, PREFIX, run_plan(), second)  # the same run: it begins where the first said
    restored = checkpoint.restore(blobs, PREFIX, 6, print)
    assert restored is not None and restored.state.tolist() == first.tolist()
    assert given_plan(blobs, PREFIX) == run_plan()
    with pytest.raises(UsageError, match="begun with another seed and model") as refused:
        give(blobs, PREFIX, run_plan(seed=2, model="other"), first)
    assert "seed: 1 there, 2 here" in str(refused.value)


@each(st.lists(st.booleans(), max_size=12))
def test_a_change_is_taken_by_the_steps_or_by_the_job_behind_them_and_once(by_steps: list[bool]) -> None:
    shifts, taken = Shifts(), list[int]()
    for number, early in enumerate(by_steps):
        shift = Shift((1, number), 0, np.full(1, number, np.float32))
        shifts.put(shift)
        if early:
            taken += [int(s.change[0]) for s in shifts.take()]
        if shifts.take_one(shift):
            taken.append(number)
    assert taken == list(range(len(by_steps))) and not shifts.take()


def test_what_fails_while_it_computes_ends_the_worker() -> None:
    async def story() -> None:
        def build() -> object:
            raise ZeroDivisionError("no model")

        thread = ComputeThread(build)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            await thread.ready
        assert isinstance(thread.failed.exception(), ZeroDivisionError)

    asyncio.run(story())
