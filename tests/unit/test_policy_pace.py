"""What admission learns, and the queue that it keeps."""

from __future__ import annotations

import random

import pytest

from caudal.domain.key import KeyLimits, Slo
from caudal.policy.admission import Admission
from caudal.policy.admission_model import ModelQueues
from caudal.policy.admission_types import Admit, Ask, Park
from caudal.policy.fair_queue import FairQueue, Waiting
from caudal.policy.pace import CAUTION, MOST_CAUTION, Caution, Pace, Ratio, ReplyLength, Window


def test_reply_lengths_settle_at_their_quantile_and_follow() -> None:
    rng = random.Random(3)
    length = ReplyLength()
    for _ in range(2000):
        length.see(int(rng.lognormvariate(4.0, 0.7)) + 1)
    assert 45 < length.tokens < 110  # the 0.6 quantile is 65
    for _ in range(60):
        length.see(1000)
    assert length.tokens > 700
    for _ in range(200):
        length.see(0)
    assert length.tokens >= 1.0


def test_a_ratio_forgets() -> None:
    ratio = Ratio()
    assert ratio.value == 0.0
    for _ in range(300):
        ratio.see(2.0, 1.0)
    for _ in range(200):
        ratio.see(6.0, 2.0)
    assert 2.9 < ratio.value < 3.0


def test_pace_says_what_requests_took() -> None:
    pace = Pace()
    for _ in range(50):
        pace.read(0.2, 100)
        pace.ended(1.2, 300.0, 1.0, 50)
    assert abs(pace.prompt_s - 0.002) < 1e-9 and abs(pace.work_s - 0.004) < 1e-9
    assert abs(pace.reply_s - 0.02) < 1e-9 and pace.mean_work == 300.0


def test_caution_follows_how_wrong_expectations_were() -> None:
    caution = Caution()
    assert caution.value == CAUTION
    for _ in range(100):
        caution.see(2.0, 2.0)
    assert 0.99 < caution.value < 1.15
    for _ in range(100):
        caution.see(2.0, 1.6)
    assert 0.79 < caution.value < 0.9  # they were too long each time
    for i in range(200):
        caution.see(2.0, 1.0 if i % 2 else 3.0)
    assert caution.value > 1.05  # right on average is not good enough
    for _ in range(100):
        caution.see(2.0, float("inf"))
    assert 0.99 * MOST_CAUTION < caution.value <= MOST_CAUTION


def test_a_first_token_that_comes_at_once_is_a_wait_that_was_much_shorter() -> None:
    at_once, sooner = Caution(), Caution()
    at_once.see(1.0, 0.0)
    sooner.see(1.0, 1e-6)
    assert at_once.value == sooner.value


def test_what_wakes_a_model_says_nothing_of_its_speed() -> None:
    admission = Admission()
    admission.capacity(0.0, "m", 1, 2)
    admission.capacity(0.0, "m", 0, 0)  # it sleeps
    assert isinstance(admission.arrive(0.0, stream(1)), Admit)
    admission.capacity(9.0, "m", 1, 2)
    admission.first_token(9.5, 1)  # nine seconds of loading, half a second of reading
    admission.end(10.0, 1, 10)
    for id_, at in ((2, 10.0), (3, 11.0)):
        assert isinstance(admission.arrive(at, stream(id_)), Admit)
        admission.first_token(at + 0.5, id_)
        admission.end(at + 1.0, id_, 10)
    for id_ in (4, 5):
        assert isinstance(admission.arrive(12.0, stream(id_)), Admit)
    assert isinstance(admission.arrive(12.0, stream(6)), Park)  # a second or so: not ten


def queues(slots: int, replicas: int = 1) -> ModelQueues:
    """A model's state."""
    model = ModelQueues()
    model.resize(replicas, slots)
    return model


def stream(id_: int, prompt: int = 92) -> Ask:
    """A streamed request."""
    return Ask(id_, "k", KeyLimits(), Slo.INTERACTIVE, "m", prompt)


@pytest.mark.parametrize("together", [True, False])
def test_a_prompt_takes_the_same_read_in_a_batch_or_one_after_the_other(together: bool) -> None:
    model = queues(16)
    for burst in range(20):
        at = burst * 100.0
        running = [model.start(at, stream(i), at, 10) for i in range(10)]
        for number, one in enumerate(running, 1):
            model.first_token(at + (10.0 if together else number), one)  # 100 tokens a second, either way
        for one in running:
            model.ended(at + 20.0, one, 10, True, 0.0)
    assert abs(model.pace.prompt_s - 0.01) < 1e-9
    assert abs(model.own_s(92) - 1.0) < 1e-9


