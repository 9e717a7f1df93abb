"""How many inner steps a round has, and why."""

from __future__ import annotations

from dataclasses import replace

from caudal.domain.workload import OuterSpec
from caudal.train.interface import Stage
from caudal.train.leases import Pool
from caudal.train.ledger import Entry
from caudal.train.protocol.book import Book
from caudal.train.protocol.ladder import CLIMB_ROUNDS, HOLD_ROUNDS, LONG_ROUNDS, WINDOW, Ladder
from tests.support.train_world import SPEC, tiny_plan

PLAN = tiny_plan(SPEC)
OUTER = OuterSpec(sync_fraction=0.25, inner_steps=8, max_inner_steps=32, bits=8, grow=False)


def see(
    ladder: Ladder, rounds: int, *, done: float, wait: float = 0.0, back: float = 0.5, loss: float = 2.0
) -> None:
    for _ in range(rounds):
        ladder.saw(ladder.rung, 0, done, wait, back, loss)


def ended(steps: int, *, gradients: bool = False) -> Entry:
    """A run's twentieth round."""
    return Entry(
        "r", 20, 1, "", 0, steps, 1.0, 0.0, (), 0, 0, 1.0, "", 0, "", 0.0, gradients=gradients
    )  # fmt: skip


def test_the_warm_up_is_synchronous_where_the_link_is_fast() -> None:
    ladder = Ladder(OUTER)
    see(ladder, 50, done=0.1, wait=0.01)
    tempo = ladder.tempo(0.1)
    assert (tempo.inner_steps, tempo.learning_rate, tempo.momentum, tempo.waits) == (1, 1.0, 0.0, True)


def test_behind_the_warm_up_it_climbs_to_what_was_asked_for() -> None:
    ladder, rungs = Ladder(OUTER), []
    for _ in range(5 * CLIMB_ROUNDS):
        see(ladder, 1, done=0.3)
        rungs.append(ladder.rung)
    assert sorted(set(rungs)) == [2, 4, 8] and rungs == sorted(rungs)
    tempo = ladder.tempo(0.3)
    assert (tempo.learning_rate, tempo.momentum, tempo.waits) == (1.0, 0.0, False)
    assert "the warm-up is over" in ladder.why


def test_a_slow_link_makes_it_climb_in_a_warm_up_on_parameters_and_beyond() -> None:
    ladder = Ladder(replace(OUTER, sync="parameters"))
    see(ladder, 10 * WINDOW, done=0.1, wait=0.2)
    assert ladder.rung == 8, "the warm-up goes no higher than what was asked for"
    see(ladder, 20 * WINDOW, done=0.5, wait=0.2)
    assert ladder.rung == 32 and "sites waited 20.0%" in ladder.why


def test_it_comes_down_where_updates_are_back_early() -> None:
    ladder = Ladder(OUTER, rung=32)
    see(ladder, 10 * WINDOW, done=0.5, wait=0.0, back=0.1)
    assert ladder.rung == 8 and "updates were back" in ladder.why


