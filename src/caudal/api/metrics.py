"""`/metrics` of the control process: what runs say of themselves, for Prometheus."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from caudal.api.context import Context, context
from caudal.api.views import progress_of
from caudal.domain.snapshot import State
from caudal.domain.workload import TrainSpec
from caudal.telemetry import names
from caudal.telemetry.prometheus import CONTENT_TYPE, PrometheusText

router = APIRouter(tags=["metrics"])

SHOWN = {
    names.RUN_ROUND: ("gauge", "round"),
    names.RUN_TOKENS: ("counter", "tokens_done"),
    names.RUN_SPEED: ("gauge", "tokens_per_s"),
    names.RUN_LOSS: ("gauge", "loss"),
    names.RUN_VAL_LOSS: ("gauge", "val_loss"),
    names.RUN_BITS_PER_BYTE: ("gauge", "val_bits_per_byte"),
    names.RUN_WAIT: ("gauge", "wait_share"),
    names.RUN_GOODPUT: ("gauge", "goodput"),
    names.RUN_MFU: ("gauge", "mfu"),
    names.RUN_WIRE: ("counter", "wire_bytes_total"),
}
"""Metric → its type, and the key of a coordinator's report."""


def render(state: State) -> bytes:
    """The text for a scrape. What a run has not said yet is left out."""
    runs = [w for w in state.workloads if isinstance(w.spec, TrainSpec)]
    said = {run.name: progress_of(state, run) for run in runs}
    out = PrometheusText()
    for name, (kind, key) in SHOWN.items():
        out.family(name, kind)
        for run, progress in said.items():
            value = progress.get(key)
            if isinstance(value, int | float):
                out.sample(name, value, run=run)
    out.family(names.RUN_SITES, "gauge")
    for run, progress in said.items():
        sites = progress.get("sites")
        if isinstance(sites, dict):
            out.sample(names.RUN_SITES, len(sites), run=run)
    return out.encode()


@router.get("/metrics")
def metrics(ctx: Annotated[Context, Depends(context)]) -> Response:
    """Every run's newest figures."""
    return Response(render(ctx.store.read()), media_type=CONTENT_TYPE)
