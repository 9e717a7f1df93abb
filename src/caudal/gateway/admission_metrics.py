"""What admission did, counted: who waits, for how long, and what was refused."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable

from caudal.domain.key import Slo
from caudal.telemetry import names
from caudal.telemetry.prometheus import PrometheusText

WAIT_BUCKETS_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 300.0, 3600.0)


class AdmissionMetrics:
    """Counters of one gateway process. `queued` is set by whoever knows how many wait now."""

    def __init__(self) -> None:
        self.refused: Counter[tuple[Slo, str]] = Counter()
        self.queued: Callable[[], dict[Slo, int]] = dict
        self.at_once = 0  # requests that did not wait
        self._buckets = [0] * (len(WAIT_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def waited(self, seconds: float) -> None:
        """A request was let through after so long."""
        self._buckets[bisect_left(WAIT_BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def render(self, out: PrometheusText) -> None:
        """Its part of a scrape."""
        out.family(names.GATEWAY_QUEUED, "gauge")
        for slo, count in self.queued().items():
            out.sample(names.GATEWAY_QUEUED, count, **{"class": slo.value})
        out.family(names.GATEWAY_REFUSED, "counter")
        for (slo, code), count in sorted(self.refused.items()):
            out.sample(names.GATEWAY_REFUSED, count, **{"class": slo.value, "code": code})
        name = names.GATEWAY_WAIT
        out.family(name, "histogram")
        total = self.at_once
        for bound, count in zip((*WAIT_BUCKETS_S, "+Inf"), self._buckets, strict=True):
            total += count
            out.sample(f"{name}_bucket", total, le=str(bound))
        out.sample(f"{name}_sum", self._sum_s)
        out.sample(f"{name}_count", total)
