"""The site's machine: every delta holds what its own steps taught, once, whatever arrives in between."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from caudal.domain.workload import OuterSpec
from caudal.train.codec import Encoder, decode
from caudal.train.interface import InnerResult
from caudal.train.layout import initial_state
from caudal.train.messages import Delta, Finished, Ready, Refused, Revoked, Round, Update, Welcome
from caudal.train.outer import state_sha256
from caudal.train.protocol.effects import Compute, Done, Forget, Load, Rejoin, Send, Shift, StopCompute
from caudal.train.protocol.site import Site
from tests.support.train_world import SPEC, tiny_plan

PLAN = tiny_plan(dataclasses.replace(SPEC, outer=OuterSpec(inner_steps=4, fragments=3)))
CUTS = PLAN.fragments


def lesson(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(PLAN.parameters) * 0.01).astype(np.float32)


class Place:
    """A site, its inner side as one array, and what it said."""

    def __init__(self) -> None:
        self.site = Site(PLAN)
        self.params = np.zeros(PLAN.parameters, np.float32)
        self.computing: Compute | None = None
        self.shifts: list[Shift] = []
        self.said: list[Any] = []
        self.now = 0.0

    def do(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Load):
                self.params = effect.state.copy()
            elif isinstance(effect, Compute):
                assert self.computing is None, "two at once"
                self.computing = effect
            elif isinstance(effect, Shift) and self.computing is None:
                self.params[effect.start : effect.start + len(effect.change)] += effect.change
            elif isinstance(effect, Shift):
                self.shifts.append(effect)
            elif isinstance(effect, Send):
                self.said.append((effect.message, bytes(effect.payload)))
            else:
                self.said.append((effect, b""))

    def hear(self, message: Any, payload: bytes = b"") -> None:
        self.do(self.site.message(message, payload, self.now))

    def welcome(self, state: np.ndarray, round_number: int = 0, epoch: int = 1) -> None:
        self.hear(Welcome(epoch, round_number, state_sha256(state), ""), state.tobytes())

    def compute(
        self,
        taught: np.ndarray,
        took: str = "within",
        stopped: bool = False,
        steps: int = 4,
        tokens: int = 64,
        gradient: np.ndarray | None = None,
    ) -> None:
        """End the steps under way; `took`: whether shifts came in between them or behind."""
        assert self.computing is not None
        applied = {}
        self.params = self.params + taught
        for shift in self.shifts if took == "within" else []:
            self.params[shift.start : shift.start + len(shift.change)] += shift.change
            applied[shift.key] = 2
        result = InnerResult(self.params.copy(), tokens, 1.0, steps, 0.4, stopped, gradient)
        for shift in self.shifts if took == "behind" else []:
            self.params[shift.start : shift.start + len(shift.change)] += shift.change
        self.computing, self.shifts = None, []
        self.do(self.site.computed(result, applied, self.now))

    def update(
        self, step: np.ndarray, round_number: int, merged: tuple[str, ...], fragments: Any = None
    ) -> None:
        for fragment in fragments if fragments is not None else range(len(CUTS)):
            start, stop = CUTS[fragment]
            zeros = np.zeros(stop - start, np.float32)
            payload = Encoder().encode(step[start:stop], zeros, zeros.copy())
            self.hear(Update(1, round_number, merged, "", fragment), bytes(payload))

    def delta(self, round_number: int) -> np.ndarray:
        parts = [p for m, p in self.said if isinstance(m, Delta) and m.round == round_number]
        return np.concatenate([decode(p, b - a) for p, (a, b) in zip(parts, CUTS, strict=True)])

    def of(self, kind: type) -> list[Any]:
        return [m for m, _ in self.said if isinstance(m, kind)]


def order(round_number: int = 1, *, waits: bool = False, lease: str = "") -> Round:
    name = lease or f"lease-{round_number}"
    return Round(1, round_number, name, 0, ((8 * round_number, 8 * round_number + 8),), (0.0, 0.1), 4, waits)


def joined(round_number: int = 0) -> tuple[Place, np.ndarray]:
    place, state = Place(), initial_state(PLAN.shape, PLAN.vocab, 1)
    place.welcome(state, round_number)
    assert place.of(Ready) == [Ready(1, round_number)]
    return place, state


@pytest.mark.parametrize(
    ("when", "took"), list(itertools.product(["early", "split", "late"], ["within", "behind"]))
)
def test_a_delta_holds_what_its_steps_taught_and_nothing_else(when: str, took: str) -> None:
    place, _ = joined()
    place.hear(order(1))
    place.hear(order(2))
    place.compute(lesson(1))
    assert place.computing is not None, "the next round goes on while the delta travels"
    theirs = lesson(50)
    fragments = {"early": [0, 1, 2], "split": [1], "late": []}[when]
    place.update(theirs, 1, ("lease-1",), fragments)
    place.compute(lesson(2), took)
    assert (when == "early") == bool([m for m in place.of(Delta) if m.round == 2]), "it is cut at state 1"
    place.update(theirs, 1, ("lease-1",), [f for f in range(len(CUTS)) if f not in fragments])
    assert np.allclose(place.delta(1), lesson(1), atol=1e-3)
    assert np.allclose(place.delta(2) + place.site.residual * 0, lesson(2), atol=1e-3)
    assert np.allclose(place.params, place.site.state + lesson(2), atol=1e-5), "state plus what is not merged"


def test_where_sites_wait_the_state_is_loaded_to_the_last_bit() -> None:
    place, _ = joined()
    place.hear(order(1, waits=True))
    place.compute(lesson(1))
    assert place.computing is None
    place.update(lesson(9), 1, ("lease-1",))
    assert np.array_equal(place.params, place.site.state) and place.of(Ready)[-1] == Ready(1, 1)


def test_the_residual_of_what_was_merged_is_kept_and_no_other() -> None:
    for merged in (("lease-1",), ()):
        place, _ = joined()
        place.hear(order(1, waits=True))
        place.compute(lesson(1))
        place.update(lesson(9), 1, merged)
        assert bool(np.any(place.site.residual)) is bool(merged)


@pytest.mark.parametrize("computing", [True, False])
def test_work_that_was_not_merged_is_given_up(computing: bool) -> None:
    place, _ = joined()
    place.hear(order(1))
    if computing:
        place.hear(order(2))
    place.compute(lesson(1))
    place.update(lesson(9), 1, ("somebody-else",))
    if computing:
        assert place.of(StopCompute)
        place.compute(lesson(2), stopped=True)
    assert place.of(Forget) and np.array_equal(place.params, place.site.state)
    assert not place.site.works and place.of(Ready)[-1] == Ready(1, 1)
    place.hear(order(2, lease="again"))
    place.compute(lesson(3))
    assert [m.fresh for m in place.of(Delta)][-1], "its moments begin again"


def test_revoked_work_is_given_up() -> None:
    place, _ = joined()
    place.hear(order(2))
    place.hear(Revoked(1, 0))
    assert place.of(StopCompute)
    place.compute(lesson(1), stopped=True)
    assert place.of(Ready) == [Ready(1, 0), Ready(1, 0)] and np.array_equal(place.params, place.site.state)


def test_work_goes_on_without_a_coordinator_and_is_offered_to_the_next() -> None:
    place, state = joined()
    place.hear(order(1))
    place.hear(order(2))
    place.compute(lesson(1))
    round_number, sha256, held = place.site.offer()
    assert (round_number, sha256) == (0, state_sha256(state)) and [h.round for h in held] == [1, 2]
    place.compute(lesson(2))
    sent = len(place.said)
    place.hear(Welcome(7, 0, sha256, "", keep=True, adopted=("new-1", "new-2")))
    again = [m for m, _ in place.said[sent:]]
    assert [(m.epoch, m.lease, m.round) for m in again] == [(7, "new-1", 1)] * len(CUTS)
    assert len(place.of(Forget)) == 1, "the one of its first welcome: nothing was lost"


def test_half_an_update_before_a_break_is_taken_back() -> None:
    place, state = joined()
    place.hear(order(1))
    place.hear(order(2))
    place.compute(lesson(1))
    place.update(lesson(9), 1, ("lease-1",), [0])
    assert state_sha256(place.site.state) != state_sha256(state)
    assert place.site.offer() == (0, state_sha256(state), ())
    place.hear(Welcome(7, 0, state_sha256(state), "", keep=True))
    place.compute(lesson(2), stopped=True)
    assert np.array_equal(place.params, state) and place.of(Ready)[-1] == Ready(7, 0)


def test_work_that_is_not_adopted_is_given_up() -> None:
    place, state = joined()
    place.hear(order(1))
    place.compute(lesson(1))
    place.site.offer()
    place.hear(Welcome(2, 0, state_sha256(state), "", keep=True))
    assert place.of(Forget) and np.array_equal(place.params, state)


def test_an_idle_site_that_only_lost_its_connection_keeps_its_moments() -> None:
    place, state = joined()
    place.site.offer()
    place.hear(Welcome(2, 0, state_sha256(state), "", keep=True))
    assert len(place.of(Forget)) == 1, "the one of its first welcome"


def test_a_refused_delta_ends_the_work_that_made_it() -> None:
    place, _ = joined()
    place.hear(order(1))
    place.hear(order(2))
    place.compute(lesson(1))
    place.hear(Refused("bad_delta", "not finite"))
    assert place.of(StopCompute) and place.of(Rejoin)[-1].why == "not finite"
    assert place.site.offer()[2] == ()


def test_what_is_heard_twice_is_done_once() -> None:
    place, state = joined()
    place.welcome(state)
    assert len(place.of(Ready)) == 1
    place.hear(order(1))
    place.hear(order(1))
    place.compute(lesson(1))
    place.hear(order(1))
    for _ in range(2):
        place.update(lesson(9), 1, ("lease-1",))
    assert place.site.round == 1 and len(place.of(Delta)) == len(CUTS) and not place.of(Rejoin)


def test_a_state_that_is_not_the_coordinators_is_said_at_once() -> None:
    place, _ = joined()
    for fragment, (start, stop) in enumerate(CUTS):
        zeros = np.zeros(stop - start, np.float32)
        payload = Encoder().encode(zeros, zeros, zeros.copy())
        place.hear(Update(1, 1, (), "0" * 64, fragment), bytes(payload))
    assert "not the coordinator's" in place.of(Rejoin)[0].why
    assert place.site.offer()[0] == -1, "it needs the state anew"


@pytest.mark.parametrize(
    "message",
    [
        Update(1, 5, (), "", 0),
        Update(1, 1, (), "", 99),
        Update(9, 1, (), "", 0),
        order(5),
        structs.replace(order(2), waits=True),
    ],
)
def test_messages_that_do_not_fit_end_the_connection(message: Any) -> None:
    place, _ = joined()
    place.hear(message, b"1234")
    assert place.of(Rejoin)


def test_before_a_welcome_nothing_is_done() -> None:
    place = Place()
    place.hear(order(1))
    assert place.of(Rejoin)
    place = Place()
    place.hear(Refused("mismatch", "no", -1.0))
    assert place.of(Rejoin)[0].final
    place = Place()
    place.hear(Welcome(1, 0, "0" * 64, ""), bytes(4 * PLAN.parameters))
    assert "not the one" in place.of(Rejoin)[0].why


def test_the_end() -> None:
    place, _ = joined()
    place.hear(Finished())
    assert place.of(Done)
    place.hear(order(1))
    assert place.computing is None


def gradient_order(round_number: int, *, waits: bool = False) -> Round:
    ids = ((2 * round_number, 2 * round_number + 2),)
    return Round(1, round_number, f"lease-{round_number}", 0, ids, (0.0, 0.1), 1, waits, gradient=True)


def test_a_gradient_is_sent_and_the_step_of_its_own_is_taken_back_when_that_of_all_arrives() -> None:
    place, state = joined()
    place.hear(gradient_order(1))
    assert place.computing is not None and place.computing.gradient
    place.hear(gradient_order(2))
    place.compute(lesson(1), steps=1, tokens=16, gradient=lesson(11))
    assert np.allclose(place.delta(1), lesson(11), atol=1e-3), "the gradient, not what was learnt"
    assert place.computing is not None, "the next is under way"
    place.update(lesson(5), 1, ("lease-1",))
    place.compute(lesson(2), steps=1, tokens=16, gradient=lesson(12))
    assert np.allclose(place.delta(2), lesson(12) + lesson(11) - place.delta(1), atol=1e-3)
    now = place.site.state
    assert np.allclose(now, state + lesson(5), atol=1e-3)
    assert np.allclose(place.params, now + lesson(2), atol=1e-6), (
        "its own first step is undone, the second is not"
    )


def test_what_a_gradients_bytes_could_not_say_is_not_said_of_parameters() -> None:
    place, _ = joined()
    place.hear(gradient_order(1, waits=True))
    place.compute(lesson(1), steps=1, tokens=16, gradient=lesson(11))
    place.update(lesson(5), 1, ("lease-1",))
    assert np.abs(place.site.residual).max() > 0
    place.hear(order(2))
    place.compute(lesson(2))
    zeros = np.zeros(PLAN.parameters, np.float32)
    exact = [
        decode(Encoder().encode(place.site.works[0].learnt[a:b], zeros[a:b], zeros[a:b].copy()), b - a)
        for a, b in CUTS
    ]
    assert np.array_equal(place.delta(2), np.concatenate(exact))
