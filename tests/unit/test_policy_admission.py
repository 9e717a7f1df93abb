"""Admission, case by case."""

from __future__ import annotations

import pytest

from caudal.domain.key import KeyLimits, Slo
from caudal.policy.admission import MAX_WAITING, Admission
from caudal.policy.admission_types import (
    OUT_OF_BUDGET,
    OVER_SHARE,
    OVERLOADED,
    RATE_LIMITED,
    Admit,
    Ask,
    Park,
)
from caudal.policy.slo import Promise, SloTargets, allowed_class
from tests.support.admission_world import World


def warm(world: World, requests: int = 40) -> None:
    """Let it see what requests take, one after the other."""
    for _ in range(requests):
        world.ask("warm")
        world.run_until(world.now + 0.7)


def refusal(world: World, id_: int) -> tuple[int, str]:
    """Status and code of a refusal."""
    assert id_ in world.refused, (id_ in world.admitted, id_ in world.parked)
    return world.refused[id_][1].status, world.refused[id_][1].code


def test_where_there_is_room_nothing_waits() -> None:
    world = World(slots=8)
    ids = [world.ask(slo=slo) for slo in (Slo.INTERACTIVE, Slo.STANDARD, Slo.BATCH)]
    assert all(i in world.admitted for i in ids) and world.admission.running("m") == 3


def test_what_waits_goes_when_a_slot_is_free_the_more_urgent_first() -> None:
    world = World(slots=1)
    warm(world)
    first = world.ask()
    standard, interactive, batch = world.ask(slo=Slo.STANDARD), world.ask(), world.ask(slo=Slo.BATCH)
    assert world.parked == {standard, interactive, batch}
    world.run_until(world.now + 5.0)
    admitted = world.admitted
    assert admitted[first] < admitted[interactive] < admitted[standard] < admitted[batch]


def test_a_wait_that_is_too_long_is_refused_at_once_with_when_to_come_again() -> None:
    world = World(slots=2)
    warm(world)
    ids = [world.ask() for _ in range(20)]
    refused = [world.refused[i] for i in ids if i in world.refused]
    assert 8 < len(refused) < 20
    at, last = refused[-1]
    assert at == world.now and (last.status, last.code) == (503, OVERLOADED)
    assert 1.0 <= last.retry_after_s <= 3.0
    assert "overloaded" in last.text and "interactive" in last.text and "x-caudal-class: batch" in last.text
    standard = world.ask(slo=Slo.STANDARD)
    assert standard in world.parked  # it was promised to be patient
    world.run_until(world.now + 20.0)
    assert all(world.first_at[i] - world.asked_at[i] <= 2.0 for i in ids if i in world.admitted)


def test_replicas_that_go_are_noticed_by_who_waits() -> None:
    world = World(slots=8)
    warm(world)
    for _ in range(14):
        world.ask()
    waiting = sorted(world.parked)
    assert len(waiting) >= 6
    world.carry_out(world.admission.capacity(world.now, "m", 1, 1))
    told = [i for i in waiting if i in world.refused]
    assert len(told) >= 3 and all(world.refused[i][1].code == OVERLOADED for i in told)
    assert "can no more be answered in time" in world.refused[told[0]][1].text
    world.carry_out(world.admission.capacity(world.now, "m", 0, 0))  # none: about to come back
    assert world.admission.waiting == len(waiting) - len(told)


def test_more_replicas_let_more_in_at_once() -> None:
    world = World(slots=2)
    warm(world)
    ids = [world.ask() for _ in range(5)]
    assert len(world.parked) == 3
    world.carry_out(world.admission.capacity(world.now, "m", 2, 16))
    assert len(world.parked) <= 1  # prompts enough for the moment
    world.run_until(world.now + 0.15)
    assert not world.parked and all(i in world.admitted for i in ids)


def test_batch_leaves_a_quarter_of_the_slots() -> None:
    world = World(slots=8)
    for _ in range(12):
        world.ask("b", Slo.BATCH, stream=False)
    assert len(world.admitted) == 6 and len(world.parked) == 6
    assert world.ask() in world.admitted and world.ask(slo=Slo.STANDARD) in world.admitted
    world.run_until(10.0)
    assert len(world.ended_at) == 14


def test_deadlines() -> None:
    world = World(slots=1)
    warm(world)
    hopeless = world.ask(deadline_s=0.05)
    assert refusal(world, hopeless) == (503, OVERLOADED) and world.refused[hopeless][1].retry_after_s == 0.0
    assert world.ask(deadline_s=5.0) in world.admitted
    assert refusal(world, world.ask(slo=Slo.STANDARD, deadline_s=0.8)) == (503, OVERLOADED)
    assert world.ask(slo=Slo.STANDARD, deadline_s=8.0) in world.parked
    tight = world.ask("b", slo=Slo.BATCH, deadline_s=0.3)
    assert refusal(world, tight) == (503, OVERLOADED) and "deadline" in world.refused[tight][1].text


