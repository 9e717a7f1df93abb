"""Fleets for the end-to-end tests; whatever a test leaves running is ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet
from tests.support.postgres import postgres

__all__ = ["fleet", "postgres"]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Makes fleets: `fleet(tokens=..., service=True)`."""
    made: list[Fleet] = []

    def make(tokens: int = 200_000, service: bool = False) -> Fleet:
        one = Fleet(tmp_path / f"fleet-{len(made)}", tokens, service)
        made.append(one)
        return one

    yield make
    for one in made:
        one.kill_everything()
