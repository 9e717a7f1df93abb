"""The main job, whole: a run over two sites is published, served, and answers the OpenAI client."""

from __future__ import annotations

import json
from collections.abc import Callable

import openai
import psutil
import pytest

from tests.support.fleet import Fleet
from tests.support.postgres import new_schema

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_trained_over_two_sites_published_and_served(fleet: Callable[..., Fleet]) -> None:
    one = fleet(tokens=60_000, service=True)
    one.up()
    one.wait_for(lambda: len(one.workload()["progress"].get("sites", {})) == 2, 60, "both sites to train")
    one.wait_finished()
    one.wait_for(one.ready, 30, "a replica of the published model")
    one.audit()
    client = openai.OpenAI(base_url=one.openai, api_key="none")
    assert [m.id for m in client.models.list().data] == ["tiny"]
    asked = [{"role": "user", "content": "Hello!"}]
    answer = client.chat.completions.create(model="tiny", messages=asked, max_tokens=8, temperature=0)  # type: ignore[call-overload]
    assert answer.usage.completion_tokens > 0
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="tiny", messages=asked, max_tokens=8, temperature=0, stream=True
    )
    pieces = [c.choices[0].delta.content or "" for c in stream if c.choices]
    assert "".join(pieces) == answer.choices[0].message.content

    killed = one.pids("assistant.replica.tiny.0")
    assert killed
    for pid in killed:
        psutil.Process(pid).kill()
    again = client.with_options(timeout=60, max_retries=10).chat.completions.create(
        model="tiny", messages=asked, max_tokens=8, temperature=0
    )  # type: ignore[call-overload]
    assert again.choices[0].message.content == answer.choices[0].message.content
    one.wait_for(lambda: set(one.pids("assistant.replica.tiny.0")) - set(killed), 30, "a new replica")

    for words in (
        ("status", "--json"),
        ("events", "--json"),
        ("models", "list", "--json"),
        ("explain", "tiny", "--json"),
    ):
        told = one.caudal(*words)
        assert told.returncode == 0, told.stderr
        assert "/1" in json.loads(told.stdout)["shape"]
    assert one.caudal("explain", "nobody").returncode == 3
    assert one.leave() == 0
    assert one.children() == []


def test_the_state_may_live_in_postgresql(
    fleet: Callable[..., Fleet], postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAUDAL_DATABASE_URL", new_schema(postgres))
    one = fleet(tokens=40_000, service=True)
    one.up()
    one.wait_finished()
    one.wait_for(one.ready, 30, "a replica of the published model")
    one.audit()
    running = one.pids("assistant.replica.tiny.0")
    one.kill_control()
    one.up()
    one.wait_for(one.ready, 20, "the replica to report to the new control process")
    assert one.pids("assistant.replica.tiny.0") == running
    assert one.leave() == 0
    assert one.children() == []
    assert not (one.home / "state.db").exists()
