"""What every driver promises: `ports.Driver`, said as tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from caudal.domain.errors import NotFound, Stale
from caudal.domain.gang import GangState, GangStatus, gang_id
from caudal.policy.slots import replica_slot
from tests.conformance.ports import DRIVERS, Does, DriverCase, unreachable


@pytest.fixture(params=DRIVERS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DriverCase]:
    build, needs = request.param
    if needs:
        request.getfixturevalue(needs)
    with build(tmp_path) as built:
        yield built
        if built.silence:
            built.silence(False)
        for status in built.driver.gangs():
            if status.alive:
                built.driver.stop(status.gang_id, 0.0)
        built.until(lambda: not any(s.alive for s in built.driver.gangs()))


def start(case: DriverCase, gang_id: str, does: Does | None = None) -> GangStatus:
    """Start a gang and wait until it runs or is over."""
    case.driver.start(case.make_spec(gang_id, does or Does()), f"token-{gang_id}")
    return case.until(lambda: seen(case, gang_id, GangState.RUNNING, GangState.EXITED))


def seen(case: DriverCase, gang_id: str, *states: GangState) -> GangStatus | None:
    """The gang's row, if it is in one of the states."""
    return next((s for s in case.driver.gangs() if s.gang_id == gang_id and s.state in states), None)


def over(case: DriverCase, gang_id: str) -> GangStatus:
    """Wait until the gang has ended."""
    return case.until(lambda: seen(case, gang_id, GangState.EXITED, GangState.LOST))


def test_a_site_starts_empty(case: DriverCase) -> None:
    assert list(case.driver.gangs()) == []


def test_what_was_started_is_listed_at_once(case: DriverCase) -> None:
    case.driver.start(case.make_spec("a-0", Does()), "t")
    (status,) = case.driver.gangs()
    assert status.gang_id == "a-0"
    assert status.alive
    assert status.site == case.driver.site


def test_ids_of_gangs_of_a_newer_version_are_taken(case: DriverCase) -> None:
    newer = gang_id(replica_slot("assistant", "smollm2-135m", 0, generation=2, version=3), 1)
    start(case, newer)
    case.driver.stop(newer, 1.0)
    assert over(case, newer).gang_id == newer


def test_a_running_gang_says_since_when(case: DriverCase) -> None:
    status = start(case, "a-0")
    assert status.started_at is not None
    assert status.ended_at is None
    assert status.exit_code is None
    assert len(status.pids) == 1


def test_starting_twice_is_starting_once(case: DriverCase) -> None:
    first = start(case, "a-0")
    case.driver.start(case.make_spec("a-0", Does()), "token-a-0")
    with contextlib.suppress(Stale):  # a driver may say that another token had started it
        case.driver.start(case.make_spec("a-0", Does()), "another token")
    (again,) = case.driver.gangs()
    assert (again.pids, again.started_at) == (first.pids, first.started_at)


def test_starting_one_that_is_over_starts_nothing(case: DriverCase) -> None:
    start(case, "a-0", Does(runs_s=0.0, exit_code=3))
    ended = over(case, "a-0")
    case.driver.start(case.make_spec("a-0", Does()), "token-a-0")
    assert over(case, "a-0") == ended


@pytest.mark.parametrize("code", [0, 3, 143])
def test_the_exit_code_is_kept(case: DriverCase, code: int) -> None:
    start(case, "a-0", Does(runs_s=0.05, exit_code=code))
    status = over(case, "a-0")
    assert status.state is GangState.EXITED
    assert status.exit_code == code
    assert status.ended_at is not None and status.started_at is not None
    assert status.ended_at >= status.started_at
    assert status.pids == ()


def test_a_stopped_gang_ends_by_itself(case: DriverCase) -> None:
    start(case, "a-0", Does(prints="up"))
    case.until(lambda: "up" in case.driver.logs("a-0"))
    case.driver.stop("a-0", 10.0)
    assert over(case, "a-0").exit_code == 143


