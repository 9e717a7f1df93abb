"""Builders for snapshots: the smallest world that a policy can decide on, and a way to play decisions out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from caudal.control.confirm import confirm
from caudal.control.record import record
from caudal.domain.decision import Decision, Intent, IntentState, StartGang, StopGang
from caudal.domain.fleet import (
    FleetSpec,
    Lease,
    LeaseState,
    Machine,
    MachineState,
    MachineType,
    Market,
    Offer,
    Resources,
    SiteSpec,
)
from caudal.domain.gang import Gang, GangState, GangStatus, Report
from caudal.domain.model import ModelRecord
from caudal.domain.snapshot import Snapshot, State
from caudal.domain.workload import ServedModel, ServiceSpec, StageSpec, TrainSpec, Workload, WorkloadState
from caudal.policy import Rules, decide
from caudal.ports import Change

GIB = 1 << 30
RULES = Rules()


def machine_type(cpus: float = 1.0, memory_gib: float = 4.0) -> MachineType:
    """A machine type of that size."""
    return MachineType(f"m{cpus:g}", Resources(cpus, int(memory_gib * GIB)))


def offer(site: str, price: str = "0", market: Market = Market.OWN, **given: Any) -> Offer:
    """An offer at a site; by default the user's own machine, for nothing."""
    kind = given.pop("machine_type", machine_type())
    name = given.pop("id", f"{kind.name}@{site}")
    return Offer(name, site, kind, market, Decimal(price), "test", "2026-01-01", **given)


def lease(site: str, number: int = 1, **given: Any) -> Lease:
    """An active lease on node `SITE-NUMBER`, whose machine is `m-NODE`."""
    node = f"{site}-{number}"
    values: dict[str, Any] = {
        "id": f"lease-{node}",
        "node": node,
        "site": site,
        "machine_type": machine_type(),
        "offer_id": f"m1@{site}",
        "market": Market.OWN,
        "price_usd_per_hour": Decimal(0),
        "state": LeaseState.ACTIVE,
        "epoch": 1,
        "requested_at": 0.0,
        "machine_id": f"m-{node}",
        "active_at": 1.0,
    }
    return Lease(**(values | given))


def train(name: str = "starter", sites: int = 2, **given: Any) -> TrainSpec:
    """A run over that many sites."""
    return TrainSpec(name, "builtin:tinyworld", (StageSpec("text", 100_000),), sites=sites, **given)


def service(name: str = "assistant", *models: ServedModel) -> ServiceSpec:
    """A service; by default of one model `small` that is pulled."""
    return ServiceSpec(name, models or (ServedModel("small", source="pypi:small==1"),))


def model(name: str = "small", version: int = 1, run: str = "") -> ModelRecord:
    """A model in the model store."""
    return ModelRecord(name, version, "test", 0.0, (), 1, run=run)


def workload(spec: TrainSpec | ServiceSpec, **given: Any) -> Workload:
    """A workload that was applied at time 0."""
    values: dict[str, Any] = {
        "name": spec.name,
        "spec": spec,
        "wanted": True,
        "generation": 1,
        "state": WorkloadState.PENDING,
        "reason": "",
        "applied_at": 0.0,
        "changed_at": 0.0,
    }
    return Workload(**(values | given))


