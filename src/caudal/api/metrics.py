"""`/metrics` of the control process: what runs and replicas say of themselves, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.responses import Response

from caudal.api.context import Context, context
from caudal.api.views import progress_of
from caudal.domain.gang import Gang, Role
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
    _replicas(out, state)
    return out.encode()


def _replicas(out: PrometheusText, state: State) -> None:
    """Every replica's figures under vLLM's names and labels; the gang's id tells one start from the next."""
    said = {r.gang_id: r.status for r in state.reports}
    live = sorted(
        (g for g in state.gangs if g.role is Role.REPLICA and g.ended_at is None), key=lambda g: g.id
    )
    rows = [(_labels(g, said[g.id]), figures_of(said[g.id])) for g in live if g.id in said]
    for name in names.REPLICA:
        found = [(labels, figures[name]) for labels, figures in rows if name in figures]
        if name in names.REPLICA_HISTOGRAMS:
            out.family(name, "histogram")
            for labels, figure in found:
                if isinstance(figure, list):
                    _histogram(out, name, figure, labels)
            continue
        out.family(name, "gauge" if name in names.REPLICA_GAUGES else "counter")
        for labels, figure in found:
            if isinstance(figure, float):
                out.sample(name, figure, **labels)


def figures_of(status: Mapping[str, Any]) -> dict[str, float | list[float]]:
    """The figures of a replica's report that are what they should be: numbers, or `[sum, count, le, n, ...]`."""
    given = status.get("metrics")
    found: dict[str, float | list[float]] = {}
    for name, value in given.items() if isinstance(given, Mapping) else ():
        if _is_number(value):
            found[name] = float(value)
        elif (
            isinstance(value, list) and len(value) >= 2 and not len(value) % 2 and all(map(_is_number, value))
        ):
            found[name] = [float(x) for x in value]
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _labels(gang: Gang, status: Mapping[str, Any]) -> dict[str, str]:
    engine = status.get("engine")
    return {
        "model_name": gang.model,
        "version": str(gang.model_version),
        "site": gang.site,
        "replica": gang.id,
        "engine": engine if isinstance(engine, str) else "",
    }


def _histogram(out: PrometheusText, name: str, figure: list[float], labels: dict[str, str]) -> None:
    total, count, *rows = figure
    for le, n in zip(rows[::2], rows[1::2], strict=True):
        out.sample(f"{name}_bucket", n, **labels, le=str(le))
    out.sample(f"{name}_bucket", count, **labels, le="+Inf")
    out.sample(f"{name}_sum", total, **labels)
    out.sample(f"{name}_count", count, **labels)


@router.get("/metrics")
def metrics(ctx: Annotated[Context, Depends(context)]) -> Response:
    """Every run's and every replica's newest figures."""
    return Response(render(ctx.store.read()), media_type=CONTENT_TYPE)
