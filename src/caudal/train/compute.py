"""One thread that computes, so that the event loop of a worker only carries bytes.

The inner side is built in it and used from it alone. (It may set its thread's floating point to flush tiny
numbers; the outer state is computed elsewhere, where they are kept, so that all machines agree.)
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from caudal.train.interface import Closing, Devices, Inner, Recalling, devices_of

T = TypeVar("T")
Job = tuple[Callable[[Inner], Any], Callable[[Any], None]]


class ComputeThread:
    """Jobs run in the order in which they were given; each answer is handed to the event loop."""

    def __init__(self, build: Callable[[], Inner]) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.ready: asyncio.Future[int] = self._loop.create_future()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.devices: Devices | None = None  # known once it is ready
        self.recalls = False  # whether it can go back to moments that it had; known then, too
        self._thread = threading.Thread(target=self._run, args=(build,), name="compute", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[Inner], T], done: Callable[[T], None]) -> None:
        """Run `job` with the inner side, then `done` with its answer in the event loop."""
        self._jobs.put((job, done))

    def close(self) -> None:
        """End after the jobs that were given, and with it the inner side's other processes."""
        self._jobs.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait until it has ended; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self, build: Callable[[], Inner]) -> None:
        try:
            inner = build()
            self.devices = devices_of(inner)
            self.recalls = isinstance(inner, Recalling)
            self._tell(self._settle, self.ready, inner.size)
            while (item := self._jobs.get()) is not None:
                job, done = item
                self._tell(done, job(inner))
            if isinstance(inner, Closing):
                inner.close()
        except Exception as error:  # whatever it is, it ends the worker: see Session.run
            self._tell(self._fail, error)

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # the loop is closed: the worker is ending

    @staticmethod
    def _settle(future: asyncio.Future[int], size: int) -> None:
        if not future.done():
            future.set_result(size)

    def _fail(self, error: Exception) -> None:
        for future in (self.ready, self.failed):
            if not future.done():
                future.set_exception(error)
