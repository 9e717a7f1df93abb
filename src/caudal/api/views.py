"""What the API shows: plain values made from the state, with a versioned `shape` each.

A shape's number rises when a key changes its meaning or goes; new keys may come at any time. The command
line's `--json` prints exactly these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from caudal.domain.fleet import LeaseState
from caudal.domain.gang import Gang, Report, Role
from caudal.domain.key import ANONYMOUS, PICO, ApiKey, KeyLimits, UsageHour
from caudal.domain.model import ModelRecord
from caudal.domain.snapshot import State
from caudal.domain.workload import ServiceSpec, TrainSpec, Workload
from caudal.policy.slots import gateway_slot


@dataclass(frozen=True, slots=True)
class GangView:
    """One gang that is not over. `status` is the last that it reported, `reported_at` when (None: never)."""

    id: str
    slot: str
    role: str
    workload: str
    site: str
    node: str
    incarnation: int
    started_at: float
    stopping: bool
    reported_at: float | None
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """A run or a service. `progress` is the run's coordinator's last report; `models` the service's."""

    name: str
    kind: str
    state: str
    reason: str
    wanted: bool
    generation: int
    applied_at: float
    changed_at: float
    gangs: list[GangView]
    restarts: int
    progress: Mapping[str, Any]
    models: list[str]
    shape: str = "workload/1"


@dataclass(frozen=True, slots=True)
class SiteView:
    """A site with the node that is leased there."""

    name: str
    provider: str
    driver: str
    node: str
    node_state: str
    machine_type: str
    cpus: float
    memory_bytes: int
    price_usd_per_hour: str
    gangs: list[str]


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model of the store, and how many replicas answer for it now."""

    id: str
    version: int
    source: str
    published_at: float
    size_bytes: int
    context: int
    licence: str
    run: str
    ready_replicas: int = 0


@dataclass(frozen=True, slots=True)
class GatewayView:
    """One front door, and where it stands (empty: nowhere now)."""

    url: str
    site: str
    ready: bool


@dataclass(frozen=True, slots=True)
class StatusView:
    """The whole fleet at a glance. `gateway_url` is the first gateway that is ready, or else the first."""

    fleet: str
    version: int
    at: float
    sites: list[SiteView]
    workloads: list[WorkloadView]
    models: list[ModelView]
    gateway_url: str
    gateway_ready: bool
    gateways: list[GatewayView]
    caudal: str
    shape: str = "status/1"


@dataclass(frozen=True, slots=True)
class ListView:
    """Any list: events, models, points, explanations."""

    shape: str
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key without its hash. `expires_at` and `revoked_at` are 0 where they are never."""

    id: str
    name: str
    created_at: float
    expires_at: float
    revoked_at: float
    limits: KeyLimits
    shape: str = "key/1"


@dataclass(frozen=True, slots=True)
class NewKeyView:
    """A key that was just made, with its secret: shown this once."""

    key: KeyView
    secret: str
    shape: str = "new_key/1"


@dataclass(frozen=True, slots=True)
class UsageView:
    """What a key used of a model within the hour that began at `hour`; `usd` is what that cost at external addresses."""

    key_id: str
    key: str
    model: str
    hour: int
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    usd: float


def key_view(key: ApiKey) -> KeyView:
    """What people may see of a key."""
    return KeyView(key.id, key.name, key.created_at, key.expires_at, key.revoked_at, key.limits)


def usage_views(hours: Iterable[UsageHour], keys: Iterable[ApiKey]) -> list[UsageView]:
    """The hours, with the keys' names beside their ids."""
    names = {key.id: key.name for key in keys} | {ANONYMOUS: ANONYMOUS}
    return [
        UsageView(
            h.key_id,
            names.get(h.key_id, ""),
            h.model,
            h.hour,
            h.requests,
            h.failed,
            h.usage.prompt_tokens,
            h.usage.completion_tokens,
            h.usage.cached_tokens,
            h.usage.picodollars / PICO,
        )
        for h in hours
    ]


def _gang_view(gang: Gang, report: Report | None) -> GangView:
    return GangView(
        id=gang.id,
        slot=gang.slot,
        role=gang.role.value,
        workload=gang.workload,
        site=gang.site,
        node=gang.node,
        incarnation=gang.incarnation,
        started_at=gang.created_at,
        stopping=gang.stopping,
        reported_at=report.at if report else None,
        status=report.status if report else {},
    )


def _reports(state: State) -> dict[str, Report]:
    return {report.gang_id: report for report in state.reports}


