"""Admission as the gateway carries it out: permits, waiting, clients that leave, and what refusals look like."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from caudal.domain.key import SECRET_PREFIX, KeyLimits, Slo
from caudal.gateway.admitter import Admitter, Permit, Refused
from caudal.gateway.callers import KeyRow, KeyTable
from caudal.gateway.openai_api import Call
from caudal.gateway.openai_errors import ApiError
from caudal.gateway.process import Gateway
from caudal.gateway.routes import decode_routes
from caudal.gateway.wishes import MAX_DEADLINE_MS, names_its_bound, wishes
from caudal.policy.slo import Promise, SloTargets
from tests.support.gateway import chat, gateway, parsed, post, raw, table
from tests.support.mock_replica import MockReplica

CALL = Call("/v1/chat/completions", "m", True, 300, b'{"max_tokens":256}' + b" " * 158, "messages", 44)


class Timed:
    """A loop's clock, a model of some slots, and an admitter."""

    def __init__(self, slots: int, **options: object) -> None:
        self.loop = asyncio.get_running_loop()
        self.capacity = (1, slots)
        self.admitter = Admitter(lambda _: self.capacity, self.loop.time, **options)  # type: ignore[arg-type]

    def ask(self, key: str = "k", slo: Slo | None = None, **more: object) -> asyncio.Task[Permit]:
        """A request of a key, on its way."""
        return self.loop.create_task(self.admitter.admit(CALL, key, slo=slo, **more))  # type: ignore[arg-type]

    async def learn(self, seconds: float, count: int = 3) -> None:
        """Let it see some requests that take so long, one after the other."""
        for _ in range(count):
            permit = await self.admitter.admit(CALL)
            await asyncio.sleep(seconds / 10)
            permit.first_token()
            await asyncio.sleep(seconds)
            permit.reply_tokens = 10
            permit.done()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """One scenario on the gateway's event loop."""

    async def whole() -> None:
        await scenario()

    uvloop.run(whole())


