"""What nodes call: to change their join token, and to report. Each call takes the caller's own token."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Request

from caudal.api.context import Context, context, guard_body
from caudal.control import nodes
from caudal.domain.errors import Unauthorized

router = APIRouter(tags=["nodes"])
Ctx = Annotated[Context, Depends(context)]
LeaseId = Annotated[str, Path(max_length=300)]


@router.post("/nodes/{lease_id}/join", dependencies=[Depends(guard_body)])
def join(
    lease_id: LeaseId, request: Request, ctx: Ctx, body: Annotated[dict[str, Any], Body()]
) -> dict[str, str]:
    """Change a join token, once, for the node's own. The body holds a `nonce` that the node chose; asking again with the
    same one gives the same answer, and where the head of its cluster is, as soon as that is known."""
    return nodes.join(ctx.store, _secret(ctx), lease_id, _given(request), body.get("nonce"), ctx.clock.now())


@router.post("/nodes/{lease_id}/report", dependencies=[Depends(guard_body)])
def report(
    lease_id: LeaseId, request: Request, ctx: Ctx, body: Annotated[dict[str, Any], Body()]
) -> dict[str, bool]:
    """Take a node's report (node/agent.py says what is in it); one that failed is given back soon."""
    nodes.accept(ctx.store, _secret(ctx), lease_id, _given(request), body, ctx.clock.now())
    if body["status"].get("state") == "failed":
        ctx.poke()
    return {"taken": True}


def _given(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ").strip()


def _secret(ctx: Context) -> str:
    if not ctx.token:
        raise Unauthorized("this control API has no secret")
    return ctx.token
