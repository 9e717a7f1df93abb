"""A local driver with words for tests, and waiting for real processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from caudal.domain.gang import GangSpec, GangState, GangStatus, ProcessSpec
from caudal.drivers.local import LocalDriver
from caudal.drivers.local_folder import Folder

SLEEP = ("sleep", "60")


class Clock:
    """The real one, which a test can put forward."""

    ahead_s = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_s

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Site:
    """A driver with words for tests."""

    def __init__(self, root: Path, name: str = "north", log_cap_bytes: int = 1 << 20) -> None:
        self.root = root
        self.clock = Clock()
        self.driver = LocalDriver(name, root, self.clock, log_cap_bytes=log_cap_bytes)

    def start(
        self,
        gang_id: str,
        *argvs: tuple[str, ...],
        token: str = "t-1",
        env: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Start a gang of programs."""
        processes = tuple(ProcessSpec(argv, env or {}, files or {}) for argv in argvs)
        self.driver.start(GangSpec(gang_id, self.driver.site, "n-1", 1, processes), token)

    def sh(self, gang_id: str, *scripts: str) -> None:
        """Start a gang of shell scripts."""
        self.start(gang_id, *(("/bin/sh", "-c", script) for script in scripts))

    def status(self, gang_id: str) -> GangStatus | None:
        """What the driver says of it, if it lists it."""
        return next((s for s in self.driver.gangs() if s.gang_id == gang_id), None)

    def running(self, gang_id: str) -> GangStatus:
        """What the driver says of a gang that has to be running."""
        status = self.status(gang_id)
        assert status is not None and status.state is GangState.RUNNING, status
        return status

    def over(self, gang_id: str) -> GangStatus:
        """Wait until it is over."""
        wait_for(lambda: (s := self.status(gang_id)) is not None and not s.alive)
        status = self.status(gang_id)
        assert status is not None and status.pids == ()
        return status

    def shim(self, gang_id: str) -> int:
        """The pid of a gang's shim."""
        record = Folder(self.root / gang_id).read("shim.json")
        assert record
        pid = record["shim"][0]
        assert isinstance(pid, int)
        return pid


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Look until it is so."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """Whether nothing of that pid runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def site_at(root: Path, log_cap_bytes: int = 1 << 20) -> Iterator[Site]:
    """A site whose gangs are all ended afterwards."""
    site = Site(root, log_cap_bytes=log_cap_bytes)
    yield site
    alive = [status.gang_id for status in site.driver.gangs() if status.alive]
    for gang_id in alive:
        site.driver.stop(gang_id, 0.0)
    for gang_id in alive:
        site.over(gang_id)
