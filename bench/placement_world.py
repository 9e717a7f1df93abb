"""Fleets for bench/placement.py, made from a seed, and a world in which decisions take effect at once.

Sites of three clouds offer machines of several sizes on demand, on spot and under contracts, some of them a few only;
services want replicas and runs one worker a site. Shapes and prices are like those of the clouds, and made up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal

from caudal.control.confirm import confirm
from caudal.control.record import record
from caudal.domain.decision import Decision, Intent, IntentState, StartGang, StopGang
from caudal.domain.fleet import (
    Contract,
    FleetSpec,
    Lease,
    Machine,
    MachineState,
    MachineType,
    Market,
    Offer,
    ProviderSpec,
    Resources,
    SiteSpec,
)
from caudal.domain.gang import Gang, GangState, GangStatus, Report
from caudal.domain.model import ModelRecord
from caudal.domain.snapshot import Snapshot, State
from caudal.domain.term import moment
from caudal.domain.workload import ServedModel, ServiceSpec, StageSpec, TrainSpec, Workload, WorkloadState
from caudal.policy import decide
from caudal.ports import Change

GIB = 1 << 30
NOW = moment("2027-01-15")

SHAPES = {
    # family: (cores of one unit, GiB of one unit, accelerators of one unit, dollars an hour of one unit, sizes)
    "general": (2, 8, 0, 0.10, (1, 2, 4, 8, 16, 32)),
    "compute": (2, 4, 0, 0.085, (1, 2, 4, 8, 16, 32)),
    "memory": (2, 16, 0, 0.13, (1, 2, 4, 8, 16)),
    "l4": (8, 32, 1, 0.95, (1, 2, 4, 8)),
    "l40s": (16, 128, 1, 2.2, (1, 4, 8)),
    "a100": (12, 140, 1, 3.4, (1, 2, 4, 8)),
    "h100": (24, 256, 1, 7.0, (1, 8)),
}


@dataclass(frozen=True, slots=True)
class Instance:
    """One fleet, what is offered to it, and what it has to run."""

    seed: int
    fleet: FleetSpec
    offers: tuple[Offer, ...]
    specs: tuple[TrainSpec | ServiceSpec, ...]


def instance(seed: int) -> Instance:
    """A made-up fleet. Large or small, with or without accelerators, with scarce machines and contracts or without."""
    chance = random.Random(seed)
    sites = tuple(
        SiteSpec(f"s{n}", provider=chance.choice(["one", "two", "three"]))
        for n in range(chance.randint(2, 5))
    )
    gpus = chance.random() < 0.7
    families = chance.sample(["general", "compute", "memory"], chance.randint(1, 3))
    families += chance.sample(["l4", "l40s", "a100", "h100"], chance.randint(1, 2)) if gpus else []
    offers = []
    contracts = []
    for site in sites:
        dear = chance.uniform(0.85, 1.25)
        for family in families:
            if chance.random() < 0.15:
                continue
            for kind in _kinds(chance, family):
                hour = SHAPES[family][3] * kind[1] * dear * chance.uniform(0.9, 1.12)
                offers += _offers(chance, site.name, kind[0], hour)
        if chance.random() < 0.3 and offers and offers[-1].site == site.name:
            made = chance.choice([o for o in offers if o.site == site.name])
            count = chance.randint(1, 3)
            contract = Contract(
                f"c-{site.name}", "reserved", site.provider, "2026-06-01", "2028-06-01", (site.name,),
                made.machine_type.name, count, price_usd_per_hour=Decimal(f"{float(made.price_usd_per_hour) * 0.6:.4f}"),
            )  # fmt: skip
            contracts.append(contract)
            price = contract.price_usd_per_hour
            offers.append(
                replace(made, id=f"{made.id}-reserved", market=Market.RESERVED, price_usd_per_hour=price, available=count,
                        contract=contract.name)
            )  # fmt: skip
    providers = tuple(ProviderSpec(n, "aws") for n in ("one", "two", "three"))
    fleet = FleetSpec("bench", sites, providers=providers, contracts=tuple(contracts))
    return Instance(seed, fleet, tuple(offers), tuple(_workloads(chance, gpus, len(sites))))


def _kinds(chance: random.Random, family: str) -> Iterator[tuple[MachineType, int]]:
    cores, gib, accelerators, _, sizes = SHAPES[family]
    for size in sorted(chance.sample(sizes, chance.randint(1, min(3, len(sizes))))):
        has = Resources(float(cores * size), gib * size * GIB, accelerators * size)
        yield MachineType(f"{family}-{size}", has, family if accelerators else ""), size


def _offers(chance: random.Random, site: str, kind: MachineType, hour: float) -> Iterator[Offer]:
    available = chance.choice([None, None, chance.randint(1, 6)])
    name = f"{kind.name}@{site}"
    price = Decimal(f"{hour:.4f}")
    yield Offer(name, site, kind, Market.ON_DEMAND, price, "bench", "2027-01-15", available)
    if chance.random() < 0.35:
        spot = Decimal(f"{hour * chance.uniform(0.3, 0.7):.4f}")
        yield Offer(
            f"{name}-spot", site, kind, Market.SPOT, spot, "bench", "2027-01-15", chance.randint(1, 3)
        )


def _workloads(chance: random.Random, gpus: bool, sites: int) -> Iterator[TrainSpec | ServiceSpec]:
    for number in range(chance.randint(1, 4)):
        accelerators = chance.choice([0, 1, 1, 2, 4]) if gpus else 0
        asked = _asked(chance, accelerators)
        model = ServedModel(f"m{number}", source="x", replicas=chance.randint(1, 9), resources=asked)
        yield ServiceSpec(f"service{number}", (model,))
    for number in range(chance.randint(0, 2)):
        accelerators = chance.choice([0, 1, 4, 8]) if gpus else 0
        yield TrainSpec(
            f"run{number}", "builtin:tinyworld", (StageSpec("text", 1000),), sites=chance.randint(1, min(3, sites)),
            resources=_asked(chance, accelerators),
        )  # fmt: skip


def _asked(chance: random.Random, accelerators: int) -> Resources:
    if accelerators:
        cores, gib = chance.choice([2, 4, 7]) * accelerators, chance.choice([12, 24, 30]) * accelerators
        return Resources(float(cores), gib * GIB, accelerators)
    return Resources(chance.choice([0.5, 1.0, 1.5, 3.0, 6.0]), int(chance.choice([1, 3, 6, 12]) * GIB))


@dataclass(slots=True)
class World:
    """Books, machines and processes of one instance; what is decided happens at once."""

    given: Instance
    now: float = NOW
    version: int = 1
    workloads: dict[str, Workload] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    gangs: dict[str, Gang] = field(default_factory=dict)
    intents: dict[str, Intent] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    processes: dict[str, GangStatus] = field(default_factory=dict)
    decided_in_s: float = 0.0  # of CPU, the last decision alone

    def __post_init__(self) -> None:
        for spec in self.given.specs:
            self.workloads[spec.name] = Workload(
                spec.name, spec, True, 1, WorkloadState.PENDING, "", NOW, NOW
            )

    def snapshot(self) -> Snapshot:
        """What a control process would see now."""
        state = State(
            self.version,
            self.given.fleet,
            tuple(self.workloads.values()),
            tuple(x for x in self.leases.values() if x.live),
            tuple(self.gangs.values()),
            tuple(i for i in self.intents.values() if i.open),
            tuple(self.reports.values()),
        )
        return Snapshot(
            self.now, state, tuple(self._left()), tuple(self.machines.values()), tuple(self.processes.values()),
            tuple(self._models()),
        )  # fmt: skip

    def step(self, after_s: float) -> Decision:
        """Let time pass, decide, write it down, let it happen."""
        self.now += after_s
        snapshot = self.snapshot()
        start = time.process_time()
        decision = decide(snapshot, self.now)
        self.decided_in_s = time.process_time() - start
        self._take(record(decision, snapshot, 1))
        for intent in list(self.intents.values()):
            if intent.state is IntentState.PENDING:
                self._effect(intent)
        proved = confirm(self.snapshot().state, self.snapshot())
        if proved is not None:
            self._take(proved)
        for gang in self.gangs.values():
            if gang.ended_at is None:
                self.reports[gang.id] = Report(gang.id, self.now, {"ready": True, "phase": "training"})
        return decision

    def cost_usd_per_hour(self) -> float:
        """Of everything that is held, with what contracts cost whether they are used or not."""
        by_the_hour = sum(
            float(x.price_usd_per_hour) for x in self.leases.values() if x.live and not x.contract
        )
        return by_the_hour + signed_usd_per_hour(self.given)

    def _left(self) -> Iterator[Offer]:
        for offer in self.given.offers:
            held = sum(1 for x in self.leases.values() if x.live and x.offer_id == offer.id)
            yield (
                offer if offer.available is None else replace(offer, available=max(0, offer.available - held))
            )

    def _models(self) -> Iterator[ModelRecord]:
        for spec in self.given.specs:
            if isinstance(spec, ServiceSpec):
                yield from (ModelRecord(m.id, 1, "bench", 0.0, (), 1, run="") for m in spec.models)

    def _take(self, change: Change) -> None:
        self.version += 1
        self.workloads |= {w.name: w for w in change.workloads}
        self.leases |= {x.id: x for x in change.leases}
        self.gangs |= {g.id: g for g in change.gangs}
        self.intents |= {i.id: i for i in change.intents}

    def _effect(self, intent: Intent) -> None:
        action = intent.action
        if isinstance(action, StartGang):
            here = GangStatus(action.gang.id, GangState.RUNNING, action.gang.site, started_at=self.now)
            self.processes[here.gang_id] = here
        elif isinstance(action, StopGang):
            over = replace(
                self.processes[action.gang_id], state=GangState.EXITED, exit_code=143, ended_at=self.now
            )
            self.processes[action.gang_id] = over
        elif action.kind == "acquire_node":
            made = action.offer.machine_type.name
            machine = Machine(
                f"m-{action.node}", action.offer.site, made, MachineState.RUNNING, action.lease_id
            )
            self.machines[machine.id] = machine
        elif action.kind == "release_node":
            self.machines.pop(self.leases[action.lease_id].machine_id)
        self.intents[intent.id] = replace(intent, state=IntentState.ISSUED, changed_at=self.now)


def signed_usd_per_hour(given: Instance) -> float:
    """What the contracts cost, used or not."""
    return sum(float(c.price_usd_per_hour) * c.count for c in given.fleet.contracts)
