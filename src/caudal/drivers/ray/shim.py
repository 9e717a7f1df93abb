"""The shim of a gang on a Ray node: the local driver's, held on a string by the gang's keeper.

The keeper sends, through the shim's standard input, the moment at which it last asked the head and was
answered. The shim ends all processes at once, by SIGKILL, when that moment is too long ago (the node is cut off
from its head, or the keeper hangs) and when the input ends (the keeper is dead, and with it Ray's node). The
moments are of this machine's clock since boot, which also runs while the machine sleeps.

Run as `python -I -S -c BOOT ROOT FOLDER CUT_S ANSWERED_AT`. Standard library only; knows nothing about Ray.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import time
from pathlib import Path

from caudal.drivers import local_folder as files
from caudal.drivers.local_folder import Folder, Record
from caudal.drivers.local_shim import Shim
from caudal.drivers.ray.names import LOOK_S, log_file

BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from caudal.drivers.ray.shim import main; main()"
BEATS = 0  # the descriptor of standard input


def uptime_s() -> float:
    """Seconds since boot, with the time that the machine slept."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def main() -> None:
    """Be the shim of the folder's gang until it is over."""
    folder, cut_s, answered_at = sys.argv[2:5]
    if os.fork():
        os._exit(
            0
        )  # Ray kills its workers' own children by SIGKILL: then nobody would sweep up after the gang
    os.setsid()
    os.umask(0o077)
    gang = Folder(Path(folder))
    lock = gang.lock()
    if lock is None or gang.has(files.SHIM) or gang.has(files.EXIT):
        return
    spec = gang.read(files.SPEC)
    assert spec, "the keeper writes the spec before it starts a shim"
    shim = KeptShim(gang, spec, float(cut_s), float(answered_at))
    shim.run()
    if shim.let_go:  # nobody is to read how it ended (it is lost), and the folder holds the gang's secrets
        shutil.rmtree(gang.path, ignore_errors=True)


class KeptShim(Shim):
    """A shim whose gang lives only as long as its keeper says that the head answers."""

    def __init__(self, gang: Folder, spec: Record, cut_s: float, answered_at: float) -> None:
        super().__init__(gang, spec)
        self.cut_s = cut_s
        self.answered_at = answered_at
        self.kept = True  # the keeper's end of the string is open
        self.let_go = False  # ended because of the string
        os.set_blocking(BEATS, False)

    def _start_all(self) -> None:
        if self._cut_off():  # a start that was held up for long is not made any more
            raise OSError("the head has not answered since the start was asked for")
        super()._start_all()

    def _log_path(self, index: int) -> Path:
        return Path(self.spec["logs_dir"]) / log_file(self.spec["gang_id"], index)

    def _wait(self) -> None:
        timeout_s = LOOK_S
        if self.kill_at is not None:
            timeout_s = min(LOOK_S, max(0.01, self.kill_at - time.monotonic()))
        beats = [BEATS] if self.kept else []
        ready, _, _ = select.select([self.wake, *beats, *self.logs], [], [], timeout_s)
        for descriptor in ready:
            if descriptor == BEATS:
                self._hear()
            elif descriptor == self.wake:
                os.read(self.wake, 4096)
            else:
                self._take(descriptor)
        if not self.kept or self._cut_off():
            self.let_go = True
            self._end(0.0)

    def _hear(self) -> None:
        """Take the keeper's last word: lines with a moment each."""
        data = os.read(BEATS, 4096)
        if not data:
            self.kept = False
            return
        whole = [word for word in data.split(b"\n")[:-1] if word]
        if whole:
            self.answered_at = max(self.answered_at, float(whole[-1]))

    def _cut_off(self) -> bool:
        return uptime_s() - self.answered_at > self.cut_s
