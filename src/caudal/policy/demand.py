"""What is asked of a model, read from the reports of the gateways, and how many replicas it is to have by that.

A gateway says, by model: `demand`, a row of the requests that it has (in flight and waiting), their number smoothed over
seconds, and for how many seconds it has had none (-1: it never had one); and `peaks`, pairs of age in seconds and
load. Ages count from the report, whose time is control's own clock. What cannot be read counts as not said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from caudal.domain.gang import Gang, Role
from caudal.domain.workload import ServedModel
from caudal.policy.board import Board
from caudal.policy.draining import load_of
from caudal.policy.scaling import Demand, Need, Present, joint, needed, peak_since, unknown
from caudal.policy.slots import base_of

SAID_WITHIN_S = 10.0
"""A gateway that said nothing for longer is not believed to be idle."""


def wanted_replicas(board: Board, service: str, model: ServedModel) -> Need | None:
    """How many replicas of a model there are to be, and why; None where their number is fixed."""
    if not model.scale.on:
        return None
    gangs = [g for g in board.live(service, Role.REPLICA) if g.model == model.id]
    idle_s = model.scale.idle_s
    return needed(model.scale, model.slots, demand_of(board, model, gangs), present(gangs, board.now, idle_s))


def present(gangs: list[Gang], now: float, young_s: float) -> Present:
    """The replicas of a model that are not on their way out. One that drains is: its slot is not wanted any more, or
    its successor holds the same number."""
    numbers = [(_number(g), g.created_at) for g in gangs if not g.stopping and g.draining_at is None]
    return Present(
        max((n + 1 for n, _ in numbers), default=0),
        max((n + 1 for n, created_at in numbers if now - created_at < young_s), default=0),
    )


def demand_of(board: Board, model: ServedModel, gangs: list[Gang]) -> Demand:
    """What all gateways together say of a model whose replicas these are."""
    gateways = [g for g in board.gangs.values() if g.role is Role.GATEWAY and not g.stopping]
    return joint(_said(board, gateway, model, gangs) for gateway in gateways)


def _said(board: Board, gateway: Gang, model: ServedModel, gangs: list[Gang]) -> Demand:
    report = board.reports.get(gateway.id)
    if report is None or not isinstance(report.status.get("demand"), Mapping):
        return Demand(known=False)
    age_s = max(0.0, board.now - report.at)
    demand = read(report.status, model.id, age_s, model.scale.idle_s)
    loads = [(load_of(report.status, g.id), speed_of(report.status, g.id)) for g in gangs]
    requests, tokens = sum(load[0] for load, _ in loads), sum(load[1] for load, _ in loads)
    speeds = [speed for _, speed in loads if speed > 0]
    whole = Demand(
        demand.requests,
        demand.load,
        demand.peak,
        demand.idle_s,
        tokens / requests if requests else 0.0,
        sum(speeds) / len(speeds) if speeds else 0.0,
    )
    remembers_s = board.now - gateway.created_at
    if age_s > SAID_WITHIN_S or remembers_s < model.scale.idle_s:
        return unknown(whole)
    return whole


def read(status: Mapping[str, Any], model: str, age_s: float, within_s: float) -> Demand:
    """A model's demand in a gateway's report that is so old. `within_s`: how far back peaks count."""
    demand, peaks = status.get("demand"), status.get("peaks")
    row = _numbers(demand.get(model) if isinstance(demand, Mapping) else None)
    if len(row) < 3:
        return Demand()
    pairs = _numbers(peaks.get(model) if isinstance(peaks, Mapping) else None)
    rows = [(age + age_s, load) for age, load in zip(pairs[::2], pairs[1::2], strict=False)]
    requests, load, idle_s = int(max(0.0, row[0])), max(0.0, row[1]), row[2]
    since_s = None if idle_s < 0 else idle_s + age_s if not requests else 0.0
    return Demand(requests, load, max(load, peak_since(rows, within_s)), since_s)


def speed_of(status: Mapping[str, Any], gang_id: str) -> float:
    """Tokens per second that a gateway measured of a replica; 0: it has not."""
    load = status.get("load")
    row = _numbers(load.get(gang_id) if isinstance(load, Mapping) else None)
    return max(0.0, row[2]) if len(row) > 2 else 0.0


def _numbers(row: object) -> list[float]:
    """A list's numbers; empty where it holds anything else."""
    if not isinstance(row, list | tuple):
        return []
    fine = all(isinstance(n, int | float) and math.isfinite(n) for n in row)
    return [float(n) for n in row] if fine else []


def _number(gang: Gang) -> int:
    """Which of a model's replicas it is."""
    tail = base_of(gang.slot).rpartition(".")[2]
    return int(tail) if tail.isdigit() else 0
