"""What happened, as a list or as a stream; and the curves of runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.requests import Request

from caudal.api.context import Context, context
from caudal.api.fleet import find
from caudal.api.views import ListView
from caudal.control.reports import curve_of
from caudal.domain.event import Event

router = APIRouter(tags=["events"])
Ctx = Annotated[Context, Depends(context)]

POLL_S = 0.3
KEEPALIVE_S = 15.0


@router.get("/events")
def events(
    ctx: Ctx,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 200,
    subject: str | None = None,
    newest: bool = False,
) -> ListView:
    """Events after a seq, in order; with `newest`, the last `limit` of them."""
    if newest:
        after = max(after, ctx.store.last_event_seq() - limit)
    return ListView(shape="events/1", items=list(ctx.store.events(after, limit, subject)))


def _frame(event: Event) -> str:
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {msgspec.json.encode(event).decode()}\n\n"


async def _stream(request: Request, ctx: Context, after: int, subject: str | None) -> AsyncIterator[str]:
    quiet_s = 0.0
    yield ": connected\n\n"
    while not await request.is_disconnected():
        batch = await run_in_threadpool(ctx.store.events, after, 500, subject)
        for event in batch:
            after = event.seq
            yield _frame(event)
        quiet_s = 0.0 if batch else quiet_s + POLL_S
        if quiet_s >= KEEPALIVE_S:
            quiet_s = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(POLL_S)


@router.get("/events/stream")
async def stream(
    request: Request,
    ctx: Ctx,
    after: Annotated[int, Query(ge=0)] = 0,
    subject: str | None = None,
) -> StreamingResponse:
    """Events as they come (server-sent events). A client that reconnects sends Last-Event-ID."""
    last = request.headers.get("last-event-id", "")
    start = int(last) if last.isdigit() else after
    return StreamingResponse(_stream(request, ctx, start, subject), media_type="text/event-stream")


@router.get("/runs/{run}/points")
def points(
    run: str,
    ctx: Ctx,
    after: Annotated[int, Query(ge=-1)] = -1,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
) -> ListView:
    """A run's curve: one point per committed round or evaluation, of its newest generation."""
    workload = find(ctx.store.read(), run)
    curve = curve_of(run, workload.generation)
    return ListView(shape="points/1", items=list(ctx.store.points(curve, after, limit)))
