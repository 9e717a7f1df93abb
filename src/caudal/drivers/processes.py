"""Processes of this machine by (pid, start time), so that a pid which was used again is never signalled.

The naive way, a pid in a file, kills a stranger: pids come round again, and after a reboot at once. Here a
process is its pid together with when the kernel started it and in which boot. On Linux this is read from
/proc; elsewhere psutil says it (to a hundredth of a second). Knows nothing about gangs.

Imports the standard library only, and little of it: the shim of every gang starts with this module.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
GONE = (ProcessLookupError, FileNotFoundError)


class Identity(NamedTuple):
    """One process, for ever: no other process of this machine will have both. `born` is opaque."""

    pid: int
    born: str


def identify(pid: int) -> Identity | None:
    """Who has that pid now; None where nobody has, or only a zombie that waits to be reaped."""
    born = _born_linux(pid) if sys.platform == "linux" else _born_elsewhere(pid)
    return Identity(pid, born) if born else None


def alive(process: Identity) -> bool:
    """Whether exactly that process still runs."""
    return identify(process.pid) == process


def send(process: Identity, number: int) -> bool:
    """Signal exactly that process; False where it is gone or not ours to signal.

    On Linux a pidfd holds the process between the look and the signal, so that the pid cannot change hands
    in between; elsewhere that gap of microseconds stays.
    """
    if sys.platform != "linux":
        return _kill(process, number)
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(descriptor)
    return True


def marked(mark: str) -> list[Identity]:
    """All processes that were started with `mark` (as `NAME=value`) in their environment, by pid.

    It finds children of children also when they left their group and their parent is dead. One that was
    started with another environment, or belongs to another user, is not found.
    """
    return _marked_linux(mark) if sys.platform == "linux" else _marked_elsewhere(mark)


def _kill(process: Identity, number: int) -> bool:
    if not alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _born_linux(pid: int) -> str:
    try:
        stat = (PROC / str(pid) / "stat").read_bytes()
    except GONE:
        return ""
    # The second field is the program's name in brackets, and may hold spaces and brackets itself.
    fields = stat.rpartition(b")")[2].split()
    state, started_ticks = fields[0], fields[19]
    return "" if state in (b"Z", b"X") else f"{_boot()}:{started_ticks.decode()}"


def _boot() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def _born_elsewhere(pid: int) -> str:
    import psutil  # noqa: PLC0415 - 25 ms that a shim on Linux does not have to pay

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


def _marked_linux(mark: str) -> list[Identity]:
    wanted = mark.encode()
    found = []
    for pid in sorted(int(entry) for entry in os.listdir(PROC) if entry.isdigit()):  # noqa: PTH208 - names
        try:
            environment = (PROC / str(pid) / "environ").read_bytes()
        except (*GONE, PermissionError):
            continue  # ended while we looked, or another user's
        if wanted in environment.split(b"\0"):
            process = identify(pid)
            if process:
                found.append(process)
    return found


def _marked_elsewhere(mark: str) -> list[Identity]:
    import psutil  # noqa: PLC0415 - 25 ms that a shim on Linux does not have to pay

    name, _, value = mark.partition("=")
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.Error, OSError):
            continue  # ended while we looked, or another user's
        if environment.get(name) == value:
            known = identify(process.pid)
            if known:
                found.append(known)
    return found