def test_rates_budgets_and_concurrency_of_a_key() -> None:
    world = World(slots=100)
    few = KeyLimits(requests_per_minute=2)
    assert [world.ask("few", limits=few) in world.admitted for _ in range(3)] == [True, True, False]
    assert refusal(world, 2) == (429, RATE_LIMITED)
    assert 60.0 <= world.refused[2][1].retry_after_s <= 61.0
    assert "requests per minute" in world.refused[2][1].text
    assert world.ask("other", limits=few) in world.admitted

    tokens = KeyLimits(tokens_per_minute=1000)
    first = world.ask("tokens", limits=tokens, prompt=100, bound=800, reply=50)
    assert refusal(world, world.ask("tokens", limits=tokens, prompt=100, bound=10)) == (429, RATE_LIMITED)
    world.run_until(2.0)  # it said 50 and not 800
    assert first in world.ended_at
    assert world.ask("tokens", limits=tokens, prompt=100, bound=700) in world.admitted
    huge = world.ask("tokens", limits=tokens, prompt=100, bound=2000)
    assert refusal(world, huge) == (429, RATE_LIMITED) and world.refused[huge][1].retry_after_s == 0.0

    one = KeyLimits(concurrency=1)
    assert world.ask("one", limits=one) in world.admitted
    assert refusal(world, world.ask("one", limits=one)) == (429, RATE_LIMITED)
    night = [world.ask("one", Slo.BATCH, one) for _ in range(3)]
    assert world.parked == set(night)  # parked: its own one after the other
    world.run_until(30.0)
    assert all(i in world.ended_at for i in night)
    times = sorted(world.admitted[i] for i in night)
    assert times[1] - times[0] > 0.5 and times[2] - times[1] > 0.5

    world.admission.spent("poor", 1000, 0.0)
    assert refusal(world, world.ask("poor", limits=KeyLimits(budget_tokens=1000))) == (429, OUT_OF_BUDGET)
    world.admission.spent("poor", 10, 5.0)
    assert refusal(world, world.ask("poor", limits=KeyLimits(budget_usd=5.0))) == (429, OUT_OF_BUDGET)
    assert world.ask("poor", limits=KeyLimits(budget_usd=5.01)) in world.admitted


def test_what_never_ran_is_not_counted_against_the_rate() -> None:
    world = World(slots=1)
    warm(world)
    limits = KeyLimits(tokens_per_minute=1000)
    world.ask()
    waiting = world.ask("k2", Slo.STANDARD, limits, prompt=400, bound=400)
    assert world.admission.numbers(world.now, "k2").remaining_tokens == 200
    world.leave(waiting)
    assert world.admission.numbers(world.now, "k2").remaining_tokens == 1000


def test_who_fills_the_queue_alone_is_told_so() -> None:
    world = World(slots=1)
    warm(world)
    for _ in range(20):
        world.ask("greedy")
    modest = world.ask("modest")
    assert modest in world.parked
    greedy = world.ask("greedy")
    assert refusal(world, greedy) == (429, OVER_SHARE) and "own requests" in world.refused[greedy][1].text
    world.run_until(world.now + 1.3)
    assert modest in world.admitted  # its turn came before that of what waited longer


def test_a_replica_that_says_nothing_does_not_idle_the_others() -> None:
    world = World(slots=8, replicas=2)
    warm(world)
    admission = world.admission
    hung = [Ask(1000 + i, "h", KeyLimits(), Slo.INTERACTIVE, "m", 300) for i in range(4)]
    assert all(isinstance(admission.arrive(world.now, ask), Admit) for ask in hung)
    assert isinstance(admission.arrive(world.now, Ask(2000, "k", KeyLimits(), Slo.STANDARD, "m", 10)), Park)
    outcomes = list(admission.tick(world.now + 1.9))
    assert outcomes == []  # they may be reading still
    assert [type(o) for o in admission.tick(world.now + 5.0)] == [Admit]


def test_slow_answers_make_the_window_smaller_and_good_ones_open_it() -> None:
    targets = SloTargets(Promise(5.0, 0.1), Promise(30.0), Promise(7200.0))
    admission = Admission(targets)
    admission.capacity(0.0, "m", 1, 16)
    limits, now, serial = KeyLimits(), 0.0, 0

    def round_of(per_token_s: float) -> int:
        nonlocal now, serial
        ids = []
        while isinstance(admission.arrive(now, Ask(serial, "k", limits, Slo.INTERACTIVE, "m", 1, 10)), Admit):
            ids.append(serial)
            serial += 1
        serial += 1  # the last one waits
        for id_ in ids:
            admission.first_token(now + 0.001, id_)
        now += 0.001 + 9 * per_token_s
        for id_ in ids:
            for outcome in admission.end(now, id_, 10):
                assert isinstance(outcome, Admit)
                admission.end(now, outcome.id, None, ok=False)
        return len(ids)

    sizes = [round_of(0.2) for _ in range(30)]
    assert sizes[0] > 16 and sizes[-1] <= 5  # a quarter of the slots is the least
    grown = [round_of(0.05) for _ in range(250)]
    assert grown[-1] >= 16


