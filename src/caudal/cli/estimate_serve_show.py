"""How estimates of serving are printed: a few lines, a table, a line of blocks, JSON. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from caudal.cli.output import console, plain, table
from caudal.cli.spark import sparkline
from caudal.estimate.ranges import Range
from caudal.estimate.serving_answer import ServeEstimate
from caudal.estimate.serving_replicas import Slo, Spread


def _load_words(found: ServeEstimate) -> str:
    q = found.question
    return {
        "max": "as many requests as fit", "static": f"one batch of {q.batch:g}",
        "concurrency": f"{q.batch:g} clients", "qps": f"{q.qps:g} requests/s",
        "prefill": "prompts only", "decode": "decoding only",
    }[q.load]  # fmt: skip


def _range(found: Range | None, unit: str) -> str:
    if found is None:
        return "grows without end"
    return f"[bold]{found.value:,.4g} {unit}[/] (80 %: {found.low:,.4g} to {found.high:,.4g})"


def serve_dict(found: ServeEstimate) -> dict[str, Any]:
    """What `--json` prints."""
    q = found.question
    return {
        "model": q.model.name, "parameters": q.model.parameters, "chip": q.chip.name, "chips": q.chips, "tp": q.tp,
        "ep": q.ep, "replicas": q.replicas, "engine": q.engine, "engine_year": q.year, "load": q.load, "isl": q.isl,
        "osl": q.osl, "concurrency": q.batch or None, "qps": q.qps or None, "numbers": asdict(q.numbers),
        "out_tokens_per_s": asdict(found.out_tokens_per_s), "in_tokens_per_s": found.in_tokens_per_s,
        "ttft_ms": None if found.ttft_ms is None else asdict(found.ttft_ms), "ttft_p95_ms": found.ttft_p95_ms,
        "tpot_ms": asdict(found.tpot_ms), "prefill_ms": found.prefill_ms,
        "sequences_per_replica": found.sequences, "most_sequences_per_replica": found.most_sequences,
        "used": found.used, "overloaded": found.overloaded, "weights_gib_per_device": found.weights_gib,
        "free_gib_per_device": found.free_gib, "kv_gib_per_sequence": found.kv_gib_per_sequence,
        "items_ms": found.items_ms, "notes": list(found.notes),
    }  # fmt: skip


def show_serve(found: ServeEstimate, *, explain: bool) -> None:
    """The answer in a few lines; an iteration item by item where that is wanted."""
    out, q = console(), found.question
    ways = f"tp {q.tp}" + (f", ep {q.ep}" if q.ep > 1 else "")
    out.print(
        f"[bold]{plain(q.model.name)}[/]: {q.model.parameters / 1e9:.4g} B on {q.chips} {q.chip.name}, {ways}, "
        f"{q.engine} ({q.year:.1f}), {q.isl} in, {q.osl} out, {_load_words(found)}"
    )
    out.print(f"  tokens/s  {_range(found.out_tokens_per_s, 'out')}, {found.in_tokens_per_s:,.0f} in")
    p95 = "" if found.ttft_p95_ms is None else f"   95th percentile about {found.ttft_p95_ms:,.0f} ms"
    out.print(f"  TTFT      {_range(found.ttft_ms, 'ms')}{p95}")
    out.print(f"  TPOT      {_range(found.tpot_ms, 'ms')}")
    out.print(
        f"  memory    weights {found.weights_gib:.1f} GiB a device; {found.free_gib:.1f} GiB for the cache: "
        f"{found.most_sequences:,.0f} sequences a replica at most, {found.sequences:,.1f} in flight"
    )
    out.print(f"  used      {found.used:.0%} of the most it could answer")
    for note in found.notes:
        out.print(f"  note      {plain(note)}")
    if not explain:
        return
    total = sum(found.items_ms.values())
    items = sorted(((ms, name) for name, ms in found.items_ms.items() if ms > 0), reverse=True)
    out.print(
        table(("mean iteration", "ms", "part"), [(n, f"{ms:.4g}", f"{ms / total:.1%}") for ms, n in items])
    )


def spread_dict(made: Spread, slo: Slo) -> dict[str, Any]:
    """What `--json` prints for a curve."""
    return {
        "slo": asdict(slo), "qps_per_replica": made.capacity.qps, "limited_by": made.capacity.limit,
        "at_that_load": serve_dict(made.capacity.at), "peak_qps": made.peak_qps, "mean_qps": made.mean_qps,
        "peak_replicas": made.peak_replicas, "providers": made.providers, "replicas_per_provider": made.per_provider,
        "replicas": made.total, "chips": made.total * made.chips_per_replica, "mean_use": made.mean_use,
        "needed": list(made.needed),
    }  # fmt: skip


def show_spread(made: Spread, curve: Sequence[float], slo: Slo) -> None:
    """Replicas for a curve."""
    out, at = console(), made.capacity.at
    q = at.question
    limits = [
        f"TTFT {slo.ttft_p95_ms:g} ms (95th percentile)" if slo.ttft_p95_ms else "",
        f"TPOT {slo.tpot_ms:g} ms" if slo.tpot_ms else "",
    ]
    said = " and ".join(part for part in limits if part) or "no SLO"
    out.print(
        f"[bold]{plain(q.model.name)}[/] on replicas of {made.chips_per_replica} {q.chip.name}, {q.isl} in, "
        f"{q.osl} out, {said}"
    )
    ttft = f"TTFT {at.ttft_p95_ms:,.0f} ms (95th percentile), " if at.ttft_p95_ms else ""
    out.print(
        f"  a replica takes [bold]{made.capacity.qps:.3g} requests/s[/], limited by {made.capacity.limit}; there "
        f"{ttft}TPOT {at.tpot_ms.value:.1f} ms (80 %: {at.tpot_ms.low:.1f} to {at.tpot_ms.high:.1f})"
    )
    out.print(f"  requests/s  {sparkline(curve)}  peak {made.peak_qps:,.4g}, mean {made.mean_qps:,.4g}")
    out.print(f"  replicas    {sparkline(made.needed)}  peak {made.peak_replicas:,}")
    gone = f", so that the peak survives any one of {made.providers}" if made.providers > 1 else ""
    out.print(
        f"  [bold]{made.per_provider:,} replicas a provider[/]{gone}: {made.total:,} in all, "
        f"{made.total * made.chips_per_replica:,} chips, used {made.mean_use:.0%} on average"
    )
    for note in at.notes:
        out.print(f"  note        {plain(note)}")
