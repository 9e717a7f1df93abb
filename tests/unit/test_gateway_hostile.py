"""Clients that mean harm, and engines gone mad, beyond test_gateway_http.py: descriptors, memory, odd ends, shares."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest
import uvloop

from caudal.domain.errors import UsageError
from caudal.domain.key import KeyLimits
from caudal.gateway.callers import decode_keys
from caudal.gateway.descriptors import FEWEST, OWN, fitted
from caudal.gateway.http_request import Refusal, Request, RequestReader
from caudal.gateway.limits import Limits
from caudal.gateway.process import Gateway
from caudal.gateway.routes import decode_routes
from caudal.gateway.upstream import UpstreamLimits
from tests.support.gateway import NOWHERE, chat, connect, gateway, parsed, post, raw, table
from tests.support.mock_replica import MockReplica
from tests.unit.test_gateway_callers import OTHER, SECRET, bearer, key
from tests.unit.test_gateway_callers import table as keys

HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
CHUNKED = b"POST /v1/models HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
QUICK = replace(Limits(), head_s=0.2, body_s=0.2, idle_s=0.4, sweep_s=0.02, linger_s=0.2)


# The limit of open files.


def test_limits_fit_the_descriptors() -> None:
    assert fitted(Limits(), 65_536) == Limits()
    for descriptors in (FEWEST, 100, 256, 1024):
        limits = fitted(Limits(), descriptors)
        assert limits.connections >= 1 and limits.lingering >= 1
        assert OWN + 2 * limits.connections + limits.lingering <= descriptors
    assert fitted(replace(Limits(), connections=3), 1024).connections == 3
    with pytest.raises(UsageError, match="too few files"):
        fitted(Limits(), FEWEST - 1)


@contextmanager
def process(tmp_path: Path, descriptors: int) -> Iterator[tuple[psutil.Process, int]]:
    """The real gateway, which may open so many files and no more."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = {"host": "127.0.0.1", "port": port, "routes_url": NOWHERE, "site": "a", "gang": "g"}
    config = tmp_path / "config.json"
    config.write_bytes(msgspec.json.encode({**where, "state_file": str(tmp_path / "routes.json")}))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CAUDAL_")}
    limited = (
        "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_NOFILE, (n, n)); "
    )
    limited += "os.execv(sys.executable, [sys.executable, '-m', 'caudal.gateway', sys.argv[2]])"
    command = [sys.executable, "-c", limited, str(descriptors), str(config)]
    one = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                assert ask(port).startswith(b"HTTP/1.1 200")
                break
            except ConnectionRefusedError:
                assert time.monotonic() < until and one.poll() is None
                time.sleep(0.05)
        yield psutil.Process(one.pid), port
    finally:
        one.kill()
        one.wait()


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 3) as client:
        client.sendall(HEALTH)
        answer = b""
        while more := client.recv(65536):
            answer += more
        return answer


def test_a_process_out_of_descriptors_refuses_without_spinning_and_recovers(tmp_path: Path) -> None:
    limits = fitted(Limits(), 128)
    with process(tmp_path, 128) as (one, port):
        with ExitStack() as held:
            clients = []
            for _ in range(300):
                clients.append(held.enter_context(socket.create_connection(("127.0.0.1", port), 3)))
            time.sleep(0.3)
            assert one.num_fds() < 128 and one.is_running()
            before = sum(one.cpu_times()[:2])
            time.sleep(1.0)
            assert sum(one.cpu_times()[:2]) - before < 0.3  # it does not try to accept over and over
            refused = 0
            for client in clients:
                client.setblocking(False)
                try:
                    refused += client.recv(100).startswith(b"HTTP/1.1 503")
                except OSError:
                    pass  # nothing was said: it is one of those that are let in
            assert refused >= 100
            clients[0].setblocking(True)
            clients[0].sendall(HEALTH)
            assert clients[0].recv(65536).startswith(b"HTTP/1.1 200")  # who was let in is served
            assert limits.connections < 40
        until = time.monotonic() + 10
        while not (answer := ask(port)).startswith(b"HTTP/1.1 200"):
            assert time.monotonic() < until, answer
            time.sleep(0.1)


