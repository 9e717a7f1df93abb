"""Whatever bytes come, in whatever pieces: the same requests, the same events, and never a crash."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from caudal.gateway.events import EventSplitter, ModelName, NotEvents, renamed, right_names
from caudal.gateway.http_request import Refusal, Request, RequestReader
from caudal.gateway.limits import Limits
from caudal.gateway.openai_api import parse_chat, parse_completion
from caudal.gateway.openai_errors import ApiError, engine_error
from caudal.gateway.process import Gateway
from tests.support.gateway import connect, gateway, raw

SMALL = replace(Limits(), head_bytes=200, headers=6, body_bytes=64, pipelined=100)

token = st.text("abcXYZ-_", min_size=1, max_size=8)
request_bytes = st.builds(
    lambda path, extra, body, chunked: _request(path, extra, body, chunked),
    token,
    st.dictionaries(token, token, max_size=3),
    st.binary(max_size=60),
    st.booleans(),
)
noise = st.one_of(
    st.binary(max_size=80),
    st.sampled_from(
        [
            b"\r\n",
            b"\n",
            b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n",
            b"host: x\r\n",
            b"transfer-encoding: chunked\r\n",
        ]
    ),
    st.sampled_from(
        [
            b"content-length: 5\r\n",
            b"content-length: 99999999999999999999\r\n",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
        ]
    ),
)


def _request(path: str, extra: dict[str, str], body: bytes, chunked: bool) -> bytes:
    head = f"POST /{path} HTTP/1.1\r\nHost: x\r\n" + "".join(f"x-{k}: {v}\r\n" for k, v in extra.items())
    if not chunked:
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    pieces = [body[i : i + 13] for i in range(0, len(body), 13)]
    encoded = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces)
    return f"{head}transfer-encoding: chunked\r\n\r\n".encode() + encoded + b"0\r\n\r\n"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


def read(parts: list[bytes], limits: Limits = SMALL) -> list[Request | Refusal]:
    reader = RequestReader(limits)
    for part in parts:
        reader.feed(part)
    return list(reader.ready)


def within_what_may_wait(requests: list[Request]) -> list[Request | Refusal]:
    """What a reader gives out that nobody takes requests from: those behind too many bytes of bodies are refused."""
    given_out: list[Request | Refusal] = []
    waiting_bytes = 0
    for one in requests:
        if waiting_bytes > SMALL.body_bytes:
            message = "Too many requests at once on one connection."
            return [*given_out, Refusal(400, "too_many_pipelined", message)]
        given_out.append(one)
        waiting_bytes += len(one.body)
    return given_out


@given(st.lists(request_bytes, max_size=4), st.lists(st.integers(0, 10_000), max_size=40))
def test_requests_do_not_depend_on_how_their_bytes_arrive(requests: list[bytes], cuts: list[int]) -> None:
    data = b"".join(requests)
    alone = [read([one])[0] for one in requests]
    assert all(isinstance(one, Request) for one in alone)
    expected = within_what_may_wait([one for one in alone if isinstance(one, Request)])
    assert read(pieces(data, cuts)) == expected
    assert read([bytes([b]) for b in data]) == expected


@given(st.lists(st.one_of(noise, request_bytes), max_size=8), st.lists(st.integers(0, 10_000), max_size=10))
@example([b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: a\r\n\r\n"], [])
def test_garbage_is_refused_once_and_ends_the_reading(parts: list[bytes], cuts: list[int]) -> None:
    got = read(pieces(b"".join(parts), cuts))
    refusals = [i for i, one in enumerate(got) if isinstance(one, Refusal)]
    assert refusals in ([], [len(got) - 1])
    for one in got:
        if isinstance(one, Request):
            assert len(one.body) <= SMALL.body_bytes and len(one.headers) <= SMALL.headers


@given(st.binary(max_size=300))
def test_validation_answers_400_to_anything_that_is_not_a_request(data: bytes) -> None:
    for parse in (parse_chat, parse_completion):
        try:
            parse(data)
        except ApiError as error:
            assert error.status == 400 and json.loads(error.body())["error"]["message"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
KNOWN = [
    "messages",
    "prompt",
    "temperature",
    "n",
    "stop",
    "stream",
    "max_tokens",
    "seed",
    "logit_bias",
    "tools",
]


@settings(suppress_health_check=[HealthCheck.too_slow])  # it measures how busy the machine is
@given(st.dictionaries(st.sampled_from(KNOWN), json_values, max_size=5))
def test_validation_never_fails_otherwise(fields: dict[str, object]) -> None:
    for parse in (parse_chat, parse_completion):
        try:
            assert parse(json.dumps({"model": "m", **fields}).encode()).model == "m"
        except ApiError as error:
            assert error.status == 400


@given(json_values | st.fixed_dictionaries({"error": json_values}), st.sampled_from([400, 404, 500]))
def test_any_engine_error_becomes_openai_shape(body: object, status: int) -> None:
    error = json.loads(engine_error(status, json.dumps(body).encode(), "messages").body())["error"]
    assert set(error) == {"message", "type", "param", "code"} and isinstance(error["message"], str)


events = st.lists(
    st.sampled_from(
        [b'data: {"model":"x","a":1}\n\n', b": ping\n\n", b"data: [DONE]\n\n", b"event: a\r\ndata: b\r\n\r\n"]
    ),
    max_size=6,
)


@given(events, st.lists(st.integers(0, 1000), max_size=20))
def test_events_are_forwarded_whole_and_unchanged(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    splitter = EventSplitter()
    out = [splitter.feed(piece) for piece in pieces(data, cuts)]
    assert b"".join(out) == data and not splitter.pending
    assert all(one.endswith((b"\n\n", b"\r\n\r\n")) for one in out if one)
    assert splitter.done or parts[-1:] != [b"data: [DONE]\n\n"]


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_what_is_no_stream_of_events_is_said_to_be_none(parts: list[bytes]) -> None:
    splitter, name = EventSplitter(), ModelName("m")
    try:
        for part in parts:
            name.events(splitter.feed(part))
    except NotEvents:
        pass


def test_model_name_is_rewritten_only_where_it_is_another() -> None:
    mine = b'data: {"id":"1","model":"m","x":"\\u00e9"}\n\n'
    assert ModelName("m").events(mine) is mine
    assert json.loads(ModelName("n").events(mine)[6:]) == {"id": "1", "model": "n", "x": "é"}
    assert any(name in b'{"model": "m", "a":  1}' for name in right_names("m"))
    assert json.loads(renamed("n", b'{"model":"m"}'))["model"] == "n"


def test_gateway_survives_garbage_on_its_sockets(tmp_path: Path) -> None:
    dice = random.Random(7)
    bits = [
        b"GET /health HTTP/1.1\r\n",
        b"host: x\r\n",
        b"\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n",
        b"\x00\xff",
    ]
    bits += [
        b"content-length: 3\r\n",
        b"transfer-encoding: chunked\r\n",
        b"{}[",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"\n",
    ]
    limits = replace(Limits(), head_s=0.1, body_s=0.1, idle_s=0.1, linger_s=0.05, sweep_s=0.02)

    async def attack(one: Gateway) -> None:
        reader, writer = await connect(one)
        for _ in range(dice.randrange(1, 9)):
            writer.write(dice.choice(bits) if dice.random() < 0.8 else dice.randbytes(20))
            await asyncio.sleep(0)
        try:
            await asyncio.wait_for(reader.read(), 3)
        except ConnectionError:
            pass  # it was cut off, which is its right
        writer.close()

    async def run() -> None:
        async with gateway(tmp_path, {}, limits=limits) as one:
            await asyncio.gather(*(attack(one) for _ in range(300)))
            answer = await raw(one, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            assert one.server.connections <= 1 and one.server.busy == 0

    uvloop.run(run())
