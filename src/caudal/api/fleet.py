"""Status, workloads: what is wanted and what is."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends

from caudal.api.context import Context, context, guard_body, guard_token
from caudal.api.views import ListView, StatusView, WorkloadView, status_view, workload_view
from caudal.control import apply as control_apply
from caudal.control.explain import explain
from caudal.domain.errors import Impossible, NotFound
from caudal.domain.fleet import FleetSpec
from caudal.domain.snapshot import State
from caudal.domain.workload import Workload
from caudal.spec import Spec, from_dict

router = APIRouter(tags=["fleet"])
Ctx = Annotated[Context, Depends(context)]


@router.get("/version")
def version(ctx: Ctx) -> dict[str, str]:
    """The version of the control process; also the cheapest sign that it answers."""
    return {"shape": "version/1", "caudal": ctx.version}


@router.get("/status")
def status(ctx: Ctx) -> StatusView:
    """The whole fleet at a glance."""
    return status_view(ctx.store.read(), ctx.models.list(), ctx.clock.now(), ctx.version)


def find(state: State, name: str) -> Workload:
    """The workload of that name; NotFound names those that exist."""
    for workload in state.workloads:
        if workload.name == name:
            return workload
    known = ", ".join(sorted(w.name for w in state.workloads)) or "none yet"
    raise NotFound(
        f"no workload is called {name!r}", why=f"known: {known}", remedy="caudal status lists them"
    )


@router.get("/workloads/{name}")
def workload(name: str, ctx: Ctx) -> WorkloadView:
    """One run or service."""
    state = ctx.store.read()
    return workload_view(state, find(state, name))


@router.get("/workloads/{name}/explain")
def explained(name: str, ctx: Ctx) -> ListView:
    """Why it runs where it runs, or what it waits for."""
    state = ctx.store.read()
    seen = ctx.seen()
    statuses = seen.gangs if seen is not None else ()
    return ListView(shape="explain/1", items=list(explain(state, ctx.store, name, statuses)))


def _same_fleet(ctx: Context, values: list[Spec]) -> None:
    """Contracts and budgets may change at any time: they are read anew in each pass, and leases have their prices."""
    fleet = ctx.store.read().fleet
    given = [value for value in values if isinstance(value, FleetSpec)]
    if fleet is not None:
        given = [replace(value, contracts=fleet.contracts, budgets=fleet.budgets) for value in given]
    if any(value != fleet for value in given):
        raise Impossible(
            "the fleet itself changes only while no control process runs",
            why="its sites, and the addresses of API and gateway, are set up when it starts",
            remedy="end it (Ctrl-C), and start it with the new file: caudal up FILE",
        )


@router.post("/apply", dependencies=[Depends(guard_token), Depends(guard_body)])
def apply(ctx: Ctx, specs: Annotated[list[dict[str, Any]], Body(embed=True)]) -> ListView:
    """Make the fleet want these; all of them or, on any error, none."""
    values = [from_dict(spec, where=f"specs[{i}]") for i, spec in enumerate(specs)]
    _same_fleet(ctx, values)
    changes = control_apply.apply(ctx.store, values, ctx.clock.now())
    ctx.poke()
    return ListView(shape="applied/1", items=list(changes))


@router.post("/leave", dependencies=[Depends(guard_token)])
def leave(ctx: Ctx) -> dict[str, str]:
    """End this control process and leave all that runs running, for the one that asks to take it over."""
    ctx.leave()
    return {"shape": "leave/1", "caudal": ctx.version}


@router.post("/workloads/{name}/stop", dependencies=[Depends(guard_token)])
def stop(name: str, ctx: Ctx) -> WorkloadView:
    """Want it no longer: its gangs are stopped in order, a run keeps its last checkpoint."""
    control_apply.stop(ctx.store, name, ctx.clock.now())
    ctx.poke()
    state = ctx.store.read()
    return workload_view(state, find(state, name))
