"""One machine of the fake, run as a script: starts the custom data, and ends all that came of it when told to.

It is told by the end of its standard input, which comes however the fake ends. As a subreaper it stays the ancestor of
whatever the custom data leaves behind, also of what went into a session of its own, so nothing escapes. Imports the
standard library only: one of these starts for every machine.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
GRACE_S = 1.0


def main() -> None:
    """`instance.py PROGRAM`: run it, reap what ends, and wait to be told."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None, use_errno=True)
        library.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: end())
    signal.signal(signal.SIGCHLD, lambda *_: childless())
    program = sys.argv[1]
    if os.path.getsize(program):  # noqa: PTH202 - no pathlib here
        try:
            subprocess.Popen([program], stdin=subprocess.DEVNULL)
        except OSError as error:  # as on a real machine: it boots, and nothing comes of its custom data
            print(f"the custom data cannot be run: {error}", flush=True)
    while os.read(0, 1024):
        pass
    end()


def end() -> None:
    """Ask everything below us to end, then make it, then go."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    deadline = time.monotonic() + GRACE_S
    for pid in below(os.getpid()):
        send(pid, signal.SIGTERM)
    while not childless():
        if time.monotonic() >= deadline:
            for pid in below(os.getpid()):
                send(pid, signal.SIGKILL)
        time.sleep(0.01)
    os._exit(0)


def childless() -> bool:
    """Reap what has ended; whether nothing is left. What loses its parent becomes our child."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def send(pid: int, number: int) -> None:
    """Signal one of ours: it cannot be another's, since nobody but us or its parent below us reaps it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def below(root: int) -> list[int]:
    """All processes that come from `root`."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - no pathlib here
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123 - no pathlib here
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry))
    found, waiting = [], [root]
    while waiting:
        more = children.get(waiting.pop(), [])
        found += more
        waiting += more
    return found


if __name__ == "__main__":
    main()