class Play:
    """A world in which decisions take effect at once: books, machines, processes, reports, and a clock.

    Faults are plain changes of its attributes: `silent`, `crash`, `machines.pop`.
    """

    def __init__(self, *specs: TrainSpec | ServiceSpec, sites: Iterable[str] = ("north", "south")) -> None:
        self.now = 100.0
        self.sites = list(sites)
        self.fleet = FleetSpec("test", tuple(SiteSpec(s) for s in self.sites))
        self.workloads = {s.name: workload(s) for s in specs}
        self.leases: dict[str, Lease] = {}
        self.gangs: dict[str, Gang] = {}
        self.intents: dict[str, Intent] = {}
        self.reports: dict[str, Report] = {}
        self.offers: list[Offer] = []
        self.machines: dict[str, Machine] = {}
        self.processes: dict[str, GangStatus] = {}
        self.models: dict[str, ModelRecord] = {}
        self.silent: dict[str, float] = {}
        self.silent_providers: set[str] = set()
        self.stray_since: dict[str, float] = {}
        self.version = 1
        self.stuck_stops = False
        for site in self.sites:
            self.add_node(lease(site))

    def add_node(self, row: Lease) -> None:
        """A lease with its machine running."""
        self.leases[row.id] = row
        machine = Machine(row.machine_id, row.site, row.machine_type.name, MachineState.RUNNING, row.id)
        self.machines[machine.id] = machine

    def snapshot(self) -> Snapshot:
        """What a control process would see now."""
        state = State(
            self.version,
            self.fleet,
            tuple(self.workloads.values()),
            tuple(x for x in self.leases.values() if x.live),
            tuple(self.gangs.values()),
            tuple(i for i in self.intents.values() if i.open or i.state is IntentState.FAILED),
            tuple(self.reports.values()),
        )
        return Snapshot(
            self.now,
            state,
            tuple(self.offers),
            tuple(m for m in self.machines.values() if m.site not in self.silent_providers),
            tuple(p for p in self.processes.values() if p.site not in self.silent),
            tuple(self.models.values()),
            frozenset(self.silent_providers),
            frozenset(self.silent),
            dict(self.silent),
            dict(self.stray_since),
        )

    def decide(self, rules: Rules = RULES) -> Decision:
        """Decide, and change nothing."""
        return decide(self.snapshot(), self.now, rules)

    def decide_later(self, after_s: float) -> Decision:
        """Let time pass, decide, and change nothing."""
        self.now += after_s
        return self.decide()

    def step(self, after_s: float = 0.0, rules: Rules = RULES) -> Decision:
        """Let time pass, decide, write it down, let starts and stops take effect."""
        self.now += after_s
        snapshot = self.snapshot()
        decision = decide(snapshot, self.now, rules)
        self._take(record(decision, snapshot, 1))
        for intent in list(self.intents.values()):
            if intent.state is IntentState.PENDING:
                self._effect(intent)
        proved = confirm(self.snapshot().state, self.snapshot())
        if proved is not None:
            self._take(proved)
        return decision

    def settle(self, steps: int = 12, each_s: float = 1.0) -> None:
        """Step until calm, and make replicas and gateways report that they are ready."""
        for _ in range(steps):
            self.step(each_s)
            for gang in self.live():
                if gang.role in ("replica", "gateway"):
                    self.report(gang.slot, ready=True, url=f"http://{gang.id}")

    def live(self, slot: str = "") -> list[Gang]:
        """The gangs of the books that are not over, of a slot or of all."""
        return [g for g in self.gangs.values() if g.ended_at is None and slot in ("", g.slot)]

    def at(self) -> Mapping[str, str]:
        """Where each slot runs."""
        return {g.slot: g.site for g in sorted(self.live(), key=lambda g: g.slot)}

    def crash(self, slot: str, exit_code: int | None = 1) -> None:
        """The process of a slot ends."""
        gang = self.live(slot)[-1]
        state = GangState.LOST if exit_code is None else GangState.EXITED
        self.processes[gang.id] = replace(
            self.processes[gang.id], state=state, exit_code=exit_code, ended_at=self.now
        )

    def report(self, slot: str, **status: Any) -> None:
        """The gang of a slot says something."""
        gang = self.live(slot)[-1]
        self.reports[gang.id] = Report(gang.id, self.now, status)

    def _take(self, change: Change) -> None:
        self.version += 1
        self.workloads |= {w.name: w for w in change.workloads}
        self.leases |= {x.id: x for x in change.leases}
        self.gangs |= {g.id: g for g in change.gangs}
        self.intents |= {i.id: i for i in change.intents}

    def _effect(self, intent: Intent) -> None:
        action = intent.action
        if isinstance(action, StartGang):
            if action.gang.site in self.silent:
                return
            assert action.gang.id not in self.processes, f"{action.gang.id} is started twice"
            status = GangStatus(action.gang.id, GangState.RUNNING, action.gang.site, started_at=self.now)
            self.processes[status.gang_id] = status
        elif isinstance(action, StopGang):
            status = self.processes[action.gang_id]
            if status.site in self.silent or self.stuck_stops:
                return
            over = replace(status, state=GangState.EXITED, exit_code=143, ended_at=self.now)
            self.processes[action.gang_id] = over
        elif action.kind == "acquire_node":
            machine = Machine(
                f"m-{action.node}",
                action.offer.site,
                action.offer.machine_type.name,
                MachineState.RUNNING,
                action.lease_id,
            )
            self.machines[machine.id] = machine
        elif action.kind == "release_node":
            self.machines.pop(self.leases[action.lease_id].machine_id)
        self.intents[intent.id] = replace(intent, state=IntentState.ISSUED, changed_at=self.now)


def kinds(decision: Decision) -> list[str]:
    """`kind subject` of every choice, in order."""
    return [f"{c.action.kind} {c.subject}" for c in decision.choices]


def waits(decision: Decision) -> dict[str, str]:
    """What waits, and the code of why."""
    return {w.subject: w.reason.code for w in decision.waiting}
