"""A chat becomes a response: the same one in whatever pieces it comes, and its events always add up to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caudal.gateway.filtered_exchange import EventLines
from caudal.gateway.legacy_logprobs import legacy
from caudal.gateway.openai_errors import ApiError
from caudal.gateway.responses_request import parse_response, to_chat
from caudal.gateway.responses_stream import ResponseStream

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


def new_stream(**more: Any) -> ResponseStream:
    ids: Iterator[int] = count()
    asked = parse_response(json.dumps({"model": "m", "input": "hi", **more}).encode())
    return ResponseStream(asked.request, "resp_x", 5, lambda prefix: f"{prefix}{next(ids)}")


texts = st.text(min_size=1, max_size=6)
deltas = st.lists(
    st.builds(lambda text: {"content": text}, texts)
    | st.builds(lambda text: {"reasoning_content": text}, texts)
    | st.builds(
        lambda i, text: {
            "tool_calls": [{"index": i, "id": f"c{i}", "function": {"name": "f", "arguments": text}}]
        },
        st.integers(0, 2),
        texts,
    )
    | st.just({"role": "assistant", "content": None})
    | st.just({}),
    max_size=12,
)


def run(chat: list[dict[str, Any]], finish: str) -> tuple[list[dict[str, Any]], ResponseStream]:
    """All events, decoded, and the machine."""
    stream = new_stream()
    out = stream.begin()
    for delta in chat:
        out += stream.chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    out += stream.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    out += stream.chunk({"choices": [], "usage": USAGE})
    closing, last = stream.end(9)
    blocks = (out + closing + last).decode().removesuffix("\n\n").split("\n\n")
    events = []
    for block in blocks:
        kind, data = block.split("\n", 1)
        events.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {events[-1]['type']}"
    return events, stream


@given(deltas, st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
def test_events_add_up_to_the_response(chat: list[dict[str, Any]], finish: str) -> None:
    events, _ = run(chat, finish)
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    kinds = [e["type"] for e in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    status = "incomplete" if finish in ("length", "content_filter") else "completed"
    final = events[-1]["response"]
    assert kinds[-1] == f"response.{status}" and final["status"] == status
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert final["usage"]["total_tokens"] == 10
    assert final["usage"]["input_tokens_details"] == {"cached_tokens": 2}
    for index, item in enumerate(final["output"]):
        mine = [e for e in events if e.get("output_index") == index]
        assert mine[0]["type"] == "response.output_item.added" and mine[0]["item"]["id"] == item["id"]
        assert mine[-1]["type"] == "response.output_item.done"
        said = "".join(e["delta"] for e in mine if e["type"].endswith(".delta"))
        whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert said == whole
        assert [
            e for e in mine if e["type"].endswith(".done") and whole in (e.get("text"), e.get("arguments"))
        ]
    contents = "".join(d.get("content") or "" for d in chat)
    messages = [item for item in final["output"] if item["type"] == "message"]
    assert "".join(item["content"][0]["text"] for item in messages) == contents


@given(deltas)
def test_a_whole_answer_gives_what_its_stream_gives(chat: list[dict[str, Any]]) -> None:
    text = "".join(d.get("content") or "" for d in chat)
    calls: dict[int, dict[str, Any]] = {}
    for delta in chat:
        for call in delta.get("tool_calls", ()):
            mine = calls.setdefault(
                call["index"], {"id": call["id"], "function": {"name": "f", "arguments": ""}}
            )
            mine["function"]["arguments"] += call["function"]["arguments"]
    ordered = [{"content": text}] if text else []
    ordered += [{"tool_calls": [{**call, "index": i}]} for i, call in enumerate(calls.values())]
    events, _ = run(ordered, "stop")
    whole = new_stream()
    message = {"role": "assistant", "content": text or None, "tool_calls": list(calls.values())}
    whole.answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE})
    whole.end(9)
    assert whole.response == events[-1]["response"]


@given(st.lists(st.integers(0, 10_000), max_size=20), deltas)
def test_lines_do_not_depend_on_how_bytes_arrive(cuts: list[int], chat: list[dict[str, Any]]) -> None:
    data = (
        b"".join(b": ping\n\ndata: %b\n\n" % json.dumps(delta).encode() for delta in chat)
        + b"data: [DONE]\r\n\r\n"
    )
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    lines = EventLines()
    got = [one for a, b in pairwise(places) for one in lines.feed(data[a:b])]
    assert got == [*(json.dumps(delta).encode() for delta in chat), b"[DONE]"]


def test_an_error_within_a_stream_fails_the_response() -> None:
    stream = new_stream()
    out = stream.begin() + stream.chunk({"choices": [{"delta": {"content": "a"}}]})
    out += stream.chunk({"error": {"message": "it died", "code": "replica_failed"}})
    closing, last = stream.end(9)
    assert b"response.output_text.done" in closing and last.startswith(b"event: response.failed\n")
    assert stream.response["error"] == {"code": "server_error", "message": "it died"}
    assert stream.response["status"] == "failed" and out


def chat_of(before: list[dict[str, Any]] | None = None, **body: Any) -> dict[str, Any]:
    asked = parse_response(json.dumps({"model": "m", **body}).encode())
    decoded: dict[str, Any] = json.loads(to_chat(asked, before or []).body)
    return decoded


def test_items_become_messages() -> None:
    items = [
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "?"}, {"type": "input_image", "image_url": "u"}],
        },
    ]
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "old"}]}
    chat = chat_of([said], input=items, instructions="Be.", max_output_tokens=3, stream=True)
    assert chat["messages"] == [
        {"role": "system", "content": "Be."},
        {"role": "assistant", "content": "old"},
        {"role": "system", "content": "ab"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "x"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "u"}}],
        },
    ]
    assert chat["max_completion_tokens"] == 3 and chat["stream_options"] == {"include_usage": True}


def test_parameters_become_those_of_a_chat() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    chat = chat_of(
        input="hi",
        tools=[tool],
        tool_choice={"type": "function", "name": "f"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {}}},
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        temperature=0.5,
        top_p=0.5,
        parallel_tool_calls=False,
        reasoning={"effort": "low"},
    )
    assert chat["tools"][0]["function"] == {"name": "f", "parameters": {"type": "object"}, "strict": True}
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}
    assert (chat["logprobs"], chat["top_logprobs"], chat["temperature"]) == (True, 2, 0.5)
    assert chat["reasoning_effort"] == "low" and chat["parallel_tool_calls"] is False


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "name", "call_id", "format"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=9,
)


@given(
    st.dictionaries(
        st.sampled_from(["input", "tools", "text", "tool_choice", "include", "metadata"]), json_values
    )
)
def test_whatever_is_asked_is_a_chat_or_a_400(body: dict[str, Any]) -> None:
    try:
        assert chat_of(**body)["model"] == "m"
    except ApiError as error:
        assert error.status == 400 and error.message


@given(st.lists(texts, max_size=5), st.integers(0, 50))
def test_offsets_of_logprobs_are_those_of_the_text(tokens: list[str], start: int) -> None:
    content = [{"token": t, "logprob": -1.0, "top_logprobs": [{"token": t, "logprob": -1.0}]} for t in tokens]
    lists, end = legacy(content, start)
    text = "." * start + "".join(tokens)
    assert end == len(text)
    for token, offset in zip(lists["tokens"], lists["text_offset"], strict=True):
        assert text[offset : offset + len(token)] == token


@pytest.mark.parametrize(
    "body", [{"input": "x", "background": True}, {"input": "x", "store": "yes"}, {"inputs": "x"}]
)
def test_what_is_not_supported_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as error:
        chat_of(**body)
    assert error.value.status == 400
