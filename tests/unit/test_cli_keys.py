"""`caudal keys` against a real control API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from caudal.cli.keys import moment, seconds
from caudal.domain.errors import UsageError
from caudal.domain.key import Usage, UsageBatch, UsageHour
from tests.support.served import Served


@pytest.fixture
def served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Served]:
    made = Served(tmp_path / "home", capsys)
    made.fill()
    made.start()
    yield made
    made.stop()


def test_create_prints_the_secret_alone_and_never_again(served: Served) -> None:
    told = served.caudal("keys", "create", "alice", "--requests-per-minute", "60", "--model", "small")
    assert told.code == 0 and told.out.startswith("ck-") and told.out.count("\n") == 1
    secret = told.out.strip()
    assert secret not in told.err and "alice" in told.err
    for words in (["list"], ["list", "--json"], ["show", "alice"], ["usage"], ["revoke", "alice"]):
        again = served.caudal("keys", *words)
        assert again.code == 0 and secret not in again.out + again.err
    assert secret not in served.caudal("events").out
    for file in served.home.root.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


def test_create_as_json_has_the_key_and_its_secret(served: Served) -> None:
    told = served.caudal("keys", "create", "alice", "--weight", "2.5", "--slo", "batch", "--json")
    assert (told.code, told.err) == (0, "")
    assert told.json["shape"] == "new_key/1" and told.json["secret"].startswith("ck-")
    limits = told.json["key"]["limits"]
    assert (limits["weight"], limits["slo"], limits["models"]) == (2.5, "batch", [])


def test_list_and_show_say_limits_and_states(served: Served) -> None:
    assert served.caudal("keys", "list", "--json").json == {"shape": "keys/1", "items": []}
    served.caudal("keys", "create", "alice", "--budget-usd", "12.5")
    served.caudal("keys", "create", "bob", "--expires", "30d")
    listed = served.caudal("keys", "list").out
    assert "budget_usd 12.5" in listed and "valid until" in listed and "none" in listed
    assert served.caudal("keys", "revoke", "bob").out.count("revoked") == 1
    assert "bob" not in served.caudal("keys", "list").out
    assert "revoked" in served.caudal("keys", "list", "--all").out
    shown = served.caudal("keys", "show", "alice")
    assert "valid" in shown.out and "budget_usd 12.5" in shown.out
    assert served.caudal("keys", "show", "carol").code == 3


def test_limit_changes_what_is_given(served: Served) -> None:
    served.caudal("keys", "create", "alice", "--concurrency", "4", "--model", "small", "--model", "big")
    told = served.caudal("keys", "limit", "alice", "--weight", "3", "--all-models", "--json")
    limits = told.json["limits"]
    assert (limits["concurrency"], limits["weight"], limits["models"]) == (4, 3.0, [])
    assert served.caudal("keys", "limit", "alice").code == 2
    refused = served.caudal("keys", "limit", "alice", "--weight", "0")
    assert refused.code == 2 and "weight" in refused.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["create", "Not A Name"], 2),
        (["create", "a", "--expires", "soon"], 2),
        (["create", "a", "--slo", "never"], 2),
        (["revoke", "nobody"], 3),
        (["usage", "nobody"], 3),
        (["usage", "--since", "yesterday"], 2),
        (["forge", "a"], 2),
    ],
)
def test_what_is_wrong_says_so(served: Served, words: list[str], code: int) -> None:
    told = served.caudal("keys", *words)
    assert told.code == code and told.err and not told.out


def test_usage_by_key_and_model_and_by_hour(served: Served) -> None:
    key_id = served.caudal("keys", "create", "alice", "--json").json["key"]["id"]
    now = int(time.time()) // 3600 * 3600
    rows = tuple(
        UsageHour(who, "small", hour, 2, 1, Usage(10, 5, 4, 3 * 10**9))
        for who, hour in ((key_id, now), (key_id, now - 7200), ("anonymous", now))
    )
    served.store.add_usage([UsageBatch("g", 1, rows)])
    lines = served.caudal("keys", "usage").out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["anonymous", "small", "2", "1", "10", "4", "5", "0.0030"],
        ["alice", "small", "4", "2", "20", "8", "10", "0.0060"],
    ]
    assert len(served.caudal("keys", "usage", "alice", "--hours").out.splitlines()) == 3
    recent = served.caudal("keys", "usage", "alice", "--since", "1h", "--json").json
    assert [item["hour"] for item in recent["items"]] == [now]


def test_without_control_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Served(tmp_path / "home", capsys).caudal("keys", "list")
    assert told.code == 1 and "control_away" in told.err


def test_times_are_read() -> None:
    assert [seconds(t) for t in ("90min", "12h", "30d")] == [5400, 43_200, 2_592_000]
    assert moment("2026-11-30") == moment("2026-11-30T00:00:00")
    assert abs(moment("1h") - (time.time() - 3600)) < 5
    for wrong in ("", "1", "h", "-1h", "1y"):
        with pytest.raises(UsageError):
            seconds(wrong)
