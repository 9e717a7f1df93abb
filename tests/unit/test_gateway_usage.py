"""The usage journal: what is counted, written, sent, forgotten, taken over; and disks that fail."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from caudal.domain.key import Usage, UsageBatch, UsageHour
from caudal.gateway import usage_file, usage_journal
from caudal.gateway.account import Account
from caudal.gateway.callers import decode_keys
from caudal.gateway.openai_errors import ApiError
from caudal.gateway.usage import usage_of
from caudal.gateway.usage_file import JournalFile, left_behind
from caudal.gateway.usage_lines import MAX_ROWS, body_of, line_of, parts, payload_of
from tests.support.gateway import chat, connect, gateway, parsed, post, raw
from tests.support.mock_replica import USAGE, MockReplica
from tests.support.usage import MemoryControl, journal, kill, rows_of, sums_of, used
from tests.unit.test_gateway_callers import SECRET, key, table

AT = 7_300.0
HOUR = 7_200


def test_answers_are_summed_by_key_model_and_hour(tmp_path: Path) -> None:
    control = MemoryControl()
    one = journal(tmp_path, control.send)
    one.record("k", "m", AT, used(10))
    one.record("k", "m", AT + 1, used(1), 499)
    one.record("k", "n", AT)
    one.record("k", "m", AT + 3600, used(2), 503)
    assert one.flush() and one.post()
    assert control.sums() == {
        ("k", "m", HOUR): (2, 1, 11, 22, 5),
        ("k", "n", HOUR): (1, 0, 0, 0, 0),
        ("k", "m", HOUR + 3600): (1, 1, 2, 4, 1),
    }
    one.close()
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    control = MemoryControl()
    one = journal(None, control.send)
    one.start()
    one.record("k", "m", AT, used())
    one.close()
    assert control.bodies == []


def test_what_is_written_is_private_and_waits_for_control(tmp_path: Path) -> None:
    control = MemoryControl()
    control.away = True
    one = journal(tmp_path / "deep" / "usage", control.send)
    for _ in range(3):
        one.record("k", "m", AT, used())
        assert one.flush() and not one.post()
    (file,) = (tmp_path / "deep" / "usage").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_bytes().count(b"\n") == 3
    control.away = False
    assert one.post()
    assert control.sums() == {("k", "m", HOUR): (3, 0, 3, 6, 0)}
    assert file.stat().st_size == 0


def test_an_answer_that_is_lost_makes_the_same_body_come_again(tmp_path: Path) -> None:
    control = MemoryControl()
    control.deaf = True
    one = journal(tmp_path, control.send)
    one.record("k", "m", AT, used())
    one.flush()
    assert not one.post() and not one.post()
    control.deaf = False
    one.record("k", "m", AT, used())
    assert one.flush() and one.post()
    assert control.bodies[0] == control.bodies[1]
    assert control.sums() == {("k", "m", HOUR): (2, 0, 2, 4, 0)}


def test_a_killed_process_loses_what_was_not_written_and_nothing_else(tmp_path: Path) -> None:
    control = MemoryControl()
    one = journal(tmp_path, control.send)
    one.record("k", "m", AT, used(5))
    one.flush()
    one.record("k", "m", AT, used(1_000))
    kill(one)
    other = journal(tmp_path, control.send, "gateway-2")
    other.adopt()
    assert other.post() and control.sums() == {("k", "m", HOUR): (1, 0, 5, 10, 2)}
    assert list(tmp_path.iterdir()) == []


def test_two_processes_of_one_name_share_a_folder_and_take_nothing_from_the_living(tmp_path: Path) -> None:
    control = MemoryControl()
    first, second = (journal(tmp_path, control.send, "same") for _ in range(2))
    first.record("k", "m", AT, used())
    first.flush()
    second.adopt()
    second.record("k", "m", AT, used())
    assert second.flush() and second.post()
    assert control.sums() == {("k", "m", HOUR): (1, 0, 1, 2, 0)}
    assert first.post()
    assert control.sums() == {("k", "m", HOUR): (2, 0, 2, 4, 0)}


def test_one_of_two_takes_over_and_keeps_its_hold_until_control_has_all(tmp_path: Path) -> None:
    control = MemoryControl()
    control.away = True
    dead = journal(tmp_path, control.send, "dead")
    dead.record("k", "m", AT, used())
    dead.flush()
    kill(dead)
    first, second = journal(tmp_path, control.send), journal(tmp_path, control.send)
    first.adopt()
    second.adopt()
    assert (len(first._adopted), len(second._adopted)) == (1, 0)
    assert not first.post()
    kill(first)  # before it could send
    second.adopt()
    control.away = False
    assert second.post()
    assert control.sums() == {("k", "m", HOUR): (1, 0, 1, 2, 0)}
    second.adopt()
    assert second._adopted == []


def test_an_old_file_under_a_new_name_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the folder and the lock, its finisher may remove it."""
    made = JournalFile.make(tmp_path / "a.journal")
    made.append(b"x\n")
    made.close()
    (tmp_path / "b.journal").write_bytes(b"y\n")
    lock = usage_file.fcntl.flock

    def remove_then_lock(descriptor: int, how: int) -> None:
        (tmp_path / "a.journal").unlink(missing_ok=True)
        lock(descriptor, how)

    monkeypatch.setattr(usage_file.fcntl, "flock", remove_then_lock)
    assert [file.path.name for file in left_behind(tmp_path)] == ["b.journal"]


