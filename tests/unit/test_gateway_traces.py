"""Spans: what `traceparent` may say, what is sent to a collector, and that none of it can harm a request."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from caudal import spec
from caudal.domain.errors import CaudalError
from caudal.domain.fleet import FleetSpec
from caudal.gateway.callers import decode_keys
from caudal.gateway.process import Gateway
from caudal.telemetry import traces
from caudal.telemetry.traces import Parent, Span, SpanSender, collector, encode, parse_traceparent
from tests.support.collector import Collector
from tests.support.gateway import chat, connect, gateway, parsed, post, raw
from tests.support.mock_replica import USAGE, MockReplica
from tests.unit.test_gateway_callers import SECRET, bearer, key, table

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def receiver() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"00-{TRACE}-{SPAN}-01", Parent(TRACE, SPAN, True)),
        (f" 00-{TRACE}-{SPAN}-00 ", Parent(TRACE, SPAN, False)),
        (f"01-{TRACE}-{SPAN}-03-more", Parent(TRACE, SPAN, True)),  # a later version may say more
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"01-{TRACE}-{SPAN}-01-{'x' * 300}", None),
        ("", None),
    ],
)
def test_traceparent_is_read_as_w3c_has_it(header: str, parent: Parent | None) -> None:
    assert parse_traceparent(header.encode()) == parent
    assert parse_traceparent(None) is None


@given(st.binary(max_size=300) | st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*"))
def test_no_traceparent_is_an_error(header: bytes) -> None:
    parent = parse_traceparent(header)
    assert parent is None or (int(parent.trace_id, 16) and int(parent.span_id, 16))


def test_json_is_otlps() -> None:
    span = Span(
        "generate m", TRACE, SPAN, "aa" * 8, 1_700_000_000_000_000_000, 1_700_000_001_000_000_000, True
    )
    span.attributes = {"s": "x", "i": 3, "f": 0.5, "b": True}
    body = json.loads(encode([span], {"service.name": "caudal-gateway"}))
    (resource,) = body["resourceSpans"]
    assert resource["resource"]["attributes"] == [
        {"key": "service.name", "value": {"stringValue": "caudal-gateway"}}
    ]
    (sent,) = resource["scopeSpans"][0]["spans"]
    assert sent == {
        "traceId": TRACE,
        "spanId": "aa" * 8,
        "parentSpanId": SPAN,
        "name": "generate m",
        "kind": 2,
        "startTimeUnixNano": "1700000000000000000",
        "endTimeUnixNano": "1700000001000000000",
        "attributes": [
            {"key": "s", "value": {"stringValue": "x"}},
            {"key": "i", "value": {"intValue": "3"}},
            {"key": "f", "value": {"doubleValue": 0.5}},
            {"key": "b", "value": {"boolValue": True}},
        ],
        "status": {"code": 2},
    }


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://127.0.0.1:4318", ("http", "127.0.0.1", 4318, "/v1/traces")),
        ("http://otel", ("http", "otel", 4318, "/v1/traces")),
        ("https://otel.example/otlp/v1/traces", ("https", "otel.example", 443, "/otlp/v1/traces")),
        ("ftp://x", None),
        ("http://me:secret@x", None),
        ("http://x?a=b", None),
        ("http://x:99999", None),
        ("http://x/\r\nevil: y", None),
        ("otel:4318", None),
    ],
)
def test_addresses_of_collectors(url: str, parts: tuple[str, str, int, str] | None) -> None:
    text = f"type: fleet\nname: x\nsites: [{{name: a}}]\ngateway: {{traces: {json.dumps(url)}}}\n"
    if parts is None:
        with pytest.raises(ValueError, match="address"):
            try:
                collector(url)
            except ValueError as error:
                raise ValueError(f"address: {error}") from error
        with pytest.raises(CaudalError, match="traces: "):
            spec.parse(text, "f.yaml")
    else:
        assert collector(url) == parts
        (fleet,) = spec.parse(text, "f.yaml")
        assert isinstance(fleet, FleetSpec) and fleet.gateway.traces == url


def span(number: int = 0) -> Span:
    return Span(f"s{number}", TRACE, "", SPAN, 1, 2)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_spans_are_sent_in_batches_and_the_rest_at_the_end(receiver: Collector) -> None:
    sender = SpanSender(receiver.url, {"a": "b"}, every_s=0.02)
    sender.start()
    for number in range(traces.MAX_BATCH + 5):
        sender.add(span(number))
    until(lambda: sender.sent == traces.MAX_BATCH + 5)
    assert len(receiver.bodies) >= 2 and set(receiver.paths) == {"/v1/traces"}
    slow = SpanSender(receiver.url, {}, every_s=60)
    slow.start()
    slow.add(span(9999))
    slow.close()
    sender.close()
    assert [s["name"] for s in receiver.spans()][-1] == "s9999"


def test_what_cannot_be_sent_is_dropped_counted_and_said_once(
    receiver: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 503
    sender = SpanSender(receiver.url, {}, every_s=0.01)
    sender.start()
    for number in range(3):
        sender.add(span(number))
        until(lambda number=number: sender.dropped > number)  # type: ignore[misc]
    receiver.status = 200
    sender.add(span())
    until(lambda: sender.sent == 1)
    sender.close()
    assert sender.dropped == 3 and caplog.text.count("traces cannot be sent") == 1
    nowhere = SpanSender("http://127.0.0.1:9", {}, every_s=60)
    for number in range(traces.MAX_WAITING + 7):
        nowhere.add(span(number))
    assert nowhere.dropped == 7  # memory is bounded, whoever is slow


# At the gateway.


def traced(
    tmp_path: Path, receiver: Collector, scenario: Callable[[Gateway, list[MockReplica]], Awaitable[None]]
) -> list[dict[str, Any]]:
    async def run() -> None:
        replicas = [await MockReplica().start() for _ in range(2)]
        more = {"traces": receiver.url}
        async with gateway(tmp_path, {"m": list(replicas)}, more=more) as one:
            one.callers.update(decode_keys(table(key())))
            await scenario(one, replicas)
        for replica in replicas:
            await replica.die()

    uvloop.run(run())
    return receiver.spans()


def parents_at(replicas: list[MockReplica]) -> list[str]:
    """Every `traceparent` that replicas were sent."""
    heads = [asked["_head"] for replica in replicas for asked in replica.requests]
    lines = [line for head in heads for line in head.split("\r\n") if line.startswith("traceparent:")]
    return [line.partition(": ")[2] for line in lines]


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_collector_the_clients_traceparent_is_passed_on(tmp_path: Path, stream: bool) -> None:
    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}) as one:
            good = f"00-{TRACE}-{SPAN}-01"
            for sent in (f"traceparent: {good}\r\n", "traceparent: 00-nonsense-01\r\n", "", ""):
                answer = await raw(one, post(chat(stream=stream), headers=sent))
                assert answer.startswith(b"HTTP/1.1 200")
            assert len(replica.requests) == 4 and parents_at([replica]) == [good]
        await replica.die()

    uvloop.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_is_one_span_in_its_clients_trace(
    tmp_path: Path, receiver: Collector, stream: bool
) -> None:
    told: list[str] = []

    async def scenario(one: Gateway, replicas: list[MockReplica]) -> None:
        parent = f"traceparent: 00-{TRACE}-{SPAN}-01\r\n"
        for _ in range(2):  # by a task, and by callbacks alone
            asked = post(chat(stream=stream, user="a-secret-text"), headers=parent + bearer(SECRET))
            assert (await raw(one, asked)).startswith(b"HTTP/1.1 200")
        await raw(one, post(chat(stream=stream), headers=f"traceparent: 00-{TRACE}-{SPAN}-00\r\n"))
        told.extend(parents_at(replicas))

    spans = traced(tmp_path, receiver, scenario)
    assert len(spans) == 2  # the third one's client records nothing
    for one in spans:
        assert (one["traceId"], one["parentSpanId"], one["name"]) == (TRACE, SPAN, "generate m")
        assert int(one["endTimeUnixNano"]) >= int(one["startTimeUnixNano"]) > 1.6e18 and one["status"] == {}
        assert one["resource"]["service.instance.id"] == "gateway-1"
        said = one["attributes"]
        assert said["gen_ai.request.model"] == "m" and said["url.path"] == "/v1/chat/completions"
        assert said["http.response.status_code"] == 200 and said["caudal.stream"] is stream
        assert said["caudal.key"] not in ("", "anonymous") and said["caudal.site"] == "north"
        assert said["gen_ai.usage.output_tokens"] == USAGE["completion_tokens"]
        assert said["caudal.retries"] == said["caudal.rescues"] == 0
        assert (said.get("caudal.first_byte_s", -1) >= 0) is stream
    assert spans[0]["spanId"] != spans[1]["spanId"]
    within = [f"00-{TRACE}-{one['spanId']}-01" for one in spans]
    assert sorted(told) == sorted([*within, f"00-{TRACE}-{SPAN}-00"])
    text = json.dumps(receiver.bodies)
    assert SECRET not in text and "a-secret-text" not in text


def test_retries_refusals_and_clients_that_leave_are_told(tmp_path: Path, receiver: Collector) -> None:
    async def scenario(one: Gateway, replicas: list[MockReplica]) -> None:
        for replica in replicas:
            replica.fail = "die_before"
        assert parsed(await raw(one, post(chat())))[0] == 503
        for replica in replicas:
            replica.fail = ""
        assert parsed(await raw(one, post(chat(), headers="x-caudal-class: urgent\r\n")))[0] == 400
        assert parsed(await raw(one, post(chat(model="none"))))[0] == 404  # no model, no generation
        await asyncio.sleep(1.1)
        _, writer = await connect(one)
        writer.write(post(chat(seed=60_000)))
        while not any(replica.running for replica in replicas):
            await asyncio.sleep(0.01)
        writer.close()
        while one.router.in_flight("m"):
            await asyncio.sleep(0.01)

    failed, left = traced(tmp_path, receiver, scenario)
    assert failed["status"] == {"code": 2} and failed["attributes"]["caudal.retries"] >= 1
    assert failed["attributes"]["http.response.status_code"] == 503 and "parentSpanId" not in failed
    assert left["attributes"]["http.response.status_code"] == 499 and left["status"] == {}


def test_a_rescued_stream_says_so(tmp_path: Path, receiver: Collector) -> None:
    async def scenario(one: Gateway, replicas: list[MockReplica]) -> None:
        await raw(one, post(chat(stream=True, max_tokens=6, user="die_mid")))

    (one,) = traced(tmp_path, receiver, scenario)
    assert one["attributes"]["caudal.rescues"] >= 1 and one["attributes"]["caudal.retries"] == 0


def test_a_collector_that_hangs_holds_nothing_up(tmp_path: Path, receiver: Collector) -> None:
    receiver.delay_s = 0.5

    async def scenario(one: Gateway, replicas: list[MockReplica]) -> None:
        await raw(one, post(chat()))
        await asyncio.sleep(1.1)  # the batch is on its way
        began = time.monotonic()
        assert parsed(await raw(one, post(chat())))[0] == 200
        assert time.monotonic() - began < 0.4

    assert len(traced(tmp_path, receiver, scenario)) == 2


def test_without_an_address_there_is_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with gateway(tmp_path, {}) as one:
            assert one.spans is None

    uvloop.run(run())
