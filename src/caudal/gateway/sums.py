"""What several processes of one gateway say, made one: reports to control, and texts of metrics. Pure.

A model's peaks are not added: those of the processes came at different times. Who has the sums of the loads finds
the peaks of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from caudal.telemetry import names

MAX_TOLD = 64
"""Keys that control takes in one object."""

SAME_FOR_ALL = frozenset({names.GATEWAY_REPLICAS})
"""Gauges that every process has the same of, or will in a moment: the largest counts."""


def sum_of(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of several processes' reports as those of one gateway (see telemetry/report)."""
    return {
        "requests": sum(r.get("requests", 0) for r in reports),
        "streams": sum(r.get("streams", 0) for r in reports),
        "hedged": sum(r.get("hedged", 0) for r in reports),
        "load": _loads(r.get("load", {}) for r in reports),
        "demand": _demands(r.get("demand", {}) for r in reports),
        "waking": sorted({model for r in reports for model in r.get("waking", ())})[:MAX_TOLD],
    }


def _loads(rows: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """By replica: requests and tokens in flight are added; its speed is the mean of those that were measured, by
    requests in flight where there are any."""
    found: dict[str, list[Sequence[float]]] = {}
    for loads in rows:
        for gang, load in loads.items():
            found.setdefault(gang, []).append(load)
    told = {
        gang: [sum(x[0] for x in loads), sum(x[1] for x in loads), _speed(loads)]
        for gang, loads in found.items()
    }
    busiest = sorted(told, key=lambda gang: (-told[gang][0], gang))[:MAX_TOLD]
    return {gang: told[gang] for gang in busiest}


def _speed(loads: Sequence[Sequence[float]]) -> float:
    measured = [(max(x[0], 0.01), x[2]) for x in loads if x[2] > 0]
    weight = sum(w for w, _ in measured)
    return round(sum(w * speed for w, speed in measured) / weight, 1) if measured else 0.0


def _demands(rows: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """By model: requests and their smoothed number are added; it is idle since the last one anywhere ended."""
    found: dict[str, list[Sequence[float]]] = {}
    for demand in rows:
        for model, row in demand.items():
            found.setdefault(model, []).append(row)
    told: dict[str, list[float]] = {}
    for model, rows_of in found.items():
        idle = min((x[2] for x in rows_of if x[2] >= 0), default=-1.0)
        told[model] = [sum(x[0] for x in rows_of), round(sum(x[1] for x in rows_of), 3), idle]
    busiest = sorted(told, key=lambda model: (-told[model][0], told[model][2] < 0, told[model][2], model))
    return {model: told[model] for model in busiest[:MAX_TOLD]}


def sum_of_texts(texts: Iterable[bytes]) -> bytes:
    """Several scrapes as one: samples of the same name and labels are added. Lines that are no samples are
    dropped, but for what begins a family."""
    families: dict[str, list[str]] = {}
    values: dict[str, dict[str, float]] = {}
    for text in texts:
        family = ""
        for line in text.decode("utf-8", "replace").split("\n"):
            if line.startswith("# "):
                family = _family(line, family)
                begin = families.setdefault(family, [])
                if len(begin) < 2 and line not in begin:
                    begin.append(line)
            elif line and family:
                _add(values.setdefault(family, {}), line, largest=family in SAME_FOR_ALL)
    lines: list[str] = []
    for family, begin in families.items():
        lines += begin
        lines += [f"{sample} {_plain(value)}" for sample, value in values.get(family, {}).items()]
    return ("\n".join(lines) + "\n").encode()


def counted(text: bytes) -> bytes:
    """What of a scrape outlives its process: counters and histograms, not gauges."""
    kept: list[str] = []
    keeps = False
    held = ""
    for line in text.decode("utf-8", "replace").split("\n"):
        if line.startswith("# HELP "):
            keeps, held = False, line
        elif line.startswith("# TYPE "):
            keeps = line.rpartition(" ")[2] in ("counter", "histogram")
            kept += [held, line] if keeps else []
        elif line and keeps:
            kept.append(line)
    return ("\n".join(kept) + "\n").encode()


def _family(line: str, before: str) -> str:
    words = line.split(" ", 3)
    return words[2] if len(words) > 2 and words[1] in ("HELP", "TYPE") else before


def _add(values: dict[str, float], line: str, *, largest: bool) -> None:
    sample, _, number = line.rpartition(" ")
    try:
        value = float(number)
    except ValueError:
        return
    before = values.get(sample)
    if before is None:
        values[sample] = value
    else:
        values[sample] = max(before, value) if largest else before + value


def _plain(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
