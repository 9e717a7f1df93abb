"""Counters of one gateway process and their Prometheus text. Knows no models but by name, and names them
only when the fleet serves them, so that clients cannot make up labels without end."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from caudal.gateway.admission_metrics import AdmissionMetrics
from caudal.telemetry import names
from caudal.telemetry.prometheus import PrometheusText

FIRST_BYTE_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


RESCUES = ("failed", "impossible", "whole")
PAUSE_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)


class Histogram:
    """Seconds, counted by bounds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self._buckets[bisect_left(self._bounds, seconds)] += 1
        self._sum_s += seconds

    def render(self, out: PrometheusText, name: str) -> None:
        """Its family."""
        out.family(name, "histogram")
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._buckets, strict=True):
            total += count
            out.sample(f"{name}_bucket", total, le=str(bound))
        out.sample(f"{name}_sum", self._sum_s)
        out.sample(f"{name}_count", total)


class Metrics:
    """What is counted while requests pass."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.retries = 0
        self.broken_streams = 0
        self.streams = 0
        self.requests = 0
        self.rescues: Counter[str] = Counter(dict.fromkeys(RESCUES, 0))
        self._first_byte = Histogram(FIRST_BYTE_BUCKETS_S)
        self.first_byte = (
            self._first_byte.observe
        )  # the first byte of a good answer went out, after so many seconds
        self._pause = Histogram(PAUSE_BUCKETS_S)
        self.admission = AdmissionMetrics()

    def answered(self, model: str, status: int) -> None:
        """An answer was given (its status, at least)."""
        self.requests += 1
        self.answers[model, status] += 1

    def rescued(self, outcome: str) -> None:
        """A stream that lost its replica is over, with one of RESCUES."""
        self.rescues[outcome] += 1

    def paused(self, seconds: float) -> None:
        """It said nothing for so long before it went on."""
        self._pause.observe(seconds)

    def render(
        self,
        connections: int,
        models: Iterable[tuple[str, int, int]],
        wrong_keys: int = 0,
        hedged: int = 0,
    ) -> bytes:
        """The text for a scrape; `models` are (id, replicas ready, requests in flight), `hedged` how many requests
        were sent to a second replica."""
        out = PrometheusText()
        out.family(names.GATEWAY_REQUESTS, "counter")
        for (model, status), count in sorted(self.answers.items()):
            out.sample(names.GATEWAY_REQUESTS, count, model=model, status=str(status))
        for name, count in (
            (names.GATEWAY_RETRIES, self.retries),
            (names.GATEWAY_BROKEN_STREAMS, self.broken_streams),
            (names.GATEWAY_WRONG_KEYS, wrong_keys),
            (names.GATEWAY_HEDGES, hedged),
        ):
            out.family(name, "counter")
            out.sample(name, count)
        for name, value in (
            (names.GATEWAY_PROCESSES, 1),
            (names.GATEWAY_CONNECTIONS, connections),
            (names.GATEWAY_STREAMS, self.streams),
        ):
            out.family(name, "gauge")
            out.sample(name, value)
        rows = list(models)
        out.family(names.GATEWAY_REPLICAS, "gauge")
        for model, replicas, _ in rows:
            out.sample(names.GATEWAY_REPLICAS, replicas, model=model)
        out.family(names.GATEWAY_IN_FLIGHT, "gauge")
        for model, _, in_flight in rows:
            out.sample(names.GATEWAY_IN_FLIGHT, in_flight, model=model)
        out.family(names.GATEWAY_RESCUES, "counter")
        for outcome, count in sorted(self.rescues.items()):
            out.sample(names.GATEWAY_RESCUES, count, outcome=outcome)
        self._first_byte.render(out, names.GATEWAY_FIRST_BYTE)
        self._pause.render(out, names.GATEWAY_RESCUE_PAUSE)
        self.admission.render(out)
        return out.encode()
