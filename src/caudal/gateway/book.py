"""What a gateway's parent knows of its processes, and what it tells control of all together. Pure: times come in.

Numbers that only grow are kept of processes that are gone, so that the sums never fall; the rest goes with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caudal.gateway.demand import FORGET_S, MAX_MODELS, Peaks
from caudal.gateway.sums import counted, sum_of, sum_of_texts

GROWING = ("requests", "hedged")


class Book:
    """The last report of each of so many processes. Times are in seconds, of one clock."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.past = b""  # what the processes counted that are gone, as metrics
        self._rows: dict[int, Mapping[str, Any]] = {}
        self._grown = dict.fromkeys(GROWING, 0)
        self._peaks: dict[str, Peaks] = {}
        self._asked_at: dict[str, float] = {}
        self._began = False

    def heard(self, number: int, report: Mapping[str, Any]) -> bool:
        """A process said this. True where control should know at once."""
        before = self._rows.get(number, {})
        self._rows[number] = report
        woken = set(report.get("waking", ())) - set(before.get("waking", ()))
        return bool(woken) or before.get("ready") is not report.get("ready")

    def gone(self, number: int) -> None:
        """It ended."""
        row = self._rows.pop(number, {})
        for key in GROWING:
            self._grown[key] += row.get(key, 0)
        if "metrics" in row:
            self.past = counted(sum_of_texts([self.past, row["metrics"].encode()]))

    @property
    def ready(self) -> bool:
        """Whether the port answers as it should: once all listened, one that does is enough."""
        listening = sum(row.get("ready") is True for row in self._rows.values())
        self._began = self._began or listening == self.processes
        return self._began and listening > 0

    def report(self, now: float) -> dict[str, Any]:
        """What control is told."""
        rows = [{key: row[key] for key in row if key != "spent"} for row in self._rows.values()]
        told = sum_of(rows)
        for row in self._rows.values():
            if "spent" in row:
                told["spent"] = row["spent"]  # all have one book
        for key, before in self._grown.items():
            told[key] += before
        told["ready"] = self.ready
        told["demand"], told["peaks"] = self._demand(now, told["demand"])
        return told

    def _demand(
        self, now: float, demand: Mapping[str, list[float]]
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """The demand with what processes knew that are gone, and the peaks of the whole."""
        for model, (requests, _, idle_s) in demand.items():
            if requests or idle_s >= 0:
                asked_at = now if requests else now - idle_s
                self._asked_at[model] = max(self._asked_at.get(model, asked_at), asked_at)
        for model in {*demand, *self._peaks}:
            self._peaks.setdefault(model, Peaks()).add(now, demand.get(model, (0, 0.0, 0.0))[1])
        self._forget(now, demand)
        told: dict[str, list[float]] = {}
        for model in [
            *demand,
            *sorted(set(self._asked_at) - set(demand), key=self._asked_at.__getitem__)[::-1],
        ]:
            requests, load, idle_s = demand.get(model, (0, 0.0, -1.0))
            if not requests and model in self._asked_at:
                idle_s = round(now - self._asked_at[model], 2)
            told[model] = [requests, load, idle_s]
        told = dict(list(told.items())[:MAX_MODELS])
        return told, {model: self._peaks[model].told(now) for model in told if model in self._peaks}

    def _forget(self, now: float, demand: Mapping[str, object]) -> None:
        for model in [m for m, at in self._asked_at.items() if m not in demand and now - at > FORGET_S]:
            del self._asked_at[model]
        for model in [m for m, p in self._peaks.items() if m not in demand and not p.told(now)]:
            del self._peaks[model]
