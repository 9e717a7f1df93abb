"""Where gateways find replicas: those that said they can answer, and are not on their way out; each version's
share of a model's requests while there are several; and what other gateways have in flight."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caudal.control.external import ExternalRoute, external_routes
from caudal.domain.fleet import LeaseState
from caudal.domain.gang import Gang, Role
from caudal.domain.snapshot import State
from caudal.domain.workload import ServedModel, ServiceSpec
from caudal.policy.draining import load_of
from caudal.policy.rolling import held_until, rollout_of

LOAD_KEPT_S = 30.0
"""A gateway that said nothing for longer is not counted."""

DEFAULT_ENGINE = "llama.cpp"


@dataclass(frozen=True, slots=True)
class ReplicaRoute:
    """One replica that answers at `url`, with so many requests at once (0: not known). One that is `draining`
    ends what it has and gets nothing new. `engine` is what its engine calls itself, empty for llama.cpp. With
    `external` it is somebody else's address, where the model is called `model`; its version is 0: not known."""

    gang: str
    url: str
    site: str
    version: int = 0
    slots: int = 0
    draining: bool = False
    engine: str = ""
    model: str = ""
    external: ExternalRoute | None = None


@dataclass(frozen=True, slots=True)
class VersionWeight:
    """The share of a model's requests that a version answers."""

    version: int
    weight: float


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """One model with its replicas that answer, of all its versions; `version` is the newest of them. `context` is
    in tokens, prompt plus reply. `weights` are there while a new version is held to a share; else its replicas
    are as good as the old one's. One that is `asleep` has no replica that takes requests, and a request starts one."""

    id: str
    version: int
    context: int
    replicas: list[ReplicaRoute]
    weights: list[VersionWeight] = field(default_factory=list)
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class OthersLoad:
    """What gateways other than the one that asks have in flight at a replica, by what they said `age_s` ago."""

    gang: str
    requests: int
    tokens: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Routes:
    """Everything that a gateway needs to know. `version` rises whenever it may have changed, loads aside."""

    version: int
    models: list[ModelRoute]
    others_in_flight: list[OthersLoad] = field(default_factory=list)


def routes(state: State, now: float = 0.0, gateway: str = "") -> Routes:
    """The routes of a state, for a gateway. A model is there as soon as a replica of it was started; one whose
    replicas are all starting, or coming back, has none to go to yet, which is not the same as being unknown. One
    whose replicas follow demand is there as long as its service is wanted."""
    active = {x.id: x.epoch for x in state.leases if x.state is LeaseState.ACTIVE}
    said = {r.gang_id: r.status for r in state.reports}
    served = _served(state)
    found: dict[str, list[tuple[Gang, str]]] = {}
    for gang in sorted(state.gangs, key=lambda g: g.id):
        status = said.get(gang.id, {})
        url = status.get("url")
        if gang.role is not Role.REPLICA or gang.ended_at is not None or gang.stopping:
            continue
        replicas = found.setdefault(gang.model, [])
        usable = (
            gang.lease_id in active and gang.epoch >= active[gang.lease_id] and status.get("ready") is True
        )
        if usable and isinstance(url, str) and url.startswith(("http://", "https://")):
            replicas.append((gang, url))
    scaled = _scaled(state)
    elsewhere = external_routes(state)
    for model in [*scaled, *elsewhere]:
        found.setdefault(model, [])
    models = []
    for model, replicas in sorted(found.items()):
        rows = [_own(g, url, said[g.id], _slots(served, g)) for g, url in replicas]
        version = max((r.version for r in rows), default=0)
        context = min((m.context for (_, m_id), m in served.items() if m_id == model), default=0)
        rows += [
            ReplicaRoute(
                name, spec.url, "", 0, spec.max_requests, engine="openai", model=spec.model, external=route
            )
            for name, spec, route in elsewhere.get(model, ())
        ]
        weights = _weights(state, [g for g, _ in replicas if g.draining_at is None], version, now)
        asleep = model in scaled and all(r.draining for r in rows if r.external is None)
        models.append(ModelRoute(model, version, context, rows, weights, asleep))
    return Routes(state.version, models, _others(state, now, gateway))


def _own(gang: Gang, url: str, status: Mapping[str, Any], slots: int) -> ReplicaRoute:
    """A replica of the fleet, as it said itself; `slots` are those that it was asked to have."""
    engine, has = status.get("engine"), status.get("slots")
    return ReplicaRoute(
        gang.id,
        url,
        gang.site,
        gang.model_version,
        has if type(has) is int and has > 0 else slots,
        gang.draining_at is not None,
        engine if isinstance(engine, str) and engine != DEFAULT_ENGINE else "",
    )


def _served(state: State) -> dict[tuple[str, str], ServedModel]:
    """The models of each service, by the service's name and theirs."""
    return {
        (w.name, model.id): model
        for w in state.workloads
        if isinstance(w.spec, ServiceSpec)
        for model in w.spec.models
    }


def _scaled(state: State) -> set[str]:
    """The models whose replicas follow demand, and that may have none."""
    wanted = [w.spec for w in state.workloads if isinstance(w.spec, ServiceSpec) and w.wanted]
    return {model.id for spec in wanted for model in spec.models if model.scale.on}


def _slots(served: dict[tuple[str, str], ServedModel], gang: Gang) -> int:
    model = served.get((gang.workload, gang.model))
    return model.slots if model is not None else 0


def _weights(state: State, gangs: list[Gang], newest: int, now: float) -> list[VersionWeight]:
    """While the newest version is held to its first share, that share; the others have the rest by their number."""
    others = Counter(g.model_version for g in gangs if g.model_version != newest)
    of_newest = [g for g in gangs if g.model_version == newest]
    if not others or not of_newest:
        return []
    spec = next((w.spec for w in state.workloads if w.name == of_newest[0].workload), None)
    rollout = rollout_of(spec, of_newest[0].model)
    reports = {r.gang_id: r for r in state.reports}
    if rollout.canary >= 1.0 or now >= held_until(rollout, newest, of_newest, reports, now):
        return []
    rest = (1.0 - rollout.canary) / others.total()
    shares = [VersionWeight(version, count * rest) for version, count in sorted(others.items())]
    return [*shares, VersionWeight(newest, rollout.canary)]


def _others(state: State, now: float, gateway: str) -> list[OthersLoad]:
    """What live gateways said last, those that are silent for long and the one that asks aside."""
    live = {g.id for g in state.gangs if g.role is Role.GATEWAY and g.ended_at is None and g.id != gateway}
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for report in state.reports:
        age_s = max(0.0, now - report.at)
        load = report.status.get("load")
        if report.gang_id not in live or age_s > LOAD_KEPT_S or not isinstance(load, dict):
            continue
        for replica in load:
            requests, tokens = load_of(report.status, replica)
            if requests:
                row = sums[replica]
                row[0], row[1], row[2] = row[0] + requests, row[1] + tokens, max(row[2], age_s)
    return [OthersLoad(g, int(n), int(t), round(age, 3)) for g, (n, t, age) in sorted(sums.items())]