def test_a_loss_that_rises_halves_it_and_holds_it() -> None:
    ladder = Ladder(OUTER, rung=8)
    see(ladder, WINDOW, done=0.5, loss=2.0)
    see(ladder, 2 * WINDOW, done=0.5, loss=2.4)
    assert ladder.rung == 4 and "the loss rose" in ladder.why
    see(ladder, HOLD_ROUNDS // 2, done=0.5, loss=2.4, wait=0.5)
    assert ladder.rung == 4
    see(ladder, 4 * HOLD_ROUNDS, done=0.5, loss=2.4, back=0.5)
    assert ladder.rung == 8


def test_tiny_losses_that_move_by_half_say_nothing() -> None:
    ladder = Ladder(OUTER, rung=8)
    see(ladder, WINDOW, done=0.5, loss=0.001)
    see(ladder, 2 * WINDOW, done=0.5, loss=0.0015)
    assert ladder.rung == 8


def test_without_overlap_sites_wait_at_every_rung() -> None:
    assert Ladder(OuterSpec(overlap=False), rung=10).tempo(0.9).waits


def test_long_waits_are_answered_within_a_few_rounds_and_in_proportion() -> None:
    ladder = Ladder(OUTER, rung=8)
    see(ladder, LONG_ROUNDS - 1, done=0.5, wait=0.5)
    assert ladder.rung == 8
    see(ladder, 1, done=0.5, wait=0.5)
    assert ladder.rung == 18, "twice the computing fills the time, and a tenth more"
    see(ladder, WINDOW - 1, done=0.5, wait=0.05)
    assert ladder.rung == 18, "short waits are looked at for longer"


def test_one_round_without_a_wait_keeps_it_from_hurrying() -> None:
    ladder = Ladder(OUTER, rung=8)
    see(ladder, 1, done=0.5, wait=0.0)
    see(ladder, LONG_ROUNDS + 1, done=0.5, wait=0.5)
    assert ladder.rung == 8


def test_rounds_grow_as_the_learning_rate_falls_and_no_further_than_thirty_two_times() -> None:
    ladder = Ladder(OuterSpec(inner_steps=2, max_inner_steps=120), rung=2)
    steps = [ladder.tempo(0.5, cooled).inner_steps for cooled in (1.0, 0.8, 0.5, 0.36, 0.1, 0.0)]
    assert steps == [2, 3, 8, 15, 64, 64] and ladder.tempo(0.5, 0.5).rung == 2
    on_parameters = Ladder(OuterSpec(sync="parameters"), rung=2)
    assert on_parameters.tempo(0.1, 0.5).inner_steps == 2, "in the warm-up sites agree as they can"
    ladder.rung = 80  # the network's
    assert ladder.tempo(0.5, 0.5).inner_steps == 80
    assert Ladder(OuterSpec(inner_steps=4, max_inner_steps=10), rung=4).tempo(0.5, 0.1).inner_steps == 10
    assert Ladder(OUTER, rung=8).tempo(0.5, 0.1).inner_steps == 8, "only where it is asked for"
    assert Ladder.begun(OuterSpec(inner_steps=4), ended(31)).rung == 4
    assert Ladder.begun(OuterSpec(), ended(1)).rung == Ladder.begun(OuterSpec(), None).rung == 1


def test_what_grew_is_judged_by_its_rung() -> None:
    ladder = Ladder(OuterSpec(inner_steps=4, max_inner_steps=120), rung=4)
    for _ in range(LONG_ROUNDS):
        tempo = ladder.tempo(0.5, 0.5)
        ladder.saw(tempo.rung, 0, 0.5, 0.4, 1.0, 2.0)
    assert ladder.rung == 8 and ladder.tempo(0.5, 0.5).inner_steps == 32


def test_how_far_the_rate_has_fallen_is_read_at_the_next_ids() -> None:
    book = Book(PLAN, Pool(PLAN.total_ids), 1)
    first, second = PLAN.stages
    assert book.cooled() == 1.0
    seen = []
    for name in range(4):
        book.pool.lease(str(name), first.ids // 4, first.first_id, first.end_id)
        seen.append(book.cooled())
    assert seen[:3] == sorted(seen[:3], reverse=True) and seen[2] < 0.5
    book.pool.lease("rest", first.ids, first.first_id, first.end_id)
    assert book.cooled() == 1.0, "the next stage begins at its own highest rate"
    script = Stage("data", "text", 0, second.ids, 9, 4, 1, 0.0, 0.0, 0.0, 0.0)
    mine = replace(PLAN, stages=(script,))
    assert Book(mine, Pool(mine.total_ids), 1).cooled() == 1.0, "a script's rate is not known"


def in_step(outer: OuterSpec, steps: int, wait: float, of: float = 0.001) -> Ladder:
    """A ladder that saw so many rounds of gradients, each `of` the run's tokens, with so much waiting in each."""
    ladder = Ladder(outer)
    for step in range(1, steps + 1):
        ladder.saw(ladder.tempo(of * step).rung, 0, of * step, wait, 0.0, 3.0)
    return ladder


def test_in_the_warm_up_sites_agree_on_gradients_and_always_wait_for_them() -> None:
    for wait in (0.0, 0.4, 0.9):
        tempo = in_step(OUTER, 63, wait).tempo(0.1)
        assert (tempo.inner_steps, tempo.gradients, tempo.waits, tempo.bits) == (1, True, True, 4)
    behind = Ladder(OUTER).tempo(0.3)
    assert not behind.gradients and behind.bits == 8, "behind the warm-up every site goes its own way"


def test_the_part_in_step_ends_where_its_waiting_costs_more_than_the_run_may_wait() -> None:
    # a wait as long as a step, for a thousandth of the run each: 3 % are used up after 30 steps
    outer = replace(OUTER, sync_steps=10, wait_share=0.03)
    assert in_step(outer, 31, 0.5).tempo(0.032).gradients
    ladder = in_step(outer, 32, 0.5)
    assert not ladder.tempo(0.032).gradients and "3.1% of the run after 32 steps" in ladder.why
    assert ladder.rung == 2 and not ladder.tempo(0.032).waits, "it climbs from there"
    assert in_step(outer, 200, 0.1).tempo(0.201).gradients, "short waits are no reason"
    assert in_step(replace(outer, wait_share=1.0), 200, 0.5).tempo(0.201).gradients, "the user's word"


def test_the_first_steps_are_taken_in_step_whatever_that_costs() -> None:
    outer = replace(OUTER, sync_steps=64, wait_share=0.0)
    assert in_step(outer, 63, 0.9).tempo(0.1).gradients
    assert not in_step(outer, 64, 0.9).tempo(0.1).gradients
    assert not in_step(replace(outer, sync_steps=0), 2, 0.5).tempo(0.1).gradients


def test_a_coordinator_that_takes_over_stays_in_the_part_in_which_the_run_is() -> None:
    assert Ladder.begun(OUTER, ended(1, gradients=True)).tempo(0.1).gradients
    assert Ladder.begun(OUTER, ended(1, gradients=True)).part.steps == 20
    later = Ladder.begun(OUTER, ended(2))
    assert not later.tempo(0.1).gradients and later.rung == 2, "it is never gone back to"
    assert Ladder.begun(OUTER, None).tempo(0.0).gradients, "a new run"
    assert not Ladder.begun(replace(OUTER, sync="parameters"), ended(1)).part.over


def test_a_site_that_cannot_catch_up_with_steps_ends_the_part_in_step() -> None:
    ladder = in_step(OUTER, 5, 0.0)
    for lag in (3, 4, 5, 6, 7):
        ladder.joining([lag])
    assert not ladder.tempo(0.1).gradients and ladder.rung == 2 and "does not catch up" in ladder.why


def test_gradients_are_not_asked_for_where_the_spec_says_parameters() -> None:
    ladder = Ladder(replace(OUTER, sync="parameters"))
    assert not ladder.tempo(0.1).gradients
    see(ladder, WINDOW, done=0.1, wait=0.05)
    assert ladder.rung == 2