def test_running_out_of_descriptors_all_the_same_ends_nothing(tmp_path: Path) -> None:
    """The loop's own answer, where something else took the descriptors: waiting clients are dropped, and the
    socket goes on to listen."""

    async def run() -> None:
        async with gateway(tmp_path, {}, limits=QUICK) as one:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            taken = [os.open(os.devnull, os.O_RDONLY)]
            clients = [socket.socket() for _ in range(8)]
            port = int(one.url.split(":")[2].partition("/")[0])
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken[0], clients[-1].fileno()) + 1, hard))
                with pytest.raises(OSError, match="Too many open files"):
                    while True:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
                for client in clients:
                    client.connect(("127.0.0.1", port))
                before = time.process_time()
                await asyncio.sleep(0.5)
                assert time.process_time() - before < 0.2 and one.server.connections == 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for descriptor in taken:
                    os.close(descriptor)
                for client in clients:
                    client.close()
            assert (await raw(one, HEALTH)).startswith(b"HTTP/1.1 200")

    uvloop.run(run())


# Bytes that two servers could read differently, or that cost memory.


@pytest.mark.parametrize(
    "rest",
    [
        b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        b"10000000000000000\r\nabc\r\n0\r\n\r\n",
        b"-1\r\na\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3\nabc\n0\n\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3;a=b\nGET /x HTTP/1.1\r\nabc\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
    ],
)
def test_chunks_that_are_read_in_two_ways_are_refused(tmp_path: Path, rest: bytes) -> None:
    async def run() -> None:
        async with gateway(tmp_path, {}, limits=QUICK) as one:
            answer = await raw(one, CHUNKED + rest + HEALTH)
            assert parsed(answer)[0] in (400, 413) and answer.count(b"\r\ncontent-length: ") == 1

    uvloop.run(run())


def fed(data: bytes, *, times: int = 1, limits: Limits | None = None) -> RequestReader:
    reader = RequestReader(limits or Limits())
    reader.feed(CHUNKED)
    for _ in range(times):
        reader.feed(data)
    return reader


def test_chunk_extensions_are_read_over() -> None:
    (request,) = fed(b'3;name="a;b";x\r\nabc\r\n0;last\r\n\r\n').ready
    assert isinstance(request, Request) and request.body == b"abc"


@pytest.mark.parametrize("start", [b"0\r\ntrailer: ", b"0\r\n" + b"t", b"3;extension="])
def test_what_has_no_end_behind_the_head_is_refused_and_not_kept(start: bytes) -> None:
    reader = fed(start)
    tracemalloc.start()
    try:
        for _ in range(1000):
            reader.feed(b"a" * 10_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    (refusal,) = reader.ready
    assert isinstance(refusal, Refusal) and refusal.status == 431


def test_a_body_in_tiny_chunks_takes_no_more_memory_than_its_bytes() -> None:
    tracemalloc.start()
    try:
        reader = fed(b"2\r\nab\r\n" * 1000, times=500)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # 1 MB; in a list it would be 45
    finally:
        tracemalloc.stop()
    reader.feed(b"0\r\n\r\n")
    (request,) = reader.ready
    assert isinstance(request, Request) and request.body == b"ab" * 500_000


# Odd ends.


@pytest.mark.parametrize("sent", [b"", b"GET /hea", CHUNKED + b"5\r\nab", post(chat(seed=5000), close=False)])
@pytest.mark.parametrize("end", ["half", "reset"])
def test_clients_that_half_close_or_reset_leave_nothing_behind(tmp_path: Path, sent: bytes, end: str) -> None:
    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}) as one:
            _, writer = await connect(one)
            writer.write(sent)
            await asyncio.sleep(0.1)
            assert one.server.connections == 1
            if end == "half":
                writer.write_eof()
            else:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            async with asyncio.timeout(3):
                while one.server.connections or replica.running or one.router.in_flight("m"):
                    await asyncio.sleep(0.01)
            writer.close()
        await replica.die()

    uvloop.run(run())


