"""What the API shows of a state."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from caudal.api.views import status_view, workload_view
from caudal.domain.fleet import (
    FleetSpec,
    GatewaySpec,
    Lease,
    LeaseState,
    MachineType,
    Market,
    Resources,
    SiteSpec,
)
from caudal.domain.gang import Gang, Report, Role
from caudal.domain.model import ModelRecord
from caudal.domain.snapshot import State
from caudal.domain.workload import ServedModel, ServiceSpec, StageSpec, TrainSpec, Workload, WorkloadState


def gang(slot: str, role: Role, workload: str, incarnation: int = 1, ended: bool = False) -> Gang:
    return Gang(
        id=f"{slot}-{incarnation}",
        slot=slot,
        incarnation=incarnation,
        role=role,
        workload=workload,
        generation=1,
        site="north",
        node="north-0",
        lease_id="lease-1",
        epoch=1,
        resources=Resources(0.1),
        created_at=5.0,
        ended_at=9.0 if ended else None,
    )


def workload(spec: TrainSpec | ServiceSpec) -> Workload:
    return Workload(spec.name, spec, True, 1, WorkloadState.RUNNING, "as wanted", 1.0, 2.0)


RUN = workload(TrainSpec("starter", "builtin:tinyworld", (StageSpec("pretrain", 1000),)))
ASSISTANT = workload(ServiceSpec("assistant", (ServedModel("small", source="pypi:x==1"),)))
LEASE = Lease(
    "lease-1",
    "north-0",
    "north",
    MachineType("local-1cpu", Resources(1.0, 1 << 30)),
    "offer",
    Market.OWN,
    Decimal("0"),
    LeaseState.ACTIVE,
    1,
    0.0,
)


def state(*gangs: Gang, reports: tuple[Report, ...] = ()) -> State:
    fleet = FleetSpec("laptop", (SiteSpec("north"), SiteSpec("south")))
    return State(7, fleet, (RUN, ASSISTANT), (LEASE,), tuple(gangs), (), reports)


def test_progress_is_the_newest_coordinators_that_reported() -> None:
    first = gang("starter.coordinator", Role.COORDINATOR, "starter", 1, ended=True)
    second = gang("starter.coordinator", Role.COORDINATOR, "starter", 2)
    reports = (Report(first.id, 1.0, {"round": 3}),)
    assert workload_view(state(first, second, reports=reports), RUN).progress == {"round": 3}
    reports = (*reports, Report(second.id, 2.0, {"round": 4}))
    assert workload_view(state(first, second, reports=reports), RUN).progress == {"round": 4}


def test_restarts_count_incarnations_beyond_the_first_of_each_slot() -> None:
    gangs = [
        gang("starter.worker.0", Role.WORKER, "starter", 1, ended=True),
        gang("starter.worker.0", Role.WORKER, "starter", 3),
        gang("starter.worker.1", Role.WORKER, "starter", 1),
    ]
    view = workload_view(state(*gangs), RUN)
    assert view.restarts == 2
    assert [g.id for g in view.gangs] == ["starter.worker.0-3", "starter.worker.1-1"]


def test_status_counts_ready_replicas_and_shows_sites_without_a_node() -> None:
    replica = gang("assistant.replica.small.0", Role.REPLICA, "assistant")
    record = ModelRecord("small", 1, "pypi:x==1", 1.0, (("m.gguf", "00"),), 10, "m.gguf")
    ready = (Report(replica.id, 1.0, {"ready": True, "model": "small", "url": "http://127.0.0.1:1"}),)
    view = status_view(state(replica, reports=ready), [record], 3.0, "0.1.0")
    assert [(m.id, m.ready_replicas) for m in view.models] == [("small", 1)]
    assert [(s.name, s.node, s.node_state) for s in view.sites] == [
        ("north", "north-0", "active"),
        ("south", "", "none"),
    ]
    assert view.gateway_url == "http://127.0.0.1:8601"
    assert not view.gateway_ready


def test_status_names_a_gateway_for_each_site_and_prefers_one_that_is_ready() -> None:
    gateway = replace(gang("gateway.1", Role.GATEWAY, ""), site="south")
    ready = (Report(gateway.id, 1.0, {"ready": True}),)
    found = state(gateway, reports=ready)
    assert found.fleet is not None
    fleet = replace(found.fleet, gateway=GatewaySpec(port=9000, each_site=True))
    view = status_view(replace(found, fleet=fleet), [], 3.0, "0.1.0")
    assert [(g.url, g.site, g.ready) for g in view.gateways] == [
        ("http://127.0.0.1:9000", "", False),
        ("http://127.0.0.1:9001", "south", True),
    ]
    assert (view.gateway_url, view.gateway_ready) == ("http://127.0.0.1:9001", True)
