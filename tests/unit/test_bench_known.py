"""The reference scheduler of the overload row: what it says comes true in the mock's own steps."""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from gateway_known import Known, known
from gateway_overload import Arrival, carried

FIRST_S = 2.0


def arrivals(seed: int, count: int, span_s: float) -> list[tuple[float, int, int]]:
    rng = random.Random(seed)
    return sorted((rng.uniform(0, span_s), rng.randint(1, 900), rng.randint(1, 40)) for _ in range(count))


def test_what_it_takes_is_in_time_and_the_bound_is_above_it() -> None:
    for seed in range(5):
        rows = arrivals(seed, 120, 10.0)
        kept = known(rows, 2, 8, 1000.0, 20.0, FIRST_S)
        asked = sum(prompt for _, prompt, _ in rows)
        most = carried(
            [Arrival(at, prompt, tokens, "interactive") for at, prompt, tokens in rows], 2000.0, FIRST_S
        )
        assert 0.5 * most < kept <= most < asked


def test_a_first_token_comes_when_it_was_foretold() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        replica = Known(slots=3, budget=50, step_s=0.05)
        for _ in range(rng.randint(0, 6)):
            replica.take(0.0, rng.randint(1, 200), rng.randint(1, 9))
        replica.advance(now := rng.uniform(0.0, 0.4))
        prompt, tokens = rng.randint(1, 200), rng.randint(1, 9)
        foretold = replica.first_at(now, prompt, float("inf"))
        replica.take(now, prompt, tokens)
        mine = replica.waiting[-1]
        while mine[1] == tokens:
            replica.at += replica.step_s
            replica.step()
        assert replica.at == foretold
        replica.advance(foretold + 60.0)
        assert not replica.busy


def test_where_there_is_room_for_all_all_are_taken() -> None:
    rows = [(float(i), 100, 5) for i in range(10)]
    assert known(rows, 1, 4, 1000.0, 20.0, FIRST_S) == 1000