def test_connections_that_say_nothing_do_not_keep_others_out(tmp_path: Path) -> None:
    async def run() -> None:
        async with gateway(tmp_path, {}, limits=replace(QUICK, connections=20)) as one:
            silent = [await connect(one) for _ in range(20)]
            assert parsed(await raw(one, b""))[0] == 503
            await asyncio.sleep(0.6)
            assert (await raw(one, HEALTH)).startswith(b"HTTP/1.1 200")
            for _, writer in silent:
                writer.close()

    uvloop.run(run())


# One key that asks for everything.


def test_a_flood_of_one_key_leaves_another_its_share(tmp_path: Path) -> None:
    async def flood_and_ask(one: Gateway, replica: MockReplica) -> None:
        one.callers.update(decode_keys(keys(key(limits=KeyLimits()), key(OTHER, "bob"))))
        routes = table({"m": [replica]}, 2).replace(b'"site": "north"', b'"site": "north", "slots": 2')
        one.router.update(decode_routes(routes))
        done: list[str] = []

        async def take(secret: str, who: str) -> None:
            answer = await raw(one, post(chat(seed=30), headers=bearer(secret)), 30)
            if answer.startswith(b"HTTP/1.1 200"):
                done.append(who)

        for _ in range(3):
            await take(OTHER, "before")
        done.clear()
        async with asyncio.TaskGroup() as group:
            for _ in range(60):
                group.create_task(take(SECRET, "flood"))
            await asyncio.sleep(0.1)
            for _ in range(6):
                group.create_task(take(OTHER, "bob"))
        assert done.count("bob") == 6
        last = max(n for n, who in enumerate(done) if who == "bob")
        assert last < 30, done  # turn by turn, not behind the sixty

    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {}) as one:
            await flood_and_ask(one, replica)
        await replica.die()

    uvloop.run(run())


def test_wishes_that_are_none_are_no_demand(tmp_path: Path) -> None:
    """Else a client could keep a model from ever sleeping with one bad header."""

    async def run() -> None:
        replica = await MockReplica().start()
        async with gateway(tmp_path, {"m": [replica]}) as one:
            for body in (chat(), chat(n=2)):
                answer = await raw(one, post(body, headers="x-caudal-class: urgent\r\n"))
                assert parsed(answer)[0] == 400 and not one.router.demand.waits_for("m")
        await replica.die()

    uvloop.run(run())


# Engines.

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
ENGINES = {
    "nothing": b"",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000,
    "endless header": b"HTTP/1.1 200 OK\r\na: " + b"b" * 200_000,
    "two lengths": HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}}",
    "length and chunks": HEAD
    + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "negative length": HEAD + b"content-length: -2\r\n\r\n{}",
    "bad chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n",
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "huge": HEAD + b"content-length: 200000\r\n\r\n" + b"[" * 200_000,
    "binary": bytes(range(256)) * 100,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", list(ENGINES))
def test_an_engine_gone_mad_costs_one_clear_error(tmp_path: Path, name: str, stream: bool) -> None:
    async def mad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ENGINES[name])
            await writer.drain()
            await reader.read()  # it does not hang up
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        engine = await asyncio.start_server(mad, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{engine.sockets[0].getsockname()[1]}"
        quick = UpstreamLimits(first_byte_s=0.3, stall_s=0.3, body_bytes=100_000)
        async with gateway(tmp_path, {"m": [url]}, upstream=quick) as one:
            answer = await raw(one, post(chat(stream=stream)), 8)
            status, body = parsed(answer)
            assert status == 503 and body["error"]["code"] in ("replica_failed", "failing")
            assert one.router.in_flight("m") == 0
            assert (await raw(one, HEALTH)).startswith(b"HTTP/1.1 200")
        engine.close()

    uvloop.run(run())
