"""What is asked of each model through this gateway: requests at once, smoothed, their peaks, and since when there are none.

Counted from a request's arrival to its last byte, wherever it waits meanwhile. Knows nothing of replicas, and nothing of
how many there should be: policy/scaling does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

SMOOTH_S = 5.0
"""The number of requests is smoothed over so many seconds: what passes sooner starts no replica."""

MAX_PEAKS = 24
"""Peaks that are told of a model; a list in a report may have 64 numbers."""

MAX_MODELS = 64
"""Models in a report: control takes no more keys."""

FORGET_S = 86_400.0
"""The longest time that a peak may count for (`idle_s`)."""

LEAST = 0.01
"""A smoothed load below this is none."""


class Peaks:
    """The largest load of any time until now, from few numbers: each entry is larger than all that came after it. Where
    they become too many two are made one, with the larger load and the later time: peaks are overstated, never
    forgotten."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float]] = []  # time and load, the oldest and largest first

    def add(self, now: float, load: float) -> None:
        """The load is this, now."""
        rows = self._rows
        while rows and rows[-1][1] <= load:
            rows.pop()
        if load >= LEAST:
            rows.append((now, load))
        while rows and now - rows[0][0] > FORGET_S:
            del rows[0]
        if len(rows) > MAX_PEAKS:
            # the last one is kept as it is: it is the load of now
            nearest = min(range(len(rows) - 2), key=lambda i: rows[i][1] / rows[i + 1][1])
            rows[nearest : nearest + 2] = [(rows[nearest + 1][0], rows[nearest][1])]

    def told(self, now: float) -> list[float]:
        """Age in seconds and load of each, one after the other."""
        return [n for at, load in self._rows for n in (round(now - at, 2), round(load, 3))]


class ModelDemand:
    """One model's. `ended_at` None: no request of it has ended yet."""

    __slots__ = ("_at", "_load", "_now", "ended_at", "peaks", "requests")

    def __init__(self, now: Callable[[], float]) -> None:
        self.requests = 0
        self.ended_at: float | None = None
        self.peaks = Peaks()
        self._load = 0.0
        self._now = now
        self._at = now()

    def load(self, now: float) -> float:
        """The number of requests, smoothed, as of now."""
        if now > self._at:
            self._load = self.requests + (self._load - self.requests) * math.exp((self._at - now) / SMOOTH_S)
            self._at = now
        return self._load

    def begun(self) -> None:
        """There is one request more from now on."""
        now, requests = self._now(), self.requests
        if now > self._at:  # `load`, which is done twice for every request
            self._load = requests + (self._load - requests) * math.exp((self._at - now) / SMOOTH_S)
            self._at = now
        self.requests = requests + 1

    def ended(self) -> None:
        """One is over."""
        now, requests = self._now(), self.requests
        if now > self._at:
            self._load = requests + (self._load - requests) * math.exp((self._at - now) / SMOOTH_S)
            self._at = now
        self.requests = requests - 1
        self.ended_at = now


class Demand:
    """All models'. `on_news` is called when a model that sleeps is asked for."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.on_news: Callable[[], None] = lambda: None
        self._now = now
        self._models: dict[str, ModelDemand] = {}

    def begun(self, model: str, asleep: bool = False) -> ModelDemand:
        """A request of a model came; its `ended` is to be called when it is over."""
        row = self._models.get(model)
        if row is None:
            row = self._models[model] = ModelDemand(self._now)
        row.begun()
        if asleep and row.requests == 1:
            self.on_news()
        return row

    def ended(self, model: str) -> None:
        """A request of a model that had begun is over."""
        self._models[model].ended()

    def waits_for(self, model: str) -> bool:
        """Whether there are requests of a model."""
        row = self._models.get(model)
        return row is not None and row.requests > 0

    def report(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """What control is told, by model: requests, smoothed, seconds since the last one ended (-1: none has), and the
        peaks. The busiest and then the latest models, should they be too many to tell."""
        now = self._now()
        told: dict[str, list[float]] = {}
        peaks: dict[str, list[float]] = {}
        order = sorted(self._models.items(), key=lambda item: (-item[1].requests, -(item[1].ended_at or 0.0)))
        for number, (model, row) in enumerate(order):
            load = row.load(now)
            row.peaks.add(now, load)
            if number >= MAX_MODELS:
                if not row.requests and now - (row.ended_at or now) > FORGET_S:
                    del self._models[model]
                continue
            idle_s = 0.0 if row.requests else -1.0 if row.ended_at is None else now - row.ended_at
            told[model] = [row.requests, round(load, 3), round(idle_s, 2)]
            peaks[model] = row.peaks.told(now)
        return told, peaks
