"""The loop on a large fleet, and what a fleet does when things go: see docs/howto/measure.md.

    python bench/fleet.py [--repeats 5] [--nodes 10000] [--workloads 1000] [--rows placement,decide,...] [--quick]

The large fleet is calm and full of services of eight replicas each, on nodes of four sites. `placement` times the search of
a node for one slot among all; `decide` whole decisions, also with one service more; `reconcile` whole passes of the control
loop over a store in memory and a fake provider and drivers that list everything. Goals: a placement in 50 ms, a reconcile in
1 s and 1 GB. The other rows are fleet_faults.py's: sites lost (local, Ray), partitions, the control process away. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
import traceback
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from caudal.control.background import ImmediateBackground
from caudal.control.launch import LaunchSettings
from caudal.control.loop import ControlLoop, Settings
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
from caudal.domain.gang import Gang, GangState, GangStatus, Report, Role, gang_id
from caudal.domain.model import ModelRecord
from caudal.domain.snapshot import Snapshot, State
from caudal.domain.workload import ServedModel, ServiceSpec, Workload, WorkloadState
from caudal.policy import Rules, decide
from caudal.policy.board import Board
from caudal.policy.placement import Placer
from caudal.policy.slots import Slot, gateway_slot, replica_slot
from caudal.ports import Change, Holder, World
from caudal.store.state import open_store
from fleet_faults import rows as fault_rows
from fleet_rig import Options
from harness import figure, finish

GIB = 1 << 30
SITES = ("north", "south", "east", "west")
REPLICAS = 8
RUNS = "runs at " + ", ".join(sorted(SITES))
KIND = MachineType("m8", Resources(cpus=8.0, memory_bytes=32 * GIB, accelerators=8))
ASKED = Resources(cpus=4.0, memory_bytes=8 * GIB, accelerators=4)


def world(nodes: int, workloads: int) -> Snapshot:
    """All of it as a control process would see it."""
    fleet = FleetSpec("large", tuple(SiteSpec(name, "fake", "fake", name) for name in SITES))
    leases = [_lease(number) for number in range(nodes)]
    rows: list[Workload] = []
    gangs: list[Gang] = [_gang(leases[-1], gateway_slot(0), Role.GATEWAY, "", Resources(0.1, 128 << 20))]
    for number in range(workloads):
        name = f"service-{number:04d}"
        model = ServedModel("small", source="pypi:small==1", replicas=REPLICAS, resources=ASKED)
        rows.append(
            Workload(name, ServiceSpec(name, (model,)), True, 1, WorkloadState.RUNNING, RUNS, 0.0, 0.0)
        )
        for index in range(REPLICAS):
            lease = leases[(number * REPLICAS + index) % nodes]
            slot = replica_slot(name, "small", index, 1, 1)
            gangs.append(_gang(lease, slot, Role.REPLICA, name, ASKED, model="small", model_version=1))
    statuses = tuple(GangStatus(gang.id, GangState.RUNNING, gang.site, started_at=1.0) for gang in gangs)
    said = {"ready": True, "url": "http://127.0.0.1:1", "model": "small", "version": 1}
    reports = tuple(Report(gang.id, 99.0, said) for gang in gangs)
    machines = tuple(
        Machine(x.machine_id, x.site, KIND.name, MachineState.RUNNING, x.id, "127.0.0.1") for x in leases
    )
    offers = tuple(
        Offer(f"m8@{site}", site, KIND, Market.ON_DEMAND, Decimal(10), "made up", "2026-11-29")
        for site in SITES
    )
    state = State(1, fleet, tuple(rows), tuple(leases), tuple(gangs), (), reports)
    models = (ModelRecord("small", 1, "made up", 0.0, (), 1),)
    return Snapshot(100.0, state, offers, machines, statuses, models)


def _lease(number: int) -> Lease:
    site = SITES[number % len(SITES)]
    node = f"{site}-{number}"
    return Lease(
        f"large.{node}", node, site, KIND, f"m8@{site}", Market.ON_DEMAND, Decimal(10), LeaseState.ACTIVE, 1, 0.0,
        machine_id=f"i-{number}", active_at=1.0,
    )  # fmt: skip


def _gang(lease: Lease, slot: str, role: Role, workload: str, asked: Resources, **more: Any) -> Gang:
    where = (lease.site, lease.node, lease.id, 1)
    return Gang(gang_id(slot, 1), slot, 1, role, workload, 1, *where, asked, 1.0, **more)


def decided(snapshot: Snapshot) -> tuple[float, int]:
    """Seconds of one decision, and how many choices it has."""
    started = time.perf_counter()
    made = decide(snapshot, snapshot.at, Rules())
    return time.perf_counter() - started, len(made.choices)


def placed(snapshot: Snapshot) -> float:
    """Seconds of looking for one slot's node among all."""
    placer = Placer(Board(snapshot, snapshot.at, Rules()), frozenset(), frozenset())
    slot = Slot("new.replica.small.0", Role.REPLICA, "new", 1, ASKED, SITES, model="small", model_version=1)
    started = time.perf_counter()
    found = placer.place(slot)
    took = time.perf_counter() - started
    assert found.lease is not None
    return took


