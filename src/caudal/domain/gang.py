"""Processes that start and stop together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from caudal.domain.fleet import Resources


class Role(StrEnum):
    """What a gang is to its workload."""

    COORDINATOR = "coordinator"
    WORKER = "worker"
    REPLICA = "replica"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Gang:
    """One start of one slot. A slot that is started again is a new gang with the next incarnation.

    `slot` names what must exist once: `starter.coordinator`, `starter.worker.1`,
    `assistant.replica.smollm2-135m-instruct.0`, `gateway.0`. `workload` is empty for the gateway, which
    belongs to the fleet. `model` and `model_version` are set for replicas. `epoch` is the lease's at the
    start: a gang under an older epoch than its lease is fenced.
    """

    id: str
    slot: str
    incarnation: int
    role: Role
    workload: str
    generation: int
    site: str
    node: str
    lease_id: str
    epoch: int
    resources: Resources
    created_at: float
    model: str = ""
    model_version: int = 0
    team: str = ""  # whose workload it was when it was started: who pays for it
    stopping: bool = False  # a StopGang was decided
    draining_at: float | None = None  # a replica that gets nothing new since then, and ends what it has
    ended_at: float | None = None  # filled when it was observed to be over; the row is kept for `explain`
    exit_code: int | None = None
    end_reason: str = ""


CANNOT_START = 71
"""The exit code (sysexits.h: EX_OSERR) by which drivers say that a gang's processes never ran: no room on its node, a
node that never joined, a program that cannot be run."""


def gang_id(slot: str, incarnation: int) -> str:
    """The id under which drivers know the gang; safe as a file name and as a Ray or Slurm job name."""
    return f"{slot}-{incarnation}"


class GangState(StrEnum):
    """What a driver says of a gang. A gang that a reachable driver does not list does not exist."""

    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"  # with an exit code
    LOST = "lost"  # its processes are gone and left no exit code


@dataclass(frozen=True, slots=True)
class GangStatus:
    """One row of a driver's own list. `exit_code` is the first non-zero one of its processes; a signal is
    negative (-9), as in Python's subprocess. `why` is the driver's own word for what it waits for, or for what
    ended it from outside; empty where there is nothing to say."""

    gang_id: str
    state: GangState
    site: str
    exit_code: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    pids: tuple[int, ...] = ()
    why: str = ""

    @property
    def alive(self) -> bool:
        """Whether processes of it may be running."""
        return self.state in (GangState.STARTING, GangState.RUNNING)


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process of a gang.

    In `argv` and in the values of `env`, `{python}` stands for the interpreter and `{dir}` for the gang's own
    directory; the driver fills both in. `files` (name → text) are written there, readable by the owner only, before
    the start: configuration and secrets go there, never onto the command line.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GangSpec:
    """What a driver is asked to start."""

    gang_id: str
    site: str
    node: str
    epoch: int
    processes: tuple[ProcessSpec, ...]
    resources: Resources = field(default_factory=Resources)
    lease_id: str = ""  # of the node: what its machine is tagged with
    role: Role | None = None  # None: a driver treats it as training


@dataclass(frozen=True, slots=True)
class Report:
    """The last thing that a gang said of itself (see telemetry/report.py for the keys per role)."""

    gang_id: str
    at: float
    status: Mapping[str, Any]