def test_one_that_does_not_heed_is_killed_after_the_grace(case: DriverCase) -> None:
    start(case, "a-0", Does(heeds_stop=False, prints="up"))
    case.until(lambda: "up" in case.driver.logs("a-0"))
    case.driver.stop("a-0", case.grace_s)
    case.pass_time(case.grace_s / 3)
    assert seen(case, "a-0", GangState.RUNNING), "killed before the grace was over"
    assert over(case, "a-0").exit_code == -9


def test_stop_returns_at_once_and_may_be_repeated(case: DriverCase) -> None:
    start(case, "a-0", Does(heeds_stop=False, prints="up"))
    case.until(lambda: "up" in case.driver.logs("a-0"))
    case.driver.stop("a-0", case.grace_s)
    case.driver.stop("a-0", 600.0)
    assert over(case, "a-0").exit_code == -9


def test_stopping_what_is_over_or_unknown_is_fine(case: DriverCase) -> None:
    start(case, "a-0", Does(runs_s=0.0))
    ended = over(case, "a-0")
    case.driver.stop("a-0", 1.0)
    case.driver.stop("nobody-0", 1.0)
    assert list(case.driver.gangs()) == [ended]


def test_one_gang_ends_and_the_other_goes_on(case: DriverCase) -> None:
    start(case, "a-0")
    start(case, "b-0", Does(runs_s=0.05, exit_code=1))
    over(case, "b-0")
    assert seen(case, "a-0", GangState.RUNNING)


def test_what_is_over_stays_listed_until_it_is_forgotten(case: DriverCase) -> None:
    start(case, "a-0", Does(runs_s=0.0))
    over(case, "a-0")
    case.pass_time(0.2)
    assert [s.gang_id for s in case.driver.gangs()] == ["a-0"]
    case.driver.forget("a-0")
    case.driver.forget("a-0")
    assert list(case.driver.gangs()) == []


def test_what_lives_cannot_be_forgotten(case: DriverCase) -> None:
    start(case, "a-0")
    case.driver.forget("a-0")
    assert seen(case, "a-0", GangState.RUNNING)


def test_logs_are_what_was_printed(case: DriverCase) -> None:
    start(case, "a-0", Does(prints="hola, mundo", runs_s=0.0))
    over(case, "a-0")
    assert "hola, mundo" in case.driver.logs("a-0")


def test_logs_are_cut_at_the_front(case: DriverCase) -> None:
    start(case, "a-0", Does(prints="x" * 500 + "end", runs_s=0.0))
    over(case, "a-0")
    tail = case.driver.logs("a-0", tail_bytes=10)
    assert len(tail.encode()) <= 10
    assert tail.strip().endswith("end")


def test_logs_of_nobody_are_not_found(case: DriverCase) -> None:
    with pytest.raises(NotFound):
        case.driver.logs("nobody-0")


def test_the_next_control_process_finds_what_runs(case: DriverCase) -> None:
    before = start(case, "a-0", Does(prints="up"))
    case.until(lambda: "up" in case.driver.logs("a-0"))
    driver = case.again()
    (status,) = driver.gangs()
    assert (status.gang_id, status.pids) == ("a-0", before.pids)
    driver.start(case.make_spec("a-0", Does()), "token-a-0")
    assert [s.pids for s in driver.gangs()] == [before.pids]
    driver.stop("a-0", 10.0)
    assert over(case, "a-0").exit_code == 143


def test_a_site_without_contact_says_nothing_and_changes_nothing(case: DriverCase) -> None:
    if case.silence is None:
        pytest.skip("this driver cannot lose contact: it is in the same process")
    start(case, "a-0")
    case.silence(True)
    unreachable(case.driver.gangs)
    unreachable(lambda: case.driver.stop("a-0", 0.0))
    unreachable(lambda: case.driver.start(case.make_spec("b-0", Does()), "t"))
    unreachable(lambda: case.driver.forget("a-0"))
    unreachable(lambda: case.driver.logs("a-0"))
    case.silence(False)
    assert [s.gang_id for s in case.driver.gangs()] == ["a-0"]
    assert seen(case, "a-0", GangState.RUNNING)
