"""One machine of the fake: a process that runs the machine's user data, and ends everything that came of it.

It is the parent that orphans of its machine fall to, so what left its group or its session is found all the same. It
holds the read end of a pipe: `end SECONDS` on it is a shutdown with that grace, and its end is a power cut, so that no
machine outlives the fake, whatever kills that. Run as `python -I keeper.py FOLDER`; standard library only, Linux only.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
LOOK_S = 0.05


def main(folder: Path) -> None:
    """Run the machine in that folder (`env.json`, `user-data`) until it is told to end."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit("this kernel hands orphans to nobody else")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the fake ends a machine
    _boot(folder)
    grace_s = _wait_for_end()
    _signal_all(signal.SIGTERM if grace_s > 0 else signal.SIGKILL)
    deadline = time.monotonic() + grace_s
    while _reap():
        if time.monotonic() >= deadline:
            _signal_all(signal.SIGKILL)
        time.sleep(LOOK_S)


def _boot(folder: Path) -> None:
    script = folder / "user-data"
    if not script.exists():
        return
    shell = [str(script)] if script.read_bytes().startswith(b"#!") else ["/bin/sh", str(script)]
    with (folder / "console.log").open("ab") as console:
        try:
            subprocess.Popen(  # its end is seen by waitpid(-1), like that of its orphans
                shell,
                cwd=folder,
                env=json.loads((folder / "env.json").read_text()),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                restore_signals=True,
                preexec_fn=_heed_signals,
            )
        except OSError as error:
            console.write(f"cannot run the user data: {error}\n".encode())


def _heed_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _wait_for_end() -> float:
    """The grace in seconds; 0 where the power is cut. Whatever ends meanwhile is reaped: a machine whose user data
    has ended goes on being there, as a real one does."""
    heard = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.5)
        if ready:
            data = os.read(0, 256)
            heard += data
            if not data:
                return 0.0
            if b"\n" in heard:
                word, _, number = heard.split(b"\n")[0].partition(b" ")
                return float(number) if word == b"end" else 0.0
        _reap()


def _reap() -> bool:
    """Collect who has ended; whether anybody is left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def _signal_all(number: int) -> None:
    for pid in descendants(os.getpid()):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # it ended by itself


def descendants(root: int) -> list[int]:
    """Everybody below a process."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_bytes()
            except OSError:
                continue  # it ended while we looked
            parent = int(stat.rpartition(b")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry))
    found, look_at = [], [root]
    while look_at:
        children = parents.get(look_at.pop(), [])
        found += children
        look_at += children
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
