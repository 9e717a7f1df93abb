"""Properties of admission, over random traffic in virtual time.

Safety: never more at replicas than they hold, one outcome for each request, no rate exceeded over any minute.
Liveness: no key of a weight waits for ever, parked batch work is served or refused, what is told to come again is
let in.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.key import KeyLimits, Slo
from caudal.policy.rates import SlidingMinute
from caudal.policy.slo import Promise, SloTargets
from tests.support.admission_world import TARGETS, World

ARRIVALS = st.lists(
    st.tuples(
        st.floats(0.0, 0.4),  # seconds since the one before
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(list(Slo)),
        st.integers(0, 600),
        st.integers(1, 120),
        st.booleans(),
        st.sampled_from([0.0, 0.0, 0.5, 3.0]),
    ),
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(ARRIVALS, st.integers(1, 6), st.integers(1, 3), st.lists(st.integers(0, 119), max_size=20))
def test_capacity_is_kept_and_everybody_is_told_once(
    arrivals: list[tuple[float, str, Slo, int, int, bool, float]], slots: int, replicas: int, leave: list[int]
) -> None:
    world = World(slots=slots * replicas, replicas=replicas)
    for pause, key, slo, prompt, reply, stream, deadline_s in arrivals:
        world.run_until(world.now + pause)
        world.ask(key, slo, None, prompt, reply, stream=stream, deadline_s=deadline_s)
        for id_ in set(leave) & world.parked:
            world.leave(id_)
    world.run_until(world.now + 700.0)
    assert world.most_running <= slots * replicas + max(replicas, slots * replicas // 4)
    assert not world.parked and world.admission.waiting == 0 and world.admission.running("m") == 0
    told = len(world.admitted) + len(world.refused) + len(world.left)
    assert told == len(world.asks) and world.admitted.keys() == world.ended_at.keys()
    assert sum(world.admission.queued().values()) == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 8.0), st.integers(1, 60), st.integers(1, 60)), max_size=150),
    st.integers(1, 20),
    st.integers(50, 400),
    st.integers(1, 3),
)
def test_rates_are_never_exceeded_over_any_minute(
    arrivals: list[tuple[float, int, int]], requests: int, tokens: int, share: int
) -> None:
    limits = KeyLimits(requests_per_minute=requests, tokens_per_minute=tokens)
    world = World(slots=1000, share=share)
    counted: list[tuple[float, int]] = []
    for pause, prompt, reply in arrivals:
        world.run_until(world.now + pause)
        id_ = world.ask(limits=limits, prompt=prompt, reply=reply, bound=reply)
        if id_ not in world.refused:
            counted.append((world.now, prompt + reply))  # the reply is as long as it may be, or less
    for number, (at, _) in enumerate(counted):
        window = [size for when, size in counted[number:] if when < at + 60.0]
        assert len(window) <= max(1, requests // share)
        assert sum(window) <= max(1, tokens // share)


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 50)), max_size=80), st.integers(1, 100))
def test_the_sliding_minute_holds_any_limit_and_says_when(steps: list[tuple[float, int]], limit: int) -> None:
    minute, now = SlidingMinute(), 0.0
    added: list[tuple[float, int]] = []
    for pause, amount in steps:
        now += pause
        wait = minute.wait_s(now, amount, limit)
        if amount > limit:
            assert wait == float("inf")
            continue
        if wait:
            now += wait
            assert minute.wait_s(now, amount, limit) == 0.0  # what it said was true
        minute.add(now, amount)
        added.append((now, amount))
        assert sum(a for at, a in added if at > now - 60.0) <= limit
    assert minute.used(now + 61.0) == 0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([0.25, 1.0, 2.0, 5.0]), min_size=2, max_size=4),
    st.integers(2, 8),
    st.integers(20, 200),
    st.sampled_from([Slo.STANDARD, Slo.BATCH]),
)
def test_shares_are_fair_under_saturation(weights: list[float], slots: int, reply: int, slo: Slo) -> None:
    world = World(slots=slots, targets=SloTargets(Promise(5e3), Promise(1e4), Promise(1e4)))
    keys = [f"key-{i}" for i in range(len(weights))]
    for number in range(150):  # all ask for the same, in requests of different sizes
        for key, weight in zip(keys, weights, strict=True):
            size = 1 + (number + keys.index(key)) % 3
            world.ask(key, slo, KeyLimits(weight=weight), 40 * size, reply * size)
    whole_s = sum(world.asks[i].prompt_tokens * 0.001 + r * 0.01 for i, r in world.replies.items()) / slots
    world.run_until(whole_s / len(weights) * 0.9)  # nobody has got all of its own yet
    served = world.tokens_by_key()
    assert set(served) == set(keys)  # nobody starves, however small its weight
    largest = 3 * (40 + 2 * max(reply, 256))
    for one, its in zip(keys, weights, strict=True):
        for other, others in zip(keys, weights, strict=True):
            gap = abs(served[one] / its - served[other] / others)
            # start-time fair queueing's bound, with what runs before anybody waits and what was predicted wrongly
            assert gap <= (slots + 12) * largest * (1 / its + 1 / others)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 10.0), st.integers(1, 4), st.integers(1, 30))
def test_a_small_key_is_served_beside_one_that_asks_for_everything(
    weight: float, slots: int, every: int
) -> None:
    world = World(slots=slots, targets=replace(TARGETS, standard=Promise(120.0)))
    mine: list[int] = []
    for number in range(600):
        world.run_until(number * 0.1)
        world.ask("greedy", Slo.STANDARD, KeyLimits(weight=1.0), 200, 100)
        world.ask("greedy", Slo.STANDARD, KeyLimits(weight=1.0), 200, 100)
        if number % (every * 20) == 100:
            mine.append(world.ask("small", Slo.STANDARD, KeyLimits(weight=weight), 50, 10))
    world.run_until(300.0)
    assert all(id_ in world.admitted for id_ in mine)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 60), st.floats(5.0, 60.0))
def test_parked_batch_is_served_when_load_falls_and_told_at_its_deadline(
    slots: int, parked: int, busy_s: float
) -> None:
    world = World(slots=slots, targets=replace(TARGETS, batch=Promise(100.0)))
    batch = [world.ask("night", Slo.BATCH, None, 10, 5) for _ in range(parked)]
    while world.now < busy_s:
        world.run_until(world.now + 0.02)
        world.ask("day", Slo.INTERACTIVE, None, 100, 100)
    world.run_until(busy_s + 120.0)
    assert not world.parked
    for id_ in batch:
        assert (id_ in world.admitted) != (id_ in world.refused)
        if id_ in world.refused:
            assert world.refused[id_][0] <= 100.0 + 1.0 and world.refused[id_][1].status == 503
    if busy_s < 60.0:
        assert all(id_ in world.admitted for id_ in batch)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(20, 200), st.sampled_from([Slo.INTERACTIVE, Slo.STANDARD]))
def test_who_comes_again_when_told_is_let_in(slots: int, burst: int, slo: Slo) -> None:
    world = World(slots=slots)
    for _ in range(30):  # what it has seen so far
        world.ask(slo=slo)
        world.run_until(world.now + 1.5 / slots)
    world.run_until(world.now + 5.0)
    ids = [world.ask(slo=slo) for _ in range(burst)]
    told = [(world.now + world.refused[i][1].retry_after_s, i) for i in ids if i in world.refused]
    assert len(told) + sum(i in world.admitted or i in world.parked for i in ids) == burst
    if told:  # the first that is told to come again does, when nobody else came meanwhile
        when, _ = min(told)
        world.run_until(when)
        again = world.ask(slo=slo)
        assert again in world.admitted or again in world.parked
        world.run_until(when + 60.0)
        assert again in world.admitted


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.floats(1.5, 6.0))
def test_who_waits_is_served_in_time_or_told(slots: int, overload: float) -> None:
    world = World(slots=slots)
    pause = (0.1 + 0.5) / slots / overload
    while world.now < 30.0:
        world.run_until(world.now + pause)
        world.ask()
    world.run_until(40.0)
    late = [i for i, at in world.first_at.items() if at - world.asked_at[i] > 2.0 and i > 20 * slots]
    assert len(late) <= 0.02 * len(world.admitted)
    waits = [at - world.asked_at[i] for i, (at, _) in world.refused.items()]
    assert max(waits, default=0.0) <= 2.0 + 0.1
    busy = sum(0.6 for i, at in world.admitted.items() if 5.0 < at < 29.0)
    assert busy >= 0.9 * 24.0 * slots  # replicas are not left idle for it
