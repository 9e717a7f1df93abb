"""The port: a site whose processes Slurm runs, one job per gang.

It keeps nothing: the desk's folder and Slurm know everything, so a new driver on the same folder knows what the one
before it knew. Knows nothing about squeue, files or ssh.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from caudal.domain.errors import NotFound, UsageError
from caudal.domain.fleet import DriverSpec, SlurmSpec
from caudal.domain.gang import GangSpec, GangState, GangStatus
from caudal.drivers import local_folder as files
from caudal.drivers.local import SAFE_NAME
from caudal.drivers.slurm.desk import PROTOCOL
from caudal.drivers.slurm.hosts import Here, Host, OverSsh
from caudal.drivers.slurm.keeper import AGAIN, OUTSIDE, RAN
from caudal.drivers.slurm.status import GONE, JOB

RESERVED = frozenset({AGAIN, GONE, JOB, OUTSIDE, RAN})


class SlurmDriver:
    """Implements `ports.Driver`. All calls raise Unreachable where the login host or slurmctld does not answer
    (`forget` and `logs` need the folder only, and do without slurmctld)."""

    def __init__(self, site: str, slurm: SlurmSpec, host: Host) -> None:
        self.site = site
        self._slurm = slurm
        self._host = host

    def start(self, spec: GangSpec, token: str) -> None:
        """Submit it, once, however often asked; returns when it is in Slurm's queue. Raises Stale (another token, or
        an epoch older than its lease's newest), NotOffered, QuotaExceeded, NotAllowed (Slurm refuses the job),
        StorageFailed, Unreachable (then it may have been submitted: asking again finds it)."""
        assert spec.site == self.site and spec.processes and SAFE_NAME.fullmatch(spec.gang_id), spec
        self._ask("start", gang=_gang(spec), token=token)

    def stop(self, gang_id: str, grace_s: float) -> None:
        """Ask it to end, and make it end after the grace; one that waits in the queue is cancelled."""
        if SAFE_NAME.fullmatch(gang_id):
            self._ask("stop", gang_id=gang_id, grace_s=grace_s)

    def gangs(self) -> Sequence[GangStatus]:
        """All gangs of this site, ordered by id. A preempted gang that Slurm will not start again is EXITED, with a
        code that is not 0; one whose node died is LOST, once nothing of it answers to its folder any more."""
        return [_status(row) for row in self._ask("gangs")]

    def forget(self, gang_id: str) -> None:
        """Drop a gang that is over from the list, with its secrets; the ends of its logs are kept for a while."""
        if SAFE_NAME.fullmatch(gang_id):
            self._ask("forget", gang_id=gang_id)

    def logs(self, gang_id: str, tail_bytes: int = 65536) -> str:
        """The end of what its processes printed, also after it was forgotten. Raises NotFound."""
        if not SAFE_NAME.fullmatch(gang_id):
            raise NotFound(f"no gang {gang_id!r}", where=f"site {self.site}")
        return str(self._ask("logs", gang_id=gang_id, tail_bytes=tail_bytes))

    def check(self) -> Mapping[str, Any]:
        """{version, nodes, settings, folder} for `caudal doctor` (check.py has the advice). Raises Failed where Slurm
        is too old, Unreachable where it is away, StorageFailed where the shared folder cannot be used."""
        found: Mapping[str, Any] = self._ask("check")
        return found

    def _ask(self, do: str, **arguments: Any) -> Any:
        question = {"protocol": PROTOCOL, "site": self.site, "slurm": asdict(self._slurm)}
        return self._host.ask({**question, "do": do, "with": arguments})


def open_driver(site: str, spec: DriverSpec) -> SlurmDriver:
    """The driver of a fleet file's `kind: slurm`: with an address over SSH, else here. Raises UsageError."""
    for key, path in (("folder", spec.slurm.folder), ("python", spec.slurm.python)):
        if path and not path.startswith("/"):
            raise UsageError(
                f"driver {spec.name}: `slurm: {key}` is {path!r}",
                why="it has to be the same on the login host and on all nodes",
                remedy="write a path that begins with /",
            )
    host: Host = OverSsh(spec.address, spec.slurm.python) if spec.address else Here()
    return SlurmDriver(site, spec.slurm, host)


def _gang(spec: GangSpec) -> dict[str, Any]:
    """A GangSpec as plain values, checked."""
    names: dict[str, str] = {}
    for process in spec.processes:
        for name, text in process.files.items():
            assert SAFE_NAME.fullmatch(name) and not (files.reserved(name) or name in RESERVED), (
                f"bad file name {name!r}"
            )
            assert names.setdefault(name, text) == text, f"two processes want another {name!r}"
    return {
        "gang_id": spec.gang_id,
        "node": spec.node,
        "epoch": spec.epoch,
        "fence": hashlib.sha256((spec.lease_id or spec.node).encode()).hexdigest()[:32],
        "role": spec.role.value if spec.role else "",
        "resources": asdict(spec.resources),
        "processes": [
            {"argv": list(p.argv), "env": dict(p.env), "files": dict(p.files)} for p in spec.processes
        ],
    }


def _status(row: Mapping[str, Any]) -> GangStatus:
    return GangStatus(**{**row, "state": GangState(row["state"]), "pids": tuple(row["pids"])})
