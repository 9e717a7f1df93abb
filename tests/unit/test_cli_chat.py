"""`caudal chat` against a gateway that streams, refuses, breaks, or is not there."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caudal.console.talk import answer_pieces
from tests.support.served import Served, mock_gateway


@pytest.fixture
def served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Served]:
    made = Served(tmp_path / "home", capsys)
    made.fill()
    made.start()
    yield made
    made.stop()


def event(**delta: Any) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}) + "\n\n"


SAID = event(role="assistant") + event(content="¡Hola, ") + event(content="amigo!") + "data: [DONE]\n\n"


def refusal(message: str, **more: str) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", **more}})


def test_words_are_streamed_and_nothing_else_is_printed(served: Served) -> None:
    with mock_gateway(served.gateway_port, [(200, SAID)], ["small", "other"]) as asked:
        told = served.caudal("chat", "say", "hello", "--max-tokens", "9")
    assert (told.code, told.out, told.err) == (0, "¡Hola, amigo!\n", "")
    (body,) = asked
    assert body["model"] == "small", "the first that is served"
    assert (body["stream"], body["max_tokens"]) == (True, 9)
    assert body["messages"] == [{"role": "user", "content": "say hello"}]


def test_a_conversation_remembers_what_was_said(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    with mock_gateway(served.gateway_port, [(200, SAID)] * 3, ["small"]) as asked:
        told = served.caudal("chat", "-m", "other")
    assert (told.code, told.out) == (0, "¡Hola, amigo!\n" * 2)
    assert [m["content"] for m in asked[-1]["messages"]] == ["one", "¡Hola, amigo!", "two"]
    assert {body["model"] for body in asked} == {"other"}


def test_an_unknown_model_is_not_found(served: Served) -> None:
    message = "The model 'gpt-9' does not exist"
    with mock_gateway(served.gateway_port, [(404, refusal(message, code="model_not_found"))], ["small"]):
        told = served.caudal("chat", "-m", "gpt-9", "hi")
    assert (told.code, told.out) == (3, "")
    assert told.err == f"error[not_found]: {message}\nDo: caudal models list\n"


def test_no_model_at_all_says_what_to_look_at(served: Served) -> None:
    with mock_gateway(served.gateway_port, [], []):
        told = served.caudal("chat", "hi")
    assert (told.code, told.out) == (3, "")
    assert "no model is served yet" in told.err
    assert "caudal status" in told.err


def test_an_error_in_the_middle_of_a_stream_keeps_what_was_said_and_fails(served: Served) -> None:
    broken = event(content="Half an ") + "data: " + refusal("the replica is gone") + "\n\n"
    with mock_gateway(served.gateway_port, [(200, broken)], ["small"]):
        told = served.caudal("chat", "hi")
    assert told.code == 1
    assert told.out == "Half an \n"
    assert "error[failed]: the replica is gone" in told.err


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (event(content="Half an "), "ended before"),
        (event(content="Half an ") + "data: {not json\n\n", "cannot be read"),
        (event(content="Half an ") + "data: 7\n\n", "cannot be read"),
    ],
)
def test_a_stream_that_is_cut_or_garbled_is_no_answer(served: Served, body: str, said: str) -> None:
    with mock_gateway(served.gateway_port, [(200, body)], ["small"]):
        told = served.caudal("chat", "hi")
    assert (told.code, told.out) == (1, "Half an \n")
    assert told.err.startswith("error[failed]:")
    assert said in told.err


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, refusal("This model's maximum context length is 64 tokens"), "maximum context length"),
        (429, refusal("too many requests"), "too many requests"),
        (503, "<html>down</html>", "<html>down</html>"),
        (500, "[1]", "[1]"),
    ],
)
def test_what_the_gateway_refuses_is_told(served: Served, status: int, body: str, said: str) -> None:
    with mock_gateway(served.gateway_port, [(status, body)], ["small"]):
        told = served.caudal("chat", "hi")
    assert (told.code, told.out) == (1, "")
    assert said in told.err


def test_a_gateway_that_is_away_is_said_with_its_address(served: Served) -> None:
    for words in (("chat", "hi"), ("chat", "-m", "small", "hi")):
        told = served.caudal(*words)
        assert (told.code, told.out) == (1, "")
        assert (
            f"error[control_away]: no gateway answers at http://127.0.0.1:{served.gateway_port}" in told.err
        )
        assert "Do: " in told.err


def test_people_talk_on_while_the_control_process_is_dead(served: Served) -> None:
    served.stop()
    with mock_gateway(served.gateway_port, [(200, SAID)], ["small"]):
        told = served.caudal("chat", "hi")
    assert (told.code, told.out) == (0, "¡Hola, amigo!\n")


def test_a_key_is_taken_from_the_environment_and_not_from_the_command_line(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str | None] = []
    with mock_gateway(served.gateway_port, [(200, SAID)] * 3, ["small"], keys):
        assert served.caudal("chat", "hi").code == 0
        monkeypatch.setenv("CAUDAL_API_KEY", "ck-mine")
        assert served.caudal("chat", "hi").code == 0
        assert asyncio.run(on_the_page(f"http://127.0.0.1:{served.gateway_port}")) == "¡Hola, amigo!"
    assert keys == [None, None, *["Bearer ck-mine"] * 3]


def test_a_key_that_is_missing_is_said_with_where_it_goes(served: Served) -> None:
    answers = [(401, refusal("no key", code="invalid_api_key"))]
    with mock_gateway(served.gateway_port, answers, ["small"]):
        told = served.caudal("chat", "hi")
    assert told.code == 1 and "error[unauthorized]: no key" in told.err and "CAUDAL_API_KEY" in told.err


async def on_the_page(url: str) -> str:
    return "".join([piece async for piece in answer_pieces(url, "small", [])])
