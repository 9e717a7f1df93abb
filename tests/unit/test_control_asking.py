"""Sites are asked at the same time: one that is slow or mute delays nobody, and nothing wrong is believed of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from caudal.control.asking import Answer, InTurn, Together
from caudal.control.loop import ControlLoop
from caudal.domain.errors import Unreachable
from caudal.domain.fleet import LeaseState
from caudal.domain.gang import GangStatus
from caudal.ports import Holder
from tests.unit.control_world import LAUNCH, Bench, Hands
from tests.unit.test_control_loop import RUN

WAIT_S = 30.0
"""How long a test waits for a thread before it fails."""


class Gate:
    """A question that answers when it is let."""

    def __init__(self, answer: int | Exception) -> None:
        self.answer = answer
        self.asked = 0
        self.opened, self.left = threading.Event(), threading.Event()

    def __call__(self) -> int:
        self.asked += 1
        assert self.opened.wait(WAIT_S)
        try:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer
        finally:
            self.left.set()


def until(done: Callable[[], bool]) -> None:
    """Wait for something that another thread is about to do."""
    ticks = threading.Event()
    for _ in range(int(WAIT_S / 0.005)):
        if done():
            return
        ticks.wait(0.005)
    raise AssertionError("it never came to that")


def refuses() -> int:
    raise Unreachable("gone")


def broken() -> int:
    raise ZeroDivisionError


@pytest.mark.parametrize("asking", [InTurn(), Together()])
def test_each_has_its_own_answer_and_an_error_is_no_value(asking: InTurn | Together) -> None:
    clock = Hands()
    answers = asking.ask({"a": lambda: 1, "b": refuses, "c": lambda: 3}, clock)
    now = clock.now()
    assert answers == {"a": Answer(now, 1), "b": Answer(now), "c": Answer(now, 3)}
    assert list(answers) == ["a", "b", "c"]


@pytest.mark.parametrize("asking", [InTurn(), Together()])
def test_a_bug_is_raised_to_whoever_asked(asking: InTurn | Together) -> None:
    with pytest.raises(ZeroDivisionError):
        asking.ask({"a": lambda: 1, "b": broken}, Hands())


def test_all_are_asked_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=WAIT_S)

    def meets() -> int:
        both.wait()
        return 1

    answers = Together(patience_s=WAIT_S).ask({"a": meets, "b": meets}, Hands())
    assert [answer.value for answer in answers.values()] == [1, 1]


def test_a_late_one_is_asked_once_and_its_answer_is_taken_when_it_comes() -> None:
    clock, asking, slow = Hands(), Together(patience_s=0.01), Gate(7)
    questions: dict[str, Callable[[], int]] = {"slow": slow, "quick": lambda: 1}
    began = clock.now()
    answers = asking.ask(questions, clock)
    assert answers["slow"] == Answer(began, late=True)
    clock.sleep(5.0)
    until(lambda: asking.ask(questions, clock)["quick"].value == 1)
    slow.opened.set()
    assert slow.left.wait(WAIT_S)
    found: list[Answer[int]] = []
    until(lambda: bool(found.append(asking.ask({"slow": slow}, clock)["slow"]) or found[-1].value))
    assert found[-1] == Answer(began, 7) and slow.asked == 1


def test_who_failed_is_not_waited_for_the_next_time() -> None:
    clock, asking, mute = Hands(), Together(patience_s=WAIT_S), Gate(Unreachable("gone"))
    mute.opened.set()
    assert asking.ask({"mute": mute}, clock)["mute"] == Answer(clock.now())
    mute.opened.clear()
    assert asking.ask({"mute": mute}, clock)["mute"].late, "and so this has returned at once"
    mute.opened.set()


def test_a_call_that_hangs_is_silence_in_the_end() -> None:
    clock, asking, hung = Hands(), Together(patience_s=0.01), Gate(1)
    began = clock.now()
    assert asking.ask({"hung": hung}, clock)["hung"].late
    clock.sleep(121.0)
    assert asking.ask({"hung": hung}, clock)["hung"] == Answer(began)
    hung.opened.set()


def test_a_slow_site_delays_no_other_and_nothing_of_it_is_given_up() -> None:
    bench, opened = Bench(RUN), threading.Event()
    opened.set()
    holder = Holder("first", "here", 5, 0.0)
    bench.loop = ControlLoop(bench.world, holder, bench.settings, LAUNCH, asking=Together(patience_s=1.0))
    bench.run(12)
    listed = bench.drivers["south"].gangs

    def slow() -> Sequence[GangStatus]:
        assert opened.wait(WAIT_S)
        return listed()

    bench.drivers["south"].gangs = slow  # type: ignore[method-assign]
    opened.clear()
    before = {g.id for g in bench.live()}
    (worker,) = [g for g in bench.live() if g.slot == "starter.worker.0"]
    assert (worker.site, len(before)) == ("north", 3)
    bench.drivers["north"].finish(worker.id, 1)
    bench.run(10)
    assert {x.state for x in bench.store.read().leases} == {LeaseState.ACTIVE}, "slow is not lost"
    assert before - {g.id for g in bench.live()} == {worker.id}, "what the books say of the slow site is kept"
    assert [g.site for g in bench.live("starter.worker.0")] == ["north"], "and the north goes on meanwhile"
    opened.set()
    bench.drivers["south"].gangs = listed  # type: ignore[method-assign]
    (other,) = bench.live("starter.worker.1")
    bench.drivers["south"].finish(other.id, 1)

    def gone() -> bool:
        bench.run(1, each_s=0.0)
        return other.id not in {g.id for g in bench.live()}

    until(gone)