class Listing:
    """A provider, a driver and a model store that list what is there, and are asked for nothing."""

    def __init__(self, snapshot: Snapshot, site: str = "") -> None:
        self.site = site
        self._snapshot = snapshot
        self._gangs = [status for status in snapshot.gangs if status.site == site]

    def offers(self) -> tuple[Offer, ...]:
        """All."""
        return self._snapshot.offers

    def machines(self) -> tuple[Machine, ...]:
        """All."""
        return self._snapshot.machines

    def gangs(self) -> list[GangStatus]:
        """Its site's."""
        return self._gangs

    def list(self) -> tuple[ModelRecord, ...]:
        """All."""
        return self._snapshot.models


class Still:
    """A clock that stands."""

    def now(self) -> float:
        """The snapshot's time."""
        return 100.0

    def sleep(self, seconds: float) -> None:
        """Never."""
        raise AssertionError("nothing waits here")


def reconciled(snapshot: Snapshot, repeats: int) -> list[float]:
    """Seconds of whole passes of the loop; the first, which reads the store anew, is left out."""
    store = open_store("sqlite://")
    state = snapshot.state
    change = Change(fleet=state.fleet, workloads=state.workloads, leases=state.leases, gangs=state.gangs)
    store.commit(change)
    for report in state.reports:
        store.put_report(report)
    lists: Any = Listing(snapshot)
    drivers: dict[str, Any] = {site: Listing(snapshot, site) for site in SITES}
    assert state.fleet is not None
    made = World(Still(), store, lists, {"fake": lists}, drivers, state.fleet.sites)
    holder = Holder("bench", "here", os.getpid(), 0.0)
    loop = ControlLoop(made, holder, Settings(), LaunchSettings(), ImmediateBackground())
    took = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        loop.run_once()
        took.append(time.perf_counter() - started)
    return took[1:]


def large(nodes: int, workloads: int, repeats: int, rows: list[str]) -> dict[str, Any]:
    """The rows on the large fleet."""
    snapshot = world(nodes, workloads)
    figures: dict[str, Any] = {"nodes": nodes, "workloads": workloads, "gangs": len(snapshot.gangs)}
    if "placement" in rows:
        figures["placement"] = figure([1000 * placed(snapshot) for _ in range(repeats)], "ms", 2)
    if "decide" in rows:
        calm = [decided(snapshot) for _ in range(repeats)]
        assert all(choices == 0 for _, choices in calm), "the fleet is calm"
        figures["decide"] = figure([seconds for seconds, _ in calm], "s", 3)
        model = ServedModel("small", source="pypi:small==1", replicas=1, resources=ASKED)
        spec = ServiceSpec("one-more", (model,))
        more = Workload("one-more", spec, True, 1, WorkloadState.PENDING, "", 0.0, 0.0)
        state = replace(snapshot.state, workloads=(*snapshot.state.workloads, more))
        busy = [decided(replace(snapshot, state=state)) for _ in range(repeats)]
        assert all(choices for _, choices in busy)
        figures["decide_with_one_more"] = figure([seconds for seconds, _ in busy], "s", 3)
    if "reconcile" in rows:
        figures["reconcile"] = figure(reconciled(snapshot, repeats), "s", 3)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures["peak_memory"] = figure([peak_mb], "MB", 0)
    return figures


def main() -> None:
    """Run the chosen rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=int(os.environ.get("REPEATS", "5")))
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--workloads", type=int, default=1_000)
    known = ["placement", "decide", "reconcile", *fault_rows()]
    parser.add_argument("--rows", default=os.environ.get("ROWS", ",".join(known)), help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="the rows about faults short; not to be quoted")
    told = parser.parse_args()
    chosen = told.rows.split(",")
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    figures = large(told.nodes, told.workloads, told.repeats, chosen)
    with tempfile.TemporaryDirectory(prefix="caudal-fleet-") as folder:
        for name, row in fault_rows().items():
            if name in chosen:
                try:
                    figures[name] = row(Options(Path(folder), quick=told.quick))
                except (RuntimeError, OSError, AssertionError) as error:  # a row that fails is a result too
                    traceback.print_exc()
                    figures[name] = {"failed": str(error).splitlines()[0] if str(error) else repr(error)}
    goal = {
        "placement_ms": 50, "reconcile_s": 1, "memory_mb": 1024, "noticed_s_p95": 4, "elsewhere_s_p95": 10,
        "two_writers": 0, "restarted": 0,
    }  # fmt: skip
    finish("fleet", {**figures, "goal": goal})


if __name__ == "__main__":
    main()
