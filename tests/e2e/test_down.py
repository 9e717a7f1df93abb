"""`caudal down` beside a control process that runs, and where none does: real gangs end, every lease is released."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def machines(fleet: Fleet) -> list[str]:
    """This machine's own list, as files."""
    return sorted(p.name for p in (fleet.home / "machines").glob("*.json"))


def test_down_takes_over_from_the_control_process_and_leaves_nothing(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=50_000_000)
    one.up()
    one.wait_for(lambda: one.workload()["state"] == "running", 90, "the run to run")
    assert machines(one) == ["north.json", "south.json"]
    down = one.caudal("down", timeout_s=110)
    assert down.returncode == 0, down.stdout + down.stderr
    assert "nothing is left" in down.stdout
    assert one.process is not None and one.process.wait(timeout=20) == 0
    assert one.children() == []
    assert machines(one) == []
    cost = one.caudal("cost", "--json")
    assert cost.returncode == 0 and '"total_usd": "0.00"' in cost.stdout
    again = one.caudal("down", "--json", timeout_s=60)
    assert again.returncode == 0 and '"left": []' in again.stdout
    one.up()  # what was asked for is still asked for
    one.wait_for(lambda: one.workload()["state"] == "running", 90, "the run to run again")
    one.kill_control()
    dead = one.caudal("down", timeout_s=110)  # what a dead process left behind
    assert dead.returncode == 0, dead.stdout + dead.stderr
    assert one.children() == []
    assert machines(one) == []
