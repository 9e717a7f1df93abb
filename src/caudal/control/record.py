"""Writes a decision down: its intents, what it changes in the books and its events, as one change.

Everything follows from the decision, the snapshot and the leader's epoch alone: a replay writes the same
bytes. Ids hold the version that the decision was made on, which no other decision can have been committed on.
"""

from __future__ import annotations

from dataclasses import replace

from caudal.domain.decision import (
    AcquireNode,
    Choice,
    Decision,
    DrainGang,
    EndGang,
    EndLease,
    Intent,
    IntentState,
    PullModel,
    ReleaseMachine,
    ReleaseNode,
    SetWorkloadState,
    StartGang,
    StopGang,
    SuspectLease,
    TrustLease,
)
from caudal.domain.event import Event
from caudal.domain.fleet import Lease, LeaseState
from caudal.domain.gang import Gang
from caudal.domain.snapshot import Snapshot
from caudal.domain.workload import Workload, WorkloadState
from caudal.policy.capacity import requested
from caudal.ports import Change

EXTERNAL = (AcquireNode, ReleaseNode, ReleaseMachine, StartGang, StopGang, PullModel)

_EVENTS = {
    "acquire_node": "lease.requested",
    "release_node": "lease.releasing",
    "release_machine": "machine.released",
    "start_gang": "gang.starting",
    "drain_gang": "gang.draining",
    "stop_gang": "gang.stopping",
    "pull_model": "model.pulling",
    "suspect_lease": "lease.suspect",
    "trust_lease": "lease.trusted",
    "end_lease": "lease.ended",
    "end_gang": "gang.ended",
}


