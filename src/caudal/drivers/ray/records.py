"""What Ray says of a job, and what its supervisor said of the gang, as a GangStatus. Pure.

Ray's own states tell whether the supervisor lives. Only its records tell how the gang's processes ended, and
that they are gone; where they are missing, nothing is claimed before it must be true.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caudal.domain.gang import GangState, GangStatus
from caudal.drivers.ray import names

OVER = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})  # ray.job_submission.JobStatus, Ray 2.60
MAX_PIDS = 10_000


@dataclass(frozen=True, slots=True)
class Said:
    """A supervisor's records: each kind's last, and whether processes may ever have existed."""

    begun: bool = False
    started: Mapping[str, Any] | None = None
    ended: Mapping[str, Any] | None = None  # also for LOST: then without an exit code
    repeated: bool = False

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes' pids on their node."""
        found = (self.started or {}).get("pids")
        return tuple(int(p) for p in found[:MAX_PIDS]) if isinstance(found, list) else ()

    @property
    def node(self) -> str:
        """Ray's id of the node; empty where nothing was started."""
        return str((self.started or {}).get("node", ""))

    @property
    def logs(self) -> tuple[str, ...]:
        """The files among the node's Ray logs, one per process."""
        found = (self.started or {}).get("logs")
        return tuple(str(f) for f in found[:MAX_PIDS]) if isinstance(found, list) else ()


def parse(output: str) -> Said:
    """The records in what a supervisor printed. Lines that are none, or broken, are passed over."""
    begun, repeated = False, False
    started: Mapping[str, Any] | None = None
    ended: Mapping[str, Any] | None = None
    for line in output.splitlines():
        record = _record(line)
        kind = record.get("kind")
        if kind == names.BEGUN:
            begun = True
        elif kind == names.STARTED:
            begun, started = True, record
        elif kind in (names.ENDED, names.LOST):
            ended = record
        elif kind == names.REPEATED:
            repeated = True
    return Said(begun, started, ended, repeated)


def told(output: str) -> str:
    """Why a gang did not start or was lost, for people; empty where nothing is known."""
    said = parse(output)
    return _last_words(output) if said.ended is None else str(said.ended.get("error", ""))


def is_over(job: Mapping[str, Any]) -> bool:
    """Whether the supervisor is gone."""
    return job.get("status") in OVER


def status(job: Mapping[str, Any], said: Said, *, surely_gone: bool) -> GangStatus:
    """The gang's row. `surely_gone`: so much time has passed since its supervisor was first seen dead that its
    processes cannot live."""
    labels = job.get("metadata") or {}
    gang_id, site = str(labels.get(names.GANG_LABEL, "")), str(labels.get(names.SITE_LABEL, ""))
    started_at = _number((said.started or {}).get("started_at"))
    if not is_over(job):
        state = GangState.RUNNING if said.started else GangState.STARTING
        return GangStatus(gang_id, state, site, started_at=started_at, pids=said.pids)
    ended_at = _number((said.ended or {}).get("at")) or _seconds(job.get("end_time"))
    if ended_at is not None and started_at is not None:
        ended_at = max(ended_at, started_at)  # two machines' clocks
    if said.ended is not None:
        code = said.ended.get("exit_code")
        state = GangState.LOST if code is None else GangState.EXITED
        return GangStatus(gang_id, state, site, None if code is None else int(code), started_at, ended_at)
    if not said.begun:  # the supervisor did not get as far as starting anything
        code = names.STOPPED_BEFORE if job.get("status") == "STOPPED" else names.CANNOT_START
        return GangStatus(gang_id, GangState.EXITED, site, code, started_at, ended_at)
    if not surely_gone:
        return GangStatus(gang_id, GangState.RUNNING, site, started_at=started_at, pids=said.pids)
    return GangStatus(gang_id, GangState.LOST, site, started_at=started_at, ended_at=ended_at)


def _record(line: str) -> Mapping[str, Any]:
    head, found, text = line.partition(names.RECORD)
    if not found or head:
        return {}
    try:
        record = json.loads(text)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _last_words(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith(names.RECORD)]
    return "\n".join(lines[-20:])


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _seconds(milliseconds: object) -> float | None:
    found = _number(milliseconds)
    return None if found is None else found / 1000.0
