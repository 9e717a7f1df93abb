"""The coordinator's and the site's machines, step by step."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from caudal.domain.workload import OuterSpec
from caudal.train.checkpoint import Restored, Totals
from caudal.train.codec import Encoder
from caudal.train.interface import InnerResult
from caudal.train.layout import initial_state
from caudal.train.messages import Delta, Evaluated, Ready, Refused, Round, Update, Welcome
from caudal.train.outer import state_sha256
from caudal.train.protocol import rules
from caudal.train.protocol.coordinator import Coordinator, Terms
from caudal.train.protocol.effects import Close, Commit, Compute, Rejoin, Send, StopCompute, Trained
from caudal.train.protocol.site import Site
from tests.support.train_world import SPEC, hello, tiny_plan

PLAN = tiny_plan(dataclasses.replace(SPEC, outer=OuterSpec(sync_fraction=0.0, inner_steps=4)))


class Boss:
    """A coordinator whose commits are durable at once, and what it said to whom."""

    def __init__(self, sites: int = 2) -> None:
        state = initial_state(PLAN.shape, PLAN.vocab, 1)
        start = Restored(0, state, np.zeros_like(state), None, Totals(), 0)
        self.machine = Coordinator(Terms(PLAN, 1, 1, sites, 100, 100), start, 0.0, 1000.0)
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
        self.do(self.machine.hello(connection, hello(PLAN, name, incarnation, **more), "", self.now))
        if ready:
            self.say(connection, Ready(1, self.machine.round))

    def say(self, connection: int, message: Any, payload: bytes = b"") -> None:
        self.do(self.machine.message(connection, message, payload, self.now))

    def order(self, connection: int) -> Round:
        return [s.message for s in self.sent if s.connection == connection and isinstance(s.message, Round)][
            -1
        ]

    def delta(self, connection: int, scale: float = 1e-3, **more: Any) -> None:
        order = self.order(connection)
        learnt = np.full(PLAN.parameters, scale, np.float32)
        payload = Encoder(len(learnt)).encode(learnt, np.zeros_like(learnt), np.zeros_like(learnt))
        ids = sum(b - a for a, b in order.ids)
        fields = {"tokens": ids * 8, "loss": 2.0, "steps": 4, "seconds": 0.4, **more}
        self.say(
            connection,
            Delta(1, order.round, order.lease, start=0, stop=PLAN.parameters, **fields),
            bytes(payload),
        )

    def refused(self, connection: int) -> Refused:
        return next(
            s.message for s in self.sent if s.connection == connection and isinstance(s.message, Refused)
        )


def boss_with_two() -> Boss:
    boss = Boss()
    boss.join(1, "a")
    boss.join(2, "b")
    return boss


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
    assert mine == [Welcome, Update, Round] and boss.order(3).round == 2


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
    boss.do(boss.machine.tick(boss.now))
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
            if boss.machine.members.of(connection).lease:  # type: ignore[union-attr]
                boss.delta(connection, steps=1)
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


def test_tempo_speed_and_shares() -> None:
    outer = OuterSpec(sync_fraction=0.25, inner_steps=10)
    assert rules.tempo(outer, 24, 100) == rules.Tempo(1, 1.0, 0.0)
    assert rules.tempo(outer, 25, 100) == rules.Tempo(10, 0.8, 0.5)
    assert rules.steps_by_speed(10, {"a": 1.0, "b": 2.0, "c": 0.0, "d": 1.1}) == {
        "a": 10,
        "b": 5,
        "c": 10,
        "d": 10,
    }
    assert rules.share_out({"a": 30, "b": 10}, 100) == {"a": 30, "b": 10}
    assert rules.share_out({"a": 30, "b": 10}, 20) == {"a": 15, "b": 5}
    assert sum(rules.share_out({"a": 3, "b": 3, "c": 3}, 2).values()) == 2


# ---- the site -----------------------------------------------------------------------------------------------


def site() -> tuple[Site, np.ndarray]:
    made, state = Site(PLAN.parameters), initial_state(PLAN.shape, PLAN.vocab, 1)
    effects = made.message(Welcome(1, 0, state_sha256(state), ""), state.tobytes())
    assert [type(e).__name__ for e in effects] == ["Load", "Send"]
    return made, state


def order(round_number: int = 1, lease: str = "x") -> Round:
    return Round(1, round_number, lease, 0, ((0, 8),), (0.0, 0.1))


def update(
    state: np.ndarray, merged: tuple[str, ...] = (), sha256: str = "", round_number: int = 1
) -> tuple[Update, bytes]:
    step = np.full(len(state), 0.01, np.float32)
    payload = Encoder(len(state)).encode(step, np.zeros_like(step), np.zeros_like(step))
    return Update(1, round_number, merged, sha256, 0, len(state)), bytes(payload)


def test_a_site_keeps_the_residual_of_what_was_merged_only() -> None:
    for merged in (("x",), ()):
        made, state = site()
        (compute,) = made.message(order(), b"")
        assert isinstance(compute, Compute)
        learnt = np.random.default_rng(0).standard_normal(len(state)).astype(np.float32)
        (sent,) = made.computed(InnerResult(state + learnt, 64, 1.0, 4, 0.1))
        assert isinstance(sent, Send) and isinstance(sent.message, Delta)
        made.message(*update(state, merged))
        assert bool(np.any(made.residual)) is bool(merged)


def test_a_site_that_differs_refuses_to_go_on() -> None:
    made, state = site()
    (effect,) = made.message(*update(state, sha256="0" * 64))
    assert isinstance(effect, Rejoin) and "not the coordinator's" in effect.why
    assert made.message(order(2), b"") == []


def test_what_is_heard_twice_is_done_once() -> None:
    made, state = site()
    welcome = Welcome(1, 0, state_sha256(state), "")
    assert made.message(welcome, state.tobytes()) == []
    assert len(made.message(order(), b"")) == 1
    assert made.message(order(), b"") == []
    made.computed(InnerResult(state, 64, 1.0, 4, 0.1))
    assert made.message(order(), b"") == []
    assert len(made.message(*update(state, ("x",)))) == 2
    assert made.message(*update(state, ("x",))) == [] and made.round == 1
    assert made.message(order(), b"") == []


def test_an_update_while_computing_stops_it_and_is_applied_then() -> None:
    made, state = site()
    made.message(order(), b"")
    assert made.message(*update(state)) == [StopCompute()]
    effects = made.computed(InnerResult(state, 0, 0.0, 0, 0.0, stopped=True))
    assert [type(e).__name__ for e in effects] == ["Load", "Send"] and made.round == 1


def test_messages_that_do_not_fit_end_the_connection() -> None:
    made, state = site()
    (effect,) = made.message(*update(state, round_number=3))
    assert isinstance(effect, Rejoin)
    made, state = site()
    (effect,) = made.message(order(5), b"")
    assert isinstance(effect, Rejoin)
    made = Site(PLAN.parameters)
    (effect,) = made.message(order(), b"")
    assert isinstance(effect, Rejoin)
    (effect,) = Site(PLAN.parameters).message(Refused("mismatch", "no", -1.0), b"")
    assert isinstance(effect, Rejoin) and effect.final
    (effect,) = Site(PLAN.parameters).message(Welcome(1, 0, "0" * 64, ""), bytes(4 * PLAN.parameters))
    assert isinstance(effect, Rejoin)