def test_many_rows_go_in_several_lines_and_bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_journal, "POST_BYTES", 200_000)
    control = MemoryControl()
    one = journal(tmp_path, control.send)
    for number in range(2 * MAX_ROWS + 1):
        one.record(f"key-{number:05d}", "m", AT, used())
    assert one.flush()
    (file,) = tmp_path.iterdir()
    assert file.read_bytes().count(b"\n") == 3
    assert one.post() and len(control.bodies) > 1
    assert len(control.sums()) == 2 * MAX_ROWS + 1
    assert [len(p) for p in parts([])] == []


def test_a_damaged_line_costs_itself_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    control = MemoryControl()
    one = journal(tmp_path, control.send)
    for number in range(3):
        one.record(f"k{number}", "m", AT, used())
        one.flush()
    kill(one)
    (file,) = tmp_path.iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(
        lines[0] + lines[1].replace(b'"prompt_tokens":1', b'"prompt_tokens":9') + lines[2] + b"1234 {"
    )
    other = journal(tmp_path, control.send)
    other.adopt()
    assert other.post()
    assert set(control.sums()) == {("k0", "m", HOUR), ("k2", "m", HOUR)}
    assert caplog.text.count("damaged lines") == 2 and list(tmp_path.iterdir()) == []


def test_a_line_without_an_end_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_file, "MAX_LINE_BYTES", 10_000)
    (tmp_path / "x.journal").write_bytes(b"\0" * 1_000_000)
    control = MemoryControl()
    one = journal(tmp_path, control.send)
    one.adopt()
    assert one.post() and control.bodies == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["write", "fsync", "open"])
def test_a_disk_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    control = MemoryControl()
    one = journal(tmp_path, control.send)
    if broken != "open":
        one.record("k", "m", AT, used())
        assert one.flush()
    real_write = os.write

    def half(descriptor: int, data: Any) -> int:
        real_write(descriptor, bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "no space")

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as bad:
        bad.setattr(usage_file.os, broken, half if broken == "write" else fail)
        for _ in range(3):
            one.record("k", "m", AT, used())
            assert not one.flush()
        assert caplog.text.count("kept in memory") == 1
        if broken != "open":
            assert one.post()  # what was written before goes its way
    one.record("k", "m", AT, used())
    assert one.flush() and one.post()
    records = 4 if broken == "open" else 5
    assert control.sums() == {("k", "m", HOUR): (records, 0, records, 2 * records, 0)}


def test_a_journal_has_an_end_and_counting_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_journal, "MAX_JOURNAL_BYTES", 500)
    control = MemoryControl()
    control.away = True
    one = journal(tmp_path, control.send)
    wrote = []
    for _ in range(10):
        one.record("k", "m", AT, used())
        wrote.append(one.flush())
    assert wrote[0] and not wrote[-1]
    control.away = False
    assert one.post() and one.flush() and one.post()
    assert control.sums() == {("k", "m", HOUR): (10, 0, 10, 20, 0)}


def test_threads_write_within_a_second_and_send(tmp_path: Path) -> None:
    control = MemoryControl()
    one = journal(tmp_path, control.send)
    one.start()
    one.record("k", "m", AT, used())
    deadline = time.monotonic() + 10
    while not control.bodies and time.monotonic() < deadline:
        time.sleep(0.02)
    assert control.sums() == {("k", "m", HOUR): (1, 0, 1, 2, 0)}
    one.record("k", "m", AT, used())
    one.close()
    assert control.sums() == {("k", "m", HOUR): (2, 0, 2, 4, 0)} and list(tmp_path.iterdir()) == []


