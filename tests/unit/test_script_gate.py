"""The gate between a script's loop and the protocol: every step is taken once, and changes come at their place."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from caudal.train.interface import Between, Flat, IdRange, InnerResult, Stage
from caudal.train.script.gate import Closed, Gate, Ticket

STAGE = Stage("data", "text", 100, 60, 30, 4, 1, 0.0, 0.0, 0.0, 0.0)


class Numbers:
    """A model of three numbers."""

    def __init__(self) -> None:
        self.size, self.values, self.forgot = 3, np.zeros(3, np.float32), 0

    def read(self) -> Flat:
        return self.values.copy()

    def write(self, state: Flat) -> None:
        self.values = state.copy()

    def add(self, start: int, change: Flat) -> None:
        self.values[start : start + len(change)] += change

    def forget(self) -> None:
        self.forgot += 1


def never(_: int) -> bool:
    return False


def script(gate: Gate, numbers: Numbers, seen: list[tuple[int, ...]]) -> None:
    """Adds one to every number at each step."""
    while (ticket := gate.fetch()) is not None:
        if gate.begin(ticket):
            seen.append(ticket.ids)
            numbers.values += 1
            gate.end(ticket, loss=float(len(seen)))
    gate.settle()


def trained(between: Between, ids: list[IdRange], before: list[str]) -> tuple[InnerResult, Numbers, list]:  # type: ignore[type-arg]
    numbers = Numbers()
    gate, seen = Gate(numbers, STAGE), list[tuple[int, ...]]()
    if "load" in before:
        gate.load(np.full(3, 10, np.float32))
    if "forget" in before:
        gate.forget()
    with ThreadPoolExecutor(1) as pool:
        loop: Future[None] = pool.submit(script, gate, numbers, seen)
        result = gate.run(0, ids, (0.0, 1.0), between)
        gate.load(np.full(3, 99, np.float32))
        gate.close()
        loop.result(timeout=10)
    return result, numbers, seen


def test_a_round_is_taken_in_batches_from_the_state_that_was_loaded() -> None:
    result, numbers, seen = trained(never, [IdRange(100, 107), IdRange(120, 123)], ["load", "forget"])
    assert seen == [(0, 1, 2, 3), (4, 5, 6, 20), (21, 22)]
    assert (result.steps, result.tokens, result.stopped) == (3, 10, False)
    assert result.params.tolist() == [13, 13, 13]
    assert result.loss == pytest.approx((4 * 1 + 4 * 2 + 2 * 3) / 10)
    assert numbers.forgot == 1 and numbers.values.tolist() == [99, 99, 99]  # settled at the end


def test_what_others_learnt_is_added_before_the_step_at_which_it_came() -> None:
    at: list[float] = []
    numbers = Numbers()
    gate = Gate(numbers, STAGE)

    def between(step: int) -> bool:
        at.append(float(numbers.values[1]))
        if step == 1:
            gate.add(1, np.array([5.0], np.float32))
        return False

    seen: list[tuple[int, ...]] = []
    with ThreadPoolExecutor(1) as pool:
        loop = pool.submit(script, gate, numbers, seen)
        result = gate.run(0, [IdRange(100, 112)], (0.0, 1.0), between)
        gate.close()
        loop.result(timeout=10)
    assert at == [0, 1, 7] and result.params.tolist() == [3, 8, 3]


def test_a_round_that_is_stopped_leaves_its_batches_void() -> None:
    result, _, seen = trained(lambda step: step == 2, [IdRange(100, 120)], [])
    assert result.stopped and result.steps == 2 and len(seen) == 2


def test_a_script_that_left_ends_the_inner_side_and_the_other_way_round() -> None:
    gate = Gate(Numbers(), STAGE)
    threading.Timer(0.05, gate.close).start()
    with pytest.raises(Closed):
        gate.run(0, [IdRange(100, 104)], (0.0, 1.0), never)
    assert gate.fetch() is not None and gate.fetch() is None
    with pytest.raises(Closed):
        gate.begin(Ticket((1,)))


def test_a_state_replaces_what_was_to_be_added_before_it() -> None:
    numbers = Numbers()
    gate = Gate(numbers, STAGE)
    gate.add(0, np.ones(3, np.float32))
    gate.forget()
    gate.load(np.full(3, 2, np.float32))
    gate.add(2, np.ones(1, np.float32))
    gate.settle()
    gate.settle()
    assert numbers.values.tolist() == [2, 2, 3] and numbers.forgot == 1
    assert gate.evaluate() == {} and gate.heldout()["of"] == 0