class _Books:
    """The rows that a decision touches, as they will be."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.leases: dict[str, Lease] = {x.id: x for x in snapshot.state.leases}
        self.gangs: dict[str, Gang] = {g.id: g for g in snapshot.state.gangs}
        self.workloads: dict[str, Workload] = {w.name: w for w in snapshot.state.workloads}
        self.changed_leases: dict[str, Lease] = {}
        self.changed_gangs: dict[str, Gang] = {}
        self.changed_workloads: dict[str, Workload] = {}

    def lease(self, lease: Lease) -> None:
        self.leases[lease.id] = self.changed_leases[lease.id] = lease

    def gang(self, gang: Gang) -> None:
        self.gangs[gang.id] = self.changed_gangs[gang.id] = gang

    def workload(self, workload: Workload) -> None:
        self.workloads[workload.name] = self.changed_workloads[workload.name] = workload


def record(decision: Decision, snapshot: Snapshot, leader_epoch: int) -> Change:
    """The one change that makes a decision stand."""
    books = _Books(snapshot)
    intents: list[Intent] = []
    events: list[Event] = []
    for position, choice in enumerate(decision.choices, start=1):
        before = books.workloads.get(choice.subject)
        _book(books, choice, decision.at)
        if isinstance(choice.action, EXTERNAL):
            intents.append(_intent(choice, decision, leader_epoch, position))
        events += _events(books, choice, decision.at, before)
    return Change(
        workloads=tuple(books.changed_workloads.values()),
        leases=tuple(books.changed_leases.values()),
        gangs=tuple(books.changed_gangs.values()),
        intents=tuple(intents),
        decision=decision,
        events=tuple(events),
    )


def _intent(choice: Choice, decision: Decision, leader_epoch: int, position: int) -> Intent:
    action = choice.action
    assert isinstance(action, EXTERNAL)
    intent_id = f"i{decision.snapshot_version:08d}-{position:03d}-e{leader_epoch}"
    token = intent_id
    if isinstance(action, StartGang):
        token = action.gang.id  # a gang is started once, whoever asks
    elif isinstance(action, AcquireNode):
        token = action.lease_id  # a lease holds one machine, whoever asks
    return Intent(
        id=intent_id,
        token=token,
        action=action,
        subject=choice.subject,
        reason=choice.reason,
        state=IntentState.PENDING,
        created_at=decision.at,
        changed_at=decision.at,
    )


def _book(books: _Books, choice: Choice, now: float) -> None:
    action = choice.action
    if isinstance(action, AcquireNode):
        books.lease(requested(action, now))
    elif isinstance(action, StartGang):
        books.gang(action.gang)
    elif isinstance(action, StopGang):
        gang = books.gangs.get(action.gang_id)
        if gang is not None and gang.ended_at is None:
            books.gang(replace(gang, stopping=True))
    elif isinstance(action, DrainGang):
        since = now if action.draining else None
        books.gang(replace(books.gangs[action.gang_id], draining_at=since))
    elif isinstance(action, EndGang):
        _end_gang(books, action, choice, now)
    elif isinstance(action, SetWorkloadState):
        workload = books.workloads[action.name]
        changed_at = now if workload.state is not action.state else workload.changed_at
        books.workload(
            replace(workload, state=action.state, reason=choice.reason.text, changed_at=changed_at)
        )
    elif isinstance(action, ReleaseNode | SuspectLease | TrustLease | EndLease):
        _book_lease(books, action, now)


def _book_lease(
    books: _Books, action: ReleaseNode | SuspectLease | TrustLease | EndLease, now: float
) -> None:
    lease = books.leases[action.lease_id]
    if isinstance(action, ReleaseNode):
        books.lease(replace(lease, state=LeaseState.RELEASING))
    elif isinstance(action, EndLease):
        books.lease(replace(lease, state=LeaseState.ENDED, ended_at=now))
    elif isinstance(action, SuspectLease):
        books.lease(replace(lease, state=LeaseState.SUSPECT, epoch=lease.epoch + 1, suspect_since=now))
    else:
        books.lease(replace(lease, state=LeaseState.ACTIVE, suspect_since=None))
        # What was not replaced in the meantime is adopted under the new epoch: contact was lost, not work.
        for gang in list(books.gangs.values()):
            if gang.lease_id == lease.id and gang.ended_at is None:
                books.gang(replace(gang, epoch=lease.epoch))


def _end_gang(books: _Books, action: EndGang, choice: Choice, now: float) -> None:
    listed = [s.ended_at for s in books.snapshot.gangs if s.gang_id == action.gang_id and not s.alive]
    ended_at = min(now, listed[0]) if listed and listed[0] is not None else now
    reason = f"{choice.reason.code}: {choice.reason.text}"
    books.gang(
        replace(
            books.gangs[action.gang_id],
            ended_at=ended_at,
            exit_code=action.exit_code,
            end_reason=reason,
        )
    )


def _events(books: _Books, choice: Choice, now: float, before: Workload | None) -> list[Event]:
    action = choice.action
    data = {"code": choice.reason.code}
    if not isinstance(action, SetWorkloadState):
        data |= _ids(action)
        stays = isinstance(action, DrainGang) and not action.draining
        kind = "gang.drain_over" if stays else _EVENTS[action.kind]
        return [Event(now, kind, choice.subject, choice.reason.text, data)]
    if before is not None and before.state is action.state:
        return []  # only the words changed: what waits is in the decision
    workload = books.workloads[action.name]
    noun = "run" if workload.kind == "train" else "service"
    events = [Event(now, f"{noun}.{action.state.value}", action.name, choice.reason.text, data)]
    if action.state is WorkloadState.FINISHED:
        for model in books.snapshot.models:
            if model.run == workload.name:
                text = f"{model.id} version {model.version} is published by run {workload.name}"
                published = {"model": model.id, "version": model.version, "run": workload.name}
                events.append(Event(now, "model.published", model.id, text, published))
    return events


def _ids(action: object) -> dict[str, str]:
    found: dict[str, str] = {}
    if isinstance(action, StartGang):
        found = {"gang": action.gang.id, "site": action.gang.site, "node": action.gang.node}
    elif isinstance(action, StopGang | DrainGang | EndGang):
        found = {"gang": action.gang_id}
    elif isinstance(action, PullModel):
        found = {"model": action.model_id, "source": action.source}
    elif isinstance(action, AcquireNode | ReleaseNode | SuspectLease | TrustLease | EndLease):
        found = {"lease": action.lease_id}
    elif isinstance(action, ReleaseMachine):
        found = {"machine": action.machine_id, "site": action.site}
    return found
