"""The models of the store."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from caudal.api.context import Context, context
from caudal.api.views import ListView, model_views

router = APIRouter(tags=["models"])
Ctx = Annotated[Context, Depends(context)]


@router.get("/models")
def models(ctx: Ctx) -> ListView:
    """Every model, with how many replicas answer for it."""
    return ListView(shape="models/1", items=list(model_views(ctx.store.read(), ctx.models.list())))
