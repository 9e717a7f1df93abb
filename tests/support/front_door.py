"""A gateway in an event loop of its own thread, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from caudal.gateway.process import Gateway
from tests.support.gateway import gateway
from tests.support.mock_replica import MockReplica


@contextmanager
def front_door(folder: Path, models: dict[str, list[MockReplica | str]]) -> Iterator[Gateway]:
    """Started, and ended afterwards. Mock replicas among the models are started in the same loop."""
    started = threading.Event()
    ends: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    made: list[Gateway] = []

    async def run() -> None:
        mocks = [r for replicas in models.values() for r in replicas if isinstance(r, MockReplica)]
        for mock in mocks:
            await mock.start()
        async with gateway(folder, models, wait_s=5.0) as one:
            end = asyncio.Event()
            ends.append((asyncio.get_running_loop(), end))
            made.append(one)
            started.set()
            await end.wait()
        for mock in mocks:
            await mock.die()

    thread = threading.Thread(target=lambda: uvloop.run(run()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield made[0]
    finally:
        loop, end = ends[0]
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
