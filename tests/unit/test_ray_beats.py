"""How long a supervisor waits before it calls a gang lost: counted from when the head last answered its keeper."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from caudal.drivers.ray import kv, supervisor
from caudal.drivers.ray.supervisor import Beats


class Head:
    """A key-value store and a steady clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: dict[str, str] = {}
        self.at = 100.0
        monkeypatch.setattr(kv, "get", self.kept.get)
        monkeypatch.setattr(supervisor.time, "monotonic", lambda: self.at)


def test_the_last_answer_is_dated_by_the_look_that_saw_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(monkeypatch)
    beats = Beats("beat/north/g-1")
    assert beats.look() is None, "before the first beat nothing is known"
    head.kept["beat/north/g-1"] = "1"
    head.at = 101.0
    assert beats.look() == 101.0
    head.at = 105.0
    assert beats.look() == 101.0, "nobody was answered since"
    head.kept["beat/north/g-1"] = "2"
    head.at = 106.0
    assert beats.look() == 106.0, "answered between two looks: at the later one, at the latest"
