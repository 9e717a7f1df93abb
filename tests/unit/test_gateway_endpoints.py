"""The further endpoints with scripted engines: what is sent to them, and what becomes of bad answers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from caudal.gateway.engine_bounds import MAX_GRAMMAR_REPEATS, check_schemas
from caudal.gateway.engine_dialects import PARAMETERS, check_parameters
from caudal.gateway.openai_api import parse_chat, parse_completion
from caudal.gateway.openai_errors import ApiError, engine_error
from caudal.gateway.process import Gateway
from caudal.gateway.responses_store import ResponseStore, StoredResponse, StoreLimits
from caudal.gateway.routes import ModelRoutes, ReplicaRoute, RouteTable
from caudal.policy.breaker import Breaker
from caudal.serve import llama_cpp
from tests.support.gateway import chat, gateway, parsed, post, raw
from tests.support.mock_replica import MockReplica
from tests.unit.test_gateway_generation import events

Scenario = Callable[[Gateway, MockReplica], Awaitable[None]]


def with_engine(tmp_path: Path, engine: str, scenario: Scenario) -> None:
    """Run a scenario against a gateway with one replica of that engine."""

    async def run() -> None:
        replica = await MockReplica("m").start()
        async with gateway(tmp_path) as one:
            route = ReplicaRoute("m-0", replica.url, "north", engine=engine)
            one.router.update(RouteTable(1, (ModelRoutes("m", replicas=(route,)),)))
            await scenario(one, replica)
        await replica.die()

    uvloop.run(run())


def test_parameters_reach_the_engines_that_know_them(tmp_path: Path) -> None:
    cases = {
        "": ("grammar", "guided_json"),
        "vllm": ("guided_json", "grammar"),
        "sglang": ("ebnf", "grammar"),
    }
    for engine, (known, unknown) in cases.items():

        async def scenario(
            one: Gateway, replica: MockReplica, known: str = known, unknown: str = unknown
        ) -> None:
            status, _ = parsed(await raw(one, post(chat(**{known: "x"}))))
            assert status == 200 and replica.requests[0][known] == "x"
            status, answer = parsed(await raw(one, post(chat(**{unknown: "x"}))))
            assert (status, answer["error"]["param"]) == (400, unknown)
            assert answer["error"]["code"] == "unknown_parameter" and len(replica.requests) == 1

        with_engine(tmp_path, engine, scenario)


def test_an_engine_that_is_not_known_gets_everything() -> None:
    check_parameters("openai", "m", frozenset({"anything"}))
    with pytest.raises(ApiError, match=r"llama\.cpp"):
        check_parameters("", "m", frozenset({"anything"}))


def test_the_engines_own_list_is_within_what_the_gateway_lets_through() -> None:
    common = set(parse_chat.__globals__["ChatRequest"].__struct_fields__)
    common |= set(parse_completion.__globals__["CompletionRequest"].__struct_fields__)
    assert common | PARAMETERS["llama.cpp"] >= llama_cpp.PARAMETERS


def test_choices_are_asked_for_one_by_one_with_seeds_of_their_own(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        body = {"model": "m", "prompt": ["a", "b"], "n": 2, "seed": 3, "max_tokens": 2}
        status, answer = parsed(await raw(one, post(body, "/v1/completions")))
        assert status == 200 and [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
        asked = sorted((r["prompt"], r["seed"]) for r in replica.requests)
        assert asked == [("a", 3), ("a", 4), ("b", 3), ("b", 4)]
        assert all("n" not in request for request in replica.requests)
        assert answer["usage"]["prompt_tokens"] == 14 and answer["usage"]["completion_tokens"] == 12
        got = events(await raw(one, post({**body, "stream": True}, "/v1/completions")))
        assert got[-1] == "[DONE]" and len({e["id"] for e in got[:-1]}) == 1
        for index in range(4):
            said = [c["text"] for e in got[:-1] for c in e["choices"] if c["index"] == index]
            assert "".join(said) == "w0 w1 "
        assert not any("usage" in e for e in got[:-1])

    with_engine(tmp_path, "", scenario)


def test_an_engine_that_gives_choices_itself_is_asked_once(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        assert parsed(await raw(one, post(chat(n=3))))[0] == 200
        assert len(replica.requests) == 1 and replica.requests[0]["n"] == 3

    with_engine(tmp_path, "vllm", scenario)


@pytest.mark.parametrize("fail", ["die_mid", "no_done"])
def test_a_choice_that_breaks_ends_the_stream_with_its_error(tmp_path: Path, fail: str) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        got = events(await raw(one, post(chat(stream=True, n=2, max_tokens=6, user=fail))))
        assert got[-1]["error"]["code"] == "replica_failed"
        assert one.router.in_flight("m") == 0

    with_engine(tmp_path, "", scenario)


def test_choices_that_cannot_begin_are_an_error(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        status, answer = parsed(await raw(one, post(chat(n=3, user="400"))))
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert parsed(await raw(one, post(chat(n=3, user="die_before"))))[0] == 503

    with_engine(tmp_path, "", scenario)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/tokenize", "/v1/detokenize"])
def test_engines_that_answer_something_else_have_failed(tmp_path: Path, path: str) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        field = {"tokens": [1]} if "detok" in path else {"input": "a"}
        for fail in ("", "garbage", "not_json", "503"):
            replica.fail = fail  # without a failure it answers as to a completion, which is garbage here
            status, answer = parsed(await raw(one, post({"model": "m", **field}, path)))
            assert (status, answer["error"]["type"]) == (503, "server_error")
        assert one.router.in_flight("m") == 0
        status, answer = parsed(await raw(one, post({"model": "nobody", **field}, path)))
        assert (status, answer["error"]["code"]) == (404, "model_not_found")

    with_engine(tmp_path, "", scenario)


def test_a_response_whose_replica_dies_has_failed_and_is_not_kept(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        whole = {"model": "m", "input": "hi", "max_output_tokens": 3}
        status, told = parsed(await raw(one, post(whole, "/v1/responses")))
        assert status == 200 and told["output"][0]["content"][0]["text"] == "w0 w1 w2"
        assert len(list(tmp_path.glob("responses/*/*.json"))) == 1
        body = {**whole, "max_output_tokens": 6, "stream": True, "user": "die_mid"}
        answer = (await raw(one, post(body, "/v1/responses"))).decode()
        assert "event: response.failed" in answer and '"status":"failed"' in answer
        assert "response.completed" not in answer and "in the middle of this answer" in answer
        assert len(list(tmp_path.glob("responses/*/*.json"))) == 1
        assert one.metrics.answers["m", 200] == 2

    with_engine(tmp_path, "", scenario)


def test_a_disk_that_is_full_costs_the_keeping_only(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        (tmp_path / "responses").write_text("a file where a folder must be")
        status, told = parsed(await raw(one, post({"model": "m", "input": "hi"}, "/v1/responses")))
        assert (status, told["store"], told["status"]) == (200, False, "completed")

    with_engine(tmp_path, "", scenario)


TOKENS_ASKED = {
    "": [("/tokenize", "content"), ("/apply-template", "messages"), ("/detokenize", "tokens")],
    "vllm": [("/tokenize", "prompt"), ("/tokenize", "messages"), ("/detokenize", "tokens")],
}


@pytest.mark.parametrize("engine", TOKENS_ASKED)
def test_each_engine_is_asked_for_tokens_in_its_own_way(tmp_path: Path, engine: str) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        bodies = (
            ({"model": "m", "input": "a"}, "/v1/tokenize"),
            (chat(), "/v1/tokenize"),
            ({"model": "m", "tokens": [1]}, "/v1/detokenize"),
        )
        for (body, path), question in zip(bodies, TOKENS_ASKED[engine], strict=True):
            one.router._replicas[
                ("m-0", replica.url)
            ].load.breaker = Breaker()  # its answers are garbage here
            replica.requests.clear()
            await raw(one, post(body, path))
            asked = replica.requests[0]
            assert (asked["_path"], question[1] in asked) == (question[0], True)

    with_engine(tmp_path, engine, scenario)


def stored(number: int, size: int = 10) -> StoredResponse:
    return StoredResponse({"id": f"resp_{number:032x}", "text": "x" * size}, [], [])


def test_the_store_keeps_the_newest_of_each_owner(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, StoreLimits(responses=3, response_bytes=1000, sweep_every=1))
    for number in range(6):
        assert store.put("a", stored(number))
        path = next(tmp_path.glob(f"*/resp_{number:032x}.json"))
        os.utime(path, (time.time() - 100 + number,) * 2)
    store.put("b", stored(9))
    kept = {int(p.stem[5:], 16) for p in tmp_path.glob("*/*.json")}
    assert {9} <= kept and len(kept) <= 4
    assert store.get("b", stored(9).response["id"]).response == stored(9).response
    for owner, response_id in (
        ("a", stored(0).response["id"]),
        ("a", stored(9).response["id"]),
        ("a", "../x"),
    ):
        for call in (store.get, store.delete):
            with pytest.raises(ApiError) as error:
                call(owner, response_id)
            assert error.value.status == 404
    assert not store.put("a", stored(7, size=2000))


def test_the_store_forgets_by_age_and_by_size(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, StoreLimits(total_bytes=1000, age_s=50, sweep_every=1))
    store.put("a", stored(1))
    path = next(tmp_path.glob("*/*.json"))
    os.utime(path, (time.time() - 60,) * 2)
    with pytest.raises(ApiError):
        store.get("a", stored(1).response["id"])
    store.put("a", stored(2, size=600))
    assert not path.exists()
    store.put("a", stored(3, size=600))
    assert len(list(tmp_path.glob("*/*.json"))) == 1
    path = next(tmp_path.glob("*/*.json"))
    path.write_bytes(b"{half")
    with pytest.raises(ApiError):
        store.get("a", path.stem)


def test_schemas_of_every_day_pass() -> None:
    schema: Any = {
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "minLength": 1,
                "maxLength": 200,
                "pattern": "^[A-Z][a-z]{1,40}( [A-Z])?$",
            },
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": [str(i) for i in range(500)]}, "maxItems": 100},
            "minLength": {"type": "string"},
        },
    }
    check_schemas(schema, "x")
    parse_chat(json.dumps(chat(json_schema=schema, grammar='root ::= ("a" | [0-9]{1,3})+')).encode())
    with pytest.raises(ApiError):
        check_schemas({"pattern": f"a{{{MAX_GRAMMAR_REPEATS + 1}}}"}, "x")


def test_common_hints_that_change_nothing_pass_to_any_engine() -> None:
    call = parse_chat(json.dumps(chat(metadata={"a": "b"}, prompt_cache_key="x", store=False)).encode())
    assert call.extras == frozenset()
    with pytest.raises(ApiError):
        parse_chat(json.dumps(chat(store=True)).encode())


def test_texts_too_long_to_embed_are_beyond_the_context() -> None:
    text = "input (500 tokens) is too large to process. increase the physical batch size (current batch size: 64)"
    error = engine_error(500, json.dumps({"error": {"code": 500, "message": text}}).encode(), "input")
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "input")
    assert "64" in error.message
