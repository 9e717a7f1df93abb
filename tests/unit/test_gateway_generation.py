"""What a client of the gateway gets: answers, streams, usage, and errors that touch nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from caudal.gateway.openai_errors import engine_error
from caudal.gateway.process import Gateway
from caudal.gateway.upstream import UpstreamLimits
from tests.support.gateway import chat, connect, gateway, parsed, post, raw
from tests.support.mock_replica import USAGE, MockReplica

Scenario = Callable[[Gateway, MockReplica], Awaitable[None]]


def with_one(tmp_path: Path, scenario: Scenario, **options: Any) -> None:
    """Run a scenario against a gateway with one replica of the model `m`."""

    async def run() -> None:
        replica = await MockReplica("engine-name").start()
        async with gateway(tmp_path, {"m": [replica], "empty": []}, **options) as one:
            await scenario(one, replica)
        await replica.die()

    uvloop.run(run())


def events(answer: bytes) -> list[Any]:
    """The decoded events of a streamed answer."""
    body = b"".join(line for line in answer.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2])
    lines = [line[6:] for line in body.split(b"\n\n") if line.startswith(b"data: ")]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


def test_whole_answer_has_public_model_id_and_usage(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        status, body = parsed(await raw(one, post(chat(chat_template_kwargs={"kept": [1]}))))
        assert status == 200
        assert body["model"] == "m" and body["id"] == "cmpl-1" and body["usage"] == USAGE
        assert body["choices"][0]["message"]["content"] == "w0 w1 w2"
        assert replica.requests[0]["chat_template_kwargs"] == {"kept": [1]}

    with_one(tmp_path, scenario)


def test_stream_has_public_model_id_and_ends_with_done(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        answer = await raw(one, post(chat(stream=True, stream_options={"include_usage": True})))
        assert b"content-type: text/event-stream" in answer
        got = events(answer)
        assert got[-1] == "[DONE]" and got[-2]["usage"] == USAGE
        assert {e["model"] for e in got[:-1]} == {"m"}
        said = [c["delta"].get("content", "") for e in got[:-1] for c in e["choices"]]
        assert "".join(said) == "w0 w1 w2 "

    with_one(tmp_path, scenario)


def test_completions_stream_and_whole(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        body = {"model": "m", "prompt": "once"}
        status, whole = parsed(await raw(one, post(body, "/v1/completions")))
        assert (status, whole["choices"][0]["text"]) == (200, "w0 w1 w2")
        got = events(await raw(one, post({**body, "stream": True}, "/v1/completions")))
        assert "".join(e["choices"][0]["text"] for e in got[:-1]) == "w0 w1 w2 "

    with_one(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (chat(model="nobody"), 404, "model_not_found", "model"),
        (b"{bad", 400, "invalid_json", None),
        (b"", 400, "invalid_json", None),
        (b"\xff\xfe", 400, "invalid_json", None),
        (
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":' + b"[" * 100_000,
            400,
            "invalid_json",
            None,
        ),
        ([1], 400, "invalid_type", None),
        ({"model": "m"}, 400, "missing_required_parameter", "messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, "missing_required_parameter", "model"),
        (chat(messages=[]), 400, "invalid_value", "messages"),
        (chat(messages="hi"), 400, "invalid_type", "messages"),
        (chat(messages=[{"role": "user", "content": 5}]), 400, "invalid_type", "messages[0].content"),
        (chat(temperature="hot"), 400, "invalid_type", "temperature"),
        (chat(temperature=3), 400, "invalid_value", "temperature"),
        (chat(max_tokens=-1), 400, "invalid_value", "max_tokens"),
        (chat(stream="yes"), 400, "invalid_type", "stream"),
        (chat(stream_options={}), 400, "invalid_value", "stream_options"),
    ],
)
def test_bad_request_is_refused_before_any_replica(
    tmp_path: Path, body: Any, status: int, code: str, param: str | None
) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        got, answer = parsed(await raw(one, post(body)))
        error = answer["error"]
        assert (got, error["code"], error["param"]) == (status, code, param)
        assert error["message"] and error["type"] == "invalid_request_error"
        assert replica.requests == []

    with_one(tmp_path, scenario)


@pytest.mark.parametrize(
    ("fail", "status", "code"),
    [
        ("context", 400, "context_length_exceeded"),
        ("400", 400, "invalid_request_error"),
        ("500", 500, "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_engine_errors_come_in_openai_shape(
    tmp_path: Path, fail: str, status: int, code: str, stream: bool
) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        got, answer = parsed(await raw(one, post(chat(user=fail, stream=stream))))
        assert (got, answer["error"]["code"]) == (status, code)
        if fail == "context":
            assert answer["error"]["param"] == "messages" and "2048" in answer["error"]["message"]
        assert len(replica.requests) == 1

    with_one(tmp_path, scenario)


@pytest.mark.parametrize("fail", ["die_before", "garbage", "not_json", "short_length", "503", "no_done"])
def test_replica_that_fails_alone_gives_503_with_retry_after(tmp_path: Path, fail: str) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        answer = await raw(one, post(chat(user=fail)))
        if fail == "no_done":
            assert parsed(answer)[0] == 200  # a matter of streams only
            return
        assert b"retry-after: " in answer
        status, body = parsed(answer)
        assert (status, body["error"]["type"]) == (503, "server_error")

    with_one(tmp_path, scenario)


def test_known_model_without_a_replica_is_503_at_once(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        answer = await raw(one, post(chat(model="empty")), timeout_s=1.0)
        assert parsed(answer)[0] == 503 and b"retry-after: " in answer
        assert parsed(answer)[1]["error"]["code"] == "no_replica"

    with_one(tmp_path, scenario, wait_s=30.0)


@pytest.mark.parametrize("fail", ["die_mid", "stall"])
def test_failure_in_mid_stream_with_no_other_replica_is_an_explicit_error_event(
    tmp_path: Path, fail: str
) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        healthy = asyncio.create_task(raw(one, post(chat(stream=True, max_tokens=20, seed=5))))
        got = events(await raw(one, post(chat(stream=True, max_tokens=6, user=fail))))
        assert got[0]["choices"][0]["delta"]["content"] == "w0 "
        assert got[-1]["error"]["code"] == "replica_failed"
        assert all("half" not in json.dumps(event) for event in got)  # no piece of an event was let through
        assert events(await healthy)[-1] == "[DONE]"
        assert one.metrics.broken_streams == 1 and one.metrics.streams == 0

    with_one(tmp_path, scenario, upstream=UpstreamLimits(stall_s=0.2))


def test_endless_line_ends_as_a_failure(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        status, _ = parsed(await raw(one, post(chat(stream=True, max_tokens=100, user="endless_line"))))
        assert status == 503

    with_one(tmp_path, scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_frees_the_replica_and_nobody_else_notices(tmp_path: Path, stream: bool) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        other = asyncio.create_task(raw(one, post(chat(stream=True, max_tokens=30, seed=10))))
        _, writer = await connect(one)
        writer.write(post(chat(stream=stream, max_tokens=1000, seed=50 if stream else 60_000)))
        while replica.running < 2:
            await asyncio.sleep(0.005)
        writer.close()
        async with asyncio.timeout(2):
            while not replica.left:
                await asyncio.sleep(0.005)
        assert events(await other)[-1] == "[DONE]"
        async with asyncio.timeout(2):
            while one.router.in_flight("m") or replica.running:
                await asyncio.sleep(0.005)
        assert one.metrics.answers == {("m", 499): 1, ("m", 200): 1} and one.metrics.streams == 0

    with_one(tmp_path, scenario)


def test_closed_kept_connection_is_retried_invisibly(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        for _ in range(5):
            assert parsed(await raw(one, post(chat())))[0] == 200
            replica.drop_connections()
        assert one.metrics.retries == 0 and len(replica.requests) == 5

    with_one(tmp_path, scenario)


def test_replica_connections_are_reused(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        for _ in range(5):
            assert parsed(await raw(one, post(chat())))[0] == 200
        assert replica.connections == 1

    with_one(tmp_path, scenario)


def test_slow_reader_holds_back_the_replica_not_the_memory(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        reader, writer = await connect(one)
        writer.write(post(chat(stream=True, max_tokens=1000, user="fat")))
        await asyncio.sleep(0.5)
        assert replica.running == 1  # it waits: 50 MB were asked for, and nobody reads
        taken = 0
        while data := await asyncio.wait_for(reader.read(1 << 20), 10):
            taken += len(data)
        assert taken > 50_000_000 and replica.running == 0
        writer.close()

    with_one(tmp_path, scenario)


def test_other_paths(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        async def get(path: str, method: str = "GET") -> bytes:
            return await raw(
                one, f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
            )

        models = parsed(await get("/v1/models"))[1]["data"]
        assert [(m["id"], m["object"], m["caudal"]["replicas"]) for m in models] == [
            ("m", "model", 1),
            ("empty", "model", 0),
        ]
        assert parsed(await get("/v1/models/m"))[1]["id"] == "m"
        assert parsed(await get("/v1/models/x"))[1]["error"]["code"] == "model_not_found"
        assert parsed(await get("/health"))[0] == parsed(await get("/ready"))[0] == 200
        assert parsed(await get("/nowhere"))[0] == 404
        assert parsed(await get("/v1/chat/completions"))[0] == 405
        assert (await get("/health", "HEAD")).endswith(b"\r\n\r\n")
        plain = post(chat()).replace(b"application/json", b"text/plain")
        assert parsed(await raw(one, plain))[0] == 415
        await raw(one, post(chat()))
        await raw(one, post(chat(model='x"\n')))
        text = (await get("/metrics")).decode()
        assert 'caudal_gateway_requests_total{model="m",status="200"} 1' in text
        assert 'caudal_gateway_requests_total{model="unknown",status="404"} 1' in text
        assert "caudal_gateway_first_byte_seconds_count 1" in text

    with_one(tmp_path, scenario)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"origin: https://evil.example\r\n", 403),
        (b"origin: http://127.0.0.1.evil.example\r\n", 403),
        (b"origin: null\r\n", 403),
        (b"origin: http://localhost:8600\r\n", 200),
        (b"origin: http://127.0.0.1:8600\r\n", 200),
        (b"content-encoding: gzip\r\n", 415),
    ],
)
def test_pages_of_other_sites_and_compressed_bodies_are_refused(
    tmp_path: Path, header: bytes, status: int
) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        request = post(chat()).replace(b"content-type:", header + b"content-type:", 1)
        assert header in request
        assert parsed(await raw(one, request))[0] == status
        assert len(replica.requests) == (1 if status == 200 else 0)

    with_one(tmp_path, scenario)


@pytest.mark.parametrize(
    "extra",
    [
        {"grammar": "root ::= " + "(" * 1001 + ")" * 1001},
        {"grammar": "x" * 40_000},
        {"n_probs": 1_000_000},
        {"repeat_last_n": 10**9},
        {"stop": ""},
        {"stop": ["ok", ""]},
    ],
)
def test_what_could_end_an_engine_never_reaches_it(tmp_path: Path, extra: dict[str, Any]) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        got, answer = parsed(await raw(one, post(chat(**extra))))
        assert (got, answer["error"]["type"]) == (400, "invalid_request_error")
        assert replica.requests == []

    with_one(tmp_path, scenario)


def test_what_the_engine_calls_its_own_fault_and_is_the_clients_is_400() -> None:
    body = b'{"error": {"message": "image input is not supported", "type": "server_error"}}'
    assert engine_error(500, body, "messages").status == 400
    assert engine_error(500, b'{"error": {"message": "out of memory"}}', "messages").status != 400