def live_gangs(state: State) -> list[GangView]:
    """All gangs that are not over, by slot."""
    reports = _reports(state)
    live = sorted((g for g in state.gangs if g.ended_at is None), key=lambda g: (g.slot, g.incarnation))
    return [_gang_view(gang, reports.get(gang.id)) for gang in live]


def progress_of(state: State, workload: Workload) -> Mapping[str, Any]:
    """The newest coordinator's last report: the run's progress also while nothing of it runs."""
    reports = _reports(state)
    coordinators = [
        g
        for g in state.gangs
        if g.workload == workload.name and g.role is Role.COORDINATOR and g.generation == workload.generation
    ]
    for gang in sorted(coordinators, key=lambda g: g.incarnation, reverse=True):
        if gang.id in reports:
            return reports[gang.id].status
    return {}


def workload_view(state: State, workload: Workload) -> WorkloadView:
    """One workload with its gangs."""
    spec = workload.spec
    slots: dict[str, int] = {}
    for gang in state.gangs:
        if gang.workload == workload.name and gang.generation == workload.generation:
            slots[gang.slot] = max(slots.get(gang.slot, 0), gang.incarnation)
    return WorkloadView(
        name=workload.name,
        kind=workload.kind,
        state=workload.state.value,
        reason=workload.reason,
        wanted=workload.wanted,
        generation=workload.generation,
        applied_at=workload.applied_at,
        changed_at=workload.changed_at,
        gangs=[g for g in live_gangs(state) if g.workload == workload.name],
        restarts=sum(max(0, incarnation - 1) for incarnation in slots.values()),
        progress=progress_of(state, workload) if isinstance(spec, TrainSpec) else {},
        models=[m.id for m in spec.models] if isinstance(spec, ServiceSpec) else [spec.model_id],
    )


def model_views(state: State, records: Iterable[ModelRecord]) -> list[ModelView]:
    """Every model of the store, by id."""
    ready: dict[str, int] = {}
    for gang in live_gangs(state):
        if gang.role == Role.REPLICA.value and gang.status.get("ready"):
            model = str(gang.status.get("model", ""))
            ready[model] = ready.get(model, 0) + 1
    return [
        ModelView(
            id=r.id,
            version=r.version,
            source=r.source,
            published_at=r.published_at,
            size_bytes=r.size_bytes,
            context=r.context,
            licence=r.licence,
            run=r.run,
            ready_replicas=ready.get(r.id, 0),
        )
        for r in sorted(records, key=lambda r: r.id)
    ]


def _site_views(state: State) -> list[SiteView]:
    views = []
    gangs = live_gangs(state)
    for site in state.fleet.sites if state.fleet else ():
        lease = next(
            (x for x in state.leases if x.site == site.name and x.state is not LeaseState.ENDED), None
        )
        resources = lease.machine_type.resources if lease else None
        views.append(
            SiteView(
                name=site.name,
                provider=site.provider,
                driver=site.driver,
                node=lease.node if lease else "",
                node_state=lease.state.value if lease else "none",
                machine_type=lease.machine_type.name if lease else "",
                cpus=resources.cpus if resources else 0.0,
                memory_bytes=resources.memory_bytes if resources else 0,
                price_usd_per_hour=str(lease.price_usd_per_hour) if lease else "",
                gangs=[g.id for g in gangs if g.site == site.name],
            )
        )
    return views


def status_view(state: State, records: Iterable[ModelRecord], now: float, version: str) -> StatusView:
    """The whole fleet at a glance."""
    gateways = _gateways(state)
    first = next((g for g in gateways if g.ready), gateways[0] if gateways else None)
    return StatusView(
        fleet=state.fleet.name if state.fleet else "",
        version=state.version,
        at=now,
        sites=_site_views(state),
        workloads=[workload_view(state, w) for w in sorted(state.workloads, key=lambda w: w.name)],
        models=model_views(state, records),
        gateway_url=first.url if first else "",
        gateway_ready=bool(first and first.ready),
        gateways=gateways,
        caudal=version,
    )


def _gateways(state: State) -> list[GatewayView]:
    """The gateways that the fleet file asks for, each with what runs there."""
    if state.fleet is None:
        return []
    views = []
    for number, port in enumerate(state.fleet.gateway_ports()):
        runs = next((g for g in live_gangs(state) if g.slot == gateway_slot(number)), None)
        views.append(
            GatewayView(
                url=state.fleet.gateway.url(port),
                site=runs.site if runs else "",
                ready=bool(runs and runs.status.get("ready")),
            )
        )
    return views