async def settled() -> None:
    """Let what is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_room_is_given_without_a_timer_and_given_back_once() -> None:
    async def scenario() -> None:
        world = Timed(1)
        await world.learn(0.05)
        permits = [await world.admitter.admit(CALL)]
        assert world.admitter._timer is None and not world.admitter._waiting
        waiting = world.ask()
        await settled()
        assert not waiting.done() and world.admitter.admission.waiting == 1
        permits[0].first_token()
        permits[0].first_token()
        permits[0].reply_tokens = 3
        permits[0].done()
        permits[0].done()
        second = await waiting
        assert world.admitter.admission.running("m") == 1
        second.done()
        assert world.admitter.admission.running("m") == 0
        await asyncio.sleep(0.12)
        assert world.admitter._timer is None  # nobody waits: nobody asks

    run(scenario)


def test_clients_that_leave_are_out_of_the_queue_also_all_at_once() -> None:
    async def scenario() -> None:
        world = Timed(1)
        await world.learn(0.02)
        first = await world.admitter.admit(CALL)
        waiting = [world.ask(f"k{i}", Slo.BATCH) for i in range(2000)]
        await settled()
        assert world.admitter.admission.waiting == 2000
        for task in waiting[:-1]:
            task.cancel()
        first.done()  # while they are on their way out: places go to clients that are gone, and come back
        permit = await waiting[-1]
        await settled()
        assert all(task.cancelled() for task in waiting[:-1])
        assert world.admitter.admission.running("m") == 1 and not world.admitter._waiting
        permit.done()

    run(scenario)


def test_a_place_that_is_given_to_a_client_that_leaves_at_that_moment_comes_back() -> None:
    async def scenario() -> None:
        world = Timed(1)
        await world.learn(0.02)
        first = await world.admitter.admit(CALL)
        waiting = world.ask()
        await settled()
        first.done()  # the place is its own now, and it does not know yet
        waiting.cancel()
        await settled()
        assert waiting.cancelled() and world.admitter.admission.running("m") == 0

    run(scenario)


def test_who_waits_too_long_is_refused_with_when_to_come_again() -> None:
    async def scenario() -> None:
        targets = SloTargets(Promise(0.3), Promise(0.3), Promise(0.3))
        world = Timed(1, targets=targets)
        await world.learn(0.02)
        first = await world.admitter.admit(CALL)
        waiting = world.ask()
        with pytest.raises(Refused) as refused:
            await waiting
        assert refused.value.status == 503 and refused.value.code == "overloaded"
        assert refused.value.headers() == b"retry-after: 1\r\n"
        assert b'"server_error"' in refused.value.body()
        assert world.admitter.metrics.refused[Slo.INTERACTIVE, "overloaded"] == 1
        first.done()

    run(scenario)


def test_more_slots_are_noticed_while_requests_wait() -> None:
    async def scenario() -> None:
        world = Timed(1)
        await world.learn(0.02)
        first = await world.admitter.admit(CALL)
        waiting = world.ask()
        await settled()
        world.capacity = (2, 8)
        second = await waiting
        for permit in (first, second):
            permit.done()

    run(scenario)


def test_a_keys_limits_in_openais_words() -> None:
    async def scenario() -> None:
        world = Timed(10)
        limits = KeyLimits(requests_per_minute=1, tokens_per_minute=10_000)
        permit = await world.admitter.admit(CALL, "k", limits)
        head = permit.headers()
        assert (
            b"x-ratelimit-limit-requests: 1\r\n" in head and b"x-ratelimit-remaining-requests: 0\r\n" in head
        )
        assert b"x-ratelimit-limit-tokens: 10000\r\n" in head and b"x-ratelimit-reset-tokens: 61s\r\n" in head
        with pytest.raises(Refused) as refused:
            await world.admitter.admit(CALL, "k", limits)
        assert refused.value.status == 429 and refused.value.code == "rate_limit_exceeded"
        assert b'"rate_limit_error"' in refused.value.body()
        assert (
            b"retry-after: 6" in refused.value.headers() and b"x-ratelimit-limit" in refused.value.headers()
        )
        assert (await world.admitter.admit(CALL)).headers() == b""
        world.admitter.spent("poor", 5, 0.0)
        with pytest.raises(Refused) as spent:
            await world.admitter.admit(CALL, "poor", KeyLimits(budget_tokens=5))
        assert spent.value.code == "insufficient_quota" and b'"insufficient_quota"' in spent.value.body()
        assert spent.value.headers() == b"x-should-retry: false\r\n"

    run(scenario)


def test_the_class_is_no_better_than_the_keys() -> None:
    async def scenario() -> None:
        world = Timed(8)
        limits = KeyLimits(slo=Slo.BATCH)
        permits = [await world.admitter.admit(CALL, "k", limits, Slo.INTERACTIVE) for _ in range(6)]
        waiting = asyncio.ensure_future(world.admitter.admit(CALL, "k", limits, Slo.INTERACTIVE))
        await settled()
        assert world.admitter.admission.queued()[Slo.BATCH] == 1  # a quarter of the slots is for others
        waiting.cancel()
        for permit in permits:
            permit.done()

    run(scenario)


@pytest.mark.parametrize(
    ("headers", "body", "wanted"),
    [
        ({}, b"{}", (None, 0.0)),
        ({b"x-caudal-class": b"Batch "}, b"{}", (Slo.BATCH, 0.0)),
        ({b"x-caudal-class": b"standard"}, b'{"service_tier":"flex"}', (Slo.STANDARD, 0.0)),
        ({}, b'{"service_tier": "flex"}', (Slo.BATCH, 0.0)),
        ({}, b'{"service_tier": "auto"}', (None, 0.0)),
        ({}, b'{"a": "\\"service_tier\\": \\"flex\\""}', (None, 0.0)),
        ({}, b'{"service_tier": 3}', (None, 0.0)),
        ({b"x-caudal-deadline-ms": b"1500"}, b"{}", (None, 1.5)),
    ],
)
def test_wishes(headers: dict[bytes, bytes], body: bytes, wanted: tuple[Slo | None, float]) -> None:
    assert wishes(headers, body) == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-caudal-class", b"urgent"),
        (b"x-caudal-class", b""),
        (b"x-caudal-deadline-ms", b"0"),
        (b"x-caudal-deadline-ms", b"-5"),
        (b"x-caudal-deadline-ms", b"1e3"),
        (b"x-caudal-deadline-ms", b"\xb2"),
        (b"x-caudal-deadline-ms", b"9" * 5000),
        (b"x-caudal-deadline-ms", str(MAX_DEADLINE_MS + 1).encode()),
    ],
)
def test_wishes_that_are_none(name: bytes, value: bytes) -> None:
    with pytest.raises(ApiError) as error:
        wishes({name: value}, b"{}")
    assert error.value.status == 400 and name.decode() in error.value.message


def test_what_bodies_say_of_lengths() -> None:
    assert names_its_bound(b'{"max_tokens": 3}') and names_its_bound(b'{"max_completion_tokens": 3}')
    assert not names_its_bound(b'{"content": "set \\"max_tokens\\""}')


def scenario_with_one(
    tmp_path: Path, slots: int, scenario: Callable[[Gateway, MockReplica], Awaitable[None]]
) -> None:
    """A gateway with one replica of so many slots."""

    async def whole() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}) as one:
            routes = table({"m": [replica]}, 2).replace(
                b'"site": "north"', b'"site": "north", "slots": %d' % slots
            )
            one.router.update(decode_routes(routes))
            await scenario(one, replica)
        await replica.die()

    uvloop.run(whole())


def test_the_replica_gets_what_it_has_slots_for(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        assert one.router.capacity("m") == (1, 2)
        for _ in range(3):  # answers of a tenth of a second: no second one needs to be ready behind them
            await raw(one, post(chat(stream=True, seed=30)))
        replica.gate.clear()
        asked = [asyncio.create_task(raw(one, post(chat(stream=True, seed=30)))) for _ in range(6)]
        await asyncio.sleep(0.15)
        assert replica.running == 2
        text = await raw(one, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert b'caudal_gateway_requests_queued{class="interactive"} 4' in text
        replica.gate.set()
        answers = await asyncio.gather(*asked)
        assert all(a.startswith(b"HTTP/1.1 200") and b"[DONE]" in a for a in answers)
        text = await raw(one, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert b'caudal_gateway_requests_queued{class="interactive"} 0' in text
        assert b"caudal_gateway_wait_seconds_count 9" in text

    scenario_with_one(tmp_path, 2, scenario)


def test_a_client_that_leaves_the_queue_never_reaches_a_replica(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        for _ in range(3):
            await raw(one, post(chat(stream=True, seed=30)))
        replica.gate.clear()
        running = asyncio.create_task(raw(one, post(chat())))
        while not replica.running:
            await asyncio.sleep(0.005)
        leaving = asyncio.create_task(raw(one, post(chat(user="left"))))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.sleep(0.05)
        replica.gate.set()
        assert parsed(await running)[0] == 200 and parsed(await raw(one, post(chat())))[0] == 200
        assert all(body.get("user") != "left" for body in replica.requests)

    scenario_with_one(tmp_path, 1, scenario)


def test_refusals_at_the_gateway(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        answer = await raw(one, post(chat(), headers="x-caudal-class: urgent\r\n"))
        assert parsed(answer)[0] == 400 and "x-caudal-class" in parsed(answer)[1]["error"]["message"]
        for _ in range(3):
            await raw(one, post(chat(stream=True, seed=60)))
        replica.gate.clear()
        asked = [
            asyncio.create_task(raw(one, post(chat(), headers="x-caudal-deadline-ms: 900\r\n"), 3))
            for _ in range(12)
        ]
        await asyncio.sleep(0.3)
        replica.gate.set()
        answers = await asyncio.gather(*asked)
        refused = [a for a in answers if a.startswith(b"HTTP/1.1 503")]
        assert refused and all(b"retry-after: " in a and b'"overloaded"' in a for a in refused)
        assert any(a.startswith(b"HTTP/1.1 200") for a in answers)
        text = await raw(one, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (
            b'caudal_gateway_refused_total{class="interactive",code="overloaded"} %d' % len(refused) in text
        )

    scenario_with_one(tmp_path, 1, scenario)


def test_a_keys_rate_and_budget_at_the_gateway(tmp_path: Path) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        rows = [
            KeyRow(
                name, name, hashlib.sha256(f"{SECRET_PREFIX}{name}".encode()).hexdigest(), limits, 0.0, spent
            )
            for name, limits, spent in (
                ("rated", KeyLimits(requests_per_minute=2), 0),
                ("spent", KeyLimits(budget_tokens=100), 100),
                ("rich", KeyLimits(budget_tokens=100), 99),
            )
        ]
        one.callers.update(KeyTable(tuple(rows)))

        async def ask(name: str, **more: object) -> bytes:
            return await raw(
                one, post(chat(**more), headers=f"authorization: Bearer {SECRET_PREFIX}{name}\r\n")
            )

        assert b"x-ratelimit-remaining-requests: 1\r\n" in await ask("rated")
        streamed = await ask("rated", stream=True)
        assert streamed.startswith(b"HTTP/1.1 200") and b"x-ratelimit-remaining-requests: 0\r\n" in streamed
        status, body = parsed(await ask("rated"))
        assert (status, body["error"]["code"], body["error"]["type"]) == (
            429,
            "rate_limit_exceeded",
            "rate_limit_error",
        )
        assert parsed(await ask("rich"))[0] == 200
        status, body = parsed(await ask("spent"))
        assert (status, body["error"]["code"]) == (429, "insufficient_quota") and len(replica.requests) == 3

    scenario_with_one(tmp_path, 4, scenario)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/tokenize", "/v1/detokenize"])
def test_counting_tokens_is_held_to_a_keys_rate_too(tmp_path: Path, path: str) -> None:
    async def scenario(one: Gateway, replica: MockReplica) -> None:
        digest = hashlib.sha256(f"{SECRET_PREFIX}rated".encode()).hexdigest()
        limits = KeyLimits(requests_per_minute=1, models=("m",))
        one.callers.update(KeyTable((KeyRow("rated", "rated", digest, limits, 0.0, 0),)))
        field = {"tokens": [1]} if "detok" in path else {"input": "a"}

        async def ask(model: str) -> int:
            head = f"authorization: Bearer {SECRET_PREFIX}rated\r\n"
            status: int = parsed(await raw(one, post({"model": model, **field}, path, headers=head)))[0]
            return status

        assert await ask("other") == 404
        assert await ask("m") == 503  # what this replica says is no answer to it
        assert await ask("m") == 429
        assert one.router.in_flight("m") == 0

    scenario_with_one(tmp_path, 4, scenario)
