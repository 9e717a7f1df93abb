"""The bursts of the admission benchmark: what a slow engine could answer in time is about what is let in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from admission_bursts import measured


@pytest.mark.parametrize("size", [8, 16, 24])
def test_a_slow_engine_gets_about_as_many_as_it_can_answer_in_time(size: int) -> None:
    found = measured(size, count=10)
    alone, ours = found["engine alone"], found["caudal, interactive"]
    assert alone["let_in"] == size
    assert ours["let_in"] >= 0.85 * alone["in_time"] and ours["in_time"] >= 0.98 * ours["let_in"]
    patient = found["caudal, standard"]
    assert patient["let_in"] == size and patient["of_the_engine_alone"] >= 0.98