def test_shares_of_processes() -> None:
    admission = Admission(share=4)
    admission.capacity(0.0, "m", 1, 8)
    limits = KeyLimits(requests_per_minute=8)
    asks = [Ask(i, "k", limits, Slo.STANDARD, "m", 1, 0, False) for i in range(3)]
    assert [type(admission.arrive(0.0, a)).__name__ for a in asks] == ["Admit", "Admit", "Refuse"]
    numbers = admission.numbers(0.0, "k")
    assert (numbers.limit_requests, numbers.remaining_requests) == (2, 0) and numbers.reset_requests_s > 60.0


def test_the_queue_is_bounded() -> None:
    world = World(slots=1)
    ids = [world.ask(slo=Slo.BATCH) for _ in range(MAX_WAITING + 3)]
    assert len(world.parked) == MAX_WAITING
    assert refusal(world, ids[-1]) == (503, OVERLOADED) and "As many batch" in world.refused[ids[-1]][1].text


@pytest.mark.parametrize(
    ("asked", "best", "given"),
    [
        (None, Slo.INTERACTIVE, Slo.INTERACTIVE),
        (None, Slo.BATCH, Slo.BATCH),
        (Slo.BATCH, Slo.INTERACTIVE, Slo.BATCH),
        (Slo.INTERACTIVE, Slo.STANDARD, Slo.STANDARD),
        (Slo.STANDARD, Slo.STANDARD, Slo.STANDARD),
    ],
)
def test_no_class_better_than_the_keys(asked: Slo | None, best: Slo, given: Slo) -> None:
    assert allowed_class(asked, best) is given


def test_streams_that_lost_their_replica_are_read_before_new_prompts() -> None:
    admission = Admission()
    admission.capacity(0.0, "m", 1, 8)

    def ask(id_: int) -> Ask:
        return Ask(id_, "k", KeyLimits(), Slo.STANDARD, "m", 100, 50)

    now = 0.0
    for id_ in (1, 2):  # one after the other: a second each
        assert isinstance(admission.arrive(now, ask(id_)), Admit)
        now += 1.0
        admission.first_token(now, id_)
    for id_ in (1, 2):
        admission.read_again(now, id_)
        admission.read_again(now, id_)  # it lost the next one, too
    assert isinstance(admission.arrive(now, ask(3)), Park)
    assert list(admission.first_token(now + 1.0, 1)) == [Admit(3, 1.0)]  # one is left to read: there is room
    admission.end(now + 2.0, 2, 10)  # ended while it was read
    for id_ in (1, 3):
        admission.end(now + 3.0, id_, 10)
    for id_ in (4, 5):
        assert isinstance(admission.arrive(now + 3.0, ask(id_)), Admit), (
            "something is still counted as being read"
        )
    assert isinstance(admission.arrive(now + 3.0, ask(6)), Park)


def test_a_stream_that_nobody_reads_again_does_not_keep_others_out_for_ever() -> None:
    admission = Admission()
    admission.capacity(0.0, "m", 1, 8)
    now = 0.0
    for id_ in (1, 2):
        admission.arrive(now, Ask(id_, "k", KeyLimits(), Slo.STANDARD, "m", 100, 50))
        now += 1.0
        admission.first_token(now, id_)
    for id_ in (1, 2):
        admission.read_again(now + 1.0, id_)
    late = Ask(3, "k", KeyLimits(), Slo.STANDARD, "m", 100, 50)
    assert isinstance(admission.arrive(now + 1.0, late), Park)
    assert list(admission.tick(now + 1.5)) == []
    assert [outcome.id for outcome in admission.tick(now + 11.0) if isinstance(outcome, Admit)] == [3]


@pytest.mark.parametrize(("beside", "most"), [(Slo.INTERACTIVE, 1), (Slo.STANDARD, 4)])
def test_while_interactive_requests_run_a_replica_gets_others_prompts_one_at_a_time(
    beside: Slo, most: int
) -> None:
    world = World(slots=16)
    warm(world, 3)
    world.ask(slo=beside, reply=1000)  # it runs all the while
    world.run_until(world.now + 0.2)
    others = [world.ask(slo=Slo.STANDARD) for _ in range(4)]
    assert sum(i in world.admitted for i in others) == most
    world.run_until(world.now + 2.0)
    assert all(i in world.admitted for i in others)
