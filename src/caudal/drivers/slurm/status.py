"""What is true of a gang, from its folder and its job. Knows nothing about how jobs are started.

The folder is believed first: an exit status that the keeper wrote outlives slurmctld's memory (MinJobAge, 300 s by
default). A gang whose job is over without one is over only when nobody holds its folder's lock, because a slurmd
that died leaves its jobs running: those are told to end through the folder, which a node that still reaches the
shared file system reads within a second. One that does not is listed as lost after `FENCE_WAIT_S` all the same; from
then on it is the lease's raised epoch that keeps it from doing harm.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from caudal.domain.gang import GangState, GangStatus
from caudal.drivers import local_folder as files
from caudal.drivers.local_folder import Folder, Record
from caudal.drivers.slurm.keeper import OUTSIDE, RAN
from caudal.drivers.slurm.queue import BY_ITSELF, NODE_GONE, Job, exit_code

JOB = "job.json"
"""{job, at}: sbatch's answer."""
GONE = "gone.json"
"""{at, why}: since when its node is gone for Slurm, while something still holds the folder. What is then killed is
lost, whatever code it leaves."""
FENCE_WAIT_S = 60.0
STOP_MARGIN_S = 5.0  # past the grace: then the keeper itself hangs, and Slurm is asked to kill the job


@dataclass(frozen=True, slots=True)
class Look:
    """What a look may need besides the folder: the time, `scontrol show job` of an id, and scancel of one."""

    now: float
    show: Callable[[int], str]
    cancel: Callable[[int], None]


def status(gang: Folder, site: str, job: Job | None, look: Look) -> GangStatus | None:
    """One row of the list; None where nothing was ever submitted."""
    end = gang.read(files.EXIT)  # before the other: a later start of the job removes them the other way round
    shim, ran = gang.read(files.SHIM), gang.read(RAN)
    if end is not None and not _comes_back(gang, job):
        return _over(gang, site, shim, end, job)
    if job is not None and not job.final:
        _kill_overdue(gang, job, look)
        return _alive(gang, site, None if end else shim, job)
    if job is None and ran is None and not gang.has(JOB):
        return None
    end = _settle(gang, job, ran, look)
    if end is None:
        return _alive(gang, site, shim, job)
    return _over(gang, site, shim, end, job)


def _comes_back(gang: Folder, job: Job | None) -> bool:
    """Whether Slurm ended it, and will start it again by itself."""
    if job is None or job.final or gang.has(files.STOP):
        return False
    requeue = (gang.read(files.SPEC) or {}).get("requeue", False)
    return bool(requeue) and (job.waits or gang.has(OUTSIDE))


def _alive(gang: Folder, site: str, shim: Record | None, job: Job | None) -> GangStatus:
    begun = shim is not None and shim.get("state") == files.RUNNING
    runs = begun and not (job is not None and job.waits)
    return GangStatus(
        gang_id=gang.path.name,
        state=GangState.RUNNING if runs else GangState.STARTING,
        site=site,
        started_at=(shim or {}).get("started_at") if runs else None,
        pids=tuple(process[0] for process in (shim or {}).get("processes", ())) if runs else (),
        why=job.reason if job is not None and job.waits else "",
    )


def _over(gang: Folder, site: str, shim: Record | None, end: Record, job: Job | None) -> GangStatus:
    gone = gang.read(GONE) or {}
    code = None if gone else end.get("exit_code")
    why = gone.get("why", "") or end.get("why", "")
    if not why and job is not None and job.final and job.state not in BY_ITSELF:
        why = job.state
    elif not why and gang.has(OUTSIDE):
        why = "ended from outside"  # Slurm has not yet said how, or no longer does
    return GangStatus(
        gang_id=gang.path.name,
        state=GangState.EXITED if code is not None else GangState.LOST,
        site=site,
        exit_code=code,
        started_at=(shim or {}).get("started_at"),
        ended_at=end.get("at"),
        why=why,
    )


def _kill_overdue(gang: Folder, job: Job, look: Look) -> None:
    stop = gang.read(files.STOP)
    if stop and look.now > stop["kill_at"] + STOP_MARGIN_S:
        look.cancel(job.id)


def _settle(gang: Folder, job: Job | None, ran: Record | None, look: Look) -> Record | None:
    """How a gang ended whose job is over or unknown to Slurm; None while something of it may live."""
    lock = gang.lock()
    if lock is None:
        if not _waited(gang, job, look):
            return None
        return _write_end(gang, None, "its node does not answer", look.now)
    try:
        os.listdir(gang.path)  # noqa: PTH208 - makes an NFS client look for names that it knew as absent
        end = gang.read(files.EXIT)  # written between our two looks
        if end is None and job is not None:
            code = exit_code(job.state, look.show(job.id), ran is not None)
            end = _write_end(gang, code, job.state, look.now)
        elif end is None:
            end = _write_end(gang, None, "Slurm does not know its job", look.now)
        return end
    finally:
        os.close(lock)


def _waited(gang: Folder, job: Job | None, look: Look) -> bool:
    """Tell what still holds the folder to end; whether it had its time."""
    if job is None or job.state not in NODE_GONE:
        return False  # Slurm is just ending it, or has forgotten a job that lives
    gone = gang.read(GONE) or {}
    if not gone:
        gang.write(GONE, {"at": look.now, "why": job.state})
    if not gang.has(files.STOP):
        gang.write(files.STOP, {"grace_s": 0.0, "kill_at": look.now})
    return bool(gone) and bool(look.now > gone["at"] + FENCE_WAIT_S)


def _write_end(gang: Folder, code: int | None, why: str, now: float) -> Record:
    spec = gang.read(files.SPEC) or {}
    end: Record = {"lost": code is None, "site": spec.get("site"), "token": spec.get("token")}
    end |= {"exit_code": code, "signal": -code if code and code < 0 else None, "codes": [], "error": ""}
    end |= {"why": why, "at": now}
    try:
        gang.write_once(files.EXIT, end)
    except OSError:
        pass  # the disk is full: it is as true without the file, and found again at the next look
    return gang.read(files.EXIT) or end
