"""What of a decision is worth keeping."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from caudal.domain.decision import Decision, Reason, Rejected, Waiting
from caudal.store.history import thin
from tests.support import rows

NOTHING = Decision(1, 100.0)


def waiting(subject: str, code: str, *rejected: str) -> Waiting:
    """One thing that waits, with the codes of what was rejected."""
    return Waiting(subject, "w", Reason(code, "why"), tuple(Rejected(r, Reason(r, "no")) for r in rejected))


def test_a_decision_of_nothing_is_not_kept() -> None:
    assert thin(NOTHING, {}) == (None, {})
    assert thin(NOTHING, {"a": "no_capacity"}) == (None, {})


def test_choices_are_always_kept() -> None:
    assert thin(rows.starts(), {}) == (rows.starts(), {})


def test_only_what_is_new_of_the_waiting_is_kept() -> None:
    _, before = thin(replace(NOTHING, waiting=(waiting("a", "full"), waiting("b", "full"))), {})
    both = rows.starts("c").choices
    kept, now = thin(
        replace(NOTHING, choices=both, waiting=(waiting("a", "full"), waiting("b", "back_off"))), before
    )
    assert kept == replace(NOTHING, choices=both, waiting=(waiting("b", "back_off"),))
    assert set(now) == {"a", "b"}


def test_other_alternatives_are_news() -> None:
    _, before = thin(replace(NOTHING, waiting=(waiting("a", "full", "north"),)), {})
    assert thin(replace(NOTHING, waiting=(waiting("a", "full", "south"),)), before)[0] is not None


CODES = st.sampled_from(["full", "back_off", "quarantined"])
WAITING = st.lists(st.builds(waiting, st.sampled_from("abc"), CODES), max_size=5).map(tuple)


@given(first=WAITING, second=WAITING)
def test_the_same_again_is_never_kept_and_a_change_always_is(
    first: tuple[Waiting, ...], second: tuple[Waiting, ...]
) -> None:
    _, before = thin(replace(NOTHING, waiting=first), {})
    assert thin(replace(NOTHING, at=200.0, waiting=first), before)[0] is None
    kept, _ = thin(replace(NOTHING, waiting=second), before)
    changed = {
        s
        for s in "abc"
        if any(w.subject == s for w in second)
        and sorted(w.reason.code for w in first if w.subject == s)
        != sorted(w.reason.code for w in second if w.subject == s)
    }
    assert {w.subject for w in (kept.waiting if kept else ())} == changed
