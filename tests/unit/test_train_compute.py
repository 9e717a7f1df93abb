"""The thread that computes, and its end."""

from __future__ import annotations

import asyncio
import threading

from caudal.train.compute import ComputeThread


class Plain:
    """An inner side without other processes."""

    size = 3


class Group(Plain):
    """One with some."""

    def __init__(self) -> None:
        self.ended_in: str | None = None

    def close(self) -> None:
        self.ended_in = threading.current_thread().name


def test_it_ends_behind_the_jobs_that_it_was_given_and_its_processes_with_it() -> None:
    group, answers = Group(), list[object]()

    async def run() -> bool:
        thread = ComputeThread(lambda: group)  # type: ignore[arg-type, return-value]
        assert await thread.ready == 3
        thread.submit(lambda _: group.ended_in, answers.append)
        thread.close()
        return await asyncio.to_thread(thread.join, 10.0)

    assert asyncio.run(run())
    assert answers == [None], "the job came first"
    assert group.ended_in == "compute", "where the group was used, there it ends"


def test_one_that_computes_for_longer_is_not_waited_for() -> None:
    goes_on = threading.Event()

    async def run() -> bool:
        thread = ComputeThread(Plain)  # type: ignore[arg-type]
        await thread.ready
        thread.submit(lambda _: goes_on.wait(10.0), lambda _: None)
        thread.close()
        try:
            return thread.join(0.05)
        finally:
            goes_on.set()

    assert not asyncio.run(run())
