"""The coordinator's machine, step by step."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from caudal.domain.workload import OuterSpec
from caudal.train.checkpoint import Restored, Totals
from caudal.train.codec import Encoder
from caudal.train.interface import RunPlan
from caudal.train.layout import initial_state
from caudal.train.messages import Delta, Evaluated, Held, Ready, Refused, Revoked, Round, Update, Welcome
from caudal.train.outer import state_sha256
from caudal.train.protocol import rules
from caudal.train.protocol.coordinator import Coordinator
from caudal.train.protocol.effects import Close, Commit, Send, Trained
from caudal.train.protocol.terms import Terms
from caudal.train.schedule import fresh_factor, learning_rate
from tests.support.train_world import SPEC, hello, tiny_plan

OUTER = OuterSpec(
    sync_fraction=0.0, inner_steps=4, fragments=2, overlap=False, bits=8, sync_bits=8, grow=False
)
PLAN = tiny_plan(dataclasses.replace(SPEC, outer=OUTER))
OVERLAPPED = tiny_plan(dataclasses.replace(SPEC, outer=dataclasses.replace(OUTER, overlap=True)))
QUORUM = tiny_plan(dataclasses.replace(SPEC, outer=dataclasses.replace(OUTER, quorum=2)))


class Boss:
    """A coordinator whose commits are durable at once, and what it said to whom."""

    def __init__(self, sites: int = 2, plan: RunPlan = PLAN, rung: int = 4) -> None:
        state = initial_state(plan.shape, plan.vocab, 1)
        start = Restored(0, state, np.zeros_like(state), None, Totals(), 0)
        self.plan = plan
        self.machine = Coordinator(Terms(plan, 1, 1, sites, 100, 100), start, 0.0, 1000.0)
        self.machine.ladder.rung = rung
        self.now = 0.0
        self.sent: list[Send] = []
        self.closed: dict[int, str] = {}
        self.entries: list[Any] = []
        self.others: list[Any] = []
        self.instant = True  # commits are durable at once

    def do(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.sent.append(effect)
            elif isinstance(effect, Close):
                self.closed[effect.connection] = effect.why
            elif isinstance(effect, Commit):
                self.entries.append(effect.entry)
                if self.instant:
                    self.do(self.machine.committed(effect.entry, self.now))
            else:
                self.others.append(effect)

    def join(self, connection: int, name: str, incarnation: int = 1, ready: bool = True, **more: Any) -> None:
        said = hello(self.plan, name, incarnation, **more)
        self.do(self.machine.hello(connection, said, "", self.now))
        if ready:
            self.say(connection, Ready(1, self.machine.round))

    def say(self, connection: int, message: Any, payload: bytes = b"") -> None:
        self.do(self.machine.message(connection, message, payload, self.now))

    def to(self, connection: int, kind: type) -> list[Any]:
        return [s.message for s in self.sent if s.connection == connection and isinstance(s.message, kind)]

    def order(self, connection: int, round_number: int = 0) -> Round:
        orders = self.to(connection, Round)
        return [o for o in orders if round_number in (0, o.round)][-1]

    def delta(
        self,
        connection: int,
        scale: float = 1e-3,
        order: Round | None = None,
        fragments: tuple[int, ...] = (0, 1),
        **more: Any,
    ) -> None:
        order = order or self.order(connection)
        ids = sum(b - a for a, b in order.ids)
        batch = self.plan.stages[order.stage].batch
        fields = {
            "tokens": ids * 8,
            "loss": 2.0,
            "steps": -(-ids // batch),
            "seconds": 0.4,
            "fresh": order.round == 1,
        }
        fields.update(more)
        for fragment in fragments:
            start, stop = self.plan.fragments[fragment]
            learnt = np.full(stop - start, scale, np.float32)
            payload = Encoder().encode(learnt, np.zeros_like(learnt), np.zeros_like(learnt))
            message = Delta(1, order.round, order.lease, fragment=fragment, **fields)
            self.say(connection, message, bytes(payload))

    def refused(self, connection: int) -> Refused:
        return next(iter(self.to(connection, Refused)))


def boss_with_two(plan: RunPlan = PLAN) -> Boss:
    boss = Boss(plan=plan)
    boss.join(1, "a")
    boss.join(2, "b")
    return boss


def tick_twice(boss: Boss) -> None:
    """The grace is over, and then what a late site is given to send what it has."""
    boss.do(boss.machine.tick(boss.now))
    boss.now += rules.HURRY_S + 0.1
    boss.do(boss.machine.tick(boss.now))


def test_a_round_needs_all_deltas_and_is_committed_with_their_ids() -> None:
    boss = boss_with_two()
    assert (boss.order(1).ids, boss.order(2).ids) == (((0, 8),), ((8, 16),))
    assert boss.order(1).progress == (0.0, 0.16)
    boss.delta(1)
    assert not boss.entries
    boss.delta(2)
    (entry,) = boss.entries
    assert [p.ids for p in entry.sites] == [((0, 8),), ((8, 16),)] and entry.sites[0].joined
    assert [p.weight for p in entry.sites] == [0.5, 0.5] and entry.at == 1000.0
    assert entry.state_sha256 == state_sha256(boss.machine.outer.state)
    assert boss.order(1).round == 2 and boss.order(1).ids == ((16, 24),)


def test_a_new_epoch_waits_a_little_for_all_and_then_begins() -> None:
    boss = Boss(sites=3)
    boss.join(1, "a")
    boss.do(boss.machine.tick(rules.GATHER_S - 0.1))
    assert not any(isinstance(s.message, Round) for s in boss.sent)
    boss.do(boss.machine.tick(rules.GATHER_S + 0.1))
    assert boss.order(1).round == 1


def test_a_run_begins_when_its_first_state_is_at_all_sites_that_it_is_on_its_way_to() -> None:
    boss = Boss(sites=2)
    boss.join(1, "a")
    boss.join(2, "b", ready=False)
    boss.now = rules.GATHER_S + 1.0
    boss.do(boss.machine.tick(boss.now))
    assert not any(isinstance(s.message, Round) for s in boss.sent)
    boss.say(2, Ready(1, 0))
    assert boss.order(1).round == boss.order(2).round == 1


def test_a_delta_that_comes_twice_is_not_taken_for_the_next_rounds() -> None:
    boss = boss_with_two()
    old = boss.order(1)
    boss.delta(1)
    boss.delta(2)
    assert boss.order(1).round == 2
    boss.sent.append(Send(1, old))  # what `delta` answers to
    boss.delta(1)
    boss.sent.pop()
    boss.delta(2)
    assert len(boss.entries) == 1
    boss.delta(1)
    assert len(boss.entries) == 2


def test_the_next_round_is_leased_but_not_merged_before_the_commit() -> None:
    boss = boss_with_two()
    boss.instant = False
    for connection in (1, 2):
        boss.delta(connection)
    assert boss.order(1).round == 2 and not boss.machine.settled
    for connection in (1, 2):
        boss.delta(connection)
    assert boss.machine.round == 1 and len(boss.entries) == 1
    boss.do(boss.machine.committed(boss.entries[0], boss.now))
    assert boss.machine.round == 2 and [e.round for e in boss.entries] == [1, 2]


def test_a_lost_site_gives_its_ids_back_to_the_others() -> None:
    boss = boss_with_two()
    boss.delta(1)
    boss.do(boss.machine.lost(2, "killed", 1.0))
    assert [p.site for p in boss.entries[0].sites] == ["a"]
    assert boss.order(1).ids == ((8, 16),), "what b had is leased again, first"


def test_a_round_of_which_nothing_arrived_is_begun_again() -> None:
    boss = boss_with_two()
    boss.do(boss.machine.lost(1, "killed", 1.0))
    boss.do(boss.machine.lost(2, "killed", 1.0))
    assert not boss.entries
    boss.join(3, "a", 2)
    assert boss.order(3).round == 1 and boss.order(3).ids == ((0, 8),)


def test_who_joins_gets_every_update_and_a_lease_at_the_next_round() -> None:
    boss = boss_with_two()
    boss.delta(1)
    boss.join(3, "c")
    assert not any(s.connection == 3 and isinstance(s.message, Round) for s in boss.sent)
    boss.delta(2)
    mine = [type(s.message) for s in boss.sent if s.connection == 3]
    assert mine == [Welcome, Update, Update, Round] and boss.order(3).round == 2


def test_a_late_delta_is_left_out_and_counts_for_nothing() -> None:
    boss = boss_with_two()
    for _ in range(3):
        boss.now += 0.5
        boss.delta(1)
        boss.delta(2)
    late = boss.order(2)
    boss.now += 0.5
    boss.delta(1)
    boss.now += 60.0
    boss.say(1, Ready(1, 0))
    boss.say(2, Ready(1, 0))
    tick_twice(boss)
    assert [p.site for p in boss.entries[-1].sites] == ["a"] and len(boss.entries) == 4
    assert boss.order(2) == late, "no lease before it is heard of again"
    boss.delta(2)
    assert len(boss.entries) == 4
    boss.say(2, Ready(1, boss.machine.round))
    boss.delta(1)
    assert boss.order(2).round == 6


@pytest.mark.parametrize(
    ("more", "scale"),
    [
        ({"loss": None}, 1e-3),
        ({}, float("nan")),
        ({}, float("inf")),
        ({"tokens": 1}, 1e-3),
        ({"steps": 0}, 1e-3),
        ({"bits": 4}, 1e-3),
        ({"recalled": 1}, 1e-3),
        ({"recalled": -1}, 1e-3),
    ],
)
def test_a_bad_delta_is_refused_and_its_ids_are_leased_again(more: dict[str, Any], scale: float) -> None:
    boss = boss_with_two()
    boss.delta(1, scale, **more)
    assert boss.refused(1).reason == "bad_delta" and 1 in boss.closed
    boss.delta(2)
    assert [p.ids for p in boss.entries[0].sites] == [((8, 16),)]
    assert boss.order(2).ids == ((0, 8),)
    assert np.all(np.isfinite(boss.machine.outer.state))


def test_an_exploding_delta_is_refused_and_its_slot_quarantined_in_the_end() -> None:
    boss = boss_with_two()
    for _ in range(3):
        boss.delta(1)
        boss.delta(2)
    for incarnation in range(rules.STRIKES):
        boss.delta(2, 1.0)
        boss.delta(1)
        assert len(boss.entries[-1].sites) == 1
        boss.join(2, "b", 2 + incarnation)
        if incarnation < rules.STRIKES - 1:
            boss.delta(1)
    assert [s.message.reason for s in boss.sent if isinstance(s.message, Refused)][-1] == "quarantined"
    boss.now += rules.QUARANTINE_S + 1
    boss.join(9, "b", 9, ready=False)
    assert isinstance(boss.sent[-1].message, Welcome)


def test_the_door_names_both_sides() -> None:
    boss = Boss()
    boss.join(1, "a", parameters=7, ready=False)
    assert boss.refused(1).text == f"the parameters at a is 7, at the coordinator {PLAN.parameters}"
    boss.join(2, "a", version="0.0.1", ready=False)
    assert "version at a is 0.0.1" in boss.refused(2).text and boss.refused(2).retry_after_s < 0


def test_the_newer_incarnation_of_a_slot_wins() -> None:
    boss = boss_with_two()
    boss.join(3, "b", 2, ready=False)
    assert boss.closed[2] == "the same slot joined again"
    boss.join(4, "b", 1, ready=False)
    assert boss.refused(4).reason == "replaced"
    boss.delta(2)  # the old connection's last words
    assert not boss.entries


def test_a_round_never_crosses_a_stage_and_the_run_ends_with_the_held_out_score() -> None:
    boss = boss_with_two()
    while not boss.machine.pool.done:
        for connection in (1, 2):
            if boss.machine.book.owes({1: "a", 2: "b"}[connection]):
                boss.delta(connection)
    assert {PLAN.stage_of(p.ids[0][0]) for p in boss.entries[-1].sites} == {1}
    for entry in boss.entries:
        assert all(PLAN.stage_of(a) == PLAN.stage_of(b - 1) for p in entry.sites for a, b in p.ids)
    asked = boss.sent[-1].connection
    boss.do(boss.machine.lost(asked, "killed", 1.0))  # who was asked dies: the other is asked
    other = boss.sent[-1].connection
    assert other != asked
    boss.say(other, Evaluated(1, boss.machine.round, {"val_loss": 1.5}, {"correct": 1, "of": 2}))
    assert [e for e in boss.others if isinstance(e, Trained)] == [
        Trained({"val_loss": 1.5}, {"correct": 1, "of": 2})
    ]


def test_silence_and_standstill_end_a_connection() -> None:
    boss = boss_with_two()
    boss.now = rules.LIVENESS_S - 1
    boss.say(1, Ready(1, 0))
    boss.do(boss.machine.tick(rules.LIVENESS_S + 1))
    assert boss.closed == {2: "silent for too long"}


def test_who_is_late_and_never_heard_of_again_is_sent_away_to_join_anew() -> None:
    """Its pings come; the word that it was to answer was lost."""
    boss = boss_with_two(QUORUM)
    boss.delta(1)
    boss.do(boss.machine.lost(2, "killed", 1.0))
    assert boss.to(1, Revoked), "the round is given up, and the other was to say that it has heard"
    while boss.now < rules.STUCK_S + 2:
        boss.now += 5.0
        boss.machine.heard(1, boss.now)
        boss.do(boss.machine.tick(boss.now))
    assert boss.closed == {1: "no progress for too long"}


def test_speed_and_shares() -> None:
    speeds = {"a": 1.0, "b": 2.0, "c": 0.0, "d": 1.1}
    assert rules.ids_by_speed(10, 4, speeds) == {"a": 40, "b": 20, "c": 40, "d": 40}
    assert rules.ids_by_speed(1, 4, speeds)["b"] == 2, "in a round of one step, part of a batch"
    assert rules.share_out({"a": 30, "b": 10}, 100) == {"a": 30, "b": 10}
    assert rules.share_out({"a": 30, "b": 10}, 20) == {"a": 15, "b": 5}
    assert rules.share_out({"a": 40, "b": 40}, 30, batch=4) == {"a": 16, "b": 14}
    assert sum(rules.share_out({"a": 3, "b": 3, "c": 3}, 2).values()) == 2


def test_a_site_that_is_twice_as_slow_is_given_half_the_ids() -> None:
    boss = boss_with_two()
    boss.delta(1, seconds=0.4)
    boss.delta(2, seconds=0.8)
    assert [sum(b - a for a, b in boss.order(c).ids) for c in (1, 2)] == [8, 4]


# ---- rounds that overlap ------------------------------------------------------------------------------------


def test_the_round_after_the_next_is_leased_ahead() -> None:
    boss = boss_with_two(OVERLAPPED)
    assert [o.round for o in boss.to(1, Round)] == [1, 2] and not boss.order(1).waits
    for connection in (1, 2):
        boss.delta(connection, order=boss.order(connection, 1))
    assert [e.round for e in boss.entries] == [1]
    assert [o.round for o in boss.to(1, Round)] == [1, 2, 3]
    ids = sorted(r for c in (1, 2) for o in boss.to(c, Round) for r in o.ids)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ids)), "an id is leased twice"


def test_a_joiner_is_leased_into_the_round_ahead_only() -> None:
    boss = boss_with_two(OVERLAPPED)
    boss.join(3, "c")
    assert [o.round for o in boss.to(3, Round)] == [2]
    for connection in (1, 2):
        boss.delta(connection, order=boss.order(connection, 1))
    assert {p.worker for p in boss.entries[0].sites} == {"a", "b"}


def test_who_is_late_loses_both_leases() -> None:
    boss = boss_with_two(OVERLAPPED)
    boss.delta(1, order=boss.order(1, 1))
    mine = {r for o in boss.to(2, Round) for r in o.ids}
    boss.now = rules.FIRST_GRACE_S + 1
    for connection in (1, 2):
        boss.say(connection, Ready(1, 0))
    tick_twice(boss)
    assert [p.worker for p in boss.entries[0].sites] == ["a"]
    again = {r for o in boss.to(1, Round)[2:] for r in o.ids}
    assert again and all(any(a <= x[0] and x[1] <= b for a, b in mine) for x in again), "its ids come first"
    boss.delta(2, order=boss.order(2, 1))
    assert len(boss.entries) == 1, "what comes late counts for nothing"


def test_a_fragment_is_merged_early_but_a_lost_site_is_in_none() -> None:
    boss, plain = boss_with_two(OVERLAPPED), boss_with_two(OVERLAPPED)
    boss.delta(2, scale=5e-3, order=boss.order(2, 1), fragments=(0,))
    for each in (boss, plain):
        each.delta(1, order=each.order(1, 1))
    assert boss.machine.book.turns[0].merged, "the first fragment is here from all"
    for each in (boss, plain):
        each.do(each.machine.lost(2, "killed", 1.0))
    assert boss.entries[0].state_sha256 == plain.entries[0].state_sha256


def test_a_round_that_nobody_is_left_of_is_revoked_for_those_ahead() -> None:
    boss = boss_with_two(OVERLAPPED)
    boss.join(3, "c")
    boss.do(boss.machine.lost(1, "killed", 1.0))
    boss.do(boss.machine.lost(2, "killed", 1.0))
    assert boss.to(3, Revoked) == [Revoked(1, 0)]
    boss.say(3, Ready(1, 0))
    assert boss.order(3).round == 2 and boss.order(3, 1).ids == ((0, 8),)


def test_fewer_than_the_quorum_are_not_merged_and_begin_nothing() -> None:
    boss = boss_with_two(QUORUM)
    boss.delta(1)
    boss.do(boss.machine.lost(2, "killed", 1.0))
    assert not boss.entries and boss.to(1, Revoked)
    boss.say(1, Ready(1, 0))
    assert len(boss.to(1, Round)) == 1
    boss.join(2, "b", 2)
    assert boss.order(1).lease != boss.to(1, Round)[0].lease


# ---- work that outlives a connection ------------------------------------------------------------------------


def held(*orders: Round) -> tuple[Held, ...]:
    return tuple(Held(o.round, o.stage, o.ids, o.progress, o.inner_steps, o.waits, o.rate) for o in orders)


def bring(boss: Boss, connection: int, name: str, orders: tuple[Round, ...], incarnation: int = 1) -> Welcome:
    """Join with work."""
    machine = boss.machine
    sha256 = state_sha256(machine.outer.state)
    boss.join(
        connection,
        name,
        incarnation,
        ready=False,
        round=machine.round,
        state_sha256=sha256,
        held=held(*orders),
    )
    return boss.to(connection, Welcome)[-1]


def test_a_site_that_comes_back_goes_on_with_its_work() -> None:
    boss = boss_with_two(OVERLAPPED)
    orders = tuple(boss.to(2, Round))
    boss.do(boss.machine.lost(2, "its link broke", 1.0))
    welcome = bring(boss, 3, "b", orders)
    assert welcome.keep and len(welcome.adopted) == 2
    boss.delta(3, order=structs.replace(orders[0], lease=welcome.adopted[0]))
    boss.delta(1, order=boss.order(1, 1))
    assert [p.ids for p in boss.entries[0].sites] == [boss.order(1, 1).ids, orders[0].ids]


def test_a_new_coordinator_goes_on_with_the_work_of_all_sites() -> None:
    before, after = boss_with_two(OVERLAPPED), Boss(plan=OVERLAPPED)
    orders = {c: tuple(before.to(c, Round)) for c in (1, 2)}
    for connection, name in ((1, "a"), (2, "b")):
        assert len(bring(after, connection, name, orders[connection]).adopted) == 2
    leases = [after.to(c, Welcome)[-1].adopted[0] for c in (1, 2)]
    for connection, lease in zip((1, 2), leases, strict=True):
        after.delta(connection, order=structs.replace(orders[connection][0], lease=lease))
    assert [p.ids for p in after.entries[0].sites] == [orders[1][0].ids, orders[2][0].ids]


@pytest.mark.parametrize("why", ["taken", "another state", "a hole", "not of the stage", "of another tempo"])
def test_work_that_does_not_fit_is_not_adopted(why: str) -> None:
    boss = boss_with_two(OVERLAPPED)
    orders = tuple(boss.to(2, Round))
    boss.do(boss.machine.lost(2, "its link broke", 1.0))
    if why == "taken":
        boss.join(9, "c")
        orders = (structs.replace(orders[0], ids=boss.order(1, 1).ids), *orders[1:])
    elif why == "another state":
        boss.delta(1, order=boss.order(1, 1))
        boss.join(3, "b", ready=False, round=0, state_sha256="0" * 64, held=held(*orders))
        assert not boss.to(3, Welcome)[-1].keep
        return
    elif why == "a hole":
        orders = orders[1:]
    elif why == "not of the stage":
        orders = (structs.replace(orders[0], ids=((100, 108),)), *orders[1:])
    else:
        orders = (structs.replace(orders[0], inner_steps=3), *orders[1:])
    free = boss.machine.pool.free
    welcome = bring(boss, 3, "b", orders)
    assert welcome.adopted == () and boss.machine.pool.free == free


def test_a_clock_that_jumps_an_hour_changes_nothing() -> None:
    boss = boss_with_two()
    boss.delta(1)
    boss.delta(2)
    assert boss.entries[0].at == 1000.0, "the wall clock was read once, at the start"


IN_STEP = tiny_plan(
    dataclasses.replace(SPEC, outer=dataclasses.replace(OUTER, sync_fraction=0.5, overlap=True))
)


def test_of_gradients_it_takes_adams_step_and_writes_down_its_rate() -> None:
    boss = Boss(plan=IN_STEP, rung=1)
    boss.join(1, "a")
    boss.join(2, "b")
    before = boss.machine.outer.state.copy()
    stage = IN_STEP.stages[0]
    for round_number in range(1, 4):
        order = boss.order(1)
        assert order.gradient and order.waits and order.rate == 1.0
        for connection in (1, 2):
            boss.delta(connection, scale=0.25)
        entry = boss.entries[-1]
        assert entry.round == round_number and entry.gradients
        wanted = learning_rate(stage, (round_number - 0.5) * 2 * stage.batch / stage.ids)
        assert entry.learning_rate == pytest.approx(wanted)
        for connection in (1, 2):
            boss.say(connection, Ready(1, round_number))
    # equal gradients: every step of Adam's is its rate, and what is left of matrices' decay
    moved = boss.machine.outer.state - before
    rates = sum(entry.learning_rate for entry in boss.entries)
    assert np.abs(moved + rates).max() < 0.15 * rates


def test_a_coordinator_that_takes_over_lets_the_rate_of_its_new_moments_rise() -> None:
    boss = Boss(sites=1, plan=IN_STEP, rung=1)
    boss.machine.round = boss.machine._recent.round = 7  # as restored
    boss.join(1, "a")
    order = boss.order(1)
    assert order.round == 8 and order.gradient
    boss.delta(1, scale=0.25, fresh=True)
    stage = IN_STEP.stages[0]
    assert boss.entries[-1].learning_rate == pytest.approx(
        learning_rate(stage, sum(order.progress) / 2) * fresh_factor(0)
    )


def test_a_gradient_under_way_is_adopted_as_one_and_not_where_the_plan_has_none() -> None:
    held = Held(1, 0, ((0, 2),), (0.0, 0.02), 1, True, 1.0, True)
    without = dataclasses.replace(IN_STEP, outer=dataclasses.replace(IN_STEP.outer, sync="parameters"))
    for plan, adopted in ((IN_STEP, 1), (without, 0)):
        boss = Boss(plan=plan)
        sha256 = state_sha256(boss.machine.outer.state)
        boss.join(1, "a", ready=False, round=0, state_sha256=sha256, held=(held,))
        assert len(boss.to(1, Welcome)[0].adopted) == adopted
        turns = boss.machine.book.turns
        assert [turn.tempo.gradients for turn in turns] == [True] * adopted
