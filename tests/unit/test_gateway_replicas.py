"""Replicas that die, come back and are many; routes that are away; the gateway's own restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop

from caudal.gateway.address import parse_address
from caudal.gateway.router import RECENTLY_S, Router
from caudal.gateway.routes import decode_routes
from caudal.gateway.upstream import UpstreamLimits
from tests.support.gateway import chat, gateway, parsed, post, raw, table
from tests.support.mock_replica import MockReplica


@pytest.mark.parametrize("fail", ["die_before", "garbage", "short_length", "not_json", "503", "hang"])
@pytest.mark.parametrize("stream", [False, True])
def test_failure_before_the_first_byte_is_retried_on_another(tmp_path: Path, fail: str, stream: bool) -> None:
    if stream and fail == "not_json":
        fail = "endless_line"

    async def run() -> None:
        bad, good = await MockReplica(fail=fail).start(), await MockReplica().start()
        limits = UpstreamLimits(first_byte_s=0.1)
        async with gateway(tmp_path, {"m": [bad, good]}, upstream=limits) as one:
            answer = await raw(one, post(chat(stream=stream, max_tokens=30)))
            assert answer.startswith(b"HTTP/1.1 200") and b"w29" in answer and b'"error"' not in answer
            assert len(bad.requests) == 1 and one.metrics.retries == 1
            assert (await raw(one, post(chat()))).startswith(b"HTTP/1.1 200")
            assert len(bad.requests) == 1  # left alone for a while
        await bad.die()
        await good.die()

    uvloop.run(run())


@pytest.mark.parametrize("left", [{"m": []}, {}], ids=["no replica left", "model left the table"])
def test_request_waits_for_a_replica_that_comes_back(
    tmp_path: Path, left: dict[str, list[MockReplica | str]]
) -> None:
    async def run() -> None:
        first = await MockReplica().start()
        async with gateway(tmp_path, {"m": [first]}, wait_s=5) as one:
            assert parsed(await raw(one, post(chat())))[0] == 200
            await first.die()
            one.router.update(decode_routes(table(left, 2)))
            waiting = asyncio.create_task(raw(one, post(chat())))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            second = await MockReplica().start()
            one.router.update(decode_routes(table({"m": [second]}, 3)))
            assert parsed(await waiting)[0] == 200
            await second.die()

    uvloop.run(run())


def test_model_that_stays_away_is_forgotten() -> None:
    now = 0.0
    router = Router("north", lambda: now)
    router.update(decode_routes(table({"m": ["http://127.0.0.1:1"], "n": []})))
    now = 100.0
    router.update(decode_routes(table({})))
    assert [m.id for m in router.models()] == ["m"] and router.model("n") is None
    now += RECENTLY_S - 1
    router.update(decode_routes(table({}, 2)))
    assert router.model("m") is not None
    now += 1
    assert router.model("m") is None and router.models() == []


def test_replica_killed_under_load_costs_whole_answers_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        victim, other = await MockReplica().start(), await MockReplica().start()
        async with gateway(tmp_path, {"m": [victim, other]}, wait_s=2) as one:
            victim.gate.clear()
            other.gate.clear()
            asked = [asyncio.create_task(raw(one, post(chat()))) for _ in range(16)]
            while victim.running < 8:
                await asyncio.sleep(0.005)
            await victim.die()
            other.gate.set()
            assert [parsed(answer)[0] for answer in await asyncio.gather(*asked)] == [200] * 16
        await other.die()

    uvloop.run(run())


def test_load_is_spread_and_bounded_per_replica(tmp_path: Path) -> None:
    async def run() -> None:
        replicas = [await MockReplica().start() for _ in range(2)]
        for replica in replicas:
            replica.gate.clear()
        async with gateway(tmp_path, {"m": [*replicas]}, wait_s=30) as one:
            asked = [asyncio.create_task(raw(one, post(chat()), 30)) for _ in range(80)]
            while sum(replica.running for replica in replicas) < 64:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            assert [replica.running for replica in replicas] == [32, 32]  # the rest waits in the gateway
            for replica in replicas:
                replica.gate.set()
            assert [parsed(answer)[0] for answer in await asyncio.gather(*asked)] == [200] * 80
        for replica in replicas:
            await replica.die()

    uvloop.run(run())


class Control:
    """The routes endpoint of a control API."""

    def __init__(self) -> None:
        self.answer = b""
        self.status = 200
        self.tokens: list[str] = []
        self.server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> Control:
        self.server = await asyncio.start_server(self._client, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.tokens += [
                    h[22:] for h in head.decode().split("\r\n") if h.startswith("authorization: Bearer")
                ]
                length = len(self.answer)
                writer.write(
                    b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (self.status, length, self.answer)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1/routes"


def test_routes_are_polled_kept_while_control_is_away_and_survive_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    monkeypatch.setenv("CAUDAL_TOKEN_FILE", str(secret))

    async def run() -> None:
        replica = await MockReplica().start()
        control = await Control().start()
        control.answer = table({"m": [replica]})
        async with gateway(tmp_path, routes_url=control.url) as one:
            assert await one.routes.poll()
            assert parsed(await raw(one, post(chat())))[0] == 200
            assert set(control.tokens) == {"s3cret"}
            for status, answer in ((500, b"{}"), (401, b"{}"), (200, b"not json"), (200, b'{"models": 3}')):
                control.status, control.answer = status, answer
                assert not await one.routes.poll()
                assert parsed(await raw(one, post(chat())))[0] == 200
            assert control.server is not None
            control.server.close()
        async with gateway(tmp_path, routes_url="http://127.0.0.1:9/") as again:
            assert parsed(await raw(again, post(chat())))[0] == 200
            assert not await again.routes.poll()
        (tmp_path / "routes.json").write_bytes(b"half a fi")
        async with gateway(tmp_path, routes_url="http://127.0.0.1:9/") as blank:
            ready = await raw(blank, b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert parsed(ready)[0] == 503
        await replica.die()

    uvloop.run(run())


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h:1",
        "http://",
        "file:///etc/passwd",
        "https://",
        "http://u:p@h",
        "http://h/a?b",
        "http://h/\r\nx: y",
        "",
    ],
)
def test_addresses_that_are_not_plain_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        parse_address(url)
