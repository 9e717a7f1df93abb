"""The snapshot with its indexes, and what the decision in the making has changed of it so far.

A board lives for one call of `decide`. It only books; what to do is decided by the modules beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from caudal.domain.decision import (
    Action,
    Choice,
    DrainGang,
    EndGang,
    Intent,
    Reason,
    Rejected,
    StartGang,
    StopGang,
    Waiting,
)
from caudal.domain.fleet import Lease, LeaseState, Machine, Resources
from caudal.domain.gang import Gang, GangStatus, Report, Role
from caudal.domain.node import failed
from caudal.domain.snapshot import Snapshot
from caudal.domain.workload import Workload
from caudal.policy.contracts import leaves_at
from caudal.policy.rules import Rules
from caudal.policy.table import GangTable

Room = tuple[float, int, int, int]
"""What a node has left: cores, bytes, accelerators, Neuron cores."""

_ORDER = {
    "end_lease": 0,
    "suspect_lease": 0,
    "trust_lease": 0,
    "end_gang": 1,
    "drain_gang": 1,
    "set_workload_state": 2,
    "stop_gang": 3,
    "release_node": 4,
    "release_machine": 4,
    "acquire_node": 5,
    "start_gang": 6,
    "pull_model": 7,
}
"""What is written down comes first, then what frees something, then what takes something."""


class Board:
    """What is believed, what is observed, and the choices made of it."""

    def __init__(self, snapshot: Snapshot, now: float, rules: Rules) -> None:
        state = snapshot.state
        self.snapshot = snapshot
        self.now = now
        self.rules = rules
        self.sites = tuple(s.name for s in state.fleet.sites) if state.fleet else ()
        # Sites whose Ray cluster their own nodes make up: there a machine is no node before it says so.
        self.begin_ray = frozenset(s for s in self.sites if state.fleet and state.fleet.begins_ray(s))
        self.workloads: dict[str, Workload] = {w.name: w for w in sorted(state.workloads, key=_name)}
        self.leases: dict[str, Lease] = {x.id: x for x in sorted(state.leases, key=_id) if x.live}
        ordered = sorted(state.gangs, key=lambda g: (g.slot, g.incarnation))
        self.gangs = GangTable(g for g in ordered if g.ended_at is None)
        self.over = GangTable(g for g in ordered if g.ended_at is not None)
        self._room: dict[str, Room] = {}  # by lease, until what is on it changes
        self._room_seen = len(self.gangs.changes), len(self.over.changes)
        self.changed_leases = 0  # how often leases were put in, or changed
        self.status: dict[str, GangStatus] = _statuses(snapshot)
        self.reports: Mapping[str, Report] = {r.gang_id: r for r in state.reports}
        self.failed_nodes = {r.gang_id: r for r in state.reports if failed(r)}  # by their reports' subject
        self.open: list[Intent] = sorted((i for i in state.intents if i.open), key=_id)
        self.failed: list[Intent] = sorted((i for i in state.intents if i.state == "failed"), key=_id)
        self.machines: dict[str, Machine] = {m.id: m for m in sorted(snapshot.machines, key=_id)}
        said = {m.id: m.leaves_at for m in snapshot.machines if m.leaves_at is not None}
        self.leaving: dict[str, float] = {}  # the leases that have to be left now, and when they go
        for lease in self.leases.values():
            goes_at = leaves_at(state.fleet, lease, said)
            if goes_at is not None and now >= goes_at - rules.leave_ahead_s:
                self.leaving[lease.id] = goes_at
        self.choices: list[Choice] = []
        self.waiting: list[Waiting] = []
        self.retiring: set[str] = set()  # the gangs that are to go, in this decision

    def choose(
        self, action: Action, subject: str, reason: Reason, rejected: tuple[Rejected, ...] = ()
    ) -> None:
        """Add an action to the decision, and count on its effect."""
        self.choices.append(Choice(action, subject, reason, rejected))
        if isinstance(action, EndGang):
            ended = self.gangs.pop(action.gang_id)
            status = self.status.get(action.gang_id)
            ended_at = min(self.now, status.ended_at) if status and status.ended_at else self.now
            self.over[ended.id] = replace(
                ended, ended_at=ended_at, exit_code=action.exit_code, end_reason=reason.code
            )
        elif isinstance(action, DrainGang):
            since = self.now if action.draining else None
            self.gangs[action.gang_id] = replace(self.gangs[action.gang_id], draining_at=since)
        elif isinstance(action, StartGang):
            self.gangs[action.gang.id] = action.gang
        elif isinstance(action, StopGang) and action.gang_id in self.gangs:
            self.gangs[action.gang_id] = replace(self.gangs[action.gang_id], stopping=True)

    def wait(self, subject: str, workload: str, reason: Reason, rejected: tuple[Rejected, ...] = ()) -> None:
        """Add something that has to wait."""
        self.waiting.append(Waiting(subject, workload, reason, rejected))

    def stop(self, gang: Gang, code: str, text: str, **data: Any) -> None:
        """Stop a gang, once: one that is being stopped is left to end."""
        if not self.gangs[gang.id].stopping:
            reason = Reason(code, text, {"site": gang.site, **data})
            self.choose(StopGang(gang.id, self.rules.stop_grace_s), gang.slot, reason)

    def ordered(self) -> tuple[Choice, ...]:
        """The choices in the order in which they are to be carried out."""
        return tuple(sorted(self.choices, key=lambda c: _ORDER[c.action.kind]))

    def answers(self, site: str) -> bool:
        """Whether the site's driver answered just now."""
        return site not in self.snapshot.silent_drivers

    def live(self, workload: str, role: Role | None = None) -> list[Gang]:
        """The gangs of a workload that are not over, by slot."""
        return [g for g in self.gangs.of(workload) if role in (None, g.role)]

    def holder(self, slot: str) -> Gang | None:
        """The newest gang that is not over in a slot."""
        found = self.gangs.in_slot(slot)
        return found[-1] if found else None

    def ended(self, slot: str) -> list[Gang]:
        """The gangs that are over in a slot, newest first, as far as they are remembered."""
        return sorted(self.over.in_slot(slot), key=lambda g: -g.incarnation)

    def free(self, lease: Lease) -> Resources:
        """What is left of a node: taken are its gangs, those being stopped too, and those that are over in
        the books while their processes still live."""
        return Resources(*self.room(lease))

    def room(self, lease: Lease) -> Room:
        """The same, as plain numbers."""
        self._forget_changed()
        room = self._room.get(lease.id)
        if room is None:
            room = _numbers(lease.machine_type.resources)
            for gang in (*self.gangs.on(lease.id), *self.over.on(lease.id)):
                if gang.ended_at is None or self.alive(gang.id):
                    room = _minus(room, gang.resources)
            self._room[lease.id] = room
        return room

    def rooms(self) -> Mapping[str, Room]:
        """Of every node, by lease, in one walk over the gangs: as of now."""
        self._forget_changed()
        fresh = {
            x.id: _numbers(x.machine_type.resources) for x in self.leases.values() if x.id not in self._room
        }
        over = (gang for gang in self.over.values() if self.alive(gang.id))
        for gang in chain(self.gangs.values(), over):
            if (left := fresh.get(gang.lease_id)) is not None:
                fresh[gang.lease_id] = _minus(left, gang.resources)
        self._room |= fresh
        return self._room

    def _forget_changed(self) -> None:
        now, over = self.gangs.changes, self.over.changes
        seen_now, seen_over = self._room_seen
        if len(now) != seen_now or len(over) != seen_over:
            for lease_id in (*now[seen_now:], *over[seen_over:]):
                self._room.pop(lease_id, None)
            self._room_seen = len(now), len(over)

    def alive(self, gang_id: str) -> bool:
        """Whether its driver lists it as alive just now."""
        status = self.status.get(gang_id)
        return status is not None and status.alive

    def believed_up(self, gang: Gang) -> bool:
        """Whether it runs as far as is known: listed as alive, or on a site that is silent."""
        return self.alive(gang.id) or not self.answers(gang.site)

    def said(self, gang: Gang, key: str) -> Any:
        """What the gang last reported under a key; None where it said nothing."""
        report = self.reports.get(gang.id)
        return report.status.get(key) if report else None

    def phase(self, slot: str) -> str:
        """What the gang that holds a slot last said it is doing; empty where it said nothing."""
        gang = self.holder(slot)
        said = self.said(gang, "phase") if gang else None
        return said if isinstance(said, str) else ""

    def ready(self, gang: Gang) -> bool:
        """Whether a replica or gateway last said that it can answer."""
        return self.said(gang, "ready") is True

    def fenced(self, gang: Gang) -> bool:
        """Whether it runs under an older epoch than its lease has now."""
        lease = self.leases.get(gang.lease_id)
        return lease is not None and gang.epoch < lease.epoch

    def set_lease(self, lease: Lease) -> None:
        """Count on a lease being like this; one that has ended holds nothing any more."""
        self.changed_leases += 1
        if lease.state is LeaseState.ENDED:
            self.leases.pop(lease.id, None)
        else:
            self.leases[lease.id] = lease


def _numbers(has: Resources) -> Room:
    return has.cpus, has.memory_bytes, has.accelerators, has.neuron_cores


def _minus(left: Room, asked: Resources) -> Room:
    cpus, memory_bytes, accelerators, cores = left
    return (
        cpus - asked.cpus,
        memory_bytes - asked.memory_bytes,
        accelerators - asked.accelerators,
        cores - asked.neuron_cores,
    )


def _name(workload: Workload) -> str:
    return workload.name


def _id(item: Lease | Machine | Intent) -> str:
    return item.id


def _statuses(snapshot: Snapshot) -> dict[str, GangStatus]:
    """By gang id; should two drivers list the same id, the one that is alive counts."""
    found: dict[str, GangStatus] = {}
    for status in sorted(snapshot.gangs, key=lambda s: (s.gang_id, s.site)):
        if status.gang_id not in found or status.alive:
            found[status.gang_id] = status
    return found
