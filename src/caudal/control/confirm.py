"""An action counts as done when its effect is observed, never because a call returned.

Compares the open intents with a snapshot: those whose effect is seen are confirmed, and a lease whose
machine runs becomes active.
"""

from __future__ import annotations

from dataclasses import replace

from caudal.domain.decision import (
    AcquireNode,
    Intent,
    IntentState,
    PullModel,
    ReleaseMachine,
    ReleaseNode,
    StartGang,
    StopGang,
)
from caudal.domain.event import Event
from caudal.domain.fleet import Lease, LeaseState, Machine, MachineState
from caudal.domain.snapshot import Snapshot, State
from caudal.ports import Change


def confirm(state: State, snapshot: Snapshot) -> Change | None:
    """What the snapshot proves of the state's open intents; None where that is nothing new.

    `state` is newer than the snapshot: an intent that was issued after it was taken is not confirmed by the
    absence of something, since that may only not have happened yet.
    """
    leases: list[Lease] = []
    events: list[Event] = []
    for lease in state.leases:
        machine = _running(lease, snapshot)
        if lease.state is LeaseState.REQUESTED and machine is not None:
            leases.append(
                replace(lease, state=LeaseState.ACTIVE, machine_id=machine.id, active_at=snapshot.at)
            )
            text = f"node {lease.node} is machine {machine.id} at {lease.site}"
            data = {"lease": lease.id, "machine": machine.id, "site": lease.site}
            events.append(Event(snapshot.at, "lease.active", lease.node, text, data))
    intents: list[Intent] = []
    for intent in state.intents:
        if intent.open and _seen(intent, state, snapshot):
            intents.append(replace(intent, state=IntentState.CONFIRMED, changed_at=snapshot.at, error=""))
            events += _events(intent, snapshot)
    if not leases and not intents:
        return None
    return Change(leases=leases, intents=intents, events=events)


def _running(lease: Lease, snapshot: Snapshot) -> Machine | None:
    tagged = sorted((m for m in snapshot.machines if m.lease_id == lease.id), key=lambda m: m.id)
    return next((m for m in tagged if m.state is MachineState.RUNNING), None)


def _seen(intent: Intent, state: State, snapshot: Snapshot) -> bool:
    action = intent.action
    if isinstance(action, StartGang):
        return any(s.gang_id == action.gang.id for s in snapshot.gangs)
    if isinstance(action, AcquireNode):
        return any(
            m.lease_id == action.lease_id and m.state is MachineState.RUNNING for m in snapshot.machines
        )
    if isinstance(action, PullModel):
        return any(m.id == action.model_id for m in snapshot.models)
    if intent.state is not IntentState.ISSUED or intent.changed_at > snapshot.at:
        return False  # what follows is proved by absence
    if isinstance(action, StopGang):
        return _stopped(intent, action, state, snapshot)
    if isinstance(action, ReleaseNode):
        lease = next((x for x in state.leases if x.id == action.lease_id), None)
        return lease is None or _gone(lease.machine_id, lease.site, snapshot)
    assert isinstance(action, ReleaseMachine)
    return _gone(action.machine_id, action.site, snapshot)


def _stopped(intent: Intent, action: StopGang, state: State, snapshot: Snapshot) -> bool:
    row = next((g for g in state.gangs if g.id == action.gang_id), None)
    site = row.site if row else str(intent.reason.data.get("site", ""))
    alive = any(s.gang_id == action.gang_id and s.alive for s in snapshot.gangs)
    return site not in snapshot.silent_drivers and not alive


def _gone(machine_id: str, site: str, snapshot: Snapshot) -> bool:
    listed = any(m.id == machine_id for m in snapshot.machines)
    return site not in snapshot.silent_providers and not listed


def _events(intent: Intent, snapshot: Snapshot) -> list[Event]:
    action = intent.action
    if isinstance(action, StartGang):
        gang = action.gang
        data = {"gang": gang.id, "site": gang.site, "node": gang.node}
        return [Event(snapshot.at, "gang.started", gang.slot, f"{gang.id} runs at {gang.site}", data)]
    if isinstance(action, PullModel):
        found = next(m for m in snapshot.models if m.id == action.model_id)
        data_model = {"model": found.id, "version": found.version, "source": found.source}
        text = f"{found.id} version {found.version} is in the model store"
        return [Event(snapshot.at, "model.pulled", found.id, text, data_model)]
    return []
