"""This process among others: its clock, its state directory, and whether it may lead."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

from caudal.domain.errors import StateHeld, StorageFailed
from caudal.drivers.processes import identify
from caudal.ports import Holder
from caudal.store.home import Home
from caudal.store.state import SqlStore


class SystemClock:
    """The machine's clock, but never backwards: where somebody sets it back, time goes on from where it was,
    so that nothing waits for hours until a moment comes round again. It follows a clock that is set forward.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        self._last, self._last_steady = wall(), steady()

    def now(self) -> float:
        """Seconds since 1970."""
        with self._lock:
            steady = self._steady()
            self._last = max(self._wall(), self._last + steady - self._last_steady)
            self._last_steady = steady
            return self._last

    def sleep(self, seconds: float) -> None:
        """Return after that long."""
        time.sleep(seconds)


def this_process(name: str) -> Holder:
    """This process, as the one that leads."""
    born = _born(os.getpid())
    assert born is not None
    return Holder(name=name, host=socket.gethostname(), pid=os.getpid(), pid_started_at=born)


def _born(pid: int) -> float | None:
    """When the kernel started that process, as the kernel counts (on Linux since boot, so that setting the
    clock does not make a leader that lives look dead); None where it is gone, or only waits to be reaped."""
    found = identify(pid)
    return None if found is None else float(found.born.rpartition(":")[2])


def _lives(holder: Holder) -> bool:
    return _born(holder.pid) == holder.pid_started_at


def make_home(place: Home) -> None:
    """Make the state directory and its secret. Raises StorageFailed where that cannot be done."""
    try:
        place.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.token()
    except OSError as error:
        raise unusable(place, error) from error


def unusable(place: Home, error: OSError) -> StorageFailed:
    """What is said where the state directory is none."""
    return StorageFailed(
        "the state directory cannot be used",
        where=str(place.root),
        why=f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror),
        remedy="make it a folder with room that you may write to, or name another one with --home or "
        "CAUDAL_HOME",
    )


def lead(store: SqlStore, holder: Holder, clock: SystemClock, ttl_s: float) -> int:
    """Lead, also where the last leader of this machine died without resigning: then its term is over."""
    try:
        return store.lead(holder, clock.now(), ttl_s)
    except StateHeld:
        found = store.leader()
        if found is None or found[0].host != holder.host or _lives(found[0]):
            raise
        store.resign(found[1])
        return store.lead(holder, clock.now(), ttl_s)
