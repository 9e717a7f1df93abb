"""The unmodified `openai` package against the gateway with a real llama.cpp behind it: every endpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.front_door import front_door
from tests.support.real_replica import CONTEXT, SLOTS, RealReplica, real_replica, write_model

pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")

HI: Any = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "description": "?", "parameters": CITY}}]
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealReplica]:
    with real_replica(write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")) as one:
        yield one
        assert one.alive, "a test ended the engine"


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealReplica]:
    """One whose model calls a tool where it must."""
    path = write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", pooling=False, eager=True)
    with real_replica(path, "caller") as one:
        yield one
        assert one.alive, "a test ended the engine"


@pytest.fixture(scope="module")
def url(replica: RealReplica, caller: RealReplica, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models: Any = {"m": [f"north@{replica.url}"], "caller": [f"north@{caller.url}"], "empty": []}
    with front_door(tmp_path_factory.mktemp("gateway"), models) as one:
        yield one.url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as one:
        yield one


def test_chat_whole_and_streamed_are_the_same(client: openai.OpenAI) -> None:
    same: Any = {"model": "m", "messages": HI, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**same)
    chunks = list(client.chat.completions.create(**same, stream=True, stream_options={"include_usage": True}))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content and said
    assert whole.choices[0].finish_reason == "length" and whole.usage and chunks[-1].usage
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens == 12


def test_n_gives_so_many_choices_and_counts_them_all(client: openai.OpenAI) -> None:
    n = SLOTS + 3  # more than llama.cpp gives at once
    same: Any = {"model": "m", "messages": HI, "max_tokens": 4, "n": n, "seed": 5, "temperature": 1.5}
    whole = client.chat.completions.create(**same)
    assert [c.index for c in whole.choices] == list(range(n)) and whole.usage
    assert whole.usage.completion_tokens == 4 * n
    assert len({c.message.content for c in whole.choices}) > 1
    chunks = list(client.chat.completions.create(**same, stream=True, stream_options={"include_usage": True}))
    assert len({c.id for c in chunks}) == 1 and chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 4 * n
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    for index in range(n):
        said = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(c.delta.content or "" for c in said)
        assert [c.finish_reason for c in said if c.finish_reason] == ["length"]


def test_tools(client: openai.OpenAI) -> None:
    same: Any = {"model": "caller", "messages": HI, "tools": TOOLS, "tool_choice": "required"}
    same |= {"parallel_tool_calls": False, "max_tokens": 400}
    call = client.chat.completions.create(**same).choices[0]
    assert call.finish_reason == "tool_calls" and call.message.tool_calls
    tool: Any = call.message.tool_calls[0]
    assert tool.function.name == "weather" and json.loads(tool.function.arguments)["city"] in ("Oslo", "Rome")
    name = said = ""
    for chunk in client.chat.completions.create(**same, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            if piece.index == 0 and piece.function is not None:
                name += piece.function.name or ""
                said += piece.function.arguments or ""
    assert name == "weather" and json.loads(said)["city"] in ("Oslo", "Rome")
    free = client.chat.completions.create(model="m", messages=HI, tools=TOOLS, max_tokens=3)
    assert free.choices[0].message.content and not free.choices[0].message.tool_calls
    told: Any = [*HI, call.message.model_dump(), {"role": "tool", "tool_call_id": tool.id, "content": "wet"}]
    answer = client.chat.completions.create(
        model="m", messages=told, tools=TOOLS, tool_choice="none", max_tokens=3
    )
    assert answer.choices[0].message.content


def test_json_schema(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "c", "schema": COLOUR, "strict": True}}
    answer = client.chat.completions.create(model="m", messages=HI, response_format=wanted, max_tokens=400)
    assert json.loads(answer.choices[0].message.content or "")["colour"] in ("red", "blue")


def test_logprobs_of_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m", messages=HI, logprobs=True, top_logprobs=3, max_tokens=2, temperature=0
    )
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content and len(content) == 2
    assert all(len(one.top_logprobs) == 3 and one.logprob <= 0 for one in content)
    assert content[0].logprob == max(top.logprob for top in content[0].top_logprobs)


def test_completions_have_openais_logprobs_and_several_prompts(client: openai.OpenAI) -> None:
    same: Any = {"model": "m", "prompt": ["a b", "c"], "max_tokens": 3, "temperature": 0, "logprobs": 2}
    whole = client.completions.create(**same)
    assert [c.index for c in whole.choices] == [0, 1] and whole.usage
    assert whole.usage.completion_tokens == 6
    for choice in whole.choices:
        found = choice.logprobs
        assert found and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
        assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 3
        assert all(len(top) == 2 for top in found.top_logprobs) and found.text_offset[0] == 0
    said = {0: "", 1: ""}
    for chunk in client.completions.create(**same, stream=True):
        said[chunk.choices[0].index] += chunk.choices[0].text
    assert [said[0], said[1]] == [c.text for c in whole.choices]
    assert client.completions.create(model="m", prompt=[5, 6], max_tokens=1).choices[0].finish_reason


def test_what_llama_cpp_would_ignore_is_refused(client: openai.OpenAI) -> None:
    for name, value in (("echo", True), ("best_of", 3), ("suffix", "x"), ("max_tokens", 0)):
        given: Any = {"model": "m", "prompt": "a", name: value}
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(**given)
        assert error.value.code == "unknown_parameter" and name in str(error.value.param)
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model="m", messages=HI, extra_body={"frobnicate": 1})
    assert unknown.value.param == "frobnicate"
    client.chat.completions.create(model="m", messages=HI, max_tokens=1, extra_body={"top_k": 5})


def test_responses_stored_and_continued(client: openai.OpenAI) -> None:
    first = client.responses.create(model="m", input="hi", instructions="Be brief.", max_output_tokens=5)
    assert first.status == "incomplete" and first.incomplete_details and first.usage
    assert first.incomplete_details.reason == "max_output_tokens" and first.usage.output_tokens == 5
    assert first.output_text and first.id.startswith("resp_")
    assert client.responses.retrieve(first.id) == first
    second = client.responses.create(
        model="m", input="and?", previous_response_id=first.id, max_output_tokens=5
    )
    assert second.usage and second.usage.input_tokens > first.usage.input_tokens
    items: Any = client.responses.input_items.list(second.id).data
    assert [item.role for item in items] == ["user", "assistant", "user"]
    assert items[0].content[0].text == "and?"
    upwards: Any = client.responses.input_items.list(second.id, order="asc").data
    assert [item.id for item in upwards] == [item.id for item in reversed(items)]
    with pytest.raises(openai.BadRequestError):
        client.responses.retrieve(second.id, stream=True)
    assert items[1].content[0].text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as gone:
        client.responses.create(model="m", input="x", previous_response_id=first.id)
    assert gone.value.code == "previous_response_not_found"
    loose = client.responses.create(model="m", input="hi", store=False, max_output_tokens=2)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(loose.id)


def test_responses_streamed(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="m", input="hi", stream=True, max_output_tokens=6))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    final = events[-1].response  # type: ignore[union-attr]
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert said == final.output_text and client.responses.retrieve(final.id).output_text == said
    text: Any = {"format": {"type": "json_schema", "name": "c", "schema": COLOUR, "strict": True}}
    with client.responses.stream(model="m", input="hi", text=text, store=False) as stream:
        seen = [event.type for event in stream]
        final = stream.get_final_response()
    assert seen[-1] == "response.completed" and final.usage is not None
    assert json.loads(final.output_text)["colour"] in ("red", "blue")


def test_responses_with_tools_and_schemas(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": CITY, "strict": False}
    asked: Any = {"model": "caller", "input": "hi", "tools": [tool], "tool_choice": "required"}
    asked["parallel_tool_calls"] = False
    answer = client.responses.create(**asked, max_output_tokens=400)
    call: Any = answer.output[0]
    assert call.type == "function_call" and call.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Oslo", "Rome")
    events = list(client.responses.create(**asked, max_output_tokens=400, stream=True))
    done: Any = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert done
    for one in done:
        said = [e for e in events if e.type == "response.function_call_arguments.delta"]
        assert "".join(e.delta for e in said if e.item_id == one.item_id) == one.arguments
        assert json.loads(one.arguments)["city"] in ("Oslo", "Rome")
    calls: Any = answer.output
    output: Any = [{"type": "function_call_output", "call_id": one.call_id, "output": "wet"} for one in calls]
    after = client.responses.create(
        model="m", input=output, previous_response_id=answer.id, max_output_tokens=3
    )
    assert after.output_text
    text: Any = {"format": {"type": "json_schema", "name": "c", "schema": COLOUR, "strict": True}}
    told = client.responses.create(model="m", input="hi", text=text, max_output_tokens=400)
    assert told.status == "completed" and json.loads(told.output_text)["colour"] in ("red", "blue")


def test_another_key_does_not_see_a_response(client: openai.OpenAI, url: str) -> None:
    mine = client.responses.create(model="m", input="hi", max_output_tokens=2)
    with openai.OpenAI(base_url=url, api_key="other", max_retries=0) as other:
        for ask in (other.responses.retrieve, other.responses.delete):
            with pytest.raises(openai.NotFoundError):
                ask(mine.id)
    assert client.responses.retrieve(mine.id).id == mine.id


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "word " * 4 * CONTEXT}, "input"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": []}, "input"),
    ],
)
def test_what_responses_cannot_do_is_said(client: openai.OpenAI, extra: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**{"model": "m", "input": "hi", **extra})
    assert error.value.param == param
    with pytest.raises(openai.BadRequestError):
        kept = client.responses.create(model="m", input="hi", max_output_tokens=1)
        client.responses.cancel(kept.id)


def test_embeddings(client: openai.OpenAI) -> None:
    whole = client.embeddings.create(model="m", input=["the cat", "the year", "the cat"])
    vectors = [row.embedding for row in whole.data]
    assert vectors[2] == pytest.approx(vectors[0], abs=1e-5) and whole.usage.prompt_tokens > 0
    assert vectors[1] != pytest.approx(vectors[0], abs=0.01)
    assert math.isclose(sum(x * x for x in vectors[0]), 1.0, rel_tol=1e-4)
    floats = client.embeddings.create(model="m", input="the cat", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(vectors[0], abs=1e-6)
    short = client.embeddings.create(model="m", input="the cat", dimensions=8).data[0].embedding
    length = math.sqrt(sum(x * x for x in vectors[0][:8]))
    assert short == pytest.approx([x / length for x in vectors[0][:8]], abs=1e-5)
    assert client.embeddings.create(model="m", input=[5, 6, 7]).usage.prompt_tokens == 3
    long, none = {"input": "x" * 9 * CONTEXT}, {"model": "caller"}  # that model does not embed
    for wrong in ({"input": ""}, {"input": []}, long, none, {"dimensions": 10**4}):
        asked: Any = {"model": "m", "input": "a", **wrong}
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(**asked)


def test_tokens_there_and_back(url: str) -> None:
    text = "the cat, 3 — ñ 🙂"
    told = httpx.post(f"{url}/tokenize", json={"model": "m", "input": text}).json()
    assert told["count"] == len(told["tokens"]) > 3
    back = httpx.post(f"{url}/detokenize", json={"model": "m", "tokens": told["tokens"]}).json()
    assert back["text"] == text
    chat = httpx.post(f"{url}/tokenize", json={"model": "m", "messages": HI}).json()
    answer = httpx.post(f"{url}/chat/completions", json={"model": "m", "messages": HI, "max_tokens": 1})
    assert chat["count"] == answer.json()["usage"]["prompt_tokens"]
    wrong: tuple[Any, ...] = ({}, {"input": "a", "messages": HI}, {"input": 5}, {"tokens": [-1]})
    for body in wrong:
        for path in ("tokenize", "detokenize"):
            bad = httpx.post(f"{url}/{path}", json={"model": "m", **body})
            assert bad.status_code == 400 and bad.json()["error"]["type"] == "invalid_request_error"
    assert httpx.post(f"{url}/detokenize", json={"model": "m", "tokens": [10**9]}).status_code == 400


def test_ids_and_times_of_requests(client: openai.OpenAI, url: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model="m", messages=HI, max_tokens=1)
    assert raw.request_id and raw.request_id.startswith("req_")
    assert int(raw.headers["openai-processing-ms"]) >= 0
    given = {"x-request-id": "mine-1"}
    answer = httpx.get(f"{url}/models", headers=given)
    assert answer.headers["x-request-id"] == "mine-1"
    odd = httpx.get(f"{url}/models", headers={"x-request-id": "a b"})
    assert odd.headers["x-request-id"].startswith("req_")
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nobody")
    assert error.value.request_id


def test_leaving_a_stream_frees_the_replica(client: openai.OpenAI, replica: RealReplica) -> None:
    with client.responses.create(model="m", input="hi", stream=True, max_output_tokens=900) as stream:
        next(iter(stream))
    answer = client.chat.completions.create(model="m", messages=HI, max_tokens=1)
    assert answer.choices and replica.alive
