"""Where gateways find replicas: those that said they can answer, and are not on their way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caudal.control.external import ExternalRoute, external_routes
from caudal.domain.fleet import LeaseState
from caudal.domain.gang import Gang, Role
from caudal.domain.snapshot import State
from caudal.domain.workload import ServiceSpec

DEFAULT_ENGINE = "llama.cpp"


@dataclass(frozen=True, slots=True)
class ReplicaRoute:
    """One replica that answers at `url`. `engine` is what its engine calls itself, empty for llama.cpp; `slots`
    how many requests it works on at once (0: not known). With `external` it is somebody else's address, where the
    model is called `model`."""

    gang: str
    url: str
    site: str
    model: str = ""
    engine: str = ""
    slots: int = 0
    external: ExternalRoute | None = None


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """One model with the replicas of its newest version that answers. `context` is in tokens, prompt plus
    reply."""

    id: str
    version: int
    context: int
    replicas: list[ReplicaRoute]


@dataclass(frozen=True, slots=True)
class Routes:
    """Everything that a gateway needs to know. `version` rises whenever it may have changed."""

    version: int
    models: list[ModelRoute]


def routes(state: State) -> Routes:
    """The routes of a state. A model is there as soon as a replica of it was started; one whose replicas are
    all starting, or coming back, has none to go to yet, which is not the same as being unknown."""
    active = {x.id: x.epoch for x in state.leases if x.state is LeaseState.ACTIVE}
    said = {r.gang_id: r.status for r in state.reports}
    contexts = _contexts(state)
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
    elsewhere = external_routes(state)
    for model in elsewhere:
        found.setdefault(model, [])
    models = []
    for model, replicas in sorted(found.items()):
        version = max((gang.model_version for gang, _ in replicas), default=0)
        answering = [_own(g, url, said[g.id]) for g, url in replicas if g.model_version == version]
        answering += [
            ReplicaRoute(name, spec.url, "", spec.model, "openai", spec.max_requests, route)
            for name, spec, route in elsewhere.get(model, ())
        ]
        models.append(ModelRoute(model, version, contexts.get(model, 0), answering))
    return Routes(state.version, models)


def _own(gang: Gang, url: str, status: Mapping[str, Any]) -> ReplicaRoute:
    engine, slots = status.get("engine"), status.get("slots")
    return ReplicaRoute(
        gang.id,
        url,
        gang.site,
        engine=engine if isinstance(engine, str) and engine != DEFAULT_ENGINE else "",
        slots=slots if isinstance(slots, int) and slots > 0 else 0,
    )


def _contexts(state: State) -> dict[str, int]:
    """The context of each served model; where two services serve the same, the smaller one."""
    contexts: dict[str, int] = {}
    for workload in state.workloads:
        if isinstance(workload.spec, ServiceSpec):
            for model in workload.spec.models:
                contexts[model.id] = min(contexts.get(model.id, model.context), model.context)
    return contexts
