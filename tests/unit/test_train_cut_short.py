"""Rounds that are cut short: what was trained counts, the ids behind it go back, and a replay finds the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

from caudal.train.interface import IdRange
from caudal.train.leases import Pool, size
from caudal.train.messages import Delta, Hurry, Ready
from caudal.train.protocol import rules
from caudal.train.protocol.effects import CutShort, StopCompute
from tests.unit.test_train_coordinator import OVERLAPPED, Boss, boss_with_two, bring, held, tick_twice
from tests.unit.test_train_site import PLAN, joined, lesson, order

BATCH = OVERLAPPED.stages[0].batch


def late_boss() -> Boss:
    """Site b is late in round 1, and alive."""
    boss = boss_with_two(OVERLAPPED)
    boss.delta(1, order=boss.order(1, 1))
    boss.now = rules.FIRST_GRACE_S + 1
    for connection in (1, 2):
        boss.say(connection, Ready(1, 0))
    boss.do(boss.machine.tick(boss.now))
    return boss


def test_who_is_late_and_alive_is_asked_for_what_it_has() -> None:
    boss = late_boss()
    assert boss.to(2, Hurry) == [Hurry(1, 1)] and not boss.to(1, Hurry) and not boss.entries
    mine = boss.order(2, 1)
    boss.delta(2, order=mine, steps=2, tokens=2 * BATCH * 8, planned=4)
    first, second = boss.entries[0].sites
    assert first.ids == boss.order(1, 1).ids and (second.steps, second.planned) == (2, 4)
    assert second.ids == ((mine.ids[0][0], mine.ids[0][0] + 2 * BATCH),)
    assert (first.weight, second.weight) == pytest.approx((2 / 3, 1 / 3))
    later = {
        i for c in (1, 2) for o in boss.to(c, type(mine)) if o.round == 3 for r in o.ids for i in range(*r)
    }
    assert later >= set(range(mine.ids[0][0] + 2 * BATCH, mine.ids[0][1])), "what was not trained goes back"


def test_who_is_late_and_silent_is_not_waited_for() -> None:
    boss = boss_with_two(OVERLAPPED)
    boss.delta(1, order=boss.order(1, 1))
    boss.now = rules.FIRST_GRACE_S + 1
    boss.do(boss.machine.tick(boss.now))
    assert not boss.to(2, Hurry)
    assert [p.worker for p in boss.entries[0].sites] == ["a"]


def test_who_does_not_answer_in_time_loses_its_leases() -> None:
    boss = late_boss()
    tick_twice(boss)
    assert [p.worker for p in boss.entries[0].sites] == ["a"] and len(boss.to(2, Hurry)) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"steps": 2, "tokens": 2 * BATCH * 8, "planned": 2},
        {"steps": 2, "tokens": BATCH * 8, "planned": 4},
        {"steps": 2, "tokens": 2 * BATCH * 8, "planned": -1},
        {"steps": 2, "tokens": 2 * BATCH * 8, "planned": 1 << 40},
    ],
)
def test_a_shorter_delta_that_does_not_add_up_is_refused(more: dict[str, int]) -> None:
    boss = late_boss()
    boss.delta(2, order=boss.order(2, 1), **more)
    assert boss.refused(2).reason == "bad_delta"
    whole = boss.machine.plan.total_ids
    pool = boss.machine.pool
    assert size(pool.free) + size(pool.committed) + sum(map(size, pool.leases.values())) == whole


def test_a_new_coordinators_first_round_is_cut_short() -> None:
    old = boss_with_two(OVERLAPPED)
    orders = {c: (old.order(c, 1), old.order(c, 2)) for c in (1, 2)}
    new = Boss(plan=OVERLAPPED)
    for connection, name in ((1, "a"), (2, "b")):
        bring(new, connection, name, orders[connection])
        assert new.to(connection, Hurry) == [Hurry(1, 1)]
    for connection in (1, 2):
        new.delta(
            connection,
            order=_renamed(new, connection, orders[connection][0]),
            steps=1,
            tokens=BATCH * 8,
            planned=4,
        )
    assert new.entries[0].round == 1 and new.entries[0].tokens == 2 * BATCH * 8


def _renamed(boss: Boss, connection: int, order_of: object) -> object:
    from msgspec import structs

    from caudal.train.messages import Round, Welcome

    assert isinstance(order_of, Round)
    return structs.replace(order_of, lease=boss.to(connection, Welcome)[-1].adopted[0])


def test_a_site_sends_what_it_has_and_goes_on_with_the_next_round() -> None:
    place, _ = joined()
    place.hear(order(1))
    place.hear(order(2))
    ids = order(1).ids[0]
    place.hear(Hurry(1, 2))
    assert not place.of(CutShort), "another round is under way"
    place.hear(Hurry(1, 1))
    place.hear(Hurry(1, 1))
    assert len(place.of(CutShort)) == 1 and not place.of(StopCompute)
    batch = PLAN.stages[0].batch
    place.compute(lesson(1), stopped=True, steps=1, tokens=batch * 8)
    deltas = place.of(Delta)
    assert {(d.steps, d.planned, d.tokens) for d in deltas} == {(1, -(-8 // batch), batch * 8)}
    assert np.allclose(place.delta(1), lesson(1), atol=2e-4)
    assert place.computing is not None and place.computing.ids == (IdRange(*order(2).ids[0]),)
    place.site.epoch = 0
    offered = place.site.offer()[2]
    assert offered[0].ids == ((ids[0], ids[0] + batch),) and offered[1].ids == order(2).ids


def test_work_cut_short_is_adopted_by_the_same_coordinator() -> None:
    boss = boss_with_two(OVERLAPPED)
    mine = boss.order(2, 1), boss.order(2, 2)
    first = held(*mine)
    from msgspec import structs

    start = mine[0].ids[0][0]
    short = (structs.replace(first[0], ids=((start, start + BATCH),)), first[1])
    assert boss.machine.book.adopt(
        boss.machine.members.by_connection[2], short, 0, boss.machine.ladder.tempo(0.5), 0.0
    ) == (mine[0].lease, mine[1].lease)
    lease = boss.machine.book.turns[0].waiting["b"]
    assert lease.ids == (IdRange(start, start + BATCH),) and lease.steps == 1


def test_a_lease_that_is_shortened_keeps_every_id_in_one_place() -> None:
    pool = Pool(20, [IdRange(3, 5)])
    assert pool.lease("x", 8, 0, 20) == (IdRange(0, 3), IdRange(5, 10))
    assert pool.shorten("x", 4) == (IdRange(0, 3), IdRange(5, 6))
    assert pool.free == (IdRange(6, 20),) and pool.shorten("x", 9) == (IdRange(0, 3), IdRange(5, 6))
    pool.commit(["x"])
    assert pool.committed == (IdRange(0, 6),)
