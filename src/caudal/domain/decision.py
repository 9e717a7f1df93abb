"""What was decided, why, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from caudal.domain.fleet import Offer
from caudal.domain.gang import Gang
from caudal.domain.workload import WorkloadState


@dataclass(frozen=True, slots=True)
class AcquireNode:
    """Take a machine under an offer. Done when the provider's list shows it running with our tag."""

    lease_id: str
    node: str
    offer: Offer
    provider: str = ""  # by name: it goes into the lease, so that a bill needs no fleet file of that day
    kind: Literal["acquire_node"] = "acquire_node"


@dataclass(frozen=True, slots=True)
class ReleaseNode:
    """Give a machine back. Done when the provider's list no longer shows it."""

    lease_id: str
    kind: Literal["release_node"] = "release_node"


@dataclass(frozen=True, slots=True)
class ReleaseMachine:
    """Give back a machine that carries our tag and no live lease, after its quarantine."""

    machine_id: str
    site: str
    kind: Literal["release_machine"] = "release_machine"


@dataclass(frozen=True, slots=True)
class StartGang:
    """Start a gang. Done when its driver lists it."""

    gang: Gang
    kind: Literal["start_gang"] = "start_gang"


@dataclass(frozen=True, slots=True)
class StopGang:
    """Stop a gang. Done when its driver lists it as over, or not at all."""

    gang_id: str
    grace_s: float = 10.0
    kind: Literal["stop_gang"] = "stop_gang"


@dataclass(frozen=True, slots=True)
class DrainGang:
    """Send a replica nothing new, so that it ends what it has and can be stopped; or (`draining` False) think
    better of it."""

    gang_id: str
    draining: bool = True
    kind: Literal["drain_gang"] = "drain_gang"


@dataclass(frozen=True, slots=True)
class PullModel:
    """Bring a model into the model store. Done when the model store lists it."""

    model_id: str
    source: str
    sha256: str = ""
    kind: Literal["pull_model"] = "pull_model"


@dataclass(frozen=True, slots=True)
class SuspectLease:
    """Contact with the node is lost: raise the lease's epoch (fencing) and start the grace period."""

    lease_id: str
    kind: Literal["suspect_lease"] = "suspect_lease"


@dataclass(frozen=True, slots=True)
class TrustLease:
    """Contact came back within the grace period."""

    lease_id: str
    kind: Literal["trust_lease"] = "trust_lease"


@dataclass(frozen=True, slots=True)
class EndLease:
    """The provider's list says that the machine is gone."""

    lease_id: str
    kind: Literal["end_lease"] = "end_lease"


@dataclass(frozen=True, slots=True)
class EndGang:
    """The driver says that the gang is over (or its node is gone for good)."""

    gang_id: str
    exit_code: int | None
    kind: Literal["end_gang"] = "end_gang"


@dataclass(frozen=True, slots=True)
class SetWorkloadState:
    """A run finished, a workload runs, waits, failed or is stopped."""

    name: str
    state: WorkloadState
    kind: Literal["set_workload_state"] = "set_workload_state"


ExternalAction = AcquireNode | ReleaseNode | ReleaseMachine | StartGang | StopGang | PullModel
"""Actions that call the world: each becomes an intent."""

BookAction = SuspectLease | TrustLease | EndLease | EndGang | DrainGang | SetWorkloadState
"""Actions that only write down what was observed or what others shall read: carried out by the transaction itself."""

Action = ExternalAction | BookAction


@dataclass(frozen=True, slots=True)
class Reason:
    """Why. `code` is stable, `text` is a sentence for people, `data` are the numbers behind it."""

    code: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An alternative that was looked at and not taken."""

    what: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Choice:
    """One action with its reason and the alternatives that were rejected. `subject` is what `caudal
    explain` finds it by: a workload, a slot, a lease."""

    action: Action
    subject: str
    reason: Reason
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something that should run and does not yet: for what it waits."""

    subject: str
    workload: str
    reason: Reason
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What `policy.decide` returns: everything to do next, and everything that has to wait."""

    snapshot_version: int
    at: float
    choices: tuple[Choice, ...] = ()
    waiting: tuple[Waiting, ...] = ()


class IntentState(StrEnum):
    """pending → issued (the call returned) → confirmed (the effect was observed) | failed."""

    PENDING = "pending"
    ISSUED = "issued"
    CONFIRMED = "confirmed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Intent:
    """An external action that was decided and written down before it was called.

    `token` makes the call idempotent: however often a crash has it repeated, it happens once.
    """

    id: str
    token: str
    action: ExternalAction
    subject: str
    reason: Reason
    state: IntentState
    created_at: float
    changed_at: float
    attempts: int = 0
    not_before: float = 0.0
    error: str = ""
    issued_at: float | None = None  # when its call was accepted first; None: it never was

    @property
    def open(self) -> bool:
        """Whether it still has to be carried out or confirmed."""
        return self.state in (IntentState.PENDING, IntentState.ISSUED)
