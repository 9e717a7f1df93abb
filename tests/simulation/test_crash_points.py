"""The control process killed between any two steps: nothing is leaked, nothing is there twice; and proof that the
checkers would have said so."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace

import pytest

from caudal.simulate.crashes import RULES, CrashWorld, crash_points

POINTS = 300


@pytest.mark.slow
def test_killed_between_any_two_steps_nothing_leaks() -> None:
    killed: Counter[str] = Counter()
    machines = 0
    for outcome in crash_points(POINTS):
        assert outcome.wrong == [], f"seed {outcome.seed}"
        assert outcome.leaked_s == 0.0, f"seed {outcome.seed}"
        killed += outcome.killed_after
        machines += outcome.machines
    assert sum(killed.values()) == POINTS
    calls = ("acquire_node", "release_node", "start_gang", "stop_gang")
    for step in (*(f"{when} {call}" for when in ("calling", "called") for call in calls), "recorded", "led"):
        assert killed[step], f"never killed after {step}"
    assert machines > POINTS / 20


def test_a_lease_that_ends_before_lists_can_show_its_machine_is_caught() -> None:
    worlds = [CrashWorld(seed, replace(RULES, unlisted_s=3.0)).run(20) for seed in range(1, 5)]
    assert any("which has ended" in text for world in worlds for text in world.wrong)
    assert sum(world.leaked_s for world in worlds) > 0


def test_strays_that_nobody_gives_back_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["caudal.policy.decide"], "release_strays", lambda board: None)
    worlds = [CrashWorld(seed).run(15) for seed in range(1, 5)]
    assert any("after down" in text for world in worlds for text in world.wrong)
    assert sum(world.leaked_s for world in worlds) > 0
