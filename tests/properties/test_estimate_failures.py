"""Checkpoint intervals against brute force: a grid over the exact expectation, and a run simulated failure by failure."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.estimate.failures import best_interval_s, daly_s, interruptions, rate_of, time_per_work, young_s

BETWEEN = st.floats(600, 1e7)
PART = st.floats(1e-5, 0.3)
"""A checkpoint's seconds in parts of the time between interruptions."""


def brute_force(checkpoint_s: float, between_s: float, restart_s: float = 0.0) -> tuple[float, float]:
    """Interval and cost of the best of a fine grid over four decades."""
    grid = [between_s * 10 ** (-3.5 + 4.2 * n / 4000) for n in range(4001)]
    return min((time_per_work(w, checkpoint_s, between_s, restart_s), w) for w in grid)[::-1]


@settings(max_examples=60, deadline=None)
@given(BETWEEN, PART)
def test_the_best_interval_is_the_brute_force_one(between: float, part: float) -> None:
    checkpoint = part * between
    best = best_interval_s(checkpoint, between)
    interval, cost = brute_force(checkpoint, between)
    assert math.isclose(best, interval, rel_tol=0.02)
    assert time_per_work(best, checkpoint, between, 0) <= cost * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(BETWEEN, PART)
def test_daly_costs_within_two_percent_of_brute_force_and_young_where_checkpoints_are_short(
    between: float, part: float
) -> None:
    checkpoint = part * between
    _, cost = brute_force(checkpoint, between)
    assert time_per_work(daly_s(checkpoint, between), checkpoint, between, 0) <= 1.02 * cost
    assert math.isclose(daly_s(checkpoint, between), best_interval_s(checkpoint, between), rel_tol=0.02)
    if part < 0.05:
        assert time_per_work(young_s(checkpoint, between), checkpoint, between, 0) <= 1.02 * cost


@settings(max_examples=60, deadline=None)
@given(BETWEEN, PART, st.floats(0, 3600))
def test_restarts_do_not_move_the_best_interval(between: float, part: float, restart: float) -> None:
    checkpoint = part * between
    interval, _ = brute_force(checkpoint, between, restart)
    assert math.isclose(best_interval_s(checkpoint, between), interval, rel_tol=0.02)


def simulated(
    interval_s: float, checkpoint_s: float, between_s: float, restart_s: float, pieces: int, seed: int
) -> float:
    """Wall seconds for a second of work of a run that is hit by chance; restarts are hit, too."""
    chance = random.Random(seed)
    now, done = 0.0, 0
    strikes = chance.expovariate(1 / between_s)
    while done < pieces:
        end = now + interval_s + checkpoint_s
        if strikes >= end:
            now, done = end, done + 1
            continue
        now = strikes
        strikes = now + chance.expovariate(1 / between_s)
        while strikes < now + restart_s:
            now = strikes
            strikes = now + chance.expovariate(1 / between_s)
        now += restart_s
    return now / (pieces * interval_s)


def test_the_formula_is_what_a_simulated_run_takes_and_its_optimum_the_simulated_one() -> None:
    checkpoint, between, restart = 30.0, 10_000.0, 600.0
    best = best_interval_s(checkpoint, between)
    costs = {}
    for factor in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0):
        interval = best * factor
        work = 4e7
        costs[factor] = simulated(interval, checkpoint, between, restart, int(work / interval), 7)
        assert math.isclose(
            costs[factor], time_per_work(interval, checkpoint, between, restart), rel_tol=0.01
        )
    assert costs[1.0] <= 1.02 * min(costs.values())
    assert costs[0.25] > costs[1.0] and costs[4.0] > costs[1.0]


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1e9))
def test_interruptions_grow_with_hours_and_lie_in_their_interval(hours: float) -> None:
    rate = rate_of("H100-80GB")
    expected, low, high = interruptions(hours, rate)
    assert 0 <= low <= expected <= high
    assert interruptions(hours * 2, rate)[0] >= expected
