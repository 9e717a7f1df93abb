"""Bodies that are wrong, huge or hostile, against a real llama.cpp: every one is answered with an error of OpenAI's
shape, and the engine lives. Those that ended, hung or filled an engine say so beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.front_door import front_door
from tests.support.real_replica import CONTEXT, RealReplica, real_replica, write_model

pytest.importorskip("xllamacpp", reason="the `serve` extra is not installed")

HI = [{"role": "user", "content": "hi"}]
CHAT, COMPLETION = "chat/completions", "completions"


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealReplica]:
    with real_replica(write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")) as one:
        yield one


@pytest.fixture(scope="module")
def url(replica: RealReplica, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models: Any = {"m": [f"north@{replica.url}"]}
    with front_door(tmp_path_factory.mktemp("gateway"), models) as one:
        yield one.url


def ask(url: str, path: str, body: Any) -> httpx.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    return httpx.post(f"{url}/{path}", content=data, headers=headers, timeout=60)


def refused(answer: httpx.Response) -> str:
    """The parameter that the error is about."""
    assert 400 <= answer.status_code < 500, answer.text[:300]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["message"] and error["code"]
    return str(error["param"])


def nested(inner: str, levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {inner: [schema]} if inner.endswith("Of") else {"type": "array", "items": schema}
    return schema


def raw(middle: bytes) -> bytes:
    return b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}],' + middle + b"}"


@pytest.mark.parametrize("path", [CHAT, COMPLETION, "responses", "embeddings", "tokenize", "detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"model":"m"}',
        b'{"model":5}',
        b'{"model":"\xff"}',
        b'{"model":"\\ud800"}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"model":"m","messages":1,"prompt":{},"input":{},"tokens":1}',
    ],
)
def test_what_is_no_request(url: str, path: str, body: bytes) -> None:
    refused(ask(url, path, body))


@pytest.mark.parametrize(
    ("middle", "param"),
    [
        (b'"x":"\xff"', "None"),
        (b'"x":"\\udc00"', "None"),
        (b'"\\ud800":1', "None"),
        (b'"top_k":' + b"9" * 5000, "top_k"),
        (b'"seed":' + b"9" * 5000, "seed"),
        (b'"temperature":1e999', "temperature"),
        (b'"x":1e999', "None"),
        (b'"x":NaN', "None"),
        (b'"x":' + b"[" * 50_000 + b"]" * 50_000, "None"),
        (b'"n_pro\\u0062s":100000', "n_probs"),
        (b'"n_probs":1,"n_probs":100000', "n_probs"),
        (b'"id_slot":0', "id_slot"),
        (b'"lora":[{"id":0,"scale":1}]', "lora"),
        (b'"grammar_triggers":[{"type":9,"value":"a","token":10000000}]', "grammar_triggers"),  # SIGABRT
        (b'"samplers":' + json.dumps(["temperature"] * 3000).encode(), "samplers"),  # SIGABRT
        (b'"grammar":"root ::= \\"a\\"{2,1}"', "grammar"),  # for ever
        (b'"grammar":"root ::= \\"a\\"{1000000}"', "grammar"),
        (b'"grammar":"root ::= ((((\\"a\\"){99}){99}){99}){99}"', "grammar"),
        (b'"grammar":"root ::= ' + b"(" * 20_000 + b'"', "grammar"),  # SIGSEGV at 50,000
        (b'"grammar":"root ::= <[999999999]>","top_k":1', "top_k"),  # SIGABRT
        (b'"grammar":"root ::= <[999999999]>"', "None"),
        (b'"grammar":"root ::= \\"\\\\x00\\"","top_k":1', "top_k"),  # SIGABRT
        (b'"tools":[{"type":"function","function":{"name":"f"}}],"top_k":1', "top_k"),
        (b'"repeat_last_n":2147483647', "repeat_last_n"),  # 24 s
        (b'"n":129', "n"),
        (b'"stop":["a",""]', "stop[1]"),
        (b'"logit_bias":5', "logit_bias"),
        (b'"tools":5', "tools"),
        (b'"tools":[5]', "tools[0]"),
        (b'"tools":[{"type":"function"}]', "tools[0].function"),
        (b'"response_format":"json"', "response_format"),
        (b'"stream_options":{"include_usage":true}', "stream_options"),
        (b'"max_tokens":0', "max_tokens"),
        (b'"json_schema":{"const":-9223372036854775807}', "json_schema"),  # SIGSEGV
        (b'"json_schema":{"enum":[[-9223372036854775808]]}', "json_schema"),  # SIGSEGV
    ],
)
def test_parameters_that_are_refused(url: str, replica: RealReplica, middle: bytes, param: str) -> None:
    assert refused(ask(url, CHAT, raw(middle))) == param
    assert replica.alive


SCHEMAS: list[dict[str, Any]] = [
    nested("anyOf", 300),  # SIGSEGV at 3,000
    nested("allOf", 300),  # SIGSEGV at 3,000
    nested("items", 300),  # SIGSEGV at 3,000
    {"const": -(2**63) + 5},  # SIGSEGV
    {"type": "string", "minLength": 10**9},
    {"type": "string", "maxLength": 10**9},
    {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "array", "items": {}, "minItems": 10**6},
    {"type": "string", "pattern": "^a{2,1}$"},  # for ever
    {"type": "string", "pattern": "^(((a{100}){100}){100})$"},
    {"type": "string", "pattern": "^" + "(" * 500 + ")" * 500 + "$"},
    {"enum": list(range(30_000))},
    {"type": "object", "properties": {f"p{i}": {} for i in range(2000)}},  # longer than 12 s
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_schemas_that_are_refused_wherever_they_stand(
    url: str, replica: RealReplica, schema: dict[str, Any]
) -> None:
    function = {"type": "function", "function": {"name": "f", "parameters": schema}}
    format_ = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
    chat = {"model": "m", "messages": HI, "max_tokens": 1}
    assert refused(ask(url, CHAT, {**chat, "json_schema": schema})) == "json_schema"
    assert refused(ask(url, CHAT, {**chat, "response_format": format_})) == "response_format"
    assert refused(ask(url, CHAT, {**chat, "tools": [function]})) == "tools"
    tokens = {"model": "m", "messages": HI, "tools": [function]}
    assert refused(ask(url, "tokenize", tokens)) == "tools"
    tool = {"type": "function", "name": "f", "parameters": schema}
    assert refused(ask(url, "responses", {"model": "m", "input": "hi", "tools": [tool]})) == "tools"
    text = {"format": {"type": "json_schema", "name": "c", "schema": schema}}
    assert refused(ask(url, "responses", {"model": "m", "input": "hi", "text": text})) == "text.format"
    assert replica.alive


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETION, {"prompt": "word " * 5 * CONTEXT}),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 5 * CONTEXT}]}),
        ("responses", {"input": "word " * 5 * CONTEXT}),
        ("embeddings", {"input": "word " * 5 * CONTEXT}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_prompts_beyond_the_context(url: str, path: str, body: Any, stream: bool) -> None:
    if stream and path != "embeddings":
        body = {**body, "stream": True}
    answer = ask(url, path, {"model": "m", **body})
    refused(answer)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("prompt", [[], [[]], ["a", []], [-1], [2**31], [[1, "a"]], {"prompt_string": "a"}])
def test_prompts_that_are_none(url: str, replica: RealReplica, prompt: Any) -> None:
    for n in (1, 2):  # llama.cpp waits for ever where an empty prompt is asked for twice
        refused(ask(url, COMPLETION, {"model": "m", "prompt": prompt, "max_tokens": 1, "n": n}))
    assert replica.alive


@pytest.mark.parametrize(
    "given", [[10**6], [[5], [2**31 - 1]], [-1], [[]], [""], ["a"] * 2049, {"text": "a"}, [["a"]], 5, [None]]
)
def test_texts_that_are_none(url: str, replica: RealReplica, given: Any) -> None:
    refused(ask(url, "embeddings", {"model": "m", "input": given}))
    assert replica.alive


@pytest.mark.parametrize("levels", [101, 50_000])  # SIGSEGV
def test_arguments_of_calls_that_are_too_deep(url: str, replica: RealReplica, levels: int) -> None:
    arguments = "[" * levels + "]" * levels
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "1", "content": "x"})
    for path in (CHAT, "tokenize"):
        asked = {"model": "m", "messages": messages}
        assert refused(ask(url, path, asked)) == "messages[1].tool_calls"
    items = [{"type": "function_call", "call_id": "1", "name": "f", "arguments": arguments}]
    assert refused(ask(url, "responses", {"model": "m", "input": items}))
    assert replica.alive


def test_deep_template_arguments_are_survived(url: str, replica: RealReplica) -> None:
    for levels in (300, 900, 5000):
        middle = b'"chat_template_kwargs":{"a":' + b"[" * levels + b"]" * levels + b"}"
        assert ask(url, CHAT, raw(middle)).status_code in (200, 400) and replica.alive


@pytest.mark.parametrize("prompt", [[10**6], [[5], [2**31 - 1]]])
def test_tokens_beyond_the_vocabulary(url: str, replica: RealReplica, prompt: Any) -> None:
    refused(ask(url, COMPLETION, {"model": "m", "prompt": prompt, "max_tokens": 1}))
    assert replica.alive


def test_the_last_of_two_keys_counts_for_gateway_and_engine_alike(url: str) -> None:
    answer = ask(url, CHAT, raw(b'"stream":true,"stream":false,"max_tokens":3'))
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["usage"]["completion_tokens"] <= 3
    assert ask(url, CHAT, raw(b'"stream":false,"stream":true')).text.endswith("[DONE]\n\n")


def test_empty_prompts_are_answered(url: str, replica: RealReplica) -> None:
    answer = ask(url, COMPLETION, {"model": "m", "prompt": ["", ""], "max_tokens": 1, "n": 2})
    assert len(answer.json()["choices"]) == 4 and replica.alive


numbers = st.sampled_from(
    [0, 1, -1, 0.5, -0.5, 2, 64, 1000, 65_536, 2**31, -(2**31), 2**53, -(2**63), 1e38, -1e38]
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from(["", "a", "\0", "x" * 3000, "auto", "none", "𝄞"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "a", "", "5", "text", "function", "name"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
schemas: st.SearchStrategy[Any] = st.recursive(
    st.just({})
    | st.builds(
        lambda least, most: {"type": "string", "minLength": least, "maxLength": most}, numbers, numbers
    )
    | st.builds(lambda least, most: {"type": "integer", "minimum": least, "maximum": most}, numbers, numbers)
    | st.builds(lambda value: {"const": value}, values)
    | st.builds(lambda options: {"enum": options}, st.lists(values, max_size=3))
    | st.builds(
        lambda name: {"$ref": name, "$defs": {"a": {"$ref": "#/$defs/a"}}},
        st.sampled_from(["#", "#/$defs/a"]),
    )
    | st.builds(
        lambda text: {"type": "string", "pattern": text},
        st.sampled_from(["^(a*)*$", "^[z-a]$", "^*$", "^a{$"]),
    ),
    lambda inner: (
        st.builds(lambda one: {"type": "array", "items": one, "minItems": 1}, inner)
        | st.builds(lambda all_: {"anyOf": all_}, st.lists(inner, max_size=3))
        | st.builds(lambda one: {"type": "object", "properties": {"a": one}, "required": ["a"]}, inner)
    ),
    max_leaves=4,
)
PARAMETERS = (
    *("top_k", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "temperature"),
    *("dynatemp_range", "dynatemp_exponent", "repeat_last_n", "repeat_penalty", "frequency_penalty"),
    *("presence_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    *("mirostat", "mirostat_tau", "mirostat_eta", "seed", "n_probs", "min_keep", "n", "logprobs"),
    *("top_logprobs", "max_completion_tokens", "n_predict", "t_max_predict_ms", "reasoning_budget_tokens"),
)
LOOSE = [
    "logit_bias",
    "samplers",
    "stop",
    "tools",
    "tool_choice",
    "response_format",
    "chat_template_kwargs",
    "user",
]


@settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
@given(
    st.dictionaries(st.sampled_from(PARAMETERS), numbers, max_size=3),
    st.dictionaries(st.sampled_from(LOOSE), values, max_size=2),
    st.none() | schemas,
)
def test_no_parameters_end_the_engine(
    url: str, replica: RealReplica, known: Any, loose: Any, schema: Any
) -> None:
    body = {"model": "m", "messages": HI, "max_tokens": 2, **known, **loose}
    if schema is not None:
        body["json_schema"] = schema
    answer = ask(url, CHAT, body)
    assert replica.alive and answer.status_code != 503
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
