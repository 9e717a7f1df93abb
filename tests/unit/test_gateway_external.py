"""Requests that leave the fleet: over TLS, with a key, for money, and only when they have to."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from caudal.domain.key import SECRET_PREFIX, KeyLimits, Usage
from caudal.gateway.address import Address, parse_address
from caudal.gateway.callers import KeyRow, KeyTable
from caudal.gateway.process import Gateway
from caudal.gateway.routes import ExternalRoute, ModelRoutes, ReplicaRoute, RouteTable, decode_routes
from caudal.policy.breaker import Breaker
from tests.support.authority import make_authority
from tests.support.gateway import chat, connect, gateway, parsed, post, raw
from tests.support.mock_replica import USAGE, MockReplica
from tests.unit.test_gateway_generation import events

KEY = "sk-very-secret-0123456789"
NAME = "external.a.m"


class World:
    """A gateway, one replica of its own and a provider behind TLS."""

    def __init__(self, one: Gateway, own: MockReplica, provider: MockReplica, files: Path, ca: Path) -> None:
        self.one, self.own, self.provider, self.files = one, own, provider, files
        self.external = ExternalRoute(
            str(files / "key"), str(ca), 1.0, 2.0, budget_usd_per_month=1.0, limit_key="max_tokens"
        )
        self.url = f"https://localhost:{provider.port}/some/v1"

    def routes(self, *, own: bool = True, context: int = 2048, url: str = "", **changes: Any) -> None:
        """The gateway learns where to go."""
        external = msgspec.structs.replace(self.external, **changes)
        replicas = [ReplicaRoute("m-0", self.own.url, "north")] if own else []
        replicas.append(
            ReplicaRoute(
                NAME, url or self.url, model="name-there", engine="openai", slots=2, external=external
            )
        )
        table = RouteTable(1, (ModelRoutes("m", 1, context, tuple(replicas)),))
        self.one.router.update(decode_routes(msgspec.json.encode(table)))

    def spent(self) -> int:
        """Picodollars."""
        said = self.one.spending.report()
        return round(said["usd"].get(NAME, 0.0) * 10**12) if said else 0

    async def ask(self, **more: Any) -> tuple[int, Any]:
        """Status and JSON."""
        return parsed(await raw(self.one, post(chat(**more))))


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ca, tls = make_authority(tmp_path / "tls")
    (tmp_path / "key").write_text(KEY + "\n")
    own, provider = await MockReplica("m").start(), await MockReplica("name-there").start(tls=tls)
    async with gateway(tmp_path) as one:
        yield World(one, own, provider, tmp_path, ca)
    await own.die()
    await provider.die()


def run(tmp_path: Path, scenario: Any) -> None:
    async def all_of_it() -> None:
        async with world(tmp_path) as there:
            await scenario(there)

    uvloop.run(all_of_it())


def test_own_replicas_are_asked_first_and_the_provider_when_they_fail(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes()
        assert (await w.ask())[0] == 200
        assert len(w.own.requests) == 1 and w.provider.requests == [] and w.spent() == 0
        w.own.fail = "die_before"
        status, body = await w.ask(max_tokens=5)
        assert status == 200 and body["model"] == "m" and body["usage"] == USAGE
        (asked,) = w.provider.requests
        assert asked["model"] == "name-there" and asked["max_tokens"] == 5
        assert asked["_path"] == "/some/v1/chat/completions"
        assert f"authorization: Bearer {KEY}" in asked["_head"]
        assert f"host: localhost:{w.provider.port}" in asked["_head"]
        assert w.spent() == 7 * 1_000_000 + 3 * 2_000_000, "what the answer says it used"

    run(tmp_path, scenario)


def test_the_provider_is_asked_when_own_replicas_are_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caudal.policy.routing.DEFAULT_BOUND", 1)

    async def scenario(w: World) -> None:
        w.routes()
        w.own.gate.clear()
        first = asyncio.create_task(w.ask())
        while not w.own.requests:
            await asyncio.sleep(0.005)
        assert (await w.ask())[0] == 200 and len(w.provider.requests) == 1
        w.own.gate.set()
        assert (await first)[0] == 200 and len(w.own.requests) == 1

    run(tmp_path, scenario)


def test_an_address_that_is_no_overflow_is_one_replica_among_others(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False, overflow=False)
        assert (await w.ask())[0] == 200
        w.routes(own=False, overflow=False, budget_usd_per_month=1e-9)
        assert (await w.ask())[0] == 503 and len(w.provider.requests) == 1

    run(tmp_path, scenario)


@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_is_counted_and_shows_usage_to_those_who_asked(tmp_path: Path, asked: bool) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False)
        more = {"stream_options": {"include_usage": True}} if asked else {}
        got = events(await raw(w.one, post(chat(stream=True, **more))))
        assert got[-1] == "[DONE]" and w.provider.requests[0]["stream_options"] == {"include_usage": True}
        usages = [e["usage"] for e in got[:-1] if "usage" in e]
        assert usages == ([USAGE] if asked else []) and all(e["choices"] or asked for e in got[:-1])
        assert {e["model"] for e in got[:-1]} == {"m"}
        assert w.spent() == 13_000_000

    run(tmp_path, scenario)


def test_an_answer_that_does_not_say_what_it_used_counts_as_the_most(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False, context=100)
        answer = await raw(w.one, post(chat(stream=True, user="die_mid", max_tokens=50)))
        assert b"replica_failed" in answer
        sent = len(post(chat(stream=True, user="die_mid", max_tokens=50)).partition(b"\r\n\r\n")[2])
        assert w.spent() == sent * 1_000_000 + 50 * 2_000_000

    run(tmp_path, scenario)


def test_a_client_that_leaves_frees_the_provider_and_pays_for_what_may_have_been_said(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False)
        body = post(chat(stream=True, seed=100, max_tokens=40), close=False)
        reader, writer = await connect(w.one)
        writer.write(body)
        await reader.readuntil(b"w1")
        writer.transport.abort()
        for _ in range(200):
            if w.provider.left and not w.one.router.in_flight("m"):
                break
            await asyncio.sleep(0.01)
        assert (w.provider.left, w.one.router.in_flight("m")) == (1, 0)
        sent = len(body.partition(b"\r\n\r\n")[2])
        assert w.spent() == sent * 1_000_000 + 40 * 2_000_000

    run(tmp_path, scenario)


def test_refusals_and_connections_that_fail_cost_nothing(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False)
        status, body = await w.ask(user="400")
        assert (status, body["error"]["message"]) == (400, "Field 'x': no") and w.spent() == 0
        for fail in ("301", "401", "429", "500"):
            w.provider.fail = fail
            w.one.router._replicas[(NAME, w.url)].load.breaker = Breaker()
            status, body = await w.ask()
            assert status == 503 and "provider" not in str(body) and KEY not in str(body)
            assert w.spent() == 0
        port = w.provider.port
        await w.provider.die()
        w.one.router._replicas[(NAME, w.url)].load.breaker = Breaker()
        assert (await w.ask())[0] == 503 and w.spent() == 0 and port

    run(tmp_path, scenario)


def test_when_the_budget_is_spent_the_fleet_says_so(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        # A request of 100 bytes and a reply of 100 tokens: 0.0003 US dollars at most, of 0.0005.
        w.routes(own=False, budget_usd_per_month=0.0005)
        answers = [await w.ask(max_tokens=100) for _ in range(60)]
        statuses = [status for status, _ in answers]
        assert statuses[0] == 200 and statuses[-1] == 503 and sorted(statuses) == statuses
        assert answers[-1][1]["error"]["code"] == "budget_spent" and "next month" in str(answers[-1][1])
        assert w.spent() <= 500_000_000 and len(w.provider.requests) == statuses.count(200)
        w.routes(own=True, budget_usd_per_month=0.0005)
        assert (await w.ask(max_tokens=100))[0] == 200, "own replicas go on"

    run(tmp_path, scenario)


def test_what_a_key_cost_is_counted_and_its_budget_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[str, Usage, int]] = []

    def record(_: object, key_id: str, model: str, at: float, used: Usage, status: int) -> None:
        counted.append((key_id, used, status))

    monkeypatch.setattr("caudal.gateway.usage_journal.UsageJournal.record", record)

    async def scenario(w: World) -> None:
        secret = f"{SECRET_PREFIX}payer"
        headers = f"authorization: Bearer {secret}\r\n"

        def key(spent_usd: float) -> KeyTable:
            digest = hashlib.sha256(secret.encode()).hexdigest()
            limits = KeyLimits(budget_usd=0.5)
            return KeyTable((KeyRow("key-1", "payer", digest, limits, 0.0, 0, spent_usd),))

        async def ask(**more: Any) -> tuple[int, Any]:
            return parsed(await raw(w.one, post(chat(**more), headers=headers)))

        w.one.callers.update(key(0.49))
        w.routes()
        assert (await ask())[0] == 200  # at an own replica
        w.routes(own=False)
        assert (await ask())[0] == 200
        streamed = await raw(w.one, post(chat(stream=True), headers=headers))
        assert streamed.startswith(b"HTTP/1.1 200")
        assert [(who, used.picodollars, status) for who, used, status in counted] == [
            ("key-1", 0, 200),
            ("key-1", 13_000_000, 200),
            ("key-1", 13_000_000, 200),
        ]
        assert w.spent() == 26_000_000 and counted[1][1].prompt_tokens == 7
        w.one.callers.update(key(0.5))
        status, body = await ask()
        assert (status, body["error"]["code"]) == (429, "insufficient_quota") and "$0.5" in str(body)
        assert len(w.provider.requests) == 2

    run(tmp_path, scenario)


def test_what_was_spent_survives_the_gateway(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False)
        await w.ask()
        before = w.spent()
        async with gateway(tmp_path) as again:
            again.spending.affords(ReplicaRoute(NAME, w.url, external=w.external), 1)
            assert round(again.spending.report()["usd"][NAME] * 10**12) == before > 0

    run(tmp_path, scenario)


def test_a_reply_is_always_bounded_in_the_words_of_the_provider(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False, context=300, limit_key="max_completion_tokens")
        await w.ask()
        await w.ask(max_tokens=20)
        await w.ask(max_completion_tokens=4000)
        assert (await w.ask(best_of="many", n=2))[0] == 200, "what is not known here passes"
        limits = [(r.get("max_completion_tokens"), r.get("max_tokens")) for r in w.provider.requests]
        assert limits == [(300, None), (20, None), (300, None), (300, None)]

    run(tmp_path, scenario)


def test_certificates_are_checked(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        other, _ = make_authority(tmp_path / "other")
        for changes in (
            {"ca_file": ""},
            {"ca_file": str(other)},
            {"ca_file": "/nowhere/ca.pem"},
            {"url": f"https://127.0.0.1:{w.provider.port}/v1"},  # the certificate is localhost's
        ):
            w.routes(own=False, **changes)
            status, body = await w.ask()
            assert status == 503 and w.provider.requests == [], body
        w.routes(own=False)
        assert (await w.ask())[0] == 200

    run(tmp_path, scenario)


def test_connections_over_tls_are_kept_and_slow_clients_hold_them_back(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False)
        for _ in range(3):
            assert (await w.ask())[0] == 200
        assert w.provider.connections == 1
        answer = await raw(w.one, post(chat(stream=True, user="fat", max_tokens=40)), timeout_s=20)
        assert len(answer) > 40 * 50_000 and b"[DONE]" in answer

    run(tmp_path, scenario)


@pytest.mark.parametrize("content", [None, "", "two words", "sk-a\r\nx-other: header", "é" * 3])
def test_key_files_that_hold_no_key(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(w: World) -> None:
        (tmp_path / "key").unlink()
        if content is not None:
            (tmp_path / "key").write_text(content)
        w.routes(own=False)
        with caplog.at_level(logging.DEBUG):
            status, _ = await w.ask()
        assert status == 503 and w.provider.requests == [] and w.spent() == 0
        assert str(tmp_path / "key") in caplog.text and "sk-a" not in caplog.text

    run(tmp_path, scenario)


def test_the_key_is_nowhere_but_in_the_header(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False)
        with caplog.at_level(logging.DEBUG):
            for fail in ("", "401", "die_before"):
                w.provider.fail = fail
                w.one.router._replicas[(NAME, w.url)].load.breaker = Breaker()
                assert KEY not in str(await w.ask())
        metrics = await raw(w.one, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert b"caudal_gateway_external_spent_usd" in metrics and KEY.encode() not in metrics
        assert KEY not in caplog.text and KEY not in str(w.one.spending.report())

    run(tmp_path, scenario)


def test_a_key_that_is_changed_is_read_again(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        w.routes(own=False)
        await w.ask()
        (tmp_path / "key").write_text("sk-another-and-longer-than-before")
        await w.ask()
        heads = [r["_head"] for r in w.provider.requests]
        assert KEY in heads[0] and "Bearer sk-another-and-longer" in heads[1]

    run(tmp_path, scenario)


def test_addresses() -> None:
    assert parse_address("https://api.example.com/v1") == Address("api.example.com", 443, "/v1", True)
    assert parse_address("https://h:8443", "/ca") == Address("h", 8443, "", True, "/ca")
    assert parse_address("http://h:80", "/ca") == Address("h", 80)
    assert parse_address("https://h").standard_port and not parse_address("http://h:443").standard_port


@pytest.mark.parametrize(
    "changes",
    [{"usd_per_million_in": -1.0}, {"budget_usd_per_month": 1e9}, {"limit_key": "other"}, {"spent_usd": 3}],
)
def test_routes_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    replica = {"gang": "x", "url": "https://h/v1", "external": changes}
    table = {"models": [{"id": "m", "replicas": [replica]}]}
    with pytest.raises(ValueError):
        decode_routes(msgspec.json.encode(table))


def test_only_the_event_of_usage_is_taken_out() -> None:
    """Whatever else is in the same piece of a stream stays, in clean events."""
    from caudal.gateway.external import Paid
    from caudal.gateway.openai_api import parse_chat

    class Held:
        most = 9
        settled = -1

        def settle(self, picodollars: int) -> None:
            self.settled = picodollars

    call = parse_chat(b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}')
    route = ReplicaRoute(NAME, "http://h", external=ExternalRoute("", "", 1.0, 1.0))
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3}}'
    word = b'data: {"choices":[{"delta":{"content":"\\"usage\\""}}],"usage":null}'
    for end in (b"\n\n", b"\r\n\r\n"):
        held = Held()
        paid = Paid(call, route, Address("h", 80), "", 64, held)  # type: ignore[arg-type]
        done = b"data: [DONE]" + end
        assert paid.events(word + end + usage + end + done) == word + end + done
        assert paid.events(usage + end) == b"" and paid.events(done) == done
        paid.close()
        assert held.settled == 5_000_000
