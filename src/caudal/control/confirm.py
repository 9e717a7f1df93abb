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


class _Seen:
    """A state and a snapshot by what is asked of them: a large fleet is walked once."""

    def __init__(self, state: State, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.leases = {x.id: x for x in state.leases}
        self.rows = {g.id: g for g in state.gangs}
        self.listed = {s.gang_id for s in snapshot.gangs}
        self.alive = {s.gang_id for s in snapshot.gangs if s.alive}
        self.machines = {m.id for m in snapshot.machines}
        self.models = {m.id for m in snapshot.models}
        self.running: dict[str, Machine] = {}  # by lease, the first by its id
        for machine in sorted(snapshot.machines, key=lambda m: m.id):
            if machine.lease_id and machine.state is MachineState.RUNNING:
                self.running.setdefault(machine.lease_id, machine)

    def proves(self, intent: Intent) -> bool:
        """Whether what an intent was for is seen."""
        action = intent.action
        if isinstance(action, StartGang):
            return action.gang.id in self.listed
        if isinstance(action, AcquireNode):
            return action.lease_id in self.running
        if isinstance(action, PullModel):
            return action.model_id in self.models
        if intent.state is not IntentState.ISSUED or intent.changed_at > self.snapshot.at:
            return False  # what follows is proved by absence
        if isinstance(action, StopGang):
            return self._stopped(intent, action)
        if isinstance(action, ReleaseNode):
            lease = self.leases.get(action.lease_id)
            return lease is None or self._gone(lease.machine_id, lease.site)
        assert isinstance(action, ReleaseMachine)
        return self._gone(action.machine_id, action.site)

    def _stopped(self, intent: Intent, action: StopGang) -> bool:
        row = self.rows.get(action.gang_id)
        site = row.site if row else str(intent.reason.data.get("site", ""))
        return site not in self.snapshot.silent_drivers and action.gang_id not in self.alive

    def _gone(self, machine_id: str, site: str) -> bool:
        return site not in self.snapshot.silent_providers and machine_id not in self.machines


def confirm(state: State, snapshot: Snapshot) -> Change | None:
    """What the snapshot proves of the state's open intents; None where that is nothing new.

    `state` is newer than the snapshot: an intent that was issued after it was taken is not confirmed by the
    absence of something, since that may only not have happened yet.
    """
    leases: list[Lease] = []
    events: list[Event] = []
    seen = _Seen(state, snapshot)
    for lease in state.leases:
        machine = seen.running.get(lease.id)
        if lease.state is LeaseState.REQUESTED and machine is not None:
            leases.append(
                replace(lease, state=LeaseState.ACTIVE, machine_id=machine.id, active_at=snapshot.at)
            )
            text = f"node {lease.node} is machine {machine.id} at {lease.site}"
            data = {"lease": lease.id, "machine": machine.id, "site": lease.site}
            events.append(Event(snapshot.at, "lease.active", lease.node, text, data))
    intents: list[Intent] = []
    for intent in state.intents:
        if intent.open and seen.proves(intent):
            intents.append(replace(intent, state=IntentState.CONFIRMED, changed_at=snapshot.at, error=""))
            events += _events(intent, snapshot)
    if not leases and not intents:
        return None
    return Change(leases=leases, intents=intents, events=events)


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