def test_the_gateway_counts_every_request_for_a_model_to_its_caller(tmp_path: Path) -> None:
    folder = tmp_path / "usage"

    async def run() -> None:
        replica = await MockReplica("engine-name").start()
        more = {"usage_dir": str(folder), "usage_url": "http://127.0.0.1:9/usage"}
        async with gateway(tmp_path, {"m": [replica], "empty": []}, more=more) as one:
            one.callers.update(decode_keys(table(key())))
            mine = f"authorization: Bearer {SECRET}\r\n"
            for headers in (mine, mine, ""):
                assert parsed(await raw(one, post(chat(), headers=headers)))[0] == 200
            assert parsed(await raw(one, post(chat(user="400"), headers=mine)))[0] == 400
            assert parsed(await raw(one, post(chat(model="empty"), headers=mine)))[0] == 503
            assert parsed(await raw(one, post(chat(model="nobody"), headers=mine)))[0] == 404
            assert b"[DONE]" in await raw(one, post(chat(stream=True), headers=mine))
            reader, writer = await connect(one)
            writer.write(post(chat(stream=True, max_tokens=50, seed=20), headers=mine))
            await reader.readuntil(b"w1")
            writer.transport.abort()
            while one.metrics.answers["m", 499] == 0:
                await asyncio.sleep(0.01)
        await replica.die()

    asyncio.run(run())
    body, _, _ = body_of(b"".join(p.read_bytes() for p in folder.iterdir()).splitlines(keepends=True))
    found: dict[tuple[str, str], Counter[str]] = {}
    for _, _, rows in rows_of(body):
        for r in rows:
            numbers = {"requests": r.requests, "failed": r.failed, "prompt": r.usage.prompt_tokens}
            found.setdefault((r.key_id, r.model), Counter()).update(numbers)
    assert {place: (c["requests"], c["failed"]) for place, c in found.items()} == {
        ("key-alice", "m"): (5, 2),
        ("key-alice", "empty"): (1, 1),
        ("anonymous", "m"): (1, 0),
    }
    assert found["anonymous", "m"]["prompt"] == USAGE["prompt_tokens"]
    assert found["key-alice", "m"]["prompt"] >= 2 * USAGE["prompt_tokens"]


def test_a_line_is_what_was_written_or_none() -> None:
    row = UsageHour("k", "m\n\u2028", HOUR, 1, 0, used())
    line = line_of(UsageBatch("s", 1, (row,)))
    assert line.count(b"\n") == 1
    body, good, damaged = body_of([line])
    assert (good, damaged) == (1, 0) and rows_of(body) == [("s", 1, (row,))]
    for cut in range(len(line)):
        assert payload_of(line[:cut]) is None
    for at in range(len(line) - 1):
        assert payload_of(line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]) is None
    assert sums_of([row, row])[("k", "m\n\u2028", HOUR)][0] == 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}', Usage(7, 3, 0)),
        (b'{"usage":{"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}}', Usage(7, 0, 4)),
        (b'{"usage":{"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":null}}}', Usage(7)),
        (b'{"usage":{"prompt_tokens":-7}}', Usage()),
        (b'{"usage":null}', Usage()),
        (b'{"usage":{"prompt_tokens":"many"}}', Usage()),
        (b'{"usage":{"prompt_tokens":"many","a":"\xff"}}', Usage()),
        (b'{"usage":{"a":"\xff"}}', Usage()),
        (b"not json", Usage()),
        (b"[" * 100_000, Usage()),
    ],
)
def test_usage_is_read_from_answers(body: bytes, expected: Usage) -> None:
    assert (usage_of(body) or Usage()) == expected


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, 200), (ApiError(503, "x", "x"), 503), (ValueError(), 500), (asyncio.CancelledError(), 499)],
)
def test_a_request_is_recorded_once_however_it_ends(error: BaseException | None, status: int) -> None:
    records: list[tuple[Any, ...]] = []
    with (
        suppress(ApiError, ValueError, asyncio.CancelledError),
        Account(lambda *r: records.append(r), "k", "m") as account,
    ):
        account.usage = used(4)
        if error is not None:
            raise error
    ((key, model, at, usage, seen),) = records
    assert (key, model, usage, seen) == ("k", "m", used(4), status) and abs(at - time.time()) < 60
