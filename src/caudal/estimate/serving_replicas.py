"""How many replicas a traffic curve needs under an SLO, and how they lie over providers of which one may go.

A replica takes as many requests a second as keep TTFT (95th percentile) and TPOT (mean) under their limits; the wait
is that of a queue in front of prefill. A curve is a row of moments, each with its requests a second. Knows no
start-up times: what a peak needs must be there when it comes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from caudal.domain.errors import Impossible, UsageError
from caudal.estimate.serving_answer import DoesNotFit, ServeEstimate, serve_estimates
from caudal.estimate.serving_case import Question

STEPS = 120
FULLEST = 0.95
"""Of what a replica could do: beyond it, waits are longer than any formula here says."""


@dataclass(frozen=True)
class Slo:
    """Limits in milliseconds; None is no limit."""

    ttft_p95_ms: float | None = None
    tpot_ms: float | None = None


@dataclass(frozen=True)
class Capacity:
    """What one replica takes under the SLO, and what limits it."""

    qps: float
    limit: str
    at: ServeEstimate


@dataclass(frozen=True)
class Spread:
    """Replicas over time and providers. `per_provider` carries the peak with one provider gone (if there are two or
    more); `needed` is per moment with none gone."""

    capacity: Capacity
    needed: tuple[int, ...]
    peak_qps: float
    mean_qps: float
    peak_replicas: int
    per_provider: int
    providers: int
    chips_per_replica: int

    @property
    def total(self) -> int:
        """Of all providers."""
        return self.per_provider * self.providers

    @property
    def mean_use(self) -> float:
        """Of what stands, on average over the curve."""
        return self.mean_qps / (self.total * self.capacity.qps)


def _kept(made: ServeEstimate, slo: Slo) -> str:
    """Empty where the SLO is kept, else what breaks it."""
    if made.used > FULLEST:
        return "throughput"
    if slo.tpot_ms is not None and made.tpot_ms.value > slo.tpot_ms:
        return "TPOT"
    if slo.ttft_p95_ms is not None and (made.ttft_p95_ms is None or made.ttft_p95_ms > slo.ttft_p95_ms):
        return "TTFT"
    return ""


def capacity(question: Question, slo: Slo) -> Capacity:
    """Of one replica. Raises `Impossible` where even a single request breaks the SLO."""
    most = serve_estimates([replace(question, load="max", batch=0.0, qps=0.0)])[0]
    if isinstance(most, DoesNotFit):
        raise Impossible(str(most), where=f"{question.model.name} on {question.chips} {question.chip.name}")
    top = most.out_tokens_per_s.value / question.osl
    tried = [top * float(part) for part in np.geomspace(1e-4, 1.0, STEPS)]
    made = serve_estimates([replace(question, load="qps", batch=0.0, qps=qps) for qps in tried])
    best: Capacity | None = None
    broken = ""
    for qps, found in zip(tried, made, strict=True):
        assert isinstance(found, ServeEstimate)
        broken = _kept(found, slo)
        if broken:
            break
        best = Capacity(qps, "", found)
    if best is None:
        first = made[0]
        assert isinstance(first, ServeEstimate)
        raise Impossible(
            f"{broken} breaks the SLO even at one request after another",
            where=f"{question.model.name} on {question.chips} {question.chip.name}",
            why=f"TTFT {first.ttft_p95_ms or 0:.0f} ms at the 95th percentile, TPOT {first.tpot_ms.value:.1f} ms",
            remedy="more chips a replica (--tp), a lower precision, a faster chip, or a looser SLO",
        )
    return replace(best, limit=broken or "throughput")


def spread(question: Question, curve_qps: Sequence[float], slo: Slo, providers: int) -> Spread:
    """Replicas for the curve. Raises `UsageError` for an empty or absurd one."""
    if not curve_qps:
        raise UsageError("the curve is empty", remedy="rows with a column qps")
    if any(not math.isfinite(v) or v < 0 for v in curve_qps) or max(curve_qps) > 1e9:
        raise UsageError("the curve has requests a second that cannot be", remedy="from 0 to 1e9")
    if not 1 <= providers <= 100:
        raise UsageError(f"{providers} providers", remedy="from 1 to 100")
    one = capacity(question, slo)
    needed = tuple(math.ceil(qps / one.qps - 1e-9) for qps in curve_qps)
    peak = max(1, *needed)
    left = providers - 1 if providers > 1 else 1
    return Spread(
        one, needed, max(curve_qps), sum(curve_qps) / len(curve_qps), peak, math.ceil(peak / left), providers,
        question.chips,
    )  # fmt: skip
