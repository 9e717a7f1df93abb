"""Goodput at three times overload, in virtual time, by the simulator that chose the policy (bench/admission_sim.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from caudal.domain.key import KeyLimits, Slo
from caudal.policy.slo import Promise, SloTargets

PROMISE = Promise(2.0, 0.25)
TARGETS = SloTargets(interactive=PROMISE)
REPLICAS = 2


def simulator() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "bench" / "admission_sim.py"
    spec = importlib.util.spec_from_file_location("admission_sim", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["admission_sim"] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


SIM: Any = simulator()


def ours(**options: Any) -> Any:
    return SIM.Ours(REPLICAS, SIM.Speed(), TARGETS, **options)


def goodput(rows: Any, policy: Any, overload: float = 3.0) -> dict[str, float]:
    found: dict[str, float] = SIM.measured(rows, overload, policy, REPLICAS, PROMISE)
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_under_three_times_the_load_what_is_served_is_served_in_time(seed: int) -> None:
    rows = SIM.bursty(seed, 2400.0)
    caudal = goodput(rows, ours())
    assert caudal["requests_kept_of_carried"] >= 0.75 and caudal["requests_late"] <= 0.01
    assert caudal["refused_at_once"] >= 0.95
    unbounded = goodput(rows, SIM.Policy(REPLICAS, SIM.Speed()))
    assert caudal["goodput_of_carried"] >= 2 * unbounded["goodput_of_carried"]
    queued = goodput(rows, SIM.Limited(REPLICAS, SIM.Speed(), 100))
    assert caudal["goodput_of_carried"] >= 1.3 * queued["goodput_of_carried"]
    assert caudal["goodput_of_carried"] >= goodput(rows, ours(newest_first=True))["goodput_of_carried"]


def test_on_azures_trace_it_beats_a_limit_that_was_tuned_in_hindsight() -> None:
    path = SIM.trace_path()
    if path is None:
        pytest.skip("the Azure code trace is not on this machine")
    rows = SIM.azure(path)
    caudal = goodput(rows, ours())
    assert caudal["requests_kept_of_carried"] >= 0.95
    _, tuned = SIM.tuned(rows, 3.0, REPLICAS, PROMISE)
    assert caudal["goodput_of_carried"] >= 1.1 * tuned["goodput_of_carried"]


def test_at_half_load_nothing_is_refused() -> None:
    rows = [(i * 0.5, 400, 100) for i in range(600)]
    calm = goodput(rows, ours(), overload=0.5)
    assert calm["requests_kept"] == 1.0 and calm["refused"] == 0.0


def test_batch_takes_what_is_left_and_costs_the_others_little() -> None:
    speed = SIM.Speed()
    rows = SIM.bursty(5, 1200.0, 2.0)
    alone = SIM.simulate(SIM.offered(rows, 1.0, speed, REPLICAS), ours(), speed, REPLICAS)
    both = SIM.offered(rows, 1.0, speed, REPLICAS)
    end = both[-1].at
    batch = [SIM.Request(10_000 + i, 0.001 * i, 800, 60, "night", Slo.BATCH) for i in range(1500)]
    policy = ours()
    policy.limits = KeyLimits()
    SIM.simulate(sorted(both + batch, key=lambda r: r.at), policy, speed, REPLICAS)
    kept = [sum(r.kept(PROMISE) for r in requests) for requests in (alone, both)]
    assert kept[1] >= 0.9 * kept[0]
    assert sum(r.ended_at >= 0 for r in batch) == len(batch)  # all of it, in the end
    assert sum(0 <= r.ended_at <= end for r in batch) > 0.1 * len(batch)  # and much of it meanwhile
