"""What a job and its supervisor's records mean: never more than is known, never later than it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caudal.domain.gang import GangState
from caudal.drivers.ray import names
from caudal.drivers.ray.records import Said, parse, status, told


def line(kind: str, **more: Any) -> str:
    return names.RECORD + json.dumps({"kind": kind, **more}) + "\n"


BEGUN = line(names.BEGUN)
STARTED = BEGUN + line(names.STARTED, pids=[41, 42], node="n1", logs=["0.log", "1.log"], started_at=10.0)


def job(state: str, **more: Any) -> dict[str, Any]:
    labels = {names.GANG_LABEL: "a-0", names.SITE_LABEL: "north"}
    return {"submission_id": "caudal-north-a-0", "status": state, "metadata": labels, **more}


def row(state: str, output: str, *, surely_gone: bool = False, **more: Any) -> tuple[Any, ...]:
    found = status(job(state, **more), parse(output), surely_gone=surely_gone)
    assert (found.gang_id, found.site) == ("a-0", "north")
    return found.state, found.exit_code, found.started_at, found.ended_at, found.pids


@pytest.mark.parametrize(
    ("state", "output", "expected"),
    [
        ("PENDING", "", (GangState.STARTING, None, None, None, ())),
        ("RUNNING", "Running entrypoint\n" + BEGUN, (GangState.STARTING, None, None, None, ())),
        ("RUNNING", STARTED, (GangState.RUNNING, None, 10.0, None, (41, 42))),
        # its end was said, and Ray does not know it yet: it is over when both say so
        (
            "RUNNING",
            STARTED + line(names.ENDED, exit_code=0, at=11.0),
            (GangState.RUNNING, None, 10.0, None, (41, 42)),
        ),
        (
            "SUCCEEDED",
            STARTED + line(names.ENDED, exit_code=0, at=11.0),
            (GangState.EXITED, 0, 10.0, 11.0, ()),
        ),
        (
            "STOPPED",
            STARTED + line(names.ENDED, exit_code=-9, at=11.0),
            (GangState.EXITED, -9, 10.0, 11.0, ()),
        ),
        (
            "FAILED",
            STARTED + line(names.LOST, exit_code=None, at=11.0),
            (GangState.LOST, None, 10.0, 11.0, ()),
        ),
        # two machines' clocks: it cannot have ended before it began
        ("FAILED", STARTED + line(names.ENDED, exit_code=1, at=9.0), (GangState.EXITED, 1, 10.0, 10.0, ())),
    ],
)
def test_a_row_says_what_is_known(state: str, output: str, expected: tuple[Any, ...]) -> None:
    assert row(state, output) == expected


def test_a_supervisor_that_started_nothing_has_an_exit_code() -> None:
    assert row("STOPPED", "", end_time=12_000)[:2] == (GangState.EXITED, names.STOPPED_BEFORE)
    assert row("FAILED", "no module named ray", end_time=12_000) == (
        GangState.EXITED,
        names.CANNOT_START,
        None,
        12.0,
        (),
    )


@pytest.mark.parametrize("output", [BEGUN, STARTED])
@pytest.mark.parametrize("state", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_a_supervisor_that_died_over_its_gang_is_believed_gone_only_when_it_must_be(
    state: str, output: str
) -> None:
    assert row(state, output)[0] is GangState.RUNNING
    assert row(state, output, surely_gone=True, end_time=12_000)[:2] == (GangState.LOST, None)


@given(st.text(), st.text())
def test_what_else_is_printed_changes_nothing(before: str, after: str) -> None:
    lines = [t for t in (before + "\n" + after).splitlines() if not t.startswith(names.RECORD)]
    assert parse("\n".join([*lines[:1], STARTED.strip(), *lines[1:]])) == parse(STARTED)


@given(st.text())
def test_broken_records_are_passed_over(text: str) -> None:
    one_line = "".join(text.splitlines())
    assert isinstance(parse(names.RECORD + one_line), Said)


def test_records_of_the_wrong_kind_of_value_are_not_believed() -> None:
    said = parse(line(names.STARTED, pids="all", logs=7, started_at="soon"))
    assert (said.pids, said.logs) == ((), ())
    assert status(job("RUNNING"), said, surely_gone=False).started_at is None


def test_why_it_did_not_start_is_told() -> None:
    assert told("x\n" + line(names.ENDED, exit_code=71, error="no room")) == "no room"
    assert (
        told("Running entrypoint\nModuleNotFoundError: ray\n")
        == "Running entrypoint\nModuleNotFoundError: ray"
    )
