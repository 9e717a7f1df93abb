"""Rows of state for tests: valid values in which a test names only what it is about."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from caudal.domain.decision import Choice, Decision, Intent, IntentState, Reason, StartGang, Waiting
from caudal.domain.event import Event
from caudal.domain.fleet import Lease, LeaseState, MachineType, Market, Resources
from caudal.domain.gang import Gang, Role, gang_id
from caudal.domain.workload import ServedModel, ServiceSpec, StageSpec, TrainSpec, Workload, WorkloadState
from caudal.ports import Holder

SMALL = Resources(cpus=0.5, memory_bytes=1 << 30)


def gang(slot: str = "starter.worker.1", incarnation: int = 1, **changed: Any) -> Gang:
    """A worker's gang."""
    values: dict[str, Any] = {
        "id": gang_id(slot, incarnation), "slot": slot, "incarnation": incarnation, "role": Role.WORKER,
        "workload": slot.split(".")[0], "generation": 1, "site": "north", "node": "north-1",
        "lease_id": "lease-1", "epoch": 1, "resources": SMALL, "created_at": 100.0,
    }  # fmt: skip
    return Gang(**(values | changed))


def lease(lease_id: str = "lease-1", **changed: Any) -> Lease:
    """An active lease."""
    values: dict[str, Any] = {
        "id": lease_id, "node": "north-1", "site": "north", "machine_type": MachineType("half", SMALL),
        "offer_id": "local-north", "market": Market.OWN, "price_usd_per_hour": Decimal("0.1000"),
        "state": LeaseState.ACTIVE, "epoch": 1, "requested_at": 100.0, "active_at": 101.5,
    }  # fmt: skip
    return Lease(**(values | changed))


def intent(name: str = "i1", **changed: Any) -> Intent:
    """A pending start of a gang."""
    values: dict[str, Any] = {
        "id": name, "token": f"token-{name}", "action": StartGang(gang()), "subject": "starter.worker.1",
        "reason": Reason("missing", "it should run and does not", {"slots": 1}),
        "state": IntentState.PENDING, "created_at": 100.0, "changed_at": 100.0,
    }  # fmt: skip
    return Intent(**(values | changed))


def run(name: str = "starter", **changed: Any) -> Workload:
    """A run that waits to be placed."""
    spec = TrainSpec(name=name, data="builtin:tinyworld", stages=(StageSpec("words", tokens=1000),))
    return _workload(name, spec, changed)


def service(name: str = "assistant", **changed: Any) -> Workload:
    """A service of one model."""
    return _workload(name, ServiceSpec(name=name, models=(ServedModel("small", run="starter"),)), changed)


def _workload(name: str, spec: TrainSpec | ServiceSpec, changed: dict[str, Any]) -> Workload:
    values: dict[str, Any] = {
        "name": name, "spec": spec, "wanted": True, "generation": 1, "state": WorkloadState.PENDING,
        "reason": "", "applied_at": 100.0, "changed_at": 100.0,
    }  # fmt: skip
    return Workload(**(values | changed))


def starts(slot: str = "starter.worker.1", at: float = 100.0) -> Decision:
    """A decision to start one gang."""
    return Decision(1, at, choices=(Choice(StartGang(gang(slot)), slot, Reason("missing", "start it")),))


def waits(subject: str = "starter.worker.1", code: str = "no_capacity", at: float = 100.0) -> Decision:
    """A decision in which one slot has to wait; the text changes with the time, as real ones do."""
    reason = Reason(code, f"looked at {at}")
    return Decision(1, at, waiting=(Waiting(subject, subject.split(".")[0], reason),))


def event(subject: str = "starter", text: str = "it runs") -> Event:
    """Something that happened."""
    return Event(at=100.0, kind="workload.running", subject=subject, text=text, data={"n": 1})


def holder(name: str = "first") -> Holder:
    """A control process."""
    return Holder(name=name, host="here", pid=1, pid_started_at=50.0)
