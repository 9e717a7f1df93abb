"""Keys of the front door and what was used with them: for the command line, and for gateways.

A secret leaves here once, in the answer to the call that made it; hashes go to gateways alone.
"""

from __future__ import annotations

import math
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from caudal.api.context import Context, context, guard_body, guard_gang, guard_token
from caudal.api.views import KeyView, ListView, NewKeyView, key_view, usage_views
from caudal.control import keys as control_keys
from caudal.control.keys import GatewayKeys
from caudal.domain.key import ANONYMOUS, HOUR_S, SECRET_PREFIX, KeyLimits, Slo, Usage, UsageBatch, UsageHour

router = APIRouter(tags=["keys"], dependencies=[Depends(guard_token)])
for_gateways = APIRouter(tags=["keys"], dependencies=[Depends(guard_gang)])
Ctx = Annotated[Context, Depends(context)]

SECRET_BYTES = 32
MAX_BATCHES = 16_384
MAX_ROWS = 4_096
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]+$")]
Count = Annotated[int, Field(ge=0, le=10**15)]


class Limits(BaseModel):
    """The limits that are given; the others stay as they are."""

    model_config = ConfigDict(extra="forbid")

    weight: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    budget_tokens: int | None = None
    budget_usd: float | None = None
    slo: Slo | None = None
    models: tuple[str, ...] | None = None

    def given(self) -> dict[str, Any]:
        """By the names of KeyLimits' fields."""
        return {name: value for name, value in self if value is not None}


class Hour(BaseModel):
    """One row of a batch, as domain/key.py:UsageHour."""

    key_id: Name
    model: Name
    hour: Annotated[int, Field(ge=0, le=10**11, multiple_of=HOUR_S)]
    requests: Count
    failed: Count
    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count
    picodollars: Annotated[int, Field(ge=0, le=10**17)] = 0  # of gateways that know none yet

    def value(self) -> UsageHour:
        """The same, as the store takes it."""
        used = Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.picodollars)
        return UsageHour(self.key_id, self.model, self.hour, self.requests, self.failed, used)


class Batch(BaseModel):
    """What a gateway hands over at once, as domain/key.py:UsageBatch."""

    source: Name
    seq: Count
    rows: Annotated[list[Hour], Field(max_length=MAX_ROWS)]

    def value(self) -> UsageBatch:
        """The same, as the store takes it."""
        return UsageBatch(self.source, self.seq, tuple(row.value() for row in self.rows))


@router.get("/keys")
def keys(ctx: Ctx, revoked: bool = False) -> ListView:
    """Every key that is not revoked; with `revoked` the others too."""
    found = [key_view(k) for k in ctx.store.api_keys() if revoked or not k.revoked_at]
    return ListView(shape="keys/1", items=sorted(found, key=lambda k: (k.name, k.created_at)))


@router.post("/keys", dependencies=[Depends(guard_body)])
def create(
    ctx: Ctx,
    name: Annotated[str, Body()],
    limits: Annotated[Limits | None, Body()] = None,
    expires_at: Annotated[float, Body()] = 0.0,
) -> NewKeyView:
    """Make a key; the answer holds its secret, which nothing will ever show again."""
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    key_id = f"key-{secrets.token_hex(6)}"
    wanted = KeyLimits(**limits.given()) if limits is not None else KeyLimits()
    key = control_keys.create(ctx.store, name, secret, key_id, wanted, expires_at, ctx.clock.now())
    return NewKeyView(key_view(key), secret)


@router.get("/keys/{which}")
def show(ctx: Ctx, which: str) -> KeyView:
    """One key, by its id or name."""
    return key_view(control_keys.find(ctx.store.api_keys(), which))


@router.post("/keys/{which}/revoke")
def revoke(ctx: Ctx, which: str) -> KeyView:
    """Have it refused from now on."""
    return key_view(control_keys.revoke(ctx.store, which, ctx.clock.now()))


@router.post("/keys/{which}/limits", dependencies=[Depends(guard_body)])
def limit(ctx: Ctx, which: str, limits: Annotated[Limits, Body()]) -> KeyView:
    """Change the limits that are given."""
    return key_view(control_keys.limit(ctx.store, which, limits.given(), ctx.clock.now()))


@router.get("/usage")
def usage(
    ctx: Ctx,
    key: str | None = None,
    since: Annotated[float, Query(ge=0)] = 0.0,
    until: Annotated[float, Query(ge=0)] = math.inf,
) -> ListView:
    """What was used by key, model and hour, in the hours that began within since <= hour < until (seconds since
    1970). `key` is an id or a name; `anonymous` is for requests without a key."""
    known = ctx.store.api_keys()
    key_id = key if key in (None, ANONYMOUS) else control_keys.find(known, key).id
    return ListView(shape="usage/1", items=usage_views(ctx.store.usage(since, until, key_id), known))


@for_gateways.get("/gateway/keys")
def gateway_keys(ctx: Ctx) -> GatewayKeys:
    """The keys that open the front door now, for gateways."""
    keys, now = ctx.store.api_keys(), ctx.clock.now()
    return control_keys.for_gateways(keys, now, control_keys.spent_this_month(ctx.store, keys, now))


@for_gateways.post("/gateway/usage", dependencies=[Depends(guard_body)])
def add_usage(
    ctx: Ctx, batches: Annotated[list[Batch], Body(embed=True, max_length=MAX_BATCHES)]
) -> dict[str, int]:
    """Take what a gateway counted. A batch that was taken before is not taken again; when this has answered,
    the gateway may forget them."""
    ctx.store.add_usage([batch.value() for batch in batches])
    return {"taken": len(batches)}