def test_two_replicas_read_at_the_same_time() -> None:
    model = queues(16, replicas=2)
    for burst in range(20):
        at = burst * 100.0
        running = [model.start(at, stream(i), at, 10) for i in range(10)]
        for number, one in enumerate(running):
            model.first_token(at + number // 2 + 1, one)
        for one in running:
            model.ended(at + 20.0, one, 10, True, 0.0)
    assert abs(model.pace.prompt_s - 0.01) < 1e-9


def test_prompts_that_were_given_up_teach_nothing() -> None:
    model = queues(16)
    for burst in range(20):
        at = burst * 100.0
        running = [model.start(at, stream(i), at, 10) for i in range(4)]
        for number, one in enumerate(running[:3], 1):
            if number == 3:
                model.ended(at + 2.5, running[3], None, False, 0.0)  # its client left while it waited
            model.first_token(at + number, one)
        for one in running[:3]:
            model.ended(at + 20.0, one, 10, True, 0.0)
    assert 0.009 < model.pace.prompt_s < 0.0105


def test_free_slots_are_not_waited_for() -> None:
    model = queues(16)
    for i in range(20):
        at = i * 100.0
        running = model.start(at, stream(i), at, 10)
        model.first_token(at + 1.0, running)
        model.ended(at + 31.0, running, 10, True, 0.0)
    assert abs(model.held_s() - 31.0) < 1e-6
    work = model.work(92, 10)
    model.start(3000.0, stream(100), 3000.0, 10)
    ahead = 4 * work
    assert model.wait_s(0, ahead) <= 1.0 + 1e-9  # 15 slots are free: until the prompt before it is read
    for i in range(15):
        model.start(3000.0, stream(101 + i), 3000.0, 10)
    assert model.wait_s(0, ahead) >= 5 * 31.0 / 16 - 1e-6  # now none is


def test_a_burst_that_ends_together_is_as_large_as_it_was() -> None:
    model = queues(16)
    running = [model.start(0.0, stream(i), 0.0, 10) for i in range(16)]
    for one in running:
        model.first_token(1.0, one)
    for number, one in enumerate(running):
        model.ended(10.0 + number * 0.001, one, 10, True, 0.25)  # 1 s a token: four times what was promised
    assert 12 <= model.window.limit <= 14  # not down to a quarter, as if few had run


def test_a_window_keeps_what_it_found_when_replicas_come_or_go() -> None:
    window = Window(32)
    for _ in range(1000):
        window.see(1.0, 0.1, 32)
    assert window.limit == 8
    window.resize(64)
    assert window.limit == 16
    window.resize(16)
    assert window.limit == 4


def item(id_: int, key: str, weight: float = 1.0, work: float = 10.0) -> Waiting:
    """A request in a queue."""
    ask = Ask(id_, key, KeyLimits(weight=weight), Slo.STANDARD, "m", 1)
    return Waiting(ask, 1, work, 0.0, 1e9)


def taken(queue: FairQueue, count: int) -> list[int]:
    """The ids of the next few."""
    found = []
    for _ in range(count):
        one = queue.pop(lambda _: True)
        assert one is not None
        found.append(one.ask.id)
    return found


def test_keys_take_turns_by_weight_and_keep_their_order() -> None:
    queue = FairQueue()
    for i in range(6):
        queue.push(item(i, "a"))
    for i in range(10, 16):
        queue.push(item(i, "b", weight=2.0))
    order = taken(queue, 9)
    assert sum(i >= 10 for i in order) == 6 and order == sorted(order, key=lambda i: order.index(i))
    assert [i for i in order if i < 10] == [0, 1, 2] and [i for i in order if i >= 10] == list(range(10, 16))
    assert queue.count == 3 and queue.work == 30.0


def test_a_key_that_comes_back_does_not_get_what_it_did_not_use() -> None:
    queue = FairQueue()
    for i in range(20):
        queue.push(item(i, "a"))
    taken(queue, 10)
    for i in range(100, 110):
        queue.push(item(i, "b"))
    assert sum(i >= 100 for i in taken(queue, 10)) in (5, 6)


def test_what_was_predicted_wrongly_is_put_right() -> None:
    queue = FairQueue()
    for i in range(10):
        queue.push(item(i, "a"))
        queue.push(item(100 + i, "b"))
    taken(queue, 2)
    queue.correct("a", 50.0)  # its request was six times as large
    assert all(i >= 100 for i in taken(queue, 5))
    queue.correct("b", -1000.0)  # back to now, not before
    assert len(taken(queue, 13)) == 13 and queue.count == 0


def test_gone_and_held_requests_are_passed_over() -> None:
    queue = FairQueue()
    items = [item(i, "a") for i in range(50)]
    for one in items:
        queue.push(one)
    queue.push(item(100, "b"))
    for one in items[:40]:
        queue.remove(one)
    assert queue.count == 11 and queue.ahead("a", 1.0) == 110.0 and queue.ahead("c", 1.0) == 0.0
    only_b = queue.pop(lambda key: key == "b")
    assert only_b is not None and only_b.ask.id == 100
    assert queue.pop(lambda key: key == "b") is None  # a is held until it is freed
    assert queue.pop(lambda _: True) is None
    assert queue.free("a") and not queue.free("a")
    assert taken(queue, 10) == list(range(40, 50))
    queue.prune()
    assert queue.pop(lambda _: True) is None and not list(queue.lines())


def test_many_corrections_do_not_grow_the_heap() -> None:
    queue = FairQueue()
    for i in range(10):
        queue.push(item(i, f"k{i}"))
    for i in range(5000):
        queue.correct(f"k{i % 10}", 1.0)
    assert len(queue._heap) < 200
    assert sorted(taken(queue, 10)) == list(range(10))


def test_newest_first_within_a_key() -> None:
    queue = FairQueue(newest_first=True)
    for i in range(4):
        queue.push(item(i, "a"))
    assert [w.ask.id for _, line in queue.lines() for w in line] == [3, 2, 1, 0]
    assert taken(queue, 4) == [3, 2, 1, 0]
