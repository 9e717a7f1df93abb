"""What a gang's job runs: looks whether it may start, then is the gang's shim, as on a single machine.

- **Never two.** Two jobs of one gang (an answer of sbatch was lost) or two starts of one job (Slurm requeued it) find
  the same folder: only the holder of its lock starts anything, and a gang that began is begun again only by the same
  job, started anew by Slurm, where the gang may be requeued.
- **Never an older epoch.** A job that comes back after its lease's epoch was raised starts nothing.
- **What Slurm ends did not end well.** A signal that we did not ask for (preemption, scancel, the time limit) makes
  an exit code of 0 a SIGTERM's: a worker that heeds the signal politely has not finished its run.

Run as `python -I -S -c BOOT ROOT FOLDER` on a node, in the job. Knows nothing about squeue.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from caudal.drivers import local_folder as files
from caudal.drivers.local_folder import Folder, Record
from caudal.drivers.local_shim import Shim

RAN = "ran.json"
"""Which job began the gang, and its how manieth start: {job, restarts, host, at}."""
AGAIN = "again.json"
"""{restarts}: a later start of the job waits for the folder; whoever holds it from an earlier one is to end."""
OUTSIDE = "outside.json"
"""Written before the exit status where somebody else than us ended it: Slurm may bring it back."""
FENCES = ".fences"
LOCK_WAIT_S = 60.0  # an earlier start on a node that lost contact ends within its grace, if it lives at all
NOT_STARTED = 75  # sysexits.h: EX_TEMPFAIL
FENCED = "its lease has a newer epoch"


def main(folder: str) -> None:
    """Be the keeper of that folder's gang, in the foreground of a Slurm job. Exits with the gang's code."""
    os.umask(0o077)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)  # the shim's word to a starter that waits, and none does here
    gang = Folder(Path(folder))
    job = int(os.environ["SLURM_JOB_ID"])
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    sys.exit(keep(gang, job, restarts))


def keep(gang: Folder, job: int, restarts: int) -> int:
    """The whole life; returns the exit code of the job."""
    spec = gang.read(files.SPEC)
    if not spec:
        return _say("the gang's folder is not there")
    lock = _take(gang, spec, job, restarts)
    if lock is None:
        return NOT_STARTED
    if _fence(gang, spec) > spec["epoch"]:
        end = {"lost": False, "site": spec["site"], "token": spec["token"], "exit_code": -signal.SIGTERM}
        end |= {"signal": signal.SIGTERM, "codes": [], "error": FENCED, "why": FENCED, "at": time.time()}
        gang.write_once(files.EXIT, end)
        return _say(FENCED)
    gang.write(RAN, {"job": job, "restarts": restarts, "host": os.uname().nodename, "at": time.time()})
    os.environ[files.MARK] = spec["mark"]
    for name, value in spec["environment"].items():
        os.environ.setdefault(name, value)  # what Slurm says of this node and this job stands
    Keeper(gang, spec, restarts).run()
    code = (gang.read(files.EXIT) or {}).get("exit_code")
    return NOT_STARTED if code is None else code if code >= 0 else 128 - code


class Keeper(Shim):
    """The shim, which also makes way for a later start of its own job."""

    def __init__(self, gang: Folder, spec: Record, restarts: int) -> None:
        super().__init__(gang, spec)
        self._restarts = restarts

    def _wait(self) -> None:
        super()._wait()
        again = self.gang.read(AGAIN)
        if again and again.get("restarts", 0) > self._restarts:
            self.asked = True

    def _code(self, in_order: list[int]) -> int:
        code = super()._code(in_order)
        return -signal.SIGTERM if code == 0 and self._from_outside() else code

    def _finish(self, error: str) -> None:
        if self._from_outside():
            self.gang.write(OUTSIDE, {"at": time.time()})
        super()._finish(error)

    def _from_outside(self) -> bool:
        return self.stopping and not self.gang.has(files.STOP)


def _take(gang: Folder, spec: Record, job: int, restarts: int) -> int | None:
    """The gang's lock, with the folder as before a first start; None where this job has nothing to start."""
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        lock = gang.lock()
        ran = gang.read(RAN)
        if ran is not None or gang.has(files.EXIT):
            again = spec["requeue"] and ran is not None and ran["job"] == job and ran["restarts"] < restarts
            if not again or gang.has(files.STOP):
                _say("the gang was started before")
                return None
            gang.write(AGAIN, {"restarts": restarts})
        if lock is not None:
            for name in (files.SHIM, files.EXIT, OUTSIDE):  # whoever sees no end sees no old beginning
                (gang.path / name).unlink(missing_ok=True)
            return lock
        if time.monotonic() > until:
            _say("the gang still runs elsewhere")
            return None
        time.sleep(0.1)


def _fence(gang: Folder, spec: Record) -> int:
    """The newest epoch of the gang's lease that any start at this site has named."""
    return int((Folder(gang.path.parent / FENCES).read(spec["fence"]) or {}).get("epoch", 0))


def _say(text: str) -> int:
    print(text, file=sys.stderr, flush=True)
    return NOT_STARTED
