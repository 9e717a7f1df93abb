"""Specifies train/base/child: a task in a process of its own answers, fails in our words, or is said to have died."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import msgspec
import pytest

from caudal.domain.errors import Failed, ModelInvalid, UsageError, from_dict
from caudal.train.base import child

HERE = "tests.unit.test_train_base_child"


class Order(msgspec.Struct, frozen=True):
    """What the task here is to do."""

    do: str


def task(order: Order) -> dict[str, Any]:
    """Answer, fail, break or die."""
    print("a library prints to standard output")
    if order.do == "fail":
        raise ModelInvalid("it is broken", where="here", why="so", remedy="mend it")
    if order.do == "break":
        raise KeyError("a bug")
    if order.do == "die":
        os._exit(9)
    if order.do == "wait":
        time.sleep(60)
    return {"said": order.do}


def test_it_answers_whatever_libraries_print() -> None:
    assert child.run(HERE, Order("hello")) == {"said": "hello"}


def test_its_errors_come_back_as_they_were_raised() -> None:
    with pytest.raises(ModelInvalid) as failed:
        child.run(HERE, Order("fail"))
    assert str(failed.value) == "here: it is broken\nWhy: so\nDo: mend it"


@pytest.mark.parametrize("how", ["break", "die"])
def test_its_death_is_said(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failed, match="ended without an answer") as failed:
        child.run(HERE, Order(how))
    assert f"its exit code is {9 if how == 'die' else 1}" in failed.value.why
    assert ("KeyError: 'a bug'" in capfd.readouterr().err) == (how == "break")


def test_it_ends_with_the_one_that_started_it() -> None:
    command = [sys.executable, "-m", HERE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(Order("wait")) + b"\n")
        process.stdin.close()
        assert process.wait(20) == 0


def test_an_error_of_an_unknown_code_is_a_failure() -> None:
    found = from_dict({"code": "nobodys", "what": "it happened"})
    assert type(found) is Failed and found.what == "it happened"
    error = UsageError("a", where="b", why="c", remedy="d")
    assert type(from_dict(error.as_dict())) is UsageError and from_dict(error.as_dict()).why == "c"


if __name__ == "__main__":
    child.serve(Order, task)
