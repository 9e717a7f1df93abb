"""Where a benchmark's processes run: at the sites of an emulated WAN, or all on loopback. And what they took."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.wan import DEVICE, Wan, unusable  # noqa: E402

__all__ = ["DEVICE", "Loopback", "Place", "Program", "Wan", "cpu_s", "end", "until", "unusable"]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Place(Protocol):
    """What `Wan` and `Loopback` have in common."""

    sites: list[str]

    def address(self, site: str) -> str:
        """The site's IPv4 address."""
        ...

    def popen(self, site: str, argv: Sequence[str], **more: Any) -> subprocess.Popen[Any]:
        """Start a program at the site."""
        ...

    def pids(self, site: str) -> list[int]:
        """All processes at the site."""
        ...

    def kill_site(self, site: str) -> None:
        """`kill -9` for all of them."""
        ...

    def bytes(self) -> dict[str, dict[str, int]]:
        """What each site sent and received."""
        ...

    def cpu_s(self) -> float:
        """What the place itself took of a processor."""
        ...


class Loopback:
    """No WAN: all sites are this machine."""

    def __init__(self, sites: Sequence[str]) -> None:
        self.sites = list(sites)
        self._started: dict[str, list[subprocess.Popen[Any]]] = {site: [] for site in sites}

    def __enter__(self) -> Loopback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for site in self.sites:
            self.kill_site(site)

    def address(self, site: str) -> str:
        """Always the same."""
        return "127.0.0.1"

    def popen(self, site: str, argv: Sequence[str], **more: Any) -> subprocess.Popen[Any]:
        """Start a program and remember whose it is."""
        process = subprocess.Popen(argv, **more)
        self._started[site].append(process)
        return process

    def pids(self, site: str) -> list[int]:
        """What was started for the site, with all that it started."""
        found: list[int] = []
        for process in self._started[site]:
            if process.poll() is None:
                with_children = psutil.Process(process.pid)
                found += [with_children.pid, *(p.pid for p in with_children.children(recursive=True))]
        return found

    def kill_site(self, site: str) -> None:
        """Kill all of it; the children first are not adopted by anybody."""
        for pid in reversed(self.pids(site)):
            end(pid)

    def bytes(self) -> dict[str, dict[str, int]]:
        """Nobody counts on loopback."""
        return {site: {"sent": 0, "received": 0, "dropped": 0} for site in self.sites}

    def cpu_s(self) -> float:
        """Loopback costs nothing that is not the processes' own."""
        return 0.0


@dataclass
class Program:
    """A started process, and what it said, each line with the time at which it was read."""

    name: str
    site: str
    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)
    started_at: float = field(default_factory=time.time)

    @staticmethod
    def start(
        place: Place, site: str, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None
    ) -> Program:
        """Start it with one thread; stdout and stderr are read together."""
        process = place.popen(
            site,
            argv,
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        program = Program(name, site, process)
        threading.Thread(target=program._read, daemon=True).start()
        return program

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip()))

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def said(self, word: str, since: float = 0.0) -> float | None:
        """When it first said a line with `word` in it."""
        return next((at for at, line in list(self.lines) if at >= since and word in line), None)

    def tail(self, count: int = 12) -> str:
        """Its last words."""
        return "\n".join(f"  {self.name}: {line}" for _, line in self.lines[-count:])


def end(pid: int) -> None:
    """`kill -9`."""
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of these processes so far; of those that ended, none."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def until(what: Callable[[], Any], limit_s: float, why: Callable[[], str] = str, step_s: float = 0.05) -> Any:
    """Look until it is so; returns what was seen. Raises TimeoutError with what `why` says."""
    deadline = time.monotonic() + limit_s
    while not (seen := what()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not come about within {limit_s:.0f} s\n{why()}")
        time.sleep(step_s)
    return seen
