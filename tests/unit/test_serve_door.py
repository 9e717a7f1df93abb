"""Between machines a replica answers whoever shows a certificate of the fleet, under TLS, and nobody else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from caudal.domain.errors import UsageError
from caudal.gateway.engine_request import post
from caudal.gateway.routes import ReplicaRoute
from caudal.gateway.upstream import UpstreamFailed, UpstreamLimits
from caudal.gateway.upstream_pool import UpstreamPool
from caudal.serve.door import Door
from caudal.serve.replica import check_host
from caudal.store.authority import ensure_certificates
from caudal.store.site_tls import client_context, server_context
from tests.support.mock_replica import MockReplica
from tests.unit.test_serve_replica import CONFIG

BODY = b'{"model": "m", "max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}]}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates of a fleet with two sites."""
    made = tmp_path_factory.mktemp("certificates")
    ensure_certificates(made, ["north", "south"])
    return made


async def served(folder: Path) -> tuple[MockReplica, ReplicaRoute]:
    """A replica at the south, behind its door."""
    engine = await MockReplica().start()
    door = Door("127.0.0.1", server_context(folder, "south"), engine.url)
    await asyncio.to_thread(door.open)
    assert door.url.startswith("https://127.0.0.1:") and not door.url.endswith(f":{engine.port}")
    return engine, ReplicaRoute("r", door.url, "south")


async def answer(route: ReplicaRoute, fleet: ssl.SSLContext | None) -> bytes:
    """What a gateway with this context gets there."""
    pool, address = UpstreamPool(UpstreamLimits(), fleet), route.address()
    connection = await pool.request(address, post(address, "/v1/chat/completions", BODY))
    try:
        body = await connection.read_all()
        assert connection.status == 200
        return body
    finally:
        pool.release(address, connection)
        pool.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20.0))


def test_a_gateway_of_another_site_is_answered_and_keeps_its_connection(folder: Path) -> None:
    async def test() -> None:
        engine, route = await served(folder)
        fleet = client_context(folder, "north")
        assert b'"choices"' in await answer(route, fleet)
        pool, address = UpstreamPool(UpstreamLimits(), fleet), route.address()
        before = engine.connections
        for _ in range(3):
            connection = await pool.request(address, post(address, "/v1/chat/completions", BODY))
            await connection.read_all()
            pool.release(address, connection)
        assert engine.connections == before + 1
        pool.close()

    run(test())


def test_a_stream_that_its_client_left_is_over_for_the_engine_too(folder: Path) -> None:
    async def test() -> None:
        engine, route = await served(folder)
        engine.gate.clear()
        pool, address = UpstreamPool(UpstreamLimits(), client_context(folder, "north")), route.address()
        asking = asyncio.create_task(pool.request(address, post(address, "/v1/chat/completions", BODY)))
        while not engine.running:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while engine.running:
            await asyncio.sleep(0.01)

    run(test())


def test_a_replica_that_dies_is_a_connection_that_breaks(folder: Path) -> None:
    async def test() -> None:
        engine, route = await served(folder)
        engine.gate.clear()
        asking = asyncio.create_task(answer(route, client_context(folder, "north")))
        while not engine.running:
            await asyncio.sleep(0.01)
        await engine.die()
        with pytest.raises(UpstreamFailed):
            await asking

    run(test())


def test_nobody_else_gets_in(folder: Path, tmp_path: Path) -> None:
    ensure_certificates(tmp_path, ["north", "south"])  # another fleet's
    stranger = ssl.create_default_context(
        cafile=str(folder / "ca.pem")
    )  # one who trusts us, and shows nothing
    foreign = client_context(tmp_path, "north")
    foreign.load_verify_locations(folder / "ca.pem")

    async def test() -> None:
        engine, route = await served(folder)
        for context in (stranger, foreign, client_context(tmp_path, "north"), None):
            with pytest.raises(UpstreamFailed):
                await answer(route, context)
        reader, writer = await asyncio.open_connection("127.0.0.1", route.address().port)
        writer.write(post(replace(route.address(), tls=False), "/v1/chat/completions", BODY))
        assert b"HTTP/1.1 200" not in await reader.read()
        writer.close()
        assert not engine.requests

    run(test())


def test_a_replica_of_another_site_than_the_routes_say_is_not_trusted(folder: Path) -> None:
    async def test() -> None:
        engine, route = await served(folder)
        wrong = ReplicaRoute("r", route.url, "north")
        with pytest.raises(UpstreamFailed, match="no connection"):
            await answer(wrong, client_context(folder, "north"))
        assert not engine.requests

    run(test())


def test_an_engine_never_listens_to_other_machines_by_itself() -> None:
    with pytest.raises(UsageError, match=r"10\.0\.0\.7 without encryption"):
        check_host(replace_host("10.0.0.7"))
    check_host(replace_host("127.0.0.1"))
    check_host(replace_host("10.0.0.7", certificates="."))


def replace_host(host: str, **more: str) -> Any:
    return msgspec.structs.replace(CONFIG, host=host, **more)
