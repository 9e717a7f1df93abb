"""What gangs say and what they printed; where the gateway finds replicas."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query

from caudal.api.context import Context, context, guard_body, guard_gang, guard_token
from caudal.api.views import ListView, live_gangs
from caudal.control import reports
from caudal.control.routes import Routes, routes
from caudal.domain.errors import NotFound

router = APIRouter(tags=["gangs"])
Ctx = Annotated[Context, Depends(context)]


@router.get("/gangs")
def gangs(ctx: Ctx) -> ListView:
    """Every gang that is not over."""
    return ListView(shape="gangs/1", items=list(live_gangs(ctx.store.read())))


@router.post("/gangs/{gang_id}/report", dependencies=[Depends(guard_gang), Depends(guard_body)])
def report(gang_id: str, ctx: Ctx, body: Annotated[dict[str, Any], Body()]) -> dict[str, bool]:
    """Take a gang's report (telemetry/report.py says what is in it). Somebody waits for a model that is asked to wake."""
    reports.accept(ctx.store, gang_id, body, ctx.clock.now())
    if body["status"].get("waking"):
        ctx.poke()
    return {"taken": True}


@router.get("/routes", dependencies=[Depends(guard_gang)])
def current_routes(ctx: Ctx, gateway: Annotated[str, Query(max_length=200)] = "") -> Routes:
    """The replicas that answer, for gateways. `gateway` is the gang that asks: what others have in flight leaves
    its own requests out."""
    return routes(ctx.store.read(), ctx.clock.now(), gateway)


@router.get("/gangs/{name}/logs", dependencies=[Depends(guard_token)])
def logs(name: str, ctx: Ctx, tail_bytes: Annotated[int, Query(ge=1, le=4 << 20)] = 65536) -> dict[str, str]:
    """The end of what a gang printed. `name` is a gang's id, or a slot (its newest gang), or a workload
    (its first slot)."""
    state = ctx.store.read()
    matching = [g for g in state.gangs if name in (g.id, g.slot, g.workload)]
    if not matching:
        known = ", ".join(sorted({g.slot for g in state.gangs})) or "none yet"
        raise NotFound(f"no gang, slot or workload is called {name!r}", why=f"slots: {known}")
    gang = sorted(matching, key=lambda g: (g.ended_at is None, g.created_at, g.id))[-1]
    return {"shape": "logs/1", "gang": gang.id, "text": ctx.drivers[gang.site].logs(gang.id, tail_bytes)}
