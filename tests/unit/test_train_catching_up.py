"""Who joins late or comes back: with the rounds that it missed where it can, and at a pace that it can follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caudal.domain.workload import OuterSpec
from caudal.train import checkpoint
from caudal.train.config import WorkerConfig
from caudal.train.messages import Ready, Round, Update, Welcome
from caudal.train.outer import state_sha256
from caudal.train.protocol.effects import Say, Send
from caudal.train.protocol.ladder import LONG_ROUNDS, Ladder
from caudal.train.protocol.site import Site
from caudal.train.work import state_from_store
from tests.support.train_world import SPEC, begin
from tests.unit.test_train_coordinator import PLAN, Boss, boss_with_two


def rounds(boss: Boss, count: int, *connections: int) -> None:
    for _ in range(count):
        for connection in connections:
            boss.delta(connection)
        for connection in connections:
            boss.say(connection, Ready(1, boss.machine.round))


def said_to(boss: Boss, connection: int) -> list[Any]:
    return [s.message for s in boss.sent if s.connection == connection]


def hear_all(boss: Boss, connection: int, site: Site) -> list[Any]:
    """The site hears what was said to it; returns what it says."""
    heard = [s for s in boss.sent if s.connection == connection]
    effects = [e for s in heard for e in site.message(s.message, bytes(s.payload), 0.0)]
    return [e.message for e in effects if isinstance(e, Send)]


def test_who_has_a_state_of_a_moment_ago_gets_the_rounds_since_and_arrives_at_the_same_bytes() -> None:
    boss = boss_with_two()
    rounds(boss, 1, 1, 2)
    before, number = boss.machine.outer.state.copy(), boss.machine.round
    rounds(boss, 2, 1, 2)
    site = Site(PLAN)
    site.begin_with(before.copy(), number)
    assert site.offer() == (number, state_sha256(before), ())
    boss.join(3, "c", ready=False, round=number, state_sha256=state_sha256(before))
    welcome = said_to(boss, 3)[0]
    assert isinstance(welcome, Welcome) and welcome.keep and welcome.round == number
    assert [m.round for m in said_to(boss, 3)[1:]] == [2, 2, 3, 3]
    answers = hear_all(boss, 3, site)
    assert answers[-1] == Ready(1, 3) and np.array_equal(site.state, boss.machine.outer.state)
    for answer in answers:
        boss.say(3, answer)
    rounds(boss, 1, 1, 2)
    assert boss.order(3).round == boss.machine.round + 1


def test_a_state_that_nobody_knows_or_that_is_too_old_is_sent_anew() -> None:
    boss = boss_with_two()
    first = state_sha256(boss.machine.outer.state)
    rounds(boss, 6, 1, 2)
    boss.join(3, "c", ready=False, round=0, state_sha256=first)
    boss.join(4, "d", ready=False, round=boss.machine.round - 1, state_sha256="0" * 64)
    boss.join(5, "e", ready=False, round=boss.machine.round + 1, state_sha256=first)
    for connection in (3, 4, 5):
        sent = [s for s in boss.sent if s.connection == connection]
        assert isinstance(sent[0].message, Welcome) and not sent[0].message.keep
        assert len(sent[0].payload) == 4 * PLAN.parameters
    boss.join(6, "f", ready=False, round=5, state_sha256=boss.entries[-2].state_sha256)
    assert [m.round for m in said_to(boss, 6) if isinstance(m, Update)] == [6, 6]


def test_a_joiner_that_falls_behind_makes_rounds_longer_until_it_follows() -> None:
    ladder = Ladder(OuterSpec(inner_steps=8, max_inner_steps=32), rung=8)
    for lag in (0, 1, 2, 3):
        ladder.joining([lag])
    assert ladder.rung == 12 and "does not catch up" in ladder.why
    for lag in (3, 2, 1, 0, 0, 1, 1, 1, 1):
        ladder.joining([lag])
    assert ladder.rung == 12
    for _ in range(20 * LONG_ROUNDS):
        ladder.joining([5, 1])
    assert ladder.rung == 32
    ladder.joining([])


def test_the_coordinator_tells_the_ladder_how_far_behind_a_joiner_is() -> None:
    boss = boss_with_two()
    boss.join(3, "c", ready=False)
    before = boss.machine.ladder.rung
    rounds(boss, 4, 1, 2)
    assert boss.machine.ladder.rung == before, "its state is on its way: nothing is known of its link yet"
    boss.say(3, Ready(1, 1))
    rounds(boss, 5, 1, 2)
    boss.do(boss.machine.tick(boss.now))
    assert boss.machine.ladder.rung > before
    assert any("catch up" in e.text for e in boss.others if isinstance(e, Say))
    assert not any(isinstance(m, Round) for m in said_to(boss, 3))


def test_a_state_from_the_store_is_the_last_committed_one(tmp_path: Path) -> None:
    from caudal.store.blobs import open_blobs

    blobs = open_blobs(tmp_path.as_uri())
    config = WorkerConfig(
        run="tiny", generation=1, site="a", gang="tiny.worker.0-1", blobs_url=blobs.url, cache_dir="", spec=SPEC,
        token="t",
    )  # fmt: skip
    assert state_from_store(config, blobs, PLAN.parameters) is None
    begin(blobs, PLAN)
    path = blobs.list(f"{config.prefix}/manifests/")
    if not path:
        pytest.fail(f"the run was begun elsewhere: {blobs.list('')}")
    found = state_from_store(config, blobs, PLAN.parameters)
    assert found is not None and found.round == 0
    assert checkpoint.read(blobs, config.prefix, path[0])[0].state_sha256 == state_sha256(found.state)
    blobs.put(path[0], b"{")
    assert state_from_store(config, blobs, PLAN.parameters) is None, "the coordinator is asked then"
